"""Calling a module with other parameters than its own, or in another mode, and leaving it as it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn


def functional_call(module: nn.Module, tensors: Mapping[str, th.Tensor], args: tuple[Any, ...]) -> Any:
    """
    Call a module with some of its parameters and buffers replaced; the module itself stays as it is.

    ``torch.func.functional_call`` does so too, but leaves the replacements in a submodule that has several names, and
    SB3's shared features extractor has three. Here each tensor is put in place once for each place that holds it.

    :param module: called as ``module(*args)``
    :param tensors: parameters and buffers by name; of those with several names, the first that ``named_parameters`` (or
        ``named_buffers``) gives counts. Names that the module does not have are left out, as are others of a shared
        tensor
    :param args: arguments of the call
    :return: what the module returns
    """
    first_names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    replacements: dict[str, th.Tensor] = {}
    for prefix, submodule in module.named_modules():  # each submodule once
        for own in (submodule._parameters, submodule._buffers):
            for name, tensor in own.items():
                if tensor is not None and (first := first_names[id(tensor)]) in tensors:
                    replacements[f"{prefix}.{name}" if prefix else name] = tensors[first]
    return th.func.functional_call(module, replacements, args, tie_weights=False)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """
    Put a module and all in it into evaluation mode, and each back as it was.

    cuDNN's recurrent layers have gradients in training mode only, and no second ones: modules that hold recurrent
    layers run without cuDNN.

    :param module: such as a policy
    """
    modes = {part: part.training for part in module.modules()}
    cudnn, enabled = th.backends.cudnn, th.backends.cudnn.enabled
    module.eval()
    if any(isinstance(part, nn.RNNBase) for part in modes):
        cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = enabled
        for part, training in modes.items():
            part.training = training
