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
# How often the 95% interval holds the truth, in per cent: the percentile bootstrap of the IQM of n values from a normal
# distribution, 2,000 draws each (tests/study/test_statistics.py does it again). By theory two seeds cannot give more
# than 50 and three not more than 75: their interval is at most from the smallest to the largest.
COVERAGE = {2: 50, 3: 75, 4: 87, 5: 90, 6: 90, 7: 92, 8: 93, 10: 93, 20: 95}

# Numbers that differ by less, relative to the largest of them, are the same number.
_ROUNDING = 1e-9

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

    def together(*samples: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(statistic(np.concatenate(samples, axis=axis), axis=axis))

    known = [stratum for stratum in map(_finite, strata) if stratum.size]
    return _bootstrapped(known, together, sum(stratum.size for stratum in known))


def improvement(own: np.ndarray, baseline: np.ndarray) -> Estimate:
    """
    Estimate the probability that a run of a method beats one of the baseline, as in Agarwal et al. 2021.

    It is the Mann-Whitney statistic over all pairs of runs, ties counting half, whatever their seeds.

    :param own: (n,) a number for each run
    :param baseline: (m,) likewise
    :return: probability with a bootstrap interval that resamples both sides; NaN unless each has two runs, because a
        single run can only be better than all or than none of its like
    """

    def probability(left: np.ndarray, right: np.ndarray, axis: int) -> np.ndarray:
        pairs = np.sign(left[..., :, None] - right[..., None, :])
        return np.asarray((pairs.mean(axis=(-2, -1)) + 1) / 2)

    sides = [_finite(own), _finite(baseline)]
    return _bootstrapped(sides if all(side.size > 1 for side in sides) else [], probability, sides[0].size)


def p_of_mean(values: np.ndarray) -> float:
    """
    Test whether the mean of independent values, such as the differences of pairs, is 0, by Student's t.

    :param values: (n,) one for each seed, NaN where there is none
    :return: two-sided p value; NaN for fewer than three values
    """
    known = _finite(values)
    if len(known) < 3:
        return math.nan
    return float(2 * stats.t.sf(abs(known.mean()) / _standard_error(known), len(known) - 1))


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
        ends = _bootstrap([values[whole]], iqm, _RESAMPLES_MANY, batch=200).confidence_interval
        value[1, whole], value[2, whole] = ends.low, ends.high
    return value[0], value[1], value[2]


def coverage(n_seeds: int) -> int:
    """
    Say how often a 95% interval over so few seeds holds the truth, for normally distributed returns.

    :param n_seeds: at least 2
    :return: per cent, by simulation
    """
    return COVERAGE[max(n for n in COVERAGE if n <= max(n_seeds, 2))]


def _finite(values: np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    known: np.ndarray = numbers[np.isfinite(numbers)]
    return known


def _standard_error(values: np.ndarray) -> float:
    return max(float(stats.sem(values)), 1e-12)  # seeds that agree exactly


def _bootstrapped(samples: Sequence[np.ndarray], statistic: Statistic, n: int) -> Estimate:
    if not samples:
        return Estimate(math.nan)
    value = float(statistic(*samples, axis=-1))
    if min(sample.size for sample in samples) < 2:
        return Estimate(value, n=n)
    ends = _bootstrap(samples, statistic, _RESAMPLES, batch=2_000).confidence_interval
    return Estimate(value, float(ends.low), float(ends.high), n)


def _bootstrap(samples: Sequence[np.ndarray], statistic: Statistic, n_resamples: int, **options: Any) -> Any:
    return stats.bootstrap(
        samples,
        statistic,
        axis=-1,
        n_resamples=n_resamples,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
        **options,
    )


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
        result = _bootstrap([np.arange(len(held))], resampled, _RESAMPLES_MANY, vectorized=False)
    distribution = result.bootstrap_distribution
    if np.isfinite(distribution).sum() < len(distribution) / 2:
        return Estimate(value, n=len(held))
    low, high = np.nanquantile(distribution, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), len(held))


def spearman(points: np.ndarray) -> float:
    """
    Take Spearman's rank correlation of two columns.

    :param points: (n, 2)
    :return: in [-1, 1]; NaN for fewer than three rows, or if either column is constant
    """
    return _pearson(stats.rankdata(points, axis=0))


def r_squared(points: np.ndarray) -> float:
    """
    Take the share of the variance of the second column that a straight line in the first explains.

    :param points: (n, 2)
    :return: in [0, 1]; NaN for fewer than three rows, or if either column is constant
    """
    return _pearson(points) ** 2


def _pearson(points: np.ndarray) -> float:
    """Take the linear correlation of two columns; NaN for fewer than three rows, or if either column is constant."""
    if len(points) < 3 or not np.ptp(points, axis=0).all():
        return math.nan
    return float(np.corrcoef(points, rowvar=False)[0, 1])


def mean_correlation(correlations: Sequence[float], n_tests: int = 1) -> tuple[Estimate, float]:
    """
    Average the correlations of independent clusters and test whether they are 0, by Student's t on Fisher's transforms.

    Seeds are independent of each other; the tasks of one are not, so they do not count as a sample.

    :param correlations: one for each cluster, NaN where it is not defined
    :param n_tests: how many such intervals are to hold together, in 95% of cases (Bonferroni)
    :return: the mean with its interval, and the two-sided p value of a single test; both NaN for fewer than three
        clusters in which the correlation is defined
    """
    scores = np.arctanh(np.clip(_finite(np.asarray(correlations)), -0.999, 0.999))
    value = float(np.tanh(scores.mean())) if len(scores) else math.nan
    if len(scores) < 3:
        return Estimate(value, n=len(scores)), math.nan
    confidence, error = 1 - (1 - CONFIDENCE) / n_tests, _standard_error(scores)
    low, high = np.tanh(stats.t.interval(confidence, len(scores) - 1, scores.mean(), error))
    return Estimate(value, float(low), float(high), len(scores)), p_of_mean(scores)


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

    A difference in the last digits only, as the same number has that was computed twice, counts as none.

    :param values: (n,)
    :param groups: (n,) to which group each value belongs
    :return: (n,), NaN where a group has a single finite value
    """
    grouped = pd.Series(values).groupby(pd.Series(groups).to_numpy())
    shifted = pd.Series(values) - grouped.transform("mean")
    largest = np.maximum(grouped.transform("max").abs(), grouped.transform("min").abs())
    shifted = shifted.mask(shifted.abs() <= _ROUNDING * largest, 0.0)
    return shifted.where(grouped.transform("count") > 1).to_numpy()
