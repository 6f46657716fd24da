"""
Optimizers that change plasticity, usable as ``policy_kwargs=dict(optimizer_class=...)`` of any algorithm.

They take parameters without names, so none knows which of them is ``log_std``.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch as th

from sb3_plasticity.common.checks import check_count, check_number

Closure = Callable[[], Any]


class UPGD(th.optim.Optimizer):
    r"""
    Utility-based perturbed gradient descent with Adam's steps (Elsayed and Mahmood, ICLR 2024; AdaUPGD of their code).

    With gradient :math:`g`, utility :math:`u \leftarrow \beta_u u - (1 - \beta_u) g \theta`, scaled utility
    :math:`s = \mathrm{sigmoid}(u / \max u)` over all parameters, Adam's corrected moments :math:`\hat m, \hat v` and
    noise :math:`\xi \sim N(0, \sigma^2)`:

    .. math:: \theta \leftarrow (1 - \eta \lambda) \theta - 2 \eta (1 - s) [\hat m / (\sqrt{\hat v} + \epsilon) + \xi]

    Two things differ from the authors' code: the maximum is corrected for bias as the utilities are (theirs is not,
    which saturates the gates at first), and where no utility is positive, utilities are divided by the largest absolute
    one (theirs turns their signs around).

    :param params: as of any torch optimizer
    :param lr: learning rate :math:`\eta`
    :param betas: decay of Adam's moments
    :param beta_utility: decay :math:`\beta_u` of the utility
    :param eps: added to the denominator
    :param weight_decay: decoupled decay :math:`\lambda`
    :param sigma: standard deviation of the noise
    :param min_ndim: decay and noise act on parameters with at least so many axes: 2 spares biases, gains and a
        ``log_std`` vector (gSDE's is a matrix); 0 is as published
    :param seed: of the noise, which touches no global generator
    :raises ValueError: for arguments outside what is accepted
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta_utility: float = 0.999,
        eps: float = 1e-5,
        weight_decay: float = 1e-3,
        sigma: float = 1e-3,
        min_ndim: int = 2,
        seed: int = 0,
    ) -> None:
        _check_adam(lr, betas, eps, weight_decay)
        check_number("beta_utility", beta_utility, 0, below=1)
        check_number("sigma", sigma, 0)
        check_count("min_ndim", min_ndim)
        check_count("seed", seed)
        defaults = dict(lr=lr, betas=tuple(betas), beta_utility=beta_utility, eps=eps, weight_decay=weight_decay)
        super().__init__(params, dict(defaults, sigma=sigma, min_ndim=min_ndim, seed=seed))

    @th.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """
        Take a step.

        :param closure: computes the loss and the gradients, if given
        :return: the closure's loss
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        moved = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        utilities = [self._update(group, parameter) for group, parameter in moved]
        if not utilities:
            return loss
        scale = th.stack([utility.max() for utility in utilities]).max()
        largest = th.stack([utility.abs().max() for utility in utilities]).max()
        scale = th.where(scale > 0, scale, largest).clamp(min=th.finfo(scale.dtype).tiny)
        generator = None
        for (group, parameter), utility in zip(moved, utilities, strict=True):
            state = self.state[parameter]
            if generator is None:
                generator = th.Generator(parameter.device)
                generator.manual_seed(group["seed"] * 1_000_003 + int(state["step"]))
            beta1, beta2 = group["betas"]
            step = state["step"].item()
            root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt().add_(group["eps"])
            change = state["exp_avg"] / (1 - beta1**step) / root
            if parameter.ndim >= group["min_ndim"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if group["sigma"]:
                    noise = th.randn(
                        parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype
                    )
                    change.add_(noise, alpha=group["sigma"])
            parameter.sub_(2 * group["lr"] * (1 - th.sigmoid(utility / scale)) * change)
        return loss

    def _update(self, group: dict[str, Any], parameter: th.Tensor) -> th.Tensor:
        """Move a parameter's moments and utility on, and return its corrected utility."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = th.zeros(())
            for name in ("exp_avg", "exp_avg_sq", "utility"):
                state[name] = th.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        beta = group["beta_utility"]
        state["utility"].mul_(beta).addcmul_(gradient, parameter, value=beta - 1)
        return state["utility"] / (1 - beta ** state["step"].item())  # type: ignore[no-any-return]


class TRAC(th.optim.Optimizer):
    r"""
    TRAC around another optimizer (Muppidi, Zhang and Yang, NeurIPS 2024): the distance from the start is tuned online.

    With the first parameters :math:`\theta_r`, the base optimizer's step :math:`u`, the sum :math:`S` of the last
    tuners, :math:`\delta = (\theta - \theta_r) / (S + \epsilon)` and :math:`h = \langle \delta, g \rangle` over all
    parameters, for every discount :math:`\beta`

    .. math:: v \leftarrow \beta^2 v + h^2, \quad q \leftarrow \beta q - h, \quad
        s = \frac{s_0}{\mathrm{erfi}(1 / \sqrt 2)} \mathrm{erfi}\Big(\frac{q}{\sqrt{2 v} + \epsilon}\Big)

    and :math:`\theta \leftarrow \theta_r + \max(\sum s, 0) (\delta + u)`; :math:`q` starts at 1e-8. Its state is part
    of ``state_dict``, so a loaded agent continues as it would have (the authors' code keys it by tensors and cannot).

    :param params: as of any torch optimizer
    :param lr: learning rate of the base optimizer
    :param base: class of the base optimizer
    :param discounts: one tuner each
    :param s_init: scale :math:`s_0` of the tuners
    :param trac_eps: :math:`\epsilon`
    :param base_kwargs: further arguments of the base optimizer
    :raises ValueError: for arguments outside what is accepted
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        base: Callable[..., th.optim.Optimizer] = th.optim.Adam,
        discounts: Iterable[float] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
        s_init: float = 1e-8,
        trac_eps: float = 1e-8,
        **base_kwargs: Any,
    ) -> None:
        check_number("lr", lr, 0)
        check_number("s_init", s_init, above=0)
        check_number("trac_eps", trac_eps, above=0)
        self.discounts = tuple(discounts)
        for discount in self.discounts:
            check_number("discounts", discount, above=0, below=1)
        self.s_init, self.trac_eps = s_init, trac_eps
        # Not a base class: torch would run every hook of a step twice.
        self._base = base(params, lr=lr, **base_kwargs)
        super().__init__(self._base.param_groups, self._base.defaults)

    @th.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """
        Take a step.

        :param closure: computes the loss and the gradients, if given
        :return: the closure's loss
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [parameter.clone() for parameter in parameters]
        gradients = [parameter.grad.clone() for parameter in parameters]
        self._base.state, self._base.param_groups = self.state, self.param_groups  # loading replaces both
        self._base.step()
        if "trac" not in self.state:
            n = len(self.discounts)
            zeros, start = th.zeros(n, dtype=th.float64), th.full((n,), 1e-8, dtype=th.float64)
            self.state["trac"] = dict(variance=zeros, sigma=start, scale=zeros.clone())  # type: ignore[index]
        tuners = self.state["trac"]  # type: ignore[index]
        total = tuners["scale"].sum().item() + self.trac_eps
        h = 0.0
        deltas = []
        for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
            reference = self.state[parameter].setdefault("trac_reference", old)
            delta = (old - reference) / total
            h += float((delta * gradient).sum(dtype=th.float64))
            deltas.append(delta.add_(parameter - old))
        betas = th.tensor(self.discounts, dtype=th.float64)
        tuners["variance"].mul_(betas**2).add_(h**2)
        tuners["sigma"].mul_(betas).sub_(h)
        at = tuners["sigma"] / ((2 * tuners["variance"]).sqrt() + self.trac_eps)
        tuners["scale"] = self.s_init / erfi(math.sqrt(0.5)) * th.tensor([erfi(x) for x in at.tolist()]).double()
        scale = max(tuners["scale"].sum().item(), 0.0)
        for parameter, delta in zip(parameters, deltas, strict=True):
            parameter.copy_(self.state[parameter]["trac_reference"] + scale * delta)
        return loss


class MuonAdam(th.optim.Optimizer):
    """
    Muon (Jordan et al. 2024) for the matrices of hidden layers, Adam for everything else, with one learning rate.

    ``torch.optim.Muon`` takes nothing but matrices, and SB3 gives an optimizer all parameters. Muon's steps are scaled
    so that their root mean square is that of Adam's (Moonshot 2025), hence one rate fits both.

    :param params: as of any torch optimizer
    :param lr: learning rate of both
    :param betas: of Adam
    :param eps: of Adam
    :param momentum: of Muon
    :param weight_decay: decoupled decay of the matrices
    :param min_rows: matrices with fewer rows are Adam's: output layers, whose scale sets how far a policy can go
    :raises ValueError: for arguments outside what is accepted
    :raises RuntimeError: if this version of torch has no Muon
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        min_rows: int = 32,
    ) -> None:
        if not hasattr(th.optim, "Muon"):
            raise RuntimeError(
                f"MuonAdam needs torch.optim.Muon, which torch {th.__version__} does not have (2.9 does)"
            )
        _check_adam(lr, betas, eps, weight_decay)
        check_number("momentum", momentum, 0, below=1)
        check_count("min_rows", min_rows, 1)
        defaults = dict(lr=lr, betas=tuple(betas), eps=eps, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, dict(defaults, min_rows=min_rows))
        self._muon = th.optim.Muon([th.zeros(1, 1)], adjust_lr_fn="match_rms_adamw")
        self._adam = th.optim.Adam([th.zeros(1)])

    def step(self, closure: Closure | None = None) -> Any:
        """
        Take a step.

        :param closure: computes the loss and the gradients, if given
        :return: the closure's loss
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        matrices, others = [], []
        for group in self.param_groups:
            is_matrix = [p.ndim == 2 and p.shape[0] >= group["min_rows"] for p in group["params"]]
            muon = {key: group[key] for key in ("lr", "momentum", "weight_decay")}
            adam = {key: group[key] for key in ("lr", "betas", "eps")}
            pairs = list(zip(group["params"], is_matrix, strict=True))
            matrices.append({**self._muon.defaults, **muon, "params": [p for p, matrix in pairs if matrix]})
            others.append({**self._adam.defaults, **adam, "params": [p for p, matrix in pairs if not matrix]})
        for inner, groups in ((self._muon, matrices), (self._adam, others)):
            inner.state, inner.param_groups = self.state, groups
            inner.step()  # type: ignore[no-untyped-call]
        return loss


def erfi(x: float) -> float:
    """
    Compute the imaginary error function, finite for any finite argument.

    :param x: real; beyond 26 in absolute value, where the function exceeds 1e290, it is cut off there
    :return: the value
    """
    x = max(min(x, 26.0), -26.0)
    term, total, n = x, x, 0
    # All terms of the series have the sign of x: nothing cancels.
    while abs(term) > 1e-18 * abs(total):
        n += 1
        term *= x * x / n
        total += term / (2 * n + 1)
    return 2 / math.sqrt(math.pi) * total


def _check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    check_number("lr", lr, 0)
    for beta in betas:
        check_number("betas", beta, 0, below=1)
    check_number("eps", eps, 0)
    check_number("weight_decay", weight_decay, 0)
