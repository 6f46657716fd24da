"""Swimmer: viscosity by default, one or many."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from typing_extensions import override

from ..batched import BatchedRobot, Columns, distances
from ..nonstationary import NonStationaryMixin

__all__ = ["BatchedSwimmer", "SlipperySwimmerEnv"]


class SlipperySwimmerEnv(NonStationaryMixin, SwimmerEnv):
    """
    ``Swimmer-v5`` in a medium whose viscosity changes between the robot's own and one that stops its gait.

    The reward of a step is the forward velocity (m/s) minus 0.0001 times the squared norm of the action. Episodes end
    only at their time limit. This task is our own and follows no publication.

    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Swimmer-v5``
    """

    default_parameter: ClassVar[str] = "viscosity"


class BatchedSwimmer(BatchedRobot):
    """Formulas of ``Swimmer-v5`` for many simulations."""

    skipped = 2

    @override
    def position(self) -> np.ndarray:
        array: np.ndarray = self.qpos[:, :2].copy()
        return array

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        velocity = (self.qpos[:, :2] - before) / self.dt
        forward = self.env._forward_reward_weight * velocity[:, 0]
        cost = self.control_cost(actions)
        columns = {
            **self.reset_info(),
            "x_velocity": velocity[:, 0],
            "y_velocity": velocity[:, 1],
            "reward_forward": forward,
            "reward_ctrl": -cost,
        }
        return forward - cost, np.zeros(len(forward), dtype=bool), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        qpos = self.qpos[ids]
        return {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "distance_from_origin": distances(qpos),
        }
