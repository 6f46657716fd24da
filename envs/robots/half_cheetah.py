"""HalfCheetah: friction by default, one or many."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from typing_extensions import override

from ..batched import Columns
from ..nonstationary import NonStationaryMixin
from .planar import BatchedPlanar

__all__ = ["BatchedHalfCheetah", "SlipperyHalfCheetahEnv"]


class SlipperyHalfCheetahEnv(NonStationaryMixin, HalfCheetahEnv):
    """
    ``HalfCheetah-v5`` on a ground whose friction changes (as in Akgül et al., TMLR, 2025, with different frictions).

    The reward of a step is the forward velocity (m/s) minus 0.1 times the squared norm of the action. Episodes end only
    at their time limit.

    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``HalfCheetah-v5``
    """


class BatchedHalfCheetah(BatchedPlanar):
    """Formulas of ``HalfCheetah-v5`` for many simulations."""

    normal_velocity_noise = True

    @override
    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, Columns]:
        velocity, forward = self.forward(before)
        cost = self.control_cost(actions)
        columns = {**self.reset_info(), "x_velocity": velocity, "reward_forward": forward, "reward_ctrl": -cost}
        return forward - cost, np.zeros(len(forward), dtype=bool), columns

    @override
    def reset_info(self, ids: Any = slice(None)) -> Columns:
        return {"x_position": self.qpos[ids, 0].copy()}
