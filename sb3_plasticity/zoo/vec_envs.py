"""``--vec-env batch`` where rl_zoo3 builds a vectorised environment."""

from typing import Any

import numpy as np
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_plasticity.envs import ENV_IDS
from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.vec_env import MujocoBatchVecEnv

VEC_ENVS = ("auto", "batch", "dummy", "subproc")


class EpisodeLog(VecEnvWrapper):
    """
    Write finished episodes to the ``monitor.csv`` that rl_zoo3's plots read.

    :param venv: whose ``info["episode"]`` is complete
    :param path: of the file; None for no file
    """

    def __init__(self, venv: VecEnv, path: str | None = None) -> None:
        super().__init__(venv)
        spec = getattr(venv, "spec", None)
        header: dict[str, float | str] = {"t_start": getattr(venv, "_t_start", 0.0), "env_id": spec.id if spec else ""}
        self._writer = None if path is None else ResultsWriter(path, header=header)

    def reset(self) -> np.ndarray:
        """
        Start an episode in every environment.

        :return: observations
        """
        return self.venv.reset()  # type: ignore[return-value]

    def step_wait(self) -> VecEnvStepReturn:
        """
        Step, and write what ended.

        :return: observations, rewards, dones and infos
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        if self._writer is not None:
            for i in np.flatnonzero(dones):
                self._writer.write_row(infos[i]["episode"])
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Close the file and the environments."""
        if self._writer is not None:
            self._writer.close()
        super().close()


def batch_vec_env(
    env_fns: list[Any], *, env_id: str, env_kwargs: dict[str, Any], monitor_path: str | None
) -> EpisodeLog:
    """
    Make a batch of simulations where SB3's ``make_vec_env`` would make single ones.

    :param env_fns: how single ones are made; only their number counts
    :param env_id: of the environment
    :param env_kwargs: its keywords
    :param monitor_path: file for finished episodes, or None
    :return: the batch; ``make_vec_env`` seeds it
    """
    return EpisodeLog(MujocoBatchVecEnv(env_id, len(env_fns), **env_kwargs), monitor_path)


def batchable(env_id: str, env_kwargs: dict[str, Any]) -> str | None:
    """
    Say whether a batch gives the same results as single environments.

    :param env_id: of the environment
    :param env_kwargs: its keywords
    :return: None if it does, else why not
    """
    if env_id not in ENV_IDS:
        return f"{env_id} is not one of {', '.join(ENV_IDS)}"
    try:
        MujocoBatchVecEnv(env_id, 1, **env_kwargs).close()
    except NotBatchableError as error:
        return str(error)
    return None
