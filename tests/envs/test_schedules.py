import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_plasticity.envs.schedules import Task, make_schedule

KINDS = [
    {"kind": "constant", "value": 0.5},
    {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": 100, "seed": 3},
    {"kind": "uniform", "low": 0.02, "high": 2.0, "period": 100, "seed": 3},
    {"kind": "cyclic", "values": [0.1, 1.0, 0.5], "period": 100},
    {"kind": "table", "values": [0.3, 0.2, 1.7], "period": 100},
    {"kind": "sinusoid", "low": 0.1, "high": 2.0, "period": 100},
    {"kind": "paralysis", "period": 100},
    {"kind": "numbered", "period": 100},
    {"kind": "numbered", "period": 100, "n": 3, "order": "shuffled", "seed": 1},
]


def test_constant() -> None:
    schedule = make_schedule({"kind": "constant", "value": 2})
    assert schedule(0) == schedule(10**9) == schedule.task(0) == Task(0, 2.0)


def test_cyclic_repeats_and_counts_every_change() -> None:
    schedule = make_schedule({"kind": "cyclic", "values": [0.1, 1.0], "period": 10})
    assert [schedule(step) for step in (0, 9, 10, 19, 20, 31)] == [
        Task(0, 0.1),
        Task(0, 0.1),
        Task(1, 1.0),
        Task(1, 1.0),
        Task(2, 0.1),
        Task(3, 1.0),
    ]
    assert schedule.task(5) == Task(5, 1.0)


def test_table_keeps_its_last_value() -> None:
    schedule = make_schedule({"kind": "table", "values": [0.3, 0.2, 1.7], "period": 10})
    assert [schedule(step).index for step in (0, 10, 29, 30, 10**6)] == [0, 1, 2, 2, 2]
    assert schedule(10**6).value == 1.7
    with pytest.raises(ValueError, match=r"`task` must be a whole number from 0 to 2 for the table, got 3"):
        schedule.task(3)


def test_table_from_file_takes_the_row(tmp_path: Path) -> None:
    file = tmp_path / "frictions.csv"
    file.write_text("0.1,0.2,0.3\n0.4,0.5,0.6\n")
    schedule = make_schedule({"kind": "table", "path": str(file), "row": 1, "period": 10})
    assert [schedule(step).value for step in (0, 10, 20)] == [0.4, 0.5, 0.6]
    file.unlink()
    assert pickle.loads(pickle.dumps(schedule)) == schedule  # the file is read once
    nested = make_schedule({"kind": "table", "values": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], "row": 1, "period": 10})
    assert nested == schedule


def test_paralysis_is_the_published_scheme() -> None:
    schedule = make_schedule("paralysis", {"low": 0.5, "high": 2.0, "period": 2_000_000})
    values = [schedule(step).value for step in range(0, 5_000_000, 500_000)]
    assert values == [1, 0.75, 0.5, 0.25, 0, 0.25, 0.5, 0.75, 1, 0.75] and schedule.lowest == 0


def test_numbered_variations() -> None:
    def numbers(steps: range = range(0, 100, 10), **keywords: Any) -> tuple[list[float], list[int]]:
        schedule = make_schedule({"kind": "numbered", "period": 10, **keywords})
        return [schedule(step).value for step in steps], [schedule(step).index for step in steps]

    assert numbers() == ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], list(range(10)))
    assert numbers(n=3) == ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], list(range(10)))
    assert numbers(n=3, order="once") == ([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], [0, 1, 2, 2, 2, 2, 2, 2, 2, 2])
    shuffled, indices = numbers(range(0, 3000, 10), n=3, order="shuffled", seed=1)
    rounds = [tuple(shuffled[i : i + 3]) for i in range(0, 300, 3)]
    assert all(sorted(turn) == [0, 1, 2] for turn in rounds) and len(set(rounds)) == 6 and indices[-1] == 299


def test_sinusoid_starts_in_the_middle_and_counts_periods() -> None:
    schedule = make_schedule({"kind": "sinusoid", "low": 1.0, "high": 3.0, "period": 1000})
    values = [schedule(step).value for step in (0, 250, 500, 750, 1000)]
    np.testing.assert_allclose(values, [2, 3, 2, 1, 2], atol=1e-12)
    assert schedule(125).value == pytest.approx(2 + math.sqrt(0.5))
    assert [schedule(step).index for step in (0, 999, 1000, 2500)] == [0, 0, 1, 2]


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_draws_follow_their_distribution(kind: str) -> None:
    low, high, n = 0.02, 2.0, 2000
    schedule = make_schedule({"kind": kind, "low": low, "high": high, "period": 1})
    values = np.sort([schedule(step).value for step in range(n)])
    assert low <= values[0] and values[-1] <= high
    if kind == "uniform":
        cdf = (values - low) / (high - low)
    else:
        cdf = np.log(values / low) / np.log(high / low)
    # Kolmogorov-Smirnov: 1.63 / sqrt(n) is the 1% critical value; the draws are seeded, so this never flickers
    assert np.abs(cdf - (np.arange(n) + 0.5) / n).max() < 1.63 / math.sqrt(n)


def test_draws_do_not_depend_on_the_order_of_questions() -> None:
    spec: dict[str, Any] = {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": 10, "seed": 1}
    forward, backward = make_schedule(spec), make_schedule(spec)
    steps = list(range(0, 200, 7))
    late = {step: backward(step) for step in reversed(steps)}
    assert [forward(step) for step in steps] == [late[step] for step in steps]
    assert make_schedule({**spec, "seed": 2})(0) != forward(0)


def test_schedules_leave_numpys_global_generator_alone() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002  # the very thing under test
    make_schedule(KINDS[1])(12345)
    np.testing.assert_array_equal(before, np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: "-".join(map(str, spec.values())))
def test_pickling_numpy_steps_and_frozen_tasks(spec: dict[str, Any]) -> None:
    schedule = make_schedule(spec)
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    for step in (0, 99, 100, 250):
        assert copy(step) == schedule(np.int64(step))
        assert type(copy(step).index) is int
    first = schedule.task(0)
    assert first == schedule(0)
    assert schedule.lowest <= min(schedule(step).value for step in range(0, 1000, 10))


def test_defaults_fill_only_what_a_kind_has() -> None:
    defaults = {"low": 0.02, "high": 2.0, "period": 500}
    assert make_schedule("log_uniform", defaults) == make_schedule(
        {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": 500, "seed": 0}
    )
    assert make_schedule({"kind": "sinusoid", "low": 1}, defaults).low == 1.0
    assert make_schedule({"kind": "constant", "value": 3}, defaults)(1000) == Task(0, 3.0)
    # YAML reads 2e6 as a float
    assert make_schedule({"kind": "uniform", "period": 2e6}, defaults).period == 2_000_000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "loguniform",
            r"`kind of the schedule` must be one of 'constant', 'log_uniform', .*got 'loguniform' "
            r"\(did you mean 'log_uniform'\?\)",
        ),
        (3, r"`schedule` must be a kind .* got 3"),
        ({"low": 1}, r"`schedule` must be a kind .*got \{'low': 1\}"),
        ({"kind": "constant"}, r"`value` must be given for a schedule of kind 'constant'"),
        ({"kind": "constant", "value": math.nan}, r"`value` must be a finite number, got nan"),
        ({"kind": "constant", "value": "1"}, r"`value` must be a finite number, got '1'"),
        ({"kind": "uniform", "low": 0, "high": 1, "perod": 3}, r"got 'perod' \(did you mean 'period'\?\)"),
        ({"kind": "uniform", "low": 0, "high": 1}, r"`period` must be given"),
        (
            {"kind": "uniform", "low": 0, "high": 1, "period": 0},
            r"`period` must be a whole number >= 1 of global",
        ),
        ({"kind": "uniform", "low": 0, "high": 1, "period": 1.5}, r"`period` must be .* got 1.5"),
        ({"kind": "uniform", "low": 0, "high": 1, "period": "2e6"}, r"`period` must be .* got '2e6'"),
        ({"kind": "uniform", "low": 2, "high": 1, "period": 3}, r"`low` must be <= `high` = 1.0, got 2.0"),
        ({"kind": "uniform", "low": 0, "high": math.inf, "period": 3}, r"`high` must be a finite number, got inf"),
        (
            {"kind": "uniform", "low": 0, "high": 1, "period": 3, "seed": -1},
            r"`seed` must be .* got -1",
        ),
        (
            {"kind": "log_uniform", "low": 0, "high": 1, "period": 3},
            r"`low` must be > 0 .* got 0.0",
        ),
        ({"kind": "cyclic", "values": [], "period": 3}, r"`values` must be a list of numbers.* got \[\]"),
        ({"kind": "cyclic", "values": [[1, 2]], "period": 3}, r"`values` must be one flat list .*got \[\[1, 2\]\]"),
        ({"kind": "cyclic", "values": ["a"], "period": 3}, r"`values` must be numbers, .*got \['a'\]"),
        (
            {"kind": "table", "values": [1, math.nan], "period": 3},
            r"must be finite numbers, got nan at \(1,\)",
        ),
        ({"kind": "table", "values": [[1, 2], [3]], "period": 3}, r"rows of equal length"),
        (
            {"kind": "table", "values": [1, 2], "period": 3, "row": 1},
            r"`row` must be .* from 0 to 0, got 1",
        ),
        ({"kind": "table", "values": [1, 2]}, r"`period` must be given"),
        ({"kind": "table", "period": 3}, r"given either 'values' or 'path'"),
        ({"kind": "table", "path": "nowhere.csv", "period": 3}, r"`path` must be a file, got 'nowhere.csv'"),
        ({"kind": "numbered", "period": 3, "order": "random"}, r"`order` must be one of .* got 'random'"),
        ({"kind": "numbered", "period": 3, "order": "once"}, r"`n` must be a whole number >= 1 if `order` is 'once'"),
        ({"kind": "sinusoid", "low": 2, "high": 1, "period": 3}, r"`low` must be <= `high` = 1.0, got 2.0"),
    ],
)
def test_bad_specifications_say_what_is_accepted(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(spec)


@pytest.mark.parametrize("content", ["", "0.1,nan\n", "a,b\n", "1,2\n3\n"])
def test_bad_files_are_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.csv"):
        make_schedule({"kind": "table", "path": str(file), "period": 3})


@pytest.mark.parametrize("index", [-1, 1.0, True, "1"])
def test_bad_task_index(index: Any) -> None:
    with pytest.raises(ValueError, match="`task` must be a whole number >= 0"):
        make_schedule(KINDS[1]).task(index)
