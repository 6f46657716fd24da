"""
Measures of a task, and what several seeds say about a method: interquartile means, bootstrap intervals, fits.

Seeds are what is resampled, never tasks: the tasks of one seed share an agent and a sequence of frictions. Everything
random has a fixed seed, so that the same runs give the same numbers.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
# Bins of a task: curves over steps have a point for each, and recovery is told in them.
BINS_PER_TASK = 20
_RESAMPLES = 9_999
# Curves have hundreds of points, and clusters' statistics are computed one resample at a time.
_RESAMPLES_MANY = 2_000
_SEED = 0
# How often the 95% interval holds the truth, in per cent: the percentile bootstrap of the IQM of n values from a normal
# distribution, 2,000 draws each (tests/study/test_statistics.py does it again). By theory two seeds cannot give more
# than 50 and three not more than 75: their interval is at most from the smallest to the largest.
COVERAGE = {2: 50, 3: 75, 4: 87, 5: 90, 6: 90, 7: 92, 8: 93, 10: 93, 20: 95}

Statistic = Callable[..., Any]


@dataclass(frozen=True)
class Estimate:
    """
    A number with its interval.

    :param value: the statistic itself; NaN where there is nothing to take it of
    :param low: lower end of the interval; NaN where there are fewer than two seeds
    :param high: upper end
    :param n: values (seeds) it is of
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 is outside of it."""
        return self.has_interval and not self.low <= 0 <= self.high


# -- a task ------------------------------------------------------------------------------------------------------------


def final_return(steps: np.ndarray, returns: np.ndarray, begin: int, end: int, share: float) -> float:
    """
    Mean return of the episodes that ended in the last ``share`` of a task, or after it while still under it.

    :param steps: (n,) environment steps at which the task's episodes ended
    :param returns: (n,) their returns
    :param begin: step at which the task was due
    :param end: step at which the next one was due, or the run ended
    :param share: of the task's steps, in (0, 1]
    :return: the mean; NaN if no episode ended there
    """
    last = returns[steps > end - share * (end - begin)]
    return float(last.mean()) if last.size else math.nan


def area_under_curve(returns: np.ndarray, lengths: np.ndarray) -> float:
    """
    Average return over a task's time: the mean over its episodes, each weighted by its length.

    :param returns: (n,) of the episodes
    :param lengths: (n,) in steps
    :return: the average; NaN for no episode
    """
    return float((returns * lengths).sum() / lengths.sum()) if lengths.sum() > 0 else math.nan


def steps_to_recover(
    steps: np.ndarray, returns: np.ndarray, begin: int, end: int, before: float, share: float
) -> float:
    """
    Steps from a task's beginning until its return has come back from its lowest point.

    The task's episodes are averaged in twentieths of its time. It has recovered at the end of the first twentieth, not
    before that of the lowest average, that reaches ``low + share * (before - low)``. A task whose lowest average is not
    below ``before`` had nothing to recover from: 0 steps.

    :param steps: (n,) environment steps at which the task's episodes ended
    :param returns: (n,) their returns
    :param begin: step at which the task was due
    :param end: step at which the next one was due, or the run ended
    :param before: final return of the task before
    :param share: of the way back, in (0, 1]
    :return: steps; infinity if it did not recover; NaN without a task before, or without episodes
    """
    if not math.isfinite(before) or not len(steps):
        return math.nan
    edges = np.linspace(begin, end, BINS_PER_TASK + 1)
    means = bin_means(np.minimum(steps, end), returns, edges)
    at, known = edges[1:][np.isfinite(means)] - begin, means[np.isfinite(means)]
    lowest = int(known.argmin())
    if known[lowest] >= before:
        return 0.0
    recovered = known[lowest:] >= known[lowest] + share * (before - known[lowest])
    return float(at[lowest + int(recovered.argmax())]) if recovered.any() else math.inf


def bin_means(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """
    Average what falls between edges, the upper one included.

    :param steps: (n,) where; what is outside of the edges is left out
    :param values: (n,) what
    :param edges: (m + 1,) ascending
    :return: (m,), NaN for an empty bin
    """
    bins = np.searchsorted(edges, steps, side="left") - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    counts = np.bincount(bins[inside], minlength=len(edges) - 1)
    sums = np.bincount(bins[inside], weights=values[inside], minlength=len(edges) - 1)
    return np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)


def curve(steps: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """
    Put a run's records on a grid: means of bins, empty ones interpolated from those on either side.

    :param steps: (n,) of the records
    :param values: (n,) records; NaN ones are left out
    :param edges: (m + 1,) of the bins, ascending
    :return: (m,), NaN before the first record
    """
    known = np.isfinite(values)
    means = bin_means(steps[known], values[known], edges)
    filled = np.isfinite(means)
    if not filled.any():
        return means
    return np.interp(edges[1:], edges[1:][filled], means[filled], left=math.nan)


# -- seeds -------------------------------------------------------------------------------------------------------------


def iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Interquartile mean: of what is left when a quarter, rounded down, is taken off at either end.

    Of three values it is the mean, of five that of the middle three; as in Agarwal et al. 2021.

    :param values: numbers
    :param axis: over which
    :return: without that axis
    """
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(*strata: np.ndarray, statistic: Statistic = iqm) -> Estimate:
    """
    Take a statistic of runs and its stratified percentile bootstrap interval.

    :param strata: one array of numbers, one for each run, for each environment: runs are resampled within theirs. NaN
        ones are left out
    :param statistic: of all of them together; takes ``axis``
    :return: estimate with a 95% interval; none where an environment has a single run
    """
    known = [stratum[np.isfinite(stratum)] for stratum in (np.asarray(values, dtype=float) for values in strata)]
    known = [stratum for stratum in known if stratum.size]
    n = sum(stratum.size for stratum in known)
    if not known:
        return Estimate(math.nan)
    value = float(statistic(np.concatenate(known), axis=-1))
    if min(stratum.size for stratum in known) < 2:
        return Estimate(value, n=n)

    def pooled(*samples: np.ndarray, axis: int) -> np.ndarray:
        return statistic(np.concatenate(samples, axis=axis), axis=axis)

    result = stats.bootstrap(known, pooled, n_resamples=_RESAMPLES, **_settings(vectorized=True))
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high), n)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    IQM over seeds at every point of a curve, with pointwise percentile bootstrap intervals.

    :param values: (points, seeds)
    :return: IQM, lower and upper ends, (points,) each: NaN where a seed has no value, and both ends for a single seed
    """
    value = np.full((3, len(values)), math.nan)
    whole = np.isfinite(values).all(1) & (values.shape[1] > 0)
    if whole.any():
        value[0, whole] = iqm(values[whole])
    if whole.any() and values.shape[1] > 1:
        result = stats.bootstrap(
            (values[whole],), iqm, axis=-1, n_resamples=_RESAMPLES_MANY, batch=200, **_settings(vectorized=True)
        )
        value[1, whole], value[2, whole] = result.confidence_interval.low, result.confidence_interval.high
    return value[0], value[1], value[2]


def paired(own: pd.Series, baseline: pd.Series) -> pd.Series:
    """
    Differences between a method's runs and the baseline's, each to that of the same seed.

    :param own: a number for each run, indexed by seed (or by whatever pairs them)
    :param baseline: likewise
    :return: own - baseline where both have a finite number
    """
    left, right = own.align(baseline, join="inner")
    difference = left - right
    return difference[np.isfinite(difference.to_numpy(dtype=float))]


def cluster_interval(clusters: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float]) -> Estimate:
    """
    Take a statistic of rows and its percentile bootstrap interval, resampling whole clusters of rows.

    Resamples that the statistic is not defined on (NaN) are left out.

    :param clusters: (rows, columns) for each cluster, such as a seed
    :param statistic: of (rows, columns), whatever their order
    :return: estimate; without an interval for fewer than two clusters
    """
    held = [np.asarray(cluster, dtype=float) for cluster in clusters if len(cluster)]
    if not held:
        return Estimate(math.nan)
    value = statistic(np.concatenate(held))
    if len(held) < 2:
        return Estimate(value, n=len(held))

    @functools.cache  # of five clusters there are but 126 different resamples
    def of_members(members: tuple[int, ...]) -> float:
        return statistic(np.concatenate([held[index] for index in members]))

    def resampled(indices: np.ndarray) -> float:
        return of_members(tuple(np.sort(indices).tolist()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # NaN is dealt with below
        result = stats.bootstrap(
            (np.arange(len(held)),), resampled, n_resamples=_RESAMPLES_MANY, **_settings(vectorized=False)
        )
    distribution = result.bootstrap_distribution
    if np.isfinite(distribution).sum() < len(distribution) / 2:
        return Estimate(value, n=len(held))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(distribution, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(held))


def _settings(vectorized: bool) -> dict[str, Any]:
    return {
        "method": "percentile",
        "confidence_level": CONFIDENCE,
        "vectorized": vectorized,
        "rng": np.random.default_rng(_SEED),
    }


# -- rank and return ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """
    A straight line through task starts.

    :param slope: return per unit of the epsilon-rank
    :param intercept: return at rank 0
    :param r_squared: share of the variance that the line explains
    :param spearman: rank correlation
    :param n: task starts
    """

    slope: float
    intercept: float
    r_squared: Estimate
    spearman: Estimate
    n: int


def fit(x: np.ndarray, y: np.ndarray, clusters: np.ndarray) -> Fit | None:
    """
    Fit y by a line in x, with intervals that resample clusters: points of one cluster are not independent.

    :param x: (n,)
    :param y: (n,)
    :param clusters: (n,) to which cluster each point belongs
    :return: the fit; None where there are fewer than three points, or all are alike in x or y
    """
    keep = np.isfinite(x) & np.isfinite(y)
    points = np.stack([x[keep], y[keep]], axis=1)
    if len(points) < 3 or math.isnan(r_squared(points)):
        return None
    members = [points[clusters[keep] == cluster] for cluster in pd.unique(clusters[keep])]
    line = stats.linregress(points[:, 0], points[:, 1])
    return Fit(
        float(line.slope),
        float(line.intercept),
        cluster_interval(members, r_squared),
        cluster_interval(members, spearman),
        len(points),
    )


def r_squared(points: np.ndarray) -> float:
    """
    Share of the variance of the second column that a straight line in the first explains.

    :param points: (n, 2)
    :return: in [0, 1]; NaN if either column is constant
    """
    return _correlation(points[:, 0], points[:, 1]) ** 2


def spearman(points: np.ndarray) -> float:
    """
    Spearman's rank correlation of the two columns.

    :param points: (n, 2)
    :return: in [-1, 1]; NaN if either column is constant
    """
    return _correlation(stats.rankdata(points[:, 0]), stats.rankdata(points[:, 1]))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    # Relative to rounding: a constant column does not always centre to exact zeros.
    if np.ptp(x) == 0 or np.ptp(y) == 0 or scale == 0:
        return math.nan
    return float(np.clip((x @ y) / scale, -1, 1))


def centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """
    Take each group's mean off its members; what is alone in its group has nothing to be compared with.

    :param values: (n,)
    :param groups: (n,) to which group each value belongs
    :return: (n,), NaN where a group has a single finite value
    """
    grouped = pd.Series(values).groupby(pd.Series(groups).to_numpy())
    shifted = pd.Series(values) - grouped.transform("mean")
    return shifted.where(grouped.transform("count") > 1).to_numpy()


# -- tau-trainability --------------------------------------------------------------------------------------------------


def trainability(
    rank: np.ndarray, success: np.ndarray, clusters: np.ndarray, rho: Sequence[float]
) -> list[dict[str, Any]]:
    """
    For thresholds of the rank at a task's start: how many starts reach it, and how many of those tasks succeed.

    :param rank: (n,) epsilon-rank at the starts
    :param success: (n,) 1 or 0
    :param clusters: (n,) to which seed each belongs; resampled for the intervals
    :param rho: thresholds
    :return: for each threshold ``rho``, ``n`` starts, of which ``n_reached`` have rank >= rho, ``share_reached``, and
        the :class:`Estimate` s of the success rate among these (``success_reached``) and the others (``success_below``)
    """
    keep = np.isfinite(rank) & np.isfinite(success)
    rank, success, clusters = rank[keep], success[keep], clusters[keep]
    rows = []
    for threshold in rho:
        points = np.stack([rank >= threshold, success], axis=1).astype(float)
        members = [points[clusters == cluster] for cluster in pd.unique(clusters)]
        reached = int(points[:, 0].sum())
        rows.append(
            {
                "rho": float(threshold),
                "n": len(points),
                "n_reached": reached,
                "share_reached": reached / len(points) if len(points) else math.nan,
                "success_reached": cluster_interval(members, lambda rows: _success_rate(rows, 1.0)),
                "success_below": cluster_interval(members, lambda rows: _success_rate(rows, 0.0)),
            }
        )
    return rows


def _success_rate(points: np.ndarray, reached: float) -> float:
    chosen = points[points[:, 0] == reached, 1]
    return float(chosen.mean()) if chosen.size else math.nan


def coverage(n_seeds: int) -> int:
    """
    Say how often a 95% interval over so few seeds holds the truth, for normally distributed returns.

    :param n_seeds: at least 2
    :return: per cent, by simulation
    """
    return COVERAGE[max(n for n in COVERAGE if n <= max(n_seeds, 2))]
