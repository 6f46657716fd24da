"""MiniGrid's rooms one after the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation

from ..schedules import Schedule
from ..sequence import TaskSequence
from .extras import require

__all__ = ["continual_minigrid"]

ROOMS = (
    "MiniGrid-Empty-8x8-v0",
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-SimpleCrossingS9N1-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-Unlock-v0",
)


def continual_minigrid(
    rooms: Sequence[str] = ROOMS,
    schedule: str | Mapping[str, Any] | Schedule = "numbered",
    switch: str = "reset",
    task: int | None = None,
    render_mode: str | None = None,
    **kwargs: Any,
) -> TaskSequence:
    """
    A sequence of rooms of MiniGrid (Chevalier-Boisvert et al., NeurIPS, 2023).

    The agent observes the 7 x 7 cells in front of it as a flat array (147 numbers), without mission and direction. We
    chose the rooms; they are no published sequence. Each room has its own time limit. The reward is 1 - 0.9 * steps /
    limit when the goal is reached, and 0 in every other step.

    :param rooms: ids of MiniGrid environments
    :param schedule: schedule of kind ``numbered``; the default period is 500,000 steps
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param render_mode: ``"rgb_array"`` or None
    :param kwargs: keyword arguments of every room
    :return: the environment
    """
    require("minigrid", "minigrid", "ContinualMiniGrid-v0")
    tasks = [{"name": room, "make": functools.partial(_room, room, **kwargs)} for room in rooms]
    return TaskSequence(tasks, 500_000, schedule=schedule, switch=switch, task=task, render_mode=render_mode)


def _room(room: str, **kwargs: Any) -> gym.Env[Any, Any]:
    from minigrid.wrappers import ImgObsWrapper

    return FlattenObservation(ImgObsWrapper(gym.make(room, **kwargs)))
