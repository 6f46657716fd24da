"""Figures: the same look for a method everywhere, and what they do with too little data."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from synthetic import write_study

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study import figures


def test_every_method_has_a_look_of_its_own_and_the_baseline_is_black():
    methods = [f"m{i}" for i in range(8)]
    looks = figures.looks(methods, "m3")
    assert list(looks) == methods
    assert (looks["m3"].color, looks["m3"].line, looks["m3"].marker) == ("#000000", "-", "o")
    for part in ("color", "marker"):
        assert len({getattr(look, part) for look in looks.values()}) == 8
    # Adding the baseline at another place changes nobody's colour.
    assert figures.looks(["m3", *methods[:3], *methods[4:]], "m3") == looks


def test_labels_are_not_mathematics_and_not_hidden():
    assert figures.looks(["a$b$", "_x"], "_x")["a$b$"].label == r"a\$b\$"
    assert not figures.looks(["_x"], "_x")["_x"].label.startswith("_")


def test_pooled_spectra_weigh_seeds_alike():
    pooled = figures.pooled([Spectrum.from_eigenvalues([2.0], 4), Spectrum.from_eigenvalues([3.0, 3, 0.1], 4)])
    assert float(pooled.epsilon_rank(1.0)) == pytest.approx((0.25 + 0.5) / 2)
    assert pooled.dim == 4


def progress(**columns):
    return pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": 0, "step": [1, 2, 1, 2], **columns})


def test_a_mechanism_comes_from_one_source_for_all_methods():
    measure = next(m for m in figures.MECHANISMS if "policy features" in m.title)
    nan = float("nan")
    both = progress(**{"train/erank_policy": [5, 6, nan, nan], "plasticity/policy/effective_rank": [7, nan, 8, nan]})
    found = figures.mechanism(both, measure)
    assert found is not None and list(zip(found.method, found.value, strict=True)) == [("a", 7), ("b", 8)]
    assert figures.mechanism(progress(other=1.0), measure) is None


def test_the_squared_norm_is_that_of_both_networks():
    measure = next(m for m in figures.MECHANISMS if m.squared_sum)
    nan = float("nan")
    norms = progress(
        **{"plasticity/policy/weight_norm": [3, nan, 5, 1], "plasticity/value/weight_norm": [4, nan, 12, nan]}
    )
    found = figures.mechanism(norms, measure)
    assert found is not None and list(found.value) == [25, 169]


def test_returns_are_drawn_in_the_methods_colours(tmp_path):
    study = write_study(tmp_path, ["PPO", "L2"], [0, 1], 2, 100)
    steps = np.tile(np.arange(10, 201, 10), 4)
    episodes = pd.DataFrame({"step": steps, "task_index": (steps - 1) // 100, "task_value": 0.5})
    episodes["method"] = np.repeat(["PPO", "L2"], 40)
    episodes["seed"] = np.tile(np.repeat([0, 1], 20), 2)
    episodes["return"] = np.where(episodes.method == "PPO", 1.0, 2.0) + episodes.seed
    look = figures.looks(["PPO", "L2"], "PPO")
    above, _ = figures.returns_figure(episodes, study, look).axes
    thick = {to_hex(line.get_color()).upper(): line for line in above.lines if line.get_linewidth() > 1}
    assert set(thick) == {look["PPO"].color, look["L2"].color}
    np.testing.assert_allclose(thick[look["L2"].color].get_ydata()[1:], 2.5)  # no episode ends in the first bin
    assert thick[look["L2"].color].get_linestyle() != thick[look["PPO"].color].get_linestyle()
