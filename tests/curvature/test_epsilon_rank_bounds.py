"""What a quadrature cannot resolve: bounds that hold for every draw, and are tight where it is exact."""

import numpy as np
import pytest
import torch as th

from sb3_plasticity.curvature.lanczos import quadrature
from sb3_plasticity.curvature.spectrum import Spectrum

EPSILONS = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0)


def diagonal_case(seed, steps):
    """A diagonal matrix's spectral measure for a start vector is that vector's squared entries: no algorithm needed."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.concatenate(
        [np.zeros(40), rng.normal(size=20) * 1e-3, rng.normal(size=20) * 2, 10 ** rng.uniform(-4, 1, 40)]
    )
    diagonal = th.as_tensor(eigenvalues)
    start = th.randn(120, generator=th.Generator().manual_seed(seed), dtype=th.float64).numpy()
    nodes, weights = quadrature(
        lambda v: diagonal * v, 120, steps, th.Generator().manual_seed(seed), th.empty(0, dtype=th.float64)
    )
    return eigenvalues, start**2 / (start**2).sum(), Spectrum(nodes[None], weights[None], 120)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [4, 10, 30])
def test_bounds_hold_for_the_draws_own_measure(seed, steps):
    eigenvalues, measure, spectrum = diagonal_case(seed, steps)
    for eps in EPSILONS:
        truth = measure[np.abs(eigenvalues) > eps].sum()
        low, high = spectrum.epsilon_rank_bounds(eps)
        assert low - 1e-9 <= truth <= high + 1e-9
        assert 0 <= low <= spectrum.epsilon_rank(eps) <= high + 1e-12 <= 1 + 1e-12


def test_a_bulk_in_a_single_node_is_seen_to_be_unresolved():
    # 70% of the weight in one node at 0.004: below 0.004 it counts, above it does not.
    spectrum = Spectrum([[-2.0, 0.004, 1.0, 5.0]], [[0.1, 0.7, 0.15, 0.05]], dim=1000)
    assert spectrum.epsilon_rank(0.003) == pytest.approx(1.0)
    assert spectrum.epsilon_rank_bounds(0.003) == pytest.approx((0.2, 1.0))  # -2 and 0.004 are beside
    assert spectrum.epsilon_rank(0.01) == pytest.approx(0.3)
    assert spectrum.epsilon_rank_bounds(0.01) == pytest.approx((0.05, 1.0))
    assert spectrum.epsilon_rank_bounds(3.0, normalized=False) == pytest.approx((0.0, 300.0))


def test_an_exact_spectrum_has_no_slack():
    spectrum = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=8)
    assert spectrum.epsilon_rank_bounds(0.5) == (0.375, 0.375)
    assert spectrum.epsilon_rank_bounds(2.0, normalized=False) == (1.0, 1.0)


def test_draws_are_averaged():
    spectrum = Spectrum([[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0.7, 0.3]], dim=10)
    assert spectrum.epsilon_rank_bounds(0.5) == pytest.approx((0.0, 1.0))
    assert spectrum.epsilon_rank_bounds(2.0) == pytest.approx((0.0, 1.0))
