"""Measures and intervals against hand calculations, SciPy and simulation."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sb3_plasticity.study.diagnostics import fit_ranks, trainability
from sb3_plasticity.study.figures import curve
from sb3_plasticity.study.statistics import (
    COVERAGE,
    band,
    centred,
    cluster_interval,
    coverage,
    holm,
    improvement,
    interval,
    iqm,
    mean_correlation,
    p_of_mean,
    r_squared,
    spearman,
)
from sb3_plasticity.study.tasks import bin_means, differences, steps_to_recover, summarize


def test_bins_hold_their_upper_edge() -> None:
    means = bin_means(pd.Series([0.0, 1, 10, 11, 31]), pd.Series([9.0, 1, 3, 5, 9]), np.array([0.0, 10, 20, 30]))
    np.testing.assert_array_equal(means, [2, 5, math.nan])
    assert list(means.index) == [10, 20, 30]


def test_curve_interpolates_gaps_and_begins_with_the_first_record() -> None:
    run = pd.DataFrame({"step": [15, 35, 36], "std": [2.0, 6, math.nan]})
    values = curve(run, "std", np.array([0.0, 10, 20, 30, 40, 50]))
    np.testing.assert_array_equal(values, [math.nan, 2, 4, 6, 6])


@pytest.mark.parametrize(
    ("returns", "before", "expected"),
    [
        # twentieths of 1000..1200 end at 1010, 1020, ...; lowest 100, wanted 100 + 0.9 * 900 = 910
        ([500, 100, 600, 909, 910, 1200], 1000.0, 50.0),
        ([500, 100, 600, 909], 1000.0, math.inf),
        ([1000, 1100, 1000], 1000.0, 0.0),  # no drop
        ([990, 995, 100, 800], 1000.0, math.inf),  # it was above the line before its lowest only
        ([-500, -900, -600, -520, -509], -500.0, 40.0),  # wanted -540
        ([500, 100], math.nan, math.nan),  # no task before
        ([], 1000.0, math.nan),
    ],
)
def test_steps_to_recover(returns: list[int], before: float, expected: float) -> None:
    steps = 1000 + 10 * np.arange(1, len(returns) + 1)
    found = steps_to_recover(pd.Series(steps), pd.Series(returns, dtype=float), 1000, 1200, before, 0.9)
    assert found == pytest.approx(expected, nan_ok=True)


def test_iqm_of_a_few_numbers() -> None:
    assert iqm(np.array([1.0, 2, 30])) == 11  # nothing is taken off
    assert iqm(np.array([100.0, 1, 2, -50, 6])) == 3  # 1, 2, 6
    np.testing.assert_array_equal(iqm(np.array([[8.0, 0, 3, 1], [4, 4, 4, 4]])), [2, 4])


def test_interval_of_few_runs() -> None:
    estimate = interval(np.array([3.0, 1, 2, math.nan]))
    # Of 27 resamples one is (1, 1, 1) and one (3, 3, 3): 3.7% each, more than the 2.5% that are cut off.
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (2, 1, 3, 3)
    single = interval(np.array([7.0]))
    assert single.value == 7 and not single.has_interval and not single.excludes_zero
    assert math.isnan(interval(np.array([])).value)
    assert interval(np.array([3.0, 4, 5])).excludes_zero and not interval(np.array([-3.0, 4, 5])).excludes_zero


def test_the_same_numbers_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=7)
    assert interval(values) == interval(values)


def test_stratified_interval_keeps_differences_between_environments_out() -> None:
    """Two environments a thousand apart: resampled together, the mean would wander between them."""
    low, high = np.array([0.0, 1, 2, 3]), np.array([1000.0, 1001, 1002, 1003])
    estimate = interval(low, high, statistic=np.mean)
    assert estimate.value == 501.5 and 500 <= estimate.low < estimate.high <= 503
    assert np.ptp(np.array([(e := interval(np.concatenate([low, high]), statistic=np.mean)).low, e.high])) > 300
    assert not interval(low, np.array([1.0])).has_interval


@pytest.mark.parametrize("n", [3, 5])
def test_coverage_is_what_the_report_says(n: int) -> None:
    """Percentile bootstrap of the IQM of n normal values; with n = 3 at most 1 - 2 * 2^-3 = 75%."""
    _, low, high = band(np.random.default_rng(n).normal(size=(1500, n)))
    assert 100 * np.mean((low <= 0) & (high >= 0)) == pytest.approx(COVERAGE[n], abs=2.5)
    assert COVERAGE[3] <= 75


def test_coverage_of_a_number_of_seeds_that_was_not_simulated() -> None:
    assert (coverage(9), coverage(100)) == (COVERAGE[8], COVERAGE[20])


def test_band_needs_every_seed_at_a_point() -> None:
    value, low, high = band(np.array([[math.nan, 1.0, 2], [1, 2, 3]]))
    np.testing.assert_array_equal(value, [math.nan, 2])
    assert (low[1], high[1]) == (1, 3) and math.isnan(low[0])
    value, low, high = band(np.array([[5.0], [6]]))
    np.testing.assert_array_equal(value, [5, 6])
    assert np.isnan(low).all() and np.isnan(high).all()


def task_rows(**finals: Any) -> pd.DataFrame:
    """A task table with one task: of each method a final return for every seed."""
    rows = [
        {"env_id": "e", "method": method, "seed": seed, "task_index": 0, "final_return": value, "auc": value}
        for method, values in finals.items()
        for seed, value in values.items()
    ]
    return pd.DataFrame(rows).assign(steps_to_recover=math.nan, success=1.0)


def test_paired_differences_leave_out_what_seeds_share() -> None:
    """Seeds differ by thousands, methods by 100 +- 1: only pairing shows it."""
    rng = np.random.default_rng(0)
    seeds = pd.Series(rng.normal(scale=3000, size=5), index=range(5))
    baseline = seeds + rng.normal(size=5)
    own = (seeds + 100 + rng.normal(size=5)).sample(frac=1, random_state=1)
    tasks = task_rows(PPO=baseline, L2=own)
    together = interval(differences(tasks, "PPO").final_return.to_numpy())
    assert together.value == pytest.approx(100, abs=2) and 97 < together.low < together.high < 103
    assert not interval(own.to_numpy()).excludes_zero
    assert set(differences(task_rows(PPO=baseline[[3, 1]], L2=own), "PPO").seed) == {1, 3}
    runs = tasks[["env_id", "method", "seed"]].assign(seconds=7.0)
    summary = summarize(tasks, runs, "PPO").set_index(["method", "measure"])
    assert summary.value["L2", "last_return_difference"] == together.value
    assert summary.value["L2", "better"] == 1 and ("PPO", "better") not in summary.index


def test_probability_of_improvement_is_mann_whitneys() -> None:
    own, baseline = np.array([3.0, 5, 5, math.nan]), np.array([1.0, 5, 4])
    # of nine pairs 3 beats 1; both 5 beat 1 and 4 and tie with 5
    assert improvement(own, baseline).value == pytest.approx((1 + 2 * (2 + 0.5)) / 9)
    u = stats.mannwhitneyu(own[:3], baseline).statistic
    assert improvement(own, baseline).value == pytest.approx(u / 9)
    assert improvement(own + 10, baseline) == improvement(own + 20, baseline)
    sure = improvement(own + 10, baseline)
    assert (sure.value, sure.low, sure.high, sure.n) == (1, 1, 1, 3)
    # a single run beats all or none of its like: 0 or 1, which is no probability
    for runs in ((own[:1], baseline), (own, baseline[:1]), (own[3:], baseline)):
        assert math.isnan(improvement(*runs).value) and not improvement(*runs).has_interval


def test_holm_by_hand() -> None:
    """.01 of four, then .02 of three, .04 of two, .03 cannot be below the one before; NaN does not count."""
    np.testing.assert_allclose(
        holm(np.array([0.01, 0.9, math.nan, 0.02, 0.04])), [0.04, 0.9, math.nan, 0.06, 0.08], rtol=1e-12
    )
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.02])), [0.04, 0.03, 0.04])
    assert holm(np.array([0.7, 0.8])).max() == 1


def test_paired_t_by_hand() -> None:
    """
    The p value of 1, 2 and 3 has a closed form.

    Their mean is 2 and their standard error 1 / sqrt(3), so t = sqrt(12); with two degrees of freedom,
    p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(6 / 7).
    """
    assert p_of_mean(np.array([1.0, 2, math.nan, 3])) == pytest.approx(1 - math.sqrt(6 / 7))
    assert math.isnan(p_of_mean(np.array([1.0, 2, math.nan])))
    assert p_of_mean(np.array([2.0, 2, 2])) < 1e-6 and p_of_mean(np.zeros(3)) == 1


def test_differences_are_tested_and_corrected_for_the_number_of_methods() -> None:
    """Each p value is SciPy's for related samples; of three, the smallest counts three times and the next twice."""
    rng = np.random.default_rng(4)
    finals = {method: rng.normal(gain, size=5) for method, gain in (("PPO", 0), ("A", 3), ("B", 2), ("C", 0.2))}
    tasks = task_rows(**{method: pd.Series(values) for method, values in finals.items()})
    summary = summarize(tasks, tasks[["env_id", "method", "seed"]].assign(seconds=1.0), "PPO")
    found = summary[summary.measure == "mean_return_p"].set_index("method").value
    raw = {method: stats.ttest_rel(finals[method], finals["PPO"]).pvalue for method in "ABC"}
    first, second, third = sorted(raw, key=raw.__getitem__)
    assert (summary[summary.measure == "mean_return_p"].n == 5).all()
    assert found[first] == pytest.approx(3 * raw[first])
    assert found[second] == pytest.approx(max(3 * raw[first], 2 * raw[second]))
    assert found[third] == pytest.approx(max(found[second], raw[third])) and "PPO" not in found


def test_the_test_over_seeds_holds_its_level() -> None:
    """Tasks of a seed share an offset, so that pooled tasks would be far from independent."""
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        seeds = [rng.normal(size=(6, 2)) + 5 * rng.normal(size=(1, 2)) for _ in range(5)]
        p.append(mean_correlation([spearman(each) for each in seeds])[1])
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert mean_correlation([1.0] * 4)[1] < 1e-6
    assert math.isnan(mean_correlation([0.2, 0.3, math.nan])[1])


def test_mean_correlation_by_hand() -> None:
    """Fisher's z of three seeds, 0.2, 0.5 and 0.8; t of 2 degrees of freedom is 4.303 at 97.5% and 6.205 at 98.75%."""
    own = [0.2, 0.5, 0.8, math.nan]
    z = [math.atanh(0.2), math.atanh(0.5), math.atanh(0.8)]
    mean = sum(z) / 3
    error = math.sqrt(sum((each - mean) ** 2 for each in z) / 2 / 3)
    found, p = mean_correlation(own)
    assert found.value == pytest.approx(math.tanh(mean)) and found.n == 3
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(mean - 4.302653 * error), math.tanh(mean + 4.302653 * error)), abs=1e-6
    )
    assert p == pytest.approx(stats.ttest_1samp(z, 0).pvalue)
    two, same = mean_correlation(own, n_tests=2)
    assert two.low == pytest.approx(math.tanh(mean - 6.205347 * error), abs=1e-6) and same == p


def test_intervals_of_many_measures_hold_together() -> None:
    """Of ten measures that say nothing, all ten intervals have 0 inside in 95% of studies."""
    rng = np.random.default_rng(3)
    together = [
        any(
            mean_correlation(np.tanh(0.4 * rng.normal(size=5)).tolist(), n_tests=10)[0].excludes_zero for _ in range(10)
        )
        for _ in range(300)
    ]
    assert np.mean(together) == pytest.approx(0.05, abs=0.03)


def test_fit_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(size=40)
    y = 3 * x + rng.normal(size=40)
    tasks = pd.DataFrame({"method": "PPO", "seed": np.repeat(np.arange(8), 5), "task_index": np.tile(np.arange(5), 8)})
    tasks = tasks.assign(epsilon_rank=x, final_return=y)
    line = fit_ranks(pd.concat([tasks, tasks.head(1).assign(epsilon_rank=math.nan)])).iloc[0]
    oracle = stats.linregress(x, y)
    assert line.starts == "all task starts" and line.n == 40
    assert (line.slope, line.intercept) == pytest.approx((oracle.slope, oracle.intercept))
    assert line.r_squared.value == pytest.approx(oracle.rvalue**2)
    assert line.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert line.r_squared.n == 8 and line.r_squared.low < line.r_squared.value < line.r_squared.high


def test_rounding_noise_within_a_group_is_no_difference() -> None:
    noise = 0.3 + np.arange(4) * 2.0**-54
    assert len(np.unique(noise)) > 1
    shifted = centred(np.append(noise, [5.0, 5.001]), np.array([0, 0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(shifted[:4], 0)
    np.testing.assert_allclose(shifted[4:], [-0.0005, 0.0005], rtol=1e-9)


def test_correlations_of_constants_and_ties() -> None:
    assert math.isnan(r_squared(np.array([[1.0, 2], [1, 3], [1, 4]])))
    ties = np.array([[1.0, 1], [2, 2], [2, 5], [3, 4]])
    assert spearman(ties) == pytest.approx(stats.spearmanr(*ties.T).statistic)
    assert math.isnan(spearman(ties[:2]))
    alike = pd.DataFrame({"method": "PPO", "seed": range(5), "task_index": 0, "epsilon_rank": 1.0, "final_return": 2.0})
    assert fit_ranks(alike).empty


def test_clusters_are_resampled_whole() -> None:
    """Ten copies of three points are three points: the interval must not shrink with the copies."""
    points = [np.array([[value]]) for value in (1.0, 2.0, 6.0)]
    once = cluster_interval(points, lambda rows: float(rows.mean()))
    copies = cluster_interval([np.repeat(point, 10, axis=0) for point in points], lambda rows: float(rows.mean()))
    assert once == copies
    assert (once.value, once.low, once.high, once.n) == (3, 1, 6, 3)


def test_centring_leaves_differences_within_groups() -> None:
    values = centred(np.array([1.0, 3, 10, math.nan, 5]), np.array([0, 0, 1, 1, 2]))
    np.testing.assert_array_equal(values, [-1, 1, math.nan, math.nan, math.nan])


def test_trainability_by_hand() -> None:
    tasks = pd.DataFrame(
        {
            "method": "PPO",
            "seed": [0, 0, 0, 1, 1, 1],
            "epsilon_rank": [0.01, 0.02, 0.02, 0.05, math.nan, 0.05],
            "success": [0.0, 0, 1, 1, 1, 1],
        }
    )
    table = trainability(tasks, [0.0, 0.02, 0.9])
    assert list(table.method) == ["all"] * 3 + ["PPO"] * 3
    low, middle, high = (row for _, row in table.head(3).iterrows())
    assert (low["n"], low.n_reached, low.share_reached, low.success_reached.value) == (5, 5, 1.0, 0.6)
    assert math.isnan(low.success_below.value)
    assert (middle.n_reached, middle.share_reached) == (4, 0.8)
    assert (middle.success_reached.value, middle.success_below.value) == (0.75, 0.0)
    # Seeds resampled: 0 twice is 1 of 2, 1 twice all of them.
    assert (middle.success_reached.low, middle.success_reached.high) == (0.5, 1.0)
    assert high.n_reached == 0 and math.isnan(high.success_reached.value)
    assert high.success_below.value == 0.6
