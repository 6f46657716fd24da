"""Bounds on numbers of eigenvalues: what the quadrature leaves open, and what the start vector does."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from scipy.optimize import linprog

from sb3_plasticity.curvature.certificate import Draw, gauss_radau_masses, outside
from sb3_plasticity.curvature.lanczos import quadrature
from sb3_plasticity.curvature.spectrum import Spectrum


def draw_of(eigenvalues: np.ndarray, steps: int, seed: int, dtype: th.dtype = th.float64) -> tuple[np.ndarray, Draw]:
    """A draw on a diagonal matrix, whose spectral measure for a start vector is that vector's squared entries."""
    diagonal = th.as_tensor(eigenvalues, dtype=dtype)
    dim = len(eigenvalues)
    start = th.randn(dim, generator=th.Generator().manual_seed(seed), dtype=th.float64).numpy()
    start[eigenvalues == 0] = 0.0
    found = quadrature(lambda v: diagonal * v, dim, steps, th.Generator().manual_seed(seed), th.empty(0, dtype=dtype))
    measure = start**2 / (start**2).sum() * (eigenvalues != 0).mean()
    return measure, Draw.of(found.nodes, found.weights, found.residuals, dim)


def spectrum_120(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [np.zeros(40), rng.normal(size=20) * 1e-3, rng.normal(size=20) * 2, 10 ** rng.uniform(-4, 1, 40)]
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [4, 10, 30])
def test_masses_hold_for_the_draws_own_measure(seed: int, steps: int) -> None:
    eigenvalues = spectrum_120(seed)
    measure, draw = draw_of(eigenvalues, steps, seed)
    points = np.concatenate([-np.logspace(-4, 1, 20), np.logspace(-4, 1.2, 20), draw.nodes[draw.nodes != 0]])
    points = points[np.abs(points[:, None] - eigenvalues).min(1) > 1e-9]
    assert draw.residuals is not None
    open_ = draw.residuals > 0  # all but the node of the zero rows
    weaker = Draw(draw.nodes[open_], draw.weights[open_], None, draw.dim).masses_below(points)
    for point, (low, high), (weak_low, weak_high) in zip(points, draw.masses_below(points), weaker, strict=True):
        zeros = 1 / 3 if point > 0 else 0.0
        assert low - 1e-9 <= measure[eigenvalues < point].sum() + zeros <= high + 1e-9
        assert weak_low - 1e-9 <= low - zeros and high - zeros <= weak_high + 1e-9


def test_masses_are_as_sharp_as_linear_programming_finds() -> None:
    # Any measure on a fine grid with the same nine moments, with the most or the least mass below a point.
    eigenvalues = np.linspace(-1, 1, 50) ** 3 + 0.01
    _, draw = draw_of(eigenvalues, 4, seed=0)
    assert draw.residuals is not None
    grid = np.linspace(-1.6, 1.6, 3201)
    diagonal, vector = np.diag(eigenvalues), draw_of(eigenvalues, 4, seed=0)[0]
    moments = np.polynomial.chebyshev.chebvander(np.diag(diagonal) / 1.6, 8).T @ vector
    equations = np.polynomial.chebyshev.chebvander(grid / 1.6, 8).T
    for point in (-0.4, 0.0, 0.3):
        low, high = gauss_radau_masses(draw.nodes, draw.weights, draw.residuals, np.array([point]))[0]
        for strictly, expected, sign in ((True, low, 1), (False, high, -1)):
            below = (grid < point - 1e-9) if strictly else (grid <= point + 1e-9)
            found = linprog(sign * below.astype(float), A_eq=equations, b_eq=moments)
            assert sign * found.fun == pytest.approx(expected, abs=2e-3)
        assert 0.02 < high - low < 0.7


def test_outer_eigenvalues_are_counted() -> None:
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([rng.normal(size=395) * 0.3, [20.0, 30.0, 40.0, -15.0, -25.0]])
    for seed in range(20):
        _, draw = draw_of(eigenvalues, 40, seed)
        assert outside([draw], -8.0, 8.0, 1e-12) == (5.0, 5.0, 5.0)
        assert outside([draw], -8.0, math.inf, 1e-12) == (2.0, 2.0, 2.0)
        # Their start weights, which differ from draw to draw, are out of the estimate of the trace.
        assert draw.residuals is not None
        counted = Spectrum(draw.nodes[None], draw.weights[None], 400, residuals=draw.residuals[None])
        plain = Spectrum(draw.nodes[None], draw.weights[None], 400)
        assert abs(counted.trace - eigenvalues.sum()) < 3.5 * counted.trace.standard_error
        assert counted.trace.standard_error < plain.trace.standard_error / 2


def test_a_repeated_eigenvalue_is_not_taken_for_one() -> None:
    eigenvalues = np.repeat([2.0, -1.0, 1e-3], [60, 30, 10])
    _, draw = draw_of(eigenvalues, 50, seed=0)
    estimate, low, high = outside([draw], -0.5, 0.5, 1e-12)
    assert low <= 90 <= high and abs(estimate - 90) < 15
    _, draw = draw_of(np.repeat([2.0, 1.0], [4, 4]), 2, seed=0)
    assert outside([draw], -0.5, 0.5, 1e-12)[0] == 8


def test_zero_rows_are_known() -> None:
    # 60 of 100 rows are zero: the others are measured as if they were alone, and no zero passes for a small negative.
    rng = np.random.default_rng(1)
    values = np.concatenate([np.zeros(60), rng.uniform(1, 2, 25), -rng.uniform(1, 2, 15)])
    for seed in range(10):
        _, draw = draw_of(values, 25, seed)
        _, low, high = outside([draw], -1e-9, math.inf, 1e-12)
        assert low <= 15 <= high and high - low < 25
        assert high <= 40
    found = quadrature(lambda v: 0 * v, 7, 3, th.Generator(), th.empty(0))
    assert found.exact and found.nodes.tolist() == [0.0] and found.weights.tolist() == [1.0]


CASES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "bulk and outliers": lambda rng: np.concatenate([rng.normal(size=300) * 0.1, rng.uniform(1, 30, 20)]),
    "zeros": lambda rng: np.concatenate([rng.normal(size=100) * 1e-9, 10 ** rng.uniform(-3, 2, 150)]),
    "both signs": lambda rng: rng.standard_t(2, size=300),
}


@pytest.mark.parametrize("draws", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_coverage_on_diagonal_matrices(name: str, draws: int) -> None:
    # 200 start vectors of 25 steps; the slow test does so on networks.
    eigenvalues = CASES[name](np.random.default_rng(5))
    ends = [(-0.05, 0.05), (-0.5, 0.5), (-2.0, 2.0), (-1e-6, math.inf)]
    hits, widths = np.zeros(len(ends)), np.zeros(len(ends))
    for seed in range(200):
        parts = [draw_of(eigenvalues, 25, 1000 * part + seed)[1] for part in range(draws)]
        for index, (below, above) in enumerate(ends):
            estimate, low, high = outside(parts, below, above, 1e-12)
            assert low <= estimate <= high
            hits[index] += low <= ((eigenvalues < below) | (eigenvalues > above)).sum() <= high
            widths[index] += (high - low) / 200
    assert (hits >= 190).all(), hits
    assert (widths < len(eigenvalues)).all()


def test_without_residuals_nothing_is_counted() -> None:
    # 70% of the weight in one node at 0.004: below 0.004 it counts, above it does not.
    spectrum = Spectrum(np.array([[-2.0, 0.004, 1.0, 5.0]]), np.array([[0.1, 0.7, 0.15, 0.05]]), dim=1000)
    rank = spectrum.epsilon_rank(0.003)
    assert rank == pytest.approx(1.0) and rank.low <= 0.2 and rank.high == 1.0
    rank = spectrum.epsilon_rank(0.01)
    assert rank == pytest.approx(0.3) and rank.low <= 0.05 and rank.high == 1.0
    assert spectrum.epsilon_rank_bounds(0.01) == (rank.low, rank.high)
    # Between 1 and 5 lies no node: the start vector's sampling of 0.2 of 1,000 directions remains at the upper end.
    low, high = spectrum.epsilon_rank_bounds(3.0, normalized=False)
    assert low == 0.0 and high == pytest.approx(300 + 2.326 * math.sqrt(2 * 1000 * 0.3 * 0.7), abs=10)


def test_an_exact_spectrum_has_no_slack() -> None:
    spectrum = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=8)
    assert spectrum.epsilon_rank_bounds(0.5) == (0.375, 0.375)
    assert spectrum.epsilon_rank_bounds(2.0, normalized=False) == (1.0, 1.0)
    assert (spectrum.negative_fraction.low, spectrum.negative_fraction.high) == (0.125, 0.125)
