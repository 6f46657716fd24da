"""A fresh policy of every algorithm, drawn by its own initialiser and unnoticed."""

import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, make_agent

from sb3_plasticity.agents.fresh import fresh_policy


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_fresh_policies(name: str) -> None:
    model = make_agent(name)
    generators = th.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    own, fresh, again, other = model.policy, *(fresh_policy(model, seed) for seed in (5, 5, 6))
    assert th.equal(generators[0], th.get_rng_state())
    assert np.array_equal(generators[1], np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002
    shapes = {key: value.shape for key, value in own.state_dict().items()}
    assert {key: value.shape for key, value in fresh.state_dict().items()} == shapes
    assert all(th.equal(value, again.state_dict()[key]) for key, value in fresh.state_dict().items())
    assert not all(th.equal(value, other.state_dict()[key]) for key, value in fresh.state_dict().items())
