"""Both callbacks on every algorithm: training is bit-identical, every network is measured, tasks are followed."""

import random
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import ALGORITHMS, make_agent
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_plasticity import CurvatureCallback, PlasticityCallback, load_spectra
from sb3_plasticity.agents import networks_of
from sb3_plasticity.callbacks.progress import Measurement

ON_POLICY = ("PPO", "PPO_L2ER", "A2C", "TRPO", "RecurrentPPO", "MaskablePPO")


class Tasks(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose task changes every ``period`` steps."""

    def __init__(self, env: Monitor, period: int) -> None:
        super().__init__(env)
        self.period, self.count = period, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *result, info = self.env.step(action)
        info |= dict(task_index=self.count // self.period, task_value=0.5 + self.count // self.period)
        self.count += 1
        return *result, info


def agent_with_tasks(name: str, period: int = 24) -> Any:
    few: dict[str, Any] = dict(policy_kwargs=dict(n_quantiles=8)) if name in ("TQC", "QRDQN") else {}
    model = make_agent(name, **few)
    model.env.envs[0] = Tasks(model.env.envs[0], period)
    return model


def learn(model: Any, steps: int, callback: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # nothing is left out
        return model.learn(steps, callback=callback)


def everything(model: BaseAlgorithm) -> tuple[Any, ...]:
    entropy = getattr(model, "log_ent_coef", None)
    networks = networks_of(model).values()
    return (
        {**model.policy.state_dict(), **({} if entropy is None else {"log_ent_coef": entropy.detach()})},
        [str(network.optimizer and network.optimizer.state_dict()) for network in networks],
        np.random.get_state(legacy=False)["state"]["key"].copy(),  # noqa: NPY002
        th.get_rng_state(),
        random.getstate(),
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_is_bit_identical_and_every_network_is_measured(name: str, tmp_path: Path) -> None:
    rollout = 16 if name in ON_POLICY else 4 if name in ("DQN", "QRDQN") else 1
    every = ("task", 48 // rollout)
    curvature = CurvatureCallback(every=every, save_dir=tmp_path, n_samples=16, lanczos_steps=4)
    plasticity = PlasticityCallback(every=-(-16 // rollout), n_samples=16)
    plain, watched = (
        everything(model := learn(agent_with_tasks(name), 48, callback)) for callback in (None, [curvature, plasticity])
    )
    assert all(th.equal(plain[0][key], watched[0][key]) for key in plain[0])
    assert plain[1] == watched[1]
    assert np.array_equal(plain[2], watched[2]) and th.equal(plain[3], watched[3]) and plain[4] == watched[4]

    table = load_spectra(tmp_path)
    starts = {(rollout, 0), (24 + 8 if rollout == 16 else 24 + rollout, 1)}  # the task changes after 24 steps
    rows = table[table.phase == "start"]
    assert set(zip(rows.step, rows.task_index, strict=True)) == starts
    assert (table.rank_ceiling.dropna() <= 1).all() and table[table.kind == "ggn"].rank_ceiling.notna().all()
    assert set(table[table.phase == "periodic"].step) == {48}
    measures, control = plasticity.measures, plasticity.control_measures
    for network in networks_of(model):
        assert network in set(table.network)
        for metric in ("effective_rank", "weight_norm", "gradient_norm", "inactive_gradients", "churn"):
            key = f"{network}/{metric}"
            assert np.isfinite(measures[key]) and np.isfinite(control[key])
        layers = [key for key in measures if key.startswith(f"{network}/") and key.endswith("/effective_rank")]
        layers.remove(f"{network}/effective_rank")
        assert len(layers) == (3 if name == "RecurrentPPO" else 2)
        assert measures[f"{network}/churn"] > 0


def test_an_off_policy_start_is_of_the_first_transitions_under_the_weights_that_the_last_task_left(
    tmp_path: Path,
) -> None:
    seen: dict[str, Any] = {}

    class Spy(CurvatureCallback):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps == 25:
                seen["state"] = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
            super()._on_rollout_end()

        def _measure(self, measurement: Measurement) -> None:
            if (measurement.phase, measurement.task[0]) == ("start", 1):
                seen["measurement"], seen["at"] = measurement, self.num_timesteps
                assert self._source is not None
                seen["samples"] = self._source.read(measurement.parts)
            super()._measure(measurement)

    model = learn(agent_with_tasks("SAC"), 48, Spy(save_dir=tmp_path, n_samples=16, kinds=("ggn",)))
    assert (seen["measurement"].step, seen["at"]) == (25, 24 + 16)
    assert all(th.equal(seen["measurement"].state[name], value) for name, value in seen["state"].items())
    expected = th.as_tensor(model.replay_buffer.observations[24:40, 0])
    assert th.equal(seen["samples"].observations, expected)


def test_the_end_of_an_off_policy_task_is_of_its_last_transitions(tmp_path: Path) -> None:
    seen: dict[int, Any] = {}

    class Spy(CurvatureCallback):
        def _measure(self, measurement: Measurement) -> None:
            if measurement.phase == "end":
                assert self._source is not None
                seen[measurement.step] = self._source.read(measurement.parts).observations
            super()._measure(measurement)

    model = learn(agent_with_tasks("TD3"), 48, Spy(save_dir=tmp_path, n_samples=6, kinds=("ggn",)))
    assert list(seen) == [25]
    assert th.equal(seen[25], th.as_tensor(model.replay_buffer.observations[18:24, 0]))


def test_more_samples_than_a_replay_buffer_holds() -> None:
    for callback in (CurvatureCallback(n_samples=500), PlasticityCallback(n_samples=500)):
        with pytest.raises(ValueError, match="`n_samples` must be at most the 200 of the replay buffer, got 500"):
            make_agent("DQN").learn(1, callback=callback)


def test_short_rollouts_are_gathered(tmp_path: Path) -> None:
    """A2C with 5 steps a rollout: periodic measurements on the last 16 transitions."""
    seen: list[tuple[Any, ...]] = []

    class Spy(CurvatureCallback):
        def _measure(self, measurement: Measurement) -> None:
            assert self._source is not None
            seen.append((measurement.step, self._source.read(measurement.parts).observations))
            super()._measure(measurement)

    observed = []

    class Log(PlasticityCallback):
        def _on_rollout_end(self) -> None:
            assert isinstance(self.model, A2C)
            observed.append(self.model.rollout_buffer.observations[:, 0].copy())
            super()._on_rollout_end()

        def _measure(self, samples: RolloutBufferSamples) -> None:
            seen.append(("plasticity", self.num_timesteps, samples.observations))
            super()._measure(samples)

    model = make_agent("A2C", n_steps=5)
    spy = Spy(every=4, save_dir=tmp_path, n_samples=16, kinds=("ggn",))
    learn(model, 40, [Log(every=6, n_samples=16), spy])
    history = th.as_tensor(np.concatenate(observed))
    curvature = [entry for entry in seen if len(entry) == 2]
    assert [step for step, _ in curvature] == [20, 40]
    for step, observations in curvature:
        assert th.equal(observations, history[step - 16 : step])
    # The first was due in the first rollout and waited for 16 transitions; the next in the seventh.
    plasticity = [entry[1:] for entry in seen if len(entry) == 3]
    assert [step for step, _ in plasticity] == [20, 35]
    assert th.equal(plasticity[1][1], history[35 - 16 : 35])
