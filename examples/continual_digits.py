"""
Loss of plasticity in minutes: a small network repeatedly learns scikit-learn's digits, each time in a new disguise.

    python examples/continual_digits.py [--seeds 5] [--tasks 150] [--jobs 2] [--out runs/continual_digits]
    python examples/continual_digits.py --resume runs/continual_digits/20260101-120000

A task permutes the pixels and the classes and lasts two epochs. All methods learn the same tasks in the same order from
the same initial weights. BP is Adam on the cross-entropy, and every other method is BP with mitigations of this
package, which METHODS below lists. Only mitigations that act at the change of a task are told about it. The spectra of
the Hessian and the GGN are measured at the start of every fifteenth task, on the data of the new task. The script
writes a row per method, seed and task, all spectra, and the figure into a new folder. The figure shows the accuracy,
the epsilon-rank at the task starts, and the Hessians' spectra of every method, those that lose plasticity above those
that keep it. --resume continues an interrupted study. The example needs scikit-learn.

Strengths are published defaults if there is one that transfers, and that of L2 if a method is a decay; none was changed
for this comparison. The thresholds were fixed before any reported run. The threshold of the Hessian, 0.1, is that of
the poster's scatter plot. On seed 1000, which is not reported, the uncertainty of its epsilon-rank after 200 Lanczos
steps was +15% and -11% (medians of 116 Hessians, Spectrum.epsilon_rank_bounds); at 0.03, a fifth had no upper bound.
The GGN is exact and uses 0.01, the authors' threshold for MNIST.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from supervised import METHODS as ALL_METHODS
from supervised import by_seed, fit_accuracy
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from sb3_plasticity import Spectrum, effective_rank, ggn_spectrum, hessian_spectrum, mitigate
from sb3_plasticity.curvature.plots import decorate_symlog, plot_density, symlog
from sb3_plasticity.study.statistics import (
    Estimate,
    band,
    coverage,
    interval,
)

# The methods of supervised.py for which a study of five seeds has enough time.
METHODS = {
    name: ALL_METHODS[name]
    for name in (
        "BP",
        "L2",
        "ER",
        "L2-ER",
        "L2-Init",
        "Spectral",
        "Shrink-Perturb",
        "LayerNorm",
        "LayerNorm-L2",
        "CReLU",
        "CBP",
        "CBP-L2",
        "ReDo",
        "SNR",
        "FIRE",
        "Reset",
    )
}
# Okabe and Ito's palette, which the colour-blind can tell apart: methods that lose plasticity, and those that keep it.
LOSES, KEEPS = "#D55E00", "#0072B2"
EPSILON = {"hessian": 0.1, "ggn": 0.01}
HESSIAN_SAMPLES, LANCZOS_STEPS, GGN_SAMPLES = 512, 200, 128
# For the progress bar: a count that worker processes share.
finished_tasks: Any = None


class Task(NamedTuple):
    """
    One disguise of the digits.

    :param pixels: (64,) the pixel that each input shows
    :param classes: (10,) the label that each digit gets
    :param batches: rows of each minibatch of 32, two epochs of them
    """

    pixels: th.Tensor
    classes: th.Tensor
    batches: list[th.Tensor]


def make_tasks(seed: int, n_tasks: int, n_samples: int) -> Iterator[Task]:
    """Draw the tasks of a seed: they depend on nothing else, so every method gets the same."""
    shuffle = partial(th.randperm, generator=th.Generator().manual_seed(seed))
    for _ in range(n_tasks):
        yield Task(shuffle(64), shuffle(10), [rows for _ in range(2) for rows in shuffle(n_samples).split(32)])


def make_network(seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Make the classifier of a seed: three hidden layers of 64, torch's own initialisation."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        hidden = [layer for _ in range(3) for layer in (nn.Linear(64, 64), activation())]
        return nn.Sequential(*hidden, nn.Linear(64, 10))


def forward(network: nn.Sequential, images: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Map images (N, 64) to logits (N, 10) and the hidden layers' features (3, N, 64)."""
    features = []
    for layer in network:
        images = layer(images)
        if not isinstance(layer, nn.Linear):
            features.append(images)
    return images, th.stack(features)


def train_task(
    network: nn.Sequential,
    optimizer: th.optim.Optimizer,
    images: th.Tensor,
    labels: th.Tensor,
    batches: list[th.Tensor],
) -> tuple[float, float]:
    """
    Learn one task.

    :param network: changed in place
    :param optimizer: of its parameters
    :param images: (N, 64) as the task shows them
    :param labels: (N,) as the task names them
    :param batches: rows of each minibatch
    :return: online accuracy and cross-entropy: each minibatch is predicted before it is learned
    """
    correct, total = th.zeros(()), th.zeros(())
    network.train()
    for rows in batches:
        logits = network(images[rows])
        loss = F.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        correct += (logits.argmax(1) == labels[rows]).sum()
        total += loss.detach() * len(rows)
    network.eval()  # mitigations act on training passes alone
    seen = sum(map(len, batches))
    return correct.item() / seen, total.item() / seen


def measure(network: nn.Sequential, images: th.Tensor, labels: th.Tensor) -> dict[str, Spectrum]:
    """Spectra of the cross-entropy's Hessian (stochastic Lanczos) and GGN (exact), on the first rows given."""
    params = {name: value.detach() for name, value in network.named_parameters()}

    def output_fn(params: dict[str, th.Tensor], inputs: th.Tensor) -> th.Tensor:
        logits: th.Tensor = th.func.functional_call(network, params, (inputs,))
        return logits

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return F.cross_entropy(output_fn(params, batch[0]), batch[1])

    some, few = slice(HESSIAN_SAMPLES), slice(GGN_SAMPLES)
    probs = F.softmax(output_fn(params, images[few]), 1)
    output_hessian = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    return {
        "hessian": hessian_spectrum(loss_fn, params, (images[some], labels[some]), steps=LANCZOS_STEPS),
        "ggn": ggn_spectrum(output_fn, params, images[few], output_hessian),
    }


def run(method: str, seed: int, args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """
    Train one network on one seed's tasks, or read what a run that was broken off has finished.

    :param method: one of ``METHODS``
    :param seed: of tasks and weights
    :param args: ``tasks`` to learn, ``every`` how many of them to measure, ``l2_coef``, ``er_coef``
    :param folder: where rows and spectra go
    :return: a row for each task
    """
    path = folder / "runs" / f"{method}-{seed}.csv"
    if path.exists():
        count(args.tasks)
        return pd.read_csv(path)
    digits = load_digits()
    originals, digit = th.tensor(digits.data, dtype=th.float32) / 16, th.tensor(digits.target)
    network = make_network(seed, METHODS[method].activation).eval()
    optimizer = th.optim.Adam(network.parameters(), lr=3e-3, fused=True)
    rows = []
    with mitigate(network, optimizer, METHODS[method].mitigations(args.l2_coef, args.er_coef)) as task_change:
        for index, task in enumerate(make_tasks(seed, args.tasks, len(digit))):
            images, labels = originals[:, task.pixels], task.classes[digit]
            if index > 0:
                task_change()
            row: dict[str, Any] = {"method": method, "seed": seed, "task": index}
            with th.no_grad():
                row["effective_rank"] = effective_rank(forward(network, images[:HESSIAN_SAMPLES])[1]).mean().item()
            for kind, spectrum in measure(network, images, labels).items() if index % args.every == 0 else ():
                step = index * len(task.batches)
                info = {"step": step, "task_index": index, "kind": kind, "method": method, "seed": seed}
                replace(spectrum, info=info).save(spectrum_path(folder, method, seed, index, kind))
                row[f"{kind}_rank"] = float(spectrum.epsilon_rank(EPSILON[kind]))
                row[f"{kind}_rank_low"], row[f"{kind}_rank_high"] = spectrum.epsilon_rank_bounds(EPSILON[kind])
            row["accuracy"], row["loss"] = train_task(network, optimizer, images, labels, task.batches)
            with th.no_grad():
                row["final_accuracy"] = (forward(network, images)[0].argmax(1) == labels).float().mean().item()
            rows.append(row)
            count(1)
    table = pd.DataFrame(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path.with_suffix(".part"), index=False)
    path.with_suffix(".part").replace(path)
    return table


def spectrum_path(folder: Path, method: str, seed: int, task: int, kind: str) -> Path:
    """Where a run keeps the spectrum of a task's start."""
    return folder / "spectra" / f"{method}-{seed}" / f"{task:04d}-{kind}.npz"


def count(tasks: int) -> None:
    """Move the progress bar on."""
    if finished_tasks:
        with finished_tasks.get_lock():
            finished_tasks.value += tasks


def start_worker(counter: Any) -> None:
    """Set up a process: one thread, and the count that all processes share."""
    global finished_tasks
    finished_tasks = counter
    th.set_num_threads(1)


def run_all(args: argparse.Namespace, folder: Path) -> pd.DataFrame:
    """Train every method on every seed, one process per job, under a progress bar; return the rows of all runs."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = [(method, seed, args, folder) for seed, method in product(seeds, METHODS)]
    with (
        context.Pool(min(args.jobs, len(jobs)), start_worker, (counter,)) as pool,
        tqdm(total=len(jobs) * args.tasks, unit="task") as bar,
    ):
        result = pool.starmap_async(run, jobs, chunksize=1)
        while not result.ready():
            result.wait(0.5)
            bar.update(counter.value - bar.n)
        return pd.concat(result.get(), ignore_index=True)


def parts_of(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """First and last task of the parts into which a course is cut."""
    end = table.task.max() + 1
    thirds = {"first third": (0, end / 3), "middle third": (end / 3, 2 * end / 3), "last third": (2 * end / 3, end)}
    return {**thirds, "last 10%": (end - max(1, end // 10), end)}


def mean_of_part(table: pd.DataFrame, method: str, column: str, part: str) -> pd.Series:
    """A column's mean over a part of the tasks, the first of all left out: a number for each seed."""
    low, high = parts_of(table)[part]
    values = by_seed(table[table.task > 0], method, column)
    tasks = values.columns.to_numpy()
    return values.loc[:, (tasks >= low) & (tasks < high)].mean(axis=1)


def changes(table: pd.DataFrame) -> dict[str, Estimate]:
    """Each method's online accuracy in the last tenth of the tasks minus that in the first third, in points."""
    ends = {m: [mean_of_part(table, m, "accuracy", part) for part in ("last 10%", "first third")] for m in METHODS}
    return {method: interval(100 * (last - first).to_numpy()) for method, (last, first) in ends.items()}


def groups(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """
    Split the methods by what they did.

    :param table: rows of all runs
    :return: those that lose plasticity, whose change in accuracy lies below 0 with its whole interval, and the others;
        each from the largest loss on
    """
    found = changes(table)
    ordered = sorted(found, key=lambda method: found[method].value)
    lose = [method for method in ordered if (found[method].high if found[method].n > 1 else found[method].value) < 0]
    return lose, [method for method in ordered if method not in lose]


def report(table: pd.DataFrame) -> str:
    """Tabulate the methods' course, and how well the epsilon-rank explains the accuracy."""
    n_seeds, parts = table.seed.nunique(), parts_of(table)
    columns = {"accuracy": ("online accuracy, %", 100), "effective_rank": ("effective rank of the features", 1)}
    columns |= {f"{kind}_rank": (f"% of |{kind} eigenvalues| > {eps}", 100) for kind, eps in EPSILON.items()}
    lines = ["Interquartile mean over seeds [95% bootstrap interval], the first task left out."]
    if n_seeds > 1:
        lines.append(f"Such an interval of {n_seeds} seeds holds the truth in some {coverage(n_seeds)}% of cases.")
    width = max(map(len, METHODS)) + 2
    for column, (title, scale) in columns.items():
        heads = (*parts, "last 10% minus BP", "last 10% minus first third")
        lines += ["", title, " " * width + "".join(f"{name:21}" for name in heads)]
        for method in METHODS:
            means = [scale * mean_of_part(table, method, column, part) for part in parts]
            means.append(means[-1] - scale * mean_of_part(table, "BP", column, "last 10%"))
            means.append(means[len(parts) - 1] - means[0])
            cells = [interval(mean.to_numpy()) for mean in means]
            shown = "".join(f"{c.value:5.1f} [{c.low:5.1f},{c.high:5.1f}]  " for c in cells)
            lines.append(f"{method:{width}}{shown}")
    lose, keep = groups(table)
    lines += ["", f"Lose plasticity, largest loss first: {', '.join(lose) or 'none'}"]
    lines += [f"Keep it: {', '.join(keep) or 'none'}"]
    lines += [
        "",
        "R^2 of a task's accuracy on the epsilon-rank at its start [95% interval over seeds], slope of the line",
    ]
    for kind, within in product(EPSILON, (None, "method", "task")):
        if line := fit_accuracy(table, f"{kind}_rank", within):
            r2, name = line.r_squared, f"within a {within}" if within else "all"
            lines.append(f"{kind:8}{name:16}{r2.value:.2f} [{r2.low:.2f}, {r2.high:.2f}] {line.slope:+.1f}")
    return "\n".join(lines)


def draw_league(axes: Axes, table: pd.DataFrame) -> None:
    """Draw each method's accuracy in the first third of the tasks (a ring) and in the last tenth (a disc)."""
    lose, keep = groups(table)
    for place, method in enumerate([*lose, *keep]):
        color = LOSES if method in lose else KEEPS
        parts = [mean_of_part(table, method, "accuracy", part).to_numpy() for part in ("first third", "last 10%")]
        first, last = (interval(100 * part) for part in parts)
        axes.plot([first.value, last.value], [place, place], color=color, lw=1, alpha=0.5)
        axes.plot([last.low, last.high], [place, place], color=color, lw=3, alpha=0.5, solid_capstyle="butt")
        axes.plot(first.value, place, "o", mfc="white", mec=color, ms=5)
        axes.plot(last.value, place, "o", color=color, ms=5)
    axes.set_yticks(range(len(METHODS)), [*lose, *keep], fontsize=8)
    axes.invert_yaxis()
    axes.set(title="Online accuracy: first third, last tenth", xlabel="%")


def draw_course(axes: Axes, table: pd.DataFrame, column: str, smooth: int = 1) -> None:
    """Draw a share in per cent over tasks, a line for each method, with a band for BP and L2-ER."""
    lose, _ = groups(table)
    for method in METHODS:
        color, named = LOSES if method in lose else KEEPS, method in ("BP", "L2-ER")
        values = 100 * by_seed(table, method, column).T.rolling(smooth, min_periods=1).mean()
        middle, low, high = band(values.to_numpy())
        axes.plot(values.index, middle, color=color, lw=2.2 if named else 0.8, alpha=1 if named else 0.6)
        if named:
            axes.fill_between(values.index, low, high, color=color, alpha=0.18, lw=0)
            axes.annotate(method, (values.index[-1], middle[-1]), color=color, fontsize=8, weight="bold")
    axes.set(xlabel="task", xlim=(0, table.task.max()))


def draw_fit(axes: Axes, table: pd.DataFrame, column: str) -> None:
    """Draw accuracy against epsilon-rank in per cent, a point for each measured task of each run, and the line."""
    measured = table[(table.task > 0) & table[column].notna()].sample(frac=1, random_state=0)  # no method hides another
    lose, _ = groups(table)
    x = 100 * measured[column]
    colors = [LOSES if method in lose else KEEPS for method in measured.method]
    axes.scatter(x, 100 * measured.accuracy, c=colors, s=8, alpha=0.4, lw=0)
    title = "Accuracy against $\\epsilon$-rank"
    if line := fit_accuracy(table, column):
        ends, r2 = np.array([x.min(), x.max()]), line.r_squared
        axes.plot(ends, line.intercept + line.slope * ends, color="black", lw=1.5)
        title += f"\n$R^2$ = {r2.value:.2f}  [{r2.low:.2f}, {r2.high:.2f}]"
    axes.set_title(title)


def draw_spectra(axes: Axes, folder: Path, method: str, seed: int, tasks: list[int], color: str) -> None:
    """Draw a run's Hessians at the start of chosen tasks; the dotted lines are at -epsilon and epsilon."""
    linear = EPSILON["hessian"] / 10
    for task, alpha in zip(tasks, np.linspace(1, 0.3, len(tasks))[::-1], strict=True):
        spectrum = Spectrum.load(spectrum_path(folder, method, seed, task, "hessian"))
        plot_density(axes, spectrum, linear=linear, color=color, alpha=alpha, lw=1.4, label=f"task {task}")
    for position in symlog(EPSILON["hessian"] * np.array([-1, 1]), linear):
        axes.axvline(position, color="black", lw=0.8, ls=":")


def draw(folder: Path, table: pd.DataFrame) -> Path:
    """Draw the picture from the rows of all runs and the spectra of the first seed; return its path."""
    lose, keep = groups(table)
    columns = min(5, max(len(lose), len(keep)))
    depth = [-(-len(group) // columns) for group in (lose, keep)]
    figure = Figure(figsize=(2.5 * max(columns, 4), 4.2 + 2.0 * sum(depth)), layout="constrained")
    seeds, n_tasks = sorted(table.seed.unique()), table.task.nunique()
    figure.suptitle(
        f"{n_tasks} tasks of disguised digits, {len(seeds)} seeds: interquartile mean and 95% interval.\n"
        f"Below, the Hessians at task starts of seed {seeds[0]}: methods that lose plasticity, then those that keep it",
        fontsize=11,
    )
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.2, 2.0 * sum(depth)))[:, 0]
    league, accuracy, scatter = upper.subplots(1, 3)
    later, share = table[table.task > 0], f"% of |Hessian eigenvalues| > {EPSILON['hessian']}"
    draw_league(league, table)
    draw_course(accuracy, table, "accuracy", smooth=10)
    accuracy.set(title="Online accuracy", ylabel="%, mean of 10 tasks")
    draw_fit(scatter, table, "hessian_rank")
    scatter.set(xlabel=share, ylabel="online accuracy of the task, %")
    starts = sorted(later.dropna(subset=["hessian_rank"]).task.unique())
    chosen = sorted({starts[0], starts[len(starts) // 2], starts[-1]})
    grid = lower.subplots(sum(depth), columns, sharex=True, sharey=True, squeeze=False)
    found = changes(table)
    for group, color, first in ((lose, LOSES, 0), (keep, KEEPS, depth[0])):
        cells = grid[first : first + -(-len(group) // columns)].flatten()
        for method, axes in zip(group, cells, strict=False):
            draw_spectra(axes, folder, method, seeds[0], chosen, color)
            axes.set_title(f"{method} ({found[method].value:+.1f})", fontsize=9, color=color)
        for axes in cells[len(group) :]:
            axes.set_axis_off()
    grid[0, 0].legend(frameon=False, fontsize=7)
    for axes in grid.flatten():
        decorate_symlog(axes, EPSILON["hessian"] / 10)
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelsize=7)
    lower.supxlabel("eigenvalue; in brackets, the change of the accuracy in points", fontsize=9)
    lower.supylabel("density per decade", fontsize=9)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path = folder / "continual_digits.png"
    figure.savefig(path, dpi=127)
    figure.savefig(path.with_suffix(".pdf"))
    return path


# What makes the numbers of a run: written when it begins, and read when it is resumed.
SETTINGS = ("seeds", "first_seed", "tasks", "every", "l2_coef", "er_coef")


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Path:
    """Make the folder of a new run, or take up the settings of one that was broken off; return the folder."""
    if args.resume is not None:
        if not (args.resume / "settings.json").exists():
            parser.error(f"--resume {args.resume}: accepted are folders that this program made")
        vars(args).update(json.loads((args.resume / "settings.json").read_text()))
        resumed: Path = args.resume
        return resumed
    folder: Path = args.out / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    settings = {name: getattr(args, name) for name in SETTINGS}
    (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
    return folder


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the seeds count up from this one")
    parser.add_argument("--tasks", type=int, default=150, help="tasks of each run")
    parser.add_argument("--every", type=int, default=15, help="measure curvature at the start of every so many tasks")
    parser.add_argument("--l2-coef", type=float, default=1e-4, help="weight of ||theta||^2 wherever L2 is")
    parser.add_argument("--er-coef", type=float, default=1e-3, help="weight of the effective rank wherever ER is")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=Path("runs/continual_digits"), help="where the folder is made")
    parser.add_argument("--resume", type=Path, help="folder of a run that was broken off; it keeps its settings")
    args = parser.parse_args()
    for name in ("seeds", "every", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: accepted are whole numbers >= 1")
    if args.tasks <= args.every:
        parser.error(f"--tasks {args.tasks}: accepted are more than --every, {args.every}")
    for name in ("l2_coef", "er_coef"):
        if not 0 <= getattr(args, name) < np.inf:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: accepted are finite numbers >= 0")
    folder = prepare(parser, args)
    table = run_all(args, folder)
    table.to_csv(folder / "tasks.csv", index=False, float_format="%.5g")
    text = report(table)
    (folder / "report.txt").write_text(text + "\n")
    print(f"{text}\n\nRows:    {folder / 'tasks.csv'}\nPicture: {draw(folder, table)}")


if __name__ == "__main__":
    main()
