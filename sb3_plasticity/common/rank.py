"""Effective rank of features and epsilon-rank of a spectrum: pure functions of tensors."""

import math
from typing import Any, Literal, get_args

import numpy as np
import torch as th
from torch.fx.experimental.proxy_tensor import get_proxy_mode

RankOf = Literal["covariance", "features"]

# From which number of rows and features on training_rank's operator pays: below, its call costs more than it saves.
_OPERATOR_FROM = 64
# Up to which sum of squared shares of the spectrum its float32 is exact enough: beyond, all but a hundredth is one
# eigenvalue, and what float32 cannot tell from 0 matters.
_CONCENTRATED = 0.98
# Added to the diagonal of a Gram matrix of trace 1: without it float32 LAPACK returns NaN for some with dead units.
_RIDGE = 1e-7
# With eigenvalues below this share of the largest, 1 / singular value would blow up the rounding of a float32 product.
_ILL_CONDITIONED = 1e-10
# From which number of multiplications on oneDNN, where there is one, beats the BLAS that PyTorch calls.
_ONEDNN_FROM = 128**3

# Features nowhere above this count as zero: the gradient grows as 1 / scale and would overflow the dtype.
_FLOOR = {th.float64: 1e-300, th.float32: 1e-30, th.bfloat16: 1e-30}


def effective_rank(features: th.Tensor, of: RankOf = "covariance") -> th.Tensor:
    r"""
    Effective rank of a layer's features, differentiable: the exponentiated Shannon entropy of a normalised spectrum.

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
    _check_arguments(features, of)
    n_samples, width = features.shape[-2:]
    scaled = _scale_to_one(features, "features")
    if of == "features":
        # Divided by singular values, rounding errors of a float32 gradient would grow large.
        scaled = scaled.to(th.float64)
    # N < d: the dual Gram matrix has the same nonzero eigenvalues and is smaller.
    gram = _Gram.apply(scaled, n_samples < width)
    spectrum = _positive_eigenvalues(gram, relative_tolerance=max(n_samples, width) * th.finfo(th.float64).eps)
    if of == "features":
        # The square root's derivative is infinite at 0: those entries have no share in the entropy.
        spectrum = th.where(spectrum > 0, spectrum, 1.0).sqrt() * (spectrum > 0)
    return _exponentiated_entropy(spectrum).to(features.dtype)


def training_rank(features: th.Tensor, of: RankOf = "covariance") -> th.Tensor:
    """
    Effective rank for a training loop: :func:`effective_rank` in about half the time, with a little rounding.

    With fewer than 64 rows or features it is :func:`effective_rank`. With more, value and first derivative come out of
    one eigendecomposition, of the columns that are not zero. For ``of="covariance"`` it is in float32, repeated in
    float64 where it fails or where all but a hundredth of the spectrum is one eigenvalue; for ``of="features"`` it is
    in float64, as a square root would turn float32's rounding of 1e-7 into 3e-4. On the features of Ant's networks,
    fresh and trained, the value was within 3e-5 of the exact one and the gradient's cosine to the exact one above
    1 - 1e-5; where most rows are copies the value was 2e-4 off. There is no second derivative then, and under
    ``torch.no_grad`` there are no eigenvectors either.

    In programs that are traced (``make_fx``), NaN or infinity in the features gives NaN and no error.

    :param features: (N, d), float32, float64 or bfloat16
    :param of: as in :func:`effective_rank`
    :return: scalar, in the dtype of ``features``
    :raises ValueError: as :func:`effective_rank` does
    """
    _check_arguments(features, of)
    if features.ndim != 2:
        raise ValueError(f"features must have two axes, got {tuple(features.shape)}")
    if min(features.shape) < _OPERATOR_FROM:
        if not _is_traced():
            return effective_rank(features, of)
        finite = th.isfinite(features)  # LAPACK would raise in the middle of the program
        rank = effective_rank(th.where(finite, features, 0.0), of)
        return rank * th.where(finite.all(), 1.0, math.nan).to(rank.dtype)
    if th.is_grad_enabled() or _is_traced():
        rank, _ = _RankAndGradient.apply(features, of == "features")
    else:
        rank, _ = _rank_and_gradient(features, of == "features", vectors=False)
    if not _is_traced() and not bool(th.isfinite(rank.detach())):
        raise ValueError("features contain NaN or infinity")
    return rank


def effective_rank_of_covariance(matrix: th.Tensor) -> th.Tensor:
    """
    Effective rank of a symmetric positive semi-definite matrix, differentiable: see :func:`effective_rank`.

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
        raise ValueError(f"matrix must have shape (d, d) or (L, d, d), got {tuple(matrix.shape)}")
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
    Epsilon-rank of a spectrum: the fraction, or number, of eigenvalues with an absolute value above epsilon.

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
        raise ValueError(f"eigenvalues must have shape (..., k) with k >= 1, got {tuple(values.shape)}")
    if values.isnan().any():
        raise ValueError("eigenvalues contain NaN")
    threshold = eps * values.amax(-1, keepdim=True) if relative else eps
    above = (values > threshold).to(th.float64)
    if weights is None:
        fraction = above.mean(-1)
    else:
        shares = th.as_tensor(weights).detach().to(th.float64)
        if shares.shape != values.shape:
            raise ValueError(
                f"weights have shape {tuple(shares.shape)}, eigenvalues {tuple(values.shape)}: must be equal"
            )
        fraction = (above * shares).sum(-1)
    if normalized:
        return fraction
    if dim is None and weights is not None:
        raise ValueError("dim=None: the number of eigenvalues is needed to turn weights into a number")
    return fraction * (values.shape[-1] if dim is None else dim)


def check_epsilon(eps: float) -> None:
    """
    Refuse a threshold that is not a positive, finite number.

    :param eps: threshold on absolute eigenvalues
    :raises ValueError: naming the value
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps={eps!r}: accepted are finite numbers > 0")


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


class _RankAndGradient(th.autograd.Function):
    """Effective rank and its gradient, which the backward pass only scales."""

    @staticmethod
    def forward(features: th.Tensor, singular: bool) -> tuple[th.Tensor, th.Tensor]:
        return th.ops.sb3_plasticity.rank_and_gradient(features, singular)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[th.Tensor, bool], output: tuple[th.Tensor, th.Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor, _: th.Tensor) -> tuple[th.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None


# An operator, so that a compiled program may hold what depends on values: live columns, the way back to float64.
_LIBRARY = th.library.Library("sb3_plasticity", "FRAGMENT")
_LIBRARY.define("rank_and_gradient(Tensor features, bool singular) -> (Tensor, Tensor)")


def _rank_and_gradient(features: th.Tensor, singular: bool, vectors: bool = True) -> tuple[th.Tensor, th.Tensor | None]:
    """Effective rank of (N, d) features and its gradient, None without ``vectors``; NaN for what is not finite."""
    factor = features.float() if features.dtype == th.bfloat16 else features
    largest = max(abs(float(bound)) for bound in th.aminmax(factor))
    if not math.isfinite(largest):
        return features.new_full((), math.nan), th.full_like(features, math.nan, memory_format=th.contiguous_format)
    if largest <= _FLOOR[features.dtype]:
        return features.new_ones(()), th.zeros_like(features, memory_format=th.contiguous_format)
    # A power of two brings the largest entry near 1, without rounding, where squares would leave the dtype's range.
    # - 2 keeps the factor for the largest float32, 2^128, a normal number.
    scale = 1.0 if 1e-6 < largest < 1e6 else 2.0 ** (2 - math.frexp(largest)[1])
    if scale != 1.0:
        factor = factor * scale
    found = None
    if factor.dtype == th.float32 and not singular:
        found = _rank_and_slope(factor, singular, vectors)
    if found is None:
        found = _rank_and_slope(factor.to(th.float64), singular, vectors)
    assert found is not None
    rank, slope, ill_conditioned = found
    if slope is None:
        return features.new_full((), rank), None
    if ill_conditioned:
        factor = factor.to(th.float64)
    slope = slope.to(factor.dtype)
    # The slope is symmetric: its own transpose.
    gradient = _product(slope, factor.mT) if factor.shape[0] < factor.shape[1] else _product(factor, slope)
    if scale != 1.0:
        gradient = gradient * scale
    return features.new_full((), rank), gradient.to(features.dtype)


def _meta(features: th.Tensor, singular: bool) -> tuple[th.Tensor, th.Tensor]:
    return features.new_empty(()), th.empty_like(features, memory_format=th.contiguous_format)


def _rank_and_slope(factor: th.Tensor, singular: bool, vectors: bool) -> tuple[float, th.Tensor | None, bool] | None:
    """
    Effective rank of a matrix, twice its derivative by the smaller Gram matrix, and whether a product needs float64.

    None where float32 failed, or where what it cannot tell from 0 would matter. Without ``vectors`` there is no
    derivative.
    """
    single = factor.dtype == th.float32
    gram = _gram(factor.mT if factor.shape[0] < factor.shape[1] else factor)
    diagonal = gram.diagonal()
    trace = float(diagonal.sum())
    live = diagonal > 0
    some_dead = not bool(live.all())
    if some_dead:
        size, gram = len(gram), gram[live][:, live]
    gram.div_(trace)
    if single:
        if not float(gram.square().sum()) < _CONCENTRATED:  # NaN too
            return None
        gram.diagonal().add_(_RIDGE)
    try:
        eigenvalues, basis = th.linalg.eigh(gram) if vectors else (th.linalg.eigvalsh(gram), None)
    except th.linalg.LinAlgError:
        if single:
            return None
        raise
    values = eigenvalues.cpu().numpy().astype(np.float64)
    if single:
        values = (values - _RIDGE).clip(min=0.0)
        if not abs(values.sum() - 1.0) < 1e-3:
            return None
    else:
        values[values <= max(factor.shape) * np.finfo(np.float64).eps * values[-1]] = 0.0
    positive = values > 0
    spectrum = np.sqrt(values) if singular else values
    share = spectrum / spectrum.sum()
    logarithm = np.log(share, where=positive, out=np.zeros_like(share))
    entropy = -(share * logarithm).sum()
    rank = math.exp(entropy)
    if basis is None:
        return rank, None, False
    derivative = -rank / spectrum.sum() * (logarithm + entropy) * positive  # by the spectrum
    ill_conditioned = False
    if singular:
        derivative[positive] /= 2 * spectrum[positive]  # by the eigenvalues
        ill_conditioned = bool(values[positive][0] < _ILL_CONDITIONED * values[-1])
    weights = th.as_tensor(2 * derivative / trace, dtype=basis.dtype, device=basis.device)
    slope = _product(basis * weights, basis)
    if some_dead:
        slope = slope.new_zeros(size, size).masked_scatter_(live[:, None] & live, slope)
    return rank, slope, ill_conditioned


def _gram(factor: th.Tensor, block: int = 64) -> th.Tensor:
    """Return factor.T @ factor; in float64 its lower triangle only, in blocks, and anything above."""
    if factor.dtype != th.float64:
        transposed = factor.mT.contiguous()
        return _product(transposed, transposed)
    width = factor.shape[1]
    gram = factor.new_zeros(width, width)
    for begin in range(0, width, block):
        end = min(begin + block, width)
        gram[begin:end, :end] = factor[:, begin:end].mT @ factor[:, :end]
    return gram


def _onednn_pays(values: th.Tensor, multiplications: int) -> bool:
    return (
        multiplications >= _ONEDNN_FROM
        and values.dtype == th.float32
        and values.device.type == "cpu"
        and th.backends.mkldnn.is_available()
        and hasattr(th.ops.mkldnn, "_linear_pointwise")
    )


def _product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """Return left @ right.T."""
    if _onednn_pays(left, left.shape[0] * left.shape[1] * right.shape[0]):
        return th.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.mT


_LIBRARY.impl("rank_and_gradient", _rank_and_gradient, "CompositeExplicitAutograd")
th.library.register_fake("sb3_plasticity::rank_and_gradient", _meta, lib=_LIBRARY)


def _check_arguments(features: th.Tensor, of: RankOf) -> None:
    if of not in get_args(RankOf):
        raise ValueError(f"of={of!r}: accepted are {', '.join(map(repr, get_args(RankOf)))}")
    _check_matrices(features, "features")


def _is_traced() -> bool:
    return th.compiler.is_compiling() or get_proxy_mode() is not None


def _check_matrices(values: th.Tensor, name: str) -> None:
    if not isinstance(values, th.Tensor) or values.dtype not in _FLOOR:
        found = f"a tensor of {values.dtype}" if isinstance(values, th.Tensor) else type(values).__name__
        raise ValueError(f"{name} must be a tensor of float32, float64 or bfloat16, got {found}")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            f"{name} must have two axes, or three for a batch, none of length 0, got {tuple(values.shape)}"
        )


def _scale_to_one(values: th.Tensor, name: str) -> th.Tensor:
    """Bring each matrix's largest entry near 1 by a power of two, that is without rounding; float32 or float64."""
    floor = _FLOOR[values.dtype]
    if values.dtype == th.bfloat16:
        values = values.to(th.float32)
    largest = values.detach().abs().amax((-2, -1), keepdim=True)
    if not _is_traced() and not bool(th.isfinite(largest).all()):
        raise ValueError(f"{name} contain NaN or infinity")
    # - 2 keeps the factor for the largest float32, 2^128, a normal number.
    exponent = th.frexp(largest).exponent - 2
    return values * th.where(largest > floor, th.exp2(-exponent.to(values.dtype)), 0.0)


def _positive_eigenvalues(matrix: th.Tensor, relative_tolerance: float) -> th.Tensor:
    """Eigenvalues (..., d) of a symmetric float64 matrix; negative ones and those within rounding of 0 are set to 0."""
    # eigvalsh, not eigh: its gradient V diag(g) V^T has no 1 / (l_i - l_j), so repeated eigenvalues are harmless.
    values = th.linalg.eigvalsh(matrix)
    return th.where(values > relative_tolerance * values.detach().amax(-1, keepdim=True), values, 0.0)


def _exponentiated_entropy(spectrum: th.Tensor) -> th.Tensor:
    """Return exp(-sum p log p), p = spectrum / sum, over the last axis; zeros have no share, all zero gives 1."""
    total = spectrum.sum(-1, keepdim=True)
    share = spectrum / th.where(total > 0, total, 1.0)
    positive = share > 0
    return th.exp(-(share * th.where(positive, share, 1.0).log()).sum(-1))
