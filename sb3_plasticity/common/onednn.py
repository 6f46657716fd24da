"""
Matrix products through oneDNN, which on some processors takes half the time of the BLAS that PyTorch calls.

``benchmarks/compiled.py`` says what that buys here. The kernel is a private operator of PyTorch: where a version has it
no longer, products run as ever.
"""

import torch as th

# From which number of multiplications on the call pays, outside compiled programs.
PAYS_FROM = 128**3


def is_available() -> bool:
    """
    Whether this PyTorch has oneDNN and the operator that calls it.

    :return: False where products must run as ever
    """
    return th.backends.mkldnn.is_available() and hasattr(th.ops.mkldnn, "_linear_pointwise")


def product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """
    Multiply by a transposed matrix, the faster way.

    :param left: (n, k)
    :param right: (m, k)
    :return: ``left @ right.T``
    """
    pays = left.shape[0] * left.shape[1] * right.shape[0] >= PAYS_FROM
    if pays and left.dtype == th.float32 and left.device.type == "cpu" and is_available():
        return linear(left, right, None)
    return left @ right.mT


def linear(left: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """
    Apply a linear layer through oneDNN, which must be available.

    :param left: (n, k), float32 on the CPU
    :param weight: (m, k)
    :param bias: (m,), or None
    :return: ``left @ weight.T + bias``
    """
    result: th.Tensor = th.ops.mkldnn._linear_pointwise(left, weight, bias, "none", [], "")
    return result
