"""Penalties on parameters, by their gradients in closed form: as terms of the loss, inside SB3's clipping."""

from collections.abc import Iterable
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from typing_extensions import override

from sb3_plasticity.mitigations.base import LogStd, Mitigation


class _ParameterPenalty(Mitigation):
    """A penalty that is a sum over parameters."""

    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        """
        One parameter's share of the penalty, its strength apart.

        :param name: of the parameter
        :param parameter: any shape
        :param constants: what :meth:`constants` gives
        :return: scalar
        """
        raise NotImplementedError

    @override
    def logs(self) -> dict[str, float]:
        found = super().logs()
        with th.no_grad():
            values = [self.value(name, p.detach(), *self.constants(name)) for name, p in self.parameters.items()]
        found["penalty"] = float(sum(values)) if values else 0.0
        return found


class L2(_ParameterPenalty):
    r"""
    Weight decay: :math:`\text{coef} \, \lVert\theta\rVert^2`.

    It is a term of the loss, and the optimizer's moments see it: what torch's Adam calls ``weight_decay`` is
    ``2 * coef``.

    The default is the published coupled decay of 1e-3 (Dohare et al. 2024, ``rl/cfg/sant/l2.yml``; Prakash et al.
    2026), there with Adam's betas (.99, .99) and on ``log_std`` too.

    :param coef: strength, or a schedule
    :param networks: names of networks; all if None
    :param log_std: decay pulls the standard deviation of the actions to 1: more exploration, whatever it does for the
        networks. ``"only"`` for that alone
    """

    def __init__(
        self,
        coef: float | Schedule = 5e-4,
        networks: Iterable[str] | None = None,
        log_std: LogStd = False,
    ) -> None:
        super().__init__(coef, networks=networks, log_std=log_std)

    @override
    def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
        return 2 * strength * parameter

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        return parameter.square().sum()
