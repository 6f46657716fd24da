"""
Loss of plasticity on real images: a convolutional network learns to distinguish one pair of classes after another.

    python examples/continual_images.py [--data FOLDER] [--methods BP L2-ER] [--seeds 5] [--tasks 400]

The tasks are those of image_tasks.py: Continual ImageNet in its published layout, or Fashion-MNIST. A task shows its
1,200 training images twice, in minibatches of 64. Its main measure is the online accuracy, for which each minibatch is
predicted before it is learned; the accuracy on its 200 test images after the task is recorded as well. With every
method, the output layer is reinitialised for each task, as in Dohare et al. (Nature, 2024).

All methods learn the same tasks in the same order from the same initial weights. BP is Adam on the cross-entropy, and
the other methods are BP with mitigations of this package, which METHODS in supervised.py lists. Reset uses a new
network for each task, and thus shows what the others lose and what they carry over. The Hessian's spectrum is measured
with certified intervals at the start of every 20th task, with the weights after the previous task and on the training
images of the new task.

The script writes a file of rows for each method and seed, all spectra, and the figures into the folder: accuracy,
epsilon-rank at the task starts and one against the other (images_accuracy), and the Hessians' spectra of every method
(images_spectra), those that lose plasticity above those that keep it. The same command resumes an interrupted study
and skips what is finished. The report covers the seeds that all of its methods have finished.

The threshold of the epsilon-rank, 0.08, was fixed before any run. It is that of Prakash, He, Guo et al. for Continual
ImageNet (arXiv 2509.22335). The step size, 3e-3, is that of continual_digits.py. The network, the minibatch and the
number of epochs are small so that a run takes minutes.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from image_tasks import ImageTask, image_tasks
from matplotlib.figure import Figure
from supervised import METHODS, by_seed, cross_entropy_hessian, draw_fit, draw_spectra, fit_accuracy
from torch import nn
from torch.nn import functional as F

from sb3_plasticity import Spectrum, effective_rank, mitigate
from sb3_plasticity.common.checks import check_names
from sb3_plasticity.common.files import replacing
from sb3_plasticity.curvature.plots import decorate_symlog
from sb3_plasticity.mitigations import LayerReset
from sb3_plasticity.study.statistics import band, coverage, interval

EPSILON = 0.08
BATCH, EPOCHS, LEARNING_RATE = 64, 2, 3e-3
CHANNELS, UNITS = (8, 16, 32), 64
HESSIAN_SAMPLES, LANCZOS_STEPS = 128, 100
# Okabe and Ito's palette, which the colour-blind can tell apart; more methods than colours share them.
PALETTE = ("#707070", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def make_network(image: th.Tensor, seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """
    Make the classifier of a seed: three convolutions of stride 2 and one hidden layer, torch's own initialisation.

    :param image: (channels, height, width)
    :param seed: of the weights
    :param activation: of the hidden layers
    """
    layers: list[nn.Module] = []
    before, side = image.shape[0], image.shape[1]
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        for channels in CHANNELS:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), activation()]
            before, side = channels, -(-side // 2)
        layers += [nn.Flatten(), nn.Linear(before * side * side, UNITS), activation(), nn.Linear(UNITS, 2)]
        return nn.Sequential(*layers)


def train_task(
    network: nn.Module, optimizer: th.optim.Optimizer, task: ImageTask, generator: th.Generator
) -> tuple[float, float]:
    """
    Learn one task.

    :param network: changed in place
    :param optimizer: of its parameters
    :param task: with (N, channels, height, width) training images
    :param generator: of the order of the images
    :return: online accuracy (each minibatch is predicted before it is learned), and accuracy on the test images after
    """
    correct = 0
    network.train()
    for _ in range(EPOCHS):
        for rows in th.randperm(len(task.train_labels), generator=generator).split(BATCH):
            logits = network(task.train_images[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits, task.train_labels[rows]).backward()
            optimizer.step()
            correct += int((logits.argmax(1) == task.train_labels[rows]).sum())
    network.eval()  # mitigations act on training passes alone
    with th.no_grad():
        tested = (network(task.test_images).argmax(1) == task.test_labels).float().mean()
    return correct / (EPOCHS * len(task.train_labels)), float(tested)


def run(method: str, seed: int, args: argparse.Namespace) -> Path:
    """
    Train one network on one seed's tasks, unless that has been done.

    :param method: one of ``METHODS``
    :param seed: of tasks, weights and the order of images
    :param args: ``data``, ``tasks`` to learn, ``every`` how many of them to measure, ``l2_coef``, ``er_coef``, ``out``
    :return: file with a row for each task
    """
    path = rows_path(args.out, method, seed)
    if path.exists():
        return path
    th.set_num_threads(1)
    order = th.Generator().manual_seed(seed)
    tasks = image_tasks(args.data, args.tasks, seed)
    first = next(tasks)
    network = make_network(first.train_images[0], seed, METHODS[method].activation).eval()
    optimizer = th.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    new_head = LayerReset(layers=1, when="task", seed=seed)
    rows = []
    with mitigate(network, optimizer, [*METHODS[method].mitigations(args.l2_coef, args.er_coef), new_head]) as change:
        for index, task in enumerate(itertools.chain([first], tasks)):
            if index > 0:
                change()
            row: dict[str, Any] = {"method": method, "seed": seed, "task": index, "name": task.name}
            if index % args.every == 0 or index == args.tasks - 1:
                row |= measure(network, task, {"task_index": index, "method": method, "seed": seed}, args.out)
            row["accuracy"], row["test_accuracy"] = train_task(network, optimizer, task, order)
            rows.append(row)
            if (index + 1) % 50 == 0:
                recent = np.mean([each["accuracy"] for each in rows[-50:]])
                print(f"{method}, seed {seed}: {index + 1} of {args.tasks} tasks, last 50: {recent:.1%}", flush=True)
    with replacing(path) as file:
        pd.DataFrame(rows).to_csv(file, index=False, float_format="%.5g")
    return path


def measure(network: nn.Sequential, task: ImageTask, info: dict[str, Any], folder: Path) -> dict[str, float]:
    """
    Measure what a task's start is like, on the first half of each class's training images that are taken.

    :param network: in evaluation mode; not changed
    :param task: about to be learned
    :param info: goes into the spectrum's file
    :param folder: of the study
    :return: effective rank of the hidden layer's features, epsilon-rank of the Hessian and the ends of its interval
    """
    chosen = th.arange(len(task.train_labels)).view(2, -1)[:, : HESSIAN_SAMPLES // 2].flatten()
    images, labels = task.train_images[chosen], task.train_labels[chosen]
    spectrum = cross_entropy_hessian(network, images, labels, LANCZOS_STEPS)
    path = spectrum_path(folder, info["method"], info["seed"], info["task_index"])
    replace(spectrum, info={**info, "kind": "hessian", "epsilon": EPSILON}).save(path, overwrite=True)
    rank = spectrum.epsilon_rank(EPSILON)
    with th.no_grad():
        features = network[:-1](images)
    return {
        "effective_rank": float(effective_rank(features)),
        "hessian_rank": float(rank),
        "hessian_rank_low": rank.low,
        "hessian_rank_high": rank.high,
    }


def rows_path(folder: Path, method: str, seed: int) -> Path:
    """Where a run's rows are."""
    return folder / "rows" / f"{method}-{seed}.csv"


def spectrum_path(folder: Path, method: str, seed: int, task: int) -> Path:
    """Where a run keeps the spectrum of a task's start."""
    return folder / "spectra" / f"{method}-{seed}" / f"{task:04d}.npz"


# -- what came out -----------------------------------------------------------------------------------------------------


def finished(folder: Path, methods: list[str]) -> pd.DataFrame:
    """
    Read the rows of whole seeds, those that all methods have finished.

    :param folder: of the study
    :param methods: that are asked for
    :return: rows; none if there is no such seed
    """
    seeds = [{int(path.stem.rpartition("-")[2]) for path in (folder / "rows").glob(f"{m}-*.csv")} for m in methods]
    # a method's name may go on after a hyphen: BP-1.csv is BP's, CBP-L2-1.csv is not CBP's
    whole = sorted(seed for seed in set.union(*seeds) if all(rows_path(folder, m, seed).exists() for m in methods))
    frames = [pd.read_csv(rows_path(folder, method, seed)) for seed in whole for method in methods]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def thirds(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Parts of the tasks: the first and the last third, and the last tenth."""
    end = table.task.max() + 1
    return {"first third": (0, end / 3), "last third": (2 * end / 3, end), "last 10%": (end - max(1, end // 10), end)}


def report(table: pd.DataFrame, methods: list[str]) -> str:
    """
    Tabulate the methods' course, and how well the epsilon-rank explains the accuracy.

    :param table: rows of whole seeds
    :param methods: in the order of the table; differences are to the first
    """
    n_seeds, n_tasks = table.seed.nunique(), table.task.max() + 1
    later, parts = table[table.task > 0], thirds(table)
    lines = [f"{n_tasks} tasks, seeds {', '.join(map(str, sorted(table.seed.unique())))}; the first task left out."]
    if n_seeds > 1:
        lines.append(
            f"Interquartile mean over seeds [95% bootstrap interval, which holds the truth in some "
            f"{coverage(n_seeds)}% of cases]."
        )
    columns = {
        "accuracy": ("online accuracy, %", 100),
        "test_accuracy": ("test accuracy, %", 100),
        "effective_rank": ("effective rank of the last features", 1),
        "hessian_rank": (f"% of |Hessian eigenvalues| > {EPSILON}", 100),
    }
    for column, (title, scale) in columns.items():
        names = (*parts, "last third minus first", f"last third minus {methods[0]}'s")
        lines += ["", title, " " * 16 + "".join(f"{name:26}" for name in names)]
        for method in methods:
            values, base = (scale * by_seed(later, name, column) for name in (method, methods[0]))
            tasks = values.columns.to_numpy()
            inside = [(tasks >= low) & (tasks < high) for low, high in parts.values()]
            means = [values.loc[:, part].mean(axis=1) for part in inside]
            means += [means[1] - means[0], (values - base).loc[:, inside[1]].mean(axis=1)]
            cells = [interval(mean.to_numpy()) for mean in means]
            shown = [
                f"{c.value:.1f} [{c.low:.1f}, {c.high:.1f}]" if c.has_interval else f"{c.value:.1f}" for c in cells
            ]
            lines.append(f"{method:16}" + "".join(f"{cell:26}" for cell in shown))
    width = (table.hessian_rank_high - table.hessian_rank_low).dropna()
    lines += [
        "",
        f"The certified intervals of the epsilon-ranks are {100 * width.median():.2g} points wide in the median.",
        "R^2 of a task's online accuracy on the epsilon-rank at its start [95% interval over seeds], slope of the line",
    ]
    for within in (None, "method", "task"):
        if line := fit_accuracy(table, "hessian_rank", within):
            r2, rho = (f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in (line.r_squared, line.spearman))
            name = f"within a {within}" if within else "all task starts"
            lines.append(f"{name:17} R^2 {r2}, Spearman {rho}, slope {line.slope:+.2f}, {line.n} task starts")
    return "\n".join(lines)


def draw(folder: Path, table: pd.DataFrame, methods: list[str]) -> list[Path]:
    """
    Draw accuracy and epsilon-rank over the tasks and against each other, and the Hessians' spectra.

    :param folder: of the study
    :param table: rows of whole seeds
    :param methods: to show
    :return: the pictures
    """
    colors = dict(zip(methods, itertools.cycle(PALETTE)))
    later, seeds = table[table.task > 0], sorted(table.seed.unique())
    share = f"% of |Hessian eigenvalues| > {EPSILON}"

    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, rank, scatter = figure.subplots(1, 3)
    for axes, column, smooth in ((accuracy, "accuracy", 20), (rank, "hessian_rank", 1)):
        for method in methods:
            values = 100 * by_seed(later, method, column).T.rolling(smooth, min_periods=1).mean()
            middle, low, high = band(values.to_numpy())
            axes.plot(values.index, middle, color=colors[method], lw=1.8, label=method)
            axes.fill_between(values.index, low, high, color=colors[method], alpha=0.15, lw=0)
        axes.set(xlabel="task", xlim=(0, table.task.max()))
    accuracy.set(title="Online accuracy, mean of 20 tasks", ylabel="%")
    accuracy.legend(frameon=False, loc="lower left", fontsize=8)
    rank.set(title="$\\epsilon$-rank at task starts", ylabel=share, ylim=(0, None))
    line = draw_fit(scatter, table, "hessian_rank", colors)
    title = "Accuracy against $\\epsilon$-rank"
    if line is not None:
        r2 = line.r_squared
        title += f"\n$R^2$ = {r2.value:.2f}" + (f"  [{r2.low:.2f}, {r2.high:.2f}]" if r2.has_interval else "")
    scatter.set(title=title, xlabel=share, ylabel="online accuracy of the task, %")

    starts = sorted(later.dropna(subset=["hessian_rank"]).task.unique())
    chosen = sorted({starts[0], starts[len(starts) // 2], starts[-1]}) if starts else []
    loses = {method: _change(table, method) < 0 for method in methods}
    rows = [[m for m in methods if loses[m]], [m for m in methods if not loses[m]]]
    rows = [sorted(row, key=lambda m: _change(table, m)) for row in rows if row]
    width = max(map(len, rows))
    spectra = Figure(figsize=(2.6 * width + 0.6, 2.6 * len(rows)), layout="constrained")
    grid = spectra.subplots(len(rows), width, sharex=True, sharey=True, squeeze=False)
    for axes, method in itertools.chain.from_iterable(
        itertools.zip_longest(line_of, row) for line_of, row in zip(grid, rows, strict=True)
    ):
        if method is None:
            axes.set_visible(False)
            continue
        paths = [(f"task {task + 1}", spectrum_path(folder, method, seeds[0], task)) for task in chosen]
        draw_spectra(axes, [(label, Spectrum.load(path)) for label, path in paths], EPSILON, colors[method])
        decorate_symlog(axes, EPSILON / 10)
        axes.set_title(f"{method}: {100 * _change(table, method):+.1f} points", fontsize=9)
        axes.legend(frameon=False, fontsize=7)
        axes.label_outer()
    spectra.suptitle(
        f"Hessians at task starts, seed {seeds[0]}; change of the online accuracy from the first third to the last",
        fontsize=9,
    )

    pictures = []
    for picture, name in ((figure, "images_accuracy"), (spectra, "images_spectra")):
        for axes in picture.axes:
            axes.spines[["top", "right"]].set_visible(False)
        pictures.append(folder / f"{name}.png")
        picture.savefig(pictures[-1], dpi=127)
        picture.savefig(pictures[-1].with_suffix(".pdf"))
    return pictures


def _change(table: pd.DataFrame, method: str) -> float:
    """Online accuracy in the last third of the tasks less that in the first."""
    values, parts = by_seed(table[table.task > 0], method, "accuracy").mean(), thirds(table)
    first, last = (
        values[(values.index >= low) & (values.index < high)].mean() for low, high in list(parts.values())[:2]
    )
    return float(last - first)


# -- command line ------------------------------------------------------------------------------------------------------


def check_settings(args: argparse.Namespace) -> None:
    """
    Note what a folder's runs are made with, or see that it is what was noted.

    :param args: of the command line
    :raises ValueError: if runs there were made with other settings, or there are no data
    """
    first = next(image_tasks(args.data, 1, 0))
    settings = {name: getattr(args, name) for name in ("tasks", "every", "l2_coef", "er_coef")}
    settings["image"] = list(first.train_images.shape[1:])
    path = args.out / "settings.json"
    if path.exists():
        known = json.loads(path.read_text())
        for name, value in settings.items():
            if known.get(name) != value:
                raise ValueError(
                    f"`{name.replace('_', '-')}` must be that of the runs in {args.out}, {known.get(name)}, "
                    f"got {value}; other runs go to another --out"
                )
        return
    with replacing(path) as file:
        file.write_text(json.dumps(settings, indent=1))


def run_all(args: argparse.Namespace) -> None:
    """Train what is not finished, seed by seed and in the order of the methods, a process for each job."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = [(method, seed, args) for seed in seeds for method in args.methods]
    jobs = [job for job in jobs if not rows_path(args.out, *job[:2]).exists()]
    if not jobs:
        return
    with multiprocessing.get_context("spawn").Pool(min(args.jobs, len(jobs))) as pool:
        for done, path in enumerate(pool.imap(_run, jobs), 1):
            print(f"{done} of {len(jobs)}: {path}", flush=True)


def _run(job: tuple[str, int, argparse.Namespace]) -> Path:
    return run(*job)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add(
        "--data",
        type=Path,
        help="folder of Continual ImageNet or Fashion-MNIST (default: Debian's dataset-fashion-mnist)",
    )
    add("--methods", nargs="+", default=list(METHODS), help=f"some of {', '.join(METHODS)} (default: all)")
    add("--seeds", type=int, default=5, help="number of seeds (default: 5)")
    add("--first-seed", type=int, default=0, help="the seeds count up from this one (default: 0)")
    add("--tasks", type=int, default=400, help="tasks of each run (default: 400)")
    add("--every", type=int, default=20, help="measure the Hessian at the start of every so many tasks (default: 20)")
    add("--l2-coef", type=float, default=1e-4, help="weight of ||theta||^2 (default: 1e-4)")
    add("--er-coef", type=float, default=1e-3, help="weight of the effective rank (default: 1e-3)")
    add("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    add("--out", type=Path, default=Path("runs/continual_images"), help="folder (default: runs/continual_images)")
    args = parser.parse_args()
    try:
        for name in ("seeds", "every", "jobs"):
            if getattr(args, name) < 1:
                raise ValueError(f"`{name}` must be a whole number >= 1, got {getattr(args, name)}")
        if args.first_seed < 0:
            raise ValueError(f"`first-seed` must be a whole number >= 0, got {args.first_seed}")
        if args.tasks < 3:
            raise ValueError(f"`tasks` must be a whole number >= 3, got {args.tasks}")
        for name in ("l2_coef", "er_coef"):
            if not 0 <= getattr(args, name) < np.inf:
                raise ValueError(f"`{name.replace('_', '-')}` must be a finite number >= 0, got {getattr(args, name)}")
        check_names("methods", args.methods, METHODS)
        check_settings(args)
    except (OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    run_all(args)
    table = finished(args.out, args.methods)
    if table.empty:
        sys.exit(f"{parser.prog}: no seed is finished by all of {', '.join(args.methods)}")
    with replacing(args.out / "tasks.csv") as file:
        table.to_csv(file, index=False)
    text = report(table, args.methods)
    with replacing(args.out / "report.txt") as file:
        file.write_text(f"{text}\n")
    print(text, "", *draw(args.out, table, args.methods), sep="\n")


if __name__ == "__main__":
    main()
