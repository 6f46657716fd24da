"""Hessian-vector products and the Hessian's spectrum."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_plasticity.common.checks import check_count
from sb3_plasticity.curvature.lanczos import MatVec, Quadrature, quadrature
from sb3_plasticity.curvature.linear_map import LinearFn, record
from sb3_plasticity.curvature.parameters import FlatView, cast_floating, check_params
from sb3_plasticity.curvature.spectrum import Spectrum

LossFn = Callable[[dict[str, th.Tensor], Any], th.Tensor]

# Recording a Hessian-vector product costs about four of them.
_RECORD_FROM = 20


def hessian_spectrum(
    loss_fn: LossFn,
    params: dict[str, th.Tensor],
    batch: Any,
    *,
    steps: int = 100,
    draws: int = 1,
    seed: int = 0,
    dtype: th.dtype | None = None,
) -> Spectrum:
    """
    Compute the spectrum of a loss's Hessian by stochastic Lanczos quadrature with full reorthogonalisation.

    Ubaru, Chen and Saad 2017, *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*; Ghorbani, Krishnan and
    Xiao 2019. One draw costs ``steps`` Hessian-vector products, about a gradient each, and keeps ``steps`` vectors of
    the size of the parameters. The global random generators are not touched, nor are ``params`` and their ``.grad``.

    Like any quadrature it stands for a bulk of eigenvalues by a few nodes. The outer eigenvalues converge first, and
    are then counted one by one; what the others leave open is in the measures' intervals. Rows of zeros, such as those
    of dead units, cost no steps.

    The Hessian of one layer: pass that layer's parameters only and let ``loss_fn`` take the others from elsewhere
    (``torch.func.functional_call`` takes what is missing from the module).

    :param loss_fn: ``loss_fn(params, batch)`` -> scalar, a mean over samples, twice differentiable in ``params``
    :param params: name -> tensor. Copies of them are passed to ``loss_fn``
    :param batch: passed to ``loss_fn``
    :param steps: Lanczos steps, >= 1, that is nodes per draw. More than there are parameters are as many as there are
        parameters, and the spectrum is exact
    :param draws: independent Gaussian start vectors, >= 1; more of them make the intervals narrower
    :param seed: of the start vectors, draw by draw
    :param dtype: compute in this dtype: parameters and every floating tensor in ``batch`` (a nest of tuples, lists and
        dicts) are cast. By default in that of the parameters
    :return: ``draws`` quadratures; fewer than ``steps`` nodes where an invariant subspace was found
    :raises ValueError: for no parameters, ``steps`` or ``draws`` < 1, a loss that is not a scalar
    :raises FloatingPointError: for a NaN or infinity in the loss, its gradient or a Hessian-vector product
    """
    check_count("steps", steps, 1)
    check_count("draws", draws, 1)
    matvec, dim, reference = _hessian_operator(loss_fn, params, batch, dtype, n_products=steps * draws)
    generator = th.Generator().manual_seed(seed)
    results: list[Quadrature] = []
    while len(results) < draws and not (results and results[-1].exact):
        results.append(quadrature(matvec, dim, min(steps, dim), generator, reference))
    if results[-1].exact:
        # It holds all eigenvalues; so would every draw.
        results = results[-1:]
    # Draws that ended early, in an invariant subspace, are padded with nodes of weight 0.
    length = max(len(result.nodes) for result in results)
    missing = [length - len(result.nodes) for result in results]
    nodes = np.stack([np.pad(result.nodes, (0, n), "edge") for result, n in zip(results, missing, strict=True)])
    weights = np.stack([np.pad(result.weights, (0, n)) for result, n in zip(results, missing, strict=True)])
    residuals = np.stack([np.pad(result.residuals, (0, n)) for result, n in zip(results, missing, strict=True)])
    rounding = 10 * th.finfo(reference.dtype).eps * float(np.abs(nodes).max())
    return Spectrum(nodes, weights, dim, exact=results[-1].exact, rounding=rounding, residuals=residuals)


def hessian_vector_product(
    loss_fn: LossFn,
    params: dict[str, th.Tensor],
    batch: Any,
    vector: dict[str, th.Tensor],
    *,
    dtype: th.dtype | None = None,
) -> dict[str, th.Tensor]:
    """
    Multiply a vector by a loss's Hessian, by double backward (Pearlmutter 1994).

    :param loss_fn: see :func:`hessian_spectrum`
    :param params: name -> tensor
    :param batch: passed to ``loss_fn``
    :param vector: name -> tensor of the parameter's shape, for every parameter
    :param dtype: see :func:`hessian_spectrum`
    :return: name -> tensor of the parameter's shape
    :raises ValueError: for names or shapes that differ from those of ``params``
    :raises FloatingPointError: see :func:`hessian_spectrum`
    """
    shapes = {name: tuple(value.shape) for name, value in params.items()}
    found = {name: tuple(value.shape) for name, value in vector.items()}
    if found != shapes:
        raise ValueError(f"`vector` must have the names and shapes of `params`, {shapes}, got {found}")
    matvec, _, reference = _hessian_operator(loss_fn, params, batch, dtype, n_products=1)
    view = FlatView(params)
    return view.unflatten(matvec(view.flatten(vector).to(reference)))


def _hessian_operator(
    loss_fn: LossFn, params: dict[str, th.Tensor], batch: Any, dtype: th.dtype | None, n_products: int
) -> tuple[MatVec, int, th.Tensor]:
    """Return v -> Hv on flat vectors, its size, and an empty tensor of its dtype and device."""
    check_params(params)
    leaves = {name: cast_floating(value.detach(), dtype).clone().requires_grad_() for name, value in params.items()}
    view = FlatView(leaves)
    values = list(leaves.values())
    with th.enable_grad():
        loss = loss_fn(leaves, cast_floating(batch, dtype))
        if not isinstance(loss, th.Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, th.Tensor) else type(loss).__name__
            raise ValueError(f"`loss_fn` must return a scalar tensor, got {found}")
        _check_finite(loss, "the loss")
        if not loss.requires_grad:
            raise ValueError("`loss_fn` must depend on `params`, got a result from which no gradient reaches them")
        grads = th.autograd.grad(loss.reshape(()), values, create_graph=True, materialize_grads=True)
    for name, grad in zip(leaves, grads, strict=True):
        _check_finite(grad, f"the gradient of {name}")
    # A gradient that is constant (a linear loss, an unused parameter) has no graph: its rows of the Hessian are 0.
    curved = [index for index, grad in enumerate(grads) if grad.requires_grad]
    outputs = [grads[index] for index in curved]

    def double_backward(*vectors: th.Tensor) -> tuple[th.Tensor, ...]:
        # The graph of the gradient is kept: a product costs no new forward or first backward pass.
        return th.autograd.grad(outputs, values, vectors, retain_graph=True, materialize_grads=True)

    products: LinearFn = double_backward
    if outputs and n_products >= _RECORD_FROM:
        products = record(double_backward, [th.ones_like(output) for output in outputs])

    def matvec(vector: th.Tensor) -> th.Tensor:
        if not outputs:
            return th.zeros_like(vector)
        pieces = view.split(vector)
        return th.cat([product.reshape(-1) for product in products(*(pieces[index] for index in curved))])

    return matvec, view.size, values[0].detach().new_empty(0)


def _check_finite(value: th.Tensor, term: str) -> None:
    if not bool(th.isfinite(value.detach()).all()):
        raise FloatingPointError(f"NaN or infinity in {term}")
