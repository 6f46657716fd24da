"""
Matrix products through oneDNN, where that is the faster way.

oneDNN uses AVX-512 on every processor that has it; the BLAS that PyTorch calls does not on AMD's. Without AVX-512 the
BLAS is the faster one (``docs/benchmarks.md`` has the numbers). The kernel is a private operator of PyTorch: where a
version lacks it, PyTorch's own products are used.
"""

import torch as th

# From which number of multiplications on the call pays, outside compiled programs.
PAYS_FROM = 128**3


def is_faster() -> bool:
    """
    Tell whether large float32 products on the CPU had better go through oneDNN.

    :return: False where that is slower or not possible
    """
    return (
        th.backends.cpu.get_cpu_capability().startswith("AVX512")
        and th.backends.mkldnn.is_available()
        and hasattr(th.ops.mkldnn, "_linear_pointwise")
    )


def pays(left: th.Tensor, right: th.Tensor) -> bool:
    """
    Tell whether a product is worth the call of oneDNN.

    :param left: (n, k)
    :param right: (m, k)
    :return: True for large float32 matrices on the CPU of a machine on which oneDNN is faster
    """
    large = left.shape[0] * left.shape[1] * right.shape[0] >= PAYS_FROM
    return large and left.dtype == th.float32 and left.device.type == "cpu" and is_faster()


def product(left: th.Tensor, right: th.Tensor) -> th.Tensor:
    """
    Multiply by a transposed matrix, the faster way.

    :param left: (n, k)
    :param right: (m, k)
    :return: ``left @ right.T``
    """
    return linear(left, right, None) if pays(left, right) else left @ right.mT


def linear(left: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """
    Apply a linear layer through oneDNN, which must be available.

    :param left: (n, k), float32 on the CPU
    :param weight: (m, k)
    :param bias: (m,), or None
    :return: ``left @ weight.T + bias``
    """
    # oneDNN is very slow on a slice of a wider matrix.
    weight = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
    result: th.Tensor = th.ops.mkldnn._linear_pointwise(left, weight, bias, "none", [], "")
    return result
