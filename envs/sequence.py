"""One environment after the other, as one environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces, utils

from sb3_plasticity.common.checks import check_names, must_be, suggests_names

from .clock import Clocked
from .joint_spaces import cut, join_actions, join_observations, pad
from .schedules import Numbered, Schedule, Task

__all__ = ["TaskSequence"]

Maker = Callable[..., gym.Env[Any, Any]]


class TaskSequence(Clocked, gym.Env[Any, Any], utils.EzPickle):
    """
    Present one environment after another as one environment, such as games, mazes or robots::

        env = TaskSequence(["MinAtar/SpaceInvaders-v1", {"id": "MinAtar/Asterix-v1"}], period=2_000_000)

    In ``info``, ``task_value`` is the position of the task in the list and ``task_name`` its name. If the spaces of the
    tasks differ, observations are padded with zeros and the action space is the largest one (see
    :mod:`~sb3_plasticity.envs.joint_spaces`).

    :param tasks: the tasks in their order; each is an id, a mapping ``{id, kwargs, name}`` or ``{make, kwargs, name}``,
        or a function that creates an environment
    :param period: number of global steps in each task
    :param order: ``"cyclic"``, ``"once"`` (the last task stays) or ``"shuffled"`` (each task once in every round)
    :param seed: seed of the order
    :param schedule: schedule of kind ``numbered`` that replaces the three arguments before
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` truncates the episode in which
        it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param render_mode: render mode of every environment
    :raises ValueError: if an environment cannot be created or spaces cannot be joined
    """

    @suggests_names()
    def __init__(
        self,
        tasks: Sequence[str | Mapping[str, Any] | Maker],
        period: int | None = None,
        order: str = "cyclic",
        seed: int = 0,
        *,
        schedule: str | Mapping[str, Any] | Schedule | None = None,
        switch: str = "reset",
        task: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if isinstance(tasks, (str, Mapping)) or not isinstance(tasks, Sequence) or not tasks:
            raise must_be("tasks", "a list of ids, of mappings {id, kwargs} or of functions", tasks)
        utils.EzPickle.__init__(
            self,
            tasks,
            period,
            order,
            seed,
            schedule=schedule,
            switch=switch,
            task=task,
            render_mode=render_mode,
        )
        defaults: dict[str, Any] = {} if period is None else {"period": period}
        if schedule is None:
            schedule = {"kind": "numbered", "order": order, "seed": seed, **defaults}
        if isinstance(schedule, (str, Mapping)):
            keywords = {"kind": schedule} if isinstance(schedule, str) else dict(schedule)
            schedule = {"n": len(tasks), **keywords} if keywords.get("kind") == "numbered" else schedule
        self._start_clock(schedule, switch, task, defaults)
        if not isinstance(self.schedule, Numbered) or self.schedule.n is None or self.schedule.n > len(tasks):
            raise must_be("schedule", f"of kind 'numbered' with `n` <= {len(tasks)}", schedule)
        self.names = _names(tasks)
        self.envs = [_make(task, render_mode) for task in tasks]
        by_name = dict(zip(self.names, self.envs, strict=True))
        self.observation_space = join_observations({name: env.observation_space for name, env in by_name.items()})
        self.action_space = join_actions({name: env.action_space for name, env in by_name.items()})
        self.metadata = self.envs[0].metadata
        self.render_mode = render_mode
        self._seeds: list[int | None] = [None] * len(tasks)
        self._under_way = False
        self._set_task(self.clock.due())

    @property
    def task(self) -> Task:
        """The task that the world is in, with its name."""
        return dataclasses.replace(self._task, name=self.names[int(self._task.value)])

    @property
    def env(self) -> gym.Env[Any, Any]:
        """The environment of the current task."""
        return self.envs[int(self._task.value)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode of the task that is due.

        :param seed: of every environment, from its next episode on. A seed starts the clock anew, unless a trainer
            keeps it (:meth:`sync_clock`).
        :param options: of the environment
        :return: observation and info
        """
        super().reset(seed=seed)
        if seed is not None:
            self._seeds = [seed] * len(self.envs)
        self._begin_episode(seed)
        observation, info = self._begin(options)
        return self._padded(observation), self._with_task(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        Step the environment of the current task.

        :param action: of the joint action space
        :return: observation, reward, terminated, truncated, info
        """
        if not self._under_way:
            self._begin(None)  # the clock was set to another task after the reset
        self._at_start = False
        self.clock.tick()
        observation, reward, terminated, truncated, info = self.env.step(cut(action, self.env.action_space))
        if self.switch == "immediate" and self.clock.due() != self._applied:
            truncated = True
        return self._padded(observation), reward, terminated, truncated, self._with_task(info)

    def render(self) -> Any:
        """Draw the current environment."""
        return self.env.render()

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _apply(self, task: Task) -> None:
        self._under_way = False

    def _begin(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        number = int(self._task.value)
        seed, self._seeds[number] = self._seeds[number], None
        self._under_way = True
        return self.env.reset(seed=seed, options=options)

    def _padded(self, observation: Any) -> Any:
        space = self.observation_space
        return pad(observation, space.shape, space.dtype) if isinstance(space, spaces.Box) else observation

    def _with_task(self, info: dict[str, Any]) -> dict[str, Any]:
        return super()._with_task(info) | {"task_name": self.names[int(self._task.value)]}


def _names(tasks: Sequence[Any]) -> list[str]:
    names = []
    for task in tasks:
        if isinstance(task, Mapping):
            check_names("keyword of a task", task, ("id", "kwargs", "name", "make"))
            task = task.get("name", task.get("id"))
        names.append(task if isinstance(task, str) else getattr(task, "__name__", repr(task)))
    # the same environment with other keywords, or twice
    seen = [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return seen


def _make(task: Any, render_mode: str | None) -> gym.Env[Any, Any]:
    keywords: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        spec: Mapping[str, Any] = {"id": task} if isinstance(task, str) else task if isinstance(task, Mapping) else {}
        keywords |= spec.get("kwargs") or {}
        make = spec.get("make", task)
        env = make(**keywords) if callable(make) else gym.make(spec["id"], **keywords)
    except Exception as error:
        # as many kinds of error as there are environments
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{must_be('tasks', 'environments that can be made', task)}: {first_line}") from error
    if not isinstance(env, gym.Env):
        raise must_be("tasks", "environments of Gymnasium", env)
    return env
