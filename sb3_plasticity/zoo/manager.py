"""rl_zoo3's experiment manager, for worlds that change and runs that get killed."""

import argparse
import functools
import shutil
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from pprint import pprint
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium as gym
import optuna
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import get_latest_run_id
from sqlalchemy.exc import SQLAlchemyError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HumanOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)
from stable_baselines3.common.utils import get_latest_run_id as get_latest_tensorboard_id
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.evaluation import Evaluation, episodes_for, fixed_tasks
from sb3_plasticity.zoo.overview import OverviewCallback
from sb3_plasticity.zoo.runs import Run, read_yaml
from sb3_plasticity.zoo.vec_envs import VEC_ENVS, batch_vec_env, batchable

OURS = "sb3_plasticity."
TASK_SYNC = "sb3_plasticity.TaskSyncCallback"
# What a mistake in the command line, the YAML or a checkpoint raises while an experiment is set up.
SETUP_ERRORS = (ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError, ImportError, gym.error.Error)
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError)


class PlasticityExperimentManager(ExperimentManager):
    """
    rl_zoo3's ``ExperimentManager`` with two evaluations, exact resuming and hyper-parameters that are checked.

    :param args: options of ``train``, ours included
    :param positional: further arguments of ``ExperimentManager``
    :param keywords: further arguments of ``ExperimentManager``
    """

    def __init__(self, args: argparse.Namespace, *positional: Any, **keywords: Any) -> None:
        self.requested_vec_env = keywords.pop("vec_env_type", None)
        keywords["vec_env_type"] = "dummy"
        super().__init__(args, *positional, **keywords)
        self.preset: str | None = getattr(args, "preset", None)
        self.eval_tasks: list[int] | None = getattr(args, "eval_tasks", None)
        self.env_id: str = self.env_name.gym_id
        self.run = Run(Path(self.trained_agent)) if self.continue_training else None
        self.vec_env = "dummy"
        self._fixed_values: list[float] = []
        self._parameter = ""
        self._made_folder = False
        # rl_zoo3 reads what an environment is made from in attributes, and --n-jobs makes several at a time
        self._making = threading.Lock()
        self._hparams: dict[str, Any] = {}

        resumed_config = self.run.config if self.run is not None and self.preset is None else None
        self._one_entry = keywords.get("config") is None and resumed_config is not None
        if self._one_entry:
            self.config = str(resumed_config)
        elif keywords.get("config") is None:
            self.config = config.default_config(self.algo, self.env_id, self.preset)

    # -- setting up ----------------------------------------------------------------------------------------------------

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Read and check hyper-parameters, make environments, callbacks and model.

        :return: the model and its hyper-parameters, or None for a hyper-parameter search
        :raises UsageError: for whatever in them cannot be used
        """
        if self.continue_training:
            self._check_checkpoint()
        try:
            result = super().setup_experiment()
            if result is not None:
                self._prepare(result[0])
        except (UsageError, *SETUP_ERRORS) as error:
            if self._made_folder:  # nothing was trained in it, and others would take it for the latest run
                shutil.rmtree(self.save_path)
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{self.where}: {error}") from error
        return result

    def _prepare(self, model: BaseAlgorithm) -> None:
        if self.continue_training and model.num_timesteps >= self.n_timesteps:
            raise UsageError(
                f"{self.trained_agent}: it has {model.num_timesteps} of {self.n_timesteps} steps; "
                "-n takes the number of steps in all"
            )
        model.set_logger(self._make_logger(model))

    @property
    def where(self) -> str:
        """File and entry of the hyper-parameters, for messages."""
        return self.config if self._one_entry else f"{self.config}: {self.preset or self.env_id}"

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the entry, the trial and the command line, the latter ones above the former.

        :return: the hyper-parameters to process, and those to save
        """
        print(f"Loading hyperparameters from: {self.config}")
        where = self.where
        if self._one_entry:
            entry = read_yaml(Path(self.config))
        else:
            key, entry = config.find_entry(config.read_file(self.config), self.config, self.env_id, self.preset)
            where = f"{self.config}: {key}"
            if key != self.env_id:
                print(f"Using '{key}' hyperparameters")
        config.check_entry(entry, where, self.algo, self.env_id)
        if self.trial_id is not None:
            entry = _update(entry, self._read_trial())
        if self.custom_hyperparams:
            config.check_entry(
                {"policy": entry.get("policy")} | self.custom_hyperparams, "-params", self.algo, self.env_id
            )
            entry = _update(entry, self.custom_hyperparams)
        for key, given in (("env_kwargs", self.env_kwargs), ("eval_env_kwargs", self._eval_env_kwargs_args)):
            if given:
                config.check_env_kwargs(given, self.env_id, f"--{key.replace('_', '-')}")
                entry[key] = (entry.get(key) or {}) | given
        entry.setdefault("n_timesteps", 1e6)

        saved = OrderedDict((key, entry[key]) for key in sorted(entry))
        self._hparams = dict(saved)
        print("Hyperparameters for environment (ones being tuned will be overridden):")
        pprint(dict(saved))
        return config.parse_entry(entry, where), saved

    def _read_trial(self) -> dict[str, Any]:
        if not (self.storage and self.study_name):
            raise UsageError(f"--trial-id {self.trial_id}: needs --storage and --study-name")
        if self.storage.endswith(".log") and not Path(self.storage).is_file():  # reading would make it
            raise UsageError(f"--storage {self.storage}: there is no such file")
        try:
            return self.load_trial(self.storage, self.study_name, self.trial_id)
        except IndexError:
            raise UsageError(f"--trial-id {self.trial_id}: {self.study_name} has no such trial") from None
        except KeyError:
            raise UsageError(f"--study-name {self.study_name}: {self.storage} has no such study") from None
        except STORAGE_ERRORS as error:
            raise UsageError(f"--storage {self.storage}: {error}") from error

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        env_kwargs = dict(hyperparams.pop("env_kwargs", None) or {})
        eval_env_kwargs = env_kwargs | dict(hyperparams.pop("eval_env_kwargs", None) or {})
        self.env_kwargs, self.eval_env_kwargs = env_kwargs, eval_env_kwargs
        if self.eval_tasks is None:
            self.eval_tasks = hyperparams.pop("eval_tasks", None)
        hyperparams.pop("eval_tasks", None)
        self.vec_env = self._choose_vec_env(hyperparams)
        # rl_zoo3's other scripts make their environments from what args.yml says
        vars(self.args).update(env_kwargs=env_kwargs or None, vec_env=self.vec_env, eval_tasks=self.eval_tasks)

        callbacks = hyperparams.get("callback") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        if self.optimize_hyperparameters:  # trials need their score, not our measurements
            callbacks = [c for c in callbacks if not str(next(iter(c)) if isinstance(c, dict) else c).startswith(OURS)]
        # First, so that the others of the same step see the right task.
        hyperparams["callback"] = [TASK_SYNC, *callbacks]
        return super()._preprocess_hyperparams(hyperparams)

    def _choose_vec_env(self, hyperparams: dict[str, Any]) -> str:
        in_yaml = hyperparams.pop("vec_env", None)
        wanted = self.requested_vec_env or in_yaml or "auto"
        if wanted not in VEC_ENVS:
            raise UsageError(f"{self.where}: vec_env: {wanted!r}: accepted are {', '.join(VEC_ENVS)}")
        if self.default_vec_env_cls is not None or wanted in ("dummy", "subproc"):
            return wanted if wanted != "auto" else "dummy"
        needs_single = [key for key in ("env_wrapper", "monitor_kwargs") if hyperparams.get(key)]
        if needs_single:
            reason: str | None = f"{needs_single[0]} needs single environments"
        else:
            reason = batchable(self.env_id, self.env_kwargs) or batchable(self.env_id, self.eval_env_kwargs)
        if wanted == "batch" and reason is not None:
            raise UsageError(f"--vec-env batch: {reason}; accepted are dummy and subproc")
        return "batch" if reason is None else "dummy"

    def create_log_folder(self) -> None:
        """Make a folder that no other run has, not even one that starts at the same moment; none for a search."""
        if self.optimize_hyperparameters:
            return
        while True:
            try:
                Path(self.save_path).mkdir(parents=True)
                break
            except FileExistsError:
                number = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = str(Path(self.log_path) / f"{self.env_name}_{number}")
                self.params_path = f"{self.save_path}/{self.env_name}"
        self._made_folder = True
        super().create_log_folder()

    def _make_logger(self, model: BaseAlgorithm) -> Logger:
        """Log to the terminal, the run's ``progress.csv`` and a TensorBoard folder of its own."""
        formats: list[KVWriter] = [CSVOutputFormat(str(Path(self.save_path) / "progress.csv"))]
        if self.verbose >= 1:
            # keys such as eval_fixed/actuator_strength_0.512 differ in their ends
            formats.insert(0, HumanOutputFormat(sys.stdout, max_length=48))
        if self.tensorboard_log is not None:
            name = type(model).__name__
            number = get_latest_tensorboard_id(self.tensorboard_log, name) + 1
            formats.append(TensorBoardOutputFormat(str(Path(self.tensorboard_log) / f"{name}_{number}")))
        return Logger(folder=self.save_path, output_formats=formats)

    # -- environments --------------------------------------------------------------------------------------------------

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Create environments; those that trials are scored on stay each in a task of the fixed set.

        :param n_envs: their number
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no file of their episodes
        :return: the environments
        """
        with self._making:
            fixed = self._create_fixed_envs() if eval_env and self.optimize_hyperparameters else None
            return self._create_envs(n_envs, eval_env, no_log) if fixed is None else fixed

    def _create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        no_log = no_log or self.optimize_hyperparameters
        if self.vec_env == "batch":
            log = None if eval_env or no_log else str(Path(self.save_path) / "0.monitor.csv")
            self.vec_env_class = functools.partial(  # type: ignore[assignment]
                batch_vec_env,
                env_id=self.env_id,
                env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
                monitor_path=log,
            )
        elif self.default_vec_env_cls is None:
            self.vec_env_class = SubprocVecEnv if self.vec_env == "subproc" else DummyVecEnv
        return super().create_envs(n_envs, eval_env, no_log)

    def _create_fixed_envs(self) -> VecEnv | None:
        """Make an environment for each task of the fixed set; None if these environments have no tasks."""
        if not self._fixed_values:
            probe = self._create_envs(1, eval_env=True)
            if not all(map(probe.has_attr, ("schedule", "set_task"))):
                probe.close()
                return None
            schedule, frozen = probe.get_attr("schedule")[0], probe.get_attr("clock")[0].frozen
            self._parameter = probe.get_attr("parameter")[0].name
            probe.close()
            chosen = [frozen.value] if frozen is not None and self.eval_tasks is None else None
            self._fixed_values = chosen or fixed_tasks(schedule, self.eval_tasks)
            self.n_eval_episodes = episodes_for(len(self._fixed_values), self.n_eval_episodes)
        kwargs = self.eval_env_kwargs
        table = {"kind": "cyclic", "values": self._fixed_values, "period": 1}
        self.eval_env_kwargs = kwargs | {"schedule": table, "task": None}
        try:
            envs = self._create_envs(len(self._fixed_values), eval_env=True)
        finally:
            self.eval_env_kwargs = kwargs
        for i in range(envs.num_envs):
            envs.env_method("set_task", i, indices=i)
        return envs

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.continue_training:
            path = checkpoints.statistics_path(Path(self.trained_agent))
            if self.normalize and not path.is_file():
                raise UsageError(f"{path}: the normalisation statistics of {self.trained_agent} are missing")
            if not self.normalize and path.is_file():
                raise UsageError(
                    f"{self.where}: normalize is missing: {self.trained_agent} was trained with {path.name}"
                )
            if self.normalize:
                env = VecNormalize.load(str(path), env)
        elif self.normalize:
            env = VecNormalize(env, **self.normalize_kwargs)
        if eval_env and isinstance(env, VecNormalize):
            env.training = env.norm_reward = False
        return env

    # -- callbacks -----------------------------------------------------------------------------------------------------

    def create_callbacks(self) -> None:
        """Add the progress bar, checkpoints, evaluations and the overview to what the YAML names."""
        own, self.callbacks = self.callbacks, []
        save_freq, eval_freq = self.save_freq, self.eval_freq
        self.save_freq = self.eval_freq = -1
        super().create_callbacks()  # the progress bar, which must be the first of all
        # rl_zoo3 has put the task clock first among its own
        self.callbacks += own[:1]
        run = {"algo": self.algo, "env": self.env_id, "seed": self.seed, "n_timesteps": self.n_timesteps}
        self.callbacks.append(OverviewCallback(self._hparams | {"n_timesteps": self.n_timesteps}, run))
        self.callbacks += own[1:]
        if self.optimize_hyperparameters:
            return
        if save_freq > 0:
            self.callbacks.append(
                checkpoints.AtomicCheckpointCallback(
                    max(save_freq // self.n_envs, 1), self.save_path, verbose=self.verbose
                )
            )
        if eval_freq > 0:
            self.callbacks += self._create_evaluations(max(eval_freq // self.n_envs, 1))

    def _create_evaluations(self, eval_freq: int) -> list[Evaluation]:
        folder = Path(self.save_path)
        best = checkpoints.SaveBestModel(folder / "best_model.zip")
        make = functools.partial(Evaluation, eval_freq=eval_freq, deterministic=self.deterministic_eval)
        n_episodes = self.n_eval_episodes
        fixed = self._create_fixed_envs()
        # in a batch an episode each costs hardly more than one
        together = self.vec_env == "batch" and self.n_eval_envs == 1
        current = self.create_envs(n_episodes if together else self.n_eval_envs, eval_env=True)
        if fixed is None:
            record = folder / "evaluations.npz"
            return [
                make(
                    current, "eval", record, callback_on_new_best=best, n_eval_episodes=n_episodes, verbose=self.verbose
                )
            ]
        labels = [f"{self._parameter}_{value:.3g}" for value in self._fixed_values]
        return [
            make(current, "eval", folder / "evaluations_current_task.npz", n_eval_episodes=n_episodes, verbose=0),
            make(
                fixed,
                "eval_fixed",
                folder / "evaluations.npz",
                labels=labels,
                callback_on_new_best=best,
                n_eval_episodes=self.n_eval_episodes,
                verbose=self.verbose,
            ),
        ]

    # -- resuming ------------------------------------------------------------------------------------------------------

    def _check_checkpoint(self) -> None:
        path = Path(self.trained_agent)
        data = checkpoints.read_checkpoint(path)
        assert self.run is not None
        trained_by = self.run.args.get("algo")
        algorithm = config.ALGOS[self.algo]
        # A stock PPO agent may go on as PPO_L2ER, which is PPO and more.
        if trained_by not in (None, self.algo) and not (trained_by == "ppo" and algorithm is PPO_L2ER):
            raise UsageError(f"{path}: a checkpoint of {trained_by}, not of {self.algo}: use --algo {trained_by}")
        missing = {"clip_range", "n_epochs"} - set(data) if issubclass(algorithm, PPO_L2ER) else set()
        known = tuple(set(algorithm.policy_aliases.values()))
        policy = data["policy_class"]
        if missing or (known and isinstance(policy, type) and not issubclass(policy, known)):
            raise UsageError(
                f"{path}: no checkpoint of {self.algo}: its policy is a {getattr(policy, '__name__', policy)}"
            )

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        hyperparams.setdefault("policy", None)
        replay_buffer = Path(self.trained_agent).with_name("replay_buffer.pkl")
        if hasattr(config.ALGOS[self.algo], "load_replay_buffer") and not replay_buffer.exists():
            print(f"No {replay_buffer.name}: the replay buffer starts empty")
        return super()._load_pretrained_agent(hyperparams, env)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train, or go on training to the same number of steps in all.

        :param model: as set up
        """
        if not self.continue_training:
            super().learn(model)
            return
        print(f"Continuing at step {model.num_timesteps} of {self.n_timesteps}")

        def go_on(total_timesteps: int, **keywords: Any) -> BaseAlgorithm:
            return model.learn(total_timesteps - model.num_timesteps, reset_num_timesteps=False, **keywords)

        super().learn(SimpleNamespace(learn=go_on, env=model.env, policy=model.policy))  # type: ignore[arg-type]

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        Save the model whole, with its statistics and replay buffer.

        :param model: that was trained
        """
        path = Path(self.save_path) / f"{self.env_name}.zip"
        checkpoints.save(model, path)
        print(f"Saved to {path}")
        if self.save_replay_buffer and hasattr(model, "save_replay_buffer"):
            with checkpoints.replacing(Path(self.save_path) / "replay_buffer.pkl") as temporary:
                model.save_replay_buffer(temporary)

    # -- searching -----------------------------------------------------------------------------------------------------

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train with sampled hyper-parameters.

        :param trial: of the study
        :return: mean return over the fixed tasks
        """
        try:
            return super().objective(trial)
        except FloatingPointError as error:  # how PPO_L2ER reports a NaN
            print(f"Trial {trial.number}: {error}")
            raise optuna.exceptions.TrialPruned() from error

    def hyperparameters_optimization(self) -> None:
        """
        Search, keeping the entry's ``policy_kwargs`` that a trial does not sample.

        :raises UsageError: for a storage that cannot be used, or if no trial came to its end
        """
        base = self._hyperparams.get("policy_kwargs") or {}
        sampler = HYPERPARAMS_SAMPLER[self.algo]

        def sample(*arguments: Any) -> dict[str, Any]:
            return _update({"policy_kwargs": base}, sampler(*arguments))

        with mock.patch.dict(HYPERPARAMS_SAMPLER, {self.algo: sample}):
            try:
                super().hyperparameters_optimization()
            except ValueError as error:
                if "No trials are completed" not in str(error):
                    raise
                raise UsageError("no trial came to its end: all failed or were pruned") from error
            except STORAGE_ERRORS as error:
                raise UsageError(f"--storage {self.storage}: {error}") from error


def _update(entry: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Put hyper-parameters above an entry's; mappings of keywords are joined."""
    joined = {
        key: entry[key] | above[key]
        for key in ("policy_kwargs", "env_kwargs", "eval_env_kwargs")
        if isinstance(entry.get(key), dict) and isinstance(above.get(key), dict)
    }
    return entry | above | joined
