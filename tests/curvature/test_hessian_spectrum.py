"""Stochastic Lanczos against dense Hessians, known spectra and random matrix theory."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from curvature_dense import assert_same_spectrum, dense_hessian, eigenvalues, expand, mlp, named, randn
from torch import nn

from sb3_plasticity.curvature import hessian_spectrum, hessian_vector_product
from sb3_plasticity.curvature.spectrum import Spectrum

NET = mlp(5, 7, 6, 3)
BATCH = (randn(20, 5, seed=1), randn(20, 3, seed=2))


def mse(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
    result: th.Tensor = (th.func.functional_call(NET, params, (batch[0],)) - batch[1]).square().mean()
    return result


def quadratic(params: dict[str, th.Tensor], matrix: th.Tensor) -> th.Tensor:
    return 0.5 * params["p"] @ matrix @ params["p"]


def spectrum_of(matrix: th.Tensor, **kwargs: Any) -> Spectrum:
    return hessian_spectrum(quadratic, {"p": randn(len(matrix), seed=9, dtype=matrix.dtype)}, matrix, **kwargs)


def test_as_many_steps_as_parameters_give_the_dense_spectrum() -> None:
    matrix = dense_hessian(mse, named(NET), BATCH)
    assert_same_spectrum(hessian_spectrum(mse, named(NET), BATCH, steps=len(matrix)), matrix)
    # More steps than parameters are as many; every draw would be the same.
    spectrum = hessian_spectrum(mse, named(NET), BATCH, steps=1000, draws=3)
    assert spectrum.nodes.shape == (1, len(matrix))
    assert spectrum.trace.standard_error == 0
    assert_same_spectrum(spectrum, matrix)


def test_convolutional_network() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return nn.functional.cross_entropy(th.func.functional_call(net, params, (batch[0],)), batch[1])

    batch = (randn(6, 2, 4, 4), th.tensor([0, 1, 1, 0, 1, 0]))
    params = {name: randn(*value.shape, seed=3) * 0.5 for name, value in net.named_parameters()}
    spectrum = hessian_spectrum(loss_fn, params, batch, steps=200)
    assert_same_spectrum(spectrum, dense_hessian(loss_fn, params, batch))


@pytest.mark.parametrize("dtype, tolerance", [(th.float64, 1e-12), (None, 1e-5)])
def test_float32_model_in_float64(dtype: th.dtype | None, tolerance: float) -> None:
    params = {name: value.float() for name, value in named(NET).items()}
    batch = tuple(part.float() for part in BATCH)
    seen: set[th.dtype] = set()

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        seen.update(value.dtype for value in (*params.values(), *batch))
        return mse(params, batch)

    spectrum = hessian_spectrum(loss_fn, params, batch, steps=500, dtype=dtype)
    assert seen == {dtype or th.float32}
    exact = dense_hessian(mse, {k: v.double() for k, v in params.items()}, (batch[0].double(), batch[1].double()))
    assert_same_spectrum(spectrum, exact, tolerance)
    assert all(value.dtype == th.float32 and value.grad is None for value in params.values())


def test_few_steps_find_the_ends_and_moments() -> None:
    matrix = dense_hessian(mse, named(NET), BATCH)
    values = eigenvalues(matrix)
    spectrum = hessian_spectrum(mse, named(NET), BATCH, steps=30, draws=1, seed=3)
    assert spectrum.nodes.shape == (1, 30) and not spectrum.exact
    assert spectrum.largest == pytest.approx(values[-1], rel=1e-8)
    assert spectrum.smallest == pytest.approx(values[0], rel=1e-6)
    # Gauss quadrature of k nodes is exact for moments below 2k of the start vector: check against the vector itself.
    start = th.randn(len(values), generator=th.Generator().manual_seed(3), dtype=th.float64)
    start /= start.norm()
    for power in range(1, 8):
        moment = start @ th.linalg.matrix_power(matrix, power) @ start
        assert (spectrum.weights * spectrum.nodes**power).sum() == pytest.approx(float(moment), rel=1e-10)


def test_draws_estimate_the_trace_with_its_error() -> None:
    values = eigenvalues(dense_hessian(mse, named(NET), BATCH))
    spectrum = hessian_spectrum(mse, named(NET), BATCH, steps=20, draws=50)
    assert spectrum.nodes.shape == (50, 20)
    assert 0 < spectrum.trace.standard_error < 0.2 * values.sum()
    assert abs(spectrum.trace - values.sum()) < 4 * spectrum.trace.standard_error
    true_rank = (np.abs(values) > 0.01).mean()
    rank = spectrum.epsilon_rank(0.01)
    assert abs(rank - true_rank) < 4 * rank.standard_error + 0.03


def test_one_layer() -> None:
    params = named(NET)
    layer = {name: params[name] for name in ("2.weight", "2.bias")}
    matrix = dense_hessian(mse, layer, BATCH)
    assert len(matrix) == 48
    assert_same_spectrum(hessian_spectrum(mse, layer, BATCH, steps=48), matrix)


def test_quadratic_with_known_eigenvalues() -> None:
    values = np.concatenate([np.linspace(-3, -1, 5), np.linspace(0.5, 20, 35)])
    basis, _ = th.linalg.qr(randn(40, 40))
    matrix = basis @ th.diag(th.tensor(values)) @ basis.T
    assert_same_spectrum(spectrum_of((matrix + matrix.T) / 2, steps=40), th.diag(th.tensor(values)))


def test_breakdown_in_an_invariant_subspace_is_exact() -> None:
    # Low rank: after 4 steps the Krylov space is closed, the complement holds only zeros.
    factor = randn(60, 3)
    matrix = factor @ factor.T
    spectrum = spectrum_of(matrix, steps=30, draws=2)
    nonzero = np.sort(eigenvalues(matrix))[-3:]
    for nodes, weights in zip(spectrum.nodes, spectrum.weights, strict=True):
        large = np.abs(nodes) > 1e-9
        np.testing.assert_allclose(np.sort(nodes[large]), nonzero, rtol=1e-12)
        np.testing.assert_allclose(weights[large], 1 / 60)
    assert spectrum.epsilon_rank(1e-9, normalized=False) == pytest.approx(3, abs=1e-9)
    assert spectrum.trace == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert spectrum.trace.standard_error < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 49, 50])
def test_repeated_eigenvalues(steps: int) -> None:
    # Two eigenvalues, 25 times each: every second step closes a space. No step count may invent a third one.
    matrix = th.diag(th.tensor([1.0, -1.0] * 25, dtype=th.float64))
    spectrum = spectrum_of(matrix, steps=steps, draws=4)
    if steps > 1:
        np.testing.assert_allclose(np.abs(spectrum.nodes), 1, atol=1e-12)
        assert abs(spectrum.negative_fraction - 0.5) < {49: 0.01, 50: 1e-12}.get(steps, 0.2)
    assert np.isfinite(spectrum.weights).all()


def test_multiples_of_the_identity_and_zero() -> None:
    spectrum = spectrum_of(3 * th.eye(12, dtype=th.float64), steps=5)
    np.testing.assert_allclose(spectrum.nodes, 3, rtol=1e-14)
    zero = spectrum_of(th.zeros(12, 12, dtype=th.float64), steps=5)
    assert not zero.nodes.any() and float(zero.effective_rank()) == 1 and float(zero.negative_fraction) == 0


def test_epsilon_rank_of_a_known_spectrum_below_any_grid() -> None:
    # 3 at 1e3, 40 at 1e-4, 57 at 1e-7: the step of a 10,000-point grid over the range is 0.1.
    values = th.tensor([1e3] * 3 + [1e-4] * 40 + [1e-7] * 57, dtype=th.float64)
    exact = spectrum_of(th.diag(values), steps=100)
    for eps, count in {1e-8: 100, 1e-6: 43, 1e-5: 43, 1e-3: 3, 1.0: 3}.items():
        assert exact.epsilon_rank(eps, normalized=False) == pytest.approx(count, abs=1e-9), eps
    # By quadrature: 1e-4 and 1e-7 differ by less than float64's rounding of 1e3 allows within one Krylov space to be
    # told apart exactly, but not by less than epsilon.
    spectrum = spectrum_of(th.diag(values), steps=40, draws=40)
    rank = spectrum.epsilon_rank(1e-6, normalized=False)
    assert abs(rank - 43) < 4 * rank.standard_error and rank.standard_error < 2
    top = spectrum.epsilon_rank(1e-3, normalized=False)
    assert top == pytest.approx(3, abs=1e-6)


def smoothed(
    density: Callable[..., Any], support: tuple[float, float], grid: np.ndarray, bandwidth: float
) -> np.ndarray:
    points = np.linspace(*support, 4001)
    kernel = np.exp(-0.5 * ((grid[:, None] - points) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    result: np.ndarray = np.trapezoid(kernel * density(points), points, axis=1)
    return result


def test_wishart_follows_marchenko_pastur() -> None:
    n_samples, dim = 1600, 800
    data = randn(n_samples, dim, seed=5)
    params = {"p": randn(dim, seed=6)}
    spectrum = hessian_spectrum(
        lambda p, x: 0.5 * (x @ p["p"]).square().sum() / n_samples, params, data, steps=60, draws=20
    )
    ratio = dim / n_samples
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    grid = np.linspace(-0.5, 4, 200)
    expected = smoothed(
        lambda x: np.sqrt(np.maximum((high - x) * (x - low), 0)) / (2 * np.pi * ratio * x), (low, high), grid, 0.15
    )
    np.testing.assert_allclose(spectrum.density(grid, 0.15), expected, atol=0.03)
    assert spectrum.largest == pytest.approx(high, rel=0.02)
    assert spectrum.smallest == pytest.approx(low, abs=0.02)
    # P(lambda > 1) by integration of the density.
    points = np.linspace(1, high, 20001)
    share = np.trapezoid(np.sqrt(np.maximum((high - points) * (points - low), 0)) / (np.pi * points), points)
    assert spectrum.epsilon_rank(1.0) == pytest.approx(share, abs=0.02)


def test_goe_follows_the_semicircle() -> None:
    dim = 800
    matrix = randn(dim, dim, seed=7)
    matrix = (matrix + matrix.T) / (2 * dim) ** 0.5
    spectrum = spectrum_of(matrix, steps=60, draws=20)
    grid = np.linspace(-3, 3, 200)
    expected = smoothed(lambda x: np.sqrt(np.maximum(4 - x**2, 0)) / (2 * np.pi), (-2, 2), grid, 0.15)
    np.testing.assert_allclose(spectrum.density(grid, 0.15), expected, atol=0.02)
    assert spectrum.negative_fraction == pytest.approx(0.5, abs=0.03)
    # P(|lambda| > 1) = 1 - (1/3 + sqrt(3) / (2 pi)) for the semicircle of radius 2.
    assert spectrum.epsilon_rank(1.0) == pytest.approx(1 - (1 / 3 + 3**0.5 / (2 * np.pi)), abs=0.03)


def test_lstm_by_double_backward() -> None:
    net = nn.LSTM(3, 4, batch_first=True)
    params = {name: randn(*value.shape, seed=4, dtype=th.float32) * 0.4 for name, value in net.named_parameters()}
    inputs = randn(2, 5, 3, dtype=th.float32)

    def loss_fn(params: dict[str, th.Tensor], batch: th.Tensor) -> th.Tensor:
        result: th.Tensor = th.func.functional_call(net, params, (batch,))[0].square().mean()
        return result

    matrix = dense_hessian(loss_fn, {k: v.double() for k, v in params.items()}, inputs.double())
    spectrum = hessian_spectrum(loss_fn, params, inputs, steps=40)
    assert spectrum.largest == pytest.approx(eigenvalues(matrix)[-1], rel=1e-4)


def test_hessian_vector_product() -> None:
    params = named(NET)
    vector = {name: randn(*value.shape, seed=8) for name, value in params.items()}
    product = hessian_vector_product(mse, params, BATCH, vector)
    flat = dense_hessian(mse, params, BATCH) @ th.cat([value.reshape(-1) for value in vector.values()])
    th.testing.assert_close(th.cat([value.reshape(-1) for value in product.values()]), flat)
    assert {k: v.shape for k, v in product.items()} == {k: v.shape for k, v in params.items()}
    with pytest.raises(ValueError, match="`vector` must have the names and shapes"):
        hessian_vector_product(mse, params, BATCH, {"0.weight": vector["0.weight"]})


def test_unused_and_linear_parameters_have_zero_curvature() -> None:
    def loss_fn(params: dict[str, th.Tensor], _: Any) -> th.Tensor:
        return params["square"].square().sum() + 3 * params["linear"].sum()

    params = {"square": randn(3), "linear": randn(4), "unused": randn(2)}
    spectrum = hessian_spectrum(loss_fn, params, None, steps=9)
    np.testing.assert_allclose(expand(spectrum), [0] * 6 + [2] * 3, atol=1e-12)
    # The rows of zeros are seen in the first product: three steps are all it takes.
    assert hessian_spectrum(loss_fn, params, None, steps=3).exact
    linear = hessian_spectrum(lambda p, _: p["linear"].sum(), {"linear": randn(4)}, None, steps=2)
    assert not linear.nodes.any()


def test_reproducible_and_leaves_no_trace() -> None:
    params = {name: value.requires_grad_() for name, value in named(NET).items()}
    before = {name: value.detach().clone() for name, value in params.items()}
    th.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    states = th.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()  # noqa: NPY002
    with th.no_grad():  # a callback may well run under it
        first = hessian_spectrum(mse, params, BATCH, steps=10, draws=2, seed=1)
    second = hessian_spectrum(mse, params, BATCH, steps=10, draws=2, seed=1)
    other = hessian_spectrum(mse, params, BATCH, steps=10, draws=2, seed=2)
    assert th.equal(states[0], th.get_rng_state())
    assert states[1] == np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    assert states[2] == random.getstate()
    np.testing.assert_array_equal(first.nodes, second.nodes)
    assert not np.array_equal(first.nodes, other.nodes)
    assert not np.array_equal(first.nodes[0], first.nodes[1])
    assert all(th.equal(before[name], params[name]) and params[name].grad is None for name in params)


def test_bad_input() -> None:
    params = named(NET)
    with pytest.raises(ValueError, match="`steps` must be a whole number >= 1, got 0"):
        hessian_spectrum(mse, params, BATCH, steps=0)
    with pytest.raises(ValueError, match="`draws` must be a whole number >= 1, got 0"):
        hessian_spectrum(mse, params, BATCH, draws=0)
    with pytest.raises(ValueError, match="the network has none"):
        hessian_spectrum(mse, {}, BATCH)
    with pytest.raises(ValueError, match=r"`params\['index'\]` must be a floating point tensor"):
        hessian_spectrum(mse, {"index": th.arange(3)}, BATCH)
    with pytest.raises(ValueError, match="`loss_fn` must return a scalar"):
        hessian_spectrum(lambda p, b: p["0.bias"], params, BATCH)
    with pytest.raises(ValueError, match="`loss_fn` must depend on `params`"):
        hessian_spectrum(lambda p, b: th.zeros(()), params, BATCH)


def test_nan_is_named() -> None:
    params = named(NET)
    with pytest.raises(FloatingPointError, match="the loss"):
        hessian_spectrum(lambda p, b: mse(p, b) * float("nan"), params, BATCH)
    with pytest.raises(FloatingPointError, match="the gradient of w"):
        hessian_spectrum(lambda p, b: p["w"].abs().sqrt().sum(), {"w": th.zeros(3)}, None)
    with pytest.raises(FloatingPointError, match="product 1"):
        hessian_spectrum(lambda p, b: p["w"].abs().pow(1.5).sum(), {"w": th.zeros(3)}, None)
