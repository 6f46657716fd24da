"""``sb3-plasticity train``: an agent from hyper-parameters in rl-zoo's format, or a run that is resumed."""

import argparse
import contextlib
import itertools
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3 import get_latest_run_id
from rl_zoo3.utils import EnvironmentName

from sb3_plasticity.common.files import make_new
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import SetupError, UsageError, mistakes_in
from sb3_plasticity.zoo.experiment import VEC_ENVS
from sb3_plasticity.zoo.folder import RunFolder, file_name
from sb3_plasticity.zoo.options import StoreValues, check_known
from sb3_plasticity.zoo.search import Search, add_search_options, read_trial
from sb3_plasticity.zoo.spec import FIXED, RunSpec
from sb3_plasticity.zoo.trained_agent import spec_of
from sb3_plasticity.zoo.training import train

# What only a new run may be given: the attributes, and the options that set them.
OF_A_NEW_RUN = {"algo": "--algo", "env": "--env", "seed": "--seed", "preset": "--preset", "conf_file": "--conf-file"}
OF_A_NEW_RUN |= {"hyperparams": "-params", "env_kwargs": "--env-kwargs", "eval_env_kwargs": "--eval-env-kwargs"}
OF_A_NEW_RUN |= {"run_folder": "--run-folder"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    # what is not given is left out, so that a resumed run keeps what it has
    parser.argument_default = argparse.SUPPRESS
    pairs: dict[str, Any] = {"nargs": "+", "action": StoreValues, "metavar": "KEY:VALUE"}
    default = {item.name: f"(default: {item.default})" for item in fields(RunSpec)}
    add = parser.add_argument
    add("--algo", help="algorithm (default: ppo)")
    add("--env", metavar="ID", help="environment (default: CartPole-v1)")
    add("-conf", "--conf-file", metavar="FILE", help="hyper-parameters: YAML, a Python file or a Python module")
    add("--preset", help="take this entry of the file, not the environment's own: paper-l2er, dohare-l2, ...")
    add("-params", "--hyperparams", **pairs, help="hyper-parameters that override those of the file")
    add("-n", "--n-timesteps", type=whole(1, [-1]), help="number of steps; for a resumed run, the total")
    add("--seed", type=whole(0, [-1]), help="seed of the environments and the agent (default: random)")
    add(
        *("-i", "--trained-agent"),
        metavar="RUN",
        help="resume the run in this folder from its newest checkpoint; or continue from a saved model (.zip) in a new "
        "folder, with the same options and hyper-parameters unless given again, up to the same total number of steps",
    )
    add("-f", "--log-folder", metavar="DIR", help="where the run's folder is created (default: logs)")
    add("--run-folder", metavar="DIR", help="the run's own folder; a run that it already holds is resumed")
    add("-uuid", "--uuid", action="store_true", help="add a unique identifier to the name of the run's folder")
    add("-tb", "--tensorboard-log", metavar="DIR", help="folder for TensorBoard's events (default: the run's own)")
    add("--save-freq", type=int, help=f"minimum steps between checkpoints; none if negative {default['save_freq']}")
    add("--eval-freq", type=int, help=f"steps between evaluations; no evaluations if negative {default['eval_freq']}")
    add("--eval-episodes", type=whole(1), help=f"episodes per evaluation {default['eval_episodes']}")
    add("--n-eval-envs", type=whole(1), help=f"environments per evaluation {default['n_eval_envs']}")
    tasks = "tasks on which best_model and trials are scored (default: the first five)"
    add("--eval-tasks", type=whole(0), nargs="+", metavar="INDEX", help=tasks)
    add("--env-kwargs", **pairs, help="keyword arguments of the environment")
    add("--eval-env-kwargs", **pairs, help="keyword arguments that differ in evaluations")
    add(
        "--vec-env",
        choices=VEC_ENVS,
        help="batch: all simulations in one thread pool; subproc: a process for each; auto: batch where it gives the "
        f"same results, otherwise dummy {default['vec_env']}",
    )
    add("--device", help=f"PyTorch device {default['device']}")
    threads = f"threads of PyTorch and of a batch of simulations; -1: their own choice {default['num_threads']}"
    add("--num-threads", type=whole(1, [-1]), help=threads)
    log_interval = f"rollouts per line of the log; -1: the algorithm's choice, -2: no log {default['log_interval']}"
    add("--log-interval", type=whole(1, [-1, -2]), help=log_interval)
    add("--save-replay-buffer", action="store_true", help="keep the replay buffer with the final model")
    no = ("", "0", "false", "no")
    truncate = "truncate the last trajectory of a HER replay buffer that is loaded (default: True)"
    add("--truncate-last-trajectory", type=lambda text: text.lower() not in no, help=truncate)
    add("--gym-packages", nargs="+", metavar="MODULE", help="packages that register further environments")
    add("--verbose", type=int, help="0 prints nothing, 1 the agent's log, 2 every checkpoint (default: 1)")
    add("-P", "--progress", action="store_true", help="show a progress bar")
    add_search_options(parser)
    add = parser.add_argument_group("Weights and Biases").add_argument
    add("--track", action="store_true", help="track the run with Weights and Biases")
    add("--wandb-project-name", dest="wandb_project", metavar="NAME", help="project (default: sb3)")
    add("--wandb-entity", help="team or user")
    add("--wandb-group", help="group of the run")
    add("-tags", "--wandb-tags", nargs="+", help="tags of the run, such as optimized pr-123")


def run(options: argparse.Namespace) -> int:
    """Train, resume or search."""
    given = vars(options)
    verbose, progress = given.get("verbose", 1), given.get("progress", False)
    if given.get("trained_agent") and (folder := RunFolder(given["trained_agent"])).begun:
        return _go_on(folder, given, verbose, progress)
    spec, where = make_spec(given)
    if verbose:
        print("=" * 10, spec.env_id, "=" * 10, f"\nSeed: {spec.seed}\nHyperparameters: {where}")
        print(yaml.dump(dict(spec.hyperparams), sort_keys=True).rstrip())
    if given.get("optimize_hyperparameters"):
        with mistakes_in(where):
            search = Search(spec, given)
        search.run()
        return 0
    folder, made = make_folder(spec, given)
    try:
        if made:
            spec.begin(folder)
        if verbose:
            print(f"Run: {folder.path}")
        with _tracked(given, spec, folder):
            train(folder, verbose=verbose, progress=progress)
    except UsageError as error:
        if made and folder.last_checkpoint() is None:  # nothing was trained; others would take it for the latest run
            shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, SetupError):
            raise UsageError(f"{where}: {error}") from error
        raise
    print(f"Saved to {folder.model}")
    return 0


def _go_on(folder: RunFolder, given: Mapping[str, Any], verbose: int, progress: bool) -> int:
    """Train the run of a folder, with options that do not make it another run."""
    for name, option in OF_A_NEW_RUN.items():
        if name in given:
            newest = folder.last_checkpoint() or "FILE.zip"
            raise UsageError(
                f"{option}: -i {folder.path} resumes the run as it is; for a new run from its model, -i {newest}"
            )
    spec = RunSpec.of(folder)
    changes = {item.name: given[item.name] for item in fields(RunSpec) if item.name in given}
    del changes["trained_agent"]
    if changes.get("n_timesteps") == -1:
        del changes["n_timesteps"]
    if changes:
        folder.write_description({**folder.description(), **changes})
    train(folder, verbose=verbose, progress=progress)
    print(f"Saved to {folder.model}")
    if verbose and not changes and folder.state().step >= spec.n_timesteps:
        print("For more steps, give their total number with -n")
    return 0


# -- a new run ---------------------------------------------------------------------------------------------------------


def make_spec(given: Mapping[str, Any]) -> tuple[RunSpec, str]:
    """
    Make a run's specification of the command's options.

    :param given: the options that were given
    :return: the specification, and where its hyper-parameters come from
    :raises UsageError: for what cannot be meant
    """
    source = _find_model(given["trained_agent"]) if given.get("trained_agent") else None
    chosen = argparse.Namespace(algo=given.get("algo", "ppo"), env=given.get("env", "CartPole-v1"))
    previous = spec_of(source, chosen) if source else None
    before = vars(previous) if previous else {}
    algo = given.get("algo") or before.get("algo", "ppo")
    module, _, env_id = (given.get("env") or before.get("env_id", "CartPole-v1")).rpartition(":")
    packages = [*given.get("gym_packages", before.get("gym_packages", [])), *([module] if module else [])]
    check_known(algo, env_id, packages)
    # a stock PPO agent may continue as PPO_L2ER, which is PPO and more
    if previous and previous.algo != algo and (previous.algo, algo) != ("ppo", "ppo_l2er"):
        raise UsageError(f"{source}: it is a checkpoint of {previous.algo}, not of {algo}: use --algo {previous.algo}")
    if given.get("save_replay_buffer") and "buffer_size" not in config.arguments_of(ALGOS[algo]):
        raise UsageError(f"--save-replay-buffer: {algo} has no replay buffer")
    entry, where = _entry(given, previous, algo, env_id)
    n_timesteps = given.get("n_timesteps", -1)
    of_entry = entry.pop("n_timesteps", 1e6)
    if n_timesteps == -1:
        n_timesteps = before.get("n_timesteps") or int(float(of_entry))
    if source and (done := checkpoints.steps_in(source) or 0) >= n_timesteps:
        raise UsageError(f"{source}: it has {done} of {n_timesteps} steps already; -n takes the total number of steps")
    seed = given.get("seed", before.get("seed", -1))
    own = {**before, **{item.name: given[item.name] for item in fields(RunSpec) if item.name in given}, "tags": {}}
    own |= {"algo": algo, "env_id": env_id, "gym_packages": packages, "n_timesteps": n_timesteps, "hyperparams": entry}
    own |= {"seed": seed if seed >= 0 else int(np.random.default_rng().integers(2**32 - 1))}
    return RunSpec(**{**own, "trained_agent": str(source or "")}), where


def _entry(given: Mapping[str, Any], previous: RunSpec | None, algo: str, env_id: str) -> tuple[dict[str, Any], str]:
    """Read the entry (of the run that went before, if any), the trial and the command line, the latter ones above."""
    preset = given.get("preset")
    if previous and previous.hyperparams and not preset and "conf_file" not in given:
        entry, where = dict(previous.hyperparams), given["trained_agent"]
    else:
        path = given.get("conf_file") or config.default_config(algo, env_id, preset)
        key, entry = config.find_entry(config.read_file(path), path, env_id, preset)
        where = f"{path}: {key}"
    config.check_entry(entry, where, algo, env_id)
    if given.get("trial_id") is not None:
        entry = config.merged(entry, read_trial(given, algo))
    if above := given.get("hyperparams"):
        config.check_entry({"policy": entry.get("policy"), **above}, "-params", algo, env_id)
        entry, where = config.merged(entry, above), f"{where}, with -params {', '.join(above)}"
    for key in ("env_kwargs", "eval_env_kwargs"):
        if given.get(key):
            config.check_env_kwargs(given[key], env_id, f"--{key.replace('_', '-')}")
            entry[key] = {**(entry.get(key) or {}), **given[key]}
    return entry, where


def _find_model(source: str) -> Path:
    path = Path(source)
    newest = checkpoints.newest_model(RunFolder(path)) if path.is_dir() else path
    if newest is None:
        raise UsageError(f"-i {path}: there is no saved model in this folder")
    checkpoints.read_checkpoint(newest)
    return newest


def make_folder(spec: RunSpec, given: Mapping[str, Any]) -> tuple[RunFolder, bool]:
    """
    Make a folder that no other run has, not even one that starts at the same moment; or find the run's own.

    :param spec: of the run
    :param given: the options that were given
    :return: the folder, and whether it was made
    :raises UsageError: for ``--run-folder`` with something else in it
    """
    if "run_folder" in given:
        folder = RunFolder(given["run_folder"])
        if not folder.begun:
            if folder.path.is_dir() and any(folder.path.iterdir()):
                raise UsageError(f"--run-folder {folder.path}: is not empty, and no folder of a run")
            folder.path.mkdir(parents=True, exist_ok=True)
            return folder, True
        spec.check_begun(folder, [key for key in FIXED if key != "seed" or key in given])
        return folder, False
    before = Path(spec.trained_agent).absolute().parent.parent
    beside = spec.trained_agent and before.name == spec.algo and "log_folder" not in given
    base = before if beside else Path(given.get("log_folder", "logs")) / spec.algo
    name, suffix = file_name(spec.env_id), f"_{uuid.uuid4()}" if given.get("uuid") else ""
    numbers = itertools.count(get_latest_run_id(str(base), EnvironmentName(name)) + 1)
    return RunFolder(make_new(base / f"{name}_{number}{suffix}" for number in numbers)), True


@contextlib.contextmanager
def _tracked(given: Mapping[str, Any], spec: RunSpec, folder: RunFolder) -> Iterator[None]:
    if not given.get("track"):
        yield
        return
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--track: wandb is not installed: pip install wandb") from error
    keywords = {key: given[f"wandb_{key}"] for key in ("entity", "group", "tags", "project") if f"wandb_{key}" in given}
    keywords = {"project": "sb3", "config": folder.description(), **keywords}
    name = f"{spec.env_id}__{spec.algo}__{spec.seed}__{int(time.time())}"
    with wandb.init(name=name, sync_tensorboard=True, monitor_gym=True, save_code=True, **keywords):
        yield
