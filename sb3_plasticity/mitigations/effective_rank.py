"""Effective rank: the ER in L2-ER rewards diverse hidden features, in the loss or in separate gradient steps."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.actor_critic import evaluate_samples
from sb3_plasticity.common.checks import check_choice, must_be
from sb3_plasticity.common.layers import record_features
from sb3_plasticity.common.objective import ER_AGGREGATES, ErAggregate, features_rank
from sb3_plasticity.common.rank import RANKS_OF, RankOf
from sb3_plasticity.common.rollout import is_recurrent, rollout_samples, rollout_size
from sb3_plasticity.mitigations.base import Mitigation

NONFINITE_GRADIENT = "effective_rank has a NaN or infinite gradient"


class EffectiveRank(Mitigation):
    r"""
    Reward a high effective rank of hidden features: :math:`-\text{coef} \sum_\text{networks} \text{erank}`.

    Source: Prakash, He, Guo et al. (ICML 2026), https://arxiv.org/abs/2509.22335. The effective rank of a network is
    computed from the inputs of its linear and convolutional layers after the first, on the samples of each update.
    Layers that several networks share are counted once, for the first network.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param interval: act in every ``interval``-th update, at ``interval``-fold strength; the cost is one
        eigendecomposition per layer
    :param rank_of: ``"covariance"`` for the eigenvalues of E[a a^T] (as on the poster), or ``"features"`` for the
        singular values of the uncentred features (as in the authors' code)
    :param aggregate: ``"mean"`` averages the effective ranks of the layers; ``"sum"`` takes the effective rank of the
        summed second moments of the layers (as on the poster), for layers of equal width
    """

    def __init__(
        self,
        coef: float | Schedule | str = 1e-3,
        networks: Iterable[str] | None = None,
        interval: int = 1,
        rank_of: RankOf = "covariance",
        aggregate: ErAggregate = "mean",
    ) -> None:
        super().__init__(coef, networks=networks, interval=interval)
        check_choice("rank_of", rank_of, RANKS_OF)
        check_choice("aggregate", aggregate, ER_AGGREGATES)
        self.rank_of = rank_of
        self.aggregate = aggregate

    @override
    def setup(self) -> None:
        if self.aggregate == "mean":
            return
        for network in self.targets.values():
            layers: Any = {name: network.root.get_submodule(name) for name in network.features}
            widths = {name: layer.weight.shape[1] for name, layer in layers.items()}
            if len(set(widths.values())) > 1:
                raise must_be("aggregate", f"'mean' for hidden layers of different widths {widths}", "sum")

    @override
    def feature_penalty(self, network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
        try:
            rank = features_rank(list(features.values()), self.rank_of, self.aggregate)
        except ValueError as error:
            raise FloatingPointError(f"{self.name}: {error}") from error
        assert rank is not None, "a network without hidden layers has no features"
        return -rank


class RankAscent(EffectiveRank):
    r"""
    Raise the effective rank of hidden features by separate gradient steps, as in the L2-ER authors' code.

    Before each pass over the rollout, it takes the step :math:`\theta \leftarrow \theta + \text{coef} \, \nabla_\theta
    \sum_\text{networks} \text{erank}` on the features of the whole rollout. This step bypasses the optimizer, its
    moments and SB3's clipping. It supports on-policy algorithms without recurrence.

    :param coef: step size, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param rank_of: see :class:`EffectiveRank`
    :param aggregate: see :class:`EffectiveRank`
    """

    exclusive = "rank ascent"

    def __init__(
        self,
        coef: float | Schedule | str = 1e-6,
        networks: Iterable[str] | None = None,
        rank_of: RankOf = "covariance",
        aggregate: ErAggregate = "mean",
    ) -> None:
        super().__init__(coef, networks=networks, rank_of=rank_of, aggregate=aggregate)

    @override
    def setup(self) -> None:
        super().setup()
        buffer = getattr(self.agent.model, "rollout_buffer", None)
        if buffer is None or is_recurrent(buffer):
            kind = type(self.agent.model).__name__
            raise must_be("model", "an on-policy algorithm without recurrence for rank_ascent", kind)

        self._updates = 0  # of this rollout

    @override
    def feature_layers(self, network: Network) -> tuple[str, ...]:
        return ()  # the updates' own features are left alone

    @override
    def rollout_end(self) -> None:
        self._updates = 0
        self._ascend()

    @override
    def after_update(self, networks: tuple[Network, ...]) -> None:
        model: Any = self.agent.model
        self._updates += 1
        size = rollout_size(model.rollout_buffer)
        in_a_pass = -(-size // getattr(model, "batch_size", size))
        passes = getattr(model, "n_epochs", 1)
        if self._updates % in_a_pass == 0 and self._updates < passes * in_a_pass:
            self._ascend()

    def _ascend(self) -> None:
        """Take one step, where there is anything to rank."""
        layers = {name: network.features for name, network in self.targets.items() if network.features}
        strength = self.strength()
        if strength == 0 or not layers:
            return
        policy: Any = self.agent.model.policy
        training = policy.training
        policy.set_training_mode(True)
        with th.enable_grad(), record_features(policy, [name for names in layers.values() for name in names]) as found:
            evaluate_samples(policy, rollout_samples(self.agent.model.rollout_buffer))
        policy.set_training_mode(training)
        penalties = [
            self.feature_penalty(self.targets[name], {layer: found[layer] for layer in names})
            for name, names in layers.items()
        ]
        for penalty in penalties:
            self.observe("penalty", penalty.detach())
        gradient_step(list(self.parameters.values()), th.stack(penalties).sum(), strength)


def gradient_step(parameters: list[nn.Parameter], loss: th.Tensor, step_size: float) -> None:
    """
    Take one plain gradient step on a term of the effective rank.

    :param parameters: trainable parameters
    :param loss: scalar, with graph
    :param step_size: of the step
    :raises FloatingPointError: when the gradient holds a NaN or infinity; the parameters are then unchanged
    """
    gradients = th.autograd.grad(loss, parameters, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    if not all(th.isfinite(gradient).all() for _, gradient in pairs):
        raise FloatingPointError(NONFINITE_GRADIENT)
    with th.no_grad():
        for parameter, gradient in pairs:
            parameter.sub_(gradient, alpha=step_size)
