"""
Observation, reward and termination of the tasks of :mod:`sb3_plasticity.envs.slippery`, over many simulations at once.

NumPy over a whole ``mujoco.batch.Batch``. Every number is, bit for bit, the one that the environment of the same id
gives, so each formula follows its Gymnasium parent's order of operations.

What cannot be equal is refused: MuJoCo's RK4 integrator leaves contact forces (``cfrc_ext``) of its last stage behind,
which depend on what the thread computed before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from mujoco.batch import Batch
from typing_extensions import override

__all__ = ["Columns", "NotBatchableError", "Robot", "batched_robot"]

Columns = dict[str, Any]
"""What single environments put into ``info``: by key, one entry for each simulation."""


class NotBatchableError(ValueError):
    """An environment, or an option of one, that cannot be stepped in a batch with equal results."""


class Robot(ABC):
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
                "contact forces differ between a batch and a single simulation: `include_cfrc_ext_in_observation` must "
                "be False and `contact_cost_weight` 0; use backend='dummy' or gym.make to have them"
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


class _Ant(Robot):
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


class _Planar(Robot):
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


class _Humanoid(Robot):
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


_ROBOTS: dict[type[MujocoEnv], type[Robot]] = {
    AntEnv: _Ant,
    HalfCheetahEnv: _HalfCheetah,
    HopperEnv: _Hopper,
    Walker2dEnv: _Walker2d,
    HumanoidEnv: _Humanoid,
}


def batched_robot(env: MujocoEnv, batch: Batch) -> Robot:
    """
    Find the formulas for an environment.

    :param env: environment that holds the options
    :param batch: the simulations
    :raises NotBatchableError: if the results could not be equal
    """
    for parent, robot in _ROBOTS.items():
        if isinstance(env, parent):
            return robot(env, batch)
    raise NotBatchableError(f"{type(env).__name__} cannot be stepped in a batch: none of its formulas are known")
