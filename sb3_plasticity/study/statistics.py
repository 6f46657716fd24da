"""
What several seeds say: interquartile means, bootstrap intervals, rank correlations.

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
_RESAMPLES = 9_999
# Curves have hundreds of points, and statistics of clusters are computed one resample at a time.
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


# -- seeds -------------------------------------------------------------------------------------------------------------


def iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Take the interquartile mean: of what is left when a quarter, rounded down, is taken off at either end.

    Of three values it is the mean, of five that of the middle three; as in Agarwal et al. 2021.

    :param values: numbers
    :param axis: over which
    :return: without that axis
    """
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


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
        return np.asarray(statistic(np.concatenate(samples, axis=axis), axis=axis))

    result = stats.bootstrap(known, pooled, n_resamples=_RESAMPLES, **_settings(vectorized=True))
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high), n)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Take the IQM over seeds at every point of a curve, with pointwise percentile bootstrap intervals.

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


def improvement(own: np.ndarray, baseline: np.ndarray) -> Estimate:
    """
    Estimate the probability that a run of a method beats one of the baseline, as in Agarwal et al. 2021.

    It is the Mann-Whitney statistic over all pairs of runs, ties counting half, whatever their seeds.

    :param own: (n,) a number for each run
    :param baseline: (m,) likewise
    :return: probability with a bootstrap interval that resamples both sides
    """
    sides = [values[np.isfinite(values)] for values in (np.asarray(own, float), np.asarray(baseline, float))]
    if not all(side.size for side in sides):
        return Estimate(math.nan)

    def probability(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
        pairs = np.sign(left[..., :, None] - right[..., None, :])
        return np.asarray((pairs.mean(axis=(-2, -1)) + 1) / 2)

    value = float(probability(*sides))
    if min(side.size for side in sides) < 2:
        return Estimate(value, n=sides[0].size)
    result = stats.bootstrap(sides, probability, n_resamples=_RESAMPLES, batch=2_000, **_settings(vectorized=True))
    ends = result.confidence_interval
    return Estimate(value, float(ends.low), float(ends.high), sides[0].size)


def coverage(n_seeds: int) -> int:
    """
    Say how often a 95% interval over so few seeds holds the truth, for normally distributed returns.

    :param n_seeds: at least 2
    :return: per cent, by simulation
    """
    return COVERAGE[max(n for n in COVERAGE if n <= max(n_seeds, 2))]


# -- clusters: all tasks of a seed -------------------------------------------------------------------------------------


def clusters(points: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """
    Split rows by the seed they belong to.

    :param points: (n, columns)
    :param labels: (n,) seeds
    :return: (rows, columns) for each seed
    """
    return [points[labels == label] for label in pd.unique(labels)]


def cluster_interval(members: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float]) -> Estimate:
    """
    Take a statistic of rows and its percentile bootstrap interval, resampling whole clusters of rows.

    Resamples that the statistic is not defined on (NaN) are left out.

    :param members: (rows, columns) for each cluster, such as a seed
    :param statistic: of (rows, columns), whatever their order
    :return: estimate; without an interval for fewer than two clusters
    """
    held = [np.asarray(cluster, dtype=float) for cluster in members if len(cluster)]
    if not held:
        return Estimate(math.nan)
    value = statistic(np.concatenate(held))
    if len(held) < 2:
        return Estimate(value, n=len(held))

    @functools.cache  # of five clusters there are but 126 different resamples
    def of_members(indices: tuple[int, ...]) -> float:
        return statistic(np.concatenate([held[index] for index in indices]))

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


def spearman(points: np.ndarray) -> float:
    """
    Take Spearman's rank correlation of two columns.

    :param points: (n, 2)
    :return: in [-1, 1]; NaN for fewer than three rows, or if either column is constant
    """
    return _pearson(stats.rankdata(points[:, 0]), stats.rankdata(points[:, 1]))


def r_squared(points: np.ndarray) -> float:
    """
    Take the share of the variance of the second column that a straight line in the first explains.

    :param points: (n, 2)
    :return: in [0, 1]; NaN for fewer than three rows, or if either column is constant
    """
    return _pearson(points[:, 0], points[:, 1]) ** 2


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    return float(np.clip((x @ y) / scale, -1, 1)) if scale else math.nan


def over_clusters(members: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float]) -> float:
    """
    Test whether a correlation is 0: Student's t test on the Fisher transforms of each cluster's own.

    Seeds are independent of each other; the tasks of one are not, so they do not count as a sample.

    :param members: (rows, 2) for each cluster
    :param statistic: the correlation of (rows, 2)
    :return: two-sided p value; NaN for fewer than three clusters in which the correlation is defined
    """
    own = np.array([statistic(np.asarray(cluster, dtype=float)) for cluster in members if len(cluster)])
    own = own[np.isfinite(own)]
    if len(own) < 3:
        return math.nan
    scores = np.arctanh(np.clip(own, -0.999, 0.999))
    if np.ptp(scores) < 1e-12:
        return float(abs(scores[0]) < 1e-12)
    return float(stats.ttest_1samp(scores, 0).pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """
    Correct p values for their number, by Holm's step-down method (1979).

    :param p_values: (n,), NaN for tests that could not be made, which do not count
    :return: (n,) adjusted, at most 1
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


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


def _settings(vectorized: bool) -> dict[str, Any]:
    return {
        "method": "percentile",
        "confidence_level": CONFIDENCE,
        "vectorized": vectorized,
        "rng": np.random.default_rng(_SEED),
    }
