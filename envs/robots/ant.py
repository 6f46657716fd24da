"""Ant: friction by default, one or many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from typing_extensions import override

from ..batched import BatchedRobot, Columns, distances
from ..schedules import Schedule
from .contact_forces import NoContactForcesMixin

if TYPE_CHECKING:
    from mujoco.batch import Batch

__all__ = ["BatchedAnt", "NonStationaryAntEnv", "SlipperyAntEnv"]


class SlipperyAntEnv(NoContactForcesMixin, AntEnv):
    """
    ``Ant-v5`` on a ground whose friction changes every two million steps (Dohare et al., Nature, 2024).

    The reward of a step is the forward velocity (m/s), plus 1 while the height of the torso is between 0.2 and 1 m,
    minus 0.5 times the squared norm of the action. The episode ends when the torso leaves this range.

    :param contact_cost_weight: weight of the contact forces in the cost
    :param include_cfrc_ext_in_observation: whether the 78 contact forces are part of the observation
    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Ant-v5``
    """


class NonStationaryAntEnv(SlipperyAntEnv):
    """
    ``Ant-v5`` whose friction oscillates between 0.1 and 2 by default; any parameter and schedule can be chosen.

    The reward is that of :class:`SlipperyAntEnv`. The gradual change of friction, without tasks that begin and end, is
    our own and follows no publication.

    :param schedule: schedule, as for :class:`NonStationaryMixin`
    :param kwargs: keyword arguments of :class:`NonStationaryMixin` and of ``Ant-v5``
    """

    default_period: ClassVar[int] = 1_000_000
    default_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"friction": (0.1, 2.0)}

    def __init__(self, *, schedule: str | Mapping[str, Any] | Schedule = "sinusoid", **kwargs: Any) -> None:
        super().__init__(schedule=schedule, **kwargs)


class BatchedAnt(BatchedRobot):
    """Formulas of ``Ant-v5`` for many simulations."""

    skipped = 2
    normal_velocity_noise = True

    def __init__(self, env: Any, batch: Batch) -> None:
        super().__init__(env, batch)
        self.xpos = batch.bind("xpos")
        self.body = env.model.body(env._main_body).id

    @override
    def position(self) -> np.ndarray:
        array: np.ndarray = self.xpos[:, self.body, :2].copy()
        return array

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
        # copies: the rows of info must not change when the simulation continues
        return {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "distance_from_origin": distances(qpos),
        }
