"""Spectrum's measures by hand, its file format, and the table of a run's files."""

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_plasticity.curvature import Measure, Spectrum, load_spectra, loggable

# Ten eigenvalues: 4, 1, -1 and seven zeros.
TEN = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=10)


def test_measures_by_hand() -> None:
    assert TEN.epsilon_rank(0.5) == pytest.approx(0.3)
    assert TEN.epsilon_rank(1.0) == pytest.approx(0.1)  # strict
    assert TEN.epsilon_rank(0.5, normalized=False) == pytest.approx(3)
    assert TEN.epsilon_rank(0.5, relative=True) == pytest.approx(0.1)  # above 2
    assert TEN.epsilon_rank(0.2, relative=True, normalized=False) == pytest.approx(3)  # above 0.8
    assert (TEN.largest, TEN.smallest) == (4.0, -1.0)
    assert TEN.trace == pytest.approx(4.0)
    assert TEN.negative_fraction == pytest.approx(0.1)
    # Shares 2/3, 1/6, 1/6 of the absolute eigenvalues.
    entropy = -(2 / 3 * math.log(2 / 3) + 2 * 1 / 6 * math.log(1 / 6))
    assert TEN.effective_rank() == pytest.approx(math.exp(entropy), rel=1e-14)
    assert Spectrum.from_eigenvalues(np.ones(6)).effective_rank() == pytest.approx(6, rel=1e-12)
    assert Spectrum.from_eigenvalues([], dim=6).effective_rank() == 1.0
    assert Spectrum.from_eigenvalues([], dim=6).epsilon_rank(0.1, relative=True) == 0.0


def test_effective_rank_counts_multiplicity() -> None:
    # One node of weight 1/2 stands for 50 of 100 eigenvalues.
    spectrum = Spectrum(np.array([[0.0, 3.0]]), np.array([[0.5, 0.5]]), 100)
    assert spectrum.effective_rank() == pytest.approx(50, rel=1e-12)
    assert spectrum.trace == pytest.approx(150)


def test_standard_errors() -> None:
    assert TEN.trace.standard_error == 0.0 and (TEN.trace.low, TEN.trace.high) == (4.0, 4.0)
    # v^T A v of a random direction v in n dimensions has variance 2 / (n (n + 2)) (tr A^2 - (tr A)^2 / n).
    single = Spectrum(np.array([[0.0, 3.0]]), np.array([[0.5, 0.5]]), 4)
    error = 4 * math.sqrt(2 / (4 * 6) * (18 - 6**2 / 4))
    assert single.trace == 6.0 and single.trace.standard_error == pytest.approx(error)
    assert single.trace.high == pytest.approx(6 + 2.326348 * error)
    pair = Spectrum(np.array([[0.0, 3.0], [0.0, 5.0]]), np.array([[0.5, 0.5], [0.75, 0.25]]), 4)
    second = 4 * math.sqrt(2 / (4 * 6) * (25 - 5**2 / 4))
    assert pair.trace == pytest.approx((6 + 5) / 2)
    assert pair.trace.standard_error == pytest.approx(math.sqrt((error**2 + second**2) / 2 / 2))
    # The largest node of any draw is the best lower bound; without residuals it has no error.
    assert pair.largest == 5.0 and math.isnan(pair.largest.standard_error)
    assert pair.epsilon_rank(0.1) == pytest.approx(0.375)
    assert pair.epsilon_rank(0.5, relative=True, normalized=False) == pytest.approx(1.5)


def test_the_error_of_random_start_vectors() -> None:
    # Against 4,000 random directions of a diagonal matrix, whose weights are exactly the shares of the quadrature.
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=30), np.zeros(10)])
    directions = rng.normal(size=(4000, 40)) ** 2
    directions /= directions.sum(1, keepdims=True)
    exact = Spectrum(values[None], np.full((1, 40), 1 / 40), 40)
    for measure in ("trace", "effective_rank"):
        estimates = []
        for weights in directions:
            spectrum = Spectrum(values[None], weights[None], 40)
            estimates.append(float(spectrum.trace if measure == "trace" else spectrum.effective_rank()))
        found = exact.trace if measure == "trace" else exact.effective_rank()
        assert found.standard_error == pytest.approx(np.std(estimates), rel=0.05)


def test_what_is_logged() -> None:
    narrow, wide = Measure(0.5, low=0.4, high=0.6), Measure(0.5, low=0.1, high=0.9)
    assert loggable({"a": narrow, "b": wide, "c": Measure(1.0), "d": Measure(0.0, 0.0)}) == {
        "a": 0.5, "b_low": 0.1, "b_high": 0.9, "c": 1.0, "d": 0.0,
    }  # fmt: skip


def test_measure_is_a_float_and_survives_pickling() -> None:
    measure = Measure(2.0, 0.5)
    assert isinstance(measure, float) and measure + 1 == 3.0
    for twin in (pickle.loads(pickle.dumps(measure)), copy.deepcopy(measure)):
        assert twin == 2.0 and (twin.standard_error, twin.low, twin.high) == (0.5, measure.low, measure.high)


def test_epsilon_rank_far_below_a_density_grid() -> None:
    # 10,000 grid points over [-1000, 1000] are 0.2 apart: no density can tell 1e-7 from 1e-5, nodes and weights can.
    values = [1000.0, -1000.0, *[1e-5] * 20, *[1e-7] * 30]
    spectrum = Spectrum.from_eigenvalues(values, dim=100)
    golden = {1e-8: 52, 1e-7: 22, 1e-6: 22, 1e-5: 2, 0.1: 2, 999.0: 2, 1000.0: 0}
    for eps, count in golden.items():
        assert spectrum.epsilon_rank(eps, normalized=False) == pytest.approx(count, abs=1e-9), eps
    grid = np.linspace(-1000, 1000, 10_000)
    step = grid[1] - grid[0]
    density = spectrum.density(grid, bandwidth=step)
    on_grid = 100 * (density * (np.abs(grid) > 1e-6)).sum() * step
    assert on_grid == pytest.approx(100, rel=1e-2)  # the trap: everything seems to be above 1e-6


def test_negative_fraction_ignores_rounding() -> None:
    spectrum = Spectrum.from_eigenvalues([1.0, -1e-9, -1e-3], dim=4, rounding=1e-6)
    assert spectrum.negative_fraction == pytest.approx(0.25)


def test_density_integrates_to_one() -> None:
    spectrum = Spectrum(np.array([[0.0, 3.0], [1.0, 5.0]]), np.array([[0.5, 0.5], [0.75, 0.25]]), 4)
    grid = np.linspace(-3, 8, 4001)
    density = spectrum.density(grid, bandwidth=0.3)
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-9)
    # At 5 only the second draw's second node: weight 1/4 of half of the draws.
    peak = spectrum.density(np.array([5.0]), bandwidth=0.1)[0]
    assert peak == pytest.approx(0.125 / (0.1 * math.sqrt(2 * math.pi)), rel=1e-9)


def test_arrays_are_float64_and_frozen() -> None:
    spectrum = Spectrum(np.array([[1, 2]]), np.array([[0.5, 0.5]], dtype=np.float32), 2)
    assert spectrum.nodes.dtype == spectrum.weights.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        spectrum.nodes[0, 0] = 3


@pytest.mark.parametrize(
    "nodes, weights, dim, message",
    [
        ([1.0], [1.0], 1, r"`nodes` must be of shape \(draws, k\)"),
        ([[1.0]], [[1.0, 0.0]], 1, "`weights` must be of the shape of `nodes`"),
        ([[math.nan]], [[1.0]], 1, "nodes contain NaN"),
        ([[1.0, 2.0]], [[0.5, 0.6]], 2, "sum to 1"),
        ([[1.0, 2.0]], [[1.5, -0.5]], 2, ">= 0"),
        ([[1.0]], [[1.0]], 0, "`dim` must be a whole number >= 1, got 0"),
    ],
)
def test_bad_spectrum(nodes: list[Any], weights: list[Any], dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spectrum(np.array(nodes), np.array(weights), dim)


def test_bad_arguments() -> None:
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`eps` must be"):
            TEN.epsilon_rank(eps)
    with pytest.raises(ValueError, match="`bandwidth` must be a finite number > 0"):
        TEN.density(np.zeros(1), 0.0)
    with pytest.raises(ValueError, match="k <= dim=1"):
        Spectrum.from_eigenvalues([1.0, 2.0], dim=1)


def test_save_and_load(tmp_path: Path) -> None:
    info = {"step": np.int64(4096), "task_index": 2, "network": "policy", "kind": "ggn", "eps": np.array([0.1, 0.2])}
    rng = np.random.default_rng(0)
    weights = rng.random((3, 7))
    spectrum = Spectrum(
        rng.standard_normal((3, 7)), weights / weights.sum(1, keepdims=True), 50, rounding=1e-7, info=info
    )
    path = spectrum.save(tmp_path / "new" / "record")
    assert path == tmp_path / "new" / "record.npz"
    twin = Spectrum.load(path)
    np.testing.assert_array_equal(twin.nodes, spectrum.nodes)
    np.testing.assert_array_equal(twin.weights, spectrum.weights)
    assert (twin.dim, twin.exact, twin.rounding) == (50, False, 1e-7)
    assert twin.info == {"step": 4096, "task_index": 2, "network": "policy", "kind": "ggn", "eps": [0.1, 0.2]}
    assert twin.residuals is None and twin.trace.standard_error == spectrum.trace.standard_error
    # A record of an earlier day has no residuals.
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "residuals"}
    np.savez(tmp_path / "old.npz", **arrays)
    assert Spectrum.load(tmp_path / "old.npz").epsilon_rank(0.5) == spectrum.epsilon_rank(0.5)
    kept = dataclasses.replace(spectrum, residuals=rng.random((3, 7)))
    np.testing.assert_array_equal(Spectrum.load(kept.save(tmp_path / "kept")).residuals, kept.residuals)
    with pytest.raises(FileExistsError):
        TEN.save(path)
    np.testing.assert_array_equal(Spectrum.load(path).nodes, spectrum.nodes)
    TEN.save(path, overwrite=True)
    assert Spectrum.load(path).exact and Spectrum.load(path).dim == 10


def test_load_and_save_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluations.npz", results=np.zeros(3))
    with pytest.raises(ValueError, match="no saved Spectrum"):
        Spectrum.load(tmp_path / "evaluations.npz")
    with pytest.raises(TypeError, match="`info` must hold"):
        Spectrum.from_eigenvalues([1.0], info={"model": object()}).save(tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_load_spectra(tmp_path: Path) -> None:
    for step, network in ((2000, "value"), (100, "policy"), (100, "value")):
        info = {"step": step, "task_index": step // 1000, "network": network, "kind": "ggn", "n_samples": 64}
        spectrum = Spectrum.from_eigenvalues([4.0, 1.0, -1.0], dim=10, info=info)
        spectrum.save(tmp_path / network / f"{step}.npz")
    np.savez(tmp_path / "evaluations.npz", results=np.zeros(3))
    np.savez(tmp_path / "objects.npz", results=np.array([{}], dtype=object))
    table = load_spectra(tmp_path, epsilon=(0.5, 2.0))
    assert table.columns[:7].tolist() == ["run", "step", "task_index", "network", "kind", "n_samples", "dim"]
    assert table.step.tolist() == [100, 100, 2000]
    assert table.network.tolist() == ["policy", "value", "value"]
    assert table.run.tolist() == ["policy", "value", "value"]
    np.testing.assert_allclose(table["epsilon_rank_0.5"], 0.3)
    np.testing.assert_allclose(table["epsilon_rank_2"], 0.1)
    np.testing.assert_allclose(table["trace"], 4.0)
    assert (table["trace_se"] == 0).all()
    assert table.spectrum[0].dim == 10


def test_load_spectra_of_nothing(tmp_path: Path) -> None:
    table = load_spectra(tmp_path)
    assert len(table) == 0 and "step" in table.columns
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_spectra(tmp_path / "nowhere")


def test_runs_are_told_apart(tmp_path: Path) -> None:
    for run in ("b/seed_1", "a"):
        for step in (200, 100):
            path = tmp_path / run / "curvature" / f"{step}.npz"
            Spectrum.from_eigenvalues([1.0], info={"step": step}).save(path)
    table = load_spectra(tmp_path)
    assert list(zip(table.run, table.step, strict=True)) == [
        ("a", 100), ("a", 200), ("b/seed_1", 100), ("b/seed_1", 200),
    ]  # fmt: skip
    assert (
        load_spectra(tmp_path / "a").run.tolist()
        == load_spectra(tmp_path / "a" / "curvature").run.tolist()
        == ["."] * 2
    )


def test_a_failing_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TEN.save(tmp_path / "x")

    def full_disk(file: Path, **arrays: Any) -> None:
        Path(file).write_bytes(b"PK\x03\x04")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    for target in (path, tmp_path / "y.npz"):
        with pytest.raises(OSError, match="No space"):
            Spectrum.from_eigenvalues([1.0]).save(target, overwrite=True)
    assert Spectrum.load(path).dim == 10
    assert list(tmp_path.iterdir()) == [path]


def damage(folder: Path) -> list[str]:
    """Files of every kind that is no whole record; the names of those that a warning must name."""
    data = TEN.save(folder / "whole.npz").read_bytes()
    for length in (0, 1, 300, len(data) - 1):
        (folder / f"cut_{length}.npz").write_bytes(data[:length])
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 40):
        flipped = bytearray(data)
        flipped[place] ^= 0xFF
        (folder / f"flipped_{place}.npz").write_bytes(flipped)
    np.save(folder / "plain.npy", np.zeros(3))
    (folder / "plain.npy").rename(folder / "plain.npz")
    (folder / "folder.npz").mkdir()
    (folder / "dangling.npz").symlink_to(folder / "nowhere")
    (folder / "text.npz").write_text("no archive")
    with np.load(folder / "whole.npz") as file:
        arrays: dict[str, Any] = dict(file)
    np.savez(folder / "format_only.npz", format=arrays["format"])
    np.savez(folder / "version.npz", **arrays | {"format": "sb3_plasticity.Spectrum/99"})
    np.savez(folder / "json.npz", **arrays | {"info": "{"})
    np.savez(folder / "nan.npz", **arrays | {"nodes": np.full_like(arrays["nodes"], np.nan)})
    np.savez(folder / "evaluations.npz", results=np.zeros(3))
    return [path.name for path in folder.iterdir() if path.name not in ("whole.npz", "evaluations.npz")]


def test_damaged_files_are_passed_over_and_named(tmp_path: Path) -> None:
    names = damage(tmp_path)
    with pytest.warns(UserWarning, match="passed over damaged files") as caught:
        table = load_spectra(tmp_path)
    message = str(caught[0].message)
    assert len(caught) == 1 and "evaluations" not in message and "whole.npz" not in message
    # A flipped byte in a zip's time stamp damages nothing, one in a member's name makes another member of it.
    read = {Path(path).name for path in table.path}
    assert "whole.npz" in read and read <= {"whole.npz", *(name for name in names if name.startswith("flipped"))}
    missing = [name for name in names if name not in read and f"{name} (" not in message]
    assert all(name.startswith("flipped") for name in missing) and len(missing) <= 2
    assert all((spectrum.nodes == TEN.nodes).all() for spectrum in table.spectrum)
    with pytest.raises(ValueError, match=r"cut_300\.npz is no whole saved Spectrum"):
        Spectrum.load(tmp_path / "cut_300.npz")
