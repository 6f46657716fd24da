"""
Optimizers: replacements for Adam, to be passed as ``policy_kwargs=dict(optimizer_class=...)`` of any algorithm.

They receive parameters without names, so none of them knows which parameter is ``log_std``.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch as th

from sb3_plasticity.common.checks import check_count, check_number

Closure = Callable[[], Any]


class UPGD(th.optim.Optimizer):
    r"""
    Take Adam's steps with noise and with gates that protect useful parameters (utility-based perturbed gradient
    descent).

    Source: Elsayed and Mahmood, ICLR 2024 (AdaUPGD in their code). With the gradient :math:`g`, the utility :math:`u
    \leftarrow \beta_u u - (1 - \beta_u) g \theta`, the scaled utility :math:`s = \mathrm{sigmoid}(u / \max u)` over all
    parameters, Adam's corrected moments :math:`\hat m, \hat v` and the noise :math:`\xi \sim N(0, \sigma^2)`, the
    update is

    .. math:: \theta \leftarrow {} & (1 - \eta \lambda) \theta \\
        & - 2 \eta (1 - s) [\hat m / (\sqrt{\hat v} + \epsilon) + \xi]

    There are two differences to the authors' code. The maximum is corrected for bias like the utilities; theirs is not,
    which saturates the gates at first. If no utility is positive, the utilities are divided by the largest absolute
    one; theirs reverses their signs.

    :param params: parameters, as for any PyTorch optimizer
    :param lr: learning rate :math:`\eta`
    :param betas: decay rates of Adam's moments
    :param beta_utility: decay rate :math:`\beta_u` of the utility
    :param eps: added to the denominator
    :param weight_decay: decoupled decay :math:`\lambda`
    :param sigma: standard deviation of the noise
    :param min_ndim: apply decay and noise only to parameters with at least this many axes: 2 excludes biases, gains and
        a ``log_std`` vector (gSDE's is a matrix), and 0 is the published setting
    :param seed: seed of the noise, which does not use the global generators
    :raises ValueError: if an argument is out of range
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
    Tune the distance of the parameters from their start online, around another optimizer (Muppidi, Zhang and Yang,
    NeurIPS 2024).

    Let :math:`\theta_r` be the initial parameters, :math:`u` the step of the base optimizer, :math:`S` the sum of the
    last tuners, :math:`\delta = (\theta - \theta_r) / (S + \epsilon)`, and :math:`h = \langle \delta, g \rangle` over
    all parameters. For every discount :math:`\beta`, TRAC computes

    .. math:: v &\leftarrow \beta^2 v + h^2, \quad q \leftarrow \beta q - h, \\
        s &= \frac{s_0}{\mathrm{erfi}(1 / \sqrt 2)} \mathrm{erfi}\Big(\frac{q}{\sqrt{2 v} + \epsilon}\Big)

    and then :math:`\theta \leftarrow \theta_r + \max(\sum s, 0) (\delta + u)`. The initial value of :math:`q` is 1e-8.
    The state is part of ``state_dict``, so a loaded agent continues as if it had not been interrupted. The authors'
    code indexes its state by tensors and cannot do this.

    :param params: parameters, as for any PyTorch optimizer
    :param lr: learning rate of the base optimizer
    :param base: class of the base optimizer
    :param discounts: discounts :math:`\beta`, one for each tuner
    :param s_init: scale :math:`s_0` of the tuners
    :param trac_eps: the constant :math:`\epsilon`
    :param base_kwargs: further arguments of the base optimizer
    :raises ValueError: if an argument is out of range
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
    Use Muon (Jordan et al. 2024) for the matrices of hidden layers and Adam for everything else, with one learning
    rate.

    ``torch.optim.Muon`` only accepts matrices, whereas SB3 passes all parameters to an optimizer. Muon's steps are
    scaled to have the root mean square of Adam's (Moonshot 2025), so one learning rate fits both.

    :param params: parameters, as for any PyTorch optimizer
    :param lr: learning rate of both
    :param betas: betas of Adam
    :param eps: epsilon of Adam
    :param momentum: momentum of Muon
    :param weight_decay: decoupled decay of the matrices
    :param min_rows: matrices with fewer rows are updated by Adam, which applies to output layers, whose scale
        determines how far a policy can change
    :raises ValueError: if an argument is out of range
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
