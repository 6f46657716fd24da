"""
Which task is due: the clock of one environment, and what everything that has a clock can do.

An environment *has a clock* if it offers ``schedule``, ``clock``, ``sync_clock`` and ``set_task`` and reports
``task_index`` and ``task_value`` in ``info``. That is all that callbacks, zoo and studies ask for: :func:`has_clock`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sb3_plasticity.common.checks import check_choice, check_count

from .schedules import Schedule, Task, make_schedule

__all__ = ["Clocked", "TaskClock", "has_clock"]

SWITCHES = ("reset", "immediate")
PROTOCOL = ("schedule", "clock", "sync_clock", "set_task")


def has_clock(env: Any) -> bool:
    """
    Check whether the tasks of an environment follow a schedule.

    :param env: an environment, wrapped or not, or a vectorised environment of stable-baselines3
    :return: True if it has every name of ``PROTOCOL``; for vectorised environments, if each environment has
    """
    for ask in ("has_attr", "has_wrapper_attr"):
        if hasattr(env, ask):
            try:
                return all(getattr(env, ask)(name) for name in PROTOCOL)
            except Exception:
                return False  # vectorised environments of others need not know attributes at all
    return all(hasattr(env, name) for name in PROTOCOL)


class TaskClock:
    """
    Global time as one environment sees it.

    :param schedule: global step -> task
    :param task: index of the task to stay at, or None to follow the schedule
    """

    def __init__(self, schedule: Schedule, task: int | None = None) -> None:
        self.schedule = schedule
        self.step = 0
        self.rate = 1
        self.synced = False
        self.frozen: Task | None = None
        self.freeze(task)

    def due(self) -> Task:
        """Task that the schedule, or the one who froze it, wants now."""
        return self.schedule(self.step) if self.frozen is None else self.frozen

    def tick(self) -> None:
        """Count one step of this environment."""
        self.step += self.rate

    def restart(self) -> None:
        """Start from 0 again, unless a trainer keeps the time."""
        if not self.synced:
            self.step = 0

    def sync(self, step: int, rate: int = 1) -> None:
        """
        Let a trainer keep the time.

        :param step: global step of this environment's next step
        :param rate: how many global steps one step of this environment stands for; 0 stops the clock
        """
        self.step = _count("step", step)
        self.rate = _count("rate", rate)
        self.synced = True

    def freeze(self, index: int | None) -> None:
        """
        Stay at a task, or follow the schedule again.

        :param index: the task's index, or None to follow the schedule
        """
        self.frozen = None if index is None else self.schedule.task(index)


class Clocked:
    """
    What an environment or a wrapper with a clock has in common with all others.

    A subclass calls :meth:`_start_clock` in its constructor, :meth:`_begin_episode` before each reset,
    :meth:`_begin_step` before each step and :meth:`_with_task` on each info, and
    says in :meth:`_apply` what a task does.
    """

    schedule: Schedule
    switch: str
    clock: TaskClock

    def _start_clock(
        self,
        schedule: str | Mapping[str, Any] | Schedule,
        switch: str,
        task: int | None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Check the arguments that everything with a clock takes.

        :param schedule: as for :func:`~sb3_plasticity.envs.schedules.make_schedule`
        :param switch: ``"reset"`` or ``"immediate"``
        :param task: index of the task to stay at, or None
        :param defaults: keywords of the schedule where it leaves them out
        :raises ValueError: for any that is out of range
        """
        self.schedule = make_schedule(schedule, defaults)
        check_choice("switch", switch, SWITCHES)
        self.switch = switch
        self.clock = TaskClock(self.schedule, task)
        self._at_start = True
        self._applied: Task | None = None

    @property
    def task(self) -> Task:
        """The task that the world is in."""
        return self._task

    def sync_clock(self, step: int, rate: int = 1) -> None:
        """
        Hand the clock to a trainer.

        :param step: global step of this environment's next step
        :param rate: how many global steps one step of this environment stands for: the number of environments that
            are stepped together; 0 stops the clock
        """
        self.clock.sync(step, rate)
        self._start_on_time()

    def set_task(self, index: int | None) -> None:
        """
        Freeze a task, or follow the schedule again.

        :param index: the task's index, or None to follow the schedule
        """
        self.clock.freeze(index)
        self._start_on_time()

    def _apply(self, task: Task) -> None:
        """
        Change the world.

        :param task: to enter
        """
        raise NotImplementedError

    def _set_task(self, task: Task) -> None:
        if task != self._applied:
            self._apply(task)
            self._applied = task
        self._task = task

    def _start_on_time(self) -> None:
        """Move an episode that was reset, but not stepped, before the clock was set to the task that is due now."""
        if self._at_start:
            self._set_task(self.clock.due())

    def _begin_episode(self, seed: int | None) -> None:
        """
        Enter the task that is due.

        :param seed: a seed starts everything anew, so the clock too, unless a trainer keeps it
        """
        if seed is not None:
            self.clock.restart()
        self._at_start = True
        self._set_task(self.clock.due())

    def _begin_step(self) -> None:
        """Enter the task that is due if that may happen within an episode, and count."""
        if self.switch == "immediate":
            self._set_task(self.clock.due())
        self._at_start = False
        self.clock.tick()

    def _with_task(self, info: dict[str, Any]) -> dict[str, Any]:
        """Add the task of this very transition."""
        info["task_index"] = self._task.index
        info["task_value"] = self._task.value
        return info


def _count(name: str, value: Any) -> int:
    check_count(name, value)
    return int(value)
