"""
Train PPO_L2ER on SlipperyAnt through several changes of friction and plot the results: ``make demo``.

All data in the figure come from the files that any run writes: SB3's ``progress.csv`` and the saved spectra.
"""

import argparse
from datetime import datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.logger import configure

from sb3_plasticity import PPO_L2ER, CurvatureCallback, load_spectra, make_nonstationary_vec_env
from sb3_plasticity.curvature.plots import plot_density
from sb3_plasticity.ppo_l2er.presets import preset_arguments, read_presets

# The preset explores with a standard deviation of exp(-1), which suits runs of millions of steps. In a run of minutes,
# an ant that explores less learns to walk sooner.
POLICY = {"log_std_init": -2.0}
# The return is the mean of this many episodes. Their number is small so that the return follows the frictions.
WINDOW = 20
# 100 Lanczos steps resolve these Hessians down to eigenvalues of about 1; the bars in the figure show the uncertainty.
EPSILON = 1.0


def train(folder: Path, steps: int, period: int, seed: int) -> None:
    """
    Train one agent and leave its logs in a folder.

    :param folder: for TensorBoard events, ``progress.csv``, spectra and the model
    :param steps: environment steps
    :param period: of them from one friction to the next
    :param seed: of everything
    """
    preset = read_presets()["SlipperyAnt-v0"]
    schedule = {"kind": "log_uniform", "low": 0.1, "high": 2.0, "period": period, "seed": seed}
    env = make_nonstationary_vec_env("SlipperyAnt-v0", preset["n_envs"], seed=seed, env_kwargs={"schedule": schedule})
    arguments = preset_arguments(preset) | {"policy_kwargs": POLICY, "stats_window_size": WINDOW}
    model = PPO_L2ER(env=env, seed=seed, **arguments)
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    model.learn(steps, callback=CurvatureCallback(), progress_bar=True)
    model.save(folder / "model.zip")


def draw(folder: Path) -> Path:
    """
    Draw a run: return, friction, effective rank and epsilon-rank over steps, and the spectra at the task starts.

    :param folder: as :func:`train` leaves it
    :return: the picture
    """
    log = pd.read_csv(folder / "progress.csv")
    spectra = load_spectra(folder / "curvature", epsilon=(EPSILON,))
    starts = spectra[spectra.phase == "start"]
    steps = log["time/total_timesteps"]
    boundaries = sorted(starts.step[starts.task_index > 0].unique())

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    figure.suptitle(f"PPO_L2ER on SlipperyAnt through {len(boundaries)} changes of friction")
    left, right = figure.subfigures(1, 2, squeeze=False)[0]
    panels = list(left.subplots(4, 1, sharex=True))
    rewards, friction, erank, epsilon_rank = panels
    rewards.plot(steps, log["rollout/ep_rew_mean"], color="C0")
    rewards.axhline(1000, color="grey", lw=0.8, ls=":")
    rewards.annotate("standing still", (0.99, 1000), xycoords=("axes fraction", "data"), ha="right", va="top", size=8)
    rewards.set_ylabel(f"mean return of\nlast {WINDOW} episodes")
    friction.step(steps, log["task/value"], where="pre", color="black")
    friction.set_yscale("log")
    friction.set_yticks([0.1, 0.3, 1.0], ["0.1", "0.3", "1"])
    friction.set_yticks([], minor=True)
    friction.set_ylabel("friction")
    for network, color in (("policy", "C1"), ("value", "C2")):
        erank.plot(steps, log[f"train/erank_{network}"], color=color, label=network)
        for kind, style in (("ggn", "o-"), ("hessian", "s--")):
            rows = starts[(starts.network == network) & (starts.kind == kind)]
            label = f"{network} {'GGN' if kind == 'ggn' else 'Hessian'}"
            name = f"epsilon_rank_{EPSILON:g}"
            bars = np.stack([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]).clip(min=0)
            epsilon_rank.errorbar(
                rows.step, rows[name], bars, fmt=style, color=color, label=label, ms=4, capsize=2, lw=1
            )
    erank.set_ylabel("effective rank\nof the features")
    erank.legend(loc="center right", fontsize=8)
    epsilon_rank.set_ylabel(f"$\\epsilon$-rank at task starts\n$\\epsilon$ = {EPSILON:g}")
    epsilon_rank.set_ylim(0, 1.6 * starts[f"epsilon_rank_{EPSILON:g}"].max())
    epsilon_rank.legend(loc="upper left", fontsize=7, ncols=4)
    epsilon_rank.set_xlabel("environment steps")
    epsilon_rank.locator_params(axis="x", nbins=5)
    for panel in panels:
        panel.set_xlim(0, steps.max())
        for boundary in boundaries:
            panel.axvline(boundary, color="grey", lw=0.8, ls="--", alpha=0.7)
    for axes, network, title in zip(
        right.subplots(2, 1), ("policy", "value"), ("Policy", "Value network"), strict=True
    ):
        draw_spectra(axes, starts, network, "hessian", f"{title}: Hessian at the start of each task")
    path = folder / "picture.png"
    figure.savefig(path, dpi=130)
    return path


def draw_spectra(axes: Axes, starts: pd.DataFrame, network: str, kind: str, title: str) -> None:
    """
    Draw the spectra at the task starts, a line for each task.

    :param axes: where
    :param starts: rows of ``load_spectra``
    :param network: ``"policy"`` or ``"value"``
    :param kind: ``"ggn"`` or ``"hessian"``
    :param title: of the panel
    """
    rows = starts[(starts.network == network) & (starts.kind == kind)]
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(rows), 2)))
    for color, (_, row) in zip(colors, rows.iterrows(), strict=False):
        plot_density(
            axes,
            row.spectrum,
            linear=EPSILON / 10,
            color=color,
            lw=1,
            label=f"task {row.task_index}, friction {row.task_value:.2f}",
        )
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=238_000, help="environment steps")
    parser.add_argument("--period", type=int, default=40_000, help="steps from one friction to the next")
    parser.add_argument("--seed", type=int, default=0, help="of the frictions, the environments and the agent")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the run's folder is made")
    arguments = parser.parse_args()
    folder = arguments.out / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    print(f"PPO_L2ER on SlipperyAnt-v0: {arguments.steps:,} steps, a new friction every {arguments.period:,}")
    train(folder, arguments.steps, arguments.period, arguments.seed)
    print(f"TensorBoard: .venv/bin/tensorboard --logdir {folder}")
    print(f"Model:       {folder / 'model.zip'}")
    print(f"Picture:     {draw(folder)}")
    last = pd.read_csv(folder / "progress.csv")["rollout/ep_rew_mean"].iloc[-1]
    print(f"Return:      {last:,.0f} at the end; standing still earns about 1,000")


if __name__ == "__main__":
    main()
