"""The effective rank of hidden features as a term of the loss: the ER in L2-ER."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, must_be
from sb3_plasticity.common.objective import ER_AGGREGATES, ErAggregate, features_rank
from sb3_plasticity.common.rank import RANKS_OF, RankOf
from sb3_plasticity.mitigations.base import Mitigation


class EffectiveRank(Mitigation):
    r"""
    Reward the effective rank of hidden features: :math:`-\text{coef} \sum_\text{networks} \text{erank}`.

    Paper: Prakash, He, Guo et al. (ICML 2026), https://arxiv.org/abs/2509.22335. A network's erank is taken of the
    inputs of its linear and convolutional layers after the first, on the samples of each update; what several networks
    share counts once, with the first.

    :param coef: strength, or a schedule
    :param networks: names of networks; all if None
    :param interval: rank every how many updates, at ``interval``-fold strength: an eigendecomposition a layer is what
        it costs
    :param rank_of: ``"covariance"``, the eigenvalues of E[a a^T] (poster), or ``"features"``, the singular values of
        the uncentred features (the authors' code)
    :param aggregate: ``"mean"`` over layers of their effective ranks, or ``"sum"``: effective rank of the layers'
        summed second moments (poster), for layers of equal width
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
