"""
From a function of tensors to a program, by the shortest way PyTorch has.

Everything here that PyTorch does not document as stable is imported when it is used: a version that moved or removed it
gives a :class:`CompilationError`, and updates run uncompiled. What each piece buys is a line of
``benchmarks/compiled.py``; that of the paper's setting, a minibatch of 16 and one layer of 256 units, is small enough
for the call of a program to cost as much as its arithmetic.

* ``make_fx`` with inductor's ``compile``, instead of ``torch.compile``: no guards on some forty inputs. The key of our
  cache of programs holds what they would check. ``torch.compile`` whose guards are all skipped, as it documents, still
  pays for its own entry.
* ``cpp_wrapper``: kernels are called from C++.
* oneDNN for the large matrix products, where it is faster (see ``common/onednn.py``).
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sb3_plasticity.common import onednn

Program = Callable[..., tuple[th.Tensor, ...]]

OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    # The key of the program cache has made these checks.
    "size_asserts": False,
    "alignment_asserts": False,
    "scalar_asserts": False,
    # A stack is computed once and read, not recomputed inside the loops over the parameters that use it.
    "max_pointwise_cat_inputs": 0,
}
# From which number of multiplications on oneDNN's call pays in a compiled program.
_ONEDNN_FROM = 64 * 128 * 128

# Inductor accepts mkldnn's own operator with constant weights only; to one that it does not know it just passes on.
_LIBRARY = th.library.Library("sb3_plasticity", "FRAGMENT")
_LIBRARY.define("product(Tensor left, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("product", onednn.linear, "CPU")
th.library.register_fake(
    "sb3_plasticity::product", lambda left, weight, bias: left.new_empty(left.shape[0], weight.shape[0]), lib=_LIBRARY
)


class CompilationError(RuntimeError):
    """An update cannot be compiled; the message says why."""


def no_compiler() -> str | None:
    """
    Say what this machine or this PyTorch lacks.

    :return: the reason why nothing can be compiled, or None
    """
    try:
        from torch._inductor import compile as _compile  # noqa: F401
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
        from torch.fx.experimental.proxy_tensor import make_fx  # noqa: F401
    except ImportError as error:
        return f"PyTorch {th.__version__} lacks what it needs ({error})"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++ or clang++) on this machine"
    return None


def compile_program(policy: ActorCriticPolicy, function: Program, inputs: Sequence[th.Tensor]) -> Program:
    """
    Trace a function on copies of its inputs and compile the trace.

    :param policy: that the function calls
    :param function: of tensors alone; it may write into them
    :param inputs: of the shapes and dtypes that the program is for
    :return: the program
    :raises CompilationError: for whatever stands in the way
    """
    copies: list[Any] = [tensor.clone() for tensor in inputs]
    try:
        from torch._inductor import compile as inductor_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        with tracing(policy), quiet(), th.no_grad():
            trace = make_fx(function, tracing_mode="fake")(*copies)
            program: Any = inductor_compile(use_onednn(trace), copies, options=OPTIONS)
            return program  # type: ignore[no-any-return]
    except CompilationError:
        raise
    except Exception as error:  # an exotic policy, a compiler that does not work, a PyTorch that changed
        first_line = (str(error).splitlines() or [""])[0]
        raise CompilationError(f"{type(error).__name__}: {first_line}") from error


@contextmanager
def tracing(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Let a policy be traced: nothing looks at values, and no distribution that was traced stays behind.

    :param policy: the actor-critic
    """
    distribution = th.distributions.Distribution
    # Without a public way to ask, what torch documents as the default.
    validate, state = getattr(distribution, "_validate_args", __debug__), dict(vars(policy.action_dist))
    distribution.set_default_validate_args(False)
    try:
        with _OneHot():
            yield
    finally:
        distribution.set_default_validate_args(validate)
        vars(policy.action_dist).clear()
        vars(policy.action_dist).update(state)


class _OneHot(TorchFunctionMode):
    """``one_hot``, with which SB3 reads discrete observations, for values that are in range; torch's looks at them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.one_hot:
            return func(*args, **kwargs)

        def one_hot(tensor: th.Tensor, num_classes: int = -1) -> th.Tensor:
            return (tensor[..., None] == th.arange(num_classes)).long()

        return one_hot(*args, **kwargs)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what is said of PyTorch's own code, and that eigendecompositions are called by a longer way."""

    def keep_back(record: logging.LogRecord) -> bool:
        return "c-shim" not in record.getMessage()

    logger = logging.getLogger("torch._inductor.ir")
    logger.addFilter(keep_back)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            yield
    finally:
        logger.removeFilter(keep_back)


def use_onednn(trace: fx.GraphModule) -> fx.GraphModule:
    """
    Send the large float32 matrix products of a traced update through oneDNN.

    :param trace: as ``make_fx`` gives it
    :return: the same module, changed in place
    """
    if not onednn.is_faster():
        return trace
    aten = th.ops.aten
    for node in list(trace.graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default):
            continue
        *bias, left, right = node.args
        left_like, right_like = left.meta["tensor_meta"], right.meta["tensor_meta"]
        if left_like.dtype != th.float32 or math.prod((*left_like.shape, right_like.shape[1])) < _ONEDNN_FROM:
            continue
        with trace.graph.inserting_before(node):
            weight = trace.graph.call_function(aten.t.default, (right,))
            arguments = (left, weight, bias[0] if bias else None)
            product = trace.graph.call_function(th.ops.sb3_plasticity.product.default, arguments)
        node.replace_all_uses_with(product)
        trace.graph.erase_node(node)
    trace.recompile()
    return trace
