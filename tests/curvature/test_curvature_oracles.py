"""The same model, loss and data in two other libraries (the ``test`` extra)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from curvature_dense import expand, mlp, named, randn
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.curvature import ggn_spectrum, hessian_spectrum, hessian_vector_product, kfac_spectrum

INPUTS, TARGETS = randn(30, 6, seed=1), randn(30, 3, seed=2)
LABELS = th.arange(30) % 3
SIZES = (6, 10, 8, 3)


def functional(net: nn.Module) -> Callable[..., Any]:
    return lambda params, inputs: th.func.functional_call(net, params, (inputs,))


def mse(net: nn.Module) -> Callable[..., Any]:
    return lambda params, batch: F.mse_loss(functional(net)(params, batch[0]), batch[1])


def dense(operator: Any, size: int) -> np.ndarray:
    result: np.ndarray = (operator @ th.eye(size, dtype=th.float64)).detach().numpy()
    return result


def test_hessian_and_ggn_against_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    net = mlp(*SIZES)
    params, data = named(net), [(INPUTS, TARGETS)]
    arguments = net, nn.MSELoss(), list(net.parameters()), data
    size = sum(value.numel() for value in params.values())
    theirs = np.linalg.eigvalsh(dense(curvlinops.HessianLinearOperator(*arguments), size))
    ours = hessian_spectrum(mse(net), params, data[0], steps=size)
    np.testing.assert_allclose(expand(ours), theirs, atol=1e-12 * theirs[-1])
    theirs = np.linalg.eigvalsh(dense(curvlinops.GGNLinearOperator(*arguments), size))
    weights = th.full((30, 3), 2 / 3, dtype=th.float64)
    ours = ggn_spectrum(functional(net), params, INPUTS, weights)
    np.testing.assert_allclose(expand(ours), theirs, atol=1e-12 * theirs[-1])


def test_cross_entropy_ggn_against_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    net = mlp(*SIZES, activation=nn.ReLU)
    params = named(net)
    size = sum(value.numel() for value in params.values())
    operator = curvlinops.GGNLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(INPUTS, LABELS)])
    theirs = np.linalg.eigvalsh(dense(operator, size))
    probs = F.softmax(net(INPUTS), 1).detach()
    hessian = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    ours = ggn_spectrum(functional(net), params, INPUTS, hessian)
    np.testing.assert_allclose(expand(ours), theirs, atol=1e-12 * theirs[-1])


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_kfac_against_curvlinops(kind: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    if kind == "linear":
        net, inputs = mlp(*SIZES), INPUTS
    else:
        net = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
        inputs = INPUTS.reshape(30, 1, 2, 3)
    params = named(net)
    size = sum(value.numel() for value in params.values())
    # Their type-2 Fisher is our sum over the columns of the output Hessian's root.
    operator = curvlinops.KFACLinearOperator(
        net,
        nn.MSELoss(),
        list(net.parameters()),
        [(inputs, TARGETS)],
        fisher_type="type-2",
        kfac_approx="expand",
        separate_weight_and_bias=False,
    )
    theirs = np.linalg.eigvalsh(dense(operator, size))
    ours = kfac_spectrum(functional(net), params, inputs, th.full((30, 3), 2 / 3, dtype=th.float64))
    np.testing.assert_allclose(expand(ours), theirs, atol=1e-10 * theirs[-1])


def test_lanczos_against_hessian_eigenthings() -> None:
    library = pytest.importorskip("hessian_eigenthings")
    net = mlp(*SIZES)
    params, batch = named(net), (INPUTS, TARGETS)
    operator = library.HessianOperator(net, [batch], lambda model, data: F.mse_loss(model(data[0]), data[1]))
    vector = {name: randn(*value.shape, seed=3) for name, value in params.items()}
    product = hessian_vector_product(mse(net), params, batch, vector)
    flat = th.cat([value.reshape(-1) for value in vector.values()])
    th.testing.assert_close(th.cat([value.reshape(-1) for value in product.values()]), operator.matvec(flat))
    # From the same start vector: the same nodes and weights.
    start = th.randn(operator.size, generator=th.Generator().manual_seed(7), dtype=th.float64)
    theirs = library.lanczos_tridiagonal(operator, start, 25, reorthogonalize=True)
    matrix = th.diag(theirs.alphas) + th.diag(theirs.betas, 1) + th.diag(theirs.betas, -1)
    nodes, vectors = np.linalg.eigh(matrix.numpy())
    ours = hessian_spectrum(mse(net), params, batch, steps=25, seed=7)
    np.testing.assert_allclose(ours.nodes[0], nodes, atol=1e-9 * nodes[-1])
    np.testing.assert_allclose(ours.weights[0], vectors[0] ** 2, atol=1e-8)


def test_ggn_against_hessian_eigenthings() -> None:
    library = pytest.importorskip("hessian_eigenthings")
    net = mlp(*SIZES)
    operator = library.GGNOperator(
        net,
        [(INPUTS, TARGETS)],
        lambda model, data: model(data[0]),
        lambda outputs, data: F.mse_loss(outputs, data[1]),
    )
    matrix = th.stack([operator.matvec(row) for row in th.eye(operator.size, dtype=th.float64)]).detach()
    theirs = np.linalg.eigvalsh(matrix.numpy())
    ours = ggn_spectrum(functional(net), named(net), INPUTS, th.full((30, 3), 2 / 3, dtype=th.float64))
    np.testing.assert_allclose(expand(ours), theirs, atol=1e-12 * theirs[-1])
