"""Hopper: friction by default, one or many."""

from __future__ import annotations

import numpy as np
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from typing_extensions import override

from ..nonstationary import NonStationaryMixin
from .walker2d import BatchedWalker2d

__all__ = ["BatchedHopper", "SlipperyHopperEnv"]


class SlipperyHopperEnv(NonStationaryMixin, HopperEnv):
    """
    ``Hopper-v5`` on a ground whose friction changes. This task is our own and follows no publication.

    The reward of a step is the forward velocity (m/s), plus 1, minus 0.001 times the squared norm of the action. The
    episode ends when the height of the hopper is less than 0.7 m or it leans by more than 0.2 rad.

    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Hopper-v5``
    """


class BatchedHopper(BatchedWalker2d):
    """Formulas of ``Hopper-v5`` for many simulations."""

    @override
    def healthy(self) -> np.ndarray:
        low, high = self.env._healthy_state_range
        qpos, qvel = self.qpos[:, 2:], self.qvel
        within = ((low < qpos) & (qpos < high)).all(axis=1) & ((low < qvel) & (qvel < high)).all(axis=1)
        array: np.ndarray = within & super().healthy()
        return array
