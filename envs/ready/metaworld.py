"""Meta-World's manipulation tasks one after the other: Continual World's CW10."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from ..schedules import Schedule
from ..sequence import TaskSequence
from .extras import require

__all__ = ["continual_metaworld"]

CW10 = (
    "hammer-v3",
    "push-wall-v3",
    "faucet-close-v3",
    "push-back-v3",
    "stick-pull-v3",
    "handle-press-side-v3",
    "push-v3",
    "shelf-place-v3",
    "window-close-v3",
    "peg-unplug-side-v3",
)


class RandomGoals(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """
    A task of Meta-World with one of its 50 goals in each episode, drawn from the environment's own generator.

    Meta-World's registered tasks draw goals from a generator that a seeded reset leaves as it is.

    :param name: of the task, such as ``"hammer-v3"``
    :param render_mode: of the environment
    """

    def __init__(self, name: str, render_mode: str | None = None) -> None:
        metaworld = require("metaworld", "metaworld", "ContinualMetaWorld-v0")
        benchmark = metaworld.MT1(name, seed=0)
        super().__init__(benchmark.train_classes[name](render_mode=render_mode))
        self.goals = benchmark.train_tasks
        self._set_goal = self.env.unwrapped.set_task  # type: ignore[attr-defined]
        self._set_goal(self.goals[0])
        # some observations leave the bounds that Meta-World states
        self.observation_space = spaces.Box(-np.inf, np.inf, self.env.observation_space.shape, np.float64)
        self._generator = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode with a goal of its own.

        :param seed: of goals and environment, or None to continue with their generators
        :param options: of the environment
        :return: observation and info
        """
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self._set_goal(self.goals[int(self._generator.integers(len(self.goals)))])
        return self.env.reset(seed=seed, options=options)


def continual_metaworld(
    tasks: Sequence[str] = CW10,
    schedule: str | Mapping[str, Any] | Schedule = "numbered",
    switch: str = "reset",
    task: int | None = None,
    render_mode: str | None = None,
    max_episode_steps: int = 200,
) -> TaskSequence:
    """
    CW10 of Continual World (Wołczyk et al., NeurIPS, 2021): ten manipulation tasks of Meta-World for a million steps
    each.

    Continual World used version 1 of the tasks, with episodes of 200 steps; this environment uses the current version.
    The reward is Meta-World's own, between 0 and 10 per step, and ``info["success"]`` reports success.

    :param tasks: names of Meta-World's tasks
    :param schedule: schedule of kind ``numbered``; the default period is 1,000,000 steps
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param render_mode: render mode of every environment
    :param max_episode_steps: time limit, at most Meta-World's own 500
    :return: the environment
    """
    require("metaworld", "metaworld", "ContinualMetaWorld-v0")
    makers = [{"name": name, "make": functools.partial(_manipulation, name, max_episode_steps)} for name in tasks]
    return TaskSequence(makers, 1_000_000, schedule=schedule, switch=switch, task=task, render_mode=render_mode)


def _manipulation(name: str, max_episode_steps: int, **kwargs: Any) -> gym.Env[Any, Any]:
    return TimeLimit(RandomGoals(name, **kwargs), max_episode_steps)
