"""The continual digits example: fair comparison, the objective it says, numbers that can be worked out otherwise."""

import importlib.util
import itertools
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

pytest.importorskip("sklearn")

from sb3_plasticity import load_spectra

PATH = Path(__file__).parents[1] / "examples" / "continual_digits.py"
SPEC = importlib.util.spec_from_file_location("continual_digits", PATH)
example = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(example)

ARGS = Namespace(tasks=2, every=1, l2_coef=1e-4, er_coef=1e-3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
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
    return folder, pd.DataFrame([row for rows in runs for row in rows])


def small_task(n_samples=96):
    rng = th.Generator().manual_seed(3)
    images = th.rand(n_samples, 64, generator=rng)
    labels = th.randint(10, (n_samples,), generator=rng)
    return images, labels, list(th.randperm(n_samples, generator=rng).split(32))


def test_tasks_and_weights_depend_on_the_seed_alone():
    first, again, other = (list(example.make_tasks(seed, 2, 100)) for seed in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert th.equal(a.pixels, b.pixels) and th.equal(a.classes, b.classes)
        assert all(map(th.equal, a.batches, b.batches))
    assert not th.equal(first[0].pixels, first[1].pixels) and not th.equal(first[0].pixels, other[0].pixels)
    state = th.get_rng_state()
    a, b, c = (nn.utils.parameters_to_vector(example.make_network(seed).parameters()) for seed in (0, 0, 1))
    assert th.equal(a, b) and not th.equal(a, c) and th.equal(state, th.get_rng_state())
    assert len(a) == 3 * (64 * 64 + 64) + 64 * 10 + 10


def test_a_task_shows_every_image_twice():
    (task,) = example.make_tasks(0, 1, 1797)
    assert task.pixels.sort().values.tolist() == list(range(64))
    assert task.classes.sort().values.tolist() == list(range(10))
    assert {len(rows) for rows in task.batches[:-1]} == {32, 1797 % 32}
    assert th.cat(task.batches).bincount().tolist() == [2] * 1797


def test_er_has_the_same_sum_at_every_fourth_minibatch():
    weights = [example.er_weight(step, 1e-3) for step in range(400)]
    assert sum(weights) == pytest.approx(400 * 1e-3, rel=1e-12)
    assert np.flatnonzero(weights).tolist() == list(range(0, 400, 4))


def test_bp_is_plain_training_bit_for_bit():
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


def effective_rank(features):
    """exp of the entropy of E[a a^T]'s normalised eigenvalues, written down once more."""
    shares = np.linalg.eigvalsh(features.T @ features / len(features)).clip(1e-30)
    shares = shares / shares.sum()
    return np.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(("step", "er_coef"), [(0, 0.02), (8, 0.02), (7, 0.0)])
def test_one_step_descends_the_objective(step, er_coef):
    """Central differences in float64 of cross-entropy + l2 ||theta||^2 - 4 er mean_l erank(a_l), every fourth step."""
    images, labels, batches = small_task(32)
    images = images.double()
    network = example.make_network(0).double()
    theta = nn.utils.parameters_to_vector(network.parameters()).detach().clone()

    def objective(vector):
        nn.utils.vector_to_parameters(vector, network.parameters())
        features, ranks = images, []
        with th.no_grad():
            for layer in list(network)[:-1]:
                features = layer(features)
                ranks += [effective_rank(features.numpy())] if isinstance(layer, nn.ReLU) else []
            value = F.cross_entropy(network[-1](features), labels) + 0.1 * vector.square().sum()
        return float(value) - 4 * er_coef * np.mean(ranks)

    direction = th.randn(len(theta), generator=th.Generator().manual_seed(0), dtype=th.float64)
    slope = (objective(theta + 1e-6 * direction) - objective(theta - 1e-6 * direction)) / 2e-6
    nn.utils.vector_to_parameters(theta.clone(), network.parameters())
    sgd = th.optim.SGD(network.parameters(), lr=1.0)
    # er_coef = 0.02 in either case: what step 7 leaves out is the test's zero.
    example.train_task(network, sgd, images, labels, batches, l2_coef=0.1, er_coef=0.02, first_step=step)
    moved = nn.utils.parameters_to_vector(network.parameters()).detach() - theta
    assert -float(moved @ direction) == pytest.approx(slope, rel=1e-6)


def test_methods_differ_by_their_terms_only(tables):
    _, table = tables
    first = table[table.task == 0].set_index(["seed", "method"])
    for seed in (0, 1):
        # Before any training all methods are one network on one task.
        for column in ("effective_rank", "hessian_rank", "ggn_rank"):
            assert first.loc[seed, column].nunique() == 1
        assert first.loc[seed, "loss"].nunique() == 4
    assert len(table) == 2 * 2 * 4 and table.accuracy.between(0, 1).all()


def test_rows_equal_the_saved_spectra(tables):
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


def test_curvature_is_that_of_the_cross_entropy():
    """For a linear network the Hessian is the GGN; its trace is mean_n |(x, 1)|^2 (1 - |p|^2)."""
    images, labels, _ = small_task(40)
    network = nn.Sequential(nn.Linear(64, 10))
    spectra = example.measure(network, images, labels)
    probs = F.softmax(network(images), 1)
    trace = ((images.square().sum(1) + 1) * (1 - probs.square().sum(1))).mean().item()
    assert spectra["ggn"].trace == pytest.approx(trace, rel=1e-5)
    assert spectra["hessian"].largest == pytest.approx(spectra["ggn"].largest, rel=1e-4)


def linear_table(offsets):
    """Accuracy = rank + the method's offset: a perfect line within each method."""
    rows = itertools.product(range(3), offsets, range(5))
    return pd.DataFrame(
        [
            {"seed": seed, "method": method, "task": task, "hessian_rank": rank, "accuracy": rank + offsets[method]}
            for seed, method, task in rows
            for rank in (0.1 * task + 0.01 * seed,)
        ]
    )


def test_fit_leaves_out_the_fresh_network_and_differences_between_methods():
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


def test_command_reports_and_draws(tables, tmp_path, monkeypatch, capsys):
    """Everything but the processes, whose work is the fixture's."""
    folder, table = tables

    def run_all(args, new_folder):
        assert (args.seeds, args.tasks, args.l2_coef, args.er_coef) == (5, 2, 1e-4, 1e-3)
        shutil.copytree(folder / "spectra", new_folder / "spectra")
        return table

    monkeypatch.setattr(example, "run_all", run_all)
    monkeypatch.setattr(sys, "argv", ["continual_digits.py", "--tasks", "2", "--every", "1", "--out", str(tmp_path)])
    example.main()
    text = capsys.readouterr().out
    later = table[(table.task == 1) & (table.method == "ER")].sort_values("seed").accuracy * 100
    (line,) = [line for line in text.split("online accuracy")[1].splitlines()[:7] if line.startswith("ER ")]
    # Two seeds: the interquartile mean is the mean, the interval's ends are the two seeds.
    assert f"{later.mean():.1f} [ {later.min():.1f}, {later.max():.1f}]" in line
    (made,) = tmp_path.iterdir()
    pd.testing.assert_frame_equal(pd.read_csv(made / "tasks.csv"), table, check_exact=False, rtol=1e-4)
    assert (made / "continual_digits.png").stat().st_size > 50_000
    assert (made / "continual_digits.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("bad", ["--seeds 0", "--tasks 5", "--er-coef nan", "--l2-coef -1.0"])
def test_bad_arguments_are_refused_at_once(bad, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["continual_digits.py", "--out", str(tmp_path), *bad.split()])
    with pytest.raises(SystemExit):
        example.main()
    assert f"{bad}: accepted are" in capsys.readouterr().err and not list(tmp_path.iterdir())
