"""What a run is: everything that its training depends on."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sb3_plasticity.common.machine import machine
from sb3_plasticity.zoo.errors import UsageError, mistakes_in
from sb3_plasticity.zoo.folder import RunFolder, State

# What a run may not become another one in.
FIXED = ("algo", "env_id", "seed", "n_timesteps", "hyperparams")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """
    What a run is.

    :param algo: rl-zoo's name of the algorithm
    :param env_id: of the environment
    :param seed: of the environments and the agent
    :param n_timesteps: total number of environment steps
    :param hyperparams: the entry in rl-zoo's form, complete: ``policy``, ``n_envs``, ``env_kwargs``, ``callback``, ...
    :param save_freq: least number of steps from one checkpoint to the next; no checkpoints if negative
    :param eval_freq: steps from one evaluation to the next; no evaluations if negative
    :param eval_episodes: of an evaluation
    :param n_eval_envs: environments of an evaluation
    :param eval_tasks: indices of the tasks that ``best_model`` is scored on; None for the first five
    :param vec_env: ``"auto"``, ``"batch"``, ``"dummy"`` or ``"subproc"``
    :param device: of PyTorch
    :param num_threads: of PyTorch and of a batch of simulations; their own choice if negative
    :param log_interval: rollouts (or episodes) from one line of the log to the next; -1 for the algorithm's own choice
    :param save_replay_buffer: whether to keep the replay buffer with the final model
    :param tensorboard_log: folder for TensorBoard's events, one in it for each run; empty for the run's own folder
    :param gym_packages: to import, for their environments
    :param truncate_last_trajectory: of a HER replay buffer that is loaded
    :param trained_agent: model that the run began from; empty for none
    :param tags: what a study or a user wants to be kept with the run
    """

    algo: str
    env_id: str
    seed: int
    n_timesteps: int
    hyperparams: Mapping[str, Any]
    save_freq: int = 100_000
    eval_freq: int = 25_000
    eval_episodes: int = 5
    n_eval_envs: int = 1
    eval_tasks: list[int] | None = None
    vec_env: str = "auto"
    device: str = "auto"
    num_threads: int = -1
    log_interval: int = -1
    save_replay_buffer: bool = False
    tensorboard_log: str = ""
    gym_packages: list[str] = field(default_factory=list)
    truncate_last_trajectory: bool = True
    trained_agent: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: RunFolder) -> "RunSpec":
        """
        Read what a run is.

        :param folder: of the run
        :return: the specification
        :raises UsageError: if the folder does not say (all of) it
        """
        description = folder.description()
        known = {item.name: description[item.name] for item in fields(cls) if item.name in description}
        with mistakes_in(f"{folder.path}: no folder of a run", TypeError):
            return cls(**known)

    def check_begun(self, folder: RunFolder, keys: Iterable[str] = FIXED) -> None:
        """
        Refuse the folder of a run that was begun as another one.

        :param folder: of a run
        :param keys: fields that must be the same
        :raises UsageError: for the first that differs
        """
        there = RunSpec.of(folder)
        for key in keys:
            begun, wanted = getattr(there, key), getattr(self, key)
            if begun != wanted:
                raise UsageError(f"{folder.path} was begun with {key} {begun}, not {wanted}: use another folder")

    def begin(self, folder: RunFolder) -> None:
        """
        Write what the run is, and what it is made with, into its folder.

        :param folder: of the run
        """
        folder.write_description({**vars(self), **made_with()})
        if not folder.begun:  # a run whose description was damaged keeps what it has reached
            folder.write_state(State())


def note_resumed(folder: RunFolder, step: int) -> None:
    """
    Add to a run's description that, and with what, it is resumed.

    :param folder: of the run
    :param step: it resumes from
    """
    description = folder.description()
    resumed = [*description.get("resumed", []), {"step": step, **made_with()}]
    folder.write_description({**description, "resumed": resumed})


def made_with() -> dict[str, Any]:
    """Say with what this process trains: git commit, machine and versions."""
    return {"git_commit": git_commit(), **machine(["sb3-contrib", "rl_zoo3"])}


def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, marked if it was changed; None outside of one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty= (changed)"]
    try:
        process = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout.strip()
