"""A trained agent and the world it is shown in: what ``enjoy``, ``record_video`` and ``benchmark`` have in common."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from rl_zoo3 import get_latest_run_id
from rl_zoo3.utils import EnvironmentName
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_plasticity.envs import has_clock
from sb3_plasticity.zoo import checkpoints, config
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import UsageError, mistakes_in
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.folder import RunFolder, file_name, step_of
from sb3_plasticity.zoo.options import StoreValues, check_known
from sb3_plasticity.zoo.spec import RunSpec

# Of an entry, what makes the world that its agent sees.
OF_THE_WORLD = ("env_wrapper", "frame_stack", "normalize", "vec_env_wrapper")


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a trained agent and the world it is shown in to a command's parser."""
    add = parser.add_argument
    add("run", nargs="?", help="folder of a run, or a saved model in one, instead of --algo, --env, -f and --exp-id")
    add("--algo", default="ppo", help="algorithm (default: ppo)")
    add("--env", default="CartPole-v1", help="environment id (default: CartPole-v1)")
    add("-f", "--folder", default="logs", help="log folder (default: logs)")
    add("--exp-id", type=int, default=0, help="number of the run (default: 0, the latest; -1: no folder of its own)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="the best model instead of the last one")
    which.add_argument("--load-checkpoint", type=whole(0), metavar="STEP", help="the checkpoint of this step")
    which.add_argument("--load-last-checkpoint", action="store_true", help="the newest checkpoint")
    add("-n", "--n-timesteps", type=whole(1), default=1000, help="steps (default: 1000)")
    add("--n-envs", type=whole(1), default=1, help="environments (default: 1)")
    add("--task", type=whole(0), help="index of the task to show (default: follow the clock)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--deterministic", action="store_true", help="the most probable actions (default, but for Atari)")
    how.add_argument("--stochastic", action="store_true", help="sample the actions")
    add("--seed", type=whole(0), default=0, help="seed of the environments (default: 0)")
    add("--device", default="auto", help="PyTorch's device (default: auto)")
    add("--num-threads", type=whole(1, [-1]), default=-1, help="threads of PyTorch (default: -1, its own choice)")
    add("--no-render", action="store_true", help="do not render")
    add("--norm-reward", action="store_true", help="show the normalised rewards of a run that normalises them")
    add("--verbose", type=int, default=1, help="0 does not print the episodes (default: 1)")
    add("--gym-packages", nargs="+", default=[], help="packages that register further environments")
    add("--env-kwargs", nargs="+", action=StoreValues, help="keyword arguments of the environment, as key:value")
    add("--custom-objects", action="store_true", help=argparse.SUPPRESS)  # rl-zoo's; always on
    add("-P", "--progress", action="store_true", help="show a progress bar")


@dataclass
class TrainedAgent:
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
        :yields: rewards, ends of episodes and infos of each step
        """
        observations: Any = self.env.reset()
        states, starts = None, np.ones(self.env.num_envs, dtype=bool)
        for _ in range(n):
            actions, states = self.model.predict(
                observations, state=states, episode_start=starts, deterministic=self.deterministic
            )
            observations, rewards, starts, infos = self.env.step(actions)
            yield rewards, starts, infos


def load_agent(options: argparse.Namespace, *, render_mode: str | None, reward_log: str = "") -> TrainedAgent:
    """
    Load the agent that the options choose, and make the world it is shown in.

    :param options: of :func:`add_agent_options`
    :param render_mode: of the environments
    :param reward_log: folder for the returns of their episodes; empty for none
    :return: both
    :raises UsageError: if there is no such agent, or it cannot be shown so
    """
    path = model_path(options)
    spec = spec_of(path, options)
    check_known(spec.algo, spec.env_id, [*spec.gym_packages, *options.gym_packages])
    data = checkpoints.read_checkpoint(path)
    set_random_seed(options.seed)
    if options.num_threads > 0:
        th.set_num_threads(options.num_threads)
    with mistakes_in(path):
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
    sampled = Experiment.is_atari(spec.env_id) or Experiment.is_minigrid(spec.env_id)
    deterministic = options.deterministic or not (options.stochastic or sampled)
    return TrainedAgent(path, spec, model, env, task, deterministic)


def model_path(options: argparse.Namespace) -> Path:
    """
    Find the model that the options choose.

    :param options: of :func:`add_agent_options`
    :return: the zip file
    :raises UsageError: if it is not there, with what is
    """
    name = file_name(options.env)
    if options.run is not None:
        folder = RunFolder(options.run)
        if folder.path.suffix == ".zip":
            return folder.path
    else:
        base = Path(options.folder) / options.algo
        number = options.exp_id or get_latest_run_id(str(base), EnvironmentName(name))
        if number == 0:
            raise UsageError(f"{base}: there is no run of {options.env}")
        folder = RunFolder(base / f"{name}_{number}" if number > 0 else base)
    if not folder.path.is_dir():
        raise UsageError(f"{folder.path}: there is no such folder")
    if options.load_best:
        path = folder.path / "best_model.zip"
    elif options.load_checkpoint is not None:
        path = folder.checkpoint(options.load_checkpoint)
    elif options.load_last_checkpoint:
        path = folder.last_checkpoint() or folder.checkpoint(0)
    else:
        path = folder.model if options.run is not None else folder.path / f"{name}.zip"
    if not path.is_file():
        steps = ", ".join(str(step_of(one)) for one in reversed(folder.checkpoints()))
        there = f"; there are checkpoints, for --load-checkpoint, of steps {steps}" if steps else ""
        raise UsageError(f"{path}: there is no such model{there}")
    return path


def spec_of(path: Path, options: argparse.Namespace) -> RunSpec:
    """
    Say what the run of a model is.

    :param path: of the model
    :param options: algorithm and environment of a model that lies in no run's folder
    :return: the specification; of rl-zoo's own folders what their files hold of it
    """
    folder = RunFolder(path.parent)
    if folder.begun:
        return RunSpec.of(folder)
    given = folder.description()
    return RunSpec(
        algo=str(given.get("algo") or options.algo),
        env_id=str(given.get("env_id") or options.env),
        seed=int(given.get("seed") or 0),
        n_timesteps=max(int(given.get("n_timesteps") or 0), 0),
        hyperparams=given.get("hyperparams", {}),
    )


def make_world(
    path: Path, spec: RunSpec, options: argparse.Namespace, render_mode: str | None = None, reward_log: str = ""
) -> tuple[VecEnv, str]:
    """
    Make the environments that a run's agent acts in, in the task that the options choose.

    :param path: of the model, whose normalisation statistics count
    :param spec: of the run
    :param options: of :func:`add_agent_options`
    :param render_mode: of the environments
    :param reward_log: folder for the returns of their episodes; empty for none
    :return: the environments, and name and value of the task
    :raises UsageError: if there are no statistics where there should be, or no such task
    """
    config.check_env_kwargs(options.env_kwargs or {}, spec.env_id, "--env-kwargs")
    env_kwargs = {**(spec.hyperparams.get("env_kwargs") or {}), **(options.env_kwargs or {})}
    if render_mode is not None:
        env_kwargs["render_mode"] = render_mode
        if "show_task" in config.environment_arguments(spec.env_id):
            env_kwargs.setdefault("show_task", True)
    entry = {key: spec.hyperparams[key] for key in OF_THE_WORLD if spec.hyperparams.get(key)}
    if checkpoints.statistics_path(path).is_file():  # also of a model whose run is not known
        entry["normalize"] = True
    experiment = Experiment(
        replace(spec, hyperparams={**entry, "env_kwargs": env_kwargs}, vec_env="dummy"), path.parent, path
    )
    experiment.seed, experiment.save_path = options.seed, reward_log
    env = experiment.create_envs(options.n_envs, no_log=not reward_log)
    if (statistics := unwrap_vec_normalize(env)) is not None:
        statistics.training, statistics.norm_reward = False, options.norm_reward
    if not has_clock(env):
        if options.task is not None:
            raise UsageError(f"--task {options.task}: {spec.env_id} has no tasks")
        return env, ""
    if options.task is not None:
        env.env_method("set_task", options.task)
    task = env.get_attr("clock")[0].due()
    parameter = env.get_attr("parameter")[0] if env.has_attr("parameter") else None
    return env, f"Task {task.index}: {getattr(parameter, 'name', 'value')} {task.value:.4g}"
