"""
The units of layers, followed through the functions that are applied to them while a module runs.

Modules are what is followed here, because a layer's weight may be computed and a recurrent layer is many functions.
``curvature/watch.py`` is given functions of parameters instead, knows no modules, and recognises the parameters.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sb3_plasticity.common.layers import LAYER_TYPES, hooked_layers, weight_and_bias

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
class _Mark:
    """
    What is known of a tensor's entries.

    :param labels: of the tensor's shape: which unit each entry is, 0 for none of them; None if that is lost
    :param sources: the layers whose units are in it
    """

    labels: th.Tensor | None
    sources: frozenset[str]


class Follower(TorchFunctionMode):
    """
    Follow the units of layers through the functions that are applied to them.

    Beside every tensor that holds units goes one of the same shape that holds their labels. A function that moves
    entries is applied to the labels too; one that keeps the shape keeps the labels.

    :param layers: linear, convolutional and recurrent modules by name
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = layers
        # By layer: the first input it had, and its latest output.
        self.called: dict[str, th.Tensor] = {}
        self.outputs: dict[str, th.Tensor] = {}
        # By layer: its units after the last function that was applied to them, call by call, and that function's name.
        self.ends: dict[str, list[th.Tensor]] = {}
        self.activations: dict[str, str] = {}
        # By layer whose units have labels: the first unit's.
        self.first_label: dict[str, int] = {}
        # By layer: the layers that read its units, and in which columns (units, k).
        self.read: dict[str, dict[str, th.Tensor]] = {}
        # By layer: identities of the vectors that are applied to its units one by one.
        self.gains: dict[str, dict[int, None]] = {}
        # By layer whose units can no longer be told apart: why; and those that were read all the same.
        self.lost: dict[str, str] = {}
        self.lost_and_read: set[str] = set()
        self._n_labels = 0
        self._inside = 0
        # By identity of a tensor, which is kept alive.
        self._marks: dict[int, tuple[th.Tensor, _Mark]] = {}
        self._latest: dict[int, tuple[str, int]] = {}

    # -- layers --------------------------------------------------------------------------------------------------------

    def enter(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note what a layer is about to read."""
        tensor = inputs[0]
        self._inside += 1
        self.called.setdefault(name, tensor)
        self._latest.pop(id(tensor), None)
        if id(tensor) not in self._marks:
            return
        mark = self._marks[id(tensor)][1]
        labels = None if mark.labels is None else _columns(layer, mark.labels)
        readable = labels is not None and not isinstance(layer, _ConvTransposeNd) and getattr(layer, "groups", 1) == 1
        if not readable or weight_and_bias(layer)[0] is None:
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

    def leave(self, name: str, layer: nn.Module, _inputs: tuple[Any, ...], outputs: Any) -> None:
        """Label what a layer has put out."""
        output = outputs[0] if isinstance(outputs, tuple) else outputs
        self._inside -= 1
        self.outputs[name] = output
        ends = self.ends.setdefault(name, [])
        self._latest[id(output)] = (name, len(ends))
        ends.append(output)
        weight = weight_and_bias(layer)[0]
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
        """Continue with the result of a function that keeps the shape of one layer's outputs and takes nothing else."""
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
def following(module: nn.Module) -> Iterator[Follower]:
    """
    Follow what the layers of a module put out while it runs.

    :param module: the module that will be called inside the context
    :yields: what has been found, filled as the layers run
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LAYER_TYPES)}
    follower = Follower(layers)
    with hooked_layers(layers, before=follower.enter, after=follower.leave), follower:
        yield follower
