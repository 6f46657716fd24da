"""Figures of a study, each for one environment, from the tables of :mod:`sb3_plasticity.study.results`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from sb3_plasticity.curvature.plots import plot_density, symlog
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.statistics import band
from sb3_plasticity.study.tasks import BINS_PER_TASK, Timeline, bin_means
from sb3_plasticity.study.wording import written

# Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
LINE_STYLES: tuple[Any, ...] = ((0, (6, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 2, 1, 2, 1, 2)))
MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
WIDTH = 9.0
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
# More methods than this have a panel each.
TOGETHER = 2
COLUMNS = 3


@dataclass(frozen=True)
class Look:
    """
    How a method is drawn, the same in every figure.

    :param label: its name, safe for matplotlib
    :param color: of lines and markers
    :param line: its style
    :param marker: its shape
    """

    label: str
    color: str
    line: Any
    marker: str


Looks = Mapping[str, Look]


def looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """
    Give every method its colour, line style and marker.

    :param methods: in the study's order
    :param baseline: drawn in black, solid, with circles
    :return: by method
    """
    found, others = {}, 0
    for method in methods:
        # neither mathematics, nor left out of legends
        label = " " * method.startswith("_") + method.replace("$", r"\$")
        if method == baseline:
            found[method] = Look(label, "#000000", "-", "o")
        else:
            found[method] = Look(label, *(of[others % len(of)] for of in (COLORS, LINE_STYLES, MARKERS)))
            others += 1
    return found


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _drawn(look: Looks, rows: pd.DataFrame) -> list[str]:
    return [method for method in look if (rows.method == method).any()]


def _legend(figure: Figure, methods: Sequence[str], look: Looks, marker: bool = False) -> None:
    """Put the methods that there are above the panels, where no data are."""
    handles = []
    for each in (look[method] for method in methods):
        shape = {"ls": "", "marker": each.marker} if marker else {"ls": each.line}
        handles.append(Line2D([], [], color=each.color, lw=1.8, label=each.label, **shape))
    columns = max(1, min(len(handles), int(90 / (8 + max(len(method) for method in methods)))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)


# -- curves: figures 1 and 6 -------------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def returns_figure(episodes: pd.DataFrame, time: Timeline, look: Looks, baseline: str, parameter: str) -> Figure:
    """
    Draw the return over steps, below it the tasks' values: two methods together, more of them in a panel each.

    :param episodes: of one environment, see :class:`~sb3_plasticity.study.results.Results`
    :param time: of the runs
    :param look: of the methods
    :param baseline: method that is in every panel
    :param parameter: what changes from task to task, such as ``"friction"``
    :return: the figure
    """
    methods = _drawn(look, episodes)
    others = [method for method in methods if method != baseline]
    shown = [methods] if len(methods) <= TOGETHER else [[baseline, method] for method in others]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(WIDTH, 4.2 if len(shown) == 1 else 1.2 + 2.1 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[4 if columns == 1 else 2] * rows, 1])
    panels: list[Axes] = []
    for place, pair in enumerate(shown):
        shared = panels[0] if panels else None
        axes = figure.add_subplot(grid[divmod(place, columns)], sharex=shared, sharey=shared)
        axes.tick_params(labelbottom=place >= len(shown) - columns)
        panels.append(axes)
        for method in [method for method in pair if method in methods]:
            ranged = len(shown) == 1 or method != baseline
            _draw_curve(axes, episodes[episodes.method == method], "return", time, look[method], ranged)
        if len(shown) > 1:
            axes.set_title(look[pair[-1]].label, color=look[pair[-1]].color, fontweight="bold")
    below = figure.add_subplot(grid[rows, :], sharex=panels[0] if columns == 1 else None)
    for _, group in episodes.groupby("seed"):
        values = group.groupby("task_index").task_value.first()
        edges = np.append(values.index.to_numpy() * time.period, time.n_timesteps)
        below.stairs(values.to_numpy(), edges, baseline=None, color="0.35", alpha=0.8, lw=1)
    smallest, largest = episodes.task_value.min(), episodes.task_value.max()
    if smallest > 0 and largest > 3 * smallest:
        _logarithmic(below, largest / smallest)
    below.set(ylabel=f"{parameter},\neach seed's", xlabel="environment steps")
    for axes in (*panels, below):
        _step_axis(axes, time)
    figure.supylabel("return of an episode", fontsize=10)
    _legend(figure, methods if len(shown) == 1 else [baseline], look)
    return figure


def _logarithmic(axes: Axes, ratio: float) -> None:
    """Make the vertical axis logarithmic, with at most five plain labels for the ratio of its ends."""
    axes.set_yscale("log")
    digits = (1, 2, 5) if ratio <= 10 else (1, 3) if ratio <= 100 else (1,)
    axes.yaxis.set(
        major_locator=LogLocator(subs=digits, numticks=5),
        major_formatter=StrMethodFormatter("{x:g}"),
        minor_formatter=NullFormatter(),
    )


@mpl.rc_context(STYLE)
def panels_figure(progress: pd.DataFrame, measures: Sequence[str], time: Timeline, look: Looks) -> Figure | None:
    """
    Draw what may explain the returns: standard deviation of the policy, and measures of each network over steps.

    :param progress: of one environment, see :class:`~sb3_plasticity.study.results.Results`
    :param measures: as they are logged, ``plasticity/<network>/<measure>``
    :param time: of the runs
    :param look: of the methods
    :return: the figure; None if nothing was logged
    """
    logged = [str(name) for name in progress if progress[name].notna().any()]
    found = {"train/std": "standard deviation of the policy"} if "train/std" in logged else {}
    for measure in measures:
        for name in logged:
            if name.startswith("plasticity/") and name.endswith(f"/{measure}"):
                found[name] = f"{measure}, {name.split('/')[1]}".replace("_", " ")
    if not found:
        return None
    rows = math.ceil(len(found) / 2)
    figure, grid = _figure(0.8 + 2.2 * rows, rows, 2, sharex=True)
    panels = list(grid.ravel())
    for axes, (name, title) in zip(panels, found.items(), strict=False):
        lines = progress[progress[name].notna()]
        methods = _drawn(look, lines)
        for method in methods:
            _draw_curve(axes, lines[lines.method == method], name, time, look[method], len(methods) <= TOGETHER)
        axes.set_title(title)
        if name == "train/std":
            _logarithmic(axes, lines[name].max() / lines[name].min())  # it falls by factors
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _step_axis(axes, time)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(found) - 2) : len(found)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("environment steps")
    _legend(figure, _drawn(look, progress), look)
    return figure


def curve(run: pd.DataFrame, column: str, edges: np.ndarray) -> pd.Series:
    """
    Put a run's records on a grid: means of bins, empty ones interpolated from those on either side.

    :param run: ``step`` and the records; NaN ones are left out
    :param column: of the records
    :param edges: (m + 1,) of the bins, evenly spaced
    :return: (m,) by upper edge, NaN before the first record
    """
    known = run.dropna(subset=[column])
    return bin_means(known.step, known[column], edges).interpolate()


def _draw_curve(axes: Axes, rows: pd.DataFrame, column: str, time: Timeline, look: Look, ranged: bool) -> None:
    """Draw the IQM over seeds, with its band."""
    edges = np.linspace(0, time.n_tasks * time.period, time.n_tasks * BINS_PER_TASK + 1)
    curves = pd.concat([curve(run, column, edges) for _, run in rows.groupby("seed")], axis=1).loc[: time.n_timesteps]
    middle, low, high = band(curves.to_numpy())
    axes.plot(curves.index, middle, color=look.color, ls=look.line, lw=1.6)
    if ranged:
        axes.fill_between(curves.index, low, high, color=look.color, alpha=0.15, lw=0)


def _step_axis(axes: Axes, time: Timeline) -> None:
    axes.set_xlim(0, time.n_timesteps)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for index in range(1, time.n_tasks if time.n_tasks <= 60 else 1):
        axes.axvline(index * time.period, color="0.6", lw=0.6, ls="--", zorder=0)


# -- figure 2 ----------------------------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def spectra_figure(starts: pd.DataFrame, epsilon: float, tasks: Sequence[int], look: Looks) -> Figure:
    """
    Draw the spectra at the starts of tasks: a row for each method, a column for each task, each seed pale.

    An epsilon-rank that is not resolved is written as its certified interval.

    :param starts: spectra of one environment, network and kind at task starts
    :param epsilon: is marked
    :param tasks: to show
    :param look: of the methods
    :return: the figure
    """
    shown = starts[starts.task_index.isin(tasks)]
    methods = _drawn(look, shown)
    height = 1.0 + (1.75 if len(methods) <= 4 else 1.1) * len(methods)
    figure, panels = _figure(height, len(methods), len(tasks), sharex=True, sharey=True)
    linear = epsilon / 100
    for row, method in zip(panels, methods, strict=True):
        style = look[method]
        for axes, task in zip(row, tasks, strict=True):
            there = shown[(shown.method == method) & (shown.task_index == task)]
            if there.empty:
                axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.4")
                continue
            if len(there) > 1:
                for spectrum in there.spectrum:
                    plot_density(axes, spectrum, linear=linear, color=style.color, lw=0.6, alpha=0.35)
            plot_density(axes, pooled(list(there.spectrum)), linear=linear, color=style.color, lw=1.6)
            for side in (-epsilon, epsilon):
                axes.axvline(float(symlog(np.array(side), linear)), color="0.5", lw=0.8, ls=":")
            low, high = there.epsilon_rank_low.mean(), there.epsilon_rank_high.mean()
            rank = f"{there.epsilon_rank.mean():.3g}" if high - low <= high / 2 else f"{low:.2g} to {high:.2g}"
            said = f"ε-rank {rank}"
            axes.text(0.99, 0.95, said, ha="right", va="top", transform=axes.transAxes)
            axes.set(ylim=(0.1 / max(spectrum.dim for spectrum in shown.spectrum), 20), xlabel="", ylabel="")
        row[0].set_ylabel(style.label, color=style.color, fontweight="bold", fontsize=9)
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set_title(f"start of task {task + 1}", loc="center")
    figure.supylabel("density per decade", fontsize=10)
    figure.supxlabel("eigenvalue", fontsize=10)
    return figure


def pooled(spectra: Sequence[Spectrum]) -> Spectrum:
    """
    Put the spectra of several seeds into one, each with the same weight.

    :param spectra: of matrices of one size
    :return: a spectrum with one draw
    """
    nodes = np.concatenate([spectrum.nodes.ravel() for spectrum in spectra])
    weights = np.concatenate([spectrum.weights.ravel() / spectrum.draws for spectrum in spectra])
    return Spectrum(nodes[None], weights[None] / weights.sum(), spectra[0].dim)


# -- figures 3 and 4 ---------------------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def rank_figure(tasks: pd.DataFrame, fits: pd.DataFrame, xlabel: str, look: Looks) -> Figure:
    """
    Draw the final return of tasks against the epsilon-rank at their starts, with the line through all of them.

    :param tasks: of one environment, with ``epsilon_rank`` and the ends of its certified interval,
        ``epsilon_rank_low`` and ``epsilon_rank_high``, which are drawn as bars
    :param fits: see :func:`~sb3_plasticity.study.diagnostics.fit_ranks`
    :param xlabel: what the rank is of
    :param look: of the methods
    :return: the figure
    """
    points = tasks.dropna(subset=["epsilon_rank", "final_return"])
    methods = _drawn(look, points)
    figure, ((axes,),) = _figure(4.8)
    for method in methods:
        style = look[method]
        for first, part in points[points.method == method].groupby(points.task_index == 0):
            drawn = axes.scatter(part.epsilon_rank, part.final_return, s=34, marker=style.marker, alpha=0.85)
            drawn.set(facecolor="none" if first else style.color, edgecolor=style.color)
            ends = part.epsilon_rank_low, part.epsilon_rank_high
            axes.hlines(part.final_return, *ends, color=style.color, lw=0.8, alpha=0.5)
    if not fits.empty:
        line = fits.iloc[0]
        x = np.array([points.epsilon_rank.min(), points.epsilon_rank.max()])
        axes.plot(x, line.intercept + line.slope * x, color="0.3", lw=1.5)
        fit, order = (written(each, "correlation") for each in (line.r_squared, line.spearman))
        axes.set_title(f"R² = {fit}, Spearman's ρ = {order}, n = {line.n} task starts")
    axes.set(xlabel=xlabel, ylabel="final return of the task")
    _legend(figure, methods, look, marker=True)
    return figure


@mpl.rc_context(STYLE)
def trainability_figure(table: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the share of task starts that reach a rank, and the success of those that do and that do not.

    :param table: see :func:`~sb3_plasticity.study.diagnostics.trainability`
    :param look: of the methods
    :return: the figure
    """
    together, methods = table[table.method == "all"], _drawn(look, table)
    places = np.arange(len(together))
    figure, ((left, right),) = _figure(3.8, 1, 2)
    for method in methods:
        style, rows = look[method], table[table.method == method]
        left.plot(places, 100 * rows.share_reached, color=style.color, ls=style.line, marker=style.marker, ms=6)
    for key, shift, face, label in (
        ("success_reached", -0.08, "0.2", "rank ≥ ρ"),
        ("success_below", 0.08, "white", "rank < ρ"),
    ):
        bars = {"color": "0.2", "marker": "o", "label": label, "markerfacecolor": face}
        _errorbars(right, places + shift, [vars(each) for each in together[key]], 100, **bars)
    right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
    left.set_ylabel("task starts with rank ≥ ρ, %")
    right.set_ylabel("of which succeed, %\n(all methods)")
    for axes in (left, right):
        axes.set_xticks(places, [f"{rho:g}" for rho in together.rho])
        axes.set(xlim=(-0.4, len(together) - 0.6), ylim=(-4, 104), xlabel="threshold ρ")
    _legend(figure, methods, look, marker=True)
    return figure


def _errorbars(axes: Axes, x: Any, estimates: Any, scale: float = 1.0, **style: Any) -> None:
    """Draw rows of ``value``, ``low`` and ``high``; without an interval the marker alone."""
    value, low, high = scale * pd.DataFrame(estimates)[["value", "low", "high"]].to_numpy(dtype=float).T
    axes.errorbar(x, value, np.nan_to_num([value - low, high - value]), ls="", lw=1.2, ms=6, capsize=3, **style)


# -- figures 5 and 7, cost ---------------------------------------------------------------------------------------------


@mpl.rc_context(STYLE)
def tasks_figure(summary: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the final return of every task, and its difference to the baseline's.

    :param summary: of one environment, see :func:`~sb3_plasticity.study.tasks.summarize_tasks`
    :param look: of the methods
    :return: the figure
    """
    methods, tasks = _drawn(look, summary), np.unique(summary.task_index)
    compared = summary.value[summary.measure == "difference"].notna().any()
    titles = {"final_return": "final return, IQM"}
    titles |= {"difference": "difference to the\nbaseline, IQM"} if compared else {}
    figure, panels = _figure(2.9 * len(titles), len(titles), sharex=True)
    for (axes,), (measure, title) in zip(panels, titles.items(), strict=True):
        for place, method in enumerate(methods):
            rows = summary[(summary.method == method) & (summary.measure == measure)]
            x = rows.task_index + 1 + 0.7 * ((place + 0.5) / len(methods) - 0.5)
            _errorbars(axes, x, rows, color=look[method].color, marker=look[method].marker)
        for task in tasks[1:]:
            axes.axvline(task + 0.5, color="0.9", lw=0.8, zorder=0)
        axes.set_ylabel(title)
    if compared:
        panels[1, 0].axhline(0, color="0.4", lw=1)
    if len(tasks) <= 20:
        panels[-1, 0].set_xticks(tasks + 1)
    panels[-1, 0].set_xlabel("task")
    _legend(figure, methods, look, marker=True)
    return figure


@mpl.rc_context(STYLE)
def referee_figure(verdicts: pd.DataFrame, most: int = 20) -> Figure:
    """
    Draw the rank correlations of the measures at task starts with what the tasks reach.

    :param verdicts: see :func:`~sb3_plasticity.study.diagnostics.judge`
    :param most: measures that are shown
    :return: the figure
    """
    shown = verdicts.head(most)
    places = np.arange(len(shown))
    titles = {"all": "all task starts", "within": "within methods", "between": "between methods"}
    figure, (panels,) = _figure(1.0 + 0.24 * len(shown), 1, len(titles), sharey=True, sharex=True)
    for axes, (view, title) in zip(panels, titles.items(), strict=True):
        numbers = pd.DataFrame([vars(each) for each in shown[view]])
        filled = np.where(shown[f"{view}_p"] < 0.05, "#D55E00", "white")
        axes.axvline(0, color="0.4", lw=1)
        axes.hlines(places, numbers.low, numbers.high, color="0.45", lw=1.4)
        axes.scatter(numbers.value, places, s=30, c=filled, edgecolor="0.2", zorder=3)
        axes.set_title(title)
        axes.set(xlim=(-1.02, 1.02))
    figure.supxlabel("Spearman's ρ with the final return", fontsize=10)
    panels[0].set_yticks(places, [name.removeprefix("plasticity/") for name in shown.measure], fontsize=8)
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    return figure


@mpl.rc_context(STYLE)
def cost_figure(runs: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the wall time of every run.

    :param runs: used ones of one environment, with ``method`` and ``seconds``
    :param look: of the methods
    :return: the figure
    """
    methods = _drawn(look, runs)
    unit, name = (60, "minutes") if runs.seconds.max() < 2 * 3600 else (3600, "hours")
    figure, ((axes,),) = _figure(0.9 + 0.35 * len(methods))
    for place, method in enumerate(methods):
        times, style = runs.seconds[runs.method == method] / unit, look[method]
        axes.plot(times, np.full(len(times), place), style.marker, color=style.color, ms=6, alpha=0.7)
        axes.vlines(times.median(), place - 0.3, place + 0.3, color=style.color, lw=2)
    axes.set_yticks(range(len(methods)), [look[method].label for method in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{name} a run took; the bar is the median")
    return figure
