"""Dense float64 curvature matrices, formed entry by entry: what the fast code is checked against."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_plasticity.curvature.spectrum import Spectrum


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, seed: int = 0, dtype: th.dtype = th.float64) -> nn.Module:
    layers: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), activation()]
    return randomise(nn.Sequential(*layers[:-1]), seed, dtype)


def randomise(net: nn.Module, seed: int = 0, dtype: th.dtype = th.float64) -> nn.Module:
    """Weights from an own generator, so that no test depends on the global one."""
    rng = generator(seed)
    net.to(dtype)
    with th.no_grad():
        for value in net.parameters():
            scale = value.shape[1:].numel() ** -0.5 if value.ndim > 1 else 0.3
            value.copy_(th.randn(value.shape, generator=rng, dtype=th.float64) * scale)
    return net


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: th.dtype = th.float64) -> th.Tensor:
    return th.randn(shape, generator=generator(seed), dtype=dtype)


def named(net: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def psd(n_samples: int, n_outputs: int, seed: int = 0) -> th.Tensor:
    root = randn(n_samples, n_outputs, n_outputs, seed=seed + 100)
    return root @ root.mT


def _leaves(params: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def _flat_grad(output: th.Tensor, leaves: dict[str, th.Tensor], **kwargs: Any) -> th.Tensor:
    grads = th.autograd.grad(output, list(leaves.values()), retain_graph=True, allow_unused=True, **kwargs)
    pairs = zip(grads, leaves.values(), strict=True)
    return th.cat([(th.zeros_like(leaf) if grad is None else grad).reshape(-1) for grad, leaf in pairs])


def dense_hessian(
    loss_fn: Callable[..., Any], params: dict[str, th.Tensor], batch: th.Tensor | tuple[th.Tensor, th.Tensor]
) -> th.Tensor:
    leaves = _leaves(params)
    grad = _flat_grad(loss_fn(leaves, batch), leaves, create_graph=True)
    rows = [_flat_grad(entry, leaves) if entry.requires_grad else th.zeros_like(grad) for entry in grad]
    return th.stack(rows).detach()


def dense_jacobian(output_fn: Callable[..., Any], params: dict[str, th.Tensor], inputs: th.Tensor) -> th.Tensor:
    """(N, C, P)."""
    leaves = _leaves(params)
    outputs = output_fn(leaves, inputs)
    return th.stack([th.stack([_flat_grad(entry, leaves) for entry in row]) for row in outputs]).detach()


def dense_ggn(
    output_fn: Callable[..., Any], params: dict[str, th.Tensor], inputs: th.Tensor, output_hessian: th.Tensor
) -> th.Tensor:
    jacobian = dense_jacobian(output_fn, params, inputs)
    hessian = output_hessian if output_hessian.ndim == 3 else th.diag_embed(output_hessian)
    return th.einsum("nci,ncd,ndj->ij", jacobian, hessian, jacobian) / len(jacobian)


def eigenvalues(matrix: th.Tensor) -> np.ndarray:
    return np.linalg.eigvalsh(matrix.double().numpy())


def expand(spectrum: Spectrum) -> np.ndarray:
    """All dim eigenvalues of an exact spectrum, ascending."""
    counts = np.rint(spectrum.weights[0] * spectrum.dim).astype(int)
    assert counts.sum() == spectrum.dim
    return np.sort(np.repeat(spectrum.nodes[0], counts))


def assert_same_spectrum(spectrum: Spectrum, matrix: th.Tensor, tolerance: float = 1e-12) -> None:
    """Every eigenvalue, within a tolerance relative to the largest."""
    expected = eigenvalues(matrix)
    assert spectrum.exact and spectrum.dim == len(expected)
    np.testing.assert_allclose(expand(spectrum), expected, rtol=0, atol=tolerance * np.abs(expected).max())
