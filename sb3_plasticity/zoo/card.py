"""``sb3-plasticity card``: a trained agent as a folder for the Hugging Face Hub, and back."""

import argparse
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_plasticity.envs import has_clock
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.evaluation import fixed_tasks
from sb3_plasticity.zoo.folder import file_name, make_new, numbered
from sb3_plasticity.zoo.hub import CLIP, Score, find_model, overall, read_repository, repository_name, write_repository
from sb3_plasticity.zoo.options import whole
from sb3_plasticity.zoo.record_video import film
from sb3_plasticity.zoo.trained_agent import TrainedAgent, add_agent_options, load_agent, make_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    add_agent_options(parser)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder to write (default: the run's hub/<algo>-<env>)")
    add("--n-episodes", type=whole(1), default=5, help="episodes to score each task with (default: 5)")
    add("--load", action="store_true", help="RUN is a folder from the Hub: make it a run in the log folder")


def run(options: argparse.Namespace) -> int:
    """
    Write an agent's folder for the Hub, or turn one into a run; nothing is uploaded or downloaded.

    :param options: of the command line
    :return: exit status
    :raises UsageError: for an agent that is not there, or a folder that is
    """
    if options.load:
        return _load(options)
    if options.out is not None and options.out.exists():
        raise UsageError(f"--out {options.out}: must be a folder that does not exist yet")
    shown = load_agent(options, render_mode=None)
    name = repository_name(shown.spec)
    try:
        scores = list(_scores(shown, options))
    finally:
        shown.env.close()
    target = make_new(numbered(shown.path.parent / "hub" / name if options.out is None else options.out))
    try:
        write_repository(target, shown.path, shown.spec, type(shown.model).__name__, scores, shown.deterministic)
        if not options.no_render:
            filmed = load_agent(options, render_mode="rgb_array")
            film(filmed, target / CLIP, options.n_timesteps)
    except BaseException:
        shutil.rmtree(target)  # half a folder would be uploaded as if it were whole
        raise
    mean, deviation = overall(scores)
    for score in scores if len(scores) > 1 else ():
        print(f"{score.task}: return {score.mean:.2f} +/- {score.deviation:.2f}")
    print(f"Return {mean:.2f} +/- {deviation:.2f}")
    print(f"Written to {target}; to share it: hf upload USER/{name} {target}")
    return 0


def _scores(shown: TrainedAgent, options: argparse.Namespace) -> Iterator[Score]:
    env = shown.env
    if not has_clock(env):
        yield _score(shown, "", options.n_episodes)
        return
    fixed = fixed_tasks(env, shown.spec.eval_tasks if options.task is None else [options.task])
    if fixed.env_kwargs:
        env.close()
        options = argparse.Namespace(
            **{**vars(options), "env_kwargs": {**(options.env_kwargs or {}), **fixed.env_kwargs}}
        )
        shown.env, _ = make_world(shown.path, shown.spec, options)
    for index, label in zip(fixed.indices, fixed.labels, strict=True):
        shown.env.env_method("set_task", index)
        yield _score(shown, label, options.n_episodes)


def _score(shown: TrainedAgent, task: str, n_episodes: int) -> Score:
    returns, _ = evaluate_policy(
        shown.model, shown.env, n_episodes, deterministic=shown.deterministic, return_episode_rewards=True
    )
    return Score(task, float(np.mean(returns)), float(np.std(returns)), np.size(returns))


def _load(options: argparse.Namespace) -> int:
    if options.run is None:
        raise UsageError("--load: RUN must be a folder from the Hub")
    source = Path(options.run)
    _, algo, env_id = find_model(source)
    name = Path(options.folder) / algo / file_name(env_id)
    target = make_new(name.with_name(f"{name.name}_{number}") for number in itertools.count(1))
    try:
        read_repository(source, target)
    except BaseException:
        shutil.rmtree(target)
        raise
    print(f"Run: {target}; to watch it: sb3-plasticity enjoy {target}")
    return 0
