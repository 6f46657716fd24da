"""The continual images example: equal tasks and weights, plain training, resuming, numbers worked out otherwise."""

import importlib.util
import json
import re
import struct
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from sb3_plasticity import Spectrum

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        spec = importlib.util.spec_from_file_location("continual_images", EXAMPLES / "continual_images.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def small(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few units, minibatches of 400, and 8 images and 6 Lanczos steps for each Hessian."""
    monkeypatch.setattr(example, "CHANNELS", (2, 2, 4))
    monkeypatch.setattr(example, "UNITS", 8)
    monkeypatch.setattr(example, "BATCH", 400)
    monkeypatch.setattr(example, "HESSIAN_SAMPLES", 8)
    monkeypatch.setattr(example, "LANCZOS_STEPS", 6)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise whose mean depends on the class."""
    folder, generator = tmp_path_factory.mktemp("fashion"), np.random.default_rng(0)
    for part, count in (("train", 600), ("t10k", 100)):
        classes = np.repeat(np.arange(10, dtype=np.uint8), count)
        images = generator.integers(0, 60, (10 * count, 28, 28)) + 15 * classes[:, None, None]
        for kind, array in (("images-idx3", images.astype(np.uint8)), ("labels-idx1", classes)):
            header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


def settings(fashion: Path, out: Path, tasks: int = 3) -> Namespace:
    return Namespace(data=fashion, tasks=tasks, every=2, l2_coef=1e-4, er_coef=1e-3, out=out)


def test_bp_is_plain_adam(example: ModuleType, small: None, fashion: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(example.run("BP", 5, settings(fashion, tmp_path)))
    order, tasks = th.Generator().manual_seed(5), list(example.image_tasks(fashion, 3, 5))
    network = example.make_network(tasks[0].train_images[0], 5)
    optimizer = th.optim.Adam(network.parameters(), lr=3e-3, fused=True)
    seen = []
    for _ in range(2):
        for chosen in th.randperm(1200, generator=order).split(400):
            logits = network(tasks[0].train_images[chosen])
            optimizer.zero_grad()
            F.cross_entropy(logits, tasks[0].train_labels[chosen]).backward()
            optimizer.step()
            seen.append((logits.argmax(1) == tasks[0].train_labels[chosen]).float().mean().item())
    tested = (network(tasks[0].test_images).argmax(1) == tasks[0].test_labels).float().mean().item()
    # of the first task alone: the heads of the later ones are drawn by the mitigation
    assert rows.accuracy[0] == pytest.approx(np.mean(seen), abs=1e-5)
    assert rows.test_accuracy[0] == pytest.approx(tested, abs=1e-5)
    assert rows.task.tolist() == [0, 1, 2] and rows.name.tolist() == [task.name for task in tasks]


def test_the_hessian_is_that_of_the_new_task_under_the_old_weights_and_a_new_head(
    example: ModuleType, small: None, fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = example.measure

    def watched(network: nn.Sequential, task: Any, info: dict[str, Any], folder: Path) -> dict[str, float]:
        seen.append((task.name, {name: value.clone() for name, value in network.state_dict().items()}))
        result: dict[str, float] = before(network, task, info, folder)
        return result

    monkeypatch.setattr(example, "measure", watched)
    rows = pd.read_csv(example.run("BP", 1, settings(fashion, tmp_path)))
    names = [task.name for task in example.image_tasks(fashion, 3, 1)]
    assert [name for name, _ in seen] == [names[0], names[2]], "every second task"
    first, later = (state for _, state in seen)
    head, bound = list(first)[-2:], 1 / np.sqrt(8)  # torch draws a layer of 8 inputs from [-1, 1] / sqrt(8)
    assert all((later[name].abs() <= bound).all() and not th.equal(first[name], later[name]) for name in head)
    for task in (0, 2):
        spectrum = Spectrum.load(example.spectrum_path(tmp_path, "BP", 1, task))
        rank = spectrum.epsilon_rank(0.08)
        assert spectrum.dim == sum(value.numel() for value in first.values()) and spectrum.info["task_index"] == task
        row = rows.loc[task]
        assert row.hessian_rank == pytest.approx(float(rank), rel=1e-4)
        assert row.hessian_rank_low <= row.hessian_rank <= row.hessian_rank_high
    assert rows.hessian_rank.isna().tolist() == [False, True, False]


def test_methods_start_from_equal_weights_and_differ_by_their_mitigations(
    example: ModuleType, small: None, fashion: Path, tmp_path: Path
) -> None:
    (task,) = example.image_tasks(fashion, 1, 0)
    a, b, c = (
        parameters_to_vector(example.make_network(task.train_images[0], seed).parameters()) for seed in (0, 0, 1)
    )
    assert th.equal(a, b) and not th.equal(a, c)
    given = settings(fashion, tmp_path, tasks=2)
    some = ("BP", "L2-ER", "L2-Init", "Shrink-Perturb", "LayerNorm-L2", "CReLU", "CBP", "ReGraMa", "FIRE", "Reset")
    tables = {method: pd.read_csv(example.run(method, 0, given)) for method in some}
    for method, table in tables.items():
        assert np.isfinite(table[["accuracy", "test_accuracy"]]).all(axis=None), method
        assert table.name.tolist() == tables["BP"].name.tolist()
    nothing = settings(fashion, tmp_path / "0", tasks=2)
    nothing.l2_coef = 0.0
    pd.testing.assert_frame_equal(
        pd.read_csv(example.run("L2", 0, nothing)).drop(columns="method"), tables["BP"].drop(columns="method")
    )


def test_the_same_command_goes_on_and_counts_whole_seeds(
    example: ModuleType, small: None, fashion: Path, tmp_path: Path
) -> None:
    done = example.run("BP", 0, settings(fashion, tmp_path))
    before = done.stat().st_mtime_ns
    assert example.run("BP", 0, settings(fashion, tmp_path)) == done and done.stat().st_mtime_ns == before
    assert example.finished(tmp_path, ["BP", "L2"]).empty
    for method, seed in (("L2", 0), ("L2", 1), ("CBP-L2", 0)):
        example.run(method, seed, settings(fashion, tmp_path))
    whole = example.finished(tmp_path, ["BP", "L2"])
    assert whole.groupby(["method", "seed"]).size().to_dict() == {("BP", 0): 3, ("L2", 0): 3}


def rows_of(method: str, seed: int, accuracy: np.ndarray, rank: np.ndarray) -> pd.DataFrame:
    n = len(accuracy)
    columns: dict[str, Any] = {
        "accuracy": accuracy,
        "test_accuracy": accuracy,
        "effective_rank": np.ones(n),
        "hessian_rank": rank,
    }
    table = pd.DataFrame({"method": method, "seed": seed, "task": range(n), **columns})
    return table.assign(hessian_rank_low=table.hessian_rank - 0.01, hessian_rank_high=table.hessian_rank + 0.01)


def test_report_by_hand(example: ModuleType) -> None:
    """BP falls by 20 points where L2 stays; the rank of every task start is a tenth of its accuracy."""
    falls = np.r_[1.0, np.full(3, 0.9), np.full(4, 0.8), np.full(4, 0.7)]
    tables = [rows_of("BP", seed, falls + 0.01 * seed, (falls + 0.01 * seed) / 10) for seed in (0, 1)]
    tables += [rows_of("L2", seed, np.full(12, 0.9), np.full(12, 0.09)) for seed in (0, 1)]
    text = example.report(pd.concat(tables, ignore_index=True), ["BP", "L2"])
    lines = text.splitlines()
    start = lines.index("online accuracy, %")
    cells = [re.split(r"  +", line.strip()) for line in lines[start + 2 : start + 4]]
    # first third: tasks 1 to 3 (the very first is left out); last third: tasks 8 to 11; last 10%: the last task
    assert cells[0] == ["BP", "90.5 [90.0, 91.0]", "70.5 [70.0, 71.0]", "70.5 [70.0, 71.0]", "-20.0 [-20.0, -20.0]",
                        "0.0 [0.0, 0.0]"]  # fmt: skip
    assert cells[1][-2:] == ["0.0 [0.0, 0.0]", "19.5 [19.0, 20.0]"]
    assert "all task starts   R^2 1.00 [1.00, 1.00], Spearman 1.00 [1.00, 1.00], slope +10.00, 44 task starts" in text
    assert "2 points wide" in text


def run_main(example: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["continual_images.py", *map(str, words)])
    example.main()


def test_command_line(
    example: ModuleType,
    small: None,
    fashion: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for method in ("BP", "Reset"):
        example.run(method, 0, settings(fashion, tmp_path))
    given = ["--data", fashion, "--tasks", 3, "--every", 2, "--seeds", 1, "--methods", "BP", "Reset", "--out", tmp_path]
    run_main(example, monkeypatch, *given)
    assert "R^2 of a task's online accuracy" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tasks.csv", "report.txt", "images_accuracy.png", "images_spectra.png", "settings.json"} <= names
    assert json.loads((tmp_path / "settings.json").read_text())["image"] == [1, 28, 28]
    for words, message in (
        (["--every", 3], "`every` must be that of the runs in"),
        (["--methods", "BPP"], "`methods` must be"),
        (["--tasks", 2], "`tasks` must be a whole number >= 3, got 2"),
        (["--l2-coef", "nan"], "`l2-coef` must be a finite number >= 0, got nan"),
        (["--data", tmp_path / "none"], "`data` must be a folder with Continual ImageNet's"),
    ):
        with pytest.raises(SystemExit) as error:
            run_main(example, monkeypatch, *given, *words)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_continual_imagenet(example: ModuleType, small: None, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(4):
        images = generator.integers(0, 100, (620, 3, 32, 32), dtype=np.uint8) + np.uint8(30 * number)
        np.save(tmp_path / f"{number}.npy", images)
    rows = pd.read_csv(example.run("LayerNorm", 0, settings(tmp_path, tmp_path / "out")))
    assert len(rows) == 3 and rows.accuracy.iloc[-1] > 0.5
