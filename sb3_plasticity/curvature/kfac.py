"""Spectrum of the Kronecker-factored generalised Gauss-Newton matrix: equation (1) of the L2-ER poster."""

from typing import Any

import numpy as np
import torch as th

from sb3_plasticity.curvature.ggn import eigenvalues, exact_spectrum, nonnegative_eigenvalues, working_dtype
from sb3_plasticity.curvature.jacobian import Layer, weighted_jacobian
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.curvature.watch import OutputFn


def kfac_spectrum(
    output_fn: OutputFn,
    params: dict[str, th.Tensor],
    inputs: Any,
    output_hessian: th.Tensor,
    *,
    dtype: th.dtype | None = None,
) -> Spectrum:
    r"""
    Compute the spectrum of the Kronecker-factored generalised Gauss-Newton matrix, a block per layer.

    .. math:: \mathrm{GGN}_l \approx E_n[a_n a_n^\top] \otimes E_n\Big[\sum_c g_{nc} g_{nc}^\top\Big]

    Equation (1) of the poster; Martens and Grosse 2015. :math:`a_n` is the layer's input and :math:`g_{nc}` the
    gradient, at the layer's result, of column c of :math:`R_n^\top f_n`, where :math:`R_n R_n^\top` is the output
    Hessian: a sum over outputs, no sampling. A block's eigenvalues are all products of an eigenvalue of either factor.
    A block equals that of the GGN for one sample, and where inputs and gradients are independent.

    * A bias is the weight of one more input that is always 1. (A bias whose weight is not among ``params`` is a layer
      with that input alone.)
    * A convolution sums the first factor over positions and averages the second one (Grosse and Martens 2016), and so
      does a linear layer over the axes between the first and the last, or a layer that is called several times.
    * A parameter used in any other way (a log standard deviation, a recurrent layer) has its own block of the GGN.

    :param output_fn: ``output_fn(params, inputs)`` -> (N, C)
    :param params: name -> tensor; one layer's parameters give that layer's spectrum, as for
        :func:`~sb3_plasticity.curvature.ggn.ggn_spectrum`
    :param inputs: passed to ``output_fn``
    :param output_hessian: (N, C, C) positive semi-definite, or its (N, C) diagonal
    :param dtype: compute in this dtype, by default that of the parameters; eigenvalues are computed in float64
    :return: an exact spectrum of the approximation; its zeros are a node at 0
    :raises ValueError: as for :func:`~sb3_plasticity.curvature.ggn.ggn_spectrum`
    :raises FloatingPointError: for a NaN or infinity in the outputs or their Hessian
    :raises ProblemTooLargeError: a ValueError whose ``max_samples`` says how many samples would fit
    """
    jacobian = weighted_jacobian(output_fn, params, inputs, output_hessian, dtype)
    blocks = [kronecker_eigenvalues(layer) for layer in jacobian.layers]
    blocks += [eigenvalues(jacobian, [], [name], sorted(jacobian.active[name])) for name in jacobian.others]
    return exact_spectrum(np.concatenate([np.zeros(0), *blocks]), jacobian.dim, working_dtype(params, dtype))


def kronecker_eigenvalues(layer: Layer) -> np.ndarray:
    """
    Compute the eigenvalues of a layer's Kronecker product.

    :param layer: with gradients that carry the 1 / N of the mean over samples
    :return: (d_in * d_out,), none negative
    """
    n_samples, positions, _ = layer.inputs.shape
    # The gradients are scaled by 1 / sqrt(N): their sum over samples is the mean.
    of_inputs = _second_moment_eigenvalues(layer.inputs.reshape(n_samples * positions, -1)) / n_samples
    of_grads = _second_moment_eigenvalues(layer.grads.reshape(-1, layer.grads.shape[-1])) / positions
    return np.outer(of_inputs, of_grads).ravel()


def _second_moment_eigenvalues(rows: th.Tensor) -> np.ndarray:
    """Return the eigenvalues (d,) of rows^T rows."""
    return nonnegative_eigenvalues(rows.T @ rows)
