"""A trained agent and the world it is shown in."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rl_zoo3 import create_test_env, get_latest_run_id
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, EnvironmentName
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_plasticity.envs import has_clock
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder, file_name, step_of
from sb3_plasticity.zoo.options import check_algorithm, check_environment
from sb3_plasticity.zoo.registration import register
from sb3_plasticity.zoo.spec import RunSpec


@dataclass
class Shown:
    """
    An agent in its world.

    :param path: of the model
    :param spec: of the run that trained it
    :param model: the agent
    :param env: where it acts
    :param task: name and value of the task that is shown; empty where there are none
    :param deterministic: whether it takes the policy's mode
    """

    path: Path
    spec: RunSpec
    model: BaseAlgorithm
    env: VecEnv
    task: str
    deterministic: bool

    def steps(self, n: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
        """
        Let the agent act.

        :param n: number of steps of each environment
        :return: rewards, ends of episodes and infos of each step
        """
        observations: Any = self.env.reset()
        states, starts = None, np.ones(self.env.num_envs, dtype=bool)
        for _ in range(n):
            actions, states = self.model.predict(
                observations, state=states, episode_start=starts, deterministic=self.deterministic
            )
            observations, rewards, starts, infos = self.env.step(actions)
            yield rewards, starts, infos


def show(options: argparse.Namespace, *, render_mode: str | None, reward_log: str = "") -> Shown:
    """
    Load the agent that the options choose, and make the world it is shown in.

    :param options: of :func:`sb3_plasticity.zoo.options.add_agent_options`
    :param render_mode: of the environments
    :param reward_log: folder for the returns of their episodes; empty for none
    :return: both
    :raises UsageError: if there is no such agent, or it cannot be shown so
    """
    register()
    path = model_path(options)
    spec = spec_of(path, options)
    check_algorithm(spec.algo)
    check_environment(spec.env_id, [*spec.gym_packages, *options.gym_packages])
    data = checkpoints.read_checkpoint(path)
    set_random_seed(options.seed)
    if options.num_threads > 0:
        th.set_num_threads(options.num_threads)
    try:
        env, task = make_world(path, spec, options, render_mode, reward_log)
        # rl-zoo's: schedules of other versions need not be loadable, and a buffer is of no use here
        unused = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
        keywords: dict[str, Any] = {"seed": options.seed, "device": options.device, "custom_objects": unused}
        if issubclass(ALGOS[spec.algo], OffPolicyAlgorithm):
            keywords["buffer_size"] = 1
            if "optimize_memory_usage" in data:
                keywords["optimize_memory_usage"] = False
        if "HerReplayBuffer" in str(spec.hyperparams.get("replay_buffer_class", "")):
            keywords["env"] = env
        model = ALGOS[spec.algo].load(path, **keywords)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: {error}") from error
    sampled = ExperimentManager.is_atari(spec.env_id) or ExperimentManager.is_minigrid(spec.env_id)
    deterministic = options.deterministic or not (options.stochastic or sampled)
    return Shown(path, spec, model, env, task, deterministic)


def make_world(
    path: Path, spec: RunSpec, options: argparse.Namespace, render_mode: str | None = None, reward_log: str = ""
) -> tuple[VecEnv, str]:
    """
    Make the environments that a run's agent acts in, in the task that the options choose.

    :param path: of the model, whose normalisation statistics count
    :param spec: of the run
    :param options: of :func:`sb3_plasticity.zoo.options.add_agent_options`
    :param render_mode: of the environments
    :param reward_log: folder for the returns of their episodes; empty for none
    :return: the environments, and name and value of the task
    :raises UsageError: if there are no statistics where there should be, or no such task
    """
    env = _normalised(spec, options, path, _make_env(spec, options, render_mode, reward_log))
    return env, _choose_task(spec, options, env)


def model_path(options: argparse.Namespace) -> Path:
    """
    Find the model that the options choose.

    :param options: of :func:`sb3_plasticity.zoo.options.add_agent_options`
    :return: the zip file
    :raises UsageError: if it is not there, with what is
    """
    if options.run is not None and Path(options.run).suffix == ".zip":
        return Path(options.run)
    folder = RunFolder(_run_folder(options))
    if not folder.path.is_dir():
        raise UsageError(f"{folder.path}: there is no such folder")
    steps = sorted(step for path in folder.checkpoints() if (step := step_of(path)) is not None)
    if options.load_best:
        path = folder.path / "best_model.zip"
    elif options.load_checkpoint is not None:
        path = folder.checkpoint(options.load_checkpoint)
    elif options.load_last_checkpoint:
        path = folder.last_checkpoint() or folder.checkpoint(0)
    else:
        path = folder.model if options.run is not None else folder.path / f"{file_name(options.env)}.zip"
    if not path.is_file():
        there = (
            f"; there are checkpoints, for --load-checkpoint, of steps {', '.join(map(str, steps))}" if steps else ""
        )
        raise UsageError(f"{path}: there is no such model{there}")
    return path


def _run_folder(options: argparse.Namespace) -> Path:
    if options.run is not None:
        return Path(options.run)
    base: Path = Path(options.folder) / options.algo
    name = file_name(options.env)
    number = int(options.exp_id or get_latest_run_id(str(base), EnvironmentName(options.env)))
    if number == 0:
        raise UsageError(f"{base}: there is no run of {options.env}")
    return base / f"{name}_{number}" if options.exp_id >= 0 else base


def spec_of(path: Path, options: argparse.Namespace) -> RunSpec:
    """
    Say what the run of a model is.

    :param path: of the model
    :param options: algorithm and environment of a model that lies in no run's folder
    :return: the specification; of rl-zoo's own folders what their files hold of it
    """
    folder = RunFolder(path.parent)
    if (folder.path / "run.json").is_file():
        return RunSpec.of(folder)
    files = [folder.files / f"{name}.yml" for name in ("config", "args")]
    entry, args = (config.read_zoo_file(file) if file.is_file() else {} for file in files)
    if args.get("env_kwargs"):
        entry["env_kwargs"] = args["env_kwargs"]
    algo, env_id = str(args.get("algo") or options.algo), str(args.get("env") or options.env)
    n_timesteps = max(int(args.get("n_timesteps") or 0), 0)
    return RunSpec(
        algo=algo, env_id=env_id, seed=int(args.get("seed") or 0), n_timesteps=n_timesteps, hyperparams=entry
    )


def _make_env(spec: RunSpec, options: argparse.Namespace, render_mode: str | None, reward_log: str) -> VecEnv:
    env_kwargs = {**(spec.hyperparams.get("env_kwargs") or {}), **(options.env_kwargs or {})}
    config.check_env_kwargs(options.env_kwargs or {}, spec.env_id, "--env-kwargs")
    if render_mode is not None:
        env_kwargs["render_mode"] = render_mode
        if "show_task" in (config.environment_arguments(spec.env_id) or ()):
            env_kwargs.setdefault("show_task", True)
    entry = {key: spec.hyperparams[key] for key in ("env_wrapper", "vec_env_wrapper") if spec.hyperparams.get(key)}
    return create_test_env(
        spec.env_id,
        n_envs=options.n_envs,
        seed=options.seed,
        log_dir=reward_log or None,
        should_render=False,
        hyperparams=entry,
        env_kwargs=env_kwargs,
        stats_path=None,
    )


def _normalised(spec: RunSpec, options: argparse.Namespace, path: Path, env: VecEnv) -> VecEnv:
    """Put the statistics of this very model around its environments."""
    if spec.hyperparams.get("normalize"):
        statistics = checkpoints.statistics_path(path)
        if not statistics.is_file():
            raise UsageError(f"{statistics}: the normalisation statistics of {path} are missing")
        env = VecNormalize.load(str(statistics), env)
        env.training, env.norm_reward = False, options.norm_reward
    if n_stack := int(spec.hyperparams.get("frame_stack") or 0):
        env = VecFrameStack(env, n_stack)
    return env


def _choose_task(spec: RunSpec, options: argparse.Namespace, env: VecEnv) -> str:
    if not has_clock(env):
        if options.task is not None:
            raise UsageError(f"--task {options.task}: {spec.env_id} has no tasks")
        return ""
    if options.task is not None:
        env.env_method("set_task", options.task)
    clock = env.get_attr("clock")[0]
    task = clock.due()
    parameter = env.get_attr("parameter")[0] if env.has_attr("parameter") else None
    return f"Task {task.index}: {getattr(parameter, 'name', 'value')} {task.value:.4g}"
