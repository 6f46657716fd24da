"""MinAtar's games one after the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from sb3_plasticity.common.checks import check_choice

from ..schedules import Schedule
from ..sequence import TaskSequence
from .extras import require

__all__ = ["MinAtarEnv", "continual_minatar"]

GAMES = ("space_invaders", "asterix", "seaquest", "breakout", "freeway")
PUBLISHED = GAMES[:3]
COLOURS = 16  # more than any game has channels


class MinAtarEnv(gym.Env[np.ndarray, int]):
    """
    A game of MinAtar (Young and Tian, 2019), with all six actions, and the same episode again after the same seed.

    MinAtar's own Gymnasium class carries the last action over into the next episode, which sticky actions then repeat.

    :param game: ``"asterix"``, ``"breakout"``, ``"freeway"``, ``"seaquest"`` or ``"space_invaders"``
    :param render_mode: ``"rgb_array"`` or None
    :param sticky_action_prob: probability that an action is replaced by the one before it
    :param difficulty_ramping: whether a game becomes harder the longer it lasts
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 10,
    }

    def __init__(
        self,
        game: str,
        render_mode: str | None = None,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
    ) -> None:
        check_choice("game", game, GAMES)
        minatar = require("minatar", "minatar", "ContinualMinAtar-v0")
        self.render_mode = render_mode
        self.game = minatar.Environment(game, sticky_action_prob, difficulty_ramping)
        self.observation_space = spaces.Box(0.0, 1.0, tuple(self.game.state_shape()), np.float32)
        self.action_space = spaces.Discrete(self.game.num_actions())  # type: ignore[assignment]
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start a game.

        :param seed: of the game, or None to continue with its generator
        :param options: ignored
        :return: observation of shape (10, 10, channels), and info
        """
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self.game.seed(int(self.np_random.integers(2**31)))
            self._seeded = True
        self.game.last_action = 0
        self.game.reset()
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Play a frame.

        :param action: 0 to 5: nothing, left, up, right, down, fire
        :return: observation, reward, terminated, truncated, info
        """
        reward, terminated = self.game.act(int(action))
        return self._observation(), float(reward), bool(terminated), False, {}

    def render(self) -> np.ndarray | None:
        """Draw the channels in shades of grey, the last on top."""
        if self.render_mode != "rgb_array":
            return None
        state = self.game.state()
        top = (state * np.arange(1, state.shape[-1] + 1)).max(axis=-1)
        # the first channel is to stand out from the black ground, too
        grey = np.where(top > 0, 79 + top * (176 // COLOURS), 0).astype(np.uint8)
        return np.repeat(np.kron(grey, np.ones((16, 16), np.uint8))[..., None], 3, axis=-1)

    def _observation(self) -> np.ndarray:
        return np.asarray(self.game.state(), dtype=np.float32)


def continual_minatar(
    games: Sequence[str] = PUBLISHED,
    schedule: str | Mapping[str, Any] | Schedule = "numbered",
    switch: str = "reset",
    task: int | None = None,
    render_mode: str | None = None,
    max_episode_steps: int = 5_000,
    **kwargs: Any,
) -> TaskSequence:
    """
    Continual MinAtar of C-CHAIN (Tang et al., ICML, 2025): Space Invaders, Asterix and Seaquest for two million steps
    each.

    The reward is the score of the game. Observations are padded to the number of channels of the game that has the most
    (10 for Seaquest).

    :param games: names of the games, in their order
    :param schedule: schedule of kind ``numbered``; the default period is 2,000,000 steps
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param render_mode: ``"rgb_array"`` or None
    :param max_episode_steps: time limit of every game, because some can be played forever
    :param kwargs: keyword arguments of :class:`MinAtarEnv`
    :return: the environment
    """
    require("minatar", "minatar", "ContinualMinAtar-v0")
    for game in games:
        check_choice("games", game, GAMES)
    tasks = [{"name": game, "make": functools.partial(_game, game, max_episode_steps, **kwargs)} for game in games]
    return TaskSequence(tasks, 2_000_000, schedule=schedule, switch=switch, task=task, render_mode=render_mode)


def _game(game: str, max_episode_steps: int, **kwargs: Any) -> gym.Env[Any, Any]:
    return TimeLimit(MinAtarEnv(game, **kwargs), max_episode_steps)
