"""The referee of diagnostics, against hand calculations and made-up studies whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from numpy.random._generator import Generator
from scipy import stats

from sb3_plasticity.study.diagnostics import MEASURE, alarms, judge, start_measures


def test_what_is_referred_to() -> None:
    for name in ("plasticity/policy/churn", "plasticity/critic_0/gradient_norm", "train/std"):
        assert MEASURE.fullmatch(name), name
    for name in (
        "plasticity/policy/layer.0/churn",
        "train/loss",
        "plasticity_control/policy/churn",
        "mitigation/l2/strength",
    ):
        assert not MEASURE.fullmatch(name), name


def test_a_measure_is_the_record_nearest_to_the_start_of_the_task() -> None:
    """Of two tasks of 100 steps: records at 0.. 8 count for the first, 92 to 108 for the second, 50 for none."""
    tasks = pd.DataFrame({"env_id": "e", "method": "PPO", "seed": 0, "begin": [0, 100, 200], "end": [100, 200, 300]})
    nan = math.nan
    progress = pd.DataFrame(
        {
            "env_id": "e",
            "method": "PPO",
            "seed": 0,
            "step": [8, 50, 92, 104, 108],
            "train/std": [1.0, 2, 3, 4, 5],
            "plasticity/q/rank": [10.0, 20, 30, nan, 50],
            "plasticity_control/q/rank": [7.0, 7, 6, nan, 8],
            "train/loss": 0.0,
        }
    )
    found = start_measures(progress, tasks)
    assert list(found) == ["train/std", "plasticity/q/rank", "plasticity/q/rank less fresh"]
    # the second task: std at 104; the rank was not logged there, and 92 and 108 are as near as each other
    assert list(found["train/std"][:2]) == [1, 4] and found["plasticity/q/rank"][0] == 10
    assert found["plasticity/q/rank"][1] in (30, 50)
    assert found["plasticity/q/rank less fresh"][0] == 3
    assert found.loc[2].isna().all()


def made_up(
    rng: Generator, n_seeds: int = 5, n_tasks: int = 6, methods: tuple[str, str] = ("PPO", "L2")
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Task starts whose return is known to depend on the method, on the seed's task, and on the measure `good`."""
    rows = [
        {"method": method, "seed": seed, "task_index": task, "place": place}
        for place, method in enumerate(methods)
        for seed in range(n_seeds)
        for task in range(n_tasks)
    ]
    tasks = pd.DataFrame(rows)
    hard = rng.normal(size=(n_seeds, n_tasks))[tasks.seed, tasks.task_index]
    good = rng.normal(size=len(tasks))
    measures = pd.DataFrame(
        {
            "good": good,
            "hardness": hard + 0.05 * rng.normal(size=len(tasks)),
            "method": tasks.place + 0.05 * rng.normal(size=len(tasks)),
            "noise": rng.normal(size=len(tasks)),
        }
    )
    tasks["final_return"] = 100 * (2 * tasks.place + 2 * hard + good)
    tasks["success"] = (good > 0).astype(float)
    return tasks, measures


def test_each_view_sees_what_it_is_for() -> None:
    """Hardness cannot tell between methods on the same task, the method nothing within methods; `good` tells both."""
    tasks, measures = made_up(np.random.default_rng(0), n_seeds=20)
    table = values(judge(tasks, measures, pd.Series(False, index=tasks.index))).set_index("measure")
    assert table.loc["good", ["within", "between"]].min() > 0.3
    assert table.between["good"] == pytest.approx(0.5, abs=0.25)  # the method's own step is on the other axis
    assert table["all"]["hardness"] > 0.6 and table["within"]["hardness"] > 0.7 and abs(table.between["hardness"]) < 0.4
    assert table.between["method"] > 0.6 and abs(table.within["method"]) < 0.4
    assert (table.loc["noise", ["all", "within", "between"]].abs() < 0.4).all()
    assert table.within_p["hardness"] < 0.05 < table.within_p["noise"]
    # with nothing taken off it is the mean of each seed's own
    seeds = tasks.groupby("seed").groups.values()
    own = [stats.spearmanr(measures.good[rows], tasks.final_return[rows]).statistic for rows in seeds]
    assert table["all"]["good"] == pytest.approx(np.tanh(np.arctanh(own).mean()))


def values(table: pd.DataFrame) -> pd.DataFrame:
    """The numbers without their intervals."""
    return table.assign(**{view: [each.value for each in table[view]] for view in ("all", "within", "between")})


def test_p_values_are_corrected_for_the_number_of_measures() -> None:
    tasks, measures = made_up(np.random.default_rng(1))
    quiet = pd.Series(False, index=tasks.index)
    alone = judge(tasks, measures[["good"]], quiet).within_p[0]
    together = judge(tasks, measures, quiet).set_index("measure").within_p["good"]
    assert alone < together <= 4 * alone + 1e-12
    # and so are the intervals
    narrow, wide = judge(tasks, measures[["good"]], quiet), judge(tasks, measures, quiet).set_index("measure")
    assert wide.within["good"].low < narrow.within[0].low < narrow.within[0].high < wide.within["good"].high


def test_alarms_by_hand() -> None:
    """Failing starts at 1, 2, 5; the others at 3, 6, 7, 8: below 2.5 two of three failures and no success."""
    given, success = pd.Series([1.0, 2, 5, 3, 6, 7, 8]), pd.Series([0.0, 0, 0, 1, 1, 1, 1])
    found = alarms(given, success, quiet=pd.Series([0.0, 5.7, 9.0, 9.0]))
    # Youden: below 5.5 all failures and one success, 1 - 1/4, beats 2/3
    assert (found["threshold"], found["below"], found["hits"], found["alarms"]) == (5.5, 1.0, 1.0, 0.25)
    assert (found["false_alarms"], found["control_n"]) == (0.25, 4)
    high = alarms(-given, success, quiet=pd.Series([0.0]))
    assert high["below"] == 0 and high["hits"] == 1.0 and high["false_alarms"] == 1.0
    nothing = alarms(given, pd.Series([1.0] * 7), quiet=pd.Series([1.0]))
    assert math.isnan(nothing["threshold"]) and math.isnan(nothing["false_alarms"])


def test_the_control_counts_only_false_alarms() -> None:
    """Its rows enter no correlation; its first starts, and those before tasks that were lost there, do not count."""
    tasks, measures = made_up(np.random.default_rng(2))
    alone = judge(tasks, measures, pd.Series(False, index=tasks.index))
    both = pd.concat([tasks, tasks.assign(success=1.0, final_return=0.0)], ignore_index=True)
    control = pd.Series([False] * len(tasks) + [True] * len(tasks))
    doubled = judge(both, pd.concat([measures, measures], ignore_index=True), control)
    columns = ["measure", "n", "all", "within", "between", "hits"]
    pd.testing.assert_frame_equal(alone[columns], doubled[columns])
    assert (doubled.control_n == (tasks.task_index > 0).sum()).all() and (alone.control_n == 0).all()
    assert doubled.set_index("measure").false_alarms["good"] == pytest.approx(0.5, abs=0.15)  # half of them below 0


def test_without_measures_there_is_no_verdict() -> None:
    tasks, _ = made_up(np.random.default_rng(3))
    assert judge(tasks, pd.DataFrame(index=tasks.index), pd.Series(False, index=tasks.index)).empty
