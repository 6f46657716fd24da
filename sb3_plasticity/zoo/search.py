"""Hyper-parameter search: rl_zoo3's spaces, scored on the fixed tasks, sized for the steps that a trial has."""

import argparse
import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rl_zoo3.callbacks import TrialEvalCallback
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from sqlalchemy.exc import SQLAlchemyError
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import RunError, UsageError, mistakes_in
from sb3_plasticity.zoo.evaluation import episodes_for
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.spec import RunSpec

STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError)
# Rollouts that fit into a trial, and evaluations that it is pruned by, at least.
ROLLOUTS, EVALUATIONS = 8, 4
# Options that rl_zoo3's manager takes as they are.
OF_RL_ZOO = {"n_trials", "max_total_trials", "n_jobs", "sampler", "pruner", "n_startup_trials", "storage", "study_name"}
OF_RL_ZOO |= {"optimization_log_path", "no_optim_plots"}


def sample_ppo_l2er(trial: Any, *others: Any) -> dict[str, Any]:
    """
    Sample PPO's hyper-parameters as rl_zoo3 does, and the strengths of the two penalties.

    :param trial: of the study
    :param others: what rl_zoo3 hands to all of its samplers
    :return: arguments of the algorithm
    """
    penalties = {
        "er_coef": trial.suggest_float("er_coef", 1e-5, 1e-1, log=True),
        "l2_coef": trial.suggest_float("l2_coef", 1e-6, 1e-2, log=True),
        "er_interval": trial.suggest_int("er_interval", 1, 16, log=True),
    }
    return {**HYPERPARAMS_SAMPLER["ppo"](trial, *others), **penalties}


SAMPLERS = {**HYPERPARAMS_SAMPLER, "ppo_l2er": sample_ppo_l2er}
CONVERTERS = {**HYPERPARAMS_CONVERTER, "ppo_l2er": HYPERPARAMS_CONVERTER["ppo"]}


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a search to a command's parser."""
    add = parser.add_argument_group("hyper-parameter search").add_argument
    add("-optimize", "--optimize-hyperparameters", action="store_true", help="search instead of training")
    add("--n-trials", type=whole(1), default=500, help="number of trials of this process (default: 500)")
    add("--max-total-trials", type=whole(1), help="number of trials of all processes together, instead of --n-trials")
    add("--n-jobs", type=whole(1, [-1]), default=1, help="trials that run at the same time (default: 1)")
    add("--sampler", choices=["random", "tpe", "auto"], default="tpe", help="of the hyper-parameters (default: tpe)")
    pruner = "of trials that do badly (default: median)"
    add("--pruner", choices=["halving", "median", "none"], default="median", help=pruner)
    add("--n-startup-trials", type=whole(0), default=10, help="trials before sampler and pruner begin (default: 10)")
    evaluations = f"evaluations per trial (default: one per 100,000 steps, at least {EVALUATIONS})"
    add("--n-evaluations", type=whole(1), help=evaluations)
    add("--storage", help="where trials are kept: a file (.log) or the URL of a database (default: they are not kept)")
    add("--study-name", help="name of the study in the storage")
    add("--trial-id", type=whole(0), help="train with the hyper-parameters of this trial of the study")
    add("--optimization-log-path", metavar="DIR", help="keep the evaluations and best models of the trials here")
    add("--no-optim-plots", action="store_true", help="do not open plots at the end")


class Search(Experiment):
    """
    rl_zoo3's search, with trials that are scored on the fixed tasks and sized for the steps that they have.

    :param spec: of the runs; a trial samples above its entry
    :param given: the options of the command line
    :raises UsageError: for an algorithm that rl_zoo3 has no space of hyper-parameters for
    """

    def __init__(self, spec: RunSpec, given: Mapping[str, Any]) -> None:
        if spec.algo not in SAMPLERS:
            raise UsageError(f"--algo {spec.algo}: rl_zoo3 has search spaces for {', '.join(SAMPLERS)}")
        options = {name: given[name] for name in OF_RL_ZOO if name in given}
        n_evaluations = given.get("n_evaluations", max(EVALUATIONS, spec.n_timesteps // 100_000))
        folder = Path(given.get("log_folder", "logs"))
        super().__init__(_without_measurements(spec), folder, n_evaluations=n_evaluations, **options)
        self.talkative: int = given.get("verbose", 1)
        with contextlib.closing(self):
            self._preprocess_action_noise(dict(self._hyperparams), {}, self.create_envs(1))  # sets n_actions

    def run(self) -> None:
        """
        Search, and write rl_zoo3's report of the trials.

        :raises UsageError: for a storage that cannot be used
        :raises RunError: if no trial was completed
        """
        n_trials = self.max_total_trials or self.n_trials
        print(
            f"{n_trials} trials of {self.n_timesteps:,} steps and {self.n_evaluations} evaluations: at most "
            f"{n_trials * self.n_timesteps:,} steps; Ctrl-C ends the search with what it has"
        )
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with (
            mistakes_in(f"--storage {self.storage}", *STORAGE_ERRORS),
            Progress(*columns, disable=not self.talkative) as self._bar,
        ):
            self._bar.add_task("searching", total=n_trials * self.n_timesteps)
            try:
                self.hyperparameters_optimization()
            except ValueError as error:
                if "No trials are completed" not in str(error):
                    raise
                raise RunError("no trial was completed: all of them failed or were pruned") from error

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train with sampled hyper-parameters.

        :param trial: of the study
        :return: mean return over the fixed tasks
        :raises TrialPruned: if it does badly, or its hyper-parameters make NaNs
        """
        spec = replace(self.spec, seed=(self.spec.seed + trial.number) % 2**32)
        experiment = Experiment(spec, self.folder, verbose=self.talkative if self.talkative >= 2 else 0)
        keywords = experiment._hyperparams
        her = {
            "using_her_replay_buffer": keywords.get("replay_buffer_class") == HerReplayBuffer,
            "her_kwargs": keywords.get("replay_buffer_kwargs", {}),
        }
        longest = max(spec.n_timesteps // (ROLLOUTS * experiment.n_envs), 32)
        sampled = SAMPLERS[spec.algo](Sized(trial, longest), self.n_actions, experiment.n_envs, her)
        shown = _StepsShown(self._bar, trial.number)
        with contextlib.closing(experiment):
            fixed = experiment.create_fixed_envs()
            envs = fixed[0] if fixed else experiment.create_envs(spec.n_eval_envs, eval_env=True)
            path = self.optimization_log_path and str(Path(self.optimization_log_path) / f"trial_{trial.number}")
            evaluation = TrialEvalCallback(
                envs,
                trial,
                best_model_save_path=path,
                log_path=path,
                n_eval_episodes=episodes_for(envs.num_envs, spec.eval_episodes) if fixed else spec.eval_episodes,
                eval_freq=max(spec.n_timesteps // self.n_evaluations // experiment.n_envs, 1),
                deterministic=experiment.deterministic_eval,
            )
            try:
                experiment.train(experiment.make_model(sampled), [*experiment.make_callbacks(), shown, evaluation])
            except (AssertionError, ValueError, FloatingPointError) as error:
                print(f"Trial {trial.number}: {error}")
                raise optuna.exceptions.TrialPruned() from error
            finally:
                shown.tell(spec.n_timesteps)
        if evaluation.is_pruned:
            raise optuna.exceptions.TrialPruned()
        return float(evaluation.last_mean_reward)


def _without_measurements(spec: RunSpec) -> RunSpec:
    """Leave our own callbacks out of an entry: trials need their score, not our measurements."""
    callbacks = spec.hyperparams.get("callback") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    names = [str(next(iter(one)) if isinstance(one, dict) else one) for one in callbacks]
    kept = [c for c, name in zip(callbacks, names, strict=True) if not name.startswith("sb3_plasticity.")]
    return replace(spec, hyperparams={**spec.hyperparams, "callback": kept})


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
    if storage.endswith(".log") and not Path(storage).is_file():  # reading would make it
        raise UsageError(f"--storage {storage}: there is no such file")
    with (
        mistakes_in(f"--trial-id {number}: {name} has no such trial", IndexError),
        mistakes_in(f"--study-name {name}: {storage} has no such study of {algo}", KeyError),
        mistakes_in(f"--storage {storage}", *STORAGE_ERRORS),
    ):
        backend = JournalStorage(JournalFileBackend(storage)) if storage.endswith(".log") else storage
        params = optuna.load_study(storage=backend, study_name=name).trials[number].params
        return dict(CONVERTERS[algo](params))


class Sized:
    """
    A trial whose rollouts and batches fit the steps that it has; all else it leaves to the trial itself.

    :param trial: of the study
    :param longest: most steps of an environment in a rollout, and most rows of a minibatch
    """

    def __init__(self, trial: optuna.Trial, longest: int) -> None:
        self._trial = trial
        self._longest = longest

    def suggest_int(self, name: str, low: int, high: int, **keywords: Any) -> int:
        """As ``optuna``'s, a rollout's or minibatch's size with another upper end."""
        if name in ("n_steps_pow", "batch_size_pow"):
            high = max(low, min(high, int(math.log2(self._longest))))
        return self._trial.suggest_int(name, low, high, **keywords)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """As ``optuna``'s, without the rollouts that are too long."""
        if name == "n_steps":
            choices = [choice for choice in choices if choice <= self._longest] or choices[:1]
        return self._trial.suggest_categorical(name, choices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


class _StepsShown(BaseCallback):
    """Show the steps of a trial in the search's progress bar."""

    def __init__(self, bar: Progress, number: int) -> None:
        super().__init__()
        self._bar, self._number, self._told = bar, number, 0

    def _on_step(self) -> bool:
        if self.num_timesteps - self._told >= 1000:
            self.tell(self.num_timesteps)
        return True

    def tell(self, step: int) -> None:
        text = f"trial {self._number}, step {step:,}"
        self._bar.update(self._bar.task_ids[0], advance=step - self._told, description=text)
        self._told = step
