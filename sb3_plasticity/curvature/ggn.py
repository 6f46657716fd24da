"""Exact spectrum of the generalised Gauss-Newton matrix, from the Gram matrix of the loss-weighted Jacobian."""

from typing import Any

import numpy as np
import torch as th

from sb3_plasticity.curvature.jacobian import Jacobian, Layer, weighted_jacobian
from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.curvature.watch import OutputFn


def ggn_spectrum(
    output_fn: OutputFn,
    params: dict[str, th.Tensor],
    inputs: Any,
    output_hessian: th.Tensor,
    *,
    dtype: th.dtype | None = None,
) -> Spectrum:
    r"""
    Compute the exact spectrum of the generalised Gauss-Newton matrix, the samples' mean :math:`J_n^\top H_n J_n`.

    Schraudolph 2002; Dangel, Tatzel and Hennig 2022, *ViViT*. With :math:`H_n = R_n R_n^\top`, its N * C nonzero
    eigenvalues are those of the Gram matrix of the rows :math:`R_n^\top J_n / \sqrt N`. For linear layers an entry is a
    product of two dot products, of layer inputs and of output gradients, so no Jacobian is formed; convolutions go by
    their patches, a block of columns at a time. Parameters used in any other way (a log standard deviation, a recurrent
    layer) have theirs computed row by row. Outputs that share no parameter are treated apart. If ``output_hessian`` is
    the Fisher information of the outputs' distribution, this is the Fisher information matrix of the parameters.

    A layer through which one sample's outputs depend on another sample (batch normalisation in training mode, or what
    comes before a recurrent layer) is noticed and treated row by row as well.

    The GGN of one layer: pass that layer's parameters only and let ``output_fn`` take the others from elsewhere
    (``torch.func.functional_call`` takes what is missing from the module).

    :param output_fn: ``output_fn(params, inputs)`` -> (N, C)
    :param params: name -> tensor. Copies of them are passed to ``output_fn``
    :param inputs: passed to ``output_fn``
    :param output_hessian: (N, C, C) positive semi-definite, or its (N, C) diagonal: the loss's Hessian in the outputs,
        sample by sample
    :param dtype: compute in this dtype: parameters and every floating tensor in ``inputs`` are cast. By default in that
        of the parameters, with the eigenvalues in float64 in either case: below about 1e-6 of the largest, those of
        float32 are rounding
    :return: an exact spectrum; its zeros are a node at 0
    :raises ValueError: for no parameters, shapes that do not fit, or an ``output_hessian`` with a negative eigenvalue
    :raises FloatingPointError: for a NaN or infinity in the outputs or their Hessian
    :raises ProblemTooLargeError: a ValueError whose ``max_samples`` says how many samples would fit in some 500 MB
    """
    jacobian = weighted_jacobian(output_fn, params, inputs, output_hessian, dtype)
    values = [
        eigenvalues(jacobian, [layer for layer in jacobian.layers if layer.names[0] in names], others, columns)
        for names, others, columns in _components(jacobian)
    ]
    return exact_spectrum(np.concatenate([np.zeros(0), *values]), jacobian.dim, working_dtype(params, dtype))


def eigenvalues(jacobian: Jacobian, layers: list[Layer], others: list[str], columns: list[int]) -> np.ndarray:
    """
    Compute the nonzero eigenvalues of a part of the GGN: that of some parameters and outputs.

    :param jacobian: of the whole network
    :param layers: the part's layers
    :param others: the part's other parameters
    :param columns: the part's outputs
    :return: (min(N * len(columns), number of parameters),), ascending, none negative
    """
    rows = jacobian.n_samples * len(columns)
    size = sum(layer.size for layer in layers) + sum(jacobian.others[name] for name in others)
    if size <= rows:
        # Fewer parameters than rows: the matrix itself is the smaller one.
        pieces = [piece for layer in layers for piece in layer.dense(columns)]
        matrix = th.cat([*pieces, *([jacobian.explicit(others, columns)] if others else [])], 1)
        gram = matrix.T @ matrix
    else:
        gram = _gram(jacobian, layers, others, columns)
    return nonnegative_eigenvalues(gram)


def nonnegative_eigenvalues(matrix: th.Tensor) -> np.ndarray:
    """
    Compute a positive semi-definite matrix's eigenvalues in float64, those within its rounding of zero set to zero.

    :param matrix: (d, d)
    :return: (d,), ascending
    """
    # float32 LAPACK returns NaN for some Gram matrices of ReLU features.
    values = th.linalg.eigvalsh(matrix.to(th.float64)).numpy(force=True)
    return np.where(values > len(values) * np.finfo(np.float64).eps * values[-1], values, 0.0)


def exact_spectrum(values: np.ndarray, dim: int, dtype: th.dtype) -> Spectrum:
    """
    Wrap nonnegative eigenvalues.

    :param values: (k,), any order
    :param dim: number of parameters
    :param dtype: in which they were computed
    :return: the spectrum, nodes ascending, zeros as one node
    """
    values = np.sort(values[values > 0])
    rounding = 10 * th.finfo(dtype).eps * float(values[-1]) if values.size else 0.0
    return Spectrum.from_eigenvalues(values, dim, rounding=rounding)


def working_dtype(params: dict[str, th.Tensor], dtype: th.dtype | None) -> th.dtype:
    """
    Choose the dtype of a computation.

    :param params: name -> tensor
    :param dtype: as the user gave it
    :return: ``dtype``, or that of the parameters
    """
    return next(iter(params.values())).dtype if dtype is None else dtype


def _gram(jacobian: Jacobian, layers: list[Layer], others: list[str], columns: list[int]) -> th.Tensor:
    """Return the Gram matrix of the rows of some outputs, summed over layers."""
    n_samples, n_columns = jacobian.n_samples, len(columns)
    rows = n_samples * n_columns
    gram: th.Tensor | None = None
    for layer in layers:
        if layer.inputs.shape[1] == 1:
            grads = layer.grads[:, columns, 0].reshape(rows, -1)
            part = grads @ grads.T
            inputs = layer.inputs[:, 0]
            part.view(n_samples, n_columns, n_samples, n_columns).mul_((inputs @ inputs.T)[:, None, :, None])
            gram = part if gram is None else gram.add_(part)
        else:
            for piece in layer.dense(columns):
                gram = piece @ piece.T if gram is None else gram.addmm_(piece, piece.T)
    for name in others:
        piece = jacobian.explicit([name], columns)
        gram = piece @ piece.T if gram is None else gram.addmm_(piece, piece.T)
    assert gram is not None
    return gram


def _components(jacobian: Jacobian) -> list[tuple[set[str], list[str], list[int]]]:
    """
    Parts of the GGN that share neither parameters nor outputs: (first names of layers, others, outputs).

    A Gaussian policy's log standard deviations and means, or a policy and a value network, need no common Gram matrix.
    """
    parts: list[tuple[set[str], set[int]]] = []
    for name, columns in jacobian.active.items():
        if not columns:
            continue
        touching = [part for part in parts if part[1] & columns]
        parts = [part for part in parts if not part[1] & columns]
        parts.append(
            (
                {name}.union(*(names for names, _ in touching)),
                set(columns).union(*(found for _, found in touching)),
            )
        )
    return [(names, [name for name in jacobian.others if name in names], sorted(columns)) for names, columns in parts]
