"""Equation (1): Kronecker factors by hand, and equality with the GGN where theory has it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from curvature_dense import (
    assert_same_spectrum,
    dense_ggn,
    dense_jacobian,
    eigenvalues,
    expand,
    mlp,
    named,
    psd,
    randn,
    randomise,
)
from torch import nn

from sb3_plasticity.curvature import ggn_spectrum, kfac_spectrum


def functional(net: nn.Module) -> Callable[..., Any]:
    return lambda params, inputs: th.func.functional_call(net, params, (inputs,))


def test_equation_one_by_hand() -> None:
    # Forward and backward through two layers, written out; the bias is the weight of an input that is always 1.
    net = mlp(3, 4, 2)
    inputs, hessian = randn(6, 3, seed=1), psd(6, 2)
    hidden = th.tanh(net.get_submodule("0")(inputs)).detach()
    grads_out = th.eye(2, dtype=th.float64).expand(6, 2, 2)  # (N, C, d_out)
    grads_hidden = th.einsum("oh,nh->noh", net.get_parameter("2.weight").detach(), 1 - hidden**2)
    values = []
    for a, g in ((inputs, grads_hidden), (hidden, grads_out)):
        a = th.cat([a, th.ones(6, 1, dtype=th.float64)], 1)
        first = th.einsum("ni,nj->ij", a, a) / 6
        # sum over columns of R^T g with R R^T = H is g^T H g, however H is split.
        second = th.einsum("nco,ncd,ndp->op", g, hessian, g) / 6
        values.append(eigenvalues(th.kron(second.contiguous(), first.contiguous())))
    expected = np.sort(np.concatenate(values))
    spectrum = kfac_spectrum(functional(net), named(net), inputs, hessian)
    assert spectrum.exact and spectrum.dim == 26
    np.testing.assert_allclose(expand(spectrum), expected, rtol=0, atol=1e-13 * expected[-1])


def test_one_sample_equals_the_ggn_layer_by_layer() -> None:
    net = mlp(4, 6, 5, 3)
    inputs, hessian = randn(1, 4, seed=1), psd(1, 3)
    blocks = []
    for index in (0, 2, 4):
        layer = {name: value for name, value in named(net).items() if name.startswith(f"{index}.")}
        matrix = dense_ggn(functional(net), layer, inputs, hessian)
        assert_same_spectrum(kfac_spectrum(functional(net), layer, inputs, hessian), matrix)
        blocks.append(eigenvalues(matrix))
    whole = kfac_spectrum(functional(net), named(net), inputs, hessian)
    expected = np.sort(np.concatenate(blocks))
    np.testing.assert_allclose(expand(whole), expected, atol=1e-12 * expected[-1])


def test_linear_layer_with_independent_factors_equals_the_ggn() -> None:
    # Every input meets every output Hessian once: the two are independent in this sample.
    net = mlp(4, 3)
    inputs, hessians = randn(5, 4, seed=1), psd(6, 3)
    inputs, hessians = inputs.repeat_interleave(6, 0), hessians.repeat(5, 1, 1)
    matrix = dense_ggn(functional(net), named(net), inputs, hessians)
    assert_same_spectrum(kfac_spectrum(functional(net), named(net), inputs, hessians), matrix)
    # And where they are not, it differs.
    shuffled = hessians * (1 + inputs[:, :1] ** 2)[:, :, None]
    difference = kfac_spectrum(functional(net), named(net), inputs, shuffled).largest - float(
        eigenvalues(dense_ggn(functional(net), named(net), inputs, shuffled))[-1]
    )
    assert abs(difference) > 1e-3


def test_regression_with_a_linear_layer_equals_the_ggn() -> None:
    # A constant output Hessian is independent of anything.
    net = mlp(5, 2)
    inputs, hessian = randn(20, 5, seed=1), th.full((20, 2), 2.0, dtype=th.float64)
    matrix = dense_ggn(functional(net), named(net), inputs, hessian)
    assert_same_spectrum(kfac_spectrum(functional(net), named(net), inputs, hessian), matrix)


def test_convolution_by_hand() -> None:
    # A 1 x 1 convolution is a linear layer at every position: first factor summed over them, second averaged.
    net = randomise(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()))
    inputs, hessian = randn(5, 3, 2, 2, seed=1), psd(5, 8)
    rows = th.cat([inputs, th.ones(5, 1, 2, 2, dtype=th.float64)], 1).flatten(2)  # (N, 4, T)
    first = th.einsum("nit,njt->ij", rows, rows) / 5
    blocks = hessian.reshape(5, 2, 4, 2, 4)  # outputs are (channel, position)
    second = th.einsum("notpt->op", blocks) / (5 * 4)
    expected = eigenvalues(th.kron(second.contiguous(), first.contiguous()))
    spectrum = kfac_spectrum(functional(net), named(net), inputs, hessian)
    np.testing.assert_allclose(expand(spectrum), expected, atol=1e-12 * expected[-1])


def test_other_parameters_have_their_exact_block() -> None:
    net = mlp(4, 5, 2)

    log_std = randn(2, seed=1)

    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        mean = functional(net)({k: v for k, v in params.items() if k != "log_std"}, x)
        return th.cat([mean, params.get("log_std", log_std).expand_as(mean)], 1)

    params = named(net) | {"log_std": log_std}
    inputs, hessian = randn(7, 4, seed=2), psd(7, 4)
    block = dense_ggn(output_fn, {"log_std": params["log_std"]}, inputs, hessian)
    with_it = kfac_spectrum(output_fn, params, inputs, hessian)
    without = kfac_spectrum(output_fn, {k: v for k, v in params.items() if k != "log_std"}, inputs, hessian)
    expected = np.sort(np.concatenate([expand(without), eigenvalues(block)]))
    np.testing.assert_allclose(expand(with_it), expected, atol=1e-12 * expected[-1])


def test_trace_of_one_output_factorises() -> None:
    # tr(A x G) = E|a|^2 E|g|^2, against a dense Jacobian.
    net = mlp(4, 6, 1, activation=nn.ReLU)
    inputs = randn(9, 4, seed=1)
    layer = {"0.bias": named(net)["0.bias"]}
    grads = dense_jacobian(functional(net), layer, inputs)
    hessian = th.ones(9, 1, dtype=th.float64)
    expected = grads.square().sum((1, 2)).mean() * (inputs.square().sum(1) + 1).mean()
    first = {name: value for name, value in named(net).items() if name.startswith("0.")}
    assert kfac_spectrum(functional(net), first, inputs, hessian).trace == pytest.approx(float(expected), rel=1e-12)
    # A bias without its weight has an input of 1 only: its block is exact.
    assert_same_spectrum(
        kfac_spectrum(functional(net), layer, inputs, hessian), dense_ggn(functional(net), layer, inputs, hessian)
    )


def test_float32_model_in_float64() -> None:
    net = mlp(5, 20, 3, dtype=th.float32)
    inputs, hessian = randn(12, 5, seed=1, dtype=th.float32), psd(12, 3).float()
    double = {name: value.double() for name, value in named(net).items()}
    expected = kfac_spectrum(functional(net), double, inputs.double(), hessian.double())
    spectrum = kfac_spectrum(functional(net), named(net), inputs, hessian, dtype=th.float64)
    np.testing.assert_allclose(expand(spectrum), expand(expected), atol=1e-12 * expected.largest)
    rough = kfac_spectrum(functional(net), named(net), inputs, hessian)
    np.testing.assert_allclose(expand(rough), expand(expected), atol=1e-5 * expected.largest)


def test_bad_input() -> None:
    net = mlp(3, 2)
    with pytest.raises(ValueError, match="the network has none"):
        kfac_spectrum(functional(net), {}, randn(5, 3), th.ones(5, 2))
    with pytest.raises(FloatingPointError, match="the outputs"):
        kfac_spectrum(functional(net), named(net), randn(5, 3) * float("nan"), th.ones(5, 2))


def test_ggn_and_kfac_agree_on_the_trace_of_a_single_layer_network_with_one_input() -> None:
    # One input everywhere: its second moment is constant, so the factors are independent.
    net = mlp(3, 4)
    inputs, hessian = randn(1, 3, seed=1).expand(8, 3), psd(8, 4)
    kfac = kfac_spectrum(functional(net), named(net), inputs, hessian)
    ggn = ggn_spectrum(functional(net), named(net), inputs, hessian)
    np.testing.assert_allclose(expand(kfac), expand(ggn), atol=1e-12 * ggn.largest)
