"""Action distributions as a network's outputs, and their Fisher information."""

import math
from collections.abc import Sequence

import torch as th
from sb3_contrib.common.maskable.distributions import (
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)


def distribution_outputs(distribution: Distribution) -> th.Tensor:
    """
    Read off what a policy network says of its action distribution.

    :param distribution: SB3's or sb3-contrib's, with N samples as its batch
    :return: (N, C): means and log standard deviations of a Gaussian (before squashing), or logits
    """
    if (normal := gaussian_of(distribution)) is not None:
        return th.cat([normal.mean, normal.stddev.log()], dim=1)
    if isinstance(distribution, BernoulliDistribution):
        return distribution.distribution.logits
    return th.cat([categorical.logits for categorical in _categoricals(distribution)], dim=1)


def distribution_fisher(distribution: Distribution) -> th.Tensor:
    r"""
    Compute the Fisher information of an action distribution in :func:`distribution_outputs`.

    Of a Gaussian in mean and log standard deviation :math:`1 / \sigma^2` and 2; of a categorical in its logits
    :math:`\mathrm{diag}(p) - p p^\top`; of a Bernoulli in its logit :math:`p (1 - p)`.

    A squashed Gaussian, SAC's, has the Fisher information of the Gaussian before squashing. With :math:`a = \tanh(x)`,
    :math:`\log p(a) = \log N(x; \mu, \sigma) - \log |\mathrm{d}a / \mathrm{d}x|`, and the second term does not depend
    on the parameters, so that the scores are equal: Fisher information is invariant under one-to-one transformations of
    the data (Amari and Nagaoka 2000, *Methods of Information Geometry*, section 2.2). The GGN with this output Hessian
    is the policy's Fisher information matrix (Kakade 2001, *A natural policy gradient*), the local KL divergence of the
    actions; it is not the Gauss-Newton part of SAC's actor loss, whose Hessian in the action is minus the critic's and
    need not be positive.

    :param distribution: SB3's or sb3-contrib's, with N samples as its batch
    :return: (N, C) where it is diagonal, else (N, C, C)
    """
    if (normal := gaussian_of(distribution)) is not None:
        variance = normal.variance
        return th.cat([1 / variance, th.full_like(variance, 2.0)], dim=1)
    if isinstance(distribution, BernoulliDistribution):
        probs = distribution.distribution.probs
        return probs * (1 - probs)
    fishers = []
    for categorical in _categoricals(distribution):
        p = categorical.probs
        fishers.append(th.diag_embed(p) - p[:, :, None] * p[:, None, :])
    return block_diagonal(*fishers)


def distribution_entropy(distribution: Distribution) -> th.Tensor:
    """
    Compute an action distribution's entropy; a squashed Gaussian's before squashing, which alone has a closed form.

    :param distribution: SB3's or sb3-contrib's, with N samples as its batch
    :return: (N,), in nats
    """
    if (normal := gaussian_of(distribution)) is not None:
        return (normal.stddev.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(1)
    entropy = distribution.entropy()
    assert entropy is not None  # only squashed Gaussians have none
    return entropy


def gaussian_of(distribution: Distribution) -> th.distributions.Normal | None:
    """
    Find the Gaussian that actions are drawn from, before squashing.

    :param distribution: SB3's or sb3-contrib's
    :return: of SB3's Gaussians and of gSDE, (N, actions); None for any other distribution
    """
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        normal = distribution.distribution
        assert isinstance(normal, th.distributions.Normal)
        return normal
    return None


def block_diagonal(*blocks: th.Tensor) -> th.Tensor:
    """
    Join the output Hessians of independent outputs.

    :param blocks: each (N, C) for a diagonal, or (N, C, C)
    :return: (N, sum of C) if all are diagonal, else (N, sum of C, sum of C)
    """
    if all(block.ndim == 2 for block in blocks):
        return th.cat(blocks, dim=1)
    matrices = [th.diag_embed(block) if block.ndim == 2 else block for block in blocks]
    size = sum(matrix.shape[1] for matrix in matrices)
    joined = matrices[0].new_zeros(len(matrices[0]), size, size)
    start = 0
    for matrix in matrices:
        stop = start + matrix.shape[1]
        joined[:, start:stop, start:stop] = matrix
        start = stop
    return joined


def _categoricals(distribution: Distribution) -> Sequence[th.distributions.Categorical]:
    if isinstance(distribution, (CategoricalDistribution, MaskableCategoricalDistribution)):
        return [distribution.distribution]
    if isinstance(distribution, MultiCategoricalDistribution):
        return distribution.distribution
    if isinstance(distribution, MaskableMultiCategoricalDistribution):
        return distribution.distributions
    raise ValueError(
        "`distribution` must be one whose Fisher information is known (SB3's Gaussian, gSDE, Categorical, "
        "MultiCategorical and Bernoulli, and sb3-contrib's maskable ones), got a " + type(distribution).__name__
    )
