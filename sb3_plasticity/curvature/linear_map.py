"""
A linear function of tensors, recorded once and replayed faster.

A Hessian-vector product by double backward is linear in the vector: every call runs the same operations, and in every
matrix product one factor is always the same. The recording leaves out what does not depend on the vector, and sends
large matrix products through oneDNN with the constant factor laid out once. Where oneDNN is not faster, nothing is
recorded: automatic differentiation does the rest as quickly. PyTorch's ``make_fx`` is not used because it takes several
times as long to record the same operations, in a small network longer than all the products that follow.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_plasticity.common import onednn

LinearFn = Callable[..., Sequence[th.Tensor]]

_aten = th.ops.aten
_ZEROS = {_aten.zeros_like.default, _aten.new_zeros.default, _aten.zeros.default}


def record(function: LinearFn, example: list[th.Tensor]) -> LinearFn:
    """
    Record a linear function.

    :param function: of tensors, linear in all of them together, the same operations at every call, no randomness
    :param example: arguments to record it with
    :return: a function of the same arguments with the same results up to rounding; ``function`` itself where a
        recording would not be faster or does not work out
    """
    if not onednn.is_faster() or any(value.dtype != th.float32 or value.device.type != "cpu" for value in example):
        return function
    try:
        tape = _Tape(example)
        with tape:
            results = function(*example)
        replay = tape.finish(results)
        return replay if tape.uses_onednn and _agree(replay, function, example) else function
    except Exception:
        # A recording rests on many details of PyTorch; the function itself always works.
        return function


class _Tape(TorchDispatchMode):
    """Builds a graph of those operations that depend on the arguments, as they run."""

    def __init__(self, arguments: list[th.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants: dict[str, th.Tensor] = {}
        self.zeros: set[int] = set()
        # Tensors are told apart by id: they must stay alive until the end.
        self.alive: list[Any] = list(arguments)
        self.nodes: dict[int, fx.Node] = {}
        for index, argument in enumerate(arguments):
            self.nodes[id(argument)] = self.graph.placeholder(f"argument_{index}")
        self.constant_nodes: dict[int, fx.Node] = {}
        self.uses_onednn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.alive.append(result)
        if func in _ZEROS:
            self.zeros.add(id(result))
        elif func._schema.is_mutable:
            raise NotImplementedError(f"{func} writes into its arguments")
        elif any(id(leaf) in self.nodes for leaf in pytree.tree_leaves((args, kwargs))):
            self._note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        node = self._simplified(func, args, kwargs, result)
        if node is None:
            node = self.graph.call_function(func, *pytree.tree_map(self._node, (args, kwargs)))
        if isinstance(result, th.Tensor):
            self.nodes[id(result)] = node
        else:
            for index, part in enumerate(result):
                self.nodes[id(part)] = self.graph.call_function(operator.getitem, (node, index))

    def _simplified(self, func: Any, args: Any, kwargs: Any, result: Any) -> fx.Node | None:
        """Return a cheaper way to the same result, if there is one."""
        if func is _aten.t.default:
            node = self.nodes[id(args[0])]
            return node.args[0] if node.target is _aten.t.default else None  # type: ignore[return-value]
        if func is _aten.add.Tensor and not kwargs:
            for zero, other in (args, args[::-1]):
                if id(zero) in self.zeros and other.shape == result.shape and other.dtype == result.dtype:
                    return self.nodes[id(other)]
        if func is _aten.mm.default and onednn.pays(args[0], args[1].t()):
            return self._onednn(*args)
        return None

    def _onednn(self, left: th.Tensor, right: th.Tensor) -> fx.Node | None:
        """Return left @ right with the constant one of the two first, where that is possible without transposing."""
        first, second = self.nodes.get(id(left)), self.nodes.get(id(right))
        if first is None and second is not None:
            return self._linear(self._constant(left.contiguous()), self._transposed(second))
        if second is None and first is not None:
            if first.target is _aten.t.default:
                # y^T b = (b^T y)^T
                product = self._linear(self._constant(right.t().contiguous()), first)
                return self.graph.call_function(_aten.t.default, (product,))
            first = self.graph.call_function(_aten.contiguous.default, (first,))
            return self._linear(first, self._constant(right.t().contiguous()))
        return None

    def _linear(self, first: fx.Node, second: fx.Node) -> fx.Node:
        """Return first, which is contiguous, times the transpose of second."""
        self.uses_onednn = True
        return self.graph.call_function(onednn.linear, (first, second, None))

    def _transposed(self, node: fx.Node) -> fx.Node:
        if node.target is _aten.t.default:
            return node.args[0]  # type: ignore[return-value]
        return self.graph.call_function(_aten.t.default, (node,))

    def _node(self, leaf: Any) -> Any:
        if not isinstance(leaf, th.Tensor):
            return leaf
        return self.nodes[id(leaf)] if id(leaf) in self.nodes else self._constant(leaf)

    def _constant(self, value: th.Tensor) -> fx.Node:
        if id(value) not in self.constant_nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value
            self.alive.append(value)
            self.constant_nodes[id(value)] = self.graph.get_attr(name)
        return self.constant_nodes[id(value)]

    def finish(self, results: Sequence[th.Tensor]) -> LinearFn:
        """Compile the graph into a Python function."""
        self.graph.output(tuple(self._node(result) for result in results))
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(self.constants, self.graph)
        return th.no_grad()(module.forward)


def _agree(replay: LinearFn, function: LinearFn, example: list[th.Tensor]) -> bool:
    """Compare on other arguments than the recorded ones: a recording that depends on its example would differ."""
    generator = th.Generator().manual_seed(0)
    other = [th.randn(value.shape, generator=generator, dtype=th.float64).to(value) for value in example]
    found, expected = replay(*other), function(*other)
    scale = max(float(value.abs().max()) for value in expected)
    tolerance = 1e3 * th.finfo(example[0].dtype).eps * scale
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= tolerance for a, b in zip(found, expected, strict=True)
    )
