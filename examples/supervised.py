"""
Code shared by the examples of continual classification: methods, Hessians, regressions over task starts, and figures.

A method is Adam on the cross-entropy with mitigations of this package. Strengths are published defaults if there is one
that transfers; none was tuned for a comparison.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch as th
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional as F

from sb3_plasticity import Mitigation, Spectrum, hessian_spectrum
from sb3_plasticity.curvature.plots import plot_density, symlog
from sb3_plasticity.mitigations import (
    FIRE,
    L2,
    CalibratedPartialResets,
    ContinualBackprop,
    CReLU,
    EffectiveRank,
    L2Init,
    LayerNormReLU,
    LayerReset,
    Parseval,
    ReDo,
    RegenerativeWasserstein,
    ReGraMa,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    SpectralRegularization,
)
from sb3_plasticity.study.statistics import (
    Estimate,
    centred,
    cluster_interval,
    clusters,
    r_squared,
    spearman,
)


class Method(NamedTuple):
    """
    A method of the comparison.

    :param mitigations: function that creates the mitigations of a run from the strengths of L2 and of the effective
        rank
    :param activation: activation of the hidden layers
    """

    mitigations: Callable[[float, float], list[Mitigation]]
    activation: type[nn.Module] = nn.ReLU


METHODS: dict[str, Method] = {
    "BP": Method(lambda l2, er: []),
    "L2": Method(lambda l2, er: [L2(l2)]),
    "ER": Method(lambda l2, er: [EffectiveRank(er, interval=4)]),
    "L2-ER": Method(lambda l2, er: [EffectiveRank(er, interval=4), L2(l2)]),
    "L2-Init": Method(lambda l2, er: [L2Init(2 * l2)]),
    "Wasserstein": Method(lambda l2, er: [RegenerativeWasserstein(1e-3)]),
    "Spectral": Method(lambda l2, er: [SpectralRegularization(1e-4)]),
    "Parseval": Method(lambda l2, er: [Parseval(1e-3, scale=1 / 3)]),  # torch's rows have squared norm 1 / 3
    "Shrink-Perturb": Method(lambda l2, er: [ShrinkAndPerturb(0.5, 0.5, when="task")]),
    "LayerNorm": Method(lambda l2, er: [], LayerNormReLU),
    "LayerNorm-L2": Method(lambda l2, er: [L2(l2)], LayerNormReLU),
    "CReLU": Method(lambda l2, er: [], CReLU),
    # a maturity of 10,000 updates would outlast whole studies of such short tasks
    "CBP": Method(lambda l2, er: [ContinualBackprop(1e-4, maturity_threshold=100)]),
    "CBP-L2": Method(lambda l2, er: [ContinualBackprop(1e-4, maturity_threshold=100), L2(l2)]),
    "ReDo": Method(lambda l2, er: [ReDo(0.025, every=1000)]),
    "ReGraMa": Method(lambda l2, er: [ReGraMa(0.01, every=1000)]),
    "SNR": Method(lambda l2, er: [SelfNormalizedResets()]),
    "CPR": Method(lambda l2, er: [CalibratedPartialResets(every=1000)]),
    "FIRE": Method(lambda l2, er: [FIRE(when="task")]),
    "Reset": Method(lambda l2, er: [LayerReset("all", when="task")]),
}


class Fit(NamedTuple):
    """
    A straight line through task starts, its intervals over seeds.

    :param slope: accuracy per unit of the epsilon-rank
    :param intercept: accuracy at rank 0
    :param r_squared: share of the variance that the line explains
    :param spearman: rank correlation
    :param n: task starts
    """

    slope: float
    intercept: float
    r_squared: Estimate
    spearman: Estimate
    n: int


def cross_entropy_hessian(network: nn.Module, images: th.Tensor, labels: th.Tensor, steps: int) -> Spectrum:
    """
    Spectrum of the mean cross-entropy's Hessian in all of a network's parameters.

    :param network: in evaluation mode; not changed
    :param images: (N, ...)
    :param labels: (N,)
    :param steps: of Lanczos
    """

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return F.cross_entropy(th.func.functional_call(network, params, (batch[0],)), batch[1])

    params = {name: value.detach() for name, value in network.named_parameters()}
    return hessian_spectrum(loss_fn, params, (images, labels), steps=steps)


def by_seed(table: pd.DataFrame, method: str, column: str) -> pd.DataFrame:
    """One column of a method's rows: a row per seed, a column per task in which it was measured."""
    return table[table.method == method].pivot(index="seed", columns="task", values=column).dropna(axis=1)


def fit_accuracy(table: pd.DataFrame, column: str, within: str | None = None) -> Fit | None:
    """
    Fit the tasks' accuracy by a line in the epsilon-rank at their start, both in per cent.

    :param table: rows of all runs; first tasks do not count: a fresh network has no past to suffer from
    :param column: with the epsilon-rank
    :param within: ``"method"`` or ``"task"``: differences between methods, or the course of time, explain nothing
    :return: the fit; its intervals resample seeds, because tasks of one run are not independent
    """
    measured = table[(table.task > 0) & table[column].notna()]
    x, y = (100 * measured[name].to_numpy() for name in (column, "accuracy"))
    if within:
        x, y = (centred(values, measured[within].to_numpy()) for values in (x, y))
    keep = np.isfinite(x) & np.isfinite(y)
    points = np.stack([x[keep], y[keep]], axis=1)
    if len(points) < 3 or np.isnan(r_squared(points)):
        return None
    members = clusters(points, measured.seed.to_numpy()[keep])
    slope, intercept = np.polyfit(points[:, 0], points[:, 1], 1)
    certain, ordered = (cluster_interval(members, statistic) for statistic in (r_squared, spearman))
    return Fit(float(slope), float(intercept), certain, ordered, len(points))


def draw_fit(axes: Axes, table: pd.DataFrame, column: str, colors: dict[str, str]) -> Fit | None:
    """
    Draw accuracy against epsilon-rank in per cent, a point for each measured task of each run, and the line.

    :param axes: to draw on
    :param table: rows of all runs
    :param column: with the epsilon-rank
    :param colors: of the methods
    :return: the line
    """
    measured = table[(table.task > 0) & table[column].notna()].sample(frac=1, random_state=0)  # no method hides another
    x = 100 * measured[column]
    axes.scatter(x, 100 * measured.accuracy, c=list(measured.method.map(colors)), s=14, alpha=0.6, lw=0)
    line = fit_accuracy(table, column)
    if line is not None:
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, line.intercept + line.slope * ends, color="black", lw=1.5)
    return line


def draw_spectra(axes: Axes, spectra: Sequence[tuple[str, Spectrum]], epsilon: float, color: str) -> None:
    """
    Draw densities over each other, the later the darker; the dotted lines are at -epsilon and epsilon.

    :param axes: to draw on
    :param spectra: label and spectrum, in order of time
    :param epsilon: threshold of the epsilon-rank; the axis is linear up to a tenth of it
    :param color: of all of them
    """
    for (label, spectrum), alpha in zip(spectra, np.linspace(0.3, 1, len(spectra)), strict=True):
        plot_density(axes, spectrum, linear=epsilon / 10, color=color, alpha=alpha, lw=1.5, label=label)
    for position in symlog(epsilon * np.array([-1, 1]), epsilon / 10):
        axes.axvline(position, color="black", lw=0.8, ls=":")
