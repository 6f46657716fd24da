"""
How many eigenvalues lie outside an interval, with bounds that hold with 98% confidence.

A stochastic Lanczos quadrature leaves two things open. Its few nodes do not say where the mass between two of them
lies; and the mass, that of the start vector's squared projections, is not the number of eigenvalues. The bounds join:

* A Ritz pair whose residual is next to nothing is an eigenpair: one eigenvalue, to be counted and not to be estimated.
* The mass beyond a threshold lies between the two values that the inequalities of Chebyshev, Markov and Stieltjes give
  (Szego 1939, section 3.41; Golub and Meurant 2010, *Matrices, Moments and Quadrature*, chapter 6, for the Gauss-Radau
  rule with a node at the threshold that attains them).
* A random direction's squared projection on k of n orthogonal directions follows Beta(k / 2, (n - k) / 2), whose
  quantiles bound k as Clopper and Pearson (1934) bound a probability. Counted eigenpairs are left out of both.
* No more Ritz values lie beyond a threshold than eigenvalues (Cauchy's interlacing).
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, ndtr, ndtri

LEVEL = 0.98
# A Ritz pair is an eigenpair if its residual is below this share of the largest eigenvalue ...
_CONVERGED = 1e-6
# ... and a single one unless its weight, which follows chi^2_1 / dim, is as large as it is once in 10,000 times.
_MOST_OF_ONE = 15.0


@dataclass(frozen=True)
class Draw:
    """
    A quadrature from one start vector.

    :param nodes: (k,), ascending
    :param weights: (k,), as in :class:`~sb3_plasticity.curvature.lanczos.Quadrature`
    :param residuals: (k,), or None where they were not kept
    :param dim: size of the matrix
    """

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray | None
    dim: int

    @classmethod
    def of(cls, nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray | None, dim: int) -> "Draw":
        """
        Sort the nodes, and drop those without weight.

        :param nodes: (k,), any order
        :param weights: (k,)
        :param residuals: (k,) or None
        :param dim: size of the matrix
        :return: the draw
        """
        order = np.argsort(nodes, kind="stable")
        order = order[weights[order] > 0]
        return cls(nodes[order], weights[order], None if residuals is None else residuals[order], dim)

    @cached_property
    def counts(self) -> np.ndarray:
        """
        Number of eigenvalues at those nodes for which it is known.

        :return: (k,), NaN for the other nodes
        """
        if self.residuals is None:
            return np.full(self.nodes.shape, np.nan)
        whole: np.ndarray = np.where(self.residuals == 0, self.weights * self.dim, np.nan)
        small = _CONVERGED * np.abs(self.nodes).max()
        # Many eigenvalues may be 0, and a node there says only that one is.
        single = (self.residuals <= small) & (np.abs(self.nodes) > small) & (self.weights * self.dim < _MOST_OF_ONE)
        counts: np.ndarray = np.where(np.isnan(whole) & single, 1.0, whole)
        # Where none is left to stand for the others, some of these are multiple.
        return whole if not np.isnan(counts).any() and counts.sum() < self.dim - 0.5 else counts

    @cached_property
    def shares(self) -> np.ndarray:
        """
        The best estimate of every node's share of the eigenvalues: known counts, and the other weights rescaled.

        :return: (k,), sum 1
        """
        known = ~np.isnan(self.counts)
        shares = self.weights.copy()
        shares[known] = self.counts[known] / self.dim
        rest = float(self.weights[~known].sum())
        if rest > 0:
            shares[~known] *= (1 - float(self.counts[known].sum()) / self.dim) / rest
        return shares

    def masses_below(self, points: np.ndarray) -> np.ndarray:
        """
        Between which values the weight of the eigenvalues below some points lies, for this start vector.

        :param points: (m,)
        :return: (m, 2) lower and upper bounds
        """
        if self.residuals is None:
            return np.array([_mass_by_neighbours(self.nodes, self.weights, point) for point in points])
        whole = self.residuals == 0
        fixed = np.array([self.weights[whole & (self.nodes < point)].sum() for point in points])
        if whole.all():
            return np.stack([fixed, fixed], 1)
        bounds = gauss_radau_masses(self.nodes[~whole], self.weights[~whole], self.residuals[~whole], points)
        array: np.ndarray = fixed[:, None] + bounds
        return array


def gauss_radau_masses(nodes: np.ndarray, weights: np.ndarray, residuals: np.ndarray, points: np.ndarray) -> np.ndarray:
    """
    Compute the sharp bounds of Chebyshev, Markov and Stieltjes on a measure's mass below some points.

    The rule with one more node, at the point itself, has the same moments. No measure that has them has less mass below
    the point than the rule has there, nor more than that and the point's own weight together. In the basis of the Ritz
    vectors the rule's matrix is diagonal but for its last row and column, which are the residuals.

    :param nodes: (k,) Ritz values of one Krylov space, ascending
    :param weights: (k,)
    :param residuals: (k,)
    :param points: (m,)
    :return: (m, 2)
    """
    size = len(nodes)
    start = np.sqrt(weights)
    # First and last component of a tridiagonal matrix's eigenvectors agree in sign for every other one.
    border = residuals * np.where(np.arange(size) % 2, -1.0, 1.0)
    distance = points[:, None] - nodes
    nearest = np.abs(distance).min(1)
    at_node = nearest <= 1e-9 * max(np.abs(nodes).max(), np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        corner = points - (residuals**2 / distance).sum(1)
    matrices = np.zeros((len(points), size + 1, size + 1))
    matrices[:, np.arange(size), np.arange(size)] = nodes
    matrices[:, size, :size] = matrices[:, :size, size] = border
    matrices[:, size, size] = np.where(at_node, 0.0, corner)
    values, vectors = np.linalg.eigh(matrices)
    masses = np.einsum("i,mij->mj", start, vectors[:, :size]) ** 2
    bounds = np.empty((len(points), 2))
    for index, point in enumerate(points):
        if at_node[index]:
            # The rule is the quadrature itself.
            below = nodes < point - nearest[index] - 1e-300
            bounds[index] = weights[below].sum(), weights[below | (np.abs(distance[index]) <= nearest[index])].sum()
        else:
            own = np.abs(values[index] - point).argmin()
            bounds[index] = masses[index, :own].sum(), masses[index, : own + 1].sum()
    return bounds


def _mass_by_neighbours(nodes: np.ndarray, weights: np.ndarray, point: float) -> tuple[float, float]:
    """Weaker bounds without residuals: the weight up to a point is known but for the next node on either side."""
    index = int(np.searchsorted(nodes, point, "left"))
    return float(weights[: max(index - 1, 0)].sum()), float(weights[: index + 1].sum())


@dataclass(frozen=True)
class _Part:
    """
    What one draw says of the eigenvalues outside an interval.

    :param counted: known eigenvalues outside
    :param undecided: known eigenvalues so close to an end that rounding decides
    :param rest: number of eigenvalues that are not known
    :param share: estimated share of the rest outside
    :param low: lower bound of the rest's mass outside, for this start vector
    :param high: upper bound
    :param ritz: number of Ritz values outside
    """

    counted: float
    undecided: float
    rest: float
    share: float
    low: float
    high: float
    ritz: int

    @classmethod
    def of(cls, draw: Draw, below: float, above: float, rounding: float) -> "_Part":
        nodes, weights, counts = draw.nodes, draw.weights, draw.counts
        beyond = (nodes < below) | (nodes > above)
        known = ~np.isnan(counts)
        counted = float(counts[known & beyond].sum())
        rest = max(0.0, draw.dim - float(counts[known].sum()))
        mass = float(weights[~known].sum())
        low = high = 0.0
        for sign, end in ((1, below), (-1, above)):
            if np.isfinite(end):
                bounds = draw.masses_below(np.array([end]))[0]
                bounds = bounds if sign > 0 else 1 - bounds[::-1]
                low, high = low + bounds[0], high + bounds[1]
        taken = float(weights[known & beyond].sum())
        low, high = (min(max((value - taken) / mass, 0.0), 1.0) if mass > 0 else 0.0 for value in (low, high))
        undecided = np.minimum(np.abs(nodes - below), np.abs(nodes - above)) <= rounding
        certain = (nodes < below - rounding) | (nodes > above + rounding)
        ritz = 0 if draw.residuals is None else int(certain.sum())
        return cls(
            counted,
            float(counts[known & undecided].sum()),
            rest,
            float(weights[~known & beyond].sum() / mass) if mass > 0 else 0.0,
            low,
            high,
            ritz,
        )


def outside(draws: list[Draw], below: float, above: float, rounding: float) -> tuple[float, float, float]:
    """
    Estimate and bound the number of eigenvalues outside an interval.

    :param draws: of independent start vectors, for one matrix
    :param below: eigenvalues below it are counted; -inf for none
    :param above: eigenvalues above it are counted; inf for none
    :param rounding: absolute error of the nodes
    :return: estimate, lower and upper bound; the number lies between the bounds with a probability of 98%
    """
    parts = [_Part.of(draw, below, above, rounding) for draw in draws]
    estimate = float(np.mean([part.counted + part.rest * part.share for part in parts]))
    least = max(part.counted - part.undecided for part in parts)
    most = min(part.counted + part.rest + part.undecided for part in parts)
    total = sum(part.rest for part in parts)
    if total <= 0:
        return estimate, least, most
    low = sum(part.rest * part.low for part in parts) / total
    high = sum(part.rest * part.high for part in parts) / total

    def below_share(number: float, share: float) -> float:
        """Probability that the rest's mass outside is less than a share, if so many eigenvalues are outside."""
        inside = sum(max(0.0, part.counted + part.rest - number) for part in parts)
        beyond = sum(max(0.0, number - part.counted) for part in parts)
        if beyond == 0 or inside == 0:
            # The weights of counted eigenpairs are known to rounding only.
            return float(share > 1e-5 / total) if beyond == 0 else float(share > 1 - 1e-5 / total)
        return float(betainc(beyond / 2, inside / 2, share))

    tail = _tail(low, high, total)
    base = max(part.counted for part in parts)
    numbers = base + np.arange(round(min(part.counted + part.rest for part in parts) - base) + 1)
    # Both probabilities are monotone in the number.
    first = _first(numbers, lambda number: 1 - below_share(number, low) >= tail)
    last = _first(numbers, lambda number: below_share(number, high) < tail)
    lowest = numbers[min(first, len(numbers) - 1)] - max(part.undecided for part in parts)
    highest = numbers[max(last - 1, 0)] + max(part.undecided for part in parts)
    lowest = max(lowest, *(float(part.ritz) for part in parts), least)
    highest = min(highest, most)
    return estimate, min(lowest, estimate), max(highest, estimate)


def _tail(low: float, high: float, total: float) -> float:
    """
    Probability of an error that each bound may have, for both together to have that of the interval.

    The mass is at one end of its bounds at most: where they are far apart beside the sampling error, a bound on the
    other side is never missed (Imbens and Manski 2004, *Confidence intervals for partially identified parameters*).
    """
    middle = min(max((low + high) / 2, 1 / total), 1 - 1 / total) if total > 2 else 0.5
    gap = (high - low) / float(np.sqrt(2 * middle * (1 - middle) / (total + 2)))
    error = 1 - LEVEL
    return float(brentq(lambda tail: tail + ndtr(ndtri(tail) - gap) - error, error / 2 * (1 - 1e-9), error))


def _first(numbers: np.ndarray, holds: Callable[[float], bool]) -> int:
    """Index of the first number for which a property holds that all later ones have; len(numbers) if none has."""
    return bisect_left(range(len(numbers)), True, key=lambda index: holds(float(numbers[index])))


def total(draws: list[Draw], function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """
    Estimate a sum over all eigenvalues.

    A quadratic form v^T G v of a random direction v in N dimensions has the variance 2 / (N (N + 2)) times
    tr G^2 - (tr G)^2 / N. Counted eigenpairs have no part in it.

    :param draws: of independent start vectors, for one matrix
    :param function: of eigenvalues, element by element
    :return: estimate, and the standard error that the start vectors make
    """
    sums, variances = [], []
    for draw in draws:
        values, numbers = function(draw.nodes), draw.shares * draw.dim
        sums.append(float((numbers * values).sum()))
        open_ = np.isnan(draw.counts)
        size = float(numbers[open_].sum())
        if size > 0:
            first, second = float((numbers * values)[open_].sum()), float((numbers * values**2)[open_].sum())
            variances.append(2 * size / (size + 2) * max(0.0, second - first**2 / size))
        else:
            variances.append(0.0)
    return float(np.mean(sums)), float(np.sqrt(np.mean(variances) / len(draws)))
