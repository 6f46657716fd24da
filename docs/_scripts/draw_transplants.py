"""
Draw the transplants of the page on SlipperyAnt: ``python docs/_scripts/draw_transplants.py``.

The data are ``docs/results/slippery_ant/transplants.csv``: means over bins of 50,000 steps of what the runs logged.
"""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from sb3_plasticity.study.figures import STYLE, looks

FOLDER = Path(__file__).parent.parent / "results" / "slippery_ant"


@mpl.rc_context(STYLE)
def main() -> None:
    """Run from the command line."""
    data = pd.read_csv(FOLDER / "transplants.csv")
    tasks = sorted(data.task.unique())
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots(2, len(tasks), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), task in zip(axes.T, tasks, strict=True):
        for arm, look in looks(list(data.arm.unique()), "PPO").items():
            rows = data[(data.task == task) & (data.arm == arm)]
            if len(rows):
                upper.plot(rows.steps / 1e6, rows.ep_rew_mean, color=look.color, linestyle=look.line, label=arm)
                lower.plot(rows.steps / 1e6, rows["std"], color=look.color, linestyle=look.line)
        upper.set_title(f"task {task + 1}, friction {data[data.task == task].friction.iloc[0]:.2f}")
        lower.set(yscale="log", xlabel="million steps of the task")
    axes[0, 0].set_ylabel("return of the last 100 episodes")
    axes[1, 0].set_ylabel("std of the actions")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(FOLDER / "transplants.png", dpi=130)
    print(FOLDER / "transplants.png")


if __name__ == "__main__":
    main()
