"""
Effective rank for training loops: an operator that gives value and gradient at once.

:func:`~sb3_plasticity.common.rank.effective_rank` is the reference; this is the same number, twice as fast, with a
little rounding.
"""

import math
from typing import Any

import numpy as np
import torch as th

from sb3_plasticity.common import onednn
from sb3_plasticity.common.checks import must_be
from sb3_plasticity.common.rank import ZERO_BELOW, RankOf, check_features, effective_rank
from sb3_plasticity.common.tracing import is_traced

# From which number of rows and features on training_rank's operator pays: below, its call costs more than it saves.
_OPERATOR_FROM = 64
# Up to which sum of squared shares of the spectrum its float32 is exact enough: beyond, all but a hundredth is one
# eigenvalue, and what float32 cannot tell from 0 matters.
_CONCENTRATED = 0.98
# Added to the diagonal of a Gram matrix of trace 1: without it float32 LAPACK returns NaN for some with dead units.
_RIDGE = 1e-7
# With eigenvalues below this share of the largest, 1 / singular value would blow up the rounding of a float32 product.
_ILL_CONDITIONED = 1e-10


def training_rank(features: th.Tensor, of: RankOf = "covariance") -> th.Tensor:
    """
    Compute :func:`effective_rank` for a training loop: in about half the time, with a little rounding.

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
    check_features(features, of)
    if features.ndim != 2:
        raise must_be("features", "of two axes", tuple(features.shape))
    if min(features.shape) < _OPERATOR_FROM:
        if not is_traced():
            return effective_rank(features, of)
        finite = th.isfinite(features)  # LAPACK would raise in the middle of the program
        rank = effective_rank(th.where(finite, features, 0.0), of)
        return rank * th.where(finite.all(), 1.0, math.nan).to(rank.dtype)
    if th.is_grad_enabled() or is_traced():
        rank, _ = _RankAndGradient.apply(features, of == "features")  # type: ignore[no-untyped-call]
    else:
        rank, _ = _rank_and_gradient(features, of == "features", vectors=False)
    if not is_traced() and not bool(th.isfinite(rank.detach())):
        raise ValueError("features contain NaN or infinity")
    return rank


class _RankAndGradient(th.autograd.Function):
    """Effective rank and its gradient, which the backward pass only scales."""

    @staticmethod
    def forward(features: th.Tensor, singular: bool) -> tuple[th.Tensor, th.Tensor]:
        found: tuple[th.Tensor, th.Tensor] = th.ops.sb3_plasticity.rank_and_gradient(features, singular)
        return found

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
    """Return the effective rank of (N, d) features and its gradient, None without ``vectors``; NaN if not finite."""
    factor = features.float() if features.dtype == th.bfloat16 else features
    largest = max(abs(float(bound)) for bound in th.aminmax(factor))
    if not math.isfinite(largest):
        return features.new_full((), math.nan), th.full_like(features, math.nan, memory_format=th.contiguous_format)
    if largest <= ZERO_BELOW[features.dtype]:
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
    gradient = onednn.product(slope, factor.mT) if factor.shape[0] < factor.shape[1] else onednn.product(factor, slope)
    if scale != 1.0:
        gradient = gradient * scale
    return features.new_full((), rank), gradient.to(features.dtype)


def _meta(features: th.Tensor, singular: bool) -> tuple[th.Tensor, th.Tensor]:
    return features.new_empty(()), th.empty_like(features, memory_format=th.contiguous_format)


def _rank_and_slope(factor: th.Tensor, singular: bool, vectors: bool) -> tuple[float, th.Tensor | None, bool] | None:
    """
    Return a matrix's effective rank, twice its derivative by the smaller Gram matrix, whether products need float64.

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
    except th.linalg.LinAlgError:  # type: ignore[attr-defined]
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
    slope = onednn.product(basis * weights, basis)
    if some_dead:
        slope = slope.new_zeros(size, size).masked_scatter_(live[:, None] & live, slope)
    return rank, slope, ill_conditioned


def _gram(factor: th.Tensor, block: int = 64) -> th.Tensor:
    """Return factor.T @ factor; in float64 its lower triangle only, in blocks, and anything above."""
    if factor.dtype != th.float64:
        transposed = factor.mT.contiguous()
        return onednn.product(transposed, transposed)
    width = factor.shape[1]
    gram = factor.new_zeros(width, width)
    for begin in range(0, width, block):
        end = min(begin + block, width)
        gram[begin:end, :end] = factor[:, begin:end].mT @ factor[:, :end]
    return gram


_LIBRARY.impl("rank_and_gradient", _rank_and_gradient, "CompositeExplicitAutograd")
th.library.register_fake("sb3_plasticity::rank_and_gradient", _meta, lib=_LIBRARY)
