"""
Projections: direct changes of the parameters, after a step of the optimizer or before data are collected.

Rates are per update, that is, per step of the optimizer. The optimizer's moments are not changed, except by shrink and
perturb at task boundaries. ``log_std`` and target networks are never changed.
"""

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch as th
from torch import nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, check_count, check_number
from sb3_plasticity.mitigations.base import Mitigation
from sb3_plasticity.mitigations.recycling import fresh_draws
from sb3_plasticity.mitigations.resets import When, _Reset


class ShrinkAndPerturb(_Reset):
    r"""
    Shrink the parameters and add noise: :math:`\theta \leftarrow \text{shrink}\, \theta + \text{perturb}\, \xi`.

    Three published methods have this name. ``when`` and ``noise`` select one of them:

    * At task boundaries (Ash and Adams 2020, https://arxiv.org/abs/1910.08475): ``when="task"`` or a number of
      environment steps, shrink .5 and perturb .5, where :math:`\xi` are newly initialised parameters. Moments restart.
    * Soft (Juliani and Ash 2024): ``when="update"``, shrink 1 - 1e-6 and perturb 1e-6 in every update, with a new
      :math:`\xi` each time.
    * Noise in combination with L2 (Dohare et al. 2024): ``when="update"``, shrink 1, perturb 1e-4 to 1e-6 and
      ``noise="normal"``, with :class:`~sb3_plasticity.mitigations.L2` in the list.

    For the last two, ``interval`` updates are combined into one step with the same expected shrinking and variance.

    :param shrink: factor on the parameters, from 0 to 1
    :param perturb: scale of the added noise, >= 0
    :param when: ``"task"`` for every change of the task, a number of environment steps, or ``"update"``
    :param noise: ``"fresh"`` for draws of the policy's initialiser, or ``"normal"`` for a standard deviation of 1
    :param interval: number of updates that are combined, with ``when="update"``
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the noise
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        shrink: float = 0.5,
        perturb: float = 0.5,
        when: When | Literal["update"] = "task",
        noise: str = "fresh",
        interval: int = 100,
        networks: Iterable[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__("task" if when == "update" else when, networks, seed)
        check_number("shrink", shrink, 0, 1)
        check_number("perturb", perturb, 0)
        check_choice("noise", noise, ("fresh", "normal"))
        check_count("interval", interval, 1)
        self.shrink = shrink
        self.perturb = perturb
        self.every_update = when == "update"
        self.noise = noise
        self.every = interval

    @override
    def uses(self, hook: str) -> bool:
        return self.every_update if hook == "after_update" else super().uses(hook)

    @override
    def task_change(self) -> None:
        if not self.every_update:
            super().task_change()

    @override
    def after_update(self, networks: tuple[Network, ...]) -> None:
        first = networks[0].name
        if self.every_update and self.state["updates"][first] % self.every == 0:
            self.state["resets"] += 1
            with th.no_grad():
                self._apply(networks, self.shrink**self.every, self.perturb * math.sqrt(self.every))

    @override
    def reset(self) -> None:
        self._apply(self.targets.values(), self.shrink, self.perturb)
        if (self.shrink, self.perturb) != (1, 0):
            self.clear_moments(self.parameters)

    def _apply(self, networks: Iterable[Network], shrink: float, perturb: float) -> None:
        if (shrink, perturb) == (1, 0):
            return
        drawn = self.fresh() if self.noise == "fresh" and perturb else {}
        for name in _names(self, networks):
            parameter = self.parameters[name]
            parameter.mul_(shrink)
            if name in drawn:
                parameter.add_(drawn[name].to(parameter), alpha=perturb)
            elif perturb and self.noise == "normal":
                parameter.add_(th.randn(parameter.shape, generator=self.generator).to(parameter), alpha=perturb)


class _OfLayers(Mitigation):
    """Acts on the linear and convolutional layers of networks, output layers only if told to."""

    outputs: bool

    @override
    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        return any(self.outputs or name.rpartition(".")[0] not in n.outputs for n in self.targets.values())

    def _layers(self, networks: Iterable[Network]) -> list[str]:
        """Names of the layers whose weight is among ``self.parameters``, each once."""
        found: dict[str, None] = {}
        for network in networks:
            for name in network.layers:
                kinds = isinstance(network.root.get_submodule(name), (nn.Linear, _ConvNd))
                if kinds and f"{name}.weight" in self.parameters:
                    found[name] = None
        return list(found)


class WeightClipping(_OfLayers):
    r"""
    Clip the weights and biases of hidden layers after every update: :math:`|w| \le \kappa \sqrt 3\, \sigma_0`.

    Source: Elsayed et al. 2024, https://arxiv.org/abs/2407.01704. :math:`\sigma_0` is the standard deviation of the
    weights of the layer when training starts. For torch's default initialiser, this bound equals the published
    :math:`\kappa / \sqrt{\text{fan-in}}`, which would immediately clip 48 % of SB3's orthogonal weights. Biases have
    the bound of their layer.

    :param kappa: factor of the bound, > 0
    :param outputs: whether to clip output layers as well, at :math:`\kappa / \sqrt{\text{fan-in}}` as published
    :param networks: names of the networks to act on, or None for all
    :raises ValueError: if an argument is out of range
    """

    def __init__(self, kappa: float = 1.0, outputs: bool = False, networks: Iterable[str] | None = None) -> None:
        super().__init__(networks=networks)
        check_number("kappa", kappa, above=0)
        check_choice("outputs", outputs, (True, False))
        self.kappa = kappa
        self.outputs = outputs

    @override
    def setup(self) -> None:
        bounds = self.state.setdefault("bounds", {})
        ends = {name for network in self.targets.values() for name in network.outputs}
        for name in self._layers(self.targets.values()):
            weight = self.parameters[f"{name}.weight"].detach()
            if name not in bounds:
                fan_in = weight[0].numel()
                scale = 1 / math.sqrt(fan_in) if name in ends else math.sqrt(3) * float(weight.std(correction=0))
                bounds[name] = scale

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        clipped, total = [], 0
        for name in self._layers(networks):
            bound = self.kappa * self.state["bounds"][name]
            for kind in ("weight", "bias"):
                if (parameter := self.parameters.get(f"{name}.{kind}")) is not None:
                    clipped.append((parameter.abs() > bound).sum())
                    total += parameter.numel()
                    parameter.clamp_(-bound, bound)
        if total:
            self.observe("share_clipped", th.stack(clipped).sum() / total)


class NormalizeAndProject(_OfLayers):
    """
    Scale each weight back to its initial Frobenius norm after every update (normalise and project).

    Source: Lyle et al. 2024, https://arxiv.org/abs/2407.01800. Use this mitigation for networks with layer
    normalisation before every nonlinearity (``activation_fn: sb3_plasticity.mitigations.LayerNormReLU``), and with an
    explicit schedule of the learning rate, because weights that cannot grow no longer reduce the effective learning
    rate by themselves. Output layers are excluded by default: with SB3's gain of .01, a fixed norm would freeze the
    range of the actions.

    :param gains: ``"project"`` projects the gain and offset of each normalisation layer jointly to the norm of a gain
        of 1, for homogeneous activations only; ``"free"`` does not change them
    :param outputs: whether to project output layers as well
    :param networks: names of the networks to act on, or None for all
    :raises ValueError: if an argument is out of range
    """

    def __init__(self, gains: str = "free", outputs: bool = False, networks: Iterable[str] | None = None) -> None:
        super().__init__(networks=networks)
        check_choice("gains", gains, ("free", "project"))
        check_choice("outputs", outputs, (True, False))
        self.gains = gains
        self.outputs = outputs

    @override
    def setup(self) -> None:
        norms = self.state.setdefault("norms", {})
        for name in self._layers(self.targets.values()):
            if name not in norms:
                norms[name] = self.parameters[f"{name}.weight"].detach().norm()

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for name in self._layers(networks):
            weight = self.parameters[f"{name}.weight"]
            norm = weight.norm()
            weight.mul_(th.where(norm > 0, self.state["norms"][name] / norm, 1.0))
        if self.gains == "project":
            for network in networks:
                for units in network.units.values():
                    pair = [self.parameters[name] for name in units.gains if name in self.parameters]
                    size = th.stack([p.square().sum() for p in pair]).sum().sqrt() if pair else th.zeros(())
                    for parameter in pair:
                        parameter.mul_(th.where(size > 0, math.sqrt(units.n_units) / size, 1.0))


class SelectiveWeightReinit(Mitigation):
    """
    Draw the least useful weights of each tensor anew at regular intervals (selective weight reinitialisation).

    Source: Hernandez-Garcia et al. 2025. In every weight matrix or kernel, this replaces the share ``share`` of the
    weights with the lowest utility. If this is a fraction of a weight, one weight is replaced with the corresponding
    probability.

    :param share: share of the weights of a tensor, from 0 to 1
    :param every: number of updates between two replacements
    :param utility: ``"magnitude"`` for the absolute weight, or ``"gradient"`` for weight times gradient
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range
    """

    UTILITIES: ClassVar[tuple[str, ...]] = ("magnitude", "gradient")

    def __init__(
        self,
        share: float = 0.001,
        every: int = 100,
        utility: str = "magnitude",
        networks: Iterable[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("share", share, 0, 1)
        check_count("every", every, 1)
        check_choice("utility", utility, self.UTILITIES)
        self.share = share
        self.every = every
        self.utility = utility

    @override
    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2

    @override
    def setup(self) -> None:
        self.state.setdefault("draws", 0)
        self.state.setdefault("weights", 0)

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        if self.share == 0 or self.state["updates"][networks[0].name] % self.every:
            return
        draw = fresh_draws(self.agent, networks[0].root)(self.seed + self.state["draws"])
        self.state["draws"] += 1
        for name in _names(self, networks):
            parameter = self.parameters[name]
            number = self.share * parameter.numel()
            count = int(number + th.rand((), generator=self.generator).item())
            if self.utility == "gradient" and parameter.grad is None:
                continue
            worth = parameter.abs() if self.utility == "magnitude" else (parameter * parameter.grad).abs()  # type: ignore[operator]
            chosen = worth.flatten().argsort(stable=True)[:count]
            parameter.view(-1)[chosen] = draw[name].detach().to(parameter).flatten()[chosen]
            self.state["weights"] += count

    @override
    def logs(self) -> dict[str, float]:
        found = {**super().logs(), "weights_drawn": float(self.state["weights"])}
        if self.agent.num_timesteps:
            found["weights_per_million_steps"] = 1e6 * self.state["weights"] / self.agent.num_timesteps
        return found


def _names(part: Mitigation, networks: Iterable[Network]) -> list[str]:
    """Names of a part's parameters in some networks, each once."""
    return list(dict.fromkeys(n for network in networks for n in network.parameters if n in part.parameters))
