"""
Adam as a function of tensors: what a compiled program does in the place of the optimizer's ``step``.

Written out, because torch's optimizers hold their state outside a program and cannot leave a step out. Inside, it fuses
with the gradient: the line "torch's Adam" of ``benchmarks/compiled.py`` is without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch as th


class AdamOptions(NamedTuple):
    """
    What an optimizer is set to, besides the learning rate.

    :param beta1: decay of the first moments
    :param beta2: decay of the second moments
    :param eps: added to the root of the second moments
    :param weight_decay: of the parameters
    :param decoupled: whether the decay leaves the gradient alone, as in AdamW
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool


@dataclass(frozen=True)
class AdamState:
    """
    An optimizer's state, in lists of one tensor for each parameter.

    :param first: first moments
    :param second: second moments
    :param step: (n,), float64, the different numbers of steps that parameters have had: one, unless the moments of some
        were forgotten, as resets do
    :param step_of: of each parameter, the place of its number in ``step``
    """

    first: Sequence[th.Tensor]
    second: Sequence[th.Tensor]
    step: th.Tensor
    step_of: tuple[int, ...]


def adam_options(optimizer: th.optim.Optimizer) -> AdamOptions:
    """
    Read what an optimizer is set to.

    :param optimizer: Adam or AdamW with a single parameter group
    :return: its options
    """
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    decoupled = isinstance(optimizer, th.optim.AdamW) or group.get("decoupled_weight_decay", False)
    return AdamOptions(beta1, beta2, group["eps"], group["weight_decay"], decoupled)


def take_up_state(optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> AdamState:
    """
    Collect an optimizer's state, and set up what is not there as Adam does at its first step.

    :param optimizer: Adam or AdamW
    :param parameters: that it steps
    :return: the optimizer's own moments, and a copy of its numbers of steps
    """
    state = optimizer.state
    for parameter in parameters:
        if "step" not in state[parameter]:
            state[parameter]["step"] = th.tensor(0.0)
            state[parameter]["exp_avg"] = th.zeros_like(parameter)
            state[parameter]["exp_avg_sq"] = th.zeros_like(parameter)
    counts = [float(state[parameter]["step"]) for parameter in parameters]
    different = sorted(set(counts))
    return AdamState(
        first=[state[parameter]["exp_avg"] for parameter in parameters],
        second=[state[parameter]["exp_avg_sq"] for parameter in parameters],
        step=th.tensor(different, dtype=th.float64),
        step_of=tuple(different.index(count) for count in counts),
    )


def write_back_steps(optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor], state: AdamState) -> None:
    """
    Tell an optimizer how many steps its parameters have had by now.

    :param optimizer: whose state was taken up
    :param parameters: that it steps
    :param state: as it was taken up, and changed since
    """
    counts = state.step.tolist()
    for parameter, place in zip(parameters, state.step_of, strict=True):
        optimizer.state[parameter]["step"].fill_(counts[place])


def adam_step(
    options: AdamOptions,
    parameters: Sequence[th.Tensor],
    gradients: Sequence[th.Tensor],
    state: AdamState,
    learning_rate: th.Tensor,
    clip: th.Tensor,
    apply: th.Tensor,
) -> None:
    """
    Take a step of Adam (Kingma and Ba 2015), or AdamW, as torch computes it, in place.

    :param options: of the optimizer
    :param parameters: to change
    :param gradients: of the parameters
    :param state: to change
    :param learning_rate: scalar, float64
    :param clip: scalar, by which the gradients are multiplied
    :param apply: scalar, bool; where it is False, everything stays as it is
    """
    beta1, beta2, eps, decay, decoupled = options
    state.step.add_(apply.to(state.step.dtype))
    scalars = [clip, apply.float()]
    for step in state.step.unbind():
        # In float64: early on, 1 - beta^t would lose most of its digits in float32.
        scalars.append((learning_rate / (1 - beta1**step)).float())
        scalars.append((1 - beta2**step).sqrt().float())
    clip, apply, *rates = th.stack(scalars).unbind()  # see inductor.OPTIONS
    apply = apply > 0
    for parameter, gradient, first, second, place in zip(
        parameters, gradients, state.first, state.second, state.step_of, strict=True
    ):
        step_size, root = rates[2 * place], rates[2 * place + 1]
        gradient = gradient * clip
        value = parameter
        if decay and decoupled:
            value = value * (1 - learning_rate.float() * decay)
        elif decay:
            gradient = gradient + decay * value
        new_first = th.lerp(first, gradient, 1 - beta1)
        new_second = second * beta2 + (1 - beta2) * gradient * gradient
        value = value - step_size * new_first / (new_second.sqrt() / root + eps)
        first.copy_(th.where(apply, new_first, first))
        second.copy_(th.where(apply, new_second, second))
        parameter.copy_(th.where(apply, value, parameter))
