"""Stochastic Lanczos quadrature of a symmetric matrix that is known by its products with vectors."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch as th

MatVec = Callable[[th.Tensor], th.Tensor]


@dataclass(frozen=True)
class Quadrature:
    """
    What one random start vector says of a symmetric matrix.

    :param nodes: (k,) Ritz values, and 0 for the matrix's zero rows
    :param weights: (k,) share of the eigenvalues at each node; they sum to 1
    :param residuals: (k,) norm of A y - theta y for a node's Ritz vector y. It is 0 for a node that is known to be
        weight * dim eigenvalues, and else positive
    :param exact: the nodes are all eigenvalues
    """

    nodes: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    exact: bool


def quadrature(matvec: MatVec, dim: int, steps: int, generator: th.Generator, reference: th.Tensor) -> Quadrature:
    """
    Run stochastic Lanczos quadrature from one random start vector.

    A start vector's Krylov space may close early (repeated or few eigenvalues). Its Ritz values are eigenvalues then,
    and a new start vector orthogonal to all before goes on in the complement, for which it is a draw of its own. So
    each closed block but the last counts once, 1 / dim an eigenvalue, and the last stands for all that remains.

    Rows of zeros (of a dead unit's weights) are seen in the first product, whose entries there are zero whatever the
    vector. They are as many eigenvalues 0, and the quadrature is that of the other rows.

    :param matvec: product of the matrix with a (dim,) vector
    :param dim: size of the matrix
    :param steps: products to compute, at most ``dim``
    :param generator: of the start vectors, on the CPU
    :param reference: a tensor of the wanted dtype and device
    :return: at most ``steps`` nodes, and one for the zero rows
    :raises FloatingPointError: for a NaN or infinity in a product
    """
    blocks, idle = lanczos(matvec, dim, steps, generator, reference)
    if len(blocks) > 1 and not blocks[-1].closed:
        # Cut short, it would stand for the complement with too few nodes; the closed block before has them all.
        blocks = blocks[:-1]
    nodes, weights, residuals = [], [], []
    seen = idle
    for block in blocks:
        values, vectors = np.linalg.eigh(np.diag(block.diagonal) + np.diag(block.off, 1) + np.diag(block.off, -1))
        nodes.append(values)
        if block is not blocks[-1] or seen + len(values) == dim:
            weights.append(np.full(len(values), 1.0 / dim))
            residuals.append(np.zeros(len(values)))
        else:
            weights.append(vectors[0] ** 2 * (dim - seen) / dim)
            residuals.append(np.maximum(block.residual * np.abs(vectors[-1]), np.finfo(np.float64).tiny))
        seen += len(values)
    if idle:
        nodes.append(np.zeros(1))
        weights.append(np.full(1, idle / dim))
        residuals.append(np.zeros(1))
    return Quadrature(np.concatenate(nodes), np.concatenate(weights), np.concatenate(residuals), exact=seen == dim)


@dataclass
class Block:
    """
    The tridiagonal matrix of one Krylov space.

    :param diagonal: (k,)
    :param off: (k - 1,)
    :param residual: norm of what the last product left outside of the space
    :param closed: the space is invariant
    """

    diagonal: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    residual: float = 0.0
    closed: bool = False


def lanczos(
    matvec: MatVec, dim: int, steps: int, generator: th.Generator, reference: th.Tensor
) -> tuple[list[Block], int]:
    """
    Run Lanczos with full reorthogonalisation from a Gaussian vector, anew whenever a Krylov space closes.

    :param matvec: product of a symmetric matrix with a (dim,) vector
    :param dim: size of the matrix
    :param steps: products to compute, at most ``dim``
    :param generator: of the start vectors, on the CPU
    :param reference: a tensor of the wanted dtype and device
    :return: the blocks, in order; and the number of zero rows, which no vector of theirs touches
    :raises FloatingPointError: for a NaN or infinity in a product
    """
    basis = reference.new_empty((min(steps, dim), dim))
    # A residual this small against the matrix is rounding: the space has closed.
    tolerance = 20 * th.finfo(reference.dtype).eps
    norm = 0.0
    blocks: list[Block] = []
    block: Block | None = None
    active: th.Tensor | None = None
    rank = dim
    for step in range(len(basis)):
        if step == rank:
            break
        if block is None:
            block = Block()
            blocks.append(block)
            basis[step] = _start_vector(basis[:step], generator, active)
        product = matvec(basis[step])
        if active is None:
            active = product != 0
            rank = int(active.count_nonzero())
            if rank == 0:
                return [], dim
            # The entries at zero rows have no part in the product: it is that of the others alone.
            basis[0] *= active
            length = th.linalg.vector_norm(basis[0])
            basis[0] /= length
            product = product / length
        diagonal = float(th.dot(basis[step], product))
        if not np.isfinite(diagonal):
            raise FloatingPointError(f"NaN or infinity in Hessian-vector product {step + 1}")
        block.diagonal.append(diagonal)
        product = product - diagonal * basis[step]
        if len(block.diagonal) > 1:
            product -= block.off[-1] * basis[step - 1]
        block.residual = _orthogonalise(product, basis[: step + 1])
        norm = max(norm, abs(diagonal) + block.residual + (block.off[-1] if block.off else 0.0))
        if block.residual <= tolerance * norm or step + 1 == rank:
            block.closed, block = True, None
        elif step + 1 < len(basis):
            block.off.append(block.residual)
            basis[step + 1] = product / block.residual
    return blocks, dim - rank


def _start_vector(basis: th.Tensor, generator: th.Generator, active: th.Tensor | None) -> th.Tensor:
    vector = th.randn(basis.shape[1], generator=generator, dtype=th.float64).to(basis)
    if active is not None:
        vector *= active
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
