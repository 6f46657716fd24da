"""What the robots in the x-z plane have in common."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from ..batched import BatchedRobot

__all__ = ["BatchedPlanar"]


class BatchedPlanar(BatchedRobot):
    """A robot in the x-z plane: position along x first."""

    skipped = 1

    @override
    def position(self) -> np.ndarray:
        array: np.ndarray = self.qpos[:, 0].copy()
        return array

    def forward(self, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Velocity along x, and the reward for it.

        :param before: positions before the step
        :return: both of shape (number of simulations,), the velocity in m/s
        """
        velocity = (self.qpos[:, 0] - before) / self.dt
        return velocity, self.env._forward_reward_weight * velocity
