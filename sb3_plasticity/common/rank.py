"""Effective rank of features and epsilon-rank of a spectrum: pure functions of tensors."""

import math
from typing import Literal, get_args

import numpy as np
import torch as th

RankOf = Literal["covariance", "features"]


def effective_rank(features: th.Tensor, of: RankOf = "covariance") -> th.Tensor:
    r"""
    Effective rank of a layer's features, differentiable: the exponentiated Shannon entropy of a normalised spectrum.

    .. math:: \mathrm{erank} = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \frac{\sigma_i}{\sum_j \sigma_j}

    The spectrum :math:`\sigma` is that of the uncentred second moment :math:`E[a a^\top]` (``of="covariance"``, the
    poster's L2-ER) or the singular values of the matrix of features (``of="features"``, Roy and Vetterli 2007, *The
    effective rank: a measure of effective dimensionality*, and the L2-ER authors' code). It lies between 1 and
    min(N, d), and depends on N: compare only at equal N.

    Value and gradient are finite for every finite input, and do not change, or change as 1 / scale, with the scale of the
    features. What cannot be told from zero is zero: eigenvalues below ``max(N, d) * eps64`` of the largest have no share in
    value and gradient, and features that are nowhere larger than 1e-30 (1e-300 in float64) have rank 1 and gradient 0.

    The eigenvalues are always computed in float64: in float32 LAPACK returns NaN for some Gram matrices of ReLU features.
    Ordinary autograd, ``torch.func.grad`` and ``torch.compile`` work; for ``torch.func.vmap`` stack the layers instead.
    A second derivative exists only where no two eigenvalues are equal.

    :param features: (N, d), a row per sample, or (L, N, d), L layers of one width in a single batched eigendecomposition;
        any floating dtype
    :param of: ``"covariance"`` or ``"features"``
    :return: scalar, or (L,), in the dtype of ``features``
    :raises ValueError: for another shape or dtype, an unknown ``of``, an empty matrix, or a NaN or infinity (not when
        compiled: there LAPACK's own error says so)
    """
    if of not in get_args(RankOf):
        raise ValueError(f"of={of!r}: accepted are {', '.join(map(repr, get_args(RankOf)))}")
    if not isinstance(features, th.Tensor) or not features.is_floating_point():
        raise ValueError(f"features must be a floating point tensor, got {_describe(features)}")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(f"features must have shape (N, d) or (L, N, d), none of them 0, got {tuple(features.shape)}")
    n_samples, width = features.shape[-2:]
    scaled = _divide_by_largest(features, "features")
    # N < d: the dual Gram matrix has the same nonzero eigenvalues and is smaller.
    gram = scaled @ scaled.mT if n_samples < width else scaled.mT @ scaled
    spectrum = _positive_eigenvalues(gram, relative_tolerance=max(n_samples, width) * th.finfo(th.float64).eps)
    if of == "features":
        # The square root's derivative is infinite at 0: those entries have no share in the entropy.
        spectrum = th.where(spectrum > 0, spectrum, 1.0).sqrt() * (spectrum > 0)
    return _exponentiated_entropy(spectrum).to(features.dtype)


def effective_rank_of_covariance(matrix: th.Tensor) -> th.Tensor:
    """
    Effective rank of a symmetric positive semi-definite matrix, differentiable: see :func:`effective_rank`.

    ``effective_rank_of_covariance(a.T @ a)`` equals ``effective_rank(a)``; the poster's rank of a sum of layers is that of
    ``sum_l a_l.T @ a_l / N``.

    :param matrix: (d, d), or (L, d, d) for L matrices at once; floating dtype. Only the lower triangle is read.
        float32 matrices carry rounding errors of their own: build the matrix in float64 where small eigenvalues matter.
    :return: scalar, or (L,), in the dtype of ``matrix``
    :raises ValueError: for another shape or dtype, or a NaN or infinity
    """
    if not isinstance(matrix, th.Tensor) or not matrix.is_floating_point():
        raise ValueError(f"matrix must be a floating point tensor, got {_describe(matrix)}")
    if matrix.ndim not in (2, 3) or matrix.shape[-1] != matrix.shape[-2] or 0 in matrix.shape:
        raise ValueError(f"matrix must have shape (d, d) or (L, d, d), none of them 0, got {tuple(matrix.shape)}")
    scaled = _divide_by_largest(matrix, "matrix")
    tolerance = matrix.shape[-1] * th.finfo(matrix.dtype).eps
    return _exponentiated_entropy(_positive_eigenvalues(scaled, tolerance)).to(matrix.dtype)


def epsilon_rank(
    eigenvalues: th.Tensor | np.ndarray,
    eps: float,
    weights: th.Tensor | np.ndarray | None = None,
    *,
    dim: int | None = None,
    normalized: bool = True,
    relative: bool = False,
) -> th.Tensor:
    """
    Epsilon-rank of a spectrum: the fraction, or number, of eigenvalues with an absolute value above epsilon.

    With ``weights``, the eigenvalues are the nodes of a quadrature (stochastic Lanczos) and the fraction is the sum of the
    weights of those above epsilon. No density on a grid is involved, so epsilon may be as small as one likes.

    :param eigenvalues: (..., k) eigenvalues of any sign, or nodes
    :param eps: threshold, > 0; the comparison is strict
    :param weights: (..., k) summing to 1 over the last axis; by default every eigenvalue weighs the same
    :param dim: number of eigenvalues that the spectrum stands for, needed for the number when ``weights`` are given;
        without ``weights`` it is k
    :param normalized: the fraction (default) instead of the number
    :param relative: ``eps`` is a fraction of the largest absolute eigenvalue; all-zero spectra have rank 0
    :return: (...), float64
    :raises ValueError: for ``eps`` <= 0, NaN eigenvalues, mismatched shapes, or a missing ``dim``
    """
    check_epsilon(eps)
    values = th.as_tensor(eigenvalues).detach().to(th.float64).abs()
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"eigenvalues must have shape (..., k) with k >= 1, got {tuple(values.shape)}")
    if values.isnan().any():
        raise ValueError("eigenvalues contain NaN")
    count = values.shape[-1] if weights is None and dim is None else dim
    if not normalized and count is None:
        raise ValueError(
            "dim=None: the number of eigenvalues is needed to turn weights into a count (normalized=False)"
        )
    threshold = eps * values.amax(-1, keepdim=True) if relative else eps
    above = (values > threshold).to(th.float64)
    if weights is None:
        fraction = above.mean(-1)
    else:
        shares = th.as_tensor(weights).detach().to(th.float64)
        if shares.shape != values.shape:
            raise ValueError(
                f"weights must have the shape of eigenvalues, {tuple(values.shape)}, got {tuple(shares.shape)}"
            )
        fraction = (above * shares).sum(-1)
    return fraction if normalized else fraction * float(count or 0)


def check_epsilon(eps: float) -> None:
    """
    Refuse a threshold that is not a positive, finite number.

    :param eps: threshold on absolute eigenvalues
    :raises ValueError: naming the value
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps={eps!r}: accepted are finite numbers > 0")


def _describe(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, th.Tensor) else type(value).__name__


def _divide_by_largest(values: th.Tensor, name: str) -> th.Tensor:
    """Return values / max |values|, matrix by matrix, in float64; what is nowhere above the dtype's floor becomes 0."""
    largest = values.detach().abs().amax((-2, -1), keepdim=True).to(th.float64)
    if not th.compiler.is_compiling() and not bool(th.isfinite(largest).all()):
        raise ValueError(f"{name} contain NaN or infinity")
    # The gradient grows as 1 / scale: below this floor it would overflow the dtype.
    floor = 1e-300 if values.dtype == th.float64 else 1e-30
    factor = th.where(largest > floor, 1.0 / largest, 0.0)
    return values.to(th.float64) * factor


def _positive_eigenvalues(matrix: th.Tensor, relative_tolerance: float) -> th.Tensor:
    """Return the eigenvalues (..., d) of a symmetric float64 matrix with those within rounding of 0, or below, set to 0."""
    # eigvalsh, not eigh: its gradient V diag(g) V^T has no 1 / (l_i - l_j), so repeated eigenvalues are harmless.
    values = th.linalg.eigvalsh(matrix)
    return th.where(values > relative_tolerance * values.detach().amax(-1, keepdim=True), values, 0.0)


def _exponentiated_entropy(spectrum: th.Tensor) -> th.Tensor:
    """Return exp(-sum p log p) over the last axis, p = spectrum / sum; zeros have no share, an all-zero spectrum gives 1."""
    total = spectrum.sum(-1, keepdim=True)
    share = spectrum / th.where(total > 0, total, 1.0)
    positive = share > 0
    return th.exp(-(share * th.where(positive, share, 1.0).log()).sum(-1))
