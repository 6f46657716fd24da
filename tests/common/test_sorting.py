"""Optimal transport in one dimension, against the cheapest of all assignments."""

import itertools

import pytest
import torch as th

from sb3_plasticity.common.sorting import transport


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_it_is_the_cheapest_assignment(dtype: th.dtype) -> None:
    generator = th.Generator().manual_seed(0)
    for _ in range(5):
        values = th.randn(6, generator=generator, dtype=dtype)
        target = th.randn(6, generator=generator, dtype=dtype).sort().values
        orders = [target[list(order)] for order in itertools.permutations(range(6))]
        cheapest = min(orders, key=lambda moved: float((values - moved).square().sum()))
        assert th.equal(transport(values, target), cheapest)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_every_kind_of_number_has_its_place(dtype: th.dtype) -> None:
    infinity, tiny = float("inf"), th.finfo(dtype).tiny / 4
    values = th.tensor([3.0, -0.0, infinity, -tiny, 0.0, -2.0, tiny, 3.0, -infinity, -2.5], dtype=dtype)
    # -inf, -2.5, -2, -tiny, the two zeros as they come, tiny, the two threes as they come, inf
    ranks = [7, 4, 9, 3, 5, 2, 6, 8, 0, 1]
    assert transport(values, th.arange(10, dtype=dtype)).tolist() == ranks


def test_a_large_tensor_in_float32_agrees_with_torch() -> None:
    values = th.randn(100_003, generator=th.Generator().manual_seed(0)).round(decimals=3)
    expected = th.empty(100_003).scatter(0, values.argsort(stable=True), th.arange(100_003.0))
    assert th.equal(transport(values, th.arange(100_003.0)), expected)
