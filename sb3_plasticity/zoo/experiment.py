"""rl_zoo3's experiment manager, for worlds that change and runs that get killed."""

import argparse
import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from sb3_contrib.common.vec_env import AsyncEval
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
from sb3_plasticity.common.checks import check_choice
from sb3_plasticity.envs import has_clock
from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.mitigations.callback import MitigationCallback
from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER
from sb3_plasticity.vec_env import MujocoBatchVecEnv
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.evaluation import Evaluation, FixedTasks, episodes_for, fixed_tasks
from sb3_plasticity.zoo.overview import OverviewCallback
from sb3_plasticity.zoo.spec import RunSpec

VEC_ENVS = ("auto", "batch", "dummy", "subproc")


class Experiment(ExperimentManager):
    """
    What a run is made of: environments, agent and callbacks, from its specification.

    rl_zoo3's ``ExperimentManager`` reads the hyper-parameters; what it makes of them here are environments stepped in a
    batch where results are equal, two evaluations, and the agent and the statistics of the very checkpoint that a run
    resumes from.

    :param spec: of the run
    :param folder: for what evaluations keep
    :param checkpoint: that the run resumes from, if it does
    :param verbose: 1 lets the agent print its log
    :param search: rl_zoo3's options of a hyper-parameter search
    :raises UsageError: for hyper-parameters that cannot be used
    """

    def __init__(
        self, spec: RunSpec, folder: Path, checkpoint: Path | None = None, verbose: int = 0, **search: Any
    ) -> None:
        self.start = 0 if checkpoint is None else checkpoints.steps_in(checkpoint) or 0
        super().__init__(
            argparse.Namespace(),
            spec.algo,
            spec.env_id,
            log_folder=str(folder),
            n_timesteps=spec.n_timesteps,
            n_eval_episodes=spec.eval_episodes,
            n_eval_envs=spec.n_eval_envs,
            trained_agent="" if checkpoint is None else str(checkpoint),
            truncate_last_trajectory=spec.truncate_last_trajectory,
            seed=seed_at(spec.seed, self.start),
            verbose=0,  # of rl_zoo3's own remarks
            device=spec.device,
            **search,
        )
        self._made: list[VecEnv] = []
        self.spec = spec
        self.folder = folder
        entry = config.parse_entry(spec.hyperparams, spec.env_id)
        env_kwargs = dict(entry.pop("env_kwargs", None) or {})
        eval_env_kwargs = env_kwargs | dict(entry.pop("eval_env_kwargs", None) or {})
        in_entry = {key: entry.pop(key, None) for key in ("eval_tasks", "vec_env", "mitigations")}
        self.eval_tasks: list[int] | None = in_entry["eval_tasks"] if spec.eval_tasks is None else spec.eval_tasks
        self.mitigations = in_entry["mitigations"]
        # also where rl_zoo3 would keep a schedule of this length
        entry["n_timesteps"] = spec.n_timesteps
        self._hyperparams, self.env_wrapper, self.yaml_callbacks, self.vec_env_wrapper = self._preprocess_hyperparams(
            entry
        )
        self.env_kwargs, self.eval_env_kwargs = env_kwargs, eval_env_kwargs
        self.verbose = verbose
        wanted = spec.vec_env if spec.vec_env != "auto" or not in_entry["vec_env"] else in_entry["vec_env"]
        self.vec_env = self._choose_vec_env(wanted)

    def _choose_vec_env(self, wanted: str) -> str:
        """Choose a batch of simulations where its results are those of single environments."""
        check_choice("vec_env", wanted, VEC_ENVS)
        if wanted in ("dummy", "subproc"):
            return wanted
        try:
            if self.env_wrapper is not None or self.monitor_kwargs:
                raise NotBatchableError("env_wrapper and monitor_kwargs need single environments")
            for env_kwargs in (self.env_kwargs, self.eval_env_kwargs):
                MujocoBatchVecEnv(self.spec.env_id, 1, **env_kwargs).close()
        except NotBatchableError as error:
            if wanted == "batch":
                raise UsageError(f"--vec-env batch: {error}; take dummy or subproc") from error
            return "dummy"
        return "batch"

    # -- environments --------------------------------------------------------------------------------------------------

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = True) -> VecEnv:
        """
        Create environments.

        :param n_envs: their number
        :param eval_env: whether they are for evaluation
        :param no_log: whether they write no monitor files to ``save_path``; in training a callback writes the episodes
        :return: the environments
        """
        if self.vec_env == "batch":
            self.vec_env_class = functools.partial(  # type: ignore[assignment]
                _batch,
                env_id=self.spec.env_id,
                n_threads=max(self.spec.num_threads, 0),
                env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
            )
        else:
            self.vec_env_class = SubprocVecEnv if self.vec_env == "subproc" else DummyVecEnv
        self._made.append(env := super().create_envs(n_envs, eval_env, no_log))
        return env

    def create_fixed_envs(self) -> tuple[VecEnv, FixedTasks] | None:
        """
        Create an environment for each task of a fixed set, which stays in it.

        :return: environments and tasks; None if these environments have no tasks
        :raises UsageError: if tasks were asked for and there are none
        """
        probe = self.create_envs(1, eval_env=True)
        if not has_clock(probe):
            if self.eval_tasks is not None:
                raise UsageError(f"--eval-tasks: {self.spec.env_id} has no tasks")
            return None
        tasks = fixed_tasks(probe, self.eval_tasks)
        kwargs = self.eval_env_kwargs
        self.eval_env_kwargs = kwargs | tasks.env_kwargs
        try:
            envs = self.create_envs(len(tasks.indices), eval_env=True)
        finally:
            self.eval_env_kwargs = kwargs
        for i, index in enumerate(tasks.indices):
            envs.env_method("set_task", index, indices=i)
        return envs, tasks

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.continue_training:
            path = checkpoints.statistics_path(Path(self.trained_agent))
            if self.normalize and not path.is_file():
                raise UsageError(f"{path}: the normalisation statistics of {self.trained_agent} are missing")
            if not self.normalize and path.is_file():
                raise UsageError(f"normalize is missing: {self.trained_agent} was trained with {path.name}")
            if self.normalize:
                env = VecNormalize.load(str(path), env)
        elif self.normalize:
            env = VecNormalize(env, **self.normalize_kwargs)
        if eval_env and isinstance(env, VecNormalize):
            env.training = env.norm_reward = False
        return env

    def close(self) -> None:
        """Close every environment that was made."""
        for env in self._made:
            with contextlib.suppress(EOFError):  # of a process that ended before
                env.close()
        self._made.clear()

    # -- the agent -----------------------------------------------------------------------------------------------------

    def make_model(self, above: Mapping[str, Any] | None = None) -> BaseAlgorithm:
        """
        Make the agent, or load the one that a run resumes from.

        :param above: hyper-parameters above the entry's
        :return: the agent, with its environments
        """
        algorithm = ALGOS[self.algo]
        if self.continue_training:
            self._check_checkpoint()
        env = self.create_envs(1 if self.algo == "ars" else self.n_envs)
        hyperparams = self._preprocess_action_noise(dict(self._hyperparams), {}, env)
        if not self.continue_training:
            arguments = config.merged(hyperparams, above or {})
            return algorithm(env=env, seed=self.seed, verbose=self.verbose, device=self.device, **arguments)
        replay_buffer = Path(self.trained_agent).with_name("replay_buffer.pkl")
        if hasattr(algorithm, "load_replay_buffer") and not replay_buffer.exists():
            print(f"No {replay_buffer.name}: the replay buffer starts empty")
        return self._load_pretrained_agent({"policy": None, **hyperparams}, env)

    def _check_checkpoint(self) -> None:
        path, algorithm = Path(self.trained_agent), ALGOS[self.algo]
        data = checkpoints.read_checkpoint(path)
        policy, known = data["policy_class"], tuple(set(algorithm.policy_aliases.values()))
        missing = {"clip_range", "n_epochs"} - set(data) if issubclass(algorithm, PPO_L2ER) else set()
        if missing or (known and isinstance(policy, type) and not issubclass(policy, known)):
            name = getattr(policy, "__name__", policy)
            raise UsageError(f"{path}: not a checkpoint of {self.algo}: its policy is a {name}")

    # -- training ------------------------------------------------------------------------------------------------------

    def make_callbacks(self) -> list[BaseCallback]:
        """
        Make what the entry asks for: the task clock, the overview, mitigations and the YAML's own callbacks.

        :return: callbacks in their order; the clock first, so that the others of a step see the right task
        """
        clock = [] if any(isinstance(one, TaskSyncCallback) for one in self.yaml_callbacks) else [TaskSyncCallback()]
        mitigations = [MitigationCallback(self.mitigations)] if self.mitigations else []
        return [*clock, OverviewCallback(self.spec), *mitigations, *self.yaml_callbacks]

    def make_evaluations(self) -> list[BaseCallback]:
        """
        Make the evaluations: in the task that training is in, and on the fixed tasks, where there are any.

        :return: callbacks; ``best_model.zip`` and ``evaluations.npz`` come from the fixed tasks
        """
        if self.spec.eval_freq <= 0 and self.eval_tasks is None:
            return []
        fixed = self.create_fixed_envs()
        if self.spec.eval_freq <= 0:
            return []
        n_episodes = self.n_eval_episodes
        # in a batch an episode each costs hardly more than one
        together = self.vec_env == "batch" and self.n_eval_envs == 1
        current = self.create_envs(n_episodes if together else self.n_eval_envs, eval_env=True)

        def make(envs: VecEnv, prefix: str, record: str, n_episodes: int, **options: Any) -> Evaluation:
            options |= {"n_eval_episodes": n_episodes, "deterministic": self.deterministic_eval, "start": self.start}
            freq = max(self.spec.eval_freq // self.n_envs, 1)
            return Evaluation(envs, prefix, self.folder / record, eval_freq=freq, **options)

        judging: dict[str, Any] = {"best_model": self.folder / "best_model.zip", "verbose": self.verbose}
        if fixed is None:
            return [make(current, "eval", "evaluations.npz", n_episodes, **judging)]
        envs, tasks = fixed
        n_fixed = episodes_for(envs.num_envs, n_episodes)
        return [
            make(current, "eval", "evaluations_current_task.npz", n_episodes, verbose=0),
            make(envs, "eval_fixed", "evaluations.npz", n_fixed, labels=tasks.labels, **judging),
        ]

    def train(self, model: BaseAlgorithm, callbacks: list[BaseCallback], progress: bool = False) -> None:
        """
        Train to the run's total number of steps.

        :param model: as made
        :param callbacks: in their order; all of them see the end of training, whatever ends it
        :param progress: whether to show a progress bar
        :raises BaseException: whatever ended training early, once the callbacks have seen its end
        """
        options: dict[str, Any] = {"progress_bar": progress, "reset_num_timesteps": self.start == 0}
        if self.spec.log_interval != -1:
            options["log_interval"] = self.spec.log_interval if self.spec.log_interval > 0 else None
        if self.algo == "ars" and self.n_envs > 1:
            makers = [functools.partial(self.create_envs, 1) for _ in range(self.n_envs)]
            options["async_eval"] = AsyncEval(makers, model.policy)  # type: ignore[arg-type]
        together = CallbackList(callbacks)
        try:
            model.learn(self.n_timesteps - self.start, callback=together, **options)
        except BaseException:
            if together.num_timesteps or together.locals:
                together.on_training_end()
            raise


def seed_at(seed: int, step: int) -> int:
    """
    Choose the seed of a run that is resumed: the noise of its beginning must not be drawn again.

    :param seed: of the run
    :param step: it resumes from
    :return: the run's own seed at step 0
    """
    return seed if step == 0 else int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _batch(env_fns: list[Any], *, env_id: str, n_threads: int, env_kwargs: dict[str, Any]) -> MujocoBatchVecEnv:
    """Make a batch of simulations where SB3's ``make_vec_env`` would make single ones, and seed it."""
    return MujocoBatchVecEnv(env_id, len(env_fns), n_threads=n_threads, **env_kwargs)
