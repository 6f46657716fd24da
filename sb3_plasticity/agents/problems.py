"""One network's curvature as a question that plain torch can answer: parameters, loss, outputs, output Hessian."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn

from sb3_plasticity.agents.objectives import Objective, Root, Samples
from sb3_plasticity.common.functional import functional_call

Params = dict[str, th.Tensor]


@dataclass(frozen=True)
class CurvatureProblem:
    """
    What the spectra of one network need.

    :param params: name -> tensor, the parameters that are differentiated
    :param loss_fn: ``loss_fn(params, samples)`` -> scalar: the algorithm's own loss
    :param output_fn: ``output_fn(params, samples)`` -> (N, C)
    :param output_hessian: (N, C) diagonal or (N, C, C): the loss's Hessian in the outputs, taken at ``params``
    :param samples: transitions, with the targets that an update would hold fixed
    """

    params: Params
    loss_fn: Callable[[Params, Samples], th.Tensor]
    output_fn: Callable[[Params, Samples], th.Tensor]
    output_hessian: th.Tensor
    samples: Samples


def curvature_problem(
    root: nn.Module, objective: Objective, samples: Samples, state: Mapping[str, th.Tensor] | None = None
) -> CurvatureProblem:
    """
    Pose the curvature problem of one network on given transitions.

    Whatever of ``root`` the outputs do not depend on (other networks, target networks) is held as it is.

    :param root: the module that holds all of the agent's networks, normally ``model.policy``, in evaluation mode
    :param objective: of the network, from :func:`~sb3_plasticity.agents.objectives.objectives_of`
    :param samples: transitions, from :func:`~sb3_plasticity.agents.samples.source_of`
    :param state: a ``state_dict`` of ``root`` to take instead of the present one
    :return: the problem
    """
    run = _Run(root)
    state = {name: value.detach() for name, value in (root.state_dict() if state is None else state).items()}

    def call(function: Callable[[Root, Samples], Any], params: Params, samples: Samples) -> Any:
        tensors = {f"root.{name}": value for name, value in (state | params).items()}
        return functional_call(run, tensors, (function, samples))

    with th.no_grad():
        samples = call(objective.hold_fixed, {}, samples)
        output_hessian = call(objective.output_hessian, {}, samples).detach()
    trainable = {name: state[name] for name, p in root.named_parameters() if p.requires_grad}
    return CurvatureProblem(
        params=_used(lambda params: call(objective.outputs, params, samples), trainable),
        loss_fn=lambda params, samples: call(objective.loss, params, samples),
        output_fn=lambda params, samples: call(objective.outputs, params, samples),
        output_hessian=output_hessian,
        samples=samples,
    )


class _Run(nn.Module):
    """Functions of a module behind one ``forward``, which is what ``functional_call`` calls."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root

    def forward(self, function: Callable[[Root, Samples], Any], samples: Samples) -> Any:
        return function(self.root, samples)


def _used(function: Callable[[Params], th.Tensor], params: Params) -> Params:
    """Return those parameters that a function's result depends on."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    with th.enable_grad():
        gradients = th.autograd.grad(function(leaves).sum(), list(leaves.values()), allow_unused=True)
    return {name: value for (name, value), g in zip(params.items(), gradients, strict=True) if g is not None}
