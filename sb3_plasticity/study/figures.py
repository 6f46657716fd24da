"""Figures of a study, each for one environment, from the tables of :mod:`sb3_plasticity.study.results`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from sb3_plasticity.curvature.plots import plot_density, symlog
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.spec import ReportSpec, Study
from sb3_plasticity.study.statistics import BINS_PER_TASK, Estimate, Fit, band, curve
from sb3_plasticity.study.wording import correlation, short

# Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white paper swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
BASELINE_COLOR = "#000000"
LINE_STYLES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 2, 1, 2, 1, 2)))
MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<")
WIDTH = 9.0
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
# Seeds are drawn this pale beside what they are together.
_PALE = 0.35


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


@dataclass(frozen=True)
class Measure:
    """
    A mechanism's panel.

    :param title: of the panel
    :param sources: columns of the progress table that it may come from; the first that most methods have is taken for
        all of them
    :param squared_sum: it is the sum of the squares of the columns of a source, not their only one
    """

    title: str
    sources: tuple[tuple[str, ...], ...]
    squared_sum: bool = False


MECHANISMS = (
    Measure("standard deviation of the policy", (("train/std",),)),
    Measure(
        r"squared norm of the parameters, $\|\theta\|^2$",
        (("plasticity/policy/weight_norm", "plasticity/value/weight_norm"),),
        squared_sum=True,
    ),
    Measure("effective rank, policy features", (("train/erank_policy",), ("plasticity/policy/effective_rank",))),
    Measure("effective rank, value features", (("train/erank_value",), ("plasticity/value/effective_rank",))),
    Measure("share of dormant units, policy", (("plasticity/policy/dormant_units",),)),
    Measure("share of dormant units, value network", (("plasticity/value/dormant_units",),)),
)


def looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """
    Give every method its colour, line style and marker.

    :param methods: in the study's order
    :param baseline: drawn in black, solid, with circles
    :return: by method
    """
    found = {}
    others = [method for method in methods if method != baseline]
    for method in methods:
        if method == baseline:
            found[method] = Look(_label(method), BASELINE_COLOR, "-", "o")
        else:
            i = others.index(method)
            line = LINE_STYLES[1 + i % (len(LINE_STYLES) - 1)]
            found[method] = Look(_label(method), COLORS[i % len(COLORS)], line, MARKERS[i % len(MARKERS)])
    return found


def _label(method: str) -> str:
    """Return a name that matplotlib neither takes for mathematics nor leaves out of legends."""
    text = method.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


# -- figure 1 ----------------------------------------------------------------------------------------------------------


def returns_figure(episodes: pd.DataFrame, study: Study, look: Mapping[str, Look]) -> Figure:
    """
    Draw the return over steps: IQM and band of each method, the task boundaries, and below the tasks' values.

    :param episodes: of one environment, see :class:`~sb3_plasticity.study.results.Results`
    :param study: they are of
    :param look: of the methods
    :return: the figure
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_curves(above, episodes, "return", study, look)
        above.set_ylabel("return of an episode")
        for _, group in episodes.groupby("seed"):
            values = group.groupby("task_index").task_value.first()
            edges = np.append(values.index.to_numpy() * study.period, study.n_timesteps)
            below.stairs(values.to_numpy(), edges, baseline=None, color="0.35", alpha=0.8, lw=1)
        _log_axis(below, episodes.task_value)
        below.set_ylabel(f"{_parameter(study)},\neach seed's")
        _step_axis(below, study)
        _boundaries((above, below), study)
        _legend(figure, episodes.method, look)
    return figure


def _parameter(study: Study) -> str:
    return str(study.env_kwargs.get("parameter", "friction")).replace("_", " ")


def _draw_curves(axes: Axes, rows: pd.DataFrame, column: str, study: Study, look: Mapping[str, Look]) -> None:
    edges = np.linspace(0, study.n_tasks * study.period, study.n_tasks * BINS_PER_TASK + 1)
    for method, runs in rows.groupby("method", sort=False):
        curves = [
            curve(run.step.to_numpy(dtype=float), run[column].to_numpy(dtype=float), edges)
            for _, run in runs.groupby("seed")
        ]
        shown = edges[1:] <= study.n_timesteps
        value, low, high = band(np.stack(curves, axis=1)[shown])
        style = look[str(method)]
        axes.plot(edges[1:][shown], value, color=style.color, ls=style.line, lw=1.8)
        axes.fill_between(edges[1:][shown], low, high, color=style.color, alpha=0.12, lw=0)
        for end in (low, high):
            axes.plot(edges[1:][shown], end, color=style.color, alpha=0.45, lw=0.6)


def _log_axis(axes: Axes, values: pd.Series) -> None:
    if values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
        ticks = [10.0**k for k in range(low, high + 1)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)
        axes.set_ylim(values.min() / 1.3, values.max() * 1.3)


def _step_axis(axes: Axes, study: Study) -> None:
    axes.set_xlim(0, study.n_timesteps)
    axes.set_xlabel("environment steps")
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short(step)))


def _boundaries(panels: Sequence[Axes], study: Study) -> None:
    if study.n_tasks > 60:
        return
    for axes in panels:
        for index in range(1, study.n_tasks):
            axes.axvline(index * study.period, color="0.6", lw=0.8, ls="--", zorder=0)


def _legend(figure: Figure, methods: pd.Series, look: Mapping[str, Look], marker: bool = False) -> None:
    """Put the methods that there are above the panels, where no data are."""
    present = [method for method in look if (methods == method).any()]
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
        for method in present
    ]
    columns = max(1, min(len(handles), int(90 / (8 + max(len(method) for method in present)))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)


# -- figure 2 ----------------------------------------------------------------------------------------------------------


def spectra_figure(starts: pd.DataFrame, spec: ReportSpec, tasks: Sequence[int], look: Mapping[str, Look]) -> Figure:
    """
    Draw the spectra at the starts of tasks: a row for each method, a column for each task, each seed pale.

    :param starts: spectra of one environment, network and kind at task starts
    :param spec: its epsilon is marked
    :param tasks: to show
    :param look: of the methods
    :return: the figure
    """
    methods = [method for method in look if (starts.method == method).any()]
    linear = spec.epsilon / 100
    shown = starts[starts.task_index.isin(tasks)]
    nodes = [symlog(spectrum.nodes, linear) for spectrum in shown.spectrum]
    limits = min(values.min() for values in nodes) - 0.5, max(values.max() for values in nodes) + 0.5
    bottom = 0.1 / max(spectrum.dim for spectrum in shown.spectrum)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 1.75 * len(methods)), layout="constrained")
        panels = figure.subplots(len(methods), len(tasks), sharex=True, sharey=True, squeeze=False)
        for row, method in zip(panels, methods, strict=True):
            for axes, task in zip(row, tasks, strict=True):
                there = shown[(shown.method == method) & (shown.task_index == task)]
                _draw_spectra(axes, there, spec.epsilon, linear, look[method])
                axes.set(xlim=limits, ylim=(bottom, 20), xlabel="", ylabel="")
            row[0].set_ylabel(look[method].label, color=look[method].color, fontweight="bold")
        for axes, task in zip(panels[0], tasks, strict=True):
            axes.set_title(f"start of task {task + 1}")
        for axes in panels[-1]:
            _eigenvalue_axis(axes, limits, spec.epsilon, linear)
        figure.supylabel("density per decade", fontsize=10)
        figure.supxlabel("eigenvalue", fontsize=10)
    return figure


def _draw_spectra(axes: Axes, rows: pd.DataFrame, epsilon: float, linear: float, look: Look) -> None:
    if rows.empty:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="0.4")
        return
    if len(rows) > 1:
        for spectrum in rows.spectrum:
            plot_density(axes, spectrum, linear=linear, color=look.color, lw=0.6, alpha=_PALE)
    plot_density(axes, pooled(list(rows.spectrum)), linear=linear, color=look.color, lw=1.6)
    for side in (-epsilon, epsilon):
        axes.axvline(float(symlog(np.array(side), linear)), color="0.5", lw=0.8, ls=":")
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


def _eigenvalue_axis(axes: Axes, limits: tuple[float, float], epsilon: float, linear: float) -> None:
    """Name 0 and a few powers of ten on either side, epsilon among them."""
    base = math.log10(epsilon)
    values = [0.0]
    furthest = math.ceil(max(-limits[0], limits[1]))
    for decade in range(0, max(furthest, 1), 2 if furthest < 8 else 3):
        values += [10.0 ** (base + decade), -(10.0 ** (base + decade))]
    places = [(float(symlog(np.array(value), linear)), value) for value in values]
    inside = [(place, value) for place, value in places if limits[0] <= place <= limits[1]]
    axes.set_xticks([place for place, _ in inside], [_power(value) for _, value in inside])


def _power(value: float) -> str:
    if value == 0:
        return "0"
    sign, exponent = "-" if value < 0 else "", math.log10(abs(value))
    if abs(exponent - round(exponent)) > 1e-9:
        return f"{value:.2g}"
    return f"${sign}10^{{{round(exponent)}}}$" if abs(round(exponent)) > 1 else f"{value:g}"


# -- figure 3 ----------------------------------------------------------------------------------------------------------


def rank_figure(
    tasks: pd.DataFrame, column: str, spec: ReportSpec, line: Fit | None, name: str, look: Mapping[str, Look]
) -> Figure:
    """
    Draw the final return of tasks against the epsilon-rank at their starts, with the fit.

    :param tasks: of one environment, see :func:`~sb3_plasticity.study.results.task_table`
    :param column: of the rank
    :param spec: of the report
    :param line: fit to all of them; None for none
    :param name: of the matrix, such as ``"policy GGN"``
    :param look: of the methods
    :return: the figure
    """
    points = tasks[tasks[column].notna() & tasks.final_return.notna()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
        axes = figure.subplots()
        for method, rows in points.groupby("method", sort=False):
            style = look[str(method)]
            first = rows.task_index == 0
            for part, face in ((rows[~first], style.color), (rows[first], "none")):
                points_of = axes.scatter(part[column], part.final_return, s=34, marker=style.marker, alpha=0.85)
                points_of.set(facecolor=face, edgecolor=style.color)
        if line is not None:
            x = np.array([points[column].min(), points[column].max()])
            axes.plot(x, line.intercept + line.slope * x, color="0.3", lw=1.5)
            numbers = f"$R^2$ = {correlation(line.r_squared)}, Spearman's ρ = {correlation(line.spearman)}"
            axes.set_title(f"{numbers}, n = {line.n} task starts", loc="left")
        axes.set_xlabel(rf"$\epsilon$-rank of the {name} at the start of the task, $\epsilon$ = {spec.epsilon:g}")
        axes.set_ylabel("final return of the task")
        _legend(figure, points.method, look, marker=True)
    return figure


# -- tau-trainability --------------------------------------------------------------------------------------------------


def trainability_figure(
    by_method: Mapping[str, Sequence[Mapping[str, Any]]],
    together: Sequence[Mapping[str, Any]],
    look: Mapping[str, Look],
) -> Figure:
    """
    Draw the share of task starts that reach a rank, and the success of those that do and that do not.

    :param by_method: rows of :func:`~sb3_plasticity.study.statistics.trainability` for each method
    :param together: the same of all methods
    :param look: of the methods
    :return: the figure
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        places = np.arange(len(together))
        for method, rows in by_method.items():
            style = look[method]
            shares = [100 * row["share_reached"] for row in rows]
            left.plot(places, shares, color=style.color, ls=style.line, marker=style.marker, ms=6)
        left.set_ylabel("task starts with rank ≥ ρ, %")
        for key, shift, face, label in (
            ("success_reached", -0.08, "0.2", "rank ≥ ρ"),
            ("success_below", 0.08, "white", "rank < ρ"),
        ):
            estimates = [row[key] for row in together]
            _errorbars(right, places + shift, estimates, "0.2", "o", 100.0, label=label, markerfacecolor=face)
        right.set_ylabel("of which succeed, %\n(all methods)")
        right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
        for axes in (left, right):
            axes.set_xticks(places, [f"{row['rho']:g}" for row in together])
            axes.set_xlim(-0.4, len(together) - 0.6)
            axes.set_xlabel("threshold ρ")
            axes.set_ylim(-4, 104)
        _legend(figure, pd.Series(list(by_method)), look, marker=True)
    return figure


def _errorbars(
    axes: Axes,
    x: np.ndarray,
    estimates: Sequence[Estimate],
    color: str,
    marker: str,
    scale: float = 1.0,
    **more: Any,
) -> None:
    values = scale * np.array([estimate.value for estimate in estimates])
    ends = scale * np.array([[estimate.low, estimate.high] for estimate in estimates]).T
    bars = np.where(np.isfinite(ends), np.abs(ends - values), 0.0)
    axes.errorbar(x, values, bars, color=color, marker=marker, ls="", lw=1.2, ms=6, capsize=3, **more)


# -- by task -----------------------------------------------------------------------------------------------------------


def tasks_figure(
    finals: Mapping[str, Sequence[Estimate]], differences: Mapping[str, Sequence[Estimate]], look: Mapping[str, Look]
) -> Figure:
    """
    Draw the final return of every task, and its difference to the baseline's.

    :param finals: of each method, a number per task
    :param differences: of each method but the baseline, a number per task; may be empty
    :param look: of the methods
    :return: the figure
    """
    with mpl.rc_context(STYLE):
        count = 2 if differences else 1
        figure = Figure(figsize=(WIDTH, 2.9 * count), layout="constrained")
        panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        n_tasks = len(next(iter(finals.values())))
        for axes, shown in zip(panels, (finals, differences), strict=False):
            for method, estimates in shown.items():
                shift = 0.5 * ((list(finals).index(method) + 0.5) / len(finals) - 0.5)
                _errorbars(axes, np.arange(1, n_tasks + 1) + shift, estimates, look[method].color, look[method].marker)
        panels[0].set_ylabel("final return, IQM")
        if differences:
            panels[1].axhline(0, color="0.4", lw=1)
            panels[1].set_ylabel("difference to the\nbaseline, IQM")
        for boundary in range(1, n_tasks):
            for axes in panels:
                axes.axvline(boundary + 0.5, color="0.9", lw=0.8, zorder=0)
        if n_tasks <= 20:
            panels[-1].set_xticks(range(1, n_tasks + 1))
        panels[-1].set_xlabel("task")
        _legend(figure, pd.Series(list(finals)), look, marker=True)
    return figure


# -- mechanisms --------------------------------------------------------------------------------------------------------


def mechanisms_figure(progress: pd.DataFrame, study: Study, look: Mapping[str, Look]) -> Figure | None:
    """
    Draw what may explain the returns: standard deviation, norm, effective ranks and dormant units over steps.

    :param progress: of one environment, see :class:`~sb3_plasticity.study.results.Results`
    :param study: it is of
    :param look: of the methods
    :return: the figure; None if nothing was logged
    """
    found = [(measure, rows) for measure in MECHANISMS if (rows := mechanism(progress, measure)) is not None]
    if not found:
        return None
    with mpl.rc_context(STYLE):
        height = math.ceil(len(found) / 2)
        figure = Figure(figsize=(WIDTH, 0.8 + 2.2 * height), layout="constrained")
        panels = list(figure.subplots(height, 2, sharex=True, squeeze=False).ravel())
        for axes, (measure, rows) in zip(panels, found, strict=False):
            _draw_curves(axes, rows, "value", study, look)
            axes.set_title(measure.title, loc="left")
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(found) - 2) : len(found)]:
            _step_axis(axes, study)
            axes.tick_params(labelbottom=True)
        _boundaries(panels[: len(found)], study)
        _legend(figure, progress.method, look)
    return figure


def mechanism(progress: pd.DataFrame, measure: Measure) -> pd.DataFrame | None:
    """
    Find a measure in the logs, from one source for all methods: two sources' numbers cannot be compared.

    :param progress: of one environment
    :param measure: what to find
    :return: ``method``, ``seed``, ``step``, ``value``; None if no method has it
    """

    def values(source: Sequence[str]) -> pd.Series:
        numbers = progress.reindex(columns=list(source)).astype(float)
        return (numbers**2).sum(axis=1, skipna=False) if measure.squared_sum else numbers.iloc[:, 0]

    def methods(numbers: pd.Series) -> int:
        return progress.method[numbers.notna()].nunique()

    best: Callable[[pd.Series], int] = methods
    chosen = max((values(source) for source in measure.sources), key=best)
    rows = progress[["method", "seed", "step"]].assign(value=chosen).dropna()
    return None if rows.empty else rows


# -- cost --------------------------------------------------------------------------------------------------------------


def cost_figure(runs: pd.DataFrame, look: Mapping[str, Look]) -> Figure:
    """
    Draw the wall time of every run.

    :param runs: used ones of one environment, with ``method`` and ``seconds``
    :param look: of the methods
    :return: the figure
    """
    methods = [method for method in look if (runs.method == method).any()]
    minutes = runs.seconds.max() < 2 * 3600
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.45 * len(methods)), layout="constrained")
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
