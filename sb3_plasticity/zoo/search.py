"""Hyper-parameter search: rl_zoo3's spaces, scored on the fixed tasks, sized for the steps that a trial has."""

import argparse
import math
import pickle
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from optuna.visualization import plot_optimization_history, plot_param_importances
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from sqlalchemy.exc import SQLAlchemyError
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.errors import RunError, UsageError
from sb3_plasticity.zoo.evaluation import episodes_for
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.options import whole
from sb3_plasticity.zoo.spec import RunSpec

STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError)
# Rollouts that fit into a trial, and evaluations that it is pruned by, at least.
ROLLOUTS, EVALUATIONS = 8, 4
OURS = "sb3_plasticity."


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """
    Add the options of a search.

    :param parser: of the command ``train``
    """
    group = parser.add_argument_group("hyper-parameter search")

    def add(*names: str, **options: Any) -> None:
        group.add_argument(*names, default=argparse.SUPPRESS, **options)

    add("-optimize", "--optimize-hyperparameters", action="store_true", help="search, do not train")
    add("--n-trials", type=whole(1), help="trials of this process (default: 500)")
    add("--max-total-trials", type=whole(1), help="trials of all processes together, instead of --n-trials")
    add("--n-jobs", type=whole(1, [-1]), help="trials at a time (default: 1)")
    add("--sampler", choices=["random", "tpe", "auto"], help="of hyper-parameters (default: tpe)")
    add("--pruner", choices=["halving", "median", "none"], help="of trials that do badly (default: median)")
    add("--n-startup-trials", type=whole(0), help="trials before sampler and pruner begin (default: 10)")
    add("--n-evaluations", type=whole(1), help=f"of a trial (default: one per 100,000 steps, at least {EVALUATIONS})")
    add("--storage", help="where trials are kept: a file (.log) or the URL of a database (default: nowhere)")
    add("--study-name", help="in the storage")
    add("--trial-id", type=whole(0), help="train with the hyper-parameters of this trial of the study")
    add("--optimization-log-path", metavar="DIR", help="keep the evaluations and best models of the trials here")
    add("--no-optim-plots", action="store_true", help="open no plots at the end")


def search(spec: RunSpec, options: argparse.Namespace, where: str) -> None:
    """
    Search hyper-parameters, and write a report of the trials.

    :param spec: of the runs; a trial samples above its entry
    :param options: of the command line
    :param where: the entry comes from, for messages
    :raises UsageError: for a storage or an entry that cannot be used, or if no trial came to its end
    """
    given = vars(options)
    n_trials, most = given.get("n_trials", 500), given.get("max_total_trials")
    n_evaluations = given.get("n_evaluations") or max(EVALUATIONS, spec.n_timesteps // 100_000)
    startup, verbose = given.get("n_startup_trials", 10), given.get("verbose", 1)
    callbacks = spec.hyperparams.get("callback") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    # trials need their score, not our measurements
    kept = [c for c in callbacks if not str(next(iter(c)) if isinstance(c, dict) else c).startswith(OURS)]
    spec = replace(spec, hyperparams={**spec.hyperparams, "callback": kept})
    trials = _Trials(spec, n_evaluations, given.get("optimization_log_path"), verbose)
    try:
        trials.n_actions = trials.count_actions()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: {error}") from error

    storage = given.get("storage")
    try:
        study = optuna.create_study(
            sampler=_sampler(given.get("sampler", "tpe"), startup, spec.seed),
            pruner=_pruner(given.get("pruner", "median"), startup, n_evaluations),
            storage=_storage(storage, make=True),
            study_name=given.get("study_name"),
            load_if_exists=True,
            direction="maximize",
        )
        study.set_user_attr("command", " ".join(sys.orig_argv))
        counted = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED]
        left = n_trials if most is None else max(most - len(study.get_trials(states=counted)), 0)
        print(
            f"{left} trials of {spec.n_timesteps:,} steps and {n_evaluations} evaluations: at most "
            f"{left * spec.n_timesteps:,} steps; Ctrl-C ends the search after what it has"
        )
        stop = [] if most is None else [optuna.study.MaxTrialsCallback(most, states=counted)]
        with trials.progress(left):
            try:
                if left:
                    study.optimize(
                        trials.objective, left, n_jobs=given.get("n_jobs", 1), callbacks=stop, gc_after_trial=True
                    )
            except KeyboardInterrupt:
                print("Interrupted: the trials so far")
    except STORAGE_ERRORS as error:
        raise UsageError(f"--storage {storage}: {error}") from error
    _report(study, spec, given)


def read_trial(options: Mapping[str, Any], algo: str) -> dict[str, Any]:
    """
    Read the hyper-parameters of a trial.

    :param options: ``trial_id``, ``storage`` and ``study_name``
    :param algo: rl-zoo's name of the algorithm
    :return: arguments of the algorithm
    :raises UsageError: if there is no such trial
    """
    number, storage, name = options["trial_id"], options.get("storage"), options.get("study_name")
    if not (storage and name):
        raise UsageError(f"--trial-id {number}: needs --storage and --study-name")
    try:
        params = optuna.load_study(storage=_storage(storage, make=False), study_name=name).trials[number].params
        return dict(HYPERPARAMS_CONVERTER["ppo" if algo == "ppo_l2er" else algo](params))
    except IndexError:
        raise UsageError(f"--trial-id {number}: {name} has no such trial") from None
    except KeyError as error:
        raise UsageError(f"--study-name {name}: {storage} has no such study of {algo} ({error})") from None
    except STORAGE_ERRORS as error:
        raise UsageError(f"--storage {storage}: {error}") from error


class _Trials:
    """The objective of a search, with its progress."""

    def __init__(self, spec: RunSpec, n_evaluations: int, keep: str | None, verbose: int) -> None:
        self.spec, self.n_evaluations, self.keep, self.verbose = spec, n_evaluations, keep, verbose
        self.n_actions = 0
        self._bar: Progress | None = None

    def count_actions(self) -> int:
        experiment = Experiment(self.spec, Path())
        shape = experiment.create_envs(1).action_space.shape
        experiment.close()
        return int(math.prod(shape or (0,)))

    def progress(self, n_trials: int) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self.verbose)
        self._task = self._bar.add_task("searching", total=n_trials * self.spec.n_timesteps)
        return self._bar

    def objective(self, trial: optuna.Trial) -> float:
        spec = replace(self.spec, seed=self.spec.seed + trial.number)
        experiment = Experiment(spec, Path(self.keep or ""), verbose=self.verbose if self.verbose >= 2 else 0)
        hyperparams = experiment._hyperparams
        her = {
            "using_her_replay_buffer": hyperparams.get("replay_buffer_class") == HerReplayBuffer,
            "her_kwargs": hyperparams.get("replay_buffer_kwargs", {}),
        }
        longest = max(spec.n_timesteps // (ROLLOUTS * experiment.n_envs), 32)
        sampled = sample(spec.algo, _Sized(trial, longest), self.n_actions, experiment.n_envs, her)
        fixed = experiment.create_fixed_envs()
        eval_env = fixed[0] if fixed else experiment.create_envs(spec.n_eval_envs, eval_env=True)
        path = None if self.keep is None else str(Path(self.keep) / f"trial_{trial.number}")
        n_episodes = episodes_for(eval_env.num_envs, spec.eval_episodes) if fixed else spec.eval_episodes
        evaluation = TrialEvalCallback(
            eval_env,
            trial,
            best_model_save_path=path,
            log_path=path,
            n_eval_episodes=n_episodes,
            eval_freq=max(spec.n_timesteps // self.n_evaluations // experiment.n_envs, 1),
            deterministic=experiment.deterministic_eval,
        )
        shown = _Shown(self._bar, self._task, trial.number) if self._bar is not None else None
        try:
            model = experiment.make_model(above=sampled)
            callbacks = [*experiment.make_callbacks(), *([shown] if shown else []), evaluation]
            experiment.train(model, callbacks)
        except (AssertionError, ValueError, FloatingPointError) as error:  # hyper-parameters that make NaNs
            print(f"Trial {trial.number}: {error}")
            raise optuna.exceptions.TrialPruned() from error
        finally:
            if shown is not None:
                shown.complete(spec.n_timesteps)
            experiment.close()
        if evaluation.is_pruned:
            raise optuna.exceptions.TrialPruned()
        return float(evaluation.last_mean_reward)


class _Sized:
    """A trial whose rollouts and batches fit the steps that it has; all else it leaves to the trial itself."""

    def __init__(self, trial: optuna.Trial, longest: int) -> None:
        self._trial = trial
        self._longest = longest

    def suggest_int(self, name: str, low: int, high: int, **keywords: Any) -> int:
        if name in ("n_steps_pow", "batch_size_pow"):
            high = max(low, min(high, int(math.log2(self._longest))))
        return self._trial.suggest_int(name, low, high, **keywords)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        if name == "n_steps":
            choices = [choice for choice in choices if choice <= self._longest] or choices[:1]
        return self._trial.suggest_categorical(name, choices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


class _Shown(BaseCallback):
    """Show the steps of a trial in the search's progress bar."""

    def __init__(self, bar: Progress, task: Any, number: int) -> None:
        super().__init__()
        self._bar, self._task, self._number = bar, task, number
        self._told = 0

    def _on_step(self) -> bool:
        if self.num_timesteps - self._told >= 1000:
            self._tell(self.num_timesteps)
        return True

    def _tell(self, step: int) -> None:
        self._bar.update(self._task, advance=step - self._told, description=f"trial {self._number}, step {step:,}")
        self._told = step

    def complete(self, step: int) -> None:
        self._tell(step)


def sample(algo: str, trial: Any, n_actions: int, n_envs: int, additional: dict[str, Any]) -> dict[str, Any]:
    """
    Sample hyper-parameters as rl_zoo3 does, and for ``ppo_l2er`` the strengths of the two penalties.

    :param algo: rl-zoo's name of the algorithm
    :param trial: of the study
    :param n_actions: dimensions of the action
    :param n_envs: environments
    :param additional: what rl_zoo3's samplers of off-policy algorithms want to know
    :return: arguments of the algorithm
    :raises UsageError: for an algorithm without a sampler
    """
    name = "ppo" if algo == "ppo_l2er" else algo
    if name not in HYPERPARAMS_SAMPLER:
        raise UsageError(f"--algo {algo}: rl_zoo3 searches {', '.join(HYPERPARAMS_SAMPLER)}")
    sampled = dict(HYPERPARAMS_SAMPLER[name](trial, n_actions, n_envs, additional))
    if algo == "ppo_l2er":
        sampled["er_coef"] = trial.suggest_float("er_coef", 1e-5, 1e-1, log=True)
        sampled["l2_coef"] = trial.suggest_float("l2_coef", 1e-6, 1e-2, log=True)
        sampled["er_interval"] = trial.suggest_int("er_interval", 1, 16, log=True)
    return sampled


def _sampler(name: str, startup: int, seed: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "tpe":
        return TPESampler(n_startup_trials=startup, seed=seed, multivariate=True)
    try:
        import optunahub
    except ImportError as error:
        raise UsageError("--sampler auto: optunahub is not installed: pip install optunahub") from error
    return optunahub.load_module("samplers/auto_sampler").AutoSampler(seed=seed)  # type: ignore[no-any-return]


def _pruner(name: str, startup: int, n_evaluations: int) -> optuna.pruners.BasePruner:
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4, min_early_stopping_rate=0)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=n_evaluations // 3)
    return optuna.pruners.NopPruner()


def _storage(storage: str | None, make: bool) -> Any:
    if storage is None or not storage.endswith(".log"):
        return storage
    if make:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
    elif not Path(storage).is_file():  # reading would make it
        raise UsageError(f"--storage {storage}: there is no such file")
    return optuna.storages.JournalStorage(JournalFileBackend(storage))


def _report(study: optuna.Study, spec: RunSpec, given: Mapping[str, Any]) -> None:
    if not any(trial.state is TrialState.COMPLETE for trial in study.trials):
        raise RunError("no trial came to its end: all failed or were pruned")
    best = study.best_trial
    print(f"{len(study.trials)} trials; the best, {best.number}, returned {best.value:.4g} with")
    for key, value in best.params.items():
        print(f"    {key}: {value}")
    folder = Path(given.get("log_folder", "logs")) / spec.algo
    path = folder / f"report_{spec.env_id}_{len(study.trials)}-trials-{spec.n_timesteps}_{int(time.time())}"
    with replacing(path.with_suffix(".csv")) as temporary:
        study.trials_dataframe().to_csv(temporary)
    with replacing(path.with_suffix(".pkl")) as temporary:
        temporary.write_bytes(pickle.dumps(study))
    print(f"Report: {path}.csv")
    if given.get("storage") and given.get("study_name"):
        shared = f"--storage {given['storage']} --study-name {given['study_name']} --trial-id {best.number}"
        print(f"Train with it: sb3-plasticity train --algo {spec.algo} --env {spec.env_id} {shared}")
    if not given.get("no_optim_plots"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plot_optimization_history(study).show()
                plot_param_importances(study).show()
            except (ValueError, ImportError, RuntimeError):
                pass
