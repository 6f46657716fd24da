"""Measures of a task, from the episodes of one run."""

import math

import numpy as np

# Bins of a task: curves over steps have a point for each, and recovery is told in them.
BINS_PER_TASK = 20


def final_return(steps: np.ndarray, returns: np.ndarray, begin: int, end: int, share: float) -> float:
    """
    Average the episodes that ended in the last ``share`` of a task, or after it while still under it.

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
    Average the return over a task's time: the mean over its episodes, each weighted by its length.

    :param returns: (n,) of the episodes
    :param lengths: (n,) in steps
    :return: the average; NaN for no episode
    """
    return float(np.average(returns, weights=lengths)) if lengths.sum() > 0 else math.nan


def steps_to_recover(
    steps: np.ndarray, returns: np.ndarray, begin: int, end: int, before: float, share: float
) -> float:
    """
    Count the steps from a task's beginning until its return has come back from its lowest point.

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
    means: np.ndarray = np.divide(sums, counts, out=np.full(len(counts), math.nan), where=counts > 0)
    return means


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
    return np.asarray(np.interp(edges[1:], edges[1:][filled], means[filled], left=math.nan))
