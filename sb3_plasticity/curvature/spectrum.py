"""The spectrum of a curvature matrix as nodes and weights, its measures, and its file format."""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sb3_plasticity.common.files import replacing
from sb3_plasticity.common.rank import epsilon_rank

_FORMAT = "sb3_plasticity.Spectrum/1"


# What NumPy and zipfile raise for a file that was cut short, altered, or is a plain array.
_DAMAGED = (BadZipFile, EOFError, KeyError, NotImplementedError, TypeError, ValueError, zlib.error)


class ForeignFileError(ValueError):
    """A whole npz file that is no saved spectrum."""


class Measure(float):
    """
    A number with a standard error: a ``float`` in every respect, plus one attribute.

    :param value: the mean over draws
    :param standard_error: of that mean: 0 for an exact spectrum, NaN for an estimate from a single draw
    """

    standard_error: float

    def __new__(cls, value: float, standard_error: float = math.nan) -> "Measure":
        """Make the float, then attach the standard error."""
        measure = super().__new__(cls, value)
        measure.standard_error = float(standard_error)
        return measure

    def __reduce__(self) -> tuple[type, tuple[float, float]]:
        return Measure, (float(self), self.standard_error)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """
    The eigenvalues of a symmetric matrix, exact or as the quadrature that stochastic Lanczos yields.

    Every measure is a :class:`Measure`: a float, the mean over the draws, with its ``.standard_error``.

    >>> spectrum = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=8)  # and five zeros
    >>> spectrum.epsilon_rank(0.5), spectrum.epsilon_rank(0.5, normalized=False), spectrum.trace
    (0.375, 3.0, 4.0)

    :param nodes: (draws, k) eigenvalues, or quadrature nodes; kept in float64
    :param weights: (draws, k) share of the ``dim`` eigenvalues at each node; they sum to 1 in every draw
    :param dim: number of eigenvalues: the matrix is ``dim`` x ``dim``. Zero eigenvalues are a node at 0
    :param exact: the nodes and weights are the whole spectrum, not an estimate of it
    :param rounding: absolute rounding error of the nodes: the sign of a node this close to 0 means nothing
    :param info: what the measurement was of (step, task_index, network, kind, ...): plain numbers, strings and lists
    :raises ValueError: for shapes that differ, non-finite nodes, weights that do not sum to 1, or ``dim`` < 1
    """

    nodes: np.ndarray
    weights: np.ndarray
    dim: int
    exact: bool = False
    rounding: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "weights"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.ndim != 2 or 0 in array.shape:
                raise ValueError(f"{name} must have shape (draws, k), both at least 1, got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} contain NaN or infinity")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.nodes.shape != self.weights.shape:
            raise ValueError(f"nodes have shape {self.nodes.shape}, weights {self.weights.shape}: must be equal")
        if (self.weights < 0).any() or not np.allclose(self.weights.sum(1), 1.0, atol=1e-6):
            raise ValueError(f"weights must be >= 0 and sum to 1 in every draw, sums are {self.weights.sum(1)}")
        if int(self.dim) != self.dim or self.dim < 1:
            raise ValueError(f"dim={self.dim!r}: accepted are whole numbers >= 1")

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
            raise ValueError(f"eigenvalues must have shape (k,) with k <= dim={dim}, got {values.shape}")
        weights = np.full(values.size, 1.0 / dim)
        if values.size < dim:
            values, weights = np.append(values, 0.0), np.append(weights, (dim - values.size) / dim)
        return cls(values[None], weights[None], dim, exact=True, rounding=rounding, info=dict(info or {}))

    @property
    def draws(self) -> int:
        """Number of independent random start vectors (1 for an exact spectrum)."""
        return self.nodes.shape[0]

    def epsilon_rank(self, eps: float, normalized: bool = True, relative: bool = False) -> Measure:
        """
        Fraction, or number, of the ``dim`` eigenvalues with an absolute value above ``eps``.

        It is the sum of the weights of the nodes above ``eps``: no density on a grid is involved.

        :param eps: threshold, > 0
        :param normalized: the fraction (default) instead of the number
        :param relative: ``eps`` is a fraction of the largest absolute eigenvalue
        :return: mean over draws with its standard error
        :raises ValueError: for ``eps`` <= 0
        """
        ranks = epsilon_rank(
            self.nodes.copy(), eps, self.weights.copy(), dim=self.dim, normalized=normalized, relative=relative
        )
        return self._measure(ranks.numpy())

    def epsilon_rank_bounds(self, eps: float, normalized: bool = True) -> tuple[float, float]:
        """
        Between which numbers the epsilon-rank lies that the quadrature's nodes can tell.

        Where no node is near ``eps``, a node stands for eigenvalues on both sides of it. By the inequalities of
        Chebyshev, Markov and Stieltjes (Szego 1939, section 3.41) the mass up to a point differs from the sum of the
        weights up to there by no more than the weight of the next node on either side. Wide bounds mean: more steps,
        or a larger ``eps``. They bound what each draw measures, not the difference between draws, which is the
        standard error's.

        :param eps: threshold, > 0
        :param normalized: fractions (default) instead of numbers
        :return: lower and upper bound, means over draws; both the epsilon-rank itself for an exact spectrum
        :raises ValueError: for ``eps`` <= 0
        """
        rank = low = high = float(self.epsilon_rank(eps))
        if not self.exact:
            draws = zip(self.nodes, self.weights, strict=True)
            outside, inside = np.mean([_weights_beside(nodes, weights, eps) for nodes, weights in draws], axis=0)
            low, high = max(0.0, rank - outside), min(1.0, rank + inside)
        scale = 1.0 if normalized else float(self.dim)
        return low * scale, high * scale

    def effective_rank(self) -> Measure:
        """
        Exponentiated Shannon entropy of the ``dim`` absolute eigenvalues, each divided by their sum.

        As in :func:`~sb3_plasticity.common.rank.effective_rank` (Roy and Vetterli 2007); a zero matrix has rank 1.

        :return: between 1 and ``dim``; mean over draws with its standard error
        """
        magnitude = np.abs(self.nodes)
        total = (self.dim * self.weights * magnitude).sum(1, keepdims=True)
        share = magnitude / np.where(total > 0, total, 1.0)
        terms = self.dim * self.weights * share * np.log(np.where(share > 0, share, 1.0))
        return self._measure(np.exp(-terms.sum(1)))

    @property
    def largest(self) -> Measure:
        """The largest eigenvalue (not in absolute value)."""
        return self._measure(self.nodes.max(1))

    @property
    def smallest(self) -> Measure:
        """The smallest, that is the most negative, eigenvalue."""
        return self._measure(self.nodes.min(1))

    @property
    def trace(self) -> Measure:
        """The sum of the eigenvalues."""
        return self._measure(self.dim * (self.weights * self.nodes).sum(1))

    @property
    def negative_fraction(self) -> Measure:
        """Fraction of the eigenvalues that are negative by more than rounding."""
        return self._measure((self.weights * (self.nodes < -self.rounding)).sum(1))

    def measures(self, epsilon: Iterable[float] = (1e-3, 1e-2, 1e-1)) -> dict[str, Measure]:
        """
        All measures by name, as the callback logs and :func:`load_spectra` tabulates them.

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
        Smoothed spectral density, for pictures only: a Gaussian of width ``bandwidth`` at every node, by weight.

        :param grid: (m,) eigenvalues at which to evaluate it
        :param bandwidth: standard deviation of the Gaussian, > 0
        :return: (m,), mean over draws; it integrates to 1 over the line
        :raises ValueError: for a ``bandwidth`` <= 0
        """
        if not (math.isfinite(bandwidth) and bandwidth > 0):
            raise ValueError(f"bandwidth={bandwidth!r}: accepted are finite numbers > 0")
        points = np.asarray(grid, dtype=np.float64)
        nodes, weights = self.nodes.ravel(), self.weights.ravel() / self.draws
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
                )
        except ForeignFileError:
            raise
        except _DAMAGED as error:
            raise ValueError(f"{os.fspath(path)} is no whole saved Spectrum: {error}") from error

    def _measure(self, per_draw: np.ndarray) -> Measure:
        if self.exact:
            return Measure(per_draw.mean(), 0.0)
        error = per_draw.std(ddof=1) / math.sqrt(self.draws) if self.draws > 1 else math.nan
        return Measure(per_draw.mean(), error)


def _weights_beside(nodes: np.ndarray, weights: np.ndarray, eps: float) -> tuple[float, float]:
    """Weights of the nodes just outside, and just inside, of -eps and of eps."""
    order = np.argsort(nodes)
    nodes, weights = nodes[order], weights[order]
    first, stop = np.searchsorted(nodes, -eps, "left"), np.searchsorted(nodes, eps, "right")
    outside = [index for index in (first - 1, stop) if 0 <= index < len(nodes)]
    inside = {first, stop - 1} if first < stop else set()
    return float(weights[outside].sum()), float(weights[list(inside)].sum())


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"info must hold numbers, strings, lists and dicts, got {type(value).__name__}: {value!r}")
