"""What PPO_L2ER adds around SB3's update: passes over the rollout, the rank of its rows, and what went wrong."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.actor_critic import evaluate_actions
from sb3_plasticity.common.layers import record_features
from sb3_plasticity.common.objective import PPOCoefficients, ppo_terms
from sb3_plasticity.common.rollout import Samples
from sb3_plasticity.mitigations.effective_rank import EffectiveRank

NONFINITE_FEATURES = "effective_rank: features contain NaN or infinity"


class Minibatches:
    """
    A rollout buffer that says when a pass over it begins and which minibatch was drawn last.

    SB3's ``train()`` reads it like the buffer itself.

    :param buffer: a full rollout buffer
    :param on_pass: called before the minibatches of each pass are drawn
    """

    def __init__(self, buffer: RolloutBuffer, on_pass: Callable[[], None]) -> None:
        self.buffer = buffer
        self.on_pass = on_pass
        self.count = 0
        self.last: Any = None

    def get(self, batch_size: int | None = None) -> Iterator[Samples]:
        """
        Draw the minibatches of a pass, as the buffer does.

        :param batch_size: of a minibatch
        :yields: the buffer's minibatches
        """
        self.on_pass()
        for minibatch in self.buffer.get(batch_size):
            self.count += 1
            self.last = minibatch
            yield minibatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.buffer, name)


class _RowsRank(EffectiveRank):
    """
    The effective rank of the features of transitions that are drawn for it, instead of the minibatch's own.

    :param draw: gives the transitions, anew for each update that carries the rank
    :param arguments: of :class:`EffectiveRank`
    """

    pure = False  # it runs the policy; the compiled update does so inside its program

    def __init__(self, draw: Callable[[], Samples], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.draw = draw
        self._update: int | None = None
        self._gradients: dict[str, th.Tensor] = {}

    @override
    def feature_layers(self, network: Network) -> tuple[str, ...]:
        """Name no layer: the minibatch's own features are left alone."""
        return ()

    @override
    def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
        """Take one pass over the drawn transitions for all parameters of an update."""
        update = max(self.state.get("updates", {}).values(), default=0)
        if self._update != update:
            self._update = update
            samples = self.draw()
            with th.enable_grad():
                penalties = rank_penalties(self, policy_features(self, samples))
                value = th.stack(list(penalties.values())).sum()
            for penalty in penalties.values():
                self.observe("penalty", penalty.detach())
            names, parameters = list(self.parameters), list(self.parameters.values())
            gradients = th.autograd.grad(value, parameters, allow_unused=True)
            self._gradients = {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
        found = self._gradients.get(name)
        return th.zeros_like(parameter) if found is None else strength * found


def ranked_layers(rank: EffectiveRank) -> dict[str, tuple[str, ...]]:
    """
    Name the layers whose inputs are the hidden features.

    :param rank: bound to an agent
    :return: for each network that has any, the names of the layers
    """
    return {name: network.features for name, network in rank.targets.items() if network.features}


def policy_features(rank: EffectiveRank, samples: Samples) -> dict[str, th.Tensor]:
    """
    Run the policy and keep its hidden features.

    :param rank: bound to the policy's agent
    :param samples: as in the rollout buffer
    :return: a matrix (rows, features) for each layer, graph attached
    """
    layers = [name for names in ranked_layers(rank).values() for name in names]
    policy = next(iter(rank.targets.values())).root
    assert isinstance(policy, ActorCriticPolicy)
    with record_features(policy, layers) as features:
        evaluate_actions(policy, samples.observations, samples.actions)
    return features


def rank_penalties(rank: EffectiveRank, features: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    Compute the negative effective rank, network by network.

    :param rank: how it is taken
    :param features: a matrix (rows, features) for each layer
    :return: a scalar for ``"policy"`` and for ``"value"``; a network without hidden layers of its own is left out
    """
    return {
        network: rank.feature_penalty(rank.targets[network], {name: features[name] for name in names})
        for network, names in ranked_layers(rank).items()
    }


def rank_loss(rank: EffectiveRank, features: Mapping[str, th.Tensor]) -> th.Tensor:
    """
    Compute the term of the objective, -(erank_policy + erank_value).

    :param rank: how it is taken
    :param features: a matrix (rows, features) for each layer
    :return: scalar
    """
    return th.stack(list(rank_penalties(rank, features).values())).sum()


class GradientCheck:
    """
    Refuses a step along gradients that hold a NaN or infinity.

    After SB3's clipping one look at a scalar tells nearly always: a NaN in the norm has made every entry NaN, and an
    infinite norm every finite one 0.

    :param policy: the actor-critic
    :param coefficients: of PPO's loss
    """

    def __init__(self, policy: ActorCriticPolicy, coefficients: PPOCoefficients) -> None:
        self.policy = policy
        self.coefficients = coefficients
        trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self._smallest = min(trainable, key=lambda parameter: parameter.numel())

    def __call__(self, minibatch: Samples) -> None:
        """
        Look at the gradients, computed and clipped.

        :param minibatch: that they came from
        :raises FloatingPointError: naming the term of PPO's loss that is not finite, else the parameters whose gradient
            is not
        """
        if self._smallest.grad is not None:
            scalar = float(self._smallest.grad.flatten()[0])
            if math.isfinite(scalar) and scalar != 0:
                return
        gradients = {name: p.grad for name, p in self.policy.named_parameters() if p.grad is not None}
        bad = [name for name, gradient in gradients.items() if not th.isfinite(gradient).all()]
        if not bad:
            return
        with th.no_grad():
            terms = ppo_terms(self.policy, minibatch, self.coefficients)
        for name in ("policy_loss", "value_loss", "entropy_loss"):
            if not th.isfinite(getattr(terms, name)):
                raise FloatingPointError(f"{name} is {getattr(terms, name).item()}")
        raise FloatingPointError(f"the gradient of {', '.join(bad)} is not finite")
