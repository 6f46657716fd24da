"""The continual digits example: fair comparison, the objective it says, numbers that can be worked out otherwise."""

import importlib.util
import itertools
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sklearn")

from sb3_plasticity import load_spectra, mitigate

PATH = Path(__file__).parents[1] / "examples" / "continual_digits.py"
sys.path.insert(0, str(PATH.parent))  # as for a script: what the examples share lies beside them
SPEC = importlib.util.spec_from_file_location("continual_digits", PATH)
assert SPEC is not None and SPEC.loader is not None
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

ARGS = Namespace(tasks=2, every=1, l2_coef=1e-4, er_coef=1e-3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Every method on two tasks of two seeds: 320 digits, 40 rows and 10 Lanczos steps for each Hessian."""
    folder = tmp_path_factory.mktemp("digits")
    digits = example.load_digits()
    few = Namespace(data=digits.data[:320], target=digits.target[:320])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "load_digits", lambda: few)
        patch.setattr(example, "HESSIAN_SAMPLES", 40)
        patch.setattr(example, "GGN_SAMPLES", 8)
        patch.setattr(example, "LANCZOS_STEPS", 10)
        runs = [example.run(method, seed, ARGS, folder) for seed in (0, 1) for method in example.METHODS]
    return folder, pd.concat(runs, ignore_index=True)


def small_task(n_samples: int = 96) -> tuple[th.Tensor, th.Tensor, list[th.Tensor]]:
    rng = th.Generator().manual_seed(3)
    images = th.rand(n_samples, 64, generator=rng)
    labels = th.randint(10, (n_samples,), generator=rng)
    return images, labels, list(th.randperm(n_samples, generator=rng).split(32))


def test_tasks_and_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (list(example.make_tasks(seed, 2, 100)) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert th.equal(a.pixels, b.pixels) and th.equal(a.classes, b.classes)
        assert all(map(th.equal, a.batches, b.batches))
    assert not th.equal(first[0].pixels, first[1].pixels) and not th.equal(first[0].pixels, other[0].pixels)
    state = th.get_rng_state()
    a, b, c = (nn.utils.parameters_to_vector(example.make_network(seed).parameters()) for seed in (0, 0, 1))
    assert th.equal(a, b) and not th.equal(a, c) and th.equal(state, th.get_rng_state())
    assert len(a) == 3 * (64 * 64 + 64) + 64 * 10 + 10


def test_a_task_shows_every_image_twice() -> None:
    (task,) = example.make_tasks(0, 1, 1797)
    assert task.pixels.sort().values.tolist() == list(range(64))
    assert task.classes.sort().values.tolist() == list(range(10))
    assert {len(rows) for rows in task.batches[:-1]} == {32, 1797 % 32}
    assert th.cat(task.batches).bincount().tolist() == [2] * 1797


def test_bp_is_plain_training_bit_for_bit() -> None:
    images, labels, batches = small_task()
    ours, plain = example.make_network(0), example.make_network(0)
    adam = [th.optim.Adam(network.parameters(), lr=3e-3) for network in (ours, plain)]
    accuracy, loss = example.train_task(ours, adam[0], images, labels, batches)
    right, losses = 0, []
    for rows in batches:
        logits = plain(images[rows])
        value = F.cross_entropy(logits, labels[rows])
        adam[1].zero_grad()
        value.backward()
        adam[1].step()
        right += int((logits.argmax(1) == labels[rows]).sum())
        losses.append(value.item())
    assert all(map(th.equal, ours.parameters(), plain.parameters()))
    assert accuracy == right / 96 and loss == pytest.approx(np.mean(losses), rel=1e-6)


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of E[a a^T]'s normalised eigenvalues, written down once more."""
    shares = np.linalg.eigvalsh(features.T @ features / len(features)).clip(1e-30)
    shares = shares / shares.sum()
    result: float = np.exp(-(shares * np.log(shares)).sum())
    return result


def test_l2_er_descends_the_objective() -> None:
    """
    Central differences in float64 of cross-entropy + l2 ||theta||^2 - 4 er mean_l erank(a_l), the rank in every fourth
    step.
    """
    images, labels, batches = small_task(32)
    images = images.double()
    network = example.make_network(0).double()

    def vector() -> th.Tensor:
        return nn.utils.parameters_to_vector(network.parameters()).detach().clone()

    def objective(vector: th.Tensor, er_coef: float) -> float:
        nn.utils.vector_to_parameters(vector, network.parameters())
        features, ranks = images, []
        with th.no_grad():
            for layer in list(network)[:-1]:
                features = layer(features)
                ranks += [effective_rank(features.numpy())] if isinstance(layer, nn.ReLU) else []
            value = F.cross_entropy(network[-1](features), labels) + 0.1 * vector.square().sum()
        return float(value) - 4 * er_coef * float(np.mean(ranks))

    direction = th.randn(len(vector()), generator=th.Generator().manual_seed(0), dtype=th.float64)
    sgd = th.optim.SGD(network.parameters(), lr=1e-2)
    with mitigate(network, sgd, example.METHODS["L2-ER"].mitigations(0.1, 0.02)):
        for step in range(5):
            theta = vector()
            er_coef = 0.02 if step % 4 == 0 else 0.0
            ends = [objective(theta + sign * direction, er_coef) for sign in (1e-6, -1e-6)]
            nn.utils.vector_to_parameters(theta.clone(), network.parameters())
            example.train_task(network, sgd, images, labels, batches)
            slope = (ends[0] - ends[1]) / 2e-6
            assert -float((vector() - theta) @ direction) / 1e-2 == pytest.approx(slope, rel=1e-6)


def test_methods_differ_by_their_terms_only(tables: tuple[Path, pd.DataFrame]) -> None:
    _, table = tables
    first: Any = table[table.task == 0].set_index(["seed", "method"])
    for seed in (0, 1):
        # Before any training all methods of one activation are one network on one task.
        activations = {name: method.activation.__name__ for name, method in example.METHODS.items()}
        for column in ("effective_rank", "hessian_rank", "ggn_rank"):
            assert (first.loc[seed, column].groupby(activations).nunique() == 1).all()
        # What acts at the change of a task, or after more than 20 minibatches, is still idle: CBP-L2 is L2.
        waits = ["Shrink-Perturb", "CBP", "ReDo", "SNR", "FIRE", "Reset"]
        losses = first.loc[seed, "loss"]
        assert (losses[waits] == losses["BP"]).all() and losses["CBP-L2"] == losses["L2"]
        assert losses.nunique() == len(example.METHODS) - len(waits) - 1
        second = table[(table.task == 1) & (table.seed == seed)].set_index("method").loss
        assert second[["BP", "Shrink-Perturb", "FIRE", "Reset"]].nunique() == 4
    assert len(example.METHODS) >= 12
    assert len(table) == 2 * 2 * len(example.METHODS) and table.accuracy.between(0, 1).all()


def test_a_run_that_was_broken_off_goes_on(tables: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, table = tables
    monkeypatch.setattr(example, "load_digits", lambda: pytest.fail("trained again"))
    again = example.run("ER", 1, ARGS, folder)
    expected = table[(table.method == "ER") & (table.seed == 1)].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected)


def test_methods_are_split_by_their_loss() -> None:
    """BP falls by 12.5 points on both seeds, ER on one and rises on the other, the others stay."""
    rows = []
    for method, seed, task in itertools.product(example.METHODS, (0, 1), range(30)):
        fall = {"BP": 0.125, "ER": 0.125 if seed else -0.125}.get(method, 0.0)
        rows.append({"method": method, "seed": seed, "task": task, "accuracy": 0.75 - fall * (task >= 27)})
    lose, keep = example.groups(pd.DataFrame(rows))
    assert lose == ["BP"] and len(keep) == len(example.METHODS) - 1
    assert example.changes(pd.DataFrame(rows))["BP"].value == pytest.approx(-12.5)


def test_rows_equal_the_saved_spectra(tables: tuple[Path, pd.DataFrame]) -> None:
    folder, table = tables
    spectra = load_spectra(folder / "spectra", epsilon=(0.1, 0.01))
    assert len(spectra) == 2 * len(table) and set(spectra.dim) == {13_130}
    hessians = spectra[spectra.kind == "hessian"].rename(columns={"task_index": "task"})
    both = table.merge(hessians, on=["method", "seed", "task"], suffixes=("", "_saved"))
    assert len(both) == len(table)
    for ours, saved in (("", ""), ("_low", "_low"), ("_high", "_high")):
        np.testing.assert_array_equal(both[f"hessian_rank{ours}"], both[f"epsilon_rank_0.1{saved}"])
    # 8 samples with 10 classes, whose logits can be shifted together: at most 72 eigenvalues.
    ggns = spectra[spectra.kind == "ggn"].spectrum
    assert max(ggn.epsilon_rank(ggn.rounding, normalized=False) for ggn in ggns) <= 72


def test_curvature_is_that_of_the_cross_entropy() -> None:
    """For a linear network the Hessian is the GGN; its trace is mean_n |(x, 1)|^2 (1 - |p|^2)."""
    images, labels, _ = small_task(40)
    network = nn.Sequential(nn.Linear(64, 10))
    spectra = example.measure(network, images, labels)
    probs = F.softmax(network(images), 1)
    trace = ((images.square().sum(1) + 1) * (1 - probs.square().sum(1))).mean().item()
    assert spectra["ggn"].trace == pytest.approx(trace, rel=1e-5)
    assert spectra["hessian"].largest == pytest.approx(spectra["ggn"].largest, rel=1e-4)


def linear_table(offsets: dict[str, float]) -> pd.DataFrame:
    """Accuracy = rank + the method's offset: a perfect line within each method."""
    rows = itertools.product(range(3), offsets, range(5))
    return pd.DataFrame(
        [
            {"seed": seed, "method": method, "task": task, "hessian_rank": rank, "accuracy": rank + offsets[method]}
            for seed, method, task in rows
            for rank in (0.1 * task + 0.01 * seed,)
        ]
    )


def test_fit_leaves_out_the_fresh_network_and_differences_between_methods() -> None:
    table = linear_table({"BP": 0.0, "L2": 0.5})
    table.loc[table.task == 0, "accuracy"] = 7.0
    x, y = table[table.task > 0][["hessian_rank", "accuracy"]].to_numpy().T
    slope, intercept = np.polyfit(x, y, 1)
    fit = example.fit_accuracy(table, "hessian_rank")
    assert fit.n == 24 and fit.slope == pytest.approx(slope) and fit.intercept == pytest.approx(100 * intercept)
    explained = 1 - (y - slope * x - intercept).var() / y.var()
    assert fit.r_squared.value == pytest.approx(explained) and explained < 0.5
    assert fit.r_squared.low <= explained <= fit.r_squared.high
    fit = example.fit_accuracy(table, "hessian_rank", "method")
    assert [fit.r_squared.low, fit.r_squared.value, fit.slope] == pytest.approx([1, 1, 1])


def test_command_reports_and_draws(
    tables: tuple[Path, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Everything but the processes, whose work is the fixture's."""
    folder, table = tables

    def run_all(args: Namespace, new_folder: Path) -> pd.DataFrame:
        assert (new_folder / "settings.json").exists()
        assert (args.seeds, args.tasks, args.l2_coef, args.er_coef) == (5, 2, 1e-4, 1e-3)
        shutil.copytree(folder / "spectra", new_folder / "spectra")
        return table

    monkeypatch.setattr(example, "run_all", run_all)
    monkeypatch.setattr(sys, "argv", ["continual_digits.py", "--tasks", "2", "--every", "1", "--out", str(tmp_path)])
    example.main()
    text = capsys.readouterr().out
    later = table[(table.task == 1) & (table.method == "ER")].sort_values("seed").accuracy * 100
    (line,) = [
        line for line in text.split("online accuracy")[1].split("\n\n")[0].splitlines() if line.startswith("ER ")
    ]
    # Two seeds: the interquartile mean is the mean, the interval's ends are the two seeds.
    assert f"{later.mean():.1f} [ {later.min():.1f}, {later.max():.1f}]" in line
    (made,) = tmp_path.iterdir()
    pd.testing.assert_frame_equal(pd.read_csv(made / "tasks.csv"), table, check_exact=False, rtol=1e-4)
    assert (made / "continual_digits.png").stat().st_size > 50_000
    assert (made / "continual_digits.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("bad", ["--seeds 0", "--tasks 5", "--er-coef nan", "--l2-coef -1.0"])
def test_bad_arguments_are_refused_at_once(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["continual_digits.py", "--out", str(tmp_path), *bad.split()])
    with pytest.raises(SystemExit):
        example.main()
    assert f"{bad}: accepted are" in capsys.readouterr().err and not list(tmp_path.iterdir())
