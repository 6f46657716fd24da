"""What CONTRIBUTING shows of algorithms and metrics runs as written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_plasticity import CurvatureCallback, PlasticityCallback, load_spectra

CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


def run_section(title: str) -> dict[str, Any]:
    (section,) = re.findall(rf"## {title}\n(.*?)(?=\n## )", CONTRIBUTING.read_text(), re.S)
    namespace = {"__name__": "stranger"}
    for code in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(code, namespace)
    return namespace


def test_a_strangers_algorithm_works_in_both_callbacks(tmp_path: Path) -> None:
    algorithm = run_section("Add an algorithm")["Reinforce"]
    states = []
    for instruments in (False, True):
        callbacks = [
            CurvatureCallback(every=("task", 2), n_samples=32, lanczos_steps=4, save_dir=tmp_path),
            PlasticityCallback(every=1, n_samples=32),
        ]
        model = algorithm("CartPole-v1", seed=0, policy_kwargs=dict(net_arch=[6]), device="cpu")
        model.learn(128, callback=callbacks if instruments else None)
        states.append(model.policy.state_dict())
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])
    table = load_spectra(tmp_path)
    assert set(zip(table.network, table.kind, table.phase, strict=True)) == {
        (network, kind, phase)
        for network in ("policy", "value")
        for kind in ("ggn", "hessian")
        for phase in ("start", "periodic")
    }
    assert set(table.algorithm) == {"Reinforce"}
    plasticity: Any = callbacks[1]
    measures = plasticity.measures
    assert measures["policy/gradient_norm"] > 0 and measures["value/churn"] > 0


def test_a_strangers_metric(tmp_path: Path) -> None:
    from stable_baselines3 import DQN

    callback = run_section("Add a metric")["callback"]
    callback.n_samples, callback.every = 20, 1
    kwargs = dict(net_arch=[6], activation_fn=th.nn.ReLU)
    DQN("MlpPolicy", "CartPole-v1", learning_starts=5, policy_kwargs=kwargs, seed=0, buffer_size=50).learn(40, callback)
    for measures in (callback.measures, callback.control_measures):
        assert 0 <= measures["q/sparsity"] == measures["q/q_net.q_net.0/sparsity"] <= 1
    assert np.isfinite(callback.measures["q/effective_rank"])
