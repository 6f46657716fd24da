"""PPO's loss and the L2-ER penalties, as functions of a network's outputs, features and parameters."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn import functional as F

from sb3_plasticity.common.actor_critic import evaluate_actions
from sb3_plasticity.common.rank import RankOf
from sb3_plasticity.common.rollout import Samples
from sb3_plasticity.common.training_rank import training_rank

ErAggregate = Literal["mean", "sum"]
ER_AGGREGATES = get_args(ErAggregate)


class PPOCoefficients(NamedTuple):
    """
    What PPO's loss depends on besides data: SB3's arguments of the same names, their schedules evaluated.

    :param clip_range: epsilon of the clipped surrogate
    :param clip_range_vf: bound on the change of the value, or None for no bound
    :param ent_coef: weight of the entropy loss
    :param vf_coef: weight of the value loss
    :param normalize_advantage: standardise the advantages of each minibatch
    """

    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool

    @classmethod
    def of(cls, model: Any) -> "PPOCoefficients":
        """
        Take an algorithm's coefficients as they are at its present progress.

        :param model: SB3's PPO, or an algorithm with its arguments
        :return: the coefficients
        """
        progress = model._current_progress_remaining
        return cls(
            clip_range=model.clip_range(progress),
            clip_range_vf=None if model.clip_range_vf is None else model.clip_range_vf(progress),
            ent_coef=model.ent_coef,
            vf_coef=model.vf_coef,
            normalize_advantage=model.normalize_advantage,
        )


class PPOTerms(NamedTuple):
    """
    PPO's loss on a minibatch, term by term; all scalars.

    :param loss: the weighted sum, with graph
    :param policy_loss: clipped surrogate (Schulman et al. 2017, equation 7), negated
    :param value_loss: mean squared error against the TD(lambda) returns
    :param entropy_loss: mean entropy, negated
    :param approx_kl: estimate of KL(old || new), without graph
    :param clip_fraction: share of samples whose probability ratio left the clip range
    """

    loss: th.Tensor
    policy_loss: th.Tensor
    value_loss: th.Tensor
    entropy_loss: th.Tensor
    approx_kl: th.Tensor
    clip_fraction: th.Tensor


def ppo_loss(
    values: th.Tensor,
    log_prob: th.Tensor,
    entropy: th.Tensor | None,
    minibatch: Samples,
    coefficients: PPOCoefficients,
) -> PPOTerms:
    """
    Compute PPO's loss, operation for operation as stable-baselines3 does, so that results are bit-equal.

    :param values: (N,) or (N, 1) predicted values
    :param log_prob: (N,) log probability of the minibatch's actions
    :param entropy: (N,) entropy of the action distribution, or None where it has no closed form
    :param minibatch: the N samples, as ``RolloutBuffer.get`` yields them
    :param coefficients: clip ranges and weights
    :return: the loss and its terms
    """
    values = values.flatten()
    advantages = minibatch.advantages
    if coefficients.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    log_ratio = log_prob - minibatch.old_log_prob
    ratio = th.exp(log_ratio)
    clip_range = coefficients.clip_range
    clipped_ratio = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    policy_loss = -th.min(advantages * ratio, advantages * clipped_ratio).mean()

    if coefficients.clip_range_vf is not None:
        bound = coefficients.clip_range_vf
        values = minibatch.old_values + th.clamp(values - minibatch.old_values, -bound, bound)
    value_loss = F.mse_loss(minibatch.returns, values)

    # The mean of -log_prob stands in for an entropy without closed form (squashed distributions).
    entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)

    with th.no_grad():
        clip_fraction = th.mean((th.abs(ratio - 1) > clip_range).float())
        approx_kl = th.mean((ratio - 1) - log_ratio)  # http://joschu.net/blog/kl-approx.html

    loss = policy_loss + coefficients.ent_coef * entropy_loss + coefficients.vf_coef * value_loss
    return PPOTerms(loss, policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction)


def ppo_terms(policy: ActorCriticPolicy, minibatch: Samples, coefficients: PPOCoefficients) -> PPOTerms:
    """
    Compute PPO's loss of an actor-critic on a minibatch.

    :param policy: SB3's actor-critic
    :param minibatch: the samples, as ``RolloutBuffer.get`` yields them
    :param coefficients: clip ranges and weights
    :return: the loss and its terms
    """
    values, log_prob, entropy = evaluate_actions(policy, minibatch.observations, minibatch.actions)
    return ppo_loss(values, log_prob, entropy, minibatch, coefficients)


def l2_penalty(parameters: Iterable[th.Tensor]) -> th.Tensor:
    """
    Compute the squared Euclidean norm of all parameters together, ||theta||^2.

    :param parameters: tensors of any shape
    :return: scalar
    """
    return th.stack([parameter.square().sum() for parameter in parameters]).sum()


def features_rank(
    features: Sequence[th.Tensor], of: RankOf = "covariance", aggregate: ErAggregate = "mean"
) -> th.Tensor | None:
    """
    Compute a network's effective rank by :func:`~sb3_plasticity.common.training_rank.training_rank`.

    :param features: a matrix (rows, features) for each layer
    :param of: spectrum that is ranked, see :func:`~sb3_plasticity.common.rank.effective_rank`
    :param aggregate: ``"mean"``, the mean over layers of their effective ranks, or ``"sum"``, the effective rank of the
        layers' summed second moments, erank(sum_l E[a_l a_l^T]) (the poster), for layers of equal width
    :return: scalar, or None for a network without hidden layers
    """
    if not features:
        return None
    if aggregate == "sum":
        # The second moment of the stacked rows is the sum of the layers' second moments.
        return training_rank(th.cat([layer * len(layer) ** -0.5 for layer in features]), of)
    return th.stack([training_rank(layer, of) for layer in features]).sum() / len(features)
