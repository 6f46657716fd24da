"""How one minibatch update runs: the objective, its gradient, clipping and the optimizer's step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_plasticity.common.actor_critic import HiddenLayers, evaluate_actions, record_features
from sb3_plasticity.common.objective import (
    ErAggregate,
    PPOCoefficients,
    PPOTerms,
    features_rank,
    l2_penalty,
    ppo_terms,
)
from sb3_plasticity.common.rank import RankOf
from sb3_plasticity.common.rollout import Samples

# What is said when the effective rank cannot be used.
NONFINITE_FEATURES = "er_loss: features contain NaN or infinity"
NONFINITE_RANK_GRADIENT = "er_loss has a NaN or infinite gradient"


class L2ERTerms(NamedTuple):
    """
    The objective on one minibatch.

    :param loss: PPO's loss plus the penalties that are switched on
    :param ppo: PPO's loss and its terms
    :param er_loss: -(erank_policy + erank_value), or None where it took no part
    :param l2_loss: ||theta||^2, or None where it took no part
    """

    loss: th.Tensor
    ppo: PPOTerms
    er_loss: th.Tensor | None
    l2_loss: th.Tensor | None


@dataclass(frozen=True)
class EffectiveRankReward:
    """
    The effective rank of both networks' hidden features.

    :param policy: the actor-critic
    :param layers: whose inputs are the hidden features
    :param rank_of: ``"covariance"`` or ``"features"``
    :param aggregate: ``"mean"`` or ``"sum"``
    """

    policy: ActorCriticPolicy
    layers: HiddenLayers
    rank_of: RankOf
    aggregate: ErAggregate

    def ranks(self, features: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Effective rank, network by network.

        :param features: a matrix (rows, features) for each layer
        :return: a scalar for ``"policy"`` and for ``"value"``; a network without hidden layers of its own is left out
        :raises FloatingPointError: for a NaN or infinity in the features
        """
        try:
            ranks = {
                network: features_rank([features[name] for name in names], self.rank_of, self.aggregate)
                for network, names in (("policy", self.layers.policy), ("value", self.layers.value))
            }
        except ValueError as error:
            raise FloatingPointError(f"er_loss: {error}") from error
        return {network: rank for network, rank in ranks.items() if rank is not None}

    def loss(self, features: dict[str, th.Tensor]) -> th.Tensor:
        """
        The term of the objective, -(erank_policy + erank_value).

        :param features: a matrix (rows, features) for each layer
        :return: scalar
        """
        return -th.stack(list(self.ranks(features).values())).sum()

    def features(self, observations: PyTorchObs, actions: th.Tensor) -> dict[str, th.Tensor]:
        """
        Run the policy and keep its hidden features.

        :param observations: (N, ...) as in the rollout buffer
        :param actions: (N, ...) as in the rollout buffer
        :return: a matrix (rows, features) for each layer, graph attached
        """
        with record_features(self.policy, self.layers.names) as features:
            evaluate_actions(self.policy, observations, actions)
        return features


def l2er_terms(
    reward: EffectiveRankReward,
    minibatch: Samples,
    coefficients: PPOCoefficients,
    *,
    er_coef: float | None,
    er_batch: Samples | None,
    l2_coef: float | None,
    l2_parameters: Sequence[th.Tensor],
) -> L2ERTerms:
    """
    The poster's objective: L_PPO - er_coef * (erank_policy + erank_value) + l2_coef * ||theta||^2.

    A penalty whose coefficient is None takes no part, so that plain PPO's numbers stay exactly plain PPO's.

    :param reward: how effective rank is taken
    :param minibatch: the samples PPO's loss is taken on
    :param coefficients: of PPO's loss
    :param er_coef: weight of the effective rank
    :param er_batch: samples whose features are ranked; the minibatch's own if None
    :param l2_coef: weight of the squared norm
    :param l2_parameters: theta
    :return: the objective and its terms
    """
    names = reward.layers.names if er_coef is not None and er_batch is None else ()
    with record_features(reward.policy, names) as features:
        ppo = ppo_terms(reward.policy, minibatch, coefficients)
    loss, er_loss = ppo.loss, None
    if er_coef is not None:
        if er_batch is not None:
            features = reward.features(er_batch.observations, er_batch.actions)
        er_loss = reward.loss(features)
        loss = loss + er_coef * er_loss
    l2_loss = None
    if l2_coef is not None:
        l2_loss = l2_penalty(l2_parameters)
        loss = loss + l2_coef * l2_loss
    return L2ERTerms(loss, ppo, er_loss, l2_loss)


def gradient_step(policy: ActorCriticPolicy, terms: L2ERTerms, max_grad_norm: float) -> None:
    """
    One step of the policy's optimizer on the objective, as SB3 takes it.

    :param policy: the actor-critic
    :param terms: the objective, with graph
    :param max_grad_norm: bound on the gradient's norm
    :raises FloatingPointError: when the gradient holds a NaN or infinity, naming the term it came from; the parameters
        and the optimizer are then still the last good ones
    """
    policy.optimizer.zero_grad()
    terms.loss.backward()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
    # A finite gradient so large that its norm overflows is clipped to 0, which is what SB3 does.
    if not th.isfinite(norm) and (culprit := nonfinite_term(policy, terms)):
        policy.optimizer.zero_grad()
        raise FloatingPointError(culprit)
    policy.optimizer.step()


def rank_ascent_step(parameters: Sequence[nn.Parameter], er_loss: th.Tensor, step_size: float) -> None:
    """
    One plain gradient step on -(erank_policy + erank_value): the authors' practice.

    :param parameters: trainable parameters
    :param er_loss: scalar, with graph
    :param step_size: of the step
    :raises FloatingPointError: when the gradient holds a NaN or infinity; the parameters are then unchanged
    """
    gradients = th.autograd.grad(er_loss, parameters, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not all(th.isfinite(gradient).all() for _, gradient in pairs):
        raise FloatingPointError(NONFINITE_RANK_GRADIENT)
    with th.no_grad():
        for parameter, gradient in pairs:
            parameter.sub_(gradient, alpha=step_size)


def nonfinite_term(policy: ActorCriticPolicy, terms: L2ERTerms) -> str | None:
    """
    Say where a NaN or infinity came from.

    :param policy: the actor-critic, its gradients computed
    :param terms: the objective
    :return: a phrase naming the first term that is not finite, else the parameters whose gradient is not; else None
    """
    scalars = terms.ppo._asdict() | {"er_loss": terms.er_loss, "l2_loss": terms.l2_loss}
    for name in ("policy_loss", "value_loss", "entropy_loss", "er_loss", "l2_loss"):
        if scalars[name] is not None and not th.isfinite(scalars[name]):
            return f"{name} is {scalars[name].item()}"
    bad = [name for name, p in policy.named_parameters() if p.grad is not None and not th.isfinite(p.grad).all()]
    return f"the gradient of {', '.join(bad)} is not finite" if bad else None
