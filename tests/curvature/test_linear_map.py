"""Recorded Hessian-vector products equal the unrecorded ones, and fall back to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from curvature_dense import mlp, named, randn, randomise
from torch import nn

from sb3_plasticity.common import onednn
from sb3_plasticity.curvature.linear_map import record

pytestmark = pytest.mark.skipif(not th.backends.mkldnn.is_available(), reason="nothing is recorded without oneDNN")


@pytest.fixture(autouse=True)
def _on_a_processor_where_onednn_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    monkeypatch.setattr(onednn, "PAYS_FROM", 1)


def double_backward(net: nn.Module, inputs: th.Tensor) -> tuple[Callable[..., Any], list[th.Tensor]]:
    params = {name: value.requires_grad_() for name, value in named(net).items()}
    loss = th.func.functional_call(net, params, (inputs,)).square().mean()
    grads = th.autograd.grad(loss, list(params.values()), create_graph=True)
    return (
        lambda *vectors: th.autograd.grad(grads, list(params.values()), vectors, retain_graph=True),
        [value.detach() for value in params.values()],
    )


class Convolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 2))


@pytest.mark.parametrize(
    "net, shape",
    [(mlp(9, 30, 20, 5), (40, 9)), (mlp(9, 30, 20, 5, activation=nn.ReLU), (40, 9)), (Convolution(), (8, 1, 3, 3))],
)
def test_replay_equals_the_function(net: nn.Module, shape: tuple[int, ...]) -> None:
    net = randomise(net, dtype=th.float32)
    function, example = double_backward(net, randn(*shape, dtype=th.float32))
    replay = record(function, example)
    assert replay is not function
    vectors = [randn(*value.shape, seed=5, dtype=th.float32) for value in example]
    for found, expected in zip(replay(*vectors), function(*vectors), strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_products_of_slices_and_transposes() -> None:
    # Every layout that a factor can have: rows, columns, slices of a wider matrix, on either side.
    left, right = randn(20, 30, dtype=th.float32), randn(30, 10, dtype=th.float32)
    example = [randn(20, 8, dtype=th.float32), randn(30, 10, dtype=th.float32)]

    def function(a: th.Tensor, b: th.Tensor) -> tuple[th.Tensor, ...]:
        return (left @ b, a.t() @ left, (a.t() @ left)[:, 3:9] @ right[:6], left.t()[3:23] @ a, th.zeros_like(a) + a)

    replay = record(function, example)
    assert replay is not function
    for found, expected in zip(replay(*example), function(*example), strict=True):
        th.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_recorded_is_left_alone() -> None:
    example, factor = [randn(4, 4, dtype=th.float32)], randn(4, 4, dtype=th.float32)

    def in_place(a: th.Tensor) -> tuple[th.Tensor]:
        return ((a @ factor).mul_(2),)

    def depends_on_its_example(a: th.Tensor) -> tuple[th.Tensor]:
        return (a @ factor * float(a.sum()),)

    assert record(in_place, example) is in_place
    assert record(depends_on_its_example, example) is depends_on_its_example


@pytest.mark.parametrize(
    "dtype, owner, name, value",
    [
        (th.float64, onednn, "PAYS_FROM", 1),
        (th.float32, onednn, "PAYS_FROM", 10**9),
        (th.float32, onednn, "is_faster", lambda: False),
    ],
)
def test_nothing_is_recorded_where_onednn_does_not_pay(
    dtype: th.dtype, owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, value)
    function, example = double_backward(randomise(mlp(9, 30, 5), dtype=dtype), randn(40, 9, dtype=dtype))
    assert record(function, example) is function


def test_recording_draws_no_random_numbers() -> None:
    function, example = double_backward(randomise(mlp(3, 4, 2), dtype=th.float32), randn(5, 3, dtype=th.float32))
    state = th.get_rng_state()
    assert record(function, example) is not function
    assert th.equal(state, th.get_rng_state())
