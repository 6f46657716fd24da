"""Exact spectrum of the empirical neural tangent kernel."""

from typing import Any

import torch as th

from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.parameters import cast_floating, check_params
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.curvature.watch import OutputFn


def entk_spectrum(
    output_fn: OutputFn, params: dict[str, th.Tensor], inputs: Any, *, dtype: th.dtype | None = None
) -> Spectrum:
    r"""
    Compute the exact spectrum of the empirical neural tangent kernel :math:`J J^\top / N` of N samples and C outputs.

    Jacot, Gabriel and Hongler 2018. It is the generalised Gauss-Newton matrix :math:`J^\top J / N` with a unit output
    Hessian, whose nonzero eigenvalues are the kernel's: at most N * C of them, of which a kernel of full rank has all.

    :param output_fn: ``output_fn(params, inputs)`` -> (N, C)
    :param params: name -> tensor; one layer's parameters give that layer's part of the kernel
    :param inputs: passed to ``output_fn``
    :param dtype: compute in this dtype, by default that of the parameters; eigenvalues are computed in float64
    :return: an exact spectrum of as many eigenvalues as there are parameters; its zeros are a node at 0
    :raises ValueError: for no parameters, or outputs that are not of shape (N, C)
    :raises FloatingPointError: for a NaN or infinity in the outputs
    :raises ProblemTooLargeError: a ValueError whose ``max_samples`` says how many samples would fit in some 500 MB
    """
    check_params(params)
    with th.no_grad():
        outputs = output_fn(
            {name: cast_floating(value.detach(), dtype) for name, value in params.items()}, cast_floating(inputs, dtype)
        )
    if not isinstance(outputs, th.Tensor) or outputs.ndim != 2:
        found = tuple(outputs.shape) if isinstance(outputs, th.Tensor) else type(outputs).__name__
        raise ValueError(f"`output_fn` must return a tensor of shape (N, C), got {found}")
    return ggn_spectrum(output_fn, params, inputs, th.ones_like(outputs), dtype=dtype)
