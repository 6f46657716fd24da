"""Optimal transport between two sets of numbers, which takes a sort, at several times the speed of PyTorch's."""

import numpy as np
import torch as th

# An operator, so that a compiled program may call it.
_LIBRARY = th.library.Library("sb3_plasticity", "FRAGMENT")
_LIBRARY.define("transport(Tensor values, Tensor target) -> Tensor")


def transport(values: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    Give each number the one of the same rank in another set: where optimal transport in one dimension moves it.

    :param values: (n,), any dtype of floating point, n < 2^32
    :param target: (n,), in ascending order
    :return: (n,), ``target`` in the order of ``values``; of equal values, the earlier gets the smaller number
    """
    moved: th.Tensor = th.ops.sb3_plasticity.transport(values, target)
    return moved


def _transport(values: th.Tensor, target: th.Tensor) -> th.Tensor:
    if values.device.type == "cpu" and values.dtype == th.float32:
        # NumPy sorts integers with vector instructions, so a number and its place are packed into one: the bits of
        # a float, those of a negative one below its sign inverted, are integers in the same order.
        bits = (values + 0.0).numpy().view(np.int32)  # + 0.0 makes -0.0 and 0.0 equal
        keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | np.arange(len(bits))
        keys.sort()
        order = th.from_numpy(keys & 0xFFFFFFFF)
    else:
        order = values.argsort(stable=True)
    return th.empty_like(target).scatter_(0, order, target)


_LIBRARY.impl("transport", _transport, "CompositeExplicitAutograd")
th.library.register_fake("sb3_plasticity::transport", lambda values, target: th.empty_like(target), lib=_LIBRARY)
