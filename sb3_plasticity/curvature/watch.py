"""
The linear and convolutional layers of any model, seen as it runs.

A ``TorchFunctionMode`` notes every call of ``F.linear`` and ``F.conv2d`` that uses one of the given parameters,
whatever the model looks like. The instruments take plain functions, so there are no modules whose hooks could tell,
as they do in ``common/following.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

OutputFn = Callable[[dict[str, th.Tensor], Any], th.Tensor]


@dataclass(frozen=True)
class Call:
    """
    One call of a layer. T counts positions: of a convolution, or of the axes between the first and the last.

    :param weight: name of the weight, None if it is not among the parameters
    :param bias: name of the bias, or None
    :param inputs: (N, T, d_in)
    :param probe: zeros added to the result, whose gradient is that of the result
    :param is_conv: a convolution
    """

    weight: str | None
    bias: str | None
    inputs: th.Tensor
    probe: th.Tensor
    is_conv: bool

    @property
    def names(self) -> list[str]:
        """The parameters' names."""
        return [name for name in (self.weight, self.bias) if name is not None]

    def positions(self, grad: th.Tensor) -> th.Tensor:
        """
        Bring a gradient at the result into the layout of the inputs.

        :param grad: of the probe's shape
        :return: (N, T, d_out)
        """
        # A convolution's result is (N, d_out, H, W), a linear layer's (N, ..., d_out).
        return grad.flatten(2).mT if self.is_conv else grad.reshape(grad.shape[0], -1, grad.shape[-1])


class _Watch(TorchFunctionMode):
    """
    Note every linear and convolutional call that uses one of the given parameters.

    Such a parameter is detached there, and a zero leaf added to the result carries the gradient instead: a parameter
    that still receives a gradient is used in another way as well.
    """

    def __init__(self, leaves: dict[str, th.Tensor]) -> None:
        super().__init__()
        self.names = {id(leaf): name for name, leaf in leaves.items()}
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.conv2d:
            return self._conv2d(*args, **kwargs)
        return func(*args, **kwargs)

    def _linear(self, input: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
        names = self.names.get(id(weight)), self.names.get(id(bias))
        if names == (None, None) or input.ndim < 2:
            return F.linear(input, weight, bias)
        rows = input.detach().reshape(input.shape[0], -1, input.shape[-1])
        return self._note(F.linear(input, *self._cut(names, weight, bias)), names, rows, is_conv=False)

    def _conv2d(
        self,
        input: th.Tensor,
        weight: th.Tensor,
        bias: th.Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> th.Tensor:
        names = self.names.get(id(weight)), self.names.get(id(bias))
        if names == (None, None) or input.ndim != 4 or groups != 1 or isinstance(padding, str):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        result = F.conv2d(input, *self._cut(names, weight, bias), stride, padding, dilation)
        patches = F.unfold(input.detach(), weight.shape[2:], dilation, padding, stride).mT
        return self._note(result, names, patches, is_conv=True)

    def _cut(
        self, names: tuple[str | None, str | None], weight: th.Tensor, bias: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        if names[0] is not None:
            weight = weight.detach()
        return weight, bias.detach() if bias is not None and names[1] is not None else bias

    def _note(
        self, result: th.Tensor, names: tuple[str | None, str | None], rows: th.Tensor, is_conv: bool
    ) -> th.Tensor:
        probe = th.zeros_like(result, requires_grad=True)
        # Copied: a later in-place operation may overwrite the input.
        self.calls.append(Call(*names, rows.clone(), probe, is_conv=is_conv))
        return result + probe


def watched_forward(
    output_fn: OutputFn, leaves: dict[str, th.Tensor], inputs: Any, output_hessian: th.Tensor
) -> tuple[th.Tensor, list[Call]]:
    """
    Run the network and tell which calls can be treated as layers.

    :param output_fn: ``output_fn(params, inputs)`` -> (N, C)
    :param leaves: name -> leaf tensor that requires gradients
    :param inputs: passed to ``output_fn``
    :param output_hessian: (N, C, ...), for its shape
    :return: outputs and calls; in the outputs' graph the parameters of these calls are cut off, the calls' probes stand
        for them, and every other parameter keeps its gradient
    :raises ValueError: if the outputs have another shape or do not depend on the parameters
    :raises FloatingPointError: for a NaN or infinity in the outputs
    """
    watchable = dict(leaves)
    while True:
        with _Watch(watchable) as watch:
            outputs = output_fn(leaves, inputs)
        _check_outputs(outputs, output_hessian)
        unfit = _unfit(outputs, watch.calls, watchable)
        if not unfit:
            return outputs, watch.calls
        watchable = {name: leaf for name, leaf in watchable.items() if name not in unfit}


def _unfit(outputs: th.Tensor, calls: list[Call], leaves: dict[str, th.Tensor]) -> set[str]:
    """Return the names of parameters whose calls do not go sample by sample, or that are used in another way too."""
    if not calls:
        return set()
    n_samples = len(outputs)
    generator = th.Generator().manual_seed(0)
    # Half of the samples speak: a call is per sample if the rows of the silent half hear nothing.
    silent = (th.randperm(n_samples, generator=generator) % 2 == 0).to(outputs.device)
    weights = th.rand(outputs.shape, generator=generator, dtype=th.float64).to(outputs) + 0.5
    used = {name for call in calls for name in call.names}
    values = [*(call.probe for call in calls), *(leaves[name] for name in used)]
    heard = th.autograd.grad(outputs, values, weights * ~silent[:, None], retain_graph=True, allow_unused=True)
    all_heard = th.autograd.grad(
        outputs, [leaves[name] for name in used], weights, retain_graph=True, allow_unused=True
    )
    unfit = {name for name, grad in zip(used, all_heard, strict=True) if grad is not None}
    for call, grad in zip(calls, heard, strict=False):
        rows_differ = call.probe.shape[0] != n_samples
        if rows_differ or (grad is not None and bool(grad[silent].count_nonzero())):
            unfit |= set(call.names)
    return unfit


def _check_outputs(outputs: th.Tensor, output_hessian: th.Tensor) -> None:
    if not isinstance(outputs, th.Tensor) or outputs.ndim != 2 or outputs.shape != output_hessian.shape[:2]:
        found = tuple(outputs.shape) if isinstance(outputs, th.Tensor) else type(outputs).__name__
        shape = tuple(output_hessian.shape)
        raise ValueError(f"`output_fn` must return (N, C) as in the shape of `output_hessian`, {shape}, got {found}")
    if not bool(th.isfinite(outputs.detach()).all()):
        raise FloatingPointError("NaN or infinity in the outputs")
    if not outputs.requires_grad:
        raise ValueError("`output_fn` must depend on `params`, got a result from which no gradient reaches them")
