"""Effective rank of features and epsilon-rank of a spectrum: pure functions of tensors."""

from typing import Any, Literal, get_args

import numpy as np
import torch as th

from sb3_plasticity.common.checks import check_choice, check_number, must_be
from sb3_plasticity.common.tracing import is_traced

RankOf = Literal["covariance", "features"]
RANKS_OF = get_args(RankOf)

# Features nowhere above this count as zero: the gradient grows as 1 / scale and would overflow the dtype.
ZERO_BELOW = {th.float64: 1e-300, th.float32: 1e-30, th.bfloat16: 1e-30}


def effective_rank(features: th.Tensor, of: RankOf = "covariance") -> th.Tensor:
    r"""
    Compute a layer's effective rank, differentiably: the exponentiated Shannon entropy of a normalised spectrum.

    .. math:: \mathrm{erank} = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \frac{\sigma_i}{\sum_j \sigma_j}

    The spectrum :math:`\sigma` is that of the uncentred second moment :math:`E[a a^\top]` (``of="covariance"``, the
    poster's L2-ER) or the singular values of the matrix of features (``of="features"``, the L2-ER authors' code, after
    Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*). It lies between 1 and
    min(N, d) and depends on N: compare only at equal N.

    Value and gradient are finite for every finite input. What cannot be told from zero is zero: eigenvalues of the
    second moment below ``max(N, d) * eps64`` of the largest have no share in value and gradient, and features that are
    nowhere larger than 1e-30 (1e-300 in float64) have rank 1 and gradient 0.

    Eigenvalues are computed in float64 whatever the input: in float32 LAPACK returns NaN for some Gram matrices of ReLU
    features. Ordinary autograd, ``torch.func.grad`` and ``torch.compile`` work; instead of ``torch.func.vmap`` stack
    the layers. A second derivative exists only where no two eigenvalues are equal.

    :param features: (N, d), a row per sample, or (L, N, d): L layers of one width in one batched eigendecomposition.
        float32, float64 or bfloat16
    :param of: ``"covariance"`` or ``"features"``
    :return: scalar, or (L,), in the dtype of ``features``
    :raises ValueError: for another shape or dtype, an unknown ``of``, an empty matrix, or a NaN or infinity (when
        compiled, LAPACK's own error says so)
    """
    check_features(features, of)
    n_samples, width = features.shape[-2:]
    scaled = _scale_to_one(features, "features")
    if of == "features":
        # Divided by singular values, rounding errors of a float32 gradient would grow large.
        scaled = scaled.to(th.float64)
    # N < d: the dual Gram matrix has the same nonzero eigenvalues and is smaller.
    gram: th.Tensor = _Gram.apply(scaled, n_samples < width)  # type: ignore[no-untyped-call]
    spectrum = _positive_eigenvalues(gram, relative_tolerance=max(n_samples, width) * th.finfo(th.float64).eps)
    if of == "features":
        # The square root's derivative is infinite at 0: those entries have no share in the entropy.
        spectrum = th.where(spectrum > 0, spectrum, 1.0).sqrt() * (spectrum > 0)
    return _exponentiated_entropy(spectrum).to(features.dtype)


def effective_rank_of_covariance(matrix: th.Tensor) -> th.Tensor:
    """
    Compute the effective rank of a symmetric positive semi-definite matrix, see :func:`effective_rank`.

    ``effective_rank_of_covariance(a.T @ a)`` equals ``effective_rank(a)``; the poster's rank of a sum over layers is
    that of ``sum_l a_l.T @ a_l / N``. A float32 matrix carries rounding errors that look like small eigenvalues and
    raise the rank of a rank-deficient one by some 1e-5 of itself: build the matrix in float64 where that matters.

    :param matrix: (d, d), or (L, d, d) for L matrices at once; only the lower triangle is read.
        float32, float64 or bfloat16
    :return: scalar, or (L,), in the dtype of ``matrix``
    :raises ValueError: for another shape or dtype, or a NaN or infinity
    """
    _check_matrices(matrix, "matrix")
    if matrix.shape[-1] != matrix.shape[-2]:
        raise must_be("matrix", "of shape (d, d) or (L, d, d)", tuple(matrix.shape))
    scaled = _scale_to_one(matrix, "matrix").to(th.float64)
    spectrum = _positive_eigenvalues(scaled, relative_tolerance=matrix.shape[-1] * th.finfo(th.float64).eps)
    return _exponentiated_entropy(spectrum).to(matrix.dtype)


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
    Compute a spectrum's epsilon-rank: the fraction, or number, of eigenvalues with an absolute value above epsilon.

    With ``weights``, the eigenvalues are the nodes of a quadrature (stochastic Lanczos) and the fraction is the sum of
    the weights of those above epsilon. No density on a grid is involved, so epsilon may be as small as one likes.

    :param eigenvalues: (..., k) eigenvalues of any sign, or nodes
    :param eps: threshold, > 0; the comparison is strict
    :param weights: (..., k) summing to 1 over the last axis; by default every eigenvalue weighs the same
    :param dim: number of eigenvalues that the spectrum stands for, needed for a number when ``weights`` are given;
        without ``weights`` it is k
    :param normalized: the fraction (default) instead of the number
    :param relative: ``eps`` is a fraction of the largest absolute eigenvalue; an all-zero spectrum has rank 0
    :return: (...), float64
    :raises ValueError: for ``eps`` <= 0, NaN eigenvalues, mismatched shapes, or a missing ``dim``
    """
    check_epsilon(eps)
    values = th.as_tensor(eigenvalues).detach().to(th.float64).abs()
    if values.ndim == 0 or values.shape[-1] == 0:
        raise must_be("eigenvalues", "of shape (..., k) with k >= 1", tuple(values.shape))
    if values.isnan().any():
        raise ValueError("`eigenvalues` must be free of NaN")
    threshold = eps * values.amax(-1, keepdim=True) if relative else eps
    above = (values > threshold).to(th.float64)
    if weights is None:
        fraction = above.mean(-1)
    else:
        shares = th.as_tensor(weights).detach().to(th.float64)
        if shares.shape != values.shape:
            raise must_be("weights", f"of the eigenvalues' shape {tuple(values.shape)}", tuple(shares.shape))
        fraction = (above * shares).sum(-1)
    if normalized:
        return fraction
    if dim is None and weights is not None:
        raise must_be("dim", "the number of eigenvalues, to turn weights into a number", None)
    return fraction * (values.shape[-1] if dim is None else dim)


def check_epsilon(eps: float) -> None:
    """
    Refuse a threshold that is not a positive, finite number.

    :param eps: threshold on absolute eigenvalues
    :raises ValueError: naming the value
    """
    check_number("eps", eps, above=0)


def check_features(features: th.Tensor, of: RankOf) -> None:
    """
    Refuse what has no effective rank.

    :param features: (N, d) or (L, N, d)
    :param of: spectrum that is ranked
    :raises ValueError: naming the argument
    """
    check_choice("of", of, RANKS_OF)
    _check_matrices(features, "features")


class _Gram(th.autograd.Function):
    """The Gram matrix of a factor in float64; its gradient takes one product where autograd's takes two."""

    @staticmethod
    def forward(factor: th.Tensor, dual: bool) -> th.Tensor:
        factor = factor.to(th.float64)
        return factor @ factor.mT if dual else factor.mT @ factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[th.Tensor, bool], output: th.Tensor) -> None:
        factor, ctx.dual = inputs
        ctx.save_for_backward(factor)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None]:
        (factor,) = ctx.saved_tensors
        grad = (grad + grad.mT).to(factor.dtype)
        return grad @ factor if ctx.dual else factor @ grad, None


def _check_matrices(values: th.Tensor, name: str) -> None:
    if not isinstance(values, th.Tensor) or values.dtype not in ZERO_BELOW:
        found = f"a tensor of {values.dtype}" if isinstance(values, th.Tensor) else type(values).__name__
        raise ValueError(f"`{name}` must be a tensor of float32, float64 or bfloat16, got {found}")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise must_be(name, "of two axes, or three for a batch, none of length 0", tuple(values.shape))


def _scale_to_one(values: th.Tensor, name: str) -> th.Tensor:
    """Bring each matrix's largest entry near 1 by a power of two, that is without rounding; float32 or float64."""
    floor = ZERO_BELOW[values.dtype]
    if values.dtype == th.bfloat16:
        values = values.to(th.float32)
    largest = values.detach().abs().amax((-2, -1), keepdim=True)
    if not is_traced() and not bool(th.isfinite(largest).all()):
        raise ValueError(f"{name} contain NaN or infinity")
    # - 2 keeps the factor for the largest float32, 2^128, a normal number.
    exponent = th.frexp(largest).exponent - 2
    return values * th.where(largest > floor, th.exp2(-exponent.to(values.dtype)), 0.0)


def _positive_eigenvalues(matrix: th.Tensor, relative_tolerance: float) -> th.Tensor:
    """Return a symmetric float64 matrix's eigenvalues (..., d), 0 for negative ones and those within rounding of 0."""
    # eigvalsh, not eigh: its gradient V diag(g) V^T has no 1 / (l_i - l_j), so repeated eigenvalues are harmless.
    values = th.linalg.eigvalsh(matrix)
    return th.where(values > relative_tolerance * values.detach().amax(-1, keepdim=True), values, 0.0)


def _exponentiated_entropy(spectrum: th.Tensor) -> th.Tensor:
    """Return exp(-sum p log p), p = spectrum / sum, over the last axis; zeros have no share, all zero gives 1."""
    total = spectrum.sum(-1, keepdim=True)
    share = spectrum / th.where(total > 0, total, 1.0)
    positive = share > 0
    return th.exp(-(share * th.where(positive, share, 1.0).log()).sum(-1))
