"""Measures of plasticity on matrices worked out by hand, and the units that they are taken of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.common.plasticity import (
    dead_units,
    dormant_units,
    euclidean_norm,
    saturated_units,
    stable_rank,
)
from sb3_plasticity.common.units import Units, record_units

MEASURES = (stable_rank, dormant_units, dead_units, saturated_units)


class TestStableRank:
    def test_by_hand(self) -> None:
        assert stable_rank(th.tensor([[3.0, 0.0], [0.0, 4.0]])) == 25 / 16
        assert stable_rank(th.eye(5)) == 5
        assert stable_rank(th.eye(5)[:, :3]) == 3
        assert stable_rank(th.ones(7, 4)).item() == pytest.approx(1)
        assert stable_rank(th.zeros(7, 4)) == 0

    @pytest.mark.parametrize("shape", [(40, 6), (6, 40), (1, 5), (5, 1)])
    def test_against_singular_values(self, shape: tuple[int, int]) -> None:
        matrix = np.random.default_rng(0).normal(size=shape)
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert stable_rank(th.as_tensor(matrix)).item() == pytest.approx((singular**2).sum() / singular[0] ** 2)

    def test_of_a_random_matrix(self) -> None:
        """Of N x d independent normal entries ||A||_F^2 is N d and ||A||_2^2 is (sqrt N + sqrt d)^2 (Bai and Yin)."""
        features = th.randn(4000, 100, generator=th.Generator().manual_seed(0))
        expected = 4000 * 100 / (4000**0.5 + 100**0.5) ** 2
        assert stable_rank(features).item() == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scale_does_not_matter(self, scale: float) -> None:
        assert stable_rank(scale * th.tensor([[3.0, 0.0], [0.0, 4.0]])).item() == pytest.approx(25 / 16)

    def test_relu_features_with_dead_units_stay_finite(self) -> None:
        features = th.relu(th.randn(512, 64, generator=th.Generator().manual_seed(1)))
        features[:, ::2] = 0
        alive = np.linalg.svd(features[:, 1::2].double().numpy(), compute_uv=False)
        assert stable_rank(1e4 * features).item() == pytest.approx((alive**2).sum() / alive[0] ** 2, rel=1e-5)


class TestUnits:
    # Mean activity by column: 0, 0.02, 1, 2.98, and 1 over them all.
    ACTIVITY = th.tensor([[0.0, 0.04, -1.0, 5.96], [0.0, 0.0, 1.0, 0.0]])

    @pytest.mark.parametrize("tau, expected", [(0.0, 1), (0.01, 1), (0.025, 2), (0.99, 2), (1.01, 3), (2.9, 3), (3, 4)])
    def test_dormant_by_hand(self, tau: float, expected: int) -> None:
        assert dormant_units(self.ACTIVITY, tau).tolist() == [True] * expected + [False] * (4 - expected)

    def test_the_default_is_sokars(self) -> None:
        # The layer mean is 1: scores of 0.025 (and less) are dormant, 0.0251 not.
        layer = th.tensor([[1 / 40, 1.001 / 40, 3 - 2.001 / 40]], dtype=th.float64)
        assert dormant_units(layer).tolist() == [True, False, False]

    def test_the_threshold_itself_is_dormant(self) -> None:
        assert dormant_units(th.tensor([[1.0, 3.0]]), tau=0.5).tolist() == [True, False]

    def test_a_silent_layer_is_dormant(self) -> None:
        assert dormant_units(th.zeros(3, 2)).all() and dead_units(th.zeros(3, 2)).all()

    def test_dead_is_zero_in_every_row(self) -> None:
        assert dead_units(th.tensor([[0.0, 0.0, 1e-30], [0.0, 0.5, 0.0]])).tolist() == [True, False, False]

    def test_saturated_is_near_a_bound_in_every_row(self) -> None:
        features = th.tensor([[0.999, -0.995, 0.999, 0.5], [0.999, 0.995, 0.98, 0.5]])
        assert saturated_units(features).tolist() == [True, True, False, False]
        assert saturated_units(features, 0.4).all()


def test_euclidean_norm() -> None:
    assert euclidean_norm([th.tensor([[3.0, 4.0]]), th.tensor(12.0)]) == 13
    assert euclidean_norm([]) == 0
    # Squares that float32 could not hold.
    assert euclidean_norm([th.tensor([3e30, 4e30])]).item() == pytest.approx(5e30)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "features, message",
    [
        (th.zeros(3), r"`(features|weight)` must be of two axes, none of length 0, got \(3,\)"),
        (th.zeros(0, 3), r"got \(0, 3\)"),
        (
            th.zeros(2, 2, dtype=th.long),
            "` must be a tensor of floating-point numbers, got a tensor of torch.int64",
        ),
        ([[1.0]], "got list"),
        (th.tensor([[1.0, float("nan")]]), "features contain NaN or infinity"),
        (th.tensor([[1.0, float("inf")]]), "features contain NaN or infinity"),
    ],
)
def test_bad_features(measure: Callable[..., Any], features: th.Tensor | list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(features)


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_bad_tau(tau: Any) -> None:
    with pytest.raises(ValueError, match=f"`tau` must be a finite number >= 0, got {tau!r}"):
        dormant_units(th.ones(2, 2), tau)


@pytest.mark.parametrize("threshold", [0, 1, float("nan")])
def test_bad_threshold(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"`threshold` must be a finite number > 0 and < 1, got {threshold!r}"):
        saturated_units(th.ones(2, 2), threshold)


class TestRecordUnits:
    """Units are what the next layer reads, whichever way the nonlinearity is written."""

    INPUT = th.randn(6, 4, generator=th.Generator().manual_seed(2))

    def record(self, module: Any, *inputs: th.Tensor) -> dict[str, Units]:
        with record_units(module) as units:
            module(*inputs)
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
        return units

    @pytest.mark.parametrize(
        "activation, name",
        [(nn.Tanh(), "tanh"), (nn.ReLU(), "relu"), (nn.ReLU(inplace=True), "relu"), (nn.ELU(), "elu")],
    )
    def test_modules(self, activation: nn.Module, name: str) -> None:
        first, last = nn.Linear(4, 4), nn.Linear(4, 4)
        units = self.record(nn.Sequential(first, activation, last), self.INPUT)
        assert th.equal(units["0"].features, activation(first(self.INPUT)))
        assert th.equal(units["2"].features, last(activation(first(self.INPUT))))
        assert (units["0"].activation, units["2"].activation) == (name, "")

    def test_plain_calls_normalisation_and_dropout(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.norm, self.b, self.c = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 1)

            def forward(self, x: th.Tensor) -> th.Tensor:
                self.h = F.dropout(F.relu(self.norm(self.a(x))), 0.5, training=False)
                self.g = self.b(self.h).tanh()
                th.zeros_like(self.h), self.h**2  # not what the next layer reads
                result: th.Tensor = self.c(self.g)
                return result

        net = Net()
        units = self.record(net, self.INPUT)
        assert th.equal(units["a"].features, net.h) and units["a"].activation == "relu"
        assert th.equal(units["b"].features, net.g) and units["b"].activation == "tanh"

    def test_a_residual_sum_is_no_activation(self) -> None:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

            def forward(self, x: th.Tensor) -> th.Tensor:
                self.h = th.relu(self.a(x))
                self.g = th.relu(self.b(self.h))
                result: th.Tensor = self.c(self.g + self.h)
                return result

        block = Block()
        units = self.record(block, self.INPUT)
        assert th.equal(units["a"].features, block.h) and th.equal(units["b"].features, block.g)

    def test_positions_of_a_convolution_are_rows(self) -> None:
        convolution = nn.Conv2d(1, 3, 2)
        images = th.randn(2, 1, 4, 5, generator=th.Generator().manual_seed(3))
        net = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(36, 1))
        features = self.record(net, images)["0"].features
        assert features.shape == (2 * 3 * 4, 3)
        assert th.equal(features[12 + 4 * 2 + 3], th.relu(convolution(images))[1, :, 2, 3])

    def test_a_layer_called_twice_and_an_lstm(self) -> None:
        linear, lstm = nn.Linear(4, 4), nn.LSTM(4, 3)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear, self.lstm = linear, lstm

            def forward(self, x: th.Tensor) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
                rows = th.tanh(self.linear(th.tanh(self.linear(x))))[:, None]
                result: tuple[th.Tensor, tuple[th.Tensor, th.Tensor]] = self.lstm(rows)
                return result

        units = self.record(Net(), self.INPUT)
        once = th.tanh(linear(self.INPUT))
        assert th.equal(units["linear"].features, th.cat([once, th.tanh(linear(once))]))
        assert units["lstm"].features.shape == (6, 3)
