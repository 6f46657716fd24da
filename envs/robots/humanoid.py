"""Humanoid: friction by default, one or many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from typing_extensions import override

from ..batched import BatchedRobot, Columns, distances
from .contact_forces import NoContactForcesMixin

if TYPE_CHECKING:
    from mujoco.batch import Batch

__all__ = ["BatchedHumanoid", "SlipperyHumanoidEnv"]


class SlipperyHumanoidEnv(NoContactForcesMixin, HumanoidEnv):
    """
    ``Humanoid-v5`` on a ground whose friction changes. This task is our own and follows no publication.

    The reward of a step is 1.25 times the forward velocity (m/s), plus 5, minus 0.1 times the squared norm of the
    controls. The episode ends when the height of the torso is not between 1 and 2 m.

    :param contact_cost_weight: weight of the contact forces in the cost
    :param include_cfrc_ext_in_observation: whether the 78 contact forces are part of the observation
    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Humanoid-v5``
    """


class BatchedHumanoid(BatchedRobot):
    """Formulas of ``Humanoid-v5`` for many simulations."""

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
        array: np.ndarray = centre[:, :2]
        return array

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
            "distance_from_origin": distances(qpos),
        }
