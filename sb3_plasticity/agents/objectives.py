"""What each network of an agent computes, and the loss that it descends: the open set of algorithms."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch as th
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import Distribution
from torch.nn import functional as F

from sb3_plasticity.agents.distributions import block_diagonal, distribution_fisher, distribution_outputs
from sb3_plasticity.common.actor_critic import evaluate_samples
from sb3_plasticity.common.objective import PPOCoefficients, ppo_loss

# The module that a network's names refer to, normally ``model.policy``, and a batch of transitions, a NamedTuple of
# tensors. They are of the algorithm's own kinds.
Root = Any
Samples = Any


def as_they_are(root: Root, samples: Samples) -> Samples:
    """
    Hold nothing fixed: what an objective without targets does.

    :param root: the agent's networks
    :param samples: transitions
    :return: the same transitions
    """
    return samples


@dataclass(frozen=True)
class Objective:
    """
    What one network computes and descends, as functions of the module that holds all of the agent's networks.

    They are called with ``model.policy``, with the same under other weights, or with a newly initialised policy, always
    in evaluation mode, and draw no random numbers. Losses are means over samples.

    :param outputs: ``(root, samples)`` -> (N, C), the network's outputs
    :param loss: ``(root, samples)`` -> scalar, the algorithm's own loss as far as this network descends it
    :param output_hessian: ``(root, samples)`` -> (N, C) diagonal or (N, C, C): the positive semi-definite Hessian of a
        sample's loss in the outputs, which the GGN is made with
    :param hold_fixed: ``(root, samples)`` -> samples with what an update holds fixed under these weights: targets from
        the target networks, old values and log probabilities
    :param distribution: ``(root, samples)`` -> the action distribution; None for a network that gives none
    """

    outputs: Callable[[Root, Samples], th.Tensor]
    loss: Callable[[Root, Samples], th.Tensor]
    output_hessian: Callable[[Root, Samples], th.Tensor]
    hold_fixed: Callable[[Root, Samples], Samples] = as_they_are
    distribution: Callable[[Root, Samples], Distribution] | None = None


def regression(
    outputs: Callable[[Root, Samples], th.Tensor],
    output_loss: Callable[[th.Tensor, Samples], th.Tensor],
    hold_fixed: Callable[[Root, Samples], Samples] = as_they_are,
) -> Objective:
    """
    Pose the objective of a network that fits its outputs, each by itself, to targets in the samples.

    Its output Hessian comes from automatic differentiation: 2 for a squared error, 1 or 0 for a Huber loss.

    :param outputs: ``(root, samples)`` -> (N, C)
    :param output_loss: ``(outputs, samples)`` -> scalar, a mean over samples without terms that couple outputs
    :param hold_fixed: see :class:`Objective`
    :return: the objective
    """

    def output_hessian(root: Root, samples: Samples) -> th.Tensor:
        with th.enable_grad():
            values = outputs(root, samples).detach().requires_grad_()
            (gradient,) = th.autograd.grad(output_loss(values, samples), values, create_graph=True)
            if not gradient.requires_grad:
                return th.zeros_like(values)
            (second,) = th.autograd.grad(gradient.sum(), values)
        return second * len(values)

    def loss(root: Root, samples: Samples) -> th.Tensor:
        return output_loss(outputs(root, samples), samples)

    return Objective(outputs, loss, output_hessian, hold_fixed)


def stochastic_policy(
    distribution: Callable[[Root, Samples], Distribution],
    loss: Callable[[Root, Samples], th.Tensor],
    hold_fixed: Callable[[Root, Samples], Samples] = as_they_are,
) -> Objective:
    """
    Pose the objective of a policy network that gives a distribution of actions; its output Hessian is the Fisher one.

    :param distribution: ``(root, samples)`` -> SB3's or sb3-contrib's distribution
    :param loss: ``(root, samples)`` -> scalar
    :param hold_fixed: see :class:`Objective`
    :return: the objective, see :func:`~sb3_plasticity.agents.distributions.distribution_fisher`
    """
    return Objective(
        outputs=lambda root, samples: distribution_outputs(distribution(root, samples)),
        loss=loss,
        output_hessian=lambda root, samples: distribution_fisher(distribution(root, samples)).detach(),
        hold_fixed=hold_fixed,
        distribution=distribution,
    )


@singledispatch
def objectives_of(model: Any) -> dict[str, Objective]:
    """
    Say what each of an agent's networks computes and descends.

    A stranger's algorithm joins with ``@objectives_of.register(MyAlgorithm)``; a subclass of one that is registered has
    that one's. Coefficients that change while training runs (a clip range, an entropy coefficient) are those of the
    moment of the call.

    :param model: an algorithm of SB3 or sb3-contrib
    :return: by the names of :func:`~sb3_plasticity.agents.networks.networks_of`, and ``"joint"`` for the policy and
        value network of an on-policy algorithm as one
    :raises TypeError: for an algorithm that nobody has registered
    """
    raise TypeError(
        f"`model` must be an algorithm whose objectives are known, got a {type(model).__name__}: "
        "register it with @objectives_of.register"
    )


ActorCriticLoss = Callable[[th.Tensor, th.Tensor, th.Tensor | None, Samples], th.Tensor]


def actor_critic(loss: ActorCriticLoss, vf_coef: float) -> dict[str, Objective]:
    """
    Pose the objectives of an on-policy actor-critic with a policy of SB3 or sb3-contrib.

    :param loss: ``(values, log_prob, entropy, samples)`` -> scalar, all terms; both networks descend it
    :param vf_coef: weight of the value's squared error in it
    :return: ``policy``, ``value`` with the output Hessian of the plain squared error, and ``joint``
    """

    def evaluated_loss(root: Root, samples: Samples) -> th.Tensor:
        return loss(*evaluate_samples(root, samples), samples)

    def start_of_update(root: Root, samples: Samples) -> Samples:
        with th.no_grad():
            values, log_prob, _ = evaluate_samples(root, samples)
        return samples._replace(old_values=values.flatten(), old_log_prob=log_prob)

    def value_hessian(root: Root, samples: Samples) -> th.Tensor:
        advantages: th.Tensor = samples.advantages
        return advantages.new_full((len(advantages), 1), 2.0)  # of (v - R)^2

    policy = stochastic_policy(_distribution, evaluated_loss, start_of_update)
    value = Objective(_values, evaluated_loss, value_hessian, start_of_update)
    joint = Objective(
        outputs=lambda root, samples: th.cat([policy.outputs(root, samples), _values(root, samples)], dim=1),
        loss=evaluated_loss,
        output_hessian=lambda root, samples: block_diagonal(
            policy.output_hessian(root, samples), vf_coef * value_hessian(root, samples)
        ),
        hold_fixed=start_of_update,
        distribution=_distribution,
    )
    return {"policy": policy, "value": value, "joint": joint}


def _distribution(policy: Root, samples: Samples) -> Distribution:
    context: tuple[Any, ...] = ()
    if isinstance(samples, RecurrentRolloutBufferSamples):
        context = samples.lstm_states.pi, samples.episode_starts
    elif isinstance(samples, MaskableRolloutBufferSamples):
        context = (samples.action_masks,)
    found = policy.get_distribution(samples.observations, *context)
    distribution: Distribution = found[0] if isinstance(found, tuple) else found  # a recurrent one gives its state too
    return distribution


def _values(policy: Root, samples: Samples) -> th.Tensor:
    context: tuple[Any, ...] = ()
    if isinstance(samples, RecurrentRolloutBufferSamples):
        context = samples.lstm_states.vf, samples.episode_starts
    values: th.Tensor = policy.predict_values(samples.observations, *context)
    return values


@objectives_of.register(PPO)
@objectives_of.register(MaskablePPO)
@objectives_of.register(RecurrentPPO)
def _ppo(model: PPO) -> dict[str, Objective]:
    """Pose PPO's loss without the penalties that mitigations (L2-ER's too) add to it."""
    coefficients = PPOCoefficients.of(model)

    def loss(values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None, samples: Samples) -> th.Tensor:
        return ppo_loss(values, log_prob, entropy, samples, coefficients).loss

    return actor_critic(loss, coefficients.vf_coef)


@objectives_of.register(A2C)
def _a2c(model: A2C) -> dict[str, Objective]:
    normalize, ent_coef, vf_coef = model.normalize_advantage, model.ent_coef, model.vf_coef

    def loss(values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None, samples: Samples) -> th.Tensor:
        policy_loss = -(_advantages(samples, normalize) * log_prob).mean()
        entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)
        return policy_loss + ent_coef * entropy_loss + vf_coef * F.mse_loss(samples.returns, values.flatten())

    return actor_critic(loss, vf_coef)


@objectives_of.register(TRPO)
def _trpo(model: TRPO) -> dict[str, Objective]:
    """Pose the surrogate that TRPO's line search raises, and the value network's loss."""
    normalize = model.normalize_advantage

    def loss(values: th.Tensor, log_prob: th.Tensor, entropy: th.Tensor | None, samples: Samples) -> th.Tensor:
        surrogate = (_advantages(samples, normalize) * th.exp(log_prob - samples.old_log_prob)).mean()
        return F.mse_loss(samples.returns, values.flatten()) - surrogate

    return actor_critic(loss, 1.0)


def _advantages(samples: Samples, normalize: bool) -> th.Tensor:
    advantages: th.Tensor = samples.advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8) if normalize else advantages
