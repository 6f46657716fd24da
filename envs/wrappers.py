"""
Any Gymnasium environment, changing by a schedule: wrappers that carry the same clock as the robots.

:class:`NonStationary` sets a parameter of the environment. :class:`ObservationShift`, :class:`ObservationPermutation`
    and
:class:`ActionPermutation` change what the agent sees or does, one drawn variation for each task.
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces, utils

from sb3_plasticity.common.checks import check_number, must_be, nearest, suggests_names

from .clock import Clocked
from .schedules import Numbered, Schedule, Task

__all__ = ["ActionPermutation", "NonStationary", "ObservationPermutation", "ObservationShift"]

ScheduleSpec = str | Mapping[str, Any] | Schedule


class _TaskWrapper(Clocked, gym.Wrapper[Any, Any, Any, Any], utils.RecordConstructorArgs):
    """A wrapper with a clock. The inner environment knows nothing of it."""

    def _seen(self, observation: Any) -> Any:
        """What the agent sees of an observation, in the current task."""
        return observation

    def _done(self, action: Any) -> Any:
        """What an action does, in the current task."""
        return action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode in the task that is due.

        :param seed: seed of the environment, or None to continue with its generator. A seed starts everything anew, so
            the clock too, unless a trainer keeps it (:meth:`sync_clock`).
        :param options: of the environment
        :return: observation and info
        """
        self._begin_episode(seed)
        observation, info = self.env.reset(seed=seed, options=options)
        return self._seen(observation), self._with_task(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        Step the environment, in the task that is due if ``switch`` is ``"immediate"``.

        :param action: of the environment
        :return: observation, reward, terminated, truncated, info
        """
        self._begin_step()
        observation, reward, terminated, truncated, info = self.env.step(self._done(action))
        return self._seen(observation), reward, terminated, truncated, self._with_task(info)


class NonStationary(_TaskWrapper):
    """
    Make a parameter of any environment follow a schedule::

        env = NonStationary(
            gym.make("CartPole-v1"), "gravity", {"kind": "uniform", "low": 5, "high": 15, "period": 50_000}
        )

    The ``info`` of a transition contains its task as ``task_index`` and ``task_value``. ``sync_clock`` and ``set_task``
    work as for the robots, so callbacks, zoo and studies treat all of them alike.

    :param env: the environment
    :param parameter: name of a numeric attribute of ``env.unwrapped`` (dots access attributes of its objects), or a
        function of ``env.unwrapped`` and the value if more than one assignment is needed. A function at the top level
        of a module can be pickled.
    :param schedule: kind or mapping, as for the robots: ``{kind: constant, value}``, ``{kind: log_uniform | uniform,
        low, high, period, seed}``, ``{kind: cyclic, values, period}``, ``{kind: table, values | path, row, period}``,
        ``{kind: sinusoid, low, high, period}``
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :raises ValueError: if there is no such attribute (the error names the closest one), or if the schedule is out of
        range
    """

    @suggests_names()
    def __init__(
        self,
        env: gym.Env[Any, Any],
        parameter: str | Callable[[Any, float], object],
        schedule: ScheduleSpec,
        *,
        switch: str = "reset",
        task: int | None = None,
    ) -> None:
        utils.RecordConstructorArgs.__init__(self, parameter=parameter, schedule=schedule, switch=switch, task=task)
        gym.Wrapper.__init__(self, env)
        if not callable(parameter):
            _check_attribute(env.unwrapped, parameter)
        self.parameter = parameter
        self._start_clock(schedule, switch, task)
        self._set_task(self.clock.due())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode in the task that is due.

        :param seed: as for every wrapper with a clock: a seed starts the clock anew, unless a trainer keeps it
        :param options: of the environment
        :return: observation and info
        """
        observation, info = super().reset(seed=seed, options=options)
        if not callable(self.parameter) and _read(self.unwrapped, self.parameter) != self._task.value:
            self._apply(self._task)  # some environments set their attributes anew in reset
        return observation, info

    def _apply(self, task: Task) -> None:
        if callable(self.parameter):
            self.parameter(self.unwrapped, task.value)
            return
        path, _, name = self.parameter.rpartition(".")
        owner = _read(self.unwrapped, path)
        whole = isinstance(getattr(owner, name), numbers.Integral) and task.value.is_integer()
        setattr(owner, name, int(task.value) if whole else task.value)


def _read(env: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        env = getattr(env, name)
    return env


def _check_attribute(env: Any, path: Any) -> None:
    accepted = f"the name of a numeric attribute of {type(env).__name__}, or a function of it and the value"
    if not isinstance(path, str) or not path:
        raise must_be("parameter", accepted, path)
    owner = env
    for name in path.split("."):
        if not hasattr(owner, name):
            raise ValueError(f"{must_be('parameter', accepted, path)}{nearest(name, _numeric(owner))}")
        owner = getattr(owner, name)
    if not _is_number(owner):
        raise ValueError(f"{must_be('parameter', accepted, path)}, which is {owner!r}{nearest(path, _numeric(env))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _numeric(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("__") and _is_number(getattr(owner, name, None))]


class _Variations(_TaskWrapper):
    """
    A wrapper whose tasks are drawn: number 0 is the environment as it is, every other number a draw of its own.

    Draw ``k`` comes from a generator seeded with (seed of the schedule, k): the same in every process, in whatever
    order.
    """

    default_period: ClassVar[int] = 160_000

    def _follow(self, schedule: ScheduleSpec, switch: str, task: int | None) -> None:
        self._start_clock(schedule, switch, task, {"period": self.default_period})
        if not isinstance(self.schedule, Numbered):
            raise must_be("schedule", "of kind 'numbered'", schedule)
        self._set_task(self.clock.due())

    def _apply(self, task: Task) -> None:
        number = int(task.value)
        assert isinstance(self.schedule, Numbered)
        self._drawn = self._draw(np.random.default_rng((self.schedule.seed, number)) if number else None)

    @abstractmethod
    def _draw(self, generator: np.random.Generator | None) -> Any:
        """Draw a variation; without a generator, the one that changes nothing."""


class ObservationShift(_Variations):
    """
    Add a constant vector to the observations, another one in each task.

    The shifts of the Gym control tasks in TRAC (Muppidi et al., NeurIPS, 2024) and C-CHAIN (Tang et al., ICML, 2025): a
    normal draw for every coordinate, none in the first task.

    :param env: environment with a Box of floating point numbers as observation space
    :param scale: standard deviation of the shift, in units of the observation
    :param schedule: of kind ``numbered``: ``{kind: numbered, period, n, order, seed}``
    :param switch: ``"reset"`` lets a new task start with the next episode, ``"immediate"`` at the step it is due
    :param task: freeze the task of this index
    :raises ValueError: for another observation space or another kind of schedule
    """

    @suggests_names()
    def __init__(
        self,
        env: gym.Env[Any, Any],
        scale: float = 2.0,
        schedule: ScheduleSpec = "numbered",
        *,
        switch: str = "reset",
        task: int | None = None,
    ) -> None:
        utils.RecordConstructorArgs.__init__(self, scale=scale, schedule=schedule, switch=switch, task=task)
        gym.Wrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
            raise must_be("env", "an environment whose observations are a Box of floating point numbers", space)
        check_number("scale", scale, above=0)
        self.scale = scale
        self.observation_space = spaces.Box(-np.inf, np.inf, space.shape, space.dtype)
        self._follow(schedule, switch, task)

    def _draw(self, generator: np.random.Generator | None) -> np.ndarray:
        space = self.env.observation_space
        shift = np.zeros(space.shape or ()) if generator is None else generator.normal(0.0, self.scale, space.shape)
        return shift.astype(space.dtype)

    def _seen(self, observation: Any) -> Any:
        return observation + self._drawn


class ObservationPermutation(_Variations):
    """
    Permute the coordinates of the observations, in another way in each task.

    :param env: environment with a Box as observation space
    :param schedule: of kind ``numbered``: ``{kind: numbered, period, n, order, seed}``
    :param switch: ``"reset"`` lets a new task start with the next episode, ``"immediate"`` at the step it is due
    :param task: freeze the task of this index
    :raises ValueError: for another observation space or another kind of schedule
    """

    @suggests_names()
    def __init__(
        self,
        env: gym.Env[Any, Any],
        schedule: ScheduleSpec = "numbered",
        *,
        switch: str = "reset",
        task: int | None = None,
    ) -> None:
        utils.RecordConstructorArgs.__init__(self, schedule=schedule, switch=switch, task=task)
        gym.Wrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box):
            raise must_be("env", "an environment whose observations are a Box", space)
        low, high = space.low.min(), space.high.max()
        self.observation_space = spaces.Box(low, high, space.shape, space.dtype)
        self._follow(schedule, switch, task)

    def _draw(self, generator: np.random.Generator | None) -> np.ndarray:
        size = math.prod(self.env.observation_space.shape or ())
        return np.arange(size) if generator is None else generator.permutation(size)

    def _seen(self, observation: Any) -> Any:
        return np.asarray(observation).reshape(-1)[self._drawn].reshape(np.shape(observation))


class ActionPermutation(_Variations):
    """
    Permute the actions, in another way in each task: which button does what, or which joint a number moves.

    :param env: environment with a Discrete action space, or with a Box whose coordinates have the same bounds
    :param schedule: of kind ``numbered``: ``{kind: numbered, period, n, order, seed}``
    :param switch: ``"reset"`` lets a new task start with the next episode, ``"immediate"`` at the step it is due
    :param task: freeze the task of this index
    :raises ValueError: for another action space or another kind of schedule
    """

    @suggests_names()
    def __init__(
        self,
        env: gym.Env[Any, Any],
        schedule: ScheduleSpec = "numbered",
        *,
        switch: str = "reset",
        task: int | None = None,
    ) -> None:
        utils.RecordConstructorArgs.__init__(self, schedule=schedule, switch=switch, task=task)
        gym.Wrapper.__init__(self, env)
        space = env.action_space
        same_bounds = isinstance(space, spaces.Box) and np.ptp(space.low) == 0 and np.ptp(space.high) == 0
        if not isinstance(space, spaces.Discrete) and not same_bounds:
            raise must_be("env", "an environment whose actions are Discrete, or a Box of equal bounds", space)
        self._follow(schedule, switch, task)

    def _draw(self, generator: np.random.Generator | None) -> np.ndarray:
        space = self.env.action_space
        size = int(space.n) if isinstance(space, spaces.Discrete) else math.prod(space.shape or ())
        return np.arange(size) if generator is None else generator.permutation(size)

    def _done(self, action: Any) -> Any:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            return space.start + self._drawn[action - space.start]
        return np.asarray(action).reshape(-1)[self._drawn].reshape(np.shape(action))
