"""
Observation, reward and termination of one robot, over many simulations at once.

NumPy over a whole ``mujoco.batch.Batch``. Every number is, bit for bit, the one that the environment gives, so each
formula follows its Gymnasium parent's order of operations. The robots' own are in :mod:`sb3_plasticity.envs.robots`,
beside the environment they belong to.

What cannot be equal is refused: MuJoCo's RK4 integrator leaves contact forces (``cfrc_ext``) of its last stage behind,
which depend on what the thread computed before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv

if TYPE_CHECKING:
    from mujoco.batch import Batch

__all__ = ["BatchedRobot", "Columns", "NotBatchableError", "batched_robot", "distances", "register_batched"]

Columns = dict[str, Any]
"""What single environments put into ``info``: by key, one entry for each simulation."""


class NotBatchableError(ValueError):
    """An environment, or an option of one, that cannot be stepped in a batch with equal results."""


class BatchedRobot(ABC):
    """
    The formulas of one Gymnasium environment, over a batch.

    :param env: environment that holds the options
    :param batch: the simulations
    :raises NotBatchableError: if the environment uses contact forces, which differ in a batch
    """

    skipped: ClassVar[int] = 0  # coordinates of the position that say where on the ground the robot is
    normal_velocity_noise: ClassVar[bool] = False
    clipped_velocity: ClassVar[bool] = False

    def __init__(self, env: Any, batch: Batch) -> None:
        self.env = env
        self.batch = batch
        self.qpos, self.qvel = batch.bind("qpos"), batch.bind("qvel")
        self.dt = env.dt
        self.size = int(env.observation_space.shape[0])
        self.more: list[np.ndarray] = []  # fields of the simulations observed after position and velocity
        self.start = self.skipped if getattr(env, "_exclude_current_positions_from_observation", False) else 0
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
        array: np.ndarray = self.env._ctrl_cost_weight * np.sum(np.square(actions), axis=1)
        return array

    @abstractmethod
    def position(self) -> np.ndarray:
        """Where the robots are; a copy."""

    @abstractmethod
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        """Rewards (float64), terminated and the columns of info."""

    @abstractmethod
    def reset_info(self, ids: Any) -> Columns:
        """Columns of the info at a reset."""


def distances(qpos: np.ndarray) -> np.ndarray:
    """
    Measure how far from the origin robots are.

    By the dot product that ``np.linalg.norm`` uses for one vector, so that the bits are equal.

    :param qpos: positions, the two on the ground first
    :return: (number of simulations,), in m
    """
    distances: np.ndarray
    if hasattr(np, "vecdot"):
        distances = np.sqrt(np.vecdot(qpos[:, :2], qpos[:, :2]))
    else:  # NumPy 1
        distances = np.linalg.norm(qpos[:, :2], ord=2, axis=1)
    return distances


_BATCHED: dict[type[MujocoEnv], type[BatchedRobot]] = {}


def register_batched(env_class: type[MujocoEnv], robot: type[BatchedRobot]) -> None:
    """
    Say which formulas belong to an environment: to this very class, as a subclass may compute something else.

    :param env_class: of the environment
    :param robot: its formulas
    """
    _BATCHED[env_class] = robot


def batched_robot(env: MujocoEnv, batch: Batch) -> BatchedRobot:
    """
    Make the formulas of an environment.

    :param env: environment that holds the options
    :param batch: the simulations
    :return: an object of the class that was registered for the environment's own
    :raises NotBatchableError: if the results could not be equal
    """
    check_batchable(env)
    return _BATCHED[type(env)](env, batch)


def check_batchable(env: Any) -> None:
    """
    Refuse environments without formulas.

    :param env: unwrapped environment
    :raises NotBatchableError: if nobody has registered any
    """
    if type(env) not in _BATCHED:
        raise NotBatchableError(
            f"{type(env).__name__} cannot be stepped in a batch: register_nonstationary(..., batched=...) gives its "
            "formulas for many simulations; use backend='dummy' or 'subproc' without"
        )


def batch_class() -> type[Batch]:
    """
    Import ``mujoco.batch`` when it is used: the single environments do without.

    :return: MuJoCo's class
    :raises NotBatchableError: if MuJoCo is too old to have it
    """
    try:
        from mujoco.batch import Batch
    except ImportError as error:
        raise NotBatchableError(
            f"the installed MuJoCo {mujoco.__version__} has no mujoco.batch, which begins with 3.17; pip install "
            "'mujoco>=4' (pip uninstall mujoco first, if it is a 3)"
        ) from error
    result: type[Any] = Batch
    return result
