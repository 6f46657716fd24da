"""
Draw the transplants of the page on SlipperyAnt: ``python docs/_scripts/draw_transplants.py``.

The data are ``docs/results/slippery_ant/transplants.csv``: means over bins of 50,000 steps of what the runs logged.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent.parent / "results" / "slippery_ant"
# colour and line style of each arm; the uninterrupted runs are solid
LOOKS = {
    "PPO": ("black", "-"),
    "PPO_L2ER": ("#0072B2", "-"),
    "PPO, new exploration": ("#D55E00", "--"),
    "PPO, new weights": ("#CC79A7", ":"),
    "PPO, new everything": ("#009E73", "-."),
}


def main() -> None:
    """Run from the command line."""
    data = pd.read_csv(FOLDER / "transplants.csv")
    tasks = sorted(data.task.unique())
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, len(tasks), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), task in zip(axes.T, tasks, strict=True):
        for arm, (colour, style) in LOOKS.items():
            rows = data[(data.task == task) & (data.arm == arm)]
            if len(rows):
                upper.plot(rows.steps / 1e6, rows.ep_rew_mean, color=colour, linestyle=style, label=arm)
                lower.plot(rows.steps / 1e6, rows["std"], color=colour, linestyle=style)
        upper.set_title(f"task {task + 1}, friction {data[data.task == task].friction.iloc[0]:.2f}", loc="left")
        lower.set(yscale="log", xlabel="million steps of the task")
    axes[0, 0].set_ylabel("return of the last 100 episodes")
    axes[1, 0].set_ylabel("std of the actions")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(FOLDER / "transplants.png", dpi=130)
    print(FOLDER / "transplants.png")


if __name__ == "__main__":
    main()
