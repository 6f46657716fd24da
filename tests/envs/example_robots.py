"""A package of a stranger: a robot that this project does not know, one class and its formulas for many."""

from typing import Any

import numpy as np
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

from sb3_plasticity.envs import BatchedRobot, NonStationaryMixin, register_nonstationary


class DriftingPendulumEnv(NonStationaryMixin, InvertedPendulumEnv):  # type: ignore[misc]
    """``InvertedPendulum-v5`` under a gravity that changes."""

    default_parameter = "gravity"


class BatchedPendulum(BatchedRobot):  # type: ignore[misc]
    """Formulas of ``InvertedPendulum-v5`` for many simulations."""

    def position(self) -> np.ndarray:
        result: np.ndarray = self.qpos[:, :1].copy()
        return result

    def outcome(self, before: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        observations = self.observe()
        terminated = ~np.isfinite(observations).all(axis=1) | (np.abs(observations[:, 1]) > 0.2)
        alive = (~terminated).astype(int)
        return alive.astype(float), terminated, {"reward_survive": alive}

    def reset_info(self, ids: Any = slice(None)) -> dict[str, Any]:
        return {}


register_nonstationary("DriftingPendulum-v0", DriftingPendulumEnv, BatchedPendulum, max_episode_steps=50)
register_nonstationary(
    "DriftingCart-v0",
    "CartPole-v1",
    parameter="gravity",
    schedule={"kind": "uniform", "low": 5, "high": 15, "period": 9},
)
register_nonstationary("DriftingReacher-v0", InvertedPendulumEnv, max_episode_steps=50, parameter="mass")
