"""
The units of a network: which layer makes them, what is applied to them, and which layers read them.

Plain torch. One forward pass of any module is watched; nothing is assumed about how the module is written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch as th
from torch import nn

from sb3_plasticity.common.following import following
from sb3_plasticity.common.layers import as_feature_matrix, weight_and_bias


@dataclass(frozen=True)
class Consumer:
    """
    A layer that reads units.

    :param layer: its name in the module that was traced
    :param weight: name of its weight, (outputs, columns, ...)
    :param bias: name of its bias, or None
    :param columns: (units, k), the columns of the weight, along axis 1, that read each unit: one of a linear layer,
        height * width consecutive ones behind ``Conv -> Flatten``, two behind a concatenated activation
    """

    layer: str
    weight: str
    bias: str | None
    columns: th.Tensor


@dataclass(frozen=True)
class HiddenLayer:
    """
    The units of a linear or convolutional layer whose outputs other layers read.

    :param name: of the layer, in the module that was traced
    :param weight: name of its weight, (units, ...): one row, or output channel, a unit
    :param bias: name of its bias, (units,), or None
    :param gains: names of vectors that are applied to the units one by one: the gain and offset of a normalisation
    :param n_units: number of units
    :param activation: name of the last function applied to the units before they are read, such as ``"relu"``
    :param consumers: all layers that read the units
    """

    name: str
    weight: str
    bias: str | None
    gains: tuple[str, ...]
    n_units: int
    activation: str
    consumers: tuple[Consumer, ...]

    @property
    def incoming(self) -> tuple[str, ...]:
        """The names of all parameters that have one row a unit: weight, bias and gains."""
        return (self.weight, *((self.bias,) if self.bias else ()), *self.gains)


@dataclass
class UnitGraph:
    """
    What one forward pass of a module showed. Filled when :func:`trace_units` ends.

    :param called: names of the linear, convolutional and recurrent layers that ran, in order
    :param features: those of them that read hidden activations, that is inputs which depend on parameters; an
        activation that several layers read counts once, with the first
    :param hidden: linear and convolutional layers whose units are read by other layers, and by nothing else
    :param outputs: linear and convolutional layers that no layer reads
    :param unclear: hidden layers whose units cannot be told apart where they are read, and why
    """

    called: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    hidden: dict[str, HiddenLayer] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    unclear: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Units:
    """
    The units of a layer after its nonlinearity.

    :param features: (rows, units), graph attached; every position of a convolution is a row
    :param activation: name of the last function applied to the layer's outputs, such as ``"tanh"`` or ``"relu"``; empty
        for none
    """

    features: th.Tensor
    activation: str


@contextmanager
def record_units(module: nn.Module) -> Iterator[dict[str, Units]]:
    """
    Record the units of linear, convolutional and recurrent layers, after their nonlinearity, while ``module`` runs.

    A layer's outputs are followed through the functions that keep their shape, be they modules or plain calls
    (normalisation, nonlinearity, dropout), until another layer reads them. Gradients must be enabled.

    :param module: the module that will be called inside the context
    :yields: a dictionary of layer name to units, filled when the context ends; the rows of a layer that was called
        several times are joined
    """
    units: dict[str, Units] = {}
    with following(module) as follow:
        yield units
    for name, ends in follow.ends.items():
        features = th.cat([as_feature_matrix(follow.layers[name], end) for end in ends])
        units[name] = Units(features, follow.activations.get(name, ""))


def read_layers(module: nn.Module, function: Callable[[], Any]) -> set[str]:
    """
    Find the layers whose outputs another layer reads, in whatever way: automatic differentiation tells.

    :param module: which ``function`` calls; in evaluation mode
    :param function: runs the module, or a part of it
    :return: names of linear, convolutional and recurrent layers
    """
    with th.enable_grad(), following(module) as follow:
        function()
        inputs = [tensor.sum() for tensor in follow.called.values() if tensor.requires_grad]
        outputs = {name: tensor for name, tensor in follow.outputs.items() if tensor.requires_grad}
        if not inputs or not outputs:
            return set()
        reached = th.autograd.grad(th.stack(inputs).sum(), list(outputs.values()), allow_unused=True)
    return {name for name, gradient in zip(outputs, reached, strict=True) if gradient is not None}


@contextmanager
def trace_units(module: nn.Module) -> Iterator[UnitGraph]:
    """
    Find which layers make units and which read them, while ``module`` runs forward on any input.

    Every unit is followed to the columns of the weights that read it, through nonlinearities, normalisation, pooling,
    flattening, concatenation, and functions that double the units. Gradients must be enabled, and the module should be
    in evaluation mode. A layer is *unclear*, and not among the hidden ones, if something other than a linear,
    convolutional or recurrent layer reads its units, or if they are added to others (residual connections).

    :param module: the module that will be called inside the context, at least once
    :yields: the graph, filled when the context ends
    """
    graph = UnitGraph()
    with following(module) as follow:
        yield graph
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    graph.called = tuple(follow.called)
    first_to_read = {id(tensor): name for name, tensor in reversed(follow.called.items()) if tensor.requires_grad}
    graph.features = tuple(name for name in follow.called if name in first_to_read.values())
    graph.unclear = {
        name: reason for name, reason in follow.lost.items() if follow.read[name] or name in follow.lost_and_read
    }
    graph.outputs = tuple(
        name for name in follow.first_label if not follow.read[name] and name not in follow.lost_and_read
    )
    for name in follow.called:
        if name in graph.unclear or not follow.read.get(name):
            continue
        layer = follow.layers[name]
        consumers = []
        for reader, columns in follow.read[name].items():
            weight, bias = weight_and_bias(follow.layers[reader])
            consumers.append(Consumer(reader, names[id(weight)], names.get(id(bias)), columns))
        weight, bias = weight_and_bias(layer)
        assert weight is not None
        graph.hidden[name] = HiddenLayer(
            name=name,
            weight=names[id(weight)],
            bias=names.get(id(bias)),
            gains=tuple(names[key] for key in follow.gains[name] if key in names),
            n_units=weight.shape[0],
            activation=follow.activations.get(name, ""),
            consumers=tuple(consumers),
        )
