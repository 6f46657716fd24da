"""``sb3-plasticity benchmark``: evaluate every trained agent of a log folder."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rl_zoo3 import get_latest_run_id, get_trained_models
from rl_zoo3.load_from_hub import download_from_hub
from rl_zoo3.utils import EnvironmentName, get_hf_trained_models

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo import enjoy
from sb3_plasticity.zoo.checkpoints import steps_in
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import read_table
from sb3_plasticity.zoo.trained_agent import model_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    add = parser.add_argument
    add("--log-dir", default="logs", help="log folder (default: logs)")
    add("--benchmark-dir", default="logs/benchmark", help="for the returns and the table (default: logs/benchmark)")
    add("-n", "--n-timesteps", type=whole(1), default=150_000, help="steps of each agent (default: 150000)")
    add("--n-envs", type=whole(1), default=1, help="environments (default: 1)")
    add("--seed", type=whole(0), default=0, help="seed of the environments (default: 0)")
    add("--num-threads", type=whole(1, [-1]), default=2, help="threads of PyTorch (default: 2)")
    add("--test-mode", action="store_true", help="evaluate only the first agent")
    add("--no-hub", action="store_true", help="evaluate only local agents, none from the Hugging Face Hub")
    add("--with-mujoco", action="store_true", help="include the Fetch environments")
    add("--verbose", type=int, default=1, help="0 prints only where the table is (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Evaluate the agents that have not been evaluated yet, and write a table of all of them."""
    here = Path(options.log_dir)
    found = dict(get_trained_models(str(here))) if here.is_dir() else {}
    if not options.no_hub:
        found |= get_hf_trained_models()
    found = {name: agent for name, agent in found.items() if options.with_mujoco or "Fetch" not in agent[1]}
    if not found:
        raise UsageError(f"--log-dir {here}: it contains no trained agent")
    rows: list[dict[str, object]] = []
    for name, (algo, env_id) in list(found.items())[: 1 if options.test_mode else None]:
        if options.verbose >= 1:
            print(f"{len(rows) + 1}/{len(found)} {algo} on {env_id}")
        try:
            rows.append(_row(options, Path(options.benchmark_dir) / str(name), algo, env_id))
        except UsageError as error:
            print(f"{name}: {error}", file=sys.stderr)
    if not rows:
        raise UsageError("no agent could be evaluated")
    table = pd.DataFrame(rows).astype(str)
    lines: list[list[str]] = [list(map(str, table)), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    path = Path(options.benchmark_dir) / "benchmark.md"
    with replacing(path) as temporary:
        temporary.write_text(f"One run each, {options.n_timesteps} steps.\n\n{text}\n", encoding="utf-8")
    print(f"Results: {path}")
    return 0


def _row(options: argparse.Namespace, log: Path, algo: str, env_id: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    enjoy.add_arguments(parser)
    given = ["--algo", algo, "--env", env_id, "-f", options.log_dir, "--no-render", "--verbose", "0"]
    given += ["--reward-log", str(log), "--seed", str(options.seed), "--num-threads", str(options.num_threads)]
    given += ["-n", str(options.n_timesteps), "--n-envs", str(options.n_envs)]
    chosen = parser.parse_args(given)
    name = EnvironmentName(env_id)
    if get_latest_run_id(str(Path(options.log_dir) / algo), name) == 0:
        download_from_hub(algo, name, 1, options.log_dir, organization="sb3", repo_name=None, force=False)
    if not any(log.glob("*.monitor.csv")):
        enjoy.run(chosen)
    episodes = pd.concat([read_table(file) for file in sorted(log.glob("*.monitor.csv"))])
    if not len(episodes):
        raise UsageError("no episode ended: take more steps (-n)")
    mean, deviation = episodes.r.mean(), np.std(episodes.r)
    if options.verbose >= 1:
        print(f"Mean reward: {mean:.2f} +/- {deviation:.2f}, {len(episodes)} episodes")
    return {
        "algo": algo,
        "env_id": env_id,
        "mean_reward": f"{mean:.3f}",
        "std_reward": f"{deviation:.3f}",
        "trained_steps": steps_in(model_path(chosen)),
        "eval_timesteps": int(episodes.l.sum()),
        "eval_episodes": len(episodes),
    }
