"""Effective rank and epsilon-rank against hand-worked values, independent formulas and finite differences."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from torch.fx.experimental.proxy_tensor import make_fx

from sb3_plasticity.common.rank import RankOf, effective_rank, effective_rank_of_covariance, epsilon_rank
from sb3_plasticity.common.training_rank import training_rank

BOTH = pytest.mark.parametrize("of", ["covariance", "features"])


def by_svd(features: np.ndarray, of: RankOf) -> float:
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    values = values**2 if of == "covariance" else values
    share = values[values > 1e-12 * values.max()] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def gradient(features: th.Tensor, of: RankOf) -> th.Tensor:
    features = features.clone().requires_grad_()
    (grad,) = th.autograd.grad(effective_rank(features, of).sum(), features)
    return grad


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def test_hand_worked_values() -> None:
    # Singular values 3, 1: shares 3/4, 1/4, squared 9/10, 1/10.
    features = th.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=th.float64)
    assert effective_rank(features, "features").item() == pytest.approx(4 / 3**0.75, abs=1e-14)
    assert effective_rank(features, "covariance").item() == pytest.approx(10 / 9**0.9, abs=1e-14)
    # Orthogonal rows of equal length: every direction counts fully.
    assert effective_rank(5 * th.eye(7)).item() == pytest.approx(7, rel=1e-6)
    # One direction only.
    ones = th.ones(6, 4, dtype=th.float64)
    assert effective_rank(ones).item() == 1.0
    assert effective_rank(ones, "features").item() == 1.0
    # Uncentred: a constant offset is a direction of its own, centring would leave rank 0.
    assert effective_rank(th.tensor([[1.0, 1.0], [1.0, -1.0]])).item() == pytest.approx(2.0, rel=1e-6)


def test_hand_worked_gradient() -> None:
    # Diagonal features diag(s): erank = exp(H(p)), d erank / d s_i = erank * (-(log p_i + H)) / sum(s)  (features).
    features = th.diag(th.tensor([3.0, 1.0], dtype=th.float64))
    share = np.array([0.75, 0.25])
    entropy = -(share * np.log(share)).sum()
    expected = np.diag(np.exp(entropy) * -(np.log(share) + entropy) / 4.0)
    np.testing.assert_allclose(gradient(features, "features").numpy(), expected, atol=1e-14)
    # covariance: shares s_i^2 / 10, one more factor 2 s_i from the square.
    share = np.array([0.9, 0.1])
    entropy = -(share * np.log(share)).sum()
    expected = np.diag(np.exp(entropy) * -(np.log(share) + entropy) / 10.0 * 2 * np.array([3.0, 1.0]))
    np.testing.assert_allclose(gradient(features, "covariance").numpy(), expected, atol=1e-14)


@BOTH
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 12), (1, 6), (6, 1)])
def test_value_against_singular_values(of: RankOf, shape: tuple[int, int]) -> None:
    features = th.relu(th.randn(shape, generator=generator(), dtype=th.float64) + 0.3)
    assert effective_rank(features, of).item() == pytest.approx(by_svd(features.numpy(), of), rel=1e-10)


@BOTH
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5), (2, 6, 4)])
def test_gradient_against_finite_differences(of: RankOf, shape: tuple[int, ...]) -> None:
    features = th.randn(shape, generator=generator(1), dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(lambda a: effective_rank(a, of), (features,), eps=1e-6, atol=1e-7)


def test_gradient_on_repeated_eigenvalues() -> None:
    # erank is largest at the identity: gradient 0, exactly where eigh's own gradient would divide 0 by 0.
    for of in ("covariance", "features"):
        assert gradient(th.eye(6, dtype=th.float64), of).abs().max() < 1e-14
    # Two equal pairs, checked by central differences: eigenvalues are not smooth there, the entropy is.
    features = th.diag(th.tensor([2.0, 2.0, 1.0, 1.0], dtype=th.float64)).requires_grad_()
    assert th.autograd.gradcheck(effective_rank, (features,), eps=1e-5, atol=1e-7)


@BOTH
def test_rank_deficient_gradient_against_finite_differences_along_the_range(of: RankOf) -> None:
    # Two nonzero directions and two dead columns: perturbations that keep the dead columns dead are smooth.
    features = th.randn(6, 2, generator=generator(2), dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(
        lambda a: effective_rank(th.cat([a, th.zeros(6, 2, dtype=a.dtype)], 1), of), (features,), eps=1e-6, atol=1e-7
    )


@BOTH
@pytest.mark.parametrize("dtype", [th.float32, th.float64, th.bfloat16])
def test_all_zero_features_have_rank_one_and_no_gradient(of: RankOf, dtype: th.dtype) -> None:
    features = th.zeros(8, 5, dtype=dtype)
    assert effective_rank(features, of).item() == 1.0
    assert effective_rank(features, of).dtype == dtype
    assert th.equal(gradient(features, of), th.zeros_like(features))


@BOTH
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-31, 1e-29, 1e-10, 1.0, 1e10, 1e30, 3e37])
def test_finite_at_any_scale(of: RankOf, scale: float) -> None:
    features = th.relu(th.randn(20, 6, generator=generator(3), dtype=th.float64))
    scaled = (features * scale).to(th.float32)
    value, grad = effective_rank(scaled, of), gradient(scaled, of)
    assert th.isfinite(grad).all()
    if scale > 1e-30:
        assert value.item() == pytest.approx(by_svd(features.numpy(), of), rel=1e-5)
        expected = gradient(features, of) / scale
        # In float32 a gradient of 1e-38 is subnormal: compare where the dtype holds it.
        if scale < 1e30:
            th.testing.assert_close(grad.double() / expected.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)
    else:
        assert value.item() == 1.0 and grad.count_nonzero() == 0


@BOTH
def test_finite_on_the_features_of_dying_networks(of: RankOf) -> None:
    rng = generator(4)
    for trial in range(40):
        features = th.relu(th.randn(256, 64, generator=rng) @ th.randn(64, 64, generator=rng) * 10.0 ** (trial % 8))
        features[:, th.rand(64, generator=rng) < trial / 40] = 0  # dead units
        features[:, -1] = features[:, 0]  # a copied unit
        features[trial:] = features[0]  # few distinct rows
        value, grad = effective_rank(features, of), gradient(features, of)
        assert th.isfinite(value) and 1 <= value.item() <= min(64, trial + 1) + 1e-3
        assert th.isfinite(grad).all()
        assert value.item() == pytest.approx(by_svd(features.numpy(), of), rel=1e-4)


@BOTH
def test_ascent_raises_the_rank(of: RankOf) -> None:
    features = th.relu(th.randn(32, 8, generator=generator(5), dtype=th.float64) + 2)
    step = features + 1e-4 * gradient(features, of)
    assert effective_rank(step, of) > effective_rank(features, of)


@BOTH
def test_batch_of_layers_equals_one_by_one(of: RankOf) -> None:
    layers = th.relu(th.randn(3, 10, 6, generator=generator(6)))
    layers[1] = 0
    values = effective_rank(layers, of)
    assert values.shape == (3,)
    th.testing.assert_close(values, th.stack([effective_rank(layer, of) for layer in layers]), rtol=1e-6, atol=0)
    grads = gradient(layers, of)
    th.testing.assert_close(grads, th.stack([gradient(layer, of) for layer in layers]), rtol=1e-5, atol=1e-6)


@BOTH
def test_torch_func_grad_equals_autograd(of: RankOf) -> None:
    features = th.randn(12, 5, generator=generator(7))
    th.testing.assert_close(th.func.grad(lambda a: effective_rank(a, of))(features), gradient(features, of))


def test_rank_of_a_covariance_matrix() -> None:
    assert effective_rank_of_covariance(th.diag(th.tensor([9.0, 1.0]))).item() == pytest.approx(10 / 9**0.9, rel=1e-6)
    assert effective_rank_of_covariance(th.zeros(3, 3)).item() == 1.0
    first, second = th.randn(2, 20, 5, generator=generator(8), dtype=th.float64)
    total = first.T @ first / 20 + second.T @ second / 20
    # The sum of second moments is the second moment of the stacked features.
    expected = effective_rank(th.cat([first, second]))
    assert effective_rank_of_covariance(total).item() == pytest.approx(expected.item(), rel=1e-12)
    pair = effective_rank_of_covariance(th.stack([total, th.eye(5, dtype=th.float64)]))
    th.testing.assert_close(pair, th.tensor([expected.item(), 5.0], dtype=th.float64))
    factor = first.clone().requires_grad_()
    assert th.autograd.gradcheck(lambda a: effective_rank_of_covariance(a.T @ a), (factor,), eps=1e-6, atol=1e-7)


def gradient_by_svd(features: th.Tensor, of: RankOf) -> np.ndarray:
    """d erank / d A = U diag(d erank / d s) V^T, in float64."""
    left, values, right = np.linalg.svd(features.double().numpy(), full_matrices=False)
    power = 2 if of == "covariance" else 1
    positive = values > 1e-7 * values[0]
    spectrum = np.where(positive, values, 0) ** power
    share = spectrum / spectrum.sum()
    logarithm = np.log(np.where(positive, share, 1))
    entropy = -(share * logarithm).sum()
    slope = -np.exp(entropy) * (logarithm + entropy) / spectrum.sum() * power * values ** (power - 1) * positive
    result: np.ndarray = (left * slope) @ right
    return result


def large_features(kind: str, rows: int) -> th.Tensor:
    """Features (rows, 200), float32: of a network, or worse."""
    rng = generator(9)
    hidden = th.relu(th.randn(rows, 20, generator=rng) @ th.randn(20, 200, generator=rng))
    if kind == "dead":
        hidden[:, th.rand(200, generator=rng) < 0.4] = 0
    elif kind == "deficient":
        hidden = th.randn(rows, 12, generator=rng) @ th.randn(12, 200, generator=rng)
    elif kind == "copies":
        hidden = hidden[:8].repeat(rows // 8, 1)
    elif kind == "collapsed":  # 0.9999 of the second moment is one direction
        hidden = 1e-3 * hidden + 1
    return hidden


@BOTH
@pytest.mark.parametrize("rows", [120, 600])
@pytest.mark.parametrize("kind", ["network", "dead", "deficient", "copies", "collapsed"])
def test_training_rank_of_large_features(kind: str, rows: int, of: RankOf) -> None:
    """In float32 and float64 where it has to be: far below what a step of training could tell."""
    features = large_features(kind, rows)
    expected = gradient_by_svd(features, of)
    leaf = features.clone().requires_grad_()
    rank = training_rank(leaf, of)
    (grad,) = th.autograd.grad(rank, leaf)
    assert rank.dtype == grad.dtype == th.float32
    assert rank.item() == pytest.approx(by_svd(features.numpy(), of), rel=3e-4)
    error = np.linalg.norm(grad.double().numpy() - expected) / np.linalg.norm(expected)
    assert error < 3e-3, error
    with th.no_grad():
        assert training_rank(features, of).item() == pytest.approx(rank.item(), rel=2e-5)
    assert grad[:, (features == 0).all(0)].count_nonzero() == 0


@BOTH
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 12), (1, 6), (6, 1)])
def test_training_rank_of_small_features_is_the_effective_rank(of: RankOf, shape: tuple[int, int]) -> None:
    features = th.relu(th.randn(shape, generator=generator(10), dtype=th.float64) + 0.3).requires_grad_()
    rank = training_rank(features, of)
    assert rank.item() == pytest.approx(effective_rank(features, of).item(), rel=1e-13)
    th.testing.assert_close(th.autograd.grad(3 * rank, features)[0], 3 * gradient(features.detach(), of))
    single = features.detach().float()
    th.testing.assert_close(th.func.grad(lambda a: training_rank(a, of))(single), gradient(single, of))


@BOTH
@pytest.mark.parametrize("scale", [1e-45, 1e-31, 1e-29, 1e-10, 1e10, 1e30])
def test_training_rank_at_any_scale(of: RankOf, scale: float) -> None:
    features = large_features("dead", 120).double()
    features /= features.max()
    leaf = (features * scale).float().requires_grad_()
    rank = training_rank(leaf, of)
    (grad,) = th.autograd.grad(rank, leaf)
    if scale > 1e-30:
        assert rank.item() == pytest.approx(by_svd(features.numpy(), of), rel=1e-4)
        expected = gradient_by_svd(features, of)
        assert np.linalg.norm(grad.double().numpy() * scale - expected) < 1e-3 * np.linalg.norm(expected)
    else:
        assert rank.item() == 1.0 and grad.count_nonzero() == 0


@pytest.mark.parametrize("failure", ["nan", "wrong", "error"])
def test_training_rank_falls_back_to_float64(monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    features = large_features("network", 120)
    expected = by_svd(features.numpy(), "covariance")
    eigh, calls = th.linalg.eigh, []

    def failing(matrix: th.Tensor) -> Any:
        calls.append(matrix.dtype)
        if matrix.dtype == th.float64:
            return eigh(matrix)
        if failure == "error":
            raise th.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        values, vectors = eigh(matrix)
        return values * (math.nan if failure == "nan" else 1.5), vectors

    monkeypatch.setattr(th.linalg, "eigh", failing)
    leaf = features.clone().requires_grad_()
    rank = training_rank(leaf)
    (grad,) = th.autograd.grad(rank, leaf)
    assert calls == [th.float32, th.float64]
    assert rank.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad.numpy(), gradient_by_svd(features, "covariance"), atol=1e-6)


def test_training_rank_of_what_is_not_finite() -> None:
    features = th.ones(3, 2)
    features[1, 1] = math.nan
    with pytest.raises(ValueError, match="features contain NaN or infinity"):
        training_rank(features)
    with pytest.raises(ValueError, match="`of` must be one of 'covariance', 'features', got 'variance'"):
        training_rank(th.ones(3, 2), "variance")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two axes"):
        training_rank(th.ones(2, 3, 2))
    # A traced program cannot raise: it says NaN, and works for other features.
    for rows, width in ((3, 2), (70, 100)):
        features = th.eye(rows, width)
        program = make_fx(lambda a: th.func.grad_and_value(training_rank)(a))(features)
        features[1, 1] = math.nan
        grad, rank = program(features)
        assert rank.isnan() and grad.isnan().any()
        features[1:] = 0
        grad, rank = program(features)
        assert rank.item() == pytest.approx(1.0, rel=1e-6) and grad.abs().max() < 1e-6
        features[1, 1] = 1 / 3
        assert program(features)[1].item() == pytest.approx(10 / 9**0.9, rel=1e-4)


@pytest.mark.parametrize(
    "features, of, message",
    [
        (th.ones(3, 3), "variance", "`of` must be one of 'covariance'"),
        (th.ones(3), "covariance", r"`features` must be of two axes.*\(3,\)"),
        (th.ones(0, 3), "covariance", r"\(0, 3\)"),
        (th.ones(3, 3, dtype=th.int64), "covariance", "torch.int64"),
        (np.ones((3, 3)), "covariance", "ndarray"),
        (th.tensor([[1.0, math.nan]]), "features", "features contain NaN or infinity"),
        (th.tensor([[1.0, math.inf]]), "covariance", "features contain NaN or infinity"),
    ],
)
def test_bad_features(features: Any, of: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effective_rank(features, of)


def test_bad_covariance() -> None:
    with pytest.raises(ValueError, match=r"`matrix` must be of shape \(d, d\)"):
        effective_rank_of_covariance(th.ones(2, 3))
    with pytest.raises(ValueError, match="matrix contain NaN"):
        effective_rank_of_covariance(th.full((2, 2), math.nan))


def test_epsilon_rank_by_hand() -> None:
    eigenvalues = th.tensor([-3.0, 1.0, 0.5, 1e-9, 0.0])
    assert epsilon_rank(eigenvalues, 0.5).item() == pytest.approx(2 / 5)  # strict
    assert epsilon_rank(eigenvalues, 0.5, normalized=False).item() == 2
    assert epsilon_rank(eigenvalues, 1e-10).item() == pytest.approx(4 / 5)
    assert epsilon_rank(eigenvalues, 0.3, relative=True).item() == pytest.approx(2 / 5)
    assert epsilon_rank(th.zeros(4), 0.1, relative=True).item() == 0


def test_epsilon_rank_of_a_quadrature() -> None:
    nodes = np.array([[0.0, 2.0], [0.0, -1.0]])
    weights = np.array([[0.9, 0.1], [0.75, 0.25]])
    np.testing.assert_allclose(epsilon_rank(nodes, 0.5, weights).numpy(), [0.1, 0.25])
    np.testing.assert_allclose(epsilon_rank(nodes, 0.5, weights, dim=40, normalized=False).numpy(), [4, 10])
    np.testing.assert_allclose(epsilon_rank(nodes, 1.5, weights).numpy(), [0.1, 0])


def test_bad_epsilon_rank() -> None:
    for eps in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`eps` must be a finite number > 0"):
            epsilon_rank(th.ones(3), eps)
    with pytest.raises(ValueError, match="`dim` must be"):
        epsilon_rank(th.ones(2), 0.1, th.tensor([0.5, 0.5]), normalized=False)
    with pytest.raises(ValueError, match="`weights` must be of the eigenvalues' shape"):
        epsilon_rank(th.ones(2), 0.1, th.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        epsilon_rank(th.tensor([math.nan]), 0.1)
