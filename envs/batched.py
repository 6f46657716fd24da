"""
The tasks of :mod:`sb3_plasticity.envs.slippery` over many simulations at once.

The physics of all simulations runs in one ``mujoco.batch.Batch``, on a thread pool and outside Python's interpreter
lock; observation, reward and termination are NumPy over the whole batch. Every number is, bit for bit, the one that the
environment of the same id and seed gives, so each formula here follows its Gymnasium parent's order of operations.

What cannot be equal is refused: MuJoCo's RK4 integrator leaves contact forces (``cfrc_ext``) of its last stage behind,
which depend on what the thread computed before.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from mujoco.batch import Batch
from typing_extensions import override

from . import slippery
from .nonstationary import NonStationaryMixin, TaskClock, warning_names
from .schedules import Schedule, Task

__all__ = ["BatchedSimulations", "NotBatchableError", "Simulation"]

Columns = dict[str, Any]
"""What single environments put into ``info``: by key, one entry for each simulation."""


class NotBatchableError(ValueError):
    """An environment, or an option of one, that cannot be stepped in a batch with equal results."""


class BatchedSimulations:
    """
    Many simulations of one non-stationary environment.

    Nothing here resets by itself and no episode ends by time: that is up to whoever steps (``MujocoBatchVecEnv``).

    :param template: the environment whose class, model and options all simulations share; it renders, but is never
        stepped
    :param n_sims: number of simulations
    :param n_threads: number of threads, 0 for one per CPU
    :raises NotBatchableError: if the environment is none of this package's, or uses contact forces
    """

    def __init__(self, template: gym.Env, n_sims: int, n_threads: int = 0) -> None:
        env = template.unwrapped
        if not isinstance(env, NonStationaryMixin) or type(env).__module__ != slippery.__name__:
            raise NotBatchableError(
                f"{type(env).__name__} cannot be stepped in a batch: accepted are the environments of "
                "sb3_plasticity.envs; use backend='dummy' or 'subproc' for others"
            )
        self.template = env
        self.spec = template.spec  # that of the wrapped environment, which knows the time limit
        self.n_sims = n_sims
        self.batch = Batch(env.model, n_sims, n_threads)
        self.robot = _robot(env, self.batch)
        self._qpos = self.batch.bind("qpos")
        self._qvel = self.batch.bind("qvel")
        self._ctrl = self.batch.bind("ctrl")
        # (simulation, kind of warning): how often since the simulation's reset
        self._warnings = self.batch.warning[:, :, 1]
        self._own_fields = env.own_fields  # of the model as compiled: the template has already applied a task
        self._fields = {name: self.batch.expand(name) for name in env.parameter.fields}
        self._applied: list[float | None] = [None] * n_sims
        self.simulations = [Simulation(self, i) for i in range(n_sims)]
        self.clocks = [simulation.clock for simulation in self.simulations]
        self.tasks = [clock.due() for clock in self.clocks]
        self.at_start = np.ones(n_sims, dtype=bool)
        self._apply(range(n_sims), self.tasks)

    def reset(self, ids: Sequence[int], seeds: Sequence[int | None] | None = None) -> tuple[np.ndarray, list[Columns]]:
        """
        Start episodes in the tasks that are due.

        :param ids: which simulations, in rising order
        :param seeds: for each of them a seed, or None to go on with its generator
        :return: observations, shape (len(ids), observation size), and infos
        """
        for i, seed in zip(ids, seeds or [None] * len(ids), strict=True):
            if seed is not None:
                self.simulations[i].np_random = seeding.np_random(seed)[0]
                self.clocks[i].restart()
        self._apply(ids, [self.clocks[i].due() for i in ids])
        self.at_start[ids] = True
        self.batch.reset(np.asarray(ids, dtype=np.int32), stage=int(mujoco.mjtStage.mjSTAGE_NONE))
        for i in ids:
            self._qpos[i], self._qvel[i] = self.robot.initial_state(self.simulations[i].np_random)
        self.batch.forward(np.asarray(ids, dtype=np.int32))
        infos = _rows(self.robot.reset_info(ids), len(ids))
        for i, info in zip(ids, infos, strict=True):
            info["task_index"], info["task_value"] = self.tasks[i].index, self.tasks[i].value
        return self.robot.observe(ids), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Advance every simulation.

        :param actions: controls, shape (number of simulations, number of actuators)
        :return: observations (n, observation size), rewards (n,), terminated (n,), infos
        """
        if actions.shape != self._ctrl.shape:
            raise ValueError(f"actions of shape {actions.shape}: accepted is {self._ctrl.shape}")
        if self.template.switch == "immediate":
            self._apply(range(self.n_sims), [clock.due() for clock in self.clocks])
        for clock in self.clocks:
            clock.tick()
        self.at_start[:] = False
        before = self.robot.position()
        self._ctrl[:] = actions
        self.batch.step(nstep=self.template.frame_skip)
        rewards, terminated, columns = self.robot.outcome(before, actions)
        observations = self.robot.observe()
        infos = _rows(columns, self.n_sims)
        for info, task in zip(infos, self.tasks, strict=True):
            info["task_index"], info["task_value"] = task.index, task.value
        if self._warnings.any() or not (np.isfinite(self._qpos).all() and np.isfinite(self._qvel).all()):
            self._after_divergence(observations, rewards, terminated, infos)
        return observations, rewards, terminated, infos

    def start_on_time(self, i: int) -> None:
        """Move an episode that was reset, but not stepped, to the task that is due now."""
        if self.at_start[i]:
            self._apply([i], [self.clocks[i].due()])

    def materialize(self, i: int) -> NonStationaryMixin:
        """
        Put a copy of one simulation into the template environment, to render or to inspect it.

        :param i: which simulation
        :return: the template; changes to it do not reach the simulation
        """
        env = self.template
        self.batch.get_model(i, env.model)
        self.batch.get_data(i, env.data)
        mujoco.mj_forward(env.model, env.data)
        env._task = self.tasks[i]
        env._applied = np.nan  # equal to no value: the model is no longer as the template's own bookkeeping has it
        return env

    def _apply(self, ids: Sequence[int], tasks: Sequence[Task]) -> None:
        parameter = self.template.parameter
        changed: dict[float, list[int]] = {}
        for i, task in zip(ids, tasks, strict=True):
            self.tasks[i] = task
            if self._applied[i] != task.value:
                self._applied[i] = task.value
                changed.setdefault(task.value, []).append(i)
        for value, same in changed.items():
            for name, content in parameter.compute(self._own_fields, self.batch.model, value).items():
                self._fields[name][same] = content
        if changed and parameter.set_const:
            self.batch.set_const(np.array(sorted(itertools.chain(*changed.values())), dtype=np.int32))

    def _after_divergence(
        self, observations: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Overwrite what the physics returned for the simulations that failed, as the mixin does."""
        warned = self._warnings.any(axis=1)
        finite = np.isfinite(self._qpos).all(axis=1) & np.isfinite(self._qvel).all(axis=1)
        ids = np.flatnonzero(warned | ~finite).astype(np.int32)
        errors = [warning_names(self._warnings[i]) if warned[i] else "non-finite state" for i in ids]
        self.batch.reset(ids)
        observations[ids] = self.robot.observe(ids)
        rewards[ids] = 0.0
        terminated[ids] = True
        at_rest = _rows(self.robot.reset_info(ids), len(ids))
        for i, error, rest in zip(ids, errors, at_rest, strict=True):
            task = {name: infos[i].pop(name) for name in ("task_index", "task_value")}
            zeros = {name: np.zeros_like(value)[()] for name, value in infos[i].items()}
            infos[i] = {**zeros, **rest, "simulation_error": error, **task}


class Simulation:
    """
    One simulation of a batch, as far as it can be addressed like an environment.

    :param owner: the batch
    :param index: which of its simulations
    """

    def __init__(self, owner: BatchedSimulations, index: int) -> None:
        self._owner = owner
        self._index = index
        self._np_random: np.random.Generator | None = None
        env = owner.template
        self.clock = TaskClock(env.schedule)
        self.clock.frozen = env.clock.frozen

    @property
    def np_random(self) -> np.random.Generator:
        """Generator of the initial states; seeded at random if nobody seeds it."""
        if self._np_random is None:
            self._np_random = seeding.np_random(None)[0]
        return self._np_random

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self._np_random = generator

    @property
    def schedule(self) -> Schedule:
        """Global step -> task."""
        return self.clock.schedule

    @property
    def task(self) -> Task:
        """The task that the simulation is in."""
        return self._owner.tasks[self._index]

    @property
    def unwrapped(self) -> Simulation:
        """Itself: there are no wrappers around a simulation."""
        return self

    def get_wrapper_attr(self, name: str) -> Any:
        """
        Read an attribute, as from a wrapped environment.

        :param name: of the attribute
        """
        return getattr(self, name)

    @property
    def spec(self) -> EnvSpec | None:
        """What ``gym.make`` was asked for."""
        return self._owner.spec

    @property
    def model(self) -> mujoco.MjModel:
        """A copy of the simulation's model."""
        return self._owner.batch.get_model(self._index)

    @property
    def data(self) -> mujoco.MjData:
        """A copy of the simulation's state, with everything that follows from it."""
        data = self._owner.batch.get_data(self._index)
        mujoco.mj_forward(self.model, data)
        return data

    def sync_clock(self, step: int, rate: int = 1) -> None:
        """As :meth:`NonStationaryMixin.sync_clock`."""
        self.clock.sync(step, rate)
        self._owner.start_on_time(self._index)

    def set_task(self, index: int | None) -> None:
        """As :meth:`NonStationaryMixin.set_task`."""
        self.clock.freeze(index)
        self._owner.start_on_time(self._index)

    def render(self) -> Any:
        """Render a copy of the simulation."""
        return self._owner.materialize(self._index).render()

    def __getattr__(self, name: str) -> Any:
        # only reached for names that are not defined above
        if name.startswith("__") or "_owner" not in self.__dict__:
            raise AttributeError(name)
        template = self._owner.template
        if name in vars(template):
            return vars(template)[name]  # options, spaces: the same for all, as only the data is anyone's own
        value = getattr(self._owner.materialize(self._index), name)
        if callable(value) and getattr(value, "__self__", None) is template:
            raise AttributeError(
                f"{name!r} would act on a copy: of the methods, a simulation in a batch has sync_clock, set_task and "
                "render; use backend='dummy' for others"
            )
        return value


def _robot(env: NonStationaryMixin, batch: Batch) -> _Robot:
    for parent, robot in _ROBOTS.items():
        if isinstance(env, parent):
            return robot(env, batch)
    raise NotBatchableError(f"{type(env).__name__} cannot be stepped in a batch: none of its formulas are known")


def _rows(columns: Columns, n: int) -> list[dict[str, Any]]:
    names = list(columns)
    if not names:
        return [{} for _ in range(n)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class _Robot(ABC):
    """
    The formulas of one Gymnasium environment, over a batch.

    :param env: environment that holds the options
    :param batch: the simulations
    """

    skipped: ClassVar[int]  # coordinates of the position that say where on the ground the robot is
    normal_velocity_noise: ClassVar[bool] = False
    clipped_velocity: ClassVar[bool] = False

    def __init__(self, env: Any, batch: Batch) -> None:
        self.env = env
        self.batch = batch
        self.qpos, self.qvel = batch.bind("qpos"), batch.bind("qvel")
        self.dt = env.dt
        self.size = int(env.observation_space.shape[0])
        self.more: list[np.ndarray] = []  # fields of the simulations observed after position and velocity
        self.start = self.skipped if env._exclude_current_positions_from_observation else 0
        uses_contact_forces = (
            getattr(env, "_include_cfrc_ext_in_observation", False) or getattr(env, "_contact_cost_weight", 0) != 0
        )
        if uses_contact_forces:
            raise NotBatchableError(
                "contact forces differ between a batch and a single simulation: accepted are "
                "include_cfrc_ext_in_observation=False and contact_cost_weight=0; use backend='dummy' or gym.make to "
                "have them"
            )

    def initial_state(self, np_random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw where an episode starts: the same numbers in the same order as ``reset_model`` of the parent."""
        env, noise = self.env, self.env._reset_noise_scale
        qpos = env.init_qpos + np_random.uniform(low=-noise, high=noise, size=env.model.nq)
        if self.normal_velocity_noise:
            return qpos, env.init_qvel + noise * np_random.standard_normal(env.model.nv)
        return qpos, env.init_qvel + np_random.uniform(low=-noise, high=noise, size=env.model.nv)

    def observe(self, ids: Any = slice(None)) -> np.ndarray:
        """Observations of some simulations, shape (len(ids), observation size)."""
        qpos, qvel = self.qpos[ids, self.start :], self.qvel[ids]
        out = np.empty((len(qpos), self.size))
        n, m = qpos.shape[1], qpos.shape[1] + qvel.shape[1]
        out[:, :n] = qpos
        if self.clipped_velocity:
            np.clip(qvel, -10, 10, out=out[:, n:m])
        else:
            out[:, n:m] = qvel
        start = m
        for field in self.more:
            rows = field[ids]
            flat = rows.reshape(len(rows), -1)
            out[:, start : start + flat.shape[1]] = flat
            start += flat.shape[1]
        return out

    def control_cost(self, actions: np.ndarray) -> np.ndarray:
        """Costs of the actions, in the actions' own precision as in the parents."""
        return self.env._ctrl_cost_weight * np.sum(np.square(actions), axis=1)

    @abstractmethod
    def position(self) -> np.ndarray:
        """Where the robots are; a copy."""

    @abstractmethod
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        """Rewards (float64), terminated and the columns of info."""

    @abstractmethod
    def reset_info(self, ids: Any) -> Columns:
        """Columns of the info at a reset."""


def _distances(qpos: np.ndarray) -> np.ndarray:
    """Euclidean length of the first two coordinates, by the dot product that ``np.linalg.norm`` uses for one vector."""
    if hasattr(np, "vecdot"):
        return np.sqrt(np.vecdot(qpos[:, :2], qpos[:, :2]))
    return np.linalg.norm(qpos[:, :2], ord=2, axis=1)  # NumPy 1


class _Ant(_Robot):
    skipped = 2
    normal_velocity_noise = True

    def __init__(self, env: Any, batch: Batch) -> None:
        super().__init__(env, batch)
        self.xpos = batch.bind("xpos")
        self.body = env.model.body(env._main_body).id

    @override
    def position(self) -> np.ndarray:
        return self.xpos[:, self.body, :2].copy()

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        env, qpos = self.env, self.qpos
        velocity = (self.xpos[:, self.body, :2] - before) / self.dt
        low, high = env._healthy_z_range
        height = qpos[:, 2]
        healthy = np.isfinite(qpos).all(axis=1) & np.isfinite(self.qvel).all(axis=1)
        healthy &= (low <= height) & (height <= high)
        forward = velocity[:, 0] * env._forward_reward_weight
        survive = healthy * env._healthy_reward
        cost = self.control_cost(actions)
        contact = np.full(len(qpos), env._contact_cost_weight * 0.0)
        rewards = (forward + survive) - (cost + contact)
        columns = {
            **self.reset_info(),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_contact": -contact,
            "reward_survive": survive,
        }
        return rewards, ~healthy & bool(env._terminate_when_unhealthy), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        qpos = self.qpos[ids]
        # copies: the rows of info must not change when the simulation goes on
        return {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "distance_from_origin": _distances(qpos),
        }


class _Planar(_Robot):
    """A robot in the x-z plane: position along x first."""

    skipped = 1

    @override
    def position(self) -> np.ndarray:
        return self.qpos[:, 0].copy()

    def _forward(self, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        velocity = (self.qpos[:, 0] - before) / self.dt
        return velocity, self.env._forward_reward_weight * velocity


class _HalfCheetah(_Planar):
    normal_velocity_noise = True

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        velocity, forward = self._forward(before)
        cost = self.control_cost(actions)
        columns = {**self.reset_info(), "x_velocity": velocity, "reward_forward": forward, "reward_ctrl": -cost}
        return forward - cost, np.zeros(len(forward), dtype=bool), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        return {"x_position": self.qpos[ids, 0].copy()}


class _Walker2d(_Planar):
    clipped_velocity = True

    def healthy(self) -> np.ndarray:
        (low, high), (least, most) = self.env._healthy_z_range, self.env._healthy_angle_range
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        return (low < height) & (height < high) & (least < angle) & (angle < most)

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        env = self.env
        velocity, forward = self._forward(before)
        healthy = self.healthy()
        survive = healthy * env._healthy_reward
        cost = self.control_cost(actions)
        columns = {
            **self.reset_info(),
            "x_velocity": velocity,
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_survive": survive,
        }
        return forward + survive - cost, ~healthy & bool(env._terminate_when_unhealthy), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        return {
            "x_position": self.qpos[ids, 0].copy(),
            "z_distance_from_origin": self.qpos[ids, 1] - self.env.init_qpos[1],
        }


class _Hopper(_Walker2d):
    @override
    def healthy(self) -> np.ndarray:
        low, high = self.env._healthy_state_range
        qpos, qvel = self.qpos[:, 2:], self.qvel
        within = ((low < qpos) & (qpos < high)).all(axis=1) & ((low < qvel) & (qvel < high)).all(axis=1)
        return within & super().healthy()


class _Humanoid(_Robot):
    skipped = 2

    def __init__(self, env: Any, batch: Batch) -> None:
        super().__init__(env, batch)
        self.ctrl = batch.bind("ctrl")
        self.xipos = batch.bind("xipos")
        self.ten_length, self.ten_velocity = batch.bind("ten_length"), batch.bind("ten_velocity")
        # the parent leaves out the world body, and the six coordinates of the root that no actuator moves
        self.more = [
            batch.bind(field)[:, first:]
            for wanted, field, first in (
                (env._include_cinert_in_observation, "cinert", 1),
                (env._include_cvel_in_observation, "cvel", 1),
                (env._include_qfrc_actuator_in_observation, "qfrc_actuator", 6),
            )
            if wanted is True
        ]

    @override
    def position(self) -> np.ndarray:
        masses = self.batch.expanded("body_mass")
        if masses is None:
            masses = np.broadcast_to(self.env.model.body_mass, self.xipos.shape[:2])
        centre = np.einsum("nb,nbj->nj", masses, self.xipos) / masses.sum(axis=1, keepdims=True)
        return centre[:, :2]

    @override
    def control_cost(self, actions: np.ndarray) -> np.ndarray:
        return super().control_cost(self.ctrl)

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        env, height = self.env, self.qpos[:, 2]
        velocity = (self.position() - before) / self.dt
        low, high = env._healthy_z_range
        healthy = (low < height) & (height < high)
        forward = env._forward_reward_weight * velocity[:, 0]
        survive = healthy * env._healthy_reward
        cost = self.control_cost(actions)
        contact = np.full(len(height), np.clip(env._contact_cost_weight * 0.0, *env._contact_cost_range))
        rewards = (forward + survive) - (cost + contact)
        columns = {
            **self.reset_info(),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_survive": survive,
            "reward_forward": forward,
            "reward_ctrl": -cost,
            "reward_contact": -contact,
        }
        return rewards, ~healthy & bool(env._terminate_when_unhealthy), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        qpos = self.qpos[ids]
        return {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "tendon_length": self.ten_length[ids].copy(),
            "tendon_velocity": self.ten_velocity[ids].copy(),
            "distance_from_origin": _distances(qpos),
        }


_ROBOTS: dict[type[MujocoEnv], type[_Robot]] = {
    AntEnv: _Ant,
    HalfCheetahEnv: _HalfCheetah,
    HopperEnv: _Hopper,
    Walker2dEnv: _Walker2d,
    HumanoidEnv: _Humanoid,
}
