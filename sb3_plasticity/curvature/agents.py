"""The loss, outputs and output Hessian of an SB3 agent's policy and value network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch as th
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from sb3_contrib.common.maskable.distributions import (
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.common.actor_critic import evaluate_samples
from sb3_plasticity.common.functional import functional_call
from sb3_plasticity.common.objective import PPOCoefficients, ppo_loss
from sb3_plasticity.common.rollout import Samples

NETWORKS = ("policy", "value", "joint")
Params = dict[str, th.Tensor]


@dataclass(frozen=True)
class CurvatureProblem:
    """
    What the spectra of one network need.

    :param params: name -> tensor, the parameters that are differentiated
    :param loss_fn: ``loss_fn(params, samples)`` -> scalar: the algorithm's own loss
    :param output_fn: ``output_fn(params, samples)`` -> (N, C)
    :param output_hessian: (N, C) diagonal or (N, C, C): the loss's Hessian in the outputs, taken at ``params``
    :param samples: transitions
    """

    params: Params
    loss_fn: Callable[[Params, Samples], th.Tensor]
    output_fn: Callable[[Params, Samples], th.Tensor]
    output_hessian: th.Tensor
    samples: Samples


def curvature_problem(
    model: OnPolicyAlgorithm, samples: Samples, network: str, state: Mapping[str, th.Tensor] | None = None
) -> CurvatureProblem:
    """
    Pose the curvature problem of an agent's network on given transitions.

    The policy's outputs are those of its action distribution, and their Hessian is the distribution's Fisher
    information: the GGN is the policy's Fisher information matrix. The value's is that of the mean squared error, with
    unit weight. ``"joint"`` has the outputs and parameters of both, the value weighted by ``vf_coef`` as in the loss.
    The loss is the algorithm's own, all terms, without L2-ER's.

    :param model: an on-policy algorithm of SB3 or sb3-contrib
    :param samples: transitions, from :func:`~sb3_plasticity.common.rollout.rollout_samples`
    :param network: ``"policy"``, ``"value"`` or ``"joint"``
    :param state: a ``state_dict`` of the policy to take instead of the present one; the transitions' old values and log
        probabilities are then those under it, as they are at the start of an update
    :return: the problem
    :raises ValueError: for an unknown network or an algorithm without a known loss
    """
    if network not in NETWORKS:
        raise ValueError(f"network={network!r}: accepted are {', '.join(map(repr, NETWORKS))}")
    agent_loss, run = loss_of(model), _Run(model.policy)
    kept_aside = state is not None
    state = {name: value.detach() for name, value in (model.policy.state_dict() if state is None else state).items()}

    def call(what: str, params: Params, samples: Samples) -> Any:
        return functional_call(run, {f"policy.{name}": v for name, v in (state | params).items()}, (what, samples))

    def loss_fn(params: Params, samples: Samples) -> th.Tensor:
        values, log_prob, entropy = call("evaluate", params, samples)
        return agent_loss(values, log_prob, entropy, samples)

    def output_fn(params: Params, samples: Samples) -> th.Tensor:
        outputs = []
        if network in ("policy", "joint"):
            outputs.append(distribution_outputs(call("distribution", params, samples)))
        if network in ("value", "joint"):
            outputs.append(call("value", params, samples))
        return th.cat(outputs, dim=1)

    if kept_aside:
        with th.no_grad():
            values, log_prob, _ = call("evaluate", {}, samples)
        samples = samples._replace(old_values=values.flatten(), old_log_prob=log_prob)
    trainable = {name: state[name] for name, p in model.policy.named_parameters() if p.requires_grad}
    params = _used(lambda params: output_fn(params, samples), trainable)
    with th.no_grad():
        n_samples = len(samples.advantages)
        fisher = distribution_fisher(call("distribution", params, samples)) if network != "value" else None
        weight = 1.0 if network == "value" else float(getattr(model, "vf_coef", 1.0))
        # d^2 (v - R)^2 / dv^2 = 2
        value = samples.advantages.new_full((n_samples, 1), 2.0 * weight) if network != "policy" else None
    return CurvatureProblem(params, loss_fn, output_fn, _block_diagonal(fisher, value), samples)


def _used(function: Callable[[Params], th.Tensor], params: Params) -> Params:
    """Those parameters that a function's result depends on."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    with th.enable_grad():
        gradients = th.autograd.grad(function(leaves).sum(), list(leaves.values()), allow_unused=True)
    return {name: value for (name, value), g in zip(params.items(), gradients, strict=True) if g is not None}


class _Run(nn.Module):
    """A policy's methods behind one ``forward``, which is what ``functional_call`` calls."""

    def __init__(self, policy: Any) -> None:  # a recurrent or maskable policy's methods take more than SB3's
        super().__init__()
        self.policy = policy

    def forward(self, what: str, samples: Samples) -> Any:
        policy, observations = self.policy, samples.observations
        if what == "evaluate":
            return evaluate_samples(policy, samples)
        if isinstance(samples, RecurrentRolloutBufferSamples):
            if what == "distribution":
                return policy.get_distribution(observations, samples.lstm_states.pi, samples.episode_starts)[0]
            return policy.predict_values(observations, samples.lstm_states.vf, samples.episode_starts)
        if what == "value":
            return policy.predict_values(observations)
        if isinstance(samples, MaskableRolloutBufferSamples):
            return policy.get_distribution(observations, samples.action_masks)
        return policy.get_distribution(observations)


AgentLoss = Callable[[th.Tensor, th.Tensor, th.Tensor | None, Samples], th.Tensor]


def loss_of(model: OnPolicyAlgorithm) -> AgentLoss:
    """
    Return an algorithm's own loss as a function of its networks' results.

    :param model: PPO (with PPO_L2ER), MaskablePPO, RecurrentPPO, A2C or TRPO, or a subclass
    :return: ``loss(values, log_prob, entropy, samples)`` -> scalar
    :raises ValueError: for any other algorithm
    """
    if isinstance(model, (PPO, MaskablePPO, RecurrentPPO)):
        coefficients = PPOCoefficients.of(model)
        return lambda values, log_prob, entropy, samples: (
            ppo_loss(values, log_prob, entropy, samples, coefficients).loss
        )
    if isinstance(model, (A2C, TRPO)):
        return lambda values, log_prob, entropy, samples: _unclipped_loss(model, values, log_prob, entropy, samples)
    raise ValueError(
        f"model={type(model).__name__}: its loss is not known; accepted are PPO, PPO_L2ER, MaskablePPO, RecurrentPPO, "
        "A2C, TRPO and their subclasses"
    )


def _unclipped_loss(
    model: A2C | TRPO, values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None, samples: Samples
) -> th.Tensor:
    """A2C's loss, and TRPO's two: the surrogate that its line search raises and the value network's."""
    advantages = samples.advantages
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    value_loss = F.mse_loss(samples.returns, values.flatten())
    if isinstance(model, TRPO):
        return -(advantages * th.exp(log_prob - samples.old_log_prob)).mean() + value_loss
    entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)
    return -(advantages * log_prob).mean() + model.ent_coef * entropy_loss + model.vf_coef * value_loss


def distribution_outputs(distribution: Distribution) -> th.Tensor:
    """
    What a policy network says of its action distribution.

    :param distribution: SB3's or sb3-contrib's, with N samples as its batch
    :return: (N, C): means and log standard deviations of a Gaussian (before squashing), or logits
    """
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        normal = distribution.distribution
        return th.cat([normal.mean, normal.stddev.log()], dim=1)
    if isinstance(distribution, BernoulliDistribution):
        return distribution.distribution.logits
    return th.cat([categorical.logits for categorical in _categoricals(distribution)], dim=1)


def distribution_fisher(distribution: Distribution) -> th.Tensor:
    """
    Fisher information of an action distribution in :func:`distribution_outputs`.

    Of a Gaussian in mean and log standard deviation 1 / sigma^2 and 2 (squashing, being invertible, changes nothing);
    of a categorical in its logits diag(p) - p p^T; of a Bernoulli in its logit p (1 - p).

    :param distribution: SB3's or sb3-contrib's, with N samples as its batch
    :return: (N, C) where it is diagonal, else (N, C, C)
    """
    if isinstance(distribution, (DiagGaussianDistribution, StateDependentNoiseDistribution)):
        variance = distribution.distribution.variance
        return th.cat([1 / variance, th.full_like(variance, 2.0)], dim=1)
    if isinstance(distribution, BernoulliDistribution):
        probs = distribution.distribution.probs
        return probs * (1 - probs)
    fishers = []
    for categorical in _categoricals(distribution):
        p = categorical.probs
        fishers.append(th.diag_embed(p) - p[:, :, None] * p[:, None, :])
    return _block_diagonal(*fishers)


def _categoricals(distribution: Distribution) -> Sequence[th.distributions.Categorical]:
    if isinstance(distribution, (CategoricalDistribution, MaskableCategoricalDistribution)):
        return [distribution.distribution]
    if isinstance(distribution, MultiCategoricalDistribution):
        return distribution.distribution
    if isinstance(distribution, MaskableMultiCategoricalDistribution):
        return distribution.distributions
    raise ValueError(
        f"distribution={type(distribution).__name__}: its Fisher information is not known; accepted are SB3's "
        "Gaussian, gSDE, Categorical, MultiCategorical and Bernoulli distributions, and sb3-contrib's maskable ones"
    )


def _block_diagonal(*blocks: th.Tensor | None) -> th.Tensor:
    """Join the output Hessians of independent outputs: (N, C) diagonals, or (N, C, C)."""
    present = [block for block in blocks if block is not None]
    if all(block.ndim == 2 for block in present):
        return th.cat(present, dim=1)
    matrices = [th.diag_embed(block) if block.ndim == 2 else block for block in present]
    size = sum(matrix.shape[1] for matrix in matrices)
    joined = matrices[0].new_zeros(len(matrices[0]), size, size)
    start = 0
    for matrix in matrices:
        stop = start + matrix.shape[1]
        joined[:, start:stop, start:stop] = matrix
        start = stop
    return joined
