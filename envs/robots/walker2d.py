"""Walker2d: friction by default, one or many."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from typing_extensions import override

from ..batched import Columns
from ..nonstationary import NonStationaryMixin
from .planar import BatchedPlanar

__all__ = ["BatchedWalker2d", "SlipperyWalker2dEnv"]


class SlipperyWalker2dEnv(NonStationaryMixin, Walker2dEnv):
    """
    ``Walker2d-v5`` on a ground whose friction changes. This task is our own and follows no publication.

    The reward of a step is the forward velocity (m/s), plus 1, minus 0.001 times the squared norm of the action. The
    episode ends when the height of the walker is not between 0.8 and 2 m or it leans by more than 1 rad.

    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Walker2d-v5``
    """


class BatchedWalker2d(BatchedPlanar):
    """Formulas of ``Walker2d-v5`` for many simulations."""

    clipped_velocity = True

    def healthy(self) -> np.ndarray:
        """Which robots are healthy, as the parent's ``is_healthy``."""
        (low, high), (least, most) = self.env._healthy_z_range, self.env._healthy_angle_range
        height, angle = self.qpos[:, 1], self.qpos[:, 2]
        array: np.ndarray = (low < height) & (height < high) & (least < angle) & (angle < most)
        return array

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        env = self.env
        velocity, forward = self.forward(before)
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
