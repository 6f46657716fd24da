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
from matplotlib.ticker import EngFormatter

from sb3_plasticity.curvature.plots import plot_density, symlog
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.measures import BINS_PER_TASK, curve
from sb3_plasticity.study.results import Timeline
from sb3_plasticity.study.statistics import Estimate, band
from sb3_plasticity.study.summary import estimate
from sb3_plasticity.study.wording import correlation

# Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
BASELINE_COLOR = "#000000"
LINE_STYLES: tuple[Any, ...] = ((0, (6, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 2, 1, 2, 1, 2)))
MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
WIDTH = 9.0
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
# More methods than this have a panel each.
TOGETHER = 2
COLUMNS = 3
# Seeds are drawn this pale beside what they are together.
PALE = 0.35


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
    others = iter(
        (COLORS[i % len(COLORS)], LINE_STYLES[i % len(LINE_STYLES)], MARKERS[i % len(MARKERS)])
        for i in range(len(methods))
    )
    return {
        method: Look(_label(method), *((BASELINE_COLOR, "-", "o") if method == baseline else next(others)))
        for method in methods
    }


def _label(method: str) -> str:
    """Return a name that matplotlib neither takes for mathematics nor leaves out of legends."""
    text = method.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


# -- curves: figures 1 and 6 -------------------------------------------------------------------------------------------


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
    methods = [method for method in look if (episodes.method == method).any()]
    others = [method for method in methods if method != baseline]
    shown = [methods] if len(methods) <= TOGETHER else [[baseline, method] for method in others]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    curves = {method: _curve(episodes[episodes.method == method], "return", time) for method in methods}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2 if rows == 1 and columns == 1 else 1.2 + 2.1 * rows), layout="constrained")
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[4 if columns == 1 else 2] * rows, 1])
        first = figure.add_subplot(grid[0, 0])
        panels = [first]
        for place in range(1, len(shown)):
            panels.append(figure.add_subplot(grid[divmod(place, columns)], sharex=first, sharey=first))
        for axes, pair in zip(panels, shown, strict=True):
            for method in pair:
                if method in curves:
                    _draw_curve(
                        axes, curves[method], look[method], band=len(pair) == len(methods) or method != baseline
                    )
            if len(shown) > 1:
                axes.set_title(look[pair[-1]].label, loc="left", color=look[pair[-1]].color, fontweight="bold")
        below = figure.add_subplot(grid[rows, :], sharex=first if columns == 1 else None)
        for _, group in episodes.groupby("seed"):
            values = group.groupby("task_index").task_value.first()
            edges = np.append(values.index.to_numpy() * time.period, time.n_timesteps)
            below.stairs(values.to_numpy(), edges, baseline=None, color="0.35", alpha=0.8, lw=1)
        if episodes.task_value.min() > 0 and episodes.task_value.max() > 3 * episodes.task_value.min():
            below.set_yscale("log")
        below.set_ylabel(f"{parameter},\neach seed's")
        for axes in (*panels, below):
            _step_axis(axes, time)
        for axes in panels[:-columns]:
            axes.tick_params(labelbottom=False)
        below.set_xlabel("environment steps")
        figure.supylabel("return of an episode", fontsize=10)
        _legend(figure, methods if len(shown) == 1 else [baseline], look)
    return figure


def panels_figure(progress: pd.DataFrame, measures: Sequence[str], time: Timeline, look: Looks) -> Figure | None:
    """
    Draw what may explain the returns: standard deviation of the policy, and measures of each network over steps.

    :param progress: of one environment, see :class:`~sb3_plasticity.study.results.Results`
    :param measures: as they are logged, ``plasticity/<network>/<measure>``
    :param time: of the runs
    :param look: of the methods
    :return: the figure; None if nothing was logged
    """
    found = {"train/std": "standard deviation of the policy"}
    for measure in measures:
        columns = [str(name) for name in progress if str(name).startswith("plasticity/")]
        found |= {
            name: f"{measure.replace('_', ' ')}, {name.split('/')[1].replace('_', ' ')}"
            for name in columns
            if name.endswith(f"/{measure}")
        }
    found = {name: title for name, title in found.items() if name in progress and progress[name].notna().any()}
    if not found:
        return None
    with mpl.rc_context(STYLE):
        height = math.ceil(len(found) / 2)
        figure = Figure(figsize=(WIDTH, 0.8 + 2.2 * height), layout="constrained")
        panels = list(figure.subplots(height, 2, sharex=True, squeeze=False).ravel())
        for axes, (name, title) in zip(panels, found.items(), strict=False):
            rows = progress[progress[name].notna()]
            methods = [method for method in look if (rows.method == method).any()]
            for method in methods:
                curves = _curve(rows[rows.method == method], name, time)
                _draw_curve(axes, curves, look[method], band=len(methods) <= TOGETHER)
            axes.set_title(title, loc="left")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
            _step_axis(axes, time)
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(found) - 2) : len(found)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("environment steps")
        _legend(figure, [method for method in look if (progress.method == method).any()], look)
    return figure


def _curve(rows: pd.DataFrame, column: str, time: Timeline) -> tuple[np.ndarray, ...]:
    """Steps, IQM over seeds, and both ends of its band."""
    edges = np.linspace(0, time.n_tasks * time.period, time.n_tasks * BINS_PER_TASK + 1)
    curves = [
        curve(run.step.to_numpy(dtype=float), run[column].to_numpy(dtype=float), edges)
        for _, run in rows.groupby("seed")
    ]
    shown = edges[1:] <= time.n_timesteps
    return edges[1:][shown], *band(np.stack(curves, axis=1)[shown])


def _draw_curve(axes: Axes, drawn: tuple[np.ndarray, ...], look: Look, band: bool) -> None:
    steps, value, low, high = drawn
    axes.plot(steps, value, color=look.color, ls=look.line, lw=1.6)
    if band:
        axes.fill_between(steps, low, high, color=look.color, alpha=0.15, lw=0)


def _step_axis(axes: Axes, time: Timeline) -> None:
    axes.set_xlim(0, time.n_timesteps)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if time.n_tasks <= 60:
        for index in range(1, time.n_tasks):
            axes.axvline(index * time.period, color="0.6", lw=0.6, ls="--", zorder=0)


def _legend(figure: Figure, methods: Sequence[str], look: Looks, marker: bool = False) -> None:
    """Put the methods that there are above the panels, where no data are."""
    handles = [
        Line2D(
            [],
            [],
            color=look[method].color,
            ls="" if marker else look[method].line,
            marker=look[method].marker if marker else "",
            lw=1.8,
            label=look[method].label,
        )
        for method in methods
    ]
    columns = max(1, min(len(handles), int(90 / (8 + max(len(method) for method in methods)))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)


# -- figure 2 ----------------------------------------------------------------------------------------------------------


def spectra_figure(starts: pd.DataFrame, epsilon: float, tasks: Sequence[int], look: Looks) -> Figure:
    """
    Draw the spectra at the starts of tasks: a row for each method, a column for each task, each seed pale.

    :param starts: spectra of one environment, network and kind at task starts
    :param epsilon: is marked
    :param tasks: to show
    :param look: of the methods
    :return: the figure
    """
    shown = starts[starts.task_index.isin(tasks)]
    methods = [method for method in look if (shown.method == method).any()]
    bottom = 0.1 / max(spectrum.dim for spectrum in shown.spectrum)
    row_height = 1.75 if len(methods) <= 4 else 1.1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + row_height * len(methods)), layout="constrained")
        panels = figure.subplots(len(methods), len(tasks), sharex=True, sharey=True, squeeze=False)
        for row, method in zip(panels, methods, strict=True):
            for axes, task in zip(row, tasks, strict=True):
                there = shown[(shown.method == method) & (shown.task_index == task)]
                _draw_spectra(axes, there, epsilon, look[method])
                axes.set(ylim=(bottom, 20), xlabel="", ylabel="")
            row[0].set_ylabel(look[method].label, color=look[method].color, fontweight="bold", fontsize=9)
        for axes, task in zip(panels[0], tasks, strict=True):
            axes.set_title(f"start of task {task + 1}")
        figure.supylabel("density per decade", fontsize=10)
        figure.supxlabel("eigenvalue", fontsize=10)
    return figure


def _draw_spectra(axes: Axes, rows: pd.DataFrame, epsilon: float, look: Look) -> None:
    if rows.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.4")
        return
    if len(rows) > 1:
        for spectrum in rows.spectrum:
            plot_density(axes, spectrum, linear=epsilon / 100, color=look.color, lw=0.6, alpha=PALE)
    plot_density(axes, pooled(list(rows.spectrum)), linear=epsilon / 100, color=look.color, lw=1.6)
    for side in (-epsilon, epsilon):
        axes.axvline(float(symlog(np.array(side), epsilon / 100)), color="0.5", lw=0.8, ls=":")
    axes.text(
        0.99, 0.95, rf"$\epsilon$-rank {rows.epsilon_rank.mean():.3g}", ha="right", va="top", transform=axes.transAxes
    )


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


def rank_figure(tasks: pd.DataFrame, fits: pd.DataFrame, xlabel: str, look: Looks) -> Figure:
    """
    Draw the final return of tasks against the epsilon-rank at their starts, with the line through all of them.

    :param tasks: of one environment, with ``epsilon_rank``
    :param fits: see :func:`~sb3_plasticity.study.curvature.fit_ranks`
    :param xlabel: what the rank is of
    :param look: of the methods
    :return: the figure
    """
    points = tasks[tasks.epsilon_rank.notna() & tasks.final_return.notna()]
    methods = [method for method in look if (points.method == method).any()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        axes = figure.subplots()
        for method in methods:
            rows, style = points[points.method == method], look[method]
            first = rows.task_index == 0
            for part, face in ((rows[~first], style.color), (rows[first], "none")):
                drawn = axes.scatter(part.epsilon_rank, part.final_return, s=34, marker=style.marker, alpha=0.85)
                drawn.set(facecolor=face, edgecolor=style.color)
        if not fits.empty:
            line = fits.iloc[0]
            x = np.array([points.epsilon_rank.min(), points.epsilon_rank.max()])
            axes.plot(x, line.intercept + line.slope * x, color="0.3", lw=1.5)
            numbers = f"$R^2$ = {correlation(line.r_squared)}, Spearman's ρ = {correlation(line.spearman)}"
            axes.set_title(f"{numbers}, n = {line.n} task starts", loc="left")
        axes.set_xlabel(xlabel)
        axes.set_ylabel("final return of the task")
        _legend(figure, methods, look, marker=True)
    return figure


def trainability_figure(table: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the share of task starts that reach a rank, and the success of those that do and that do not.

    :param table: see :func:`~sb3_plasticity.study.curvature.trainability`
    :param look: of the methods
    :return: the figure
    """
    together = table[table.method == "all"]
    methods = [method for method in look if (table.method == method).any()]
    places = np.arange(len(together))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for method in methods:
            style, rows = look[method], table[table.method == method]
            left.plot(places, 100 * rows.share_reached, color=style.color, ls=style.line, marker=style.marker, ms=6)
        left.set_ylabel("task starts with rank ≥ ρ, %")
        for key, shift, face, label in (
            ("success_reached", -0.08, "0.2", "rank ≥ ρ"),
            ("success_below", 0.08, "white", "rank < ρ"),
        ):
            _errorbars(right, places + shift, list(together[key]), "0.2", "o", 100, label=label, markerfacecolor=face)
        right.set_ylabel("of which succeed, %\n(all methods)")
        right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
        for axes in (left, right):
            axes.set_xticks(places, [f"{rho:g}" for rho in together.rho])
            axes.set(xlim=(-0.4, len(together) - 0.6), ylim=(-4, 104), xlabel="threshold ρ")
        _legend(figure, methods, look, marker=True)
    return figure


def _errorbars(
    axes: Axes, x: np.ndarray, estimates: Sequence[Estimate], color: str, marker: str, scale: float = 1.0, **more: Any
) -> None:
    values = scale * np.array([each.value for each in estimates])
    ends = scale * np.array([[each.low, each.high] for each in estimates]).T
    bars = np.where(np.isfinite(ends), np.abs(ends - values), 0.0)
    axes.errorbar(x, values, bars, color=color, marker=marker, ls="", lw=1.2, ms=6, capsize=3, **more)


# -- figure 5, referee, cost -------------------------------------------------------------------------------------------


def tasks_figure(summary: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the final return of every task, and its difference to the baseline's.

    :param summary: of one environment, see :func:`~sb3_plasticity.study.summary.summarize_tasks`
    :param look: of the methods
    :return: the figure
    """
    methods = [method for method in look if (summary.method == method).any()]
    tasks = sorted(summary.task_index.unique())
    compared = summary.value[summary.measure == "difference"].notna().any()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.8 if compared else 2.9), layout="constrained")
        panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False)[:, 0]
        for axes, measure in zip(panels, ("final_return", "difference"), strict=False):
            for place, method in enumerate(methods):
                shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
                numbers = [estimate(summary, method=method, task_index=task, measure=measure) for task in tasks]
                _errorbars(axes, np.array(tasks) + 1 + shift, numbers, look[method].color, look[method].marker)
            for task in tasks[1:]:
                axes.axvline(task + 0.5, color="0.9", lw=0.8, zorder=0)
        panels[0].set_ylabel("final return, IQM")
        if compared:
            panels[1].axhline(0, color="0.4", lw=1)
            panels[1].set_ylabel("difference to the\nbaseline, IQM")
        if len(tasks) <= 20:
            panels[-1].set_xticks([task + 1 for task in tasks])
        panels[-1].set_xlabel("task")
        _legend(figure, methods, look, marker=True)
    return figure


def referee_figure(verdicts: pd.DataFrame, most: int = 20) -> Figure:
    """
    Draw the rank correlations of the measures at task starts with what the tasks reach.

    :param verdicts: see :func:`~sb3_plasticity.study.referee.judge`
    :param most: measures that are shown
    :return: the figure
    """
    shown = verdicts.head(most)
    places = np.arange(len(shown))
    titles = {"all": "all task starts", "within": "within methods", "between": "between methods"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.24 * len(shown)), layout="constrained")
        panels = figure.subplots(1, len(titles), sharey=True, sharex=True)
        for axes, (view, title) in zip(panels, titles.items(), strict=True):
            sure = shown[f"{view}_p"] < 0.05
            axes.axvline(0, color="0.4", lw=1)
            axes.hlines(places, shown[f"{view}_low"], shown[f"{view}_high"], color="0.45", lw=1.4)
            axes.scatter(shown[view], places, s=30, c=np.where(sure, "#D55E00", "white"), edgecolor="0.2", zorder=3)
            axes.set_title(title, loc="left")
            axes.set(xlim=(-1.02, 1.02), xlabel="Spearman's ρ with the final return")
        panels[0].set_yticks(places, [name.removeprefix("plasticity/") for name in shown.measure], fontsize=8)
        panels[0].set_ylim(len(shown) - 0.5, -0.5)
    return figure


def cost_figure(runs: pd.DataFrame, look: Looks) -> Figure:
    """
    Draw the wall time of every run.

    :param runs: used ones of one environment, with ``method`` and ``seconds``
    :param look: of the methods
    :return: the figure
    """
    methods = [method for method in look if (runs.method == method).any()]
    minutes = runs.seconds.max() < 2 * 3600
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.35 * len(methods)), layout="constrained")
        axes = figure.subplots()
        for place, method in enumerate(methods):
            times = runs.seconds[runs.method == method] / (60 if minutes else 3600)
            axes.plot(times, np.full(len(times), place), look[method].marker, color=look[method].color, ms=6, alpha=0.7)
            axes.vlines(times.median(), place - 0.3, place + 0.3, color=look[method].color, lw=2)
        axes.set_yticks(range(len(methods)), [look[method].label for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{'minutes' if minutes else 'hours'} a run took; the bar is the median")
    return figure
