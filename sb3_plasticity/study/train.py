"""One run of a study, in a process of its own: from its description to its final model."""

import subprocess
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.utils import ALGOS, get_callback_list, get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_plasticity.callbacks.curvature import CurvatureCallback
from sb3_plasticity.callbacks.plasticity import PlasticityCallback
from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
from sb3_plasticity.common.machine import machine
from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.ppo_l2er.presets import preset_arguments
from sb3_plasticity.study.folder import RunFolder, State
from sb3_plasticity.study.spec import Run, Study, seeded
from sb3_plasticity.vec_env import MujocoBatchVecEnv
from sb3_plasticity.zoo import checkpoints, config

# Keys of an rl-zoo entry that are not the algorithm's.
RUN_KEYS = ("algo", "callback", "n_envs", "normalize")
EPISODE_KEYS = ("step", "task_index", "task_value")
# Seconds between two notes of how far a run is.
NOTE_EVERY = 2.0


def train(study: Study, run: Run, folder: RunFolder) -> None:
    """
    Train one run to its end, from its last checkpoint if it has one.

    :param study: it belongs to
    :param run: which one
    :param folder: of the run
    :raises BlockingIOError: if another process is training it
    """
    with folder.lock():
        if folder.model.is_file():
            return
        try:
            _train(study, run, folder)
        except BaseException as error:
            kind = "pending" if isinstance(error, KeyboardInterrupt) else "crashed"
            text = traceback.format_exception_only(error)[-1].strip()
            folder.write_state(State(**{**vars(folder.state()), "state": kind, "error": text}))
            raise


def _train(study: Study, run: Run, folder: RunFolder) -> None:
    checkpoint = folder.last_checkpoint()
    start = 0 if checkpoint is None else checkpoints.step_of(checkpoint) or 0
    before = folder.state()
    # What was lost when an attempt was killed is not part of the time that the run takes.
    seconds = before.seconds * start / before.step if before.step else 0.0
    records = folder.new_attempt(start)
    if start == 0:
        folder.write_description(describe(study, run))
    else:
        description = folder.description()
        resumed = [*description.get("resumed", []), {"step": start, **made_with()}]
        folder.write_description({**description, "resumed": resumed})
    folder.write_state(State("running", start, seconds))

    # A run that goes on must not see the noise of its beginning again.
    seed = run.seed if start == 0 else int(np.random.SeedSequence([run.seed, start]).generate_state(1)[0])
    env = make_env(study, run, seed, checkpoint)
    model = make_model(run, env, seed, checkpoint)
    model.set_logger(configure(str(records), ["csv", "tensorboard"]))
    callbacks = [
        TaskSyncCallback(),
        EpisodeLog(records / "monitor.csv", run.env_id),
        *([] if study.curvature is None else [CurvatureCallback(**study.curvature)]),
        *([] if study.plasticity is None else [PlasticityCallback(**study.plasticity)]),
        *get_callback_list(dict(run.entry)),
        Checkpoints(folder, study.save_freq),
        Progress(folder, seconds),
    ]
    began = time.monotonic()
    try:
        model.learn(study.n_timesteps - start, callback=callbacks, reset_num_timesteps=start == 0)
    finally:
        env.close()
    checkpoints.save(model, folder.model)
    folder.write_state(State("finished", model.num_timesteps, seconds + time.monotonic() - began))


def make_env(study: Study, run: Run, seed: int, checkpoint: Path | None) -> VecEnv:
    """
    Make a run's environments, each on one thread: a study runs as many processes as there are cores.

    :param study: it belongs to
    :param run: which one
    :param seed: of the environments
    :param checkpoint: whose normalisation statistics go on, if the run normalises
    :return: the environments
    """
    env_kwargs = seeded(study.env_kwargs, run.seed)
    n_envs = run.entry.get("n_envs", 1)
    env: VecEnv
    try:
        env = MujocoBatchVecEnv(run.env_id, n_envs, seed=seed, n_threads=1, **env_kwargs)
    except NotBatchableError:
        env = make_vec_env(run.env_id, n_envs, seed=seed, env_kwargs=env_kwargs)
    normalize = run.entry.get("normalize")
    if not normalize:
        return env
    if checkpoint is not None:
        return VecNormalize.load(str(checkpoints.statistics_path(checkpoint)), env)
    keywords = dict(normalize) if isinstance(normalize, Mapping) else {}
    if "gamma" in run.entry:
        keywords.setdefault("gamma", run.entry["gamma"])
    return VecNormalize(env, **keywords)


def make_model(run: Run, env: VecEnv, seed: int, checkpoint: Path | None) -> BaseAlgorithm:
    """
    Make a run's agent, or load it.

    :param run: which one
    :param env: its environments
    :param seed: of the agent
    :param checkpoint: to load; None for a new agent
    :return: the agent
    """
    algorithm = ALGOS[run.entry["algo"]]
    if checkpoint is not None:
        checkpoints.read_checkpoint(checkpoint)
        model = algorithm.load(checkpoint, env=env)
        model.set_random_seed(seed)
        return model
    entry = {key: value for key, value in run.entry.items() if key not in RUN_KEYS}
    arguments = preset_arguments(config.parse_entry(entry, run.name))
    if "." in arguments["policy"]:
        arguments["policy"] = get_class_by_name(arguments["policy"])
    return algorithm(env=env, seed=seed, **arguments)


def describe(study: Study, run: Run) -> dict[str, Any]:
    """
    Say what a run is and what it was made with.

    :param study: it belongs to
    :param run: which one
    :return: what is written to ``run.json``
    """
    return {
        "study": study.name,
        "env_id": run.env_id,
        "method": run.method,
        "seed": run.seed,
        "n_timesteps": study.n_timesteps,
        "hyperparams": dict(run.entry),
        "env_kwargs": seeded(study.env_kwargs, run.seed),
        **made_with(),
    }


def made_with() -> dict[str, Any]:
    """Say with what this process trains: git commit, machine and versions."""
    return {"git_commit": git_commit(), **machine(["sb3-contrib", "rl_zoo3"])}


def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, marked if it was changed; None outside of one."""
    here = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" (changed)" if changed else "")


class EpisodeLog(BaseCallback):
    """
    Write finished episodes to a ``monitor.csv`` as SB3's ``Monitor`` does, with the step and the task of each.

    :param path: of the file
    :param env_id: for its header
    """

    def __init__(self, path: Path, env_id: str) -> None:
        super().__init__()
        header: dict[str, float | str] = {"t_start": time.time(), "env_id": env_id}
        self._writer = ResultsWriter(str(path), header, EPISODE_KEYS)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                task = {key: info[key] for key in ("task_index", "task_value")}
                self._writer.write_row({**info["episode"], "step": self.num_timesteps, **task})
        return True


class Checkpoints(BaseCallback):
    """
    Save the model between two rollouts.

    :param folder: of the run
    :param save_freq: least number of steps from one checkpoint to the next
    """

    def __init__(self, folder: RunFolder, save_freq: int) -> None:
        super().__init__()
        self.folder = folder
        self.save_freq = save_freq
        self._saved = 0

    def _on_training_start(self) -> None:
        self._saved = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._saved >= self.save_freq:
            self._saved = self.num_timesteps
            checkpoints.save(self.model, self.folder.checkpoints / f"rl_model_{self.num_timesteps}_steps.zip")

    def _on_step(self) -> bool:
        return True


class Progress(BaseCallback):
    """
    Note in the run's folder how far it is.

    :param folder: of the run
    :param seconds: that earlier attempts took
    """

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        super().__init__()
        self.folder = folder
        self._seconds = seconds
        self._began = self._noted = time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        now = time.monotonic()
        if now - self._noted >= NOTE_EVERY:
            self._noted = now
            self.folder.write_state(State("running", self.num_timesteps, self._seconds + now - self._began))
