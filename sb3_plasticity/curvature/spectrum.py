"""The spectrum of a curvature matrix as nodes and weights, its measures, and its file format."""

import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.special import ndtri, xlogy

from sb3_plasticity.common.checks import check_number, must_be
from sb3_plasticity.common.files import replacing
from sb3_plasticity.common.rank import check_epsilon
from sb3_plasticity.curvature.certificate import LEVEL, Draw, outside, total

_FORMAT = "sb3_plasticity.Spectrum/1"


# Half the width of the interval in standard errors.
_NORMAL = float(ndtri((1 + LEVEL) / 2))
# What NumPy and zipfile raise for a file that was cut short, altered, or is a plain array.
_DAMAGED = (BadZipFile, EOFError, KeyError, NotImplementedError, TypeError, ValueError, zlib.error)


class ForeignFileError(ValueError):
    """A whole npz file that is no saved spectrum."""


class Measure(float):
    """
    A number with its error: a ``float`` in every respect, plus three attributes.

    :param value: the estimate
    :param standard_error: 0 for an exact spectrum, NaN where it is not known
    :param low: lower end of the interval in which the true value lies with 98% confidence, by default the estimate less
        2.33 standard errors
    :param high: upper end
    """

    standard_error: float
    low: float
    high: float

    def __new__(
        cls, value: float, standard_error: float = math.nan, low: float | None = None, high: float | None = None
    ) -> "Measure":
        """Make the float, then attach its error."""
        measure = super().__new__(cls, value)
        measure.standard_error = float(standard_error)
        measure.low = float(value - _NORMAL * standard_error if low is None else low)
        measure.high = float(value + _NORMAL * standard_error if high is None else high)
        return measure

    def __reduce__(self) -> tuple[type, tuple[float, float, float, float]]:
        return Measure, (float(self), self.standard_error, self.low, self.high)

    @property
    def resolved(self) -> bool:
        """Whether the interval is at most half as wide as its end furthest from 0 is from 0; true if none is known."""
        return not self.high - self.low > max(abs(self.low), abs(self.high)) / 2


def loggable(measures: Mapping[str, Measure]) -> dict[str, float]:
    """
    Choose what of some measures to log: the value where it is resolved, both ends of its interval where it is not.

    :param measures: by name
    :return: ``name``, or ``name_low`` and ``name_high``, for each
    """
    scalars: dict[str, float] = {}
    for name, measure in measures.items():
        if measure.resolved:
            scalars[name] = float(measure)
        else:
            scalars |= {f"{name}_low": measure.low, f"{name}_high": measure.high}
    return scalars


@dataclass(frozen=True, eq=False)
class Spectrum:
    """
    The eigenvalues of a symmetric matrix, exact or as the quadrature that stochastic Lanczos yields.

    Every measure is a :class:`Measure`: a float with a ``.standard_error`` and an interval from ``.low`` to ``.high``.
    Numbers of eigenvalues have bounds that hold with 98% confidence: see :mod:`sb3_plasticity.curvature.certificate`.

    >>> spectrum = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=8)  # and five zeros
    >>> spectrum.epsilon_rank(0.5), spectrum.epsilon_rank(0.5, normalized=False), spectrum.trace
    (0.375, 3.0, 4.0)

    :param nodes: (draws, k) eigenvalues, or quadrature nodes; kept in float64
    :param weights: (draws, k) share of the ``dim`` eigenvalues at each node; they sum to 1 in every draw
    :param dim: number of eigenvalues: the matrix is ``dim`` x ``dim``. Zero eigenvalues are a node at 0
    :param exact: the nodes and weights are the whole spectrum, not an estimate of it
    :param rounding: absolute rounding error of the nodes: the sign of a node this close to 0 means nothing
    :param info: what the measurement was of (step, task_index, network, kind, ...): plain numbers, strings and lists
    :param residuals: (draws, k), as in :class:`~sb3_plasticity.curvature.lanczos.Quadrature`, or None where they were
        not kept: all weights are estimates then, and bounds are wider
    :raises ValueError: for shapes that differ, non-finite nodes, weights that do not sum to 1, or ``dim`` < 1
    """

    nodes: np.ndarray
    weights: np.ndarray
    dim: int
    exact: bool = False
    rounding: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)
    residuals: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "weights"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.ndim != 2 or 0 in array.shape:
                raise must_be(name, "of shape (draws, k), both at least 1", array.shape)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} contain NaN or infinity")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.nodes.shape != self.weights.shape:
            raise must_be("weights", f"of the shape of `nodes`, {self.nodes.shape}", self.weights.shape)
        if self.residuals is not None:
            residuals = np.array(self.residuals, dtype=np.float64)
            if residuals.shape != self.nodes.shape or not (residuals >= 0).all():
                raise ValueError(f"`residuals` must be >= 0 and have shape {self.nodes.shape}, got {residuals}")
            residuals.flags.writeable = False
            object.__setattr__(self, "residuals", residuals)
        if (self.weights < 0).any() or not np.allclose(self.weights.sum(1), 1.0, atol=1e-6):
            raise ValueError(f"`weights` must be >= 0 and sum to 1 in every draw, got sums of {self.weights.sum(1)}")
        if int(self.dim) != self.dim or self.dim < 1:
            raise must_be("dim", "a whole number >= 1", self.dim)

    @classmethod
    def from_eigenvalues(
        cls,
        eigenvalues: Iterable[float] | np.ndarray,
        dim: int | None = None,
        *,
        rounding: float = 0.0,
        info: Mapping[str, Any] | None = None,
    ) -> "Spectrum":
        """
        Build an exact spectrum from a list of eigenvalues; those that are missing up to ``dim`` are zero.

        :param eigenvalues: (k,), k <= dim
        :param dim: size of the matrix; by default k
        :param rounding: see :class:`Spectrum`
        :param info: see :class:`Spectrum`
        :return: a spectrum with one draw
        :raises ValueError: for more eigenvalues than ``dim``
        """
        values = np.asarray(eigenvalues if isinstance(eigenvalues, np.ndarray) else list(eigenvalues), dtype=np.float64)
        dim = values.size if dim is None else dim
        if values.ndim != 1 or values.size > dim:
            raise must_be("eigenvalues", f"of shape (k,) with k <= dim={dim}", values.shape)
        weights = np.full(values.size, 1.0 / dim)
        if values.size < dim:
            values, weights = np.append(values, 0.0), np.append(weights, (dim - values.size) / dim)
        return cls(values[None], weights[None], dim, exact=True, rounding=rounding, info=dict(info or {}))

    @property
    def draws(self) -> int:
        """Number of independent random start vectors (1 for an exact spectrum)."""
        return len(self.nodes)

    def epsilon_rank(self, eps: float, normalized: bool = True, relative: bool = False) -> Measure:
        """
        Return the fraction, or number, of the ``dim`` eigenvalues with an absolute value above ``eps``.

        No density on a grid is involved. Where no node is near ``eps``, a node stands for eigenvalues on both sides of
        it, and the interval is wide: take more steps, or a larger ``eps``.

        :param eps: threshold, > 0
        :param normalized: the fraction (default) instead of the number
        :param relative: ``eps`` is a fraction of the largest absolute eigenvalue
        :return: estimate and interval
        :raises ValueError: for ``eps`` <= 0
        """
        check_epsilon(eps)
        threshold = eps * float(np.abs(self.nodes).max()) if relative else eps
        return self._outside(-threshold, threshold, normalized)

    def epsilon_rank_bounds(self, eps: float, normalized: bool = True) -> tuple[float, float]:
        """
        Return the ends of the interval in which the epsilon-rank lies with 98% confidence.

        :param eps: threshold, > 0
        :param normalized: fractions (default) instead of numbers
        :return: lower and upper bound; both the epsilon-rank itself for an exact spectrum
        :raises ValueError: for ``eps`` <= 0
        """
        rank = self.epsilon_rank(eps, normalized)
        return rank.low, rank.high

    def effective_rank(self) -> Measure:
        """
        Compute the exponentiated Shannon entropy of the ``dim`` absolute eigenvalues, each divided by their sum.

        As in :func:`~sb3_plasticity.common.rank.effective_rank` (Roy and Vetterli 2007); a zero matrix has rank 1. Its
        error is that of the start vectors, to first order.

        :return: between 1 and ``dim``
        """
        total = self._sum(np.abs)
        if not total > 0:
            return Measure(1.0, 0.0)
        # With S the sum of |x| and L that of |x| log |x|, the entropy is log S - L / S.
        mean_log = float(self._sum(_x_log_x)) / total
        entropy = math.log(total) - mean_log
        error = self._sum(lambda x: (np.abs(x) * (1 + mean_log) - _x_log_x(x)) / total).standard_error
        rank = math.exp(entropy)
        low, high = (min(max(rank * math.exp(sign * _NORMAL * error), 1.0), self.dim) for sign in (-1, 1))
        return Measure(rank, rank * error, low, high)

    @property
    def largest(self) -> Measure:
        """The largest eigenvalue (not in absolute value). A Ritz value: at most as large, its residual is its error."""
        return self._extreme(int(self.nodes.argmax()))

    @property
    def smallest(self) -> Measure:
        """The smallest, that is the most negative, eigenvalue. A Ritz value: at least as large."""
        return self._extreme(int(self.nodes.argmin()))

    @property
    def trace(self) -> Measure:
        """The sum of the eigenvalues. Its error is that of the start vectors."""
        return self._sum(lambda x: x)

    @property
    def negative_fraction(self) -> Measure:
        """Fraction of the eigenvalues that are negative by more than rounding; small ones and zeros share a node."""
        return self._outside(-self.rounding, math.inf, normalized=True)

    def measures(self, epsilon: Iterable[float] = (1e-3, 1e-2, 1e-1)) -> dict[str, Measure]:
        """
        Return all measures by name, as the callback logs and :func:`load_spectra` tabulates them.

        :param epsilon: thresholds; each gives ``epsilon_rank_<eps>``, the normalised, absolute epsilon-rank
        :return: measures, from ``epsilon_rank_...`` to ``negative_fraction``
        """
        return {
            **{f"epsilon_rank_{eps:g}": self.epsilon_rank(eps) for eps in epsilon},
            "effective_rank": self.effective_rank(),
            "largest": self.largest,
            "smallest": self.smallest,
            "trace": self.trace,
            "negative_fraction": self.negative_fraction,
        }

    def density(self, grid: np.ndarray, bandwidth: float) -> np.ndarray:
        """
        Smooth the spectral density, for pictures only: a Gaussian of width ``bandwidth`` at every node, by weight.

        :param grid: (m,) eigenvalues at which to evaluate it
        :param bandwidth: standard deviation of the Gaussian, > 0
        :return: (m,), mean over draws; it integrates to 1 over the line
        :raises ValueError: for a ``bandwidth`` <= 0
        """
        check_number("bandwidth", bandwidth, above=0)
        points = np.asarray(grid, dtype=np.float64)
        nodes, weights = self.shares()
        density = np.zeros(points.shape)
        # In pieces: an exact spectrum may have 100,000 nodes, the grid 10,000 points.
        for start in range(0, nodes.size, 1024):
            distance = (points[..., None] - nodes[start : start + 1024]) / bandwidth
            density += np.exp(-0.5 * distance**2) @ weights[start : start + 1024]
        return density / (bandwidth * math.sqrt(2 * math.pi))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """
        Write the spectrum and its ``info`` to one compressed npz file (no pickle).

        :param path: file; ``.npz`` is appended where it is missing. Its folder is made
        :param overwrite: replace an existing file
        :return: the file's path
        :raises FileExistsError: if the file exists and ``overwrite`` is False
        :raises TypeError: if ``info`` holds more than JSON can
        """
        target = Path(path)
        if target.suffix != ".npz":
            target = target.with_name(target.name + ".npz")
        info = json.dumps(dict(self.info), default=_to_json)
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists: pass overwrite=True to replace it")
        with replacing(target) as temporary:
            np.savez_compressed(
                temporary,
                format=np.array(_FORMAT),
                nodes=self.nodes,
                weights=self.weights,
                dim=np.array(self.dim),
                exact=np.array(self.exact),
                rounding=np.array(self.rounding),
                info=np.array(info),
                residuals=np.zeros(0) if self.residuals is None else self.residuals,
            )
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Spectrum":
        """
        Read what :meth:`save` wrote.

        :param path: file
        :return: the spectrum
        :raises ForeignFileError: a ValueError, if the file is whole and someone else's
        :raises ValueError: naming the file, if it is damaged or of another version
        :raises OSError: if it cannot be read
        """
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                if not str(file["format"] if "format" in file.files else "").startswith(_FORMAT.partition("/")[0]):
                    raise ForeignFileError(f"{os.fspath(path)} is no saved Spectrum: it holds {sorted(file.files)}")
                if str(file["format"]) != _FORMAT:
                    raise ValueError(f"its format is {file['format']}, known is {_FORMAT}")
                return cls(
                    file["nodes"],
                    file["weights"],
                    int(file["dim"]),
                    exact=bool(file["exact"]),
                    rounding=float(file["rounding"]),
                    info=json.loads(str(file["info"])),
                    # Absent from older records, empty where they were not kept.
                    residuals=file["residuals"] if "residuals" in file.files and file["residuals"].size else None,
                )
        except ForeignFileError:
            raise
        except _DAMAGED as error:
            raise ValueError(f"{os.fspath(path)} is no whole saved Spectrum: {error}") from error

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the eigenvalues and the best estimate of their shares: all draws' nodes, with known eigenvalues counted.

        :return: (k,) nodes and (k,) shares of the ``dim`` eigenvalues, which sum to 1
        """
        nodes = np.concatenate([draw.nodes for draw in self._draws])
        return nodes, np.concatenate([draw.shares for draw in self._draws]) / self.draws

    @cached_property
    def _draws(self) -> list[Draw]:
        residuals = [None] * self.draws if self.residuals is None else self.residuals
        if self.exact:
            residuals = np.zeros(self.nodes.shape)
        return [Draw.of(*arrays, self.dim) for arrays in zip(self.nodes, self.weights, residuals, strict=True)]

    def _outside(self, below: float, above: float, normalized: bool) -> Measure:
        scale = 1.0 / self.dim if normalized else 1.0
        if self.exact:
            beyond = (self.nodes < below) | (self.nodes > above)
            value = float(self.weights[beyond].sum() * self.dim * scale)
            return Measure(value, 0.0)
        value, low, high = (number * scale for number in outside(self._draws, below, above, self.rounding))
        return Measure(value, (high - low) / (2 * _NORMAL), low, high)

    def _sum(self, function: Callable[[np.ndarray], np.ndarray]) -> Measure:
        """Return the sum of a function over the eigenvalues, with the error that the start vectors make."""
        if self.exact:
            return Measure(float((self.weights * function(self.nodes)).sum() * self.dim), 0.0)
        return Measure(*total(self._draws, function))

    def _extreme(self, index: int) -> Measure:
        value = float(self.nodes.flat[index])
        if self.exact:
            return Measure(value, 0.0)
        return Measure(value, math.nan if self.residuals is None else float(self.residuals.flat[index]))


def _x_log_x(values: np.ndarray) -> np.ndarray:
    magnitude: np.ndarray = np.abs(values)
    return np.asarray(xlogy(magnitude, magnitude))


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"`info` must hold numbers, strings, lists and dicts, got {type(value).__name__}: {value!r}")
