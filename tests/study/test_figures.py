"""Figures: the same look for a method everywhere, and what they do with too little data."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study import figures
from sb3_plasticity.study.tasks import Timeline


def test_every_method_has_a_look_of_its_own_and_the_baseline_is_black() -> None:
    methods = [f"m{i}" for i in range(8)]
    looks = figures.looks(methods, "m3")
    assert list(looks) == methods
    assert (looks["m3"].color, looks["m3"].line, looks["m3"].marker) == ("#000000", "-", "o")
    for part in ("color", "marker"):
        assert len({getattr(look, part) for look in looks.values()}) == 8
    # Adding the baseline at another place changes nobody's colour.
    assert figures.looks(["m3", *methods[:3], *methods[4:]], "m3") == looks


def test_labels_are_not_mathematics_and_not_hidden() -> None:
    assert figures.looks(["a$b$", "_x"], "_x")["a$b$"].label == r"a\$b\$"
    assert not figures.looks(["_x"], "_x")["_x"].label.startswith("_")


def test_pooled_spectra_weigh_seeds_alike() -> None:
    pooled = figures.pooled([Spectrum.from_eigenvalues([2.0], 4), Spectrum.from_eigenvalues([3.0, 3, 0.1], 4)])
    assert float(pooled.epsilon_rank(1.0)) == pytest.approx((0.25 + 0.5) / 2)
    assert pooled.dim == 4


def test_a_panel_for_each_measure_of_each_network_that_was_logged() -> None:
    progress = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": 0, "step": [1, 2, 1, 2]})
    nan = float("nan")
    progress["plasticity/actor/weight_norm"] = [1.0, 2, 3, 4]
    progress["plasticity/critic_0/churn"] = [nan, 2, nan, 4]
    progress["plasticity/critic_0/weight_norm"] = nan
    look = figures.looks(["a", "b"], "a")
    drawn = figures.panels_figure(progress, ["weight_norm", "churn"], Timeline(2, 1), look)
    assert drawn is not None
    titles = [axes.get_title("left") for axes in drawn.axes if axes.get_visible()]
    assert titles == ["weight norm, actor", "churn, critic 0"]
    assert figures.panels_figure(progress, ["effective_rank"], Timeline(2, 1), look) is None
    # a standard deviation falls by factors, other measures start at zero
    std = figures.panels_figure(progress.assign(**{"train/std": [1.0, 0.1, 1, 0.01]}), ["churn"], Timeline(2, 1), look)
    assert std is not None and [axes.get_yscale() for axes in std.axes[:2]] == ["log", "linear"]
    assert std.axes[1].get_ylim()[0] == 0


def episodes(methods: list[str]) -> pd.DataFrame:
    """Of each method and two seeds an episode every ten steps, two tasks; the i-th returns 1 + i + seed."""
    rows = [
        {"method": method, "seed": seed, "step": step, "task_index": (step - 1) // 100, "return": 1.0 + i + seed}
        for i, method in enumerate(methods)
        for seed in (0, 1)
        for step in range(10, 201, 10)
    ]
    return pd.DataFrame(rows).assign(task_value=0.5)


def test_returns_are_drawn_in_the_methods_colours() -> None:
    look = figures.looks(["PPO", "L2"], "PPO")
    drawn = figures.returns_figure(episodes(["PPO", "L2"]), Timeline(200, 100), look, "PPO", "friction")
    above, _ = drawn.axes
    thick = {to_hex(line.get_color()).upper(): line for line in above.lines if line.get_linewidth() > 1}
    assert set(thick) == {look["PPO"].color, look["L2"].color}
    np.testing.assert_allclose(
        np.asarray(thick[look["L2"].color].get_ydata())[1:], 2.5
    )  # no episode ends in the first bin
    assert thick[look["L2"].color].get_linestyle() != thick[look["PPO"].color].get_linestyle()


def test_many_methods_have_a_panel_each_beside_the_baseline() -> None:
    methods = ["PPO", "a", "b", "c", "d"]
    look = figures.looks(methods, "PPO")
    drawn = figures.returns_figure(episodes(methods), Timeline(200, 100), look, "PPO", "friction")
    *panels, _ = drawn.axes
    assert [axes.get_title("left") for axes in panels] == methods[1:]
    for axes in panels:
        thick = [to_hex(line.get_color()).upper() for line in axes.lines if line.get_linewidth() > 1]
        assert thick == ["#000000", look[axes.get_title("left")].color]
        assert len(axes.collections) == 1  # the band of the panel's own method


@pytest.mark.parametrize(
    ("values", "wanted", "allowed"),
    [
        ((0.1, 1.0), {"0.1", "1"}, {"0.1", "0.2", "0.5", "1"}),
        ((0.02, 2.0), {"0.1", "1"}, {"0.03", "0.1", "0.3", "1"}),
        ((0.001, 10.0), {"0.1"}, {"0.001", "0.01", "0.1", "1", "10"}),
    ],
)
def test_tasks_over_decades_have_few_and_plain_labels(
    values: tuple[float, float], wanted: set[str], allowed: set[str]
) -> None:
    table = episodes(["PPO"]).assign(task_value=lambda each: np.where(each.task_index == 0, *values))
    below = figures.returns_figure(table, Timeline(200, 100), figures.looks(["PPO"], "PPO"), "PPO", "friction").axes[-1]
    low, high = below.get_ylim()
    shown = [label.get_text() for label in below.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert set(shown) >= wanted and set(shown) <= allowed
    assert not any(label.get_text() for label in below.get_yticklabels(minor=True))


def test_an_epsilon_rank_is_drawn_with_its_interval() -> None:
    tasks = pd.DataFrame({"method": "PPO", "seed": [0, 1], "task_index": 1, "final_return": [5.0, 7.0]})
    tasks = tasks.assign(epsilon_rank=[0.2, 0.3], epsilon_rank_low=[0.1, 0.3], epsilon_rank_high=[0.4, 0.3])
    drawn = figures.rank_figure(tasks, pd.DataFrame(), "rank", figures.looks(["PPO"], "PPO"))
    bars = drawn.axes[0].collections[-1]
    assert isinstance(bars, LineCollection)
    np.testing.assert_array_equal(np.asarray(bars.get_segments()), [[[0.1, 5.0], [0.4, 5.0]], [[0.3, 7.0], [0.3, 7.0]]])


@pytest.mark.parametrize(("low", "high", "said"), [(0.19, 0.21, "ε-rank 0.2"), (0.05, 0.9, "ε-rank 0.05 to 0.9")])
def test_an_unresolved_epsilon_rank_is_written_as_its_interval(low: float, high: float, said: str) -> None:
    starts = pd.DataFrame({"method": ["PPO"], "seed": 0, "task_index": 0, "epsilon_rank": 0.2})
    starts = starts.assign(
        epsilon_rank_low=low,
        epsilon_rank_high=high,
        spectrum=pd.Series([Spectrum.from_eigenvalues(np.array([2.0]), 5)], dtype=object),
    )
    drawn = figures.spectra_figure(starts, 1.0, [0], figures.looks(["PPO"], "PPO"))
    assert [text.get_text() for text in drawn.axes[0].texts] == [said]
