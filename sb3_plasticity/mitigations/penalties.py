"""Penalties: terms of the loss, whose gradients are added in closed form before SB3 clips the gradient."""

from collections.abc import Iterable, Mapping

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, check_number
from sb3_plasticity.common.sorting import transport
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
        :raises NotImplementedError: unless a subclass defines it
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
    Penalise the squared norm of the parameters (weight decay): :math:`\text{coef} \, \lVert\theta\rVert^2`.

    Coupled decay (the default) is a term of the loss and therefore enters the optimizer's moments. It equals the
    ``weight_decay`` of torch's Adam with ``weight_decay = 2 * coef``. Decoupled decay (AdamW, Loshchilov and Hutter
    2019) shrinks the parameters by ``1 - lr * 2 * coef`` before each step, and is bit-identical to AdamW with
    ``weight_decay=2 * coef``. These are two different methods. Coupled decay is divided by the root of the second
    moment, so a parameter without gradient moves by up to the learning rate per update. Decoupled decay of 1e-3 has
    almost no effect at a learning rate of 1e-4.

    The default is the published coupled decay of 1e-3 (Dohare et al. 2024, ``rl/cfg/sant/l2.yml``; Prakash et al.
    2026). The publications use it with Adam's betas (.99, .99) and also apply it to ``log_std``.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param log_std: whether to decay ``log_std`` as well, which pulls the standard deviation of the actions to 1 and
        thus increases exploration, whatever it does for the networks; ``"only"`` decays nothing else
    :param decoupled: whether to shrink the parameters outside the optimizer
    """

    def __init__(
        self,
        coef: float | Schedule = 5e-4,
        networks: Iterable[str] | None = None,
        log_std: LogStd = False,
        decoupled: bool = False,
    ) -> None:
        super().__init__(coef, networks=networks, log_std=log_std)
        check_choice("decoupled", decoupled, (True, False))
        self.decoupled = decoupled

    @override
    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        return 2 * strength * parameter

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        return parameter.square().sum()

    @override
    def uses(self, hook: str) -> bool:
        if hook in ("gradient", "before_update"):
            return self.decoupled == (hook == "before_update")
        return super().uses(hook)

    @override
    def before_update(self, networks: tuple[Network, ...]) -> None:
        strength = self.strength()
        ours = {id(parameter) for parameter in self.parameters.values()}
        for optimizer in {id(network.optimizer): network.optimizer for network in networks}.values():
            assert optimizer is not None
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if strength != 0 and id(parameter) in ours and parameter.grad is not None:
                        with th.no_grad():
                            parameter.mul_(1 - group["lr"] * 2 * strength)


class L2Init(_ParameterPenalty):
    r"""
    Regularise towards the initial parameters: :math:`\frac{\text{coef}}{2} \lVert\theta - \theta_0\rVert^2`.

    Source: Kumar, Marklund and Van Roy 2023, https://arxiv.org/abs/2308.11958 (*regenerative regularisation*). As in
    the paper, the gains and offsets of normalisation layers are excluded. :math:`\theta_0` are the parameters when
    training started with this mitigation; they are saved with the model. The norm is squared. Some ports pull with a
    constant force instead, which is a different method. The paper sweeps the strength and gives no default.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param log_std: whether to pull the scale of exploration to its initial value as well
    """

    def __init__(
        self, coef: float | Schedule | str = 1e-3, networks: Iterable[str] | None = None, log_std: LogStd = False
    ) -> None:
        super().__init__(coef, networks=networks, log_std=log_std)

    @override
    def setup(self) -> None:
        self.state.setdefault("initial", {name: p.detach().clone() for name, p in self.parameters.items()})

    @override
    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        return not self._is_gain(name) and not self._is_gain(f"{name.rpartition('.')[0]}.weight")

    def _is_gain(self, name: str) -> bool:
        """Whether a parameter multiplies units one by one: the weight of a normalisation layer."""
        found = [network.parameters[name] for network in self.targets.values() if name in network.parameters]
        return bool(found) and name.endswith("weight") and found[0].ndim == 1

    @override
    def constants(self, name: str) -> tuple[th.Tensor, ...]:
        return (self.state["initial"][name],)

    @override
    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        return strength * (parameter - constants[0])

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        return (parameter - constants[0]).square().sum() / 2


class RegenerativeWasserstein(L2Init):
    r"""
    Regularise the distribution of each tensor's entries towards the initial one: :math:`\text{coef} \sum_\text{tensors}
    \frac1n \lVert\mathrm{sort}(\theta) - \mathrm{sort}(\theta_0)\rVert^2`.

    This is the squared 2-Wasserstein distance (Lewandowski et al. 2023, https://arxiv.org/abs/2312.00246). The strength
    of 1e-3 is that of Chung et al. 2024 (``regen_wasserstein`` in the Parseval repository). The cost is a sort of every
    tensor.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param interval: act in every ``interval``-th update, at ``interval``-fold strength
    """

    def __init__(
        self, coef: float | Schedule | str = 1e-3, networks: Iterable[str] | None = None, interval: int = 1
    ) -> None:
        _ParameterPenalty.__init__(self, coef, networks=networks, interval=interval)

    @override
    def setup(self) -> None:
        initial = {name: p.detach().flatten().sort().values for name, p in self.parameters.items()}
        self.state.setdefault("initial", initial)

    @override
    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        flat = parameter.flatten()
        return (2 * strength / flat.numel() * (flat - transport(flat, constants[0]))).view_as(parameter)

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        return (parameter.flatten().sort().values - constants[0]).square().mean()


class Parseval(_ParameterPenalty):
    r"""
    Keep the rows of hidden weights orthogonal: :math:`\text{coef} \sum_l (64 / \text{width}_l)^2 \, \lVert W_l W_l^\top
    - s I \rVert_F^2`.

    Source: Chung, Cherif, Precup and Meger 2024, https://arxiv.org/abs/2412.07224. The penalty acts on all hidden
    linear layers of actor and critic, but not on the output layers. The published strength is 1e-3, and 1e-4 in CARL.
    For a layer with more rows than columns, the penalty has a lower bound above 0 that no weight can reach below. SB3
    initialises with a gain of :math:`\sqrt 2`, to which a ``scale`` of 2 corresponds, so that the penalty starts at 0.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param scale: the factor s, which is the squared gain of the initialisation, > 0
    :param interval: act in every ``interval``-th update, at ``interval``-fold strength
    """

    def __init__(
        self,
        coef: float | Schedule | str = 1e-3,
        networks: Iterable[str] | None = None,
        scale: float = 2.0,
        interval: int = 1,
    ) -> None:
        super().__init__(coef, networks=networks, interval=interval)
        check_number("scale", scale, above=0)
        self.scale = scale

    @override
    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        layer = name.removesuffix(".weight")
        return name.endswith(".weight") and any(
            layer in network.layers
            and layer not in network.outputs
            and isinstance(network.root.get_submodule(layer), nn.Linear)
            for network in self.targets.values()
        )

    def _excess(self, weight: th.Tensor) -> th.Tensor:
        return weight @ weight.mT - self.scale * th.eye(len(weight), dtype=weight.dtype, device=weight.device)

    @override
    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        return 4 * (64 / len(parameter)) ** 2 * strength * (self._excess(parameter) @ parameter)

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        return (64 / len(parameter)) ** 2 * self._excess(parameter).square().sum()


class SpectralRegularization(_ParameterPenalty):
    r"""
    Keep the largest singular value of every weight near 1: :math:`\text{coef} \, [\sum_l (\sigma_l^k - t)^2 +
    \sum_\text{biases} \lVert b \rVert^{2k} + \sum_\text{gains} \lVert \gamma - 1 \rVert^2]`.

    Source: Lewandowski et al. 2024, https://arxiv.org/abs/2406.06811, with t = 1 and k = 2. The penalty acts on all
    layers including the output layers, and treats convolutions as matrices of shape (outputs, inputs * height * width).
    :math:`\sigma_l` is estimated by one step of power iteration per update, whose vectors are kept and saved with the
    model. Published strengths range from 1e-4 to 1e-2.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    :param power: the exponent k, >= 1
    :param target: the target t, >= 0; the comparison by L2-ER's authors uses 2
    """

    def __init__(
        self,
        coef: float | Schedule | str = 1e-4,
        networks: Iterable[str] | None = None,
        power: float = 2,
        target: float = 1.0,
    ) -> None:
        super().__init__(coef, networks=networks)
        check_number("power", power, at_least=1)
        check_number("target", target, at_least=0)
        self.power, self.target = power, target

    @override
    def setup(self) -> None:
        if "vectors" in self.state:
            return
        self.state["vectors"] = {}
        for name, parameter in self.parameters.items():
            if parameter.ndim > 1:
                matrix = parameter.detach().flatten(1)
                left = th.randn(len(matrix), generator=self.generator).to(matrix)
                self.state["vectors"][name] = (left, matrix.new_zeros(matrix.shape[1]))
                for _ in range(20):
                    self._iterate(matrix, *self.state["vectors"][name])

    @staticmethod
    def _iterate(matrix: th.Tensor, left: th.Tensor, right: th.Tensor) -> th.Tensor:
        """Improve the singular vectors in place and return the singular value."""
        right.copy_(th.nn.functional.normalize(matrix.mT @ left, dim=0))
        image = matrix @ right
        sigma: th.Tensor = th.linalg.vector_norm(image)
        left.copy_(image / sigma.clamp(min=1e-12))
        return sigma

    @override
    def constants(self, name: str) -> tuple[th.Tensor, ...]:
        return tuple(self.state["vectors"].get(name, ()))

    @override
    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        k = self.power
        if parameter.ndim == 1:
            if name.endswith("weight"):
                return 2 * strength * (parameter - 1)
            return 2 * k * strength * parameter.square().sum() ** (k - 1) * parameter
        left, right = constants
        sigma = self._iterate(parameter.flatten(1), left, right)
        slope = 2 * k * strength * (sigma**k - self.target) * sigma ** (k - 1)
        return th.outer(slope * left, right).view_as(parameter)

    @override
    def value(self, name: str, parameter: th.Tensor, *constants: th.Tensor) -> th.Tensor:
        if parameter.ndim == 1:
            if name.endswith("weight"):
                return (parameter - 1).square().sum()
            return parameter.square().sum() ** self.power
        left, right = constants
        sigma = left @ parameter.flatten(1) @ right
        return (sigma**self.power - self.target).square()


class FeatureNorm(Mitigation):
    r"""
    Keep hidden activations small: :math:`\text{coef} \cdot E\lVert h \rVert^2`, averaged over the layers of a network.

    The penalty acts on the inputs of all layers after the first, on the samples of each update. The literature has no
    common default.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, or None for all
    """

    def __init__(self, coef: float | Schedule | str = 1e-4, networks: Iterable[str] | None = None) -> None:
        super().__init__(coef, networks=networks)

    @override
    def feature_penalty(self, network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
        return th.stack([matrix.square().sum(1).mean() for matrix in features.values()]).mean()
