"""
The mixin that makes a MuJoCo environment of Gymnasium change under the agent's feet.

:class:`TaskClock` says which task is due, :class:`NonStationaryMixin` applies it to the model, reports it in ``info``
and ends episodes whose simulation diverged.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces, utils
from gymnasium.envs.mujoco import MujocoEnv

from . import rendering
from .physics import get_parameter, write_field
from .schedules import Schedule, Task, make_schedule

__all__ = ["NonStationaryMixin", "TaskClock", "warning_names"]

SWITCHES = ("reset", "immediate")


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
        self.step = _natural("step", step)
        self.rate = _natural("rate", rate)
        self.synced = True

    def freeze(self, index: int | None) -> None:
        """
        Stay at a task, or follow the schedule again.

        :param index: the task's index, or None to follow the schedule
        """
        self.frozen = None if index is None else self.schedule.task(index)


class NonStationaryMixin(MujocoEnv, utils.EzPickle):
    """
    Put this before a ``MujocoEnv`` in the bases of a class, and one of its physical parameters follows a schedule.

    The task that produced a transition is in its ``info`` as ``task_index`` and ``task_value``. A simulation that
    diverges, that is one for which MuJoCo warns or whose state is not finite, ends its episode: ``terminated`` is True,
    ``info["simulation_error"]`` says why, the observation is that of the robot's rest pose and the reward is 0, because
    what the physics returned has no meaning.

    :param parameter: what changes: ``"friction"``, ``"gravity"``, ``"mass"``, ``"damping"`` or ``"actuator_strength"``
    :param schedule: a kind, or a mapping with the kind and its keywords: ``{kind: constant, value}``,
        ``{kind: log_uniform | uniform, low, high, period, seed}``, ``{kind: cyclic, values, period}``,
        ``{kind: table, values | path, row, period}`` or ``{kind: sinusoid, low, high, period}``
    :param switch: ``"reset"`` lets a new task start with the next episode, ``"immediate"`` at the step it is due
    :param task: freeze the task of this index, for evaluation and rendering
    :param action_bound: half-width of the action Box in place of the robot's own. MuJoCo still clamps the torque to the
        robot's control range; the control cost sees the action as given.
    :param show_task: write task index and value into rendered frames
    :param kwargs: keywords of the Gymnasium parent
    :raises ValueError: for any argument that is out of range
    """

    default_period: ClassVar[int] = 2_000_000
    default_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __init__(
        self,
        *,
        parameter: str = "friction",
        schedule: str | Mapping[str, Any] | Schedule = "log_uniform",
        switch: str = "reset",
        task: int | None = None,
        action_bound: float | None = None,
        show_task: bool = False,
        **kwargs: Any,
    ) -> None:
        self.parameter = get_parameter(parameter)
        low, high = self.default_ranges.get(parameter, self.parameter.default_range)
        self.schedule = make_schedule(schedule, {"low": low, "high": high, "period": self.default_period})
        self.parameter.check_lowest(self.schedule.lowest)
        if switch not in SWITCHES:
            raise ValueError(f"switch = {switch!r}: accepted are {', '.join(map(repr, SWITCHES))}")
        self.switch = switch
        self.action_bound = _bound(action_bound)
        self.show_task = bool(show_task)
        self.clock = TaskClock(self.schedule, task)
        super().__init__(**kwargs)
        # after the parent's own, which knows nothing of these arguments: a pickled env is built anew, with a new clock
        utils.EzPickle.__init__(
            self,
            parameter=parameter,
            schedule=schedule,
            switch=switch,
            task=task,
            action_bound=action_bound,
            show_task=show_task,
            **kwargs,
        )
        self.own_fields = self.parameter.own(self.model)
        self._scratch = mujoco.MjData(self.model) if self.parameter.set_const else None
        self._at_start = True
        self._set_task(self.clock.due())

    @property
    def task(self) -> Task:
        """The task that the simulation is in."""
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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode in the task that is due.

        :param seed: seed of the initial states, or None to go on with the generator as it is. A seed starts everything
            anew, so the clock too, unless a trainer keeps it (:meth:`sync_clock`): pass it once, not every episode.
        :param options: ignored, as by the parents
        :return: observation and info
        """
        if seed is not None:
            self.clock.restart()
        self._at_start = True
        self._set_task(self.clock.due())
        observation, info = super().reset(seed=seed, options=options)
        return observation, self._with_task(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """
        Advance the simulation, in the task that is due if ``switch`` is ``"immediate"``.

        :param action: controls, shape (number of actuators,)
        :return: observation, reward, terminated, truncated, info
        """
        if self.switch == "immediate":
            self._set_task(self.clock.due())
        self._at_start = False
        self.clock.tick()
        observation, reward, terminated, truncated, info = super().step(action)
        error = self._simulation_error()
        if error:
            observation, reward, terminated, info = self._after_divergence(error, info)
        return observation, reward, terminated, truncated, self._with_task(info)

    def render(self) -> Any:
        """
        Draw the simulation as ``render_mode`` says, with the task in the upper left corner if ``show_task``.

        Without a display this uses EGL or OSMesa.

        :raises RuntimeError: if neither is there
        """
        overlay = None
        if self.show_task:
            unit = "" if self.parameter.unit == "1" else f" {self.parameter.unit}"
            overlay = {"task": str(self._task.index), self.parameter.name: f"{self._task.value:.3g}{unit}"}
        return rendering.render(self.mujoco_renderer, self.render_mode, overlay)

    def _set_action_space(self) -> spaces.Space:
        space = super()._set_action_space()
        if self.action_bound is not None:
            space = spaces.Box(-self.action_bound, self.action_bound, space.shape, np.float32)
        self.action_space = space
        return space

    def _set_task(self, task: Task) -> None:
        if getattr(self, "_applied", None) != task.value:
            for name, value in self.parameter.compute(self.own_fields, self.model, task.value).items():
                write_field(self.model, name, value)
            if self.parameter.set_const:
                # on data of its own: mj_setConst uses it as scratch space
                mujoco.mj_setConst(self.model, self._scratch)
            self._applied = task.value
        self._task = task

    def _start_on_time(self) -> None:
        """Move an episode that was reset, but not stepped, before the clock was set to the task that is due now."""
        if self._at_start:
            self._set_task(self.clock.due())

    def _with_task(self, info: dict[str, Any]) -> dict[str, Any]:
        info["task_index"] = self._task.index
        info["task_value"] = self._task.value
        return info

    def _simulation_error(self) -> str | None:
        # MuJoCo resets a diverged simulation to its rest pose and goes on; only the counters tell. They start from 0
        # with every episode.
        counts = self.data.warning.number
        if counts.any():
            return warning_names(counts)
        if not (np.isfinite(self.data.qpos).all() and np.isfinite(self.data.qvel).all()):
            return "non-finite state"
        return None

    def _after_divergence(self, error: str, info: dict[str, Any]) -> tuple[np.ndarray, Any, bool, dict[str, Any]]:
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        info = {name: np.zeros_like(value)[()] for name, value in info.items()}
        info |= self._get_reset_info()
        info["simulation_error"] = error
        return self._get_obs(), 0.0, True, info  # type: ignore[attr-defined]  # every robot has _get_obs


def warning_names(counts: np.ndarray) -> str:
    """
    Put MuJoCo's warning counters into words.

    :param counts: how often each ``mjtWarning`` was raised, shape (number of warnings,)
    """
    return ", ".join(mujoco.mjtWarning(int(i)).name.removeprefix("mjWARN_") for i in np.flatnonzero(counts))


def _bound(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < np.inf:
        raise ValueError(f"action_bound = {value!r}: accepted is a positive number, or None for the robot's own range")
    return float(value)


def _natural(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name} = {value!r}: accepted is an integer from 0")
    return int(value)
