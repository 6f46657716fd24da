"""
The units of a network: which layer makes them, what is applied to them, and which layers read them.

Plain torch. One forward pass of any module is watched; nothing is assumed about how the module is written.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

# The modules whose outputs are units: what a mitigation or an instrument calls a layer.
LAYER_TYPES = (nn.Linear, _ConvNd, nn.RNNBase)
# The modules of torch that act differently in training: their results depend on chance, or on the rest of the batch.
DROPOUT_TYPES = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
BATCH_NORM_TYPES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
# Functions that move, repeat or drop entries and change none.
_MOVING = frozenset(
    "adaptive_max_pool1d adaptive_max_pool2d broadcast_to cat chunk clone concat concatenate contiguous expand "
    "expand_as flatten flip getitem __getitem__ hstack index_select max_pool1d max_pool2d movedim moveaxis mT narrow "
    "permute ravel repeat repeat_interleave reshape roll select split squeeze stack swapaxes t T tile transpose "
    "unbind unflatten unsqueeze view view_as vstack __get__".split()
) | frozenset("avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d".split())
# Functions whose result has the shape of their argument, and whose entries come from several entries of it.
_MIXING = frozenset("__matmul__ __rmatmul__ bmm cumprod cumsum einsum matmul mm mv sort bilinear".split())
# Functions that take a tensor's shape and not its entries. (With gradients, their results show it.)
_CREATING = frozenset(
    "empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like randn_like "
    "zeros_like".split()
)


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
        """Names of all parameters that have one row a unit: weight, bias and gains."""
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


def as_feature_matrix(layer: nn.Module, activations: th.Tensor) -> th.Tensor:
    """
    Activations as a matrix with one feature a column.

    :param layer: the layer that reads them
    :param activations: (N, d), (N, ..., d), or (N, C, H, W) for a convolution
    :return: (rows, features); every position of a convolution's input is a row: (N * H * W, C)
    """
    if isinstance(layer, _ConvNd):
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])


@contextmanager
def record_inputs(module: nn.Module, names: Iterable[str] | None = None) -> Iterator[dict[str, th.Tensor]]:
    """
    Record the inputs of linear and convolutional layers while ``module`` runs.

    :param module: the module that will be called inside the context
    :param names: names of the layers to record; all linear and convolutional ones if None
    :yields: a dictionary, filled as the layers are called, of layer name to its input, graph attached
    """
    layers = dict(module.named_modules())
    if names is None:
        names = [name for name, layer in layers.items() if isinstance(layer, (nn.Linear, _ConvNd))]
    recorded: dict[str, th.Tensor] = {}
    handles = []
    for name in names:

        def record(_layer: nn.Module, inputs: tuple[th.Tensor, ...], name: str = name) -> None:
            recorded[name] = inputs[0]

        handles.append(layers[name].register_forward_pre_hook(record))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


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
    with _following(module) as follow:
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
    with th.enable_grad(), _following(module) as follow:
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
    with _following(module) as follow:
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
            weight, bias = _weight_and_bias(follow.layers[reader])
            consumers.append(Consumer(reader, names[id(weight)], names.get(id(bias)), columns))
        weight, bias = _weight_and_bias(layer)
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


def _weight_and_bias(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return the weight that reads a layer's input and the bias added to it; None for what is no parameter."""
    suffix = "_ih_l0" if isinstance(layer, nn.RNNBase) else ""
    own = layer._parameters
    return own.get("weight" + suffix), own.get("bias" + suffix)


@dataclass(frozen=True)
class _Mark:
    """
    What is known of a tensor's entries.

    :param labels: of the tensor's shape: which unit each entry is, 0 for none of them; None if that is lost
    :param sources: the layers whose units are in it
    """

    labels: th.Tensor | None
    sources: frozenset[str]


class _Follow(TorchFunctionMode):
    """
    Follow the units of layers through the functions that are applied to them.

    Beside every tensor that holds units goes one of the same shape that holds their labels. A function that moves
    entries is applied to the labels too; one that keeps the shape keeps the labels.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        self.called: dict[str, th.Tensor] = {}  # each with the first input it had
        self.outputs: dict[str, th.Tensor] = {}
        self.ends: dict[str, list[th.Tensor]] = {}
        self.activations: dict[str, str] = {}
        self.first_label: dict[str, int] = {}
        self.read: dict[str, dict[str, th.Tensor]] = {}
        self.gains: dict[str, dict[int, None]] = {}
        self.lost: dict[str, str] = {}
        self.lost_and_read: set[str] = set()
        self._n_labels = 0
        self._inside = 0
        # By identity of a tensor, which is kept alive.
        self._marks: dict[int, tuple[th.Tensor, _Mark]] = {}
        self._latest: dict[int, tuple[str, int]] = {}

    # -- layers --------------------------------------------------------------------------------------------------------

    def enter(self, name: str, tensor: th.Tensor) -> None:
        self._inside += 1
        self.called.setdefault(name, tensor)
        self._latest.pop(id(tensor), None)
        if id(tensor) not in self._marks:
            return
        mark = self._marks[id(tensor)][1]
        layer = self.layers[name]
        labels = None if mark.labels is None else _columns(layer, mark.labels)
        readable = labels is not None and not isinstance(layer, _ConvTransposeNd) and getattr(layer, "groups", 1) == 1
        if not readable or _weight_and_bias(layer)[0] is None:
            self._lose(mark.sources, f"what {name} reads of them cannot be told apart")
            self.lost_and_read |= mark.sources
            return
        assert labels is not None
        for source in mark.sources:
            first = self.first_label[source]
            n_units = self.layers[source].weight.shape[0]  # type: ignore[index]
            owned = labels - first
            columns = [(owned == unit).nonzero().flatten() for unit in range(n_units)]
            width = columns[0].numel()
            if width == 0 or any(column.numel() != width for column in columns):
                self._lose([source], f"{name} reads some of them more often than others")
                self.lost_and_read.add(source)
            elif name in self.read[source] and not th.equal(self.read[source][name], th.stack(columns)):
                self._lose([source], f"{name} reads them twice, in different places")
                self.lost_and_read.add(source)
            else:
                self.read[source][name] = th.stack(columns)

    def leave(self, name: str, output: th.Tensor) -> None:
        self._inside -= 1
        self.outputs[name] = output
        ends = self.ends.setdefault(name, [])
        self._latest[id(output)] = (name, len(ends))
        ends.append(output)
        layer = self.layers[name]
        weight = _weight_and_bias(layer)[0]
        known = isinstance(layer, (nn.Linear, _ConvNd)) and not isinstance(layer, _ConvTransposeNd)
        if not known or weight is None or not weight.requires_grad:
            return
        n_units = weight.shape[0]
        if name not in self.first_label:
            self.first_label[name] = self._n_labels + 1
            self._n_labels += n_units
            self.read[name], self.gains[name] = {}, {}
        labels = th.arange(n_units, dtype=th.float32, device=output.device) + self.first_label[name]
        if isinstance(layer, _ConvNd):
            labels = labels.reshape(-1, *[1] * (weight.ndim - 2))
        self._marks[id(output)] = (output, _Mark(labels.expand(output.shape), frozenset([name])))

    # -- functions -----------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, th.Tensor)]
        held = [self._marks[id(leaf)][1] for leaf in leaves if id(leaf) in self._marks]
        latest = [id(leaf) for leaf in leaves if id(leaf) in self._latest]
        if not held and not latest:
            return func(*args, **kwargs)
        before = [leaf.grad_fn for leaf in leaves]  # of an in-place function's argument it changes
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        outputs = [leaf for leaf in pytree.tree_leaves(result) if _is_float(leaf)]
        if th.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves if self._is_marked(leaf)):
            if not any(o.grad_fn is not None and not any(o.grad_fn is b for b in before) for o in outputs):
                return result
            if latest:
                self._move_ends(name, result, leaves, before, latest)
        elif name in _CREATING:
            return result
        if held and outputs:
            self._move_marks(name, func, (args, kwargs), leaves, held, outputs)
        return result

    def _is_marked(self, leaf: th.Tensor) -> bool:
        return id(leaf) in self._marks or id(leaf) in self._latest

    def _move_ends(self, name: str, result: Any, leaves: Any, before: Any, latest: list[int]) -> None:
        """Go on with the result of a function that keeps the shape of one layer's outputs and takes nothing else."""
        place = [id(leaf) for leaf in leaves].index(latest[0])
        source, origin = leaves[place], before[place]
        if not isinstance(result, th.Tensor) or result.shape != source.shape or name in _MOVING | _MIXING:
            return
        others = [leaf for leaf in leaves if leaf is not source]
        alone = all(not other.requires_grad or (other.is_leaf and other.ndim <= 1) for other in others)
        follows = result is source or any(node is origin for node, _ in result.grad_fn.next_functions)  # type: ignore[union-attr]
        if alone and follows:
            layer, call = self._latest.pop(id(source))
            self.ends[layer][call] = result
            self._latest[id(result)] = (layer, call)
            self.activations[layer] = name

    def _move_marks(self, name: str, func: Any, arguments: Any, leaves: Any, held: Any, outputs: Any) -> None:
        sources = frozenset[str]().union(*(mark.sources for mark in held))
        moved: list[th.Tensor | None] = [None] * len(outputs)
        if all(mark.labels is not None for mark in held):
            if name in _MOVING:
                moved = self._moved_labels(func, arguments, outputs)
            elif name not in _MIXING and all(output.shape == held[0].labels.shape for output in outputs):
                moved = self._kept_labels(leaves, held, sources, outputs)
        for output, labels in zip(outputs, moved, strict=True):
            if labels is None:
                if output.requires_grad:
                    self._lose(sources, f"{name} reads them")
                self._marks[id(output)] = (output, _Mark(None, sources))
            else:
                present = frozenset(source for source in sources if self._is_in(source, labels))
                self._marks[id(output)] = (output, _Mark(labels, present))

    def _kept_labels(self, leaves: Any, held: Any, sources: Any, outputs: Any) -> list[th.Tensor | None]:
        """Return the labels of a result whose entries depend on the same units as those of the argument."""
        labels = held[0].labels
        for leaf in leaves:
            if id(leaf) in self._marks:
                if not th.equal(self._marks[id(leaf)][1].labels, labels):  # type: ignore[arg-type]
                    return [None] * len(outputs)
            elif leaf.requires_grad:
                if not leaf.is_leaf or leaf.ndim > 1:
                    return [None] * len(outputs)
                for source in sources:
                    if leaf.shape == self.layers[source].weight.shape[:1]:  # type: ignore[index]
                        self.gains[source][id(leaf)] = None
        return [labels] * len(outputs)

    def _moved_labels(self, func: Any, arguments: Any, outputs: Any) -> list[th.Tensor | None]:
        """Return the labels of what a function moved: it is applied to the labels themselves."""

        def label(leaf: Any) -> Any:
            if id(leaf) in self._marks:
                return self._marks[id(leaf)][1].labels
            return th.zeros(leaf.shape, device=leaf.device) if _is_float(leaf) else leaf

        def moved(entries: Any) -> list[th.Tensor]:
            args, kwargs = entries
            return [leaf for leaf in pytree.tree_leaves(func(*args, **kwargs)) if _is_float(leaf)]

        # Means and maxima over several units map random codes of labels to no unit's code, or not to the same unit's.
        codes = th.rand(self._n_labels + 1, generator=th.Generator().manual_seed(0)).add(0.5).to(outputs[0].device)
        codes[0] = 0
        with th.no_grad():
            labels = pytree.tree_map(label, arguments)
            found = moved(labels)
            coded = [
                moved(
                    pytree.tree_map(
                        lambda leaf, sign=sign: sign * codes[leaf.long()] if _is_float(leaf) else leaf, labels
                    )
                )
                for sign in (1, -1)
            ]
        result: list[th.Tensor | None] = []
        for place, output in enumerate(outputs):
            one = found[place].round()
            ok = one.shape == output.shape and bool(((one >= 0) & (one <= self._n_labels)).all())
            expected = codes[one.long()] if ok else one
            ok = ok and all(
                th.allclose(sign * expected, each[place], rtol=1e-5, atol=1e-6)
                for sign, each in zip((1, -1), coded, strict=True)
            )
            result.append(one if ok else None)
        return result

    def _is_in(self, source: str, labels: th.Tensor) -> bool:
        first = self.first_label[source]
        return bool(((labels >= first) & (labels < first + self.layers[source].weight.shape[0])).any())  # type: ignore[index]

    def _lose(self, sources: Iterable[str], reason: str) -> None:
        for source in sources:
            self.lost.setdefault(source, reason)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, th.Tensor) and leaf.is_floating_point()


def _columns(layer: nn.Module, labels: th.Tensor) -> th.Tensor | None:
    """Return the label of each column that a layer reads, or None if one column reads several units."""
    axis = 1 if isinstance(layer, _ConvNd) else -1
    rows = labels.movedim(axis, -1).reshape(-1, labels.shape[axis])
    return rows[0] if bool((rows == rows[0]).all()) else None


@contextmanager
def _following(module: nn.Module) -> Iterator[_Follow]:
    """Follow what the layers of a module put out while it runs."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LAYER_TYPES)}
    follow, handles = _Follow(layers), []
    for name, layer in layers.items():

        def read(_layer: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            follow.enter(name, inputs[0])

        def produced(_layer: nn.Module, _inputs: tuple[Any, ...], outputs: Any, name: str = name) -> None:
            follow.leave(name, outputs[0] if isinstance(outputs, tuple) else outputs)

        handles += [layer.register_forward_pre_hook(read), layer.register_forward_hook(produced)]
    try:
        with follow:
            yield follow
    finally:
        for handle in handles:
            handle.remove()
