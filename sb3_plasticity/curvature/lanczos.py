"""Stochastic Lanczos quadrature of a symmetric matrix that is known by its products with vectors."""

from collections.abc import Callable

import numpy as np
import torch as th

MatVec = Callable[[th.Tensor], th.Tensor]


def quadrature(
    matvec: MatVec, dim: int, steps: int, generator: th.Generator, reference: th.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """
    Nodes and weights of a symmetric matrix's spectral density, from one random start vector.

    A start vector's Krylov space may close early (repeated or few eigenvalues). Its Ritz values are eigenvalues then,
    and a new start vector orthogonal to all before goes on in the complement, for which it is a draw of its own. So
    each closed block but the last counts once, 1 / dim an eigenvalue, and the last stands for all that remains.

    :param matvec: product of the matrix with a (dim,) vector
    :param dim: size of the matrix
    :param steps: products to compute, at most ``dim``
    :param generator: of the start vectors, on the CPU
    :param reference: a tensor of the wanted dtype and device
    :return: nodes (k,) and weights (k,), which sum to 1; k <= ``steps``
    :raises FloatingPointError: for a NaN or infinity in a product
    """
    blocks = lanczos(matvec, dim, steps, generator, reference)
    if len(blocks) > 1 and not blocks[-1].closed:
        # Cut short, it would stand for the complement with too few nodes; the closed block before has them all.
        blocks = blocks[:-1]
    nodes, weights, seen = [], [], 0
    for block in blocks:
        values, vectors = np.linalg.eigh(np.diag(block.diagonal) + np.diag(block.off, 1) + np.diag(block.off, -1))
        whole = block is not blocks[-1] or seen + len(values) == dim
        share = np.full(len(values), 1.0 / dim) if whole else vectors[0] ** 2 * (dim - seen) / dim
        nodes.append(values)
        weights.append(share)
        seen += len(values)
    return np.concatenate(nodes), np.concatenate(weights)


class Block:
    """
    The tridiagonal matrix of one Krylov space.

    :param diagonal: (k,)
    :param off: (k - 1,)
    :param closed: the space is invariant
    """

    def __init__(self) -> None:
        self.diagonal: list[float] = []
        self.off: list[float] = []
        self.closed = False


def lanczos(matvec: MatVec, dim: int, steps: int, generator: th.Generator, reference: th.Tensor) -> list[Block]:
    """
    Lanczos with full reorthogonalisation from a Gaussian vector, started anew whenever a Krylov space closes.

    :param matvec: product of a symmetric matrix with a (dim,) vector
    :param dim: size of the matrix
    :param steps: products to compute, at most ``dim``
    :param generator: of the start vectors, on the CPU
    :param reference: a tensor of the wanted dtype and device
    :return: the blocks, in order; their lengths sum to ``steps``
    :raises FloatingPointError: for a NaN or infinity in a product
    """
    basis = reference.new_empty((steps, dim))
    # A residual this small against the matrix is rounding: the space has closed.
    tolerance = 20 * th.finfo(reference.dtype).eps
    norm = 0.0
    blocks: list[Block] = []
    block: Block | None = None
    for step in range(steps):
        if block is None:
            block = Block()
            blocks.append(block)
            basis[step] = _start_vector(basis[:step], generator)
        product = matvec(basis[step])
        diagonal = float(th.dot(basis[step], product))
        if not np.isfinite(diagonal):
            raise FloatingPointError(f"NaN or infinity in Hessian-vector product {step + 1}")
        block.diagonal.append(diagonal)
        product = product - diagonal * basis[step]
        if len(block.diagonal) > 1:
            product -= block.off[-1] * basis[step - 1]
        residual = _orthogonalise(product, basis[: step + 1])
        norm = max(norm, abs(diagonal) + residual + (block.off[-1] if block.off else 0.0))
        if residual <= tolerance * norm or step + 1 == dim:
            block.closed, block = True, None
        elif step + 1 < steps:
            block.off.append(residual)
            basis[step + 1] = product / residual
    return blocks


def _start_vector(basis: th.Tensor, generator: th.Generator) -> th.Tensor:
    vector = th.randn(basis.shape[1], generator=generator, dtype=th.float64).to(basis)
    return vector / _orthogonalise(vector, basis)


def _orthogonalise(vector: th.Tensor, basis: th.Tensor) -> float:
    """Remove from a vector, in place, its components along orthonormal rows; return the norm of what is left."""
    before = float(th.linalg.vector_norm(vector))
    if not len(basis):
        return before
    # Twice is enough (Giraud, Langou and Rozloznik 2005), and once when little was removed (Daniel et al. 1976).
    for _ in range(2):
        vector -= th.mv(basis.T, th.mv(basis, vector))
        after = float(th.linalg.vector_norm(vector))
        if after > 0.7 * before:
            break
        before = after
    return after
