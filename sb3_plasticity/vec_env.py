"""Vectorised non-stationary environments for SB3."""

from __future__ import annotations

import functools
import logging
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import sb3_plasticity.envs  # noqa: F401  # registers the environments

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "batch", "dummy", "subproc")


def make_nonstationary_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    backend: str = "auto",
    env_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    Make a monitored vectorised environment.

    :param env_id: id of a registered environment
    :param n_envs: number of environments
    :param seed: environment ``i`` starts from ``seed + i``; None for a random start
    :param backend: ``"batch"`` (one thread pool), ``"dummy"`` (one after another), ``"subproc"`` (one process each) or
        ``"auto"``
    :param env_kwargs: keywords of the environment
    :return: the environment, not yet reset
    :raises ValueError: for an unknown backend or a number of environments below 1
    :raises gymnasium.error.NameNotFound: for an unknown id; the message names the nearest one
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: accepted are {', '.join(map(repr, BACKENDS))}")
    if isinstance(n_envs, bool) or not isinstance(n_envs, int) or n_envs < 1:
        raise ValueError(f"n_envs = {n_envs!r}: accepted is an integer from 1")
    vec_env_cls = SubprocVecEnv if backend == "subproc" else DummyVecEnv
    logger.info("%s: %s with %d environments", env_id, vec_env_cls.__name__, n_envs)
    # a spec instead of an id: it can be made in a process where nobody has registered it
    make = functools.partial(gym.make, gym.spec(env_id), **{"render_mode": "rgb_array", **(env_kwargs or {})})
    return make_vec_env(make, n_envs=n_envs, seed=seed, vec_env_cls=vec_env_cls)
