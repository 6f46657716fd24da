"""``sb3-plasticity card``: a trained agent as a folder for the Hugging Face Hub, and back."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.utils import ModelName
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_plasticity.common.files import make_new, numbered
from sb3_plasticity.envs import has_clock
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.evaluation import fixed_tasks
from sb3_plasticity.zoo.folder import file_name
from sb3_plasticity.zoo.hub import CLIP, read_repository, write_repository
from sb3_plasticity.zoo.record_video import film
from sb3_plasticity.zoo.trained_agent import TrainedAgent, add_agent_options, load_agent, make_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    add_agent_options(parser)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder to write (default: the run's hub/<algo>-<env>)")
    add("--n-episodes", type=whole(1), default=5, help="episodes to score each task with (default: 5)")
    add("--load", action="store_true", help="RUN is a folder from the Hub: make it a run in the log folder")


def run(options: argparse.Namespace) -> int:
    """Write an agent's folder for the Hub, or turn one into a run; nothing is uploaded or downloaded."""
    if options.load:
        if options.run is None:
            raise UsageError("--load: RUN must be a folder from the Hub")
        made = read_repository(Path(options.run), Path(options.folder))
        print(f"Run: {made}; to watch it: sb3-plasticity enjoy {made}")
        return 0
    if options.out is not None and options.out.exists():
        raise UsageError(f"--out {options.out}: must be a folder that does not exist yet")
    shown = load_agent(options, render_mode=None)
    name = ModelName(shown.spec.algo, file_name(shown.spec.env_id))
    try:
        returns = _returns(shown, options)
    finally:
        shown.env.close()
    target = make_new(numbered(shown.path.parent / "hub" / name if options.out is None else options.out))
    try:
        write_repository(target, shown, returns)
        if not options.no_render:
            film(load_agent(options, render_mode="rgb_array"), target / CLIP, options.n_timesteps)
    except BaseException:
        shutil.rmtree(target)  # half a folder would be uploaded as if it were whole
        raise
    for task, of in returns.items() if len(returns) > 1 else ():
        print(f"{task}: return {np.mean(of):.2f} +/- {np.std(of):.2f}")
    every = np.concatenate(list(returns.values()))
    print(f"Return {every.mean():.2f} +/- {every.std():.2f}")
    print(f"Written to {target}; to share it: hf upload USER/{name} {target}")
    return 0


def _returns(shown: TrainedAgent, options: argparse.Namespace) -> dict[str, Any]:
    """Run episodes in each of the fixed tasks, or in a world without any."""
    if not has_clock(shown.env):
        return {"": _evaluate(shown, options.n_episodes)}
    fixed = fixed_tasks(shown.env, shown.spec.eval_tasks if options.task is None else [options.task])
    if fixed.env_kwargs:
        shown.env.close()
        env_kwargs = {**(options.env_kwargs or {}), **fixed.env_kwargs}
        shown.env, _ = make_world(
            shown.path, shown.spec, argparse.Namespace(**{**vars(options), "env_kwargs": env_kwargs})
        )
    returns = {}
    for index, label in zip(fixed.indices, fixed.labels, strict=True):
        shown.env.env_method("set_task", index)
        returns[label] = _evaluate(shown, options.n_episodes)
    return returns


def _evaluate(shown: TrainedAgent, n_episodes: int) -> Any:
    return evaluate_policy(
        shown.model, shown.env, n_episodes, deterministic=shown.deterministic, return_episode_rewards=True
    )[0]
