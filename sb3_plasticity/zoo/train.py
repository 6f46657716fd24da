"""``sb3-plasticity train``: an agent from hyper-parameters in rl-zoo's format, or a run that goes on."""

import argparse
import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3.utils import ALGOS

from sb3_plasticity.common.checks import nearest
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.errors import SetupError, UsageError
from sb3_plasticity.zoo.experiment import VEC_ENVS
from sb3_plasticity.zoo.folder import RunFolder, file_name
from sb3_plasticity.zoo.options import StoreValues, check_algorithm, check_environment, whole
from sb3_plasticity.zoo.registration import register
from sb3_plasticity.zoo.search import Search, add_search_options, read_trial
from sb3_plasticity.zoo.shown import spec_of
from sb3_plasticity.zoo.spec import RunSpec
from sb3_plasticity.zoo.training import train

# What only a new run may be given.
OF_A_NEW_RUN = (
    "algo",
    "conf_file",
    "env",
    "env_kwargs",
    "eval_env_kwargs",
    "hyperparams",
    "preset",
    "run_folder",
    "seed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    parser.set_defaults(argument_default=argparse.SUPPRESS)
    defaults = {item.name: item.default for item in fields(RunSpec)}

    def add(*names: str, help: str, of_spec: bool = True, **options: Any) -> None:
        # what is not given is left out, so that a run that goes on keeps what it has
        default = defaults.get(names[-1].lstrip("-").replace("-", "_"))
        shown = f" (default: {default})" if isinstance(default, int | str) and default != "" else ""
        parser.add_argument(*names, default=argparse.SUPPRESS, help=help + shown, **options)

    add("--algo", help="algorithm (default: ppo)")
    add("--env", metavar="ID", help="environment (default: CartPole-v1)")
    add("-conf", "--conf-file", metavar="FILE", help="hyper-parameters: YAML, a Python file or a Python module")
    add(
        "--preset",
        help="take this entry of the file, not the environment's own: paper-l2er, paper-plain, dohare-l2, ...",
    )
    add(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreValues,
        metavar="KEY:VALUE",
        help="hyper-parameters above those",
    )
    add("-n", "--n-timesteps", type=whole(1, [-1]), help="number of steps (of a resumed run: in all)")
    add("--seed", type=whole(0, [-1]), help="of environments and agent (default: a random one)")
    add(
        *("-i", "--trained-agent"),
        metavar="RUN",
        help="go on: with the run of this folder, from its newest checkpoint; or from a saved model (.zip), in a "
        "folder of its own, with the same options and hyper-parameters unless given anew, up to the same number of "
        "steps in all",
    )
    add("-f", "--log-folder", metavar="DIR", help="where the run's folder is made (default: logs)")
    add("--run-folder", metavar="DIR", help="the run's folder itself; one that holds this run already goes on")
    add("-uuid", "--uuid", action="store_true", help="give the run's folder a name that no other has")
    add("-tb", "--tensorboard-log", metavar="DIR", help="folder for TensorBoard's events (default: the run's own)")
    add("--save-freq", type=int, help="least number of steps from one checkpoint to the next; none if negative")
    add("--eval-freq", type=int, help="steps from one evaluation to the next; none if negative")
    add("--eval-episodes", type=whole(1), help="of an evaluation")
    add("--n-eval-envs", type=whole(1), help="environments of an evaluation")
    add(
        "--eval-tasks",
        type=whole(0),
        nargs="+",
        metavar="INDEX",
        help="tasks that best_model and trials are scored on (default: the first five)",
    )
    add("--env-kwargs", nargs="+", action=StoreValues, metavar="KEY:VALUE", help="keywords of the environment")
    add(
        "--eval-env-kwargs", nargs="+", action=StoreValues, metavar="KEY:VALUE", help="those that differ in evaluations"
    )
    add(
        "--vec-env",
        choices=VEC_ENVS,
        help="batch: all simulations in one thread pool; subproc: a process each; auto: "
        "batch where its results are equal, else dummy",
    )
    add("--device", help="of PyTorch")
    add("--num-threads", type=whole(1, [-1]), help="of PyTorch and of a batch of simulations; -1: their own choice")
    add(
        "--log-interval",
        type=whole(1, [-1, -2]),
        help="rollouts from one line of the log to the next; -1: the algorithm's own choice, -2: none",
    )
    add("--save-replay-buffer", action="store_true", help="keep the replay buffer with the final model")
    add(
        "--truncate-last-trajectory",
        type=lambda text: text.lower() not in ("", "0", "false", "no"),
        help="of a HER replay buffer that is loaded",
    )
    add("--gym-packages", nargs="+", metavar="MODULE", help="packages that register further environments")
    add("--verbose", type=int, help="0 prints nothing, 1 the agent's log, 2 every checkpoint (default: 1)")
    add("-P", "--progress", action="store_true", help="show a progress bar")
    add_search_options(parser)
    _add_tracking_options(parser)


def run(options: argparse.Namespace) -> int:
    """
    Train, go on or search.

    :param options: of the command line
    :return: exit status
    :raises UsageError: for what cannot be meant
    """
    given = vars(options)
    register()
    verbose, progress = given.get("verbose", 1), given.get("progress", False)
    if source := given.get("trained_agent"):
        folder = RunFolder(Path(source))
        if (folder.path / "run.json").is_file():
            return _go_on(folder, given, verbose, progress)
    spec, where = make_spec(given)
    if verbose:
        print("=" * 10, spec.env_id, "=" * 10, f"\nSeed: {spec.seed}\nHyperparameters: {where}")
        print(yaml.dump(dict(spec.hyperparams), sort_keys=True).rstrip())
    if given.get("optimize_hyperparameters"):
        try:
            found = Search(spec, given)
        except (UsageError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise UsageError(f"{where}: {error}") from error
        found.run()
        return 0
    folder, made = make_folder(spec, given)
    try:
        if made:
            spec.begin(folder)
        if verbose:
            print(f"Run: {folder.path}")
        with _tracked(options, spec, folder):
            train(folder, verbose=verbose, progress=progress)
        print(f"Saved to {folder.model}")
    except UsageError as error:
        if made and folder.last_checkpoint() is None:  # nothing was trained; others would take it for the latest run
            shutil.rmtree(folder.path, ignore_errors=True)
        if isinstance(error, SetupError):
            raise UsageError(f"{where}: {error}") from error
        raise
    return 0


def _go_on(folder: RunFolder, given: Mapping[str, Any], verbose: int, progress: bool) -> int:
    """Train the run of a folder, with options that do not make it another run."""
    for name in OF_A_NEW_RUN:
        if name in given:
            option = "-params" if name == "hyperparams" else f"--{name.replace('_', '-')}"
            newest = folder.last_checkpoint() or "FILE.zip"
            raise UsageError(f"{option}: -i {folder.path} goes on with the run as it is; for another run, -i {newest}")
    spec = RunSpec.of(folder)
    changes = {item.name: given[item.name] for item in fields(RunSpec) if item.name in given}
    changes.pop("trained_agent", None)
    if changes.get("n_timesteps") == -1:
        del changes["n_timesteps"]
    if changes:
        folder.write_description({**folder.description(), **changes})
    train(folder, verbose=verbose, progress=progress)
    print(f"Saved to {folder.model}")
    if verbose and not changes and folder.state().step >= spec.n_timesteps:
        print("For more steps: -n, the number in all")
    return 0


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
    options: dict[str, Any] = {**(vars(previous) if previous else {}), **given, "trained_agent": str(source or "")}
    algo = given.get("algo") or options.get("algo", "ppo")
    module, _, env_id = (given.get("env") or options.get("env_id", "CartPole-v1")).rpartition(":")
    packages = [*options.get("gym_packages", []), *([module] if module else [])]
    check_environment(env_id, packages)
    check_algorithm(algo)
    # a stock PPO agent may go on as PPO_L2ER, which is PPO and more
    if previous and previous.algo != algo and (previous.algo, algo) != ("ppo", "ppo_l2er"):
        raise UsageError(f"{source}: a checkpoint of {previous.algo}, not of {algo}: use --algo {previous.algo}")
    if options.get("save_replay_buffer") and "buffer_size" not in config.arguments_of(ALGOS[algo]):
        raise UsageError(f"--save-replay-buffer: {algo} has no replay buffer")
    entry, where = _entry(given, previous, algo, env_id)
    n_timesteps = given.get("n_timesteps", -1)
    if n_timesteps == -1:
        n_timesteps = (previous and previous.n_timesteps) or int(float(entry.get("n_timesteps", 1e6)))
    if source and (done := checkpoints.steps_in(source) or 0) >= n_timesteps:
        raise UsageError(f"{source}: it has {done} of {n_timesteps} steps; -n takes the number of steps in all")
    own = {item.name: options[item.name] for item in fields(RunSpec) if item.name in options}
    own |= {"algo": algo, "env_id": env_id, "gym_packages": packages, "n_timesteps": n_timesteps, "hyperparams": entry}
    own.pop("tags", None)
    if own.get("seed", -1) < 0:
        own["seed"] = int(np.random.default_rng().integers(2**32 - 1))
    return RunSpec(**own), where


def _entry(options: Mapping[str, Any], previous: RunSpec | None, algo: str, env_id: str) -> tuple[dict[str, Any], str]:
    """Read the entry (of the run that went before, if any), the trial and the command line, the latter ones above."""
    preset = options.get("preset")
    if previous and previous.hyperparams and not preset and "conf_file" not in options:
        entry, where = dict(previous.hyperparams), options["trained_agent"]
    else:
        path = options.get("conf_file") or config.default_config(algo, env_id, preset)
        key, entry = config.find_entry(config.read_file(path), path, env_id, preset)
        where = f"{path}: {key}"
    config.check_entry(entry, where, algo, env_id)
    if options.get("trial_id") is not None:
        entry = config.merged(entry, read_trial(options, algo))
    above = options.get("hyperparams") or {}
    if above:
        config.check_entry({"policy": entry.get("policy"), **above}, "-params", algo, env_id)
        entry, where = config.merged(entry, above), f"{where}, with -params {', '.join(above)}"
    for key in ("env_kwargs", "eval_env_kwargs"):
        if options.get(key):
            config.check_env_kwargs(options[key], env_id, f"--{key.replace('_', '-')}")
            entry[key] = {**(entry.get(key) or {}), **options[key]}
    return entry, where


def _find_model(source: str) -> Path:
    path = Path(source)
    newest = checkpoints.newest_model(RunFolder(path)) if path.is_dir() else path
    if newest is None:
        raise UsageError(f"-i {path}: there is no saved model in this folder")
    if not newest.is_file() or newest.suffix != ".zip":
        near = sorted(str(other) for other in path.parent.glob("*.zip")) if path.parent.is_dir() else []
        raise UsageError(f"-i {path}: there is no such zip file{nearest(str(path), near)}")
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
        folder = RunFolder(Path(given["run_folder"]))
        if not folder.description():
            if folder.path.is_dir() and any(folder.path.iterdir()):
                raise UsageError(f"--run-folder {folder.path}: is not empty, and no folder of a run")
            folder.path.mkdir(parents=True, exist_ok=True)
            return folder, True
        there = RunSpec.of(folder)
        for name in ("algo", "env_id", "n_timesteps", *(["seed"] if "seed" in given else []), "hyperparams"):
            if getattr(there, name) != getattr(spec, name):
                raise UsageError(
                    f"--run-folder {folder.path}: its run was begun with {name} {getattr(there, name)}, "
                    f"not {getattr(spec, name)}"
                )
        return folder, False
    before = Path(spec.trained_agent).absolute().parent.parent
    beside = spec.trained_agent and before.name == spec.algo and "log_folder" not in given
    base = before if beside else Path(given.get("log_folder", "logs")) / spec.algo
    name = file_name(spec.env_id)
    taken = [
        int(path.name.rpartition("_")[2]) for path in base.glob(f"{name}_*") if path.name[len(name) + 1 :].isdigit()
    ]
    number = max(taken, default=0) + 1
    suffix = f"_{uuid.uuid4()}" if given.get("uuid") else ""
    while True:
        try:
            path = base / f"{name}_{number}{suffix}"
            path.mkdir(parents=True)
            return RunFolder(path), True
        except FileExistsError:
            number += 1


def _add_tracking_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Weights and Biases")
    group.add_argument("--track", action="store_true", help="track the run there")
    group.add_argument("--wandb-project-name", default="sb3", help="(default: sb3)")
    group.add_argument("--wandb-entity", help="team or user")
    group.add_argument("--wandb-group", help="of the run")
    group.add_argument("-tags", "--wandb-tags", nargs="+", default=[], help="such as: optimized pr-123")


@contextlib.contextmanager
def _tracked(options: argparse.Namespace, spec: RunSpec, folder: RunFolder) -> Iterator[None]:
    if not options.track:
        yield
        return
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--track: wandb is not installed: pip install wandb") from error
    keywords = {key: getattr(options, f"wandb_{key}") for key in ("entity", "group", "tags")}
    name = f"{spec.env_id}__{spec.algo}__{spec.seed}__{int(time.time())}"
    keywords |= {"project": options.wandb_project_name, "config": folder.description(), "name": name}
    with wandb.init(sync_tensorboard=True, monitor_gym=True, save_code=True, **keywords):
        yield
