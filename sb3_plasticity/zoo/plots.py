"""``sb3-plasticity plots``: pictures of returns."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from sb3_plasticity.common.files import numbered
from sb3_plasticity.envs.rendering import has_display
from sb3_plasticity.zoo.commands import whole
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder, read_table

OF_RL_ZOO = {
    "all_plots": "learning curves of several algorithms and environments, from their evaluations (rl-zoo's)",
    "plot_from_file": "rl-zoo's figures of a file that all_plots wrote",
}
X_AXES = {"steps": "Steps", "episodes": "Episodes", "time": "Hours"}
# Columns of a monitor file and of a timeline of ours.
Y_AXES = {"reward": ("r", "return"), "length": ("l", "length"), "success": ("is_success", "")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands and their options to the command's parser."""
    commands = parser.add_subparsers(metavar="PLOT", required=True, dest="plot", title="plots")
    train = commands.add_parser("plot_train", help="returns of training, smoothed", description="Returns of training.")
    add = train.add_argument
    add("-a", "--algo", required=True, help="algorithm")
    add("-e", "--env", nargs="+", required=True, help="environment ids, or parts of runs' names")
    add("-f", "--exp-folder", default="logs", help="log folder (default: logs)")
    add("-o", "--output", help="file of the figure (default: shown, without a display plot_train.png)")
    add("-x", "--x-axis", choices=list(X_AXES), default="steps", help="(default: steps)")
    add("-y", "--y-axis", choices=list(Y_AXES), default="reward", help="(default: reward)")
    add("-w", "--episode-window", type=whole(1), default=100, help="episodes in a point's mean (default: 100)")
    add("-max", "--max-timesteps", type=whole(1), help="steps shown")
    add("--figsize", nargs=2, type=float, default=[6.4, 4.8], help="inches")
    add("--fontsize", type=whole(1), default=14, help="(default: 14)")
    for name, text in OF_RL_ZOO.items():
        other = commands.add_parser(name, help=text, description=text, add_help=False, prefix_chars="\0")
        other.add_argument("arguments", nargs=argparse.REMAINDER)


def run(options: argparse.Namespace) -> int:
    """Draw: the returns of training ourselves, all else by rl-zoo in a process of its own."""
    if options.plot == "plot_train":
        return _plot_train(options)
    display = {} if has_display() else {"MPLBACKEND": "Agg"}
    code = f"from rl_zoo3.plots import {options.plot} as run; run()"
    process = subprocess.run(
        [sys.executable, "-c", code, *options.arguments], env=os.environ | display, stderr=subprocess.PIPE, text=True
    )
    lines = process.stderr.strip().splitlines()
    if process.returncode:
        raise UsageError(f"plots {options.plot}: {lines[-1] if lines else process.returncode}")
    return 0


def _plot_train(options: argparse.Namespace) -> int:
    """Draw what training returned, run by run."""
    base = Path(options.exp_folder) / options.algo
    folders = sorted(path for path in base.glob("*") if path.is_dir() and any(env in path.name for env in options.env))
    if not folders:
        raise UsageError(f"{base}: there is no run of {', '.join(options.env)}")
    window = options.episode_window
    figure, axes = plt.subplots(figsize=options.figsize, layout="constrained")
    for folder in folders:
        curve = _curve(RunFolder(folder), options.x_axis, options.y_axis)
        if options.x_axis == "steps" and options.max_timesteps:
            curve = curve[curve.index <= options.max_timesteps]
        if len(curve) < window:
            print(f"{folder.name}: {len(curve)} episodes, fewer than -w {window}: left out")
        else:
            curve.rolling(window).mean().plot(ax=axes, label=folder.name)
    if not axes.lines:
        raise UsageError(f"{base}: no run has {window} episodes; take fewer with -w")
    axes.set_xlabel(X_AXES[options.x_axis], fontsize=options.fontsize)
    axes.set_ylabel(f"Training episode's {options.y_axis}", fontsize=options.fontsize)
    axes.legend()
    if options.output is None and has_display():
        plt.show()
    else:
        names = [Path(options.output)] if options.output else numbered(Path("plot_train.png"))
        path = next((name for name in names if not name.exists()), None)
        if path is None:
            raise UsageError(f"--output {options.output}: this file exists, and is not overwritten")
        figure.savefig(path, dpi=130)
        print(f"Figure: {path}")
    plt.close(figure)
    return 0


def _curve(folder: RunFolder, x_axis: str, y_axis: str) -> pd.Series:
    """Read a run of ours as one timeline, one of rl-zoo's from its monitor files."""
    episodes, (column, ours) = folder.episodes(), Y_AXES[y_axis]
    if len(episodes) and ours and x_axis != "time":
        column, places = ours, {"steps": episodes.step}
    else:
        tables = [read_table(path) for path in sorted(folder.path.glob("*.monitor.csv"))]
        rows = [table for table in tables if {column, "l", "t"} <= set(table)]
        if not rows:
            return pd.Series(dtype=float)
        episodes = pd.concat(rows).sort_values("t", kind="stable")
        places = {"steps": episodes.l.cumsum(), "time": episodes.t / 3600}
    places["episodes"] = pd.Series(range(1, len(episodes) + 1))
    return episodes[column].set_axis(places[x_axis].to_numpy())
