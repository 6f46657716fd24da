"""
The mixin that makes a MuJoCo environment of Gymnasium change under the agent's feet.

It applies the task that is due to the model, reports it in ``info`` and ends episodes whose simulation diverged.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces, utils
from gymnasium.envs.mujoco import MujocoEnv

from sb3_plasticity.common.checks import check_number, nearest

from . import rendering
from .clock import Clocked
from .physics import check_actuators, get_parameter, write_field
from .schedules import Schedule, Task

__all__ = ["NonStationaryMixin", "keywords_of", "warning_names"]


class NonStationaryMixin(Clocked, MujocoEnv, utils.EzPickle):
    """
    Make a physical parameter of a ``MujocoEnv`` follow a schedule; the mixin comes first among the bases of a class.

    The ``info`` of a transition contains its task as ``task_index`` and ``task_value``. If a simulation diverges, that
    is, if MuJoCo raises a warning or the state is not finite, the episode ends: ``terminated`` is True,
    ``info["simulation_error"]`` gives the reason, the observation is that of the robot's rest pose, and the reward is
    0, because the results of the physics are meaningless.

    :param parameter: parameter that changes: ``"friction"``, ``"gravity"``, ``"mass"``, ``"damping"``,
        ``"actuator_strength"`` or ``"viscosity"``; None for the default of the robot, which is usually friction
    :param actuators: names of the actuators, or of their joints, that ``"actuator_strength"`` changes, or None for all
    :param schedule: a kind, or a mapping with the kind and its keywords: ``{kind: constant, value}``,
        ``{kind: log_uniform | uniform, low, high, period, seed}``, ``{kind: cyclic, values, period}``,
        ``{kind: table, values | path, row, period}``, ``{kind: sinusoid, low, high, period}`` or
        ``{kind: paralysis, period}``
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param action_bound: half-width of the action Box, in place of the robot's own. MuJoCo still clamps the torque to
        the control range of the robot; the control cost uses the unclamped action.
    :param show_task: whether to write the index and the value of the task into rendered frames
    :param kwargs: keyword arguments of the Gymnasium parent
    :raises ValueError: if an argument is out of range
    :raises TypeError: if the parent has no such keyword; the error names the closest one
    """

    default_parameter: ClassVar[str] = "friction"
    default_period: ClassVar[int] = 2_000_000
    default_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __init__(
        self,
        *,
        parameter: str | None = None,
        actuators: Iterable[str] | None = None,
        schedule: str | Mapping[str, Any] | Schedule = "log_uniform",
        switch: str = "reset",
        task: int | None = None,
        action_bound: float | None = None,
        show_task: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_parent(type(self), kwargs)
        actuators = actuators if actuators is None or isinstance(actuators, str) else tuple(actuators)
        self.parameter = get_parameter(self.default_parameter if parameter is None else parameter, actuators)
        low, high = self.default_ranges.get(self.parameter.name, self.parameter.default_range)
        self._start_clock(schedule, switch, task, {"low": low, "high": high, "period": self.default_period})
        self.parameter.check_lowest(self.schedule.lowest)
        self.action_bound = _bound(action_bound)
        self.show_task = bool(show_task)
        super().__init__(**kwargs)
        # after the parent's own, which knows nothing of these arguments: a pickled env is built anew, with a new clock
        utils.EzPickle.__init__(
            self,
            parameter=parameter,
            actuators=actuators,
            schedule=schedule,
            switch=switch,
            task=task,
            action_bound=action_bound,
            show_task=show_task,
            **kwargs,
        )
        self.parameter.check_model(self.model, type(self).__name__)
        check_actuators(actuators, self.model)
        self.own_fields = self.parameter.own(self.model)
        self._scratch = mujoco.MjData(self.model) if self.parameter.set_const else None
        self._set_task(self.clock.due())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode in the task that is due.

        :param seed: seed of the initial states, or None to continue with the generator as it is. A seed starts
            everything anew, so the clock too, unless a trainer keeps it (:meth:`sync_clock`): pass it once, not every
            episode.
        :param options: ignored, as by the parents
        :return: observation and info
        """
        self._begin_episode(seed)
        observation, info = super().reset(seed=seed, options=options)
        return observation, self._with_task(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """
        Advance the simulation, in the task that is due if ``switch`` is ``"immediate"``.

        :param action: controls, shape (number of actuators,)
        :return: observation, reward, terminated, truncated, info
        """
        self._begin_step()
        observation, reward, terminated, truncated, info = super().step(action)
        error = self._simulation_error()
        if error:
            observation, reward, terminated, info = self._after_divergence(error, info)
        return observation, reward, terminated, truncated, self._with_task(info)

    def render(self) -> Any:
        """
        Draw the simulation as ``render_mode`` says, with the task in the upper left corner if ``show_task``.

        Without a display this uses EGL or OSMesa.

        :return: what Gymnasium's ``render`` returns in this mode: None for ``"human"``, else an array
        :raises RuntimeError: if neither is there
        """
        overlay = None
        if self.show_task:
            unit = "" if self.parameter.unit == "1" else f" {self.parameter.unit}"
            overlay = {"task": str(self._task.index), self.parameter.name: f"{self._task.value:.3g}{unit}"}
        return rendering.render(self.mujoco_renderer, self.render_mode, overlay)

    def _set_action_space(self) -> spaces.Space[Any]:
        space: spaces.Space[Any] = super()._set_action_space()  # type: ignore[no-untyped-call]
        if self.action_bound is not None:
            space = spaces.Box(-self.action_bound, self.action_bound, space.shape, np.float32)
        self.action_space = space
        return space

    def _apply(self, task: Task) -> None:
        for name, value in self.parameter.compute(self.own_fields, self.model, task.value).items():
            write_field(self.model, name, value)
        if self.parameter.set_const:
            # on data of its own: mj_setConst uses it as scratch space
            mujoco.mj_setConst(self.model, self._scratch)

    def _simulation_error(self) -> str | None:
        # MuJoCo resets a diverged simulation to its rest pose and continues; only the counters show it. They start
        # from 0 with every episode.
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
    :return: the names of those that were raised, with commas between them
    """
    return ", ".join(mujoco.mjtWarning(int(i)).name.removeprefix("mjWARN_") for i in np.flatnonzero(counts))


def keywords_of(env_class: type) -> set[str]:
    """
    Collect the keywords of a MuJoCo environment from its class and, as each passes on what it does not know, its bases.

    :param env_class: a class
    :return: their names
    """
    names: set[str] = set()
    for base in env_class.__mro__:
        if "__init__" not in vars(base) or base is utils.EzPickle:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {parameter.name for parameter in parameters if parameter.kind not in (2, 4)}
        if base is MujocoEnv:
            break
    # what every robot's own constructor passes on by itself
    return names - {"self", "model_path", "observation_space"}


def _check_parent(env_class: type, keywords: Mapping[str, Any]) -> None:
    """Refuse a class that has no robot behind the mixin, and keywords that the robot does not know."""
    robots = [base for base in env_class.__mro__ if issubclass(base, MujocoEnv) and base is not MujocoEnv]
    if all(issubclass(base, NonStationaryMixin) for base in robots):
        raise TypeError(
            f"`{env_class.__name__}` must have a class of MuJoCo environments, such as AntEnv, behind "
            "NonStationaryMixin in its bases; NonStationary(env, ...) serves other environments"
        )
    known = keywords_of(env_class)
    for name in keywords:
        if name not in known:
            raise TypeError(f"{env_class.__name__} got an unexpected keyword argument {name!r}{nearest(name, known)}")


def _bound(value: Any) -> float | None:
    if value is not None:
        check_number("action_bound", value, above=0)
        return float(value)
    return None
