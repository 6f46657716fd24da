"""Vectorised non-stationary environments for SB3."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_plasticity.common.checks import check_choice, check_count, must_be, suggests_names
from sb3_plasticity.envs.batched import NotBatchableError, check_batchable
from sb3_plasticity.envs.simulations import BatchedSimulations, MakeBatch, Outcome, Simulation, rows
from sb3_plasticity.envs.warp_batch import WarpBatch

__all__ = ["MujocoBatchVecEnv", "MujocoWarpVecEnv", "make_nonstationary_vec_env"]

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "batch", "dummy", "subproc")
INFOS = ("all", "episode")
_NO_INFO: Mapping[str, Any] = MappingProxyType({})


class MujocoBatchVecEnv(VecEnv):
    """
    Step non-stationary MuJoCo environments together, with ``mujoco.batch`` in one thread pool.

    Observations, rewards, ends of episodes, terminal observations and infos are bit-identical to those of a
    ``DummyVecEnv`` over monitored environments with the same id, keywords and seeds, except for the wall-clock time
    ``t`` in ``info["episode"]``. A pickled instance is created anew with the same arguments and with clocks at 0.

    :param env_id: id of an environment of ``sb3_plasticity.envs``
    :param n_envs: number of simulations
    :param seed: simulation ``i`` starts from ``seed + i``; None gives a random start
    :param n_threads: number of threads, or 0 for one per CPU
    :param infos: ``"all"``, or ``"episode"`` for infos of finished episodes only; all other infos are then one empty
        mapping that is read-only. This is meant for hundreds of simulations and more. The tasks of the last transitions
        are then in ``task_indices`` and ``task_values``.
    :param env_kwargs: keyword arguments of the environment
    :raises NotBatchableError: if results could not be equal, which is the case for other environments and for contact
        forces in the observation or the cost
    :raises ValueError: if an argument is out of range
    """

    _make_batch: MakeBatch | None = None

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seed: int | None = None,
        n_threads: int = 0,
        infos: str = "all",
        **env_kwargs: Any,
    ) -> None:
        check_count("n_envs", n_envs, 1)
        check_count("n_threads", n_threads)
        check_choice("infos", infos, INFOS)
        self._arguments = {
            "env_id": env_id,
            "n_envs": n_envs,
            "seed": seed,
            "n_threads": n_threads,
            "infos": infos,
            **env_kwargs,
        }
        self.infos = infos
        template = gym.make(gym.spec(env_id), **env_kwargs)
        self.spec = template.spec
        if template.render_mode == "human":
            raise must_be("render_mode", "'rgb_array' or None for a batch of simulations", "human")
        check_batchable(template.unwrapped)
        if self.spec is not None and self.spec.additional_wrappers:
            raise NotBatchableError(f"{env_id} has wrappers, which a batch would not apply; use backend='dummy'")
        self._sims = BatchedSimulations(template, n_envs, n_threads, self._make_batch)
        super().__init__(n_envs, template.observation_space, template.action_space)
        self.metadata = template.metadata
        limit = None if self.spec is None else self.spec.max_episode_steps
        self._limit = np.inf if limit is None else limit
        self._running = False
        # of the last transition of each simulation, shape (n_envs,)
        self.task_indices, self.task_values = self._sims.task_indices.copy(), self._sims.task_values.copy()
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._rewards = np.zeros((n_envs, limit or 1024))
        self._every = np.arange(n_envs)
        self._t_start = time.time()
        self.actions: np.ndarray = np.zeros((n_envs, *self.action_space.shape), dtype=np.float32)  # type: ignore[misc]
        self.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Start an episode in every simulation.

        :return: observations, shape (n_envs, observation size)
        """
        self._running = True
        self._lengths[:] = 0
        observations, columns = self._sims.reset(range(self.num_envs), self._seeds)
        self.reset_infos = rows(columns, self.num_envs)
        self.task_indices, self.task_values = columns["task_index"], columns["task_value"]
        self._reset_seeds()
        self._reset_options()
        array: np.ndarray = observations
        return array

    def step_async(self, actions: np.ndarray) -> None:
        """
        Keep the actions for :meth:`step_wait`.

        :param actions: shape (n_envs, number of actuators)
        """
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step all simulations and start new episodes where one has ended.

        :return: observations, rewards, dones and infos
        :raises RuntimeError: before the first reset
        """
        if not self._running:
            raise RuntimeError("step() before reset(): there is no episode to step")
        outcome = self._sims.step(np.ascontiguousarray(self.actions))
        observations, rewards = outcome.observations, outcome.rewards
        self.task_indices, self.task_values = outcome.columns["task_index"], outcome.columns["task_value"]
        self._count(rewards)
        truncated = self._lengths >= self._limit
        dones = outcome.terminated | truncated
        by_time = truncated & ~outcome.terminated
        infos = self._infos(outcome, dones, by_time)
        if dones.any():
            ids = np.flatnonzero(dones).tolist()
            for i in ids:
                infos[i]["episode"] = self._episode(i)
                infos[i]["terminal_observation"] = observations[i].copy()
            observations[ids], columns = self._sims.reset(ids)
            for i, reset_info in zip(ids, rows(columns, len(ids)), strict=True):
                self.reset_infos[i] = reset_info
            self._lengths[ids] = 0
        return observations, rewards.astype(np.float32), dones, infos

    def _infos(self, outcome: Outcome, dones: np.ndarray, by_time: np.ndarray) -> list[dict[str, Any]]:
        if self.infos == "all":
            outcome.columns["TimeLimit.truncated"] = by_time.tolist()
            result: list[dict[str, Any]] = outcome.infos()
            return result
        # one empty dictionary for all others: dictionaries would cost more than the physics of thousands of simulations
        infos: list[dict[str, Any]] = [_NO_INFO] * self.num_envs  # type: ignore[list-item]
        for i in np.flatnonzero(dones).tolist():
            infos[i] = rows({name: column[i : i + 1] for name, column in outcome.columns.items()}, 1)[0]
            infos[i]["TimeLimit.truncated"] = bool(by_time[i])
            if i in outcome.errors:
                infos[i]["simulation_error"] = outcome.errors[i]
        return infos

    def close(self) -> None:
        """Free the renderer. The simulations go with the object."""
        self._sims.template.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Render every simulation, if ``render_mode`` is ``"rgb_array"``."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return [simulation.render() for simulation in self._sims.simulations]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Read an attribute of simulations.

        :param attr_name: an attribute of the environment; arrays and MuJoCo objects are copies
        :param indices: which simulations, None for all
        :return: its value in each of them
        """
        return [getattr(simulation, attr_name) for simulation in self._targets(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute of simulations.

        :param attr_name: its name
        :param value: its value, the same for all
        :param indices: which simulations, None for all
        """
        for simulation in self._targets(indices):
            setattr(simulation, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of simulations.

        :param method_name: ``sync_clock``, ``set_task`` or ``render``
        :param method_args: its arguments
        :param indices: which simulations, None for all
        :param method_kwargs: its keywords
        :return: what it returned for each of them
        :raises AttributeError: for other methods, which would act on copies
        """
        return [getattr(sim, method_name)(*method_args, **method_kwargs) for sim in self._targets(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        Say whether simulations behave as if wrapped.

        :param wrapper_class: the wrapper: True for those whose work is done here, as ``Monitor``
        :param indices: which simulations, None for all
        :return: an answer for each of them
        """
        done_here = {Monitor, OrderEnforcing, PassiveEnvChecker} | ({TimeLimit} if self._limit < np.inf else set())
        return [wrapper_class in done_here for _ in self._targets(indices)]

    def _targets(self, indices: VecEnvIndices) -> list[Simulation]:
        return [self._sims.simulations[i] for i in self._get_indices(indices)]

    def _count(self, rewards: np.ndarray) -> None:
        if self._lengths.max() == self._rewards.shape[1]:  # only without a time limit
            self._rewards = np.concatenate([self._rewards, np.zeros_like(self._rewards)], axis=1)
        self._rewards[self._every, self._lengths] = rewards
        self._lengths += 1

    def _episode(self, i: int) -> dict[str, Any]:
        length = int(self._lengths[i])
        # Python's sum in the order of the steps, as Monitor
        total = sum(self._rewards[i, :length].tolist())
        return {"r": round(total, 6), "l": length, "t": round(time.time() - self._t_start, 6)}

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]


class MujocoWarpVecEnv(MujocoBatchVecEnv):
    """
    Non-stationary MuJoCo environments stepped together by MuJoCo Warp, on a GPU: extra ``warp``.

    The ids, keywords, tasks, episodes and infos are those of :class:`MujocoBatchVecEnv`. The numbers are close, not
    equal: MuJoCo Warp computes in single precision, and lays the friction pyramid of a contact along other tangents.
    Where a model asks for the PGS solver, as Humanoid's, Newton's takes its place. On the CPU it is slow, and meant for
    debugging. The guide on worlds says what was measured.

    :param env_id: id of an environment of ``sb3_plasticity.envs``
    :param n_envs: number of simulations
    :param seed: simulation ``i`` starts from ``seed + i``; None for a random start
    :param device: Warp's name of the device, such as ``"cuda:0"`` or ``"cpu"``; None for Warp's own choice, the first
        GPU if there is one
    :param max_contacts: contacts that there is room for, per simulation. One that has more ends its episode, with
        ``info["simulation_error"]`` ``"CONTACTFULL"``.
    :param infos: as for :class:`MujocoBatchVecEnv`
    :param env_kwargs: keywords of the environment
    :raises NotBatchableError: if MuJoCo Warp is not installed or cannot simulate the environment
    :raises ValueError: for any argument that is out of range
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int,
        seed: int | None = None,
        device: str | None = None,
        max_contacts: int = 64,
        infos: str = "all",
        **env_kwargs: Any,
    ) -> None:
        self._make_batch = functools.partial(WarpBatch, device=device, max_contacts=max_contacts)
        super().__init__(env_id, n_envs, seed=seed, infos=infos, **env_kwargs)
        del self._arguments["n_threads"]
        self._arguments |= {"device": device, "max_contacts": max_contacts}


@suggests_names()
def make_nonstationary_vec_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    backend: str = "auto",
    env_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    Create a monitored vectorised environment.

    :param env_id: id of a registered environment
    :param n_envs: number of environments
    :param seed: environment ``i`` starts from ``seed + i``; None gives a random start
    :param backend: ``"batch"`` (one thread pool), ``"dummy"`` (one after another), ``"subproc"`` (one process each) or
        ``"auto"``, which takes the batch if its results are equal and dummy otherwise; the log says which
    :param env_kwargs: keyword arguments of the environment
    :return: the environment, not yet reset
    :raises ValueError: if the backend is unknown, if the number of environments is below 1, or if ``backend="batch"``
        could not give equal results
    :raises gymnasium.error.NameNotFound: if the id is unknown; the error names the closest one
    """
    check_choice("backend", backend, BACKENDS)
    check_count("n_envs", n_envs, 1)
    # as SB3's own helper: nothing is rendered before someone asks for a picture
    keywords: dict[str, Any] = {"render_mode": "rgb_array", **(env_kwargs or {})}
    if backend in ("auto", "batch"):
        try:
            env = MujocoBatchVecEnv(env_id, n_envs, seed=seed, **keywords)
        except NotBatchableError as error:
            if backend == "batch":
                raise
            logger.warning("%s in a DummyVecEnv, not in a batch: %s", env_id, error)
        else:
            logger.info("%s: %d simulations in a MujocoBatchVecEnv", env_id, n_envs)
            return env
    # a spec instead of an id: it can be made in a process where nobody has registered it
    make = functools.partial(gym.make, gym.spec(env_id), **keywords)
    return make_vec_env(make, n_envs, seed=seed, vec_env_cls=SubprocVecEnv if backend == "subproc" else DummyVecEnv)
