"""
Gymnasium's own vector interface over ``mujoco.batch``: ``gymnasium.make_vec("SlipperyAnt-v0", num_envs=64)``.

For CleanRL, TorchRL, skrl, Tianshou and everyone else who speaks ``gymnasium.vector``. An id that was registered with
formulas for many simulations has the entry point ``sb3_plasticity.envs.vector:<id>``: see ``__getattr__`` here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from sb3_plasticity.common.checks import check_count, must_be

from .batched import Columns, NotBatchableError
from .simulations import BatchedSimulations, Outcome

__all__ = ["MujocoVectorEnv", "make_vector_env"]


def __getattr__(name: str) -> Callable[..., VectorEnv[Any, Any, Any]]:
    if name.startswith("__") or name not in gym.registry:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(make_vector_env, name)


def make_vector_env(
    env_id: str,
    num_envs: int = 1,
    *,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    n_threads: int = 0,
    **kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """
    Make a vector environment: over a batch where the results are equal, a ``SyncVectorEnv`` elsewhere, with a warning.

    :param env_id: id of a registered environment
    :param num_envs: number of environments
    :param autoreset_mode: when an ended episode is reset, as Gymnasium documents it
    :param n_threads: number of threads of the batch, 0 for one per CPU
    :param kwargs: keywords of the environment
    :return: a :class:`MujocoVectorEnv`, or Gymnasium's ``SyncVectorEnv``
    """
    try:
        return MujocoVectorEnv(env_id, num_envs, autoreset_mode=autoreset_mode, n_threads=n_threads, **kwargs)
    except NotBatchableError as error:
        warnings.warn(f"{env_id} in a SyncVectorEnv, not in a batch: {error}", stacklevel=3)
        make = functools.partial(gym.make, env_id, **kwargs)
        return SyncVectorEnv([make] * num_envs, autoreset_mode=autoreset_mode)


class MujocoVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """
    Non-stationary MuJoCo environments stepped together, by ``mujoco.batch`` on a pool of threads.

    It gives, bit for bit, what a ``SyncVectorEnv`` over the same id, keywords and seeds gives, in every autoreset mode.

    :param env_id: id of an environment that was registered with formulas for many simulations
    :param num_envs: number of environments
    :param autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``
    :param n_threads: number of threads, 0 for one per CPU
    :param max_episode_steps: time limit; None for that of the id, -1 for none
    :param kwargs: keywords of the environment
    :raises NotBatchableError: if results could not be equal
    :raises ValueError: for any argument that is out of range
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        n_threads: int = 0,
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_count("num_envs", num_envs, 1)
        check_count("n_threads", n_threads)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            accepted = "one of " + ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise must_be("autoreset_mode", accepted, autoreset_mode) from None
        template = gym.make(env_id, max_episode_steps=max_episode_steps, **kwargs)
        self._sims = BatchedSimulations(template, num_envs, n_threads)
        limit = None if template.spec is None else template.spec.max_episode_steps
        self._limit = np.inf if limit is None else limit
        self.num_envs = num_envs
        self.metadata = {**template.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = template.render_mode
        self.single_observation_space = template.observation_space
        self.single_action_space = template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        self._observations = np.zeros((num_envs, *(self.single_observation_space.shape or ())))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start episodes.

        :param seed: environment ``i`` starts from ``seed + i``, or from the ``i``-th of a list; None to continue with
            the generators as they are
        :param options: ``reset_mask``, a Boolean array, chooses the environments to reset (mode ``"Disabled"``); other
            options are ignored, as by the environments
        :return: observations, shape (num_envs, observation size), and infos
        :raises ValueError: for a list of seeds or a mask of another length
        """
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise must_be("seed", f"a list of {self.num_envs} seeds", seed)
        ids = self._to_reset(options)
        chosen = None if seeds is None else [seeds[i] for i in ids]
        infos: dict[str, Any] = {}
        self._begin(ids, chosen, infos)
        self._ended[ids] = False
        return self._observations.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Step every environment, or, in mode ``"NextStep"``, reset those whose episode ended in the step before.

        :param actions: shape (num_envs, number of actuators)
        :return: observations, rewards, terminated, truncated, infos
        :raises RuntimeError: in mode ``"Disabled"`` for environments that nobody has reset
        """
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise RuntimeError(
                f"episodes {np.flatnonzero(self._ended).tolist()} have ended: reset them by `reset_mask`"
            )
        waiting = np.flatnonzero(self._ended).tolist() if self.autoreset_mode is AutoresetMode.NEXT_STEP else []
        outcome = self._sims.step(np.asarray(actions), waiting)
        self._lengths += 1
        terminated, truncated = outcome.terminated, self._lengths >= self._limit
        rewards = outcome.rewards.astype(np.float64)
        stepped = np.ones(self.num_envs, dtype=np.bool_)
        stepped[waiting] = False
        rewards[waiting], terminated[waiting], truncated[waiting] = 0.0, False, False
        self._observations = outcome.observations
        self._ended = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            ended = np.flatnonzero(self._ended)
            final = np.full(self.num_envs, None, dtype=object)
            for i in ended.tolist():
                final[i] = outcome.observations[i].copy()
            infos |= {"final_obs": final, "_final_obs": self._ended.copy()}
            infos |= {"final_info": self._infos(outcome, self._ended), "_final_info": self._ended.copy()}
            stepped &= ~self._ended
            waiting = ended.tolist()
        infos |= self._infos(outcome, stepped)
        if waiting:
            self._begin(waiting, None, infos)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations.copy(), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """Draw every environment."""
        return tuple(simulation.render() for simulation in self._sims.simulations)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the renderer."""
        if hasattr(self, "_sims"):  # Gymnasium closes what could not be made, too
            self._sims.template.close()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """
        Call a method of every simulation, or read an attribute.

        :param name: ``sync_clock``, ``set_task``, ``schedule``, ...
        :param args: of the method
        :param kwargs: of the method
        :return: for each simulation, what the method returned or the attribute's value
        """
        values = [getattr(simulation, name) for simulation in self._sims.simulations]
        return tuple(value(*args, **kwargs) if callable(value) and name != "schedule" else value for value in values)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """
        Read an attribute of every simulation.

        :param name: of the attribute
        :return: its value in each simulation
        """
        return tuple(getattr(simulation, name) for simulation in self._sims.simulations)

    def _to_reset(self, options: dict[str, Any] | None) -> list[int]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return list(range(self.num_envs))
        fits = isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == np.bool_
        if not fits or not mask.any():
            raise must_be("reset_mask", f"a Boolean array of shape ({self.num_envs},) with at least one True", mask)
        return np.flatnonzero(mask).tolist()

    def _begin(self, ids: list[int], seeds: list[int | None] | None, infos: dict[str, Any]) -> None:
        """Start episodes, and add what their resets say to the infos."""
        observations, columns = self._sims.reset(ids, seeds)
        self._observations[ids] = observations
        self._lengths[ids] = 0
        for name, column in columns.items():
            if name not in infos:
                infos[name] = np.zeros((self.num_envs, *column.shape[1:]), column.dtype)
                infos[f"_{name}"] = np.zeros(self.num_envs, dtype=np.bool_)
            infos[name][ids] = column
            infos[f"_{name}"][ids] = True

    def _infos(self, outcome: Outcome, which: np.ndarray) -> dict[str, Any]:
        """Gymnasium's form of the infos of some environments: arrays and masks, zeros for the others."""
        if not which.any():
            return {}
        infos: dict[str, Any] = {}
        for name, column in _arrays(outcome.columns).items():
            kept = column.copy()
            kept[~which] = 0
            infos |= {name: kept, f"_{name}": which.copy()}
        failed = [i for i in outcome.errors if which[i]]
        if failed:
            errors = np.full(self.num_envs, None, dtype=object)
            mask = np.zeros(self.num_envs, dtype=np.bool_)
            for i in failed:
                errors[i], mask[i] = outcome.errors[i], True
            infos |= {"simulation_error": errors, "_simulation_error": mask}
        return infos


def _arrays(columns: Columns) -> dict[str, np.ndarray]:
    return {name: np.asarray(column) for name, column in columns.items()}
