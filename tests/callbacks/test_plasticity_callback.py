"""PlasticityCallback: what it measures, beside what, and that training never notices."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from sb3_plasticity import PPO_L2ER, CurvatureCallback
from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.callbacks.plasticity import PlasticityCallback

SMALL: dict[str, Any] = dict(n_steps=64, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]))
CNN: dict[str, Any] = dict(policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=16)))
LSTM: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4], lstm_hidden_size=5))
PI, VF = "mlp_extractor.policy_net", "mlp_extractor.value_net"


class Masked(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.count = 0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        self.count += 1
        return super().step(action)

    def action_masks(self) -> np.ndarray:
        return np.array([True, self.count % 2 == 0])


def image_env() -> FakeImageEnv:
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
    env.observation_space.seed(0)
    return env


def dict_env() -> SimpleMultiObsEnv:
    env = SimpleMultiObsEnv(random_start=False)
    env.observation_space.seed(0)
    return env


def learn(
    callback: Any,
    steps: int,
    algorithm: type[OnPolicyAlgorithm] = PPO,
    env: Any = "Pendulum-v1",
    policy: str = "MlpPolicy",
    **arguments: Any,
) -> OnPolicyAlgorithm:
    model = algorithm(policy, env, **(SMALL | arguments))
    return model.learn(steps, callback=callback)


class Spy(PlasticityCallback):
    """Keep the weights, observations and measures of every measurement."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**(dict(every=1, n_samples=64) | arguments))
        self.seen: list[tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]] = []

    def _on_rollout_end(self) -> None:
        state = {name: value.clone().double().numpy() for name, value in self.model.policy.state_dict().items()}
        assert isinstance(self.model, OnPolicyAlgorithm)
        observations = self.model.rollout_buffer.observations.copy()
        super()._on_rollout_end()
        self.seen.append((state, observations, self.measures))


CASES: dict[str, tuple[type[OnPolicyAlgorithm], Callable[[], Any], str, dict[str, Any]]] = dict(
    ppo=(PPO, lambda: "Pendulum-v1", "MlpPolicy", {}),
    ppo_l2er=(PPO_L2ER, lambda: "Pendulum-v1", "MlpPolicy", {}),
    gsde=(PPO, lambda: "Pendulum-v1", "MlpPolicy", dict(use_sde=True, sde_sample_freq=4)),
    a2c=(A2C, lambda: "CartPole-v1", "MlpPolicy", dict(n_steps=5)),
    trpo=(TRPO, lambda: "Pendulum-v1", "MlpPolicy", dict(batch_size=64)),
    recurrent=(RecurrentPPO, lambda: "Pendulum-v1", "MlpLstmPolicy", dict(n_epochs=2, **LSTM)),
    maskable=(MaskablePPO, Masked, "MlpPolicy", {}),
    cnn=(PPO, image_env, "CnnPolicy", dict(n_epochs=2, **CNN)),
    dict=(PPO, dict_env, "MultiInputPolicy", dict(n_epochs=2)),
)


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_identical_with_and_without(case: str) -> None:
    algorithm, env, policy, arguments = CASES[case]
    callback = PlasticityCallback(every=1, n_samples=64)
    results = []
    for used in (None, callback):
        model = learn(used, 130 if algorithm is A2C else 192, algorithm, env(), policy, **arguments)
        generators = np.random.get_state(legacy=False)["state"]["key"], th.get_rng_state(), random.getstate()  # noqa: NPY002
        results.append((model.policy.state_dict(), str(model.policy.optimizer.state_dict()), generators))
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.policy.modules())
    (plain, optimizer, generators), (watched, watched_optimizer, watched_generators) = results
    assert all(th.equal(plain[name], watched[name]) for name in plain)
    assert optimizer == watched_optimizer
    assert np.array_equal(generators[0], watched_generators[0])
    assert th.equal(generators[1], watched_generators[1])
    assert generators[2] == watched_generators[2]
    assert {"policy/effective_rank", "policy/gradient_norm", "value/weight_change"} <= set(callback.measures)


def test_no_gradient_is_left_behind() -> None:
    class Check(PlasticityCallback):
        def _on_rollout_end(self) -> None:
            self.model.policy.optimizer.zero_grad()
            super()._on_rollout_end()
            assert all(parameter.grad is None for parameter in self.model.policy.parameters())

    learn(Check(n_samples=64), 64)


class TestMeasures:
    def test_against_numpy_on_normalised_observations(self) -> None:
        """Two hidden tanh layers in each network, in the second of two rollouts of two normalised environments."""
        env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
        spy = Spy(n_samples=128)
        learn(spy, 256, env=env, policy_kwargs=dict(net_arch=[8, 6]))
        (_, state), (_, observations), (_, measures) = zip(*spy.seen, strict=True)
        assert abs(observations.mean()) < 0.5 and 0.2 < observations.std() < 2
        for network, layers in (("policy", PI), ("value", VF)):
            hidden, ranks = observations.reshape(-1, 3).astype(np.float64), []
            for place in (0, 2):
                name = f"{layers}.{place}"
                hidden = np.tanh(hidden @ state[f"{name}.weight"].T + state[f"{name}.bias"])
                singular = np.linalg.svd(hidden, compute_uv=False)
                shares = singular**2 / (singular**2).sum()
                ranks.append(np.exp(-(shares * np.log(shares)).sum()))
                stable = (singular**2).sum() / singular[0] ** 2
                assert measures[f"{network}/{name}/effective_rank"] == pytest.approx(ranks[-1], rel=1e-4)
                assert measures[f"{network}/{name}/stable_rank"] == pytest.approx(stable, rel=1e-4)
                activity = np.abs(hidden).mean(0)
                assert measures[f"{network}/{name}/dormant_units"] == np.mean(activity <= 0.025 * activity.mean())
                assert measures[f"{network}/{name}/saturated_units"] == np.mean((np.abs(hidden) > 0.99).all(0))
                assert f"{network}/{name}/dead_units" not in measures
                norm = np.hypot(np.linalg.norm(state[f"{name}.weight"]), np.linalg.norm(state[f"{name}.bias"]))
                assert measures[f"{network}/{name}/weight_norm"] == pytest.approx(norm)
            assert measures[f"{network}/effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-4)

    def test_ranks_are_those_that_l2er_sees(self) -> None:
        """PPO_L2ER takes its layers' features where they are read, on the same rollout under the same weights."""
        spy = Spy(n_samples=64)
        model = learn(spy, 64, PPO_L2ER, policy_kwargs=dict(net_arch=dict(pi=[8, 6], vf=[5, 7]), activation_fn=nn.ReLU))
        for network in ("policy", "value"):
            rank = model.logger.name_to_value[f"train/erank_{network}"]
            assert spy.measures[f"{network}/effective_rank"] == pytest.approx(rank, rel=1e-5)

    def test_weight_changes(self) -> None:
        spy = Spy()
        learn(spy, 192)
        (first, _, at_first), (second, _, _), (third, _, at_third) = spy.seen
        assert at_first["policy/weight_change"] == at_first["value/weight_change_from_start"] == 0

        def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *names: str) -> float:
            result: float = np.sqrt(sum(((a[name] - b[name]) ** 2).sum() for name in names))
            return result

        names = f"{PI}.0.weight", f"{PI}.0.bias"
        assert at_third[f"policy/{PI}.0/weight_change"] == pytest.approx(distance(third, second, *names))
        assert at_third[f"policy/{PI}.0/weight_change_from_start"] == pytest.approx(distance(third, first, *names))
        trained = *names, "action_net.weight", "action_net.bias", "log_std"
        assert at_third["policy/weight_change"] == pytest.approx(distance(third, second, *trained))
        assert at_third["policy/log_std/weight_change_from_start"] == pytest.approx(distance(third, first, "log_std"))

    @pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO])
    def test_the_gradient_is_the_one_the_algorithm_descends(self, algorithm: type[OnPolicyAlgorithm]) -> None:
        """One plain gradient step on the whole rollout moves each layer by learning rate x gradient norm."""
        arguments: dict[str, Any] = dict(learning_rate=0.1, max_grad_norm=1e9, ent_coef=0.01)
        arguments |= dict(use_rms_prop=False) if algorithm is A2C else dict(n_epochs=1, batch_size=64)
        kwargs: dict[str, Any] = dict(net_arch=[8], optimizer_class=th.optim.SGD, optimizer_kwargs={})
        spy = Spy(n_samples=64)
        learn(
            spy,
            128,
            algorithm,
            Masked() if algorithm is MaskablePPO else "CartPole-v1",
            policy_kwargs=kwargs,
            **arguments,
        )
        before, after = spy.seen[0][2], spy.seen[1][2]
        keys = [key for key in before if key.endswith("/gradient_norm")]
        assert len(keys) == 2 + 4
        for key in keys:
            moved = after[key.replace("gradient_norm", "weight_change")]
            assert moved == pytest.approx(0.1 * before[key], rel=2e-3), key

    def test_dead_and_dormant_units_that_the_control_does_not_have(self) -> None:
        """Two of eight ReLU units get a bias that no input can lift: an alarm, and not a false one."""

        class Kill(PlasticityCallback):
            def _on_rollout_end(self) -> None:
                with th.no_grad():
                    self.model.policy.get_parameter(f"{PI}.0.bias")[:2] = -1e3
                super()._on_rollout_end()

        callback = Kill(n_samples=64)
        model = PPO(
            "MlpPolicy", "Pendulum-v1", **(SMALL | dict(policy_kwargs=dict(net_arch=[8], activation_fn=nn.ReLU)))
        )
        records = record_all(model)
        model.learn(64, callback=callback)
        assert records[f"plasticity/policy/{PI}.0/dead_units"] >= 2 / 8
        assert records[f"plasticity/policy/{PI}.0/dormant_units"] >= 2 / 8
        assert records[f"plasticity_control/policy/{PI}.0/dead_units"] == 0
        assert f"plasticity/policy/{PI}.0/saturated_units" not in records

    def test_tau(self) -> None:
        all_below, none_below = Spy(tau=1e6), Spy(tau=0.0)
        for spy in (all_below, none_below):
            learn(spy, 64)
        assert all_below.measures["policy/dormant_units"] == 1
        assert none_below.measures["policy/dormant_units"] == 0


def record_all(model: PPO) -> dict[str, Any]:
    """Collect what is recorded under any name, whether or not it is dumped."""
    records: dict[str, Any] = {}
    model.set_logger(configure(None, []))
    model.logger.record = lambda key, value, exclude=None: records.__setitem__(key, value)  # type: ignore[method-assign]
    return records


class TestControl:
    def test_a_false_alarm_shows_in_the_control_too(self) -> None:
        """On one observation only, any network has rank 1."""

        class Still(gym.Env):
            observation_space = spaces.Box(-1, 1, (3,))
            action_space = spaces.Discrete(2)

            def reset(
                self, seed: int | None = None, options: dict[str, Any] | None = None
            ) -> tuple[Any, dict[str, Any]]:
                return np.full(3, 0.5, dtype=np.float32), {}

            def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
                return np.full(3, 0.5, dtype=np.float32), float(action), False, False, {}

        model = PPO("MlpPolicy", Still(), **SMALL)
        records = record_all(model)
        model.learn(64, callback=PlasticityCallback(n_samples=64))
        for section in ("plasticity", "plasticity_control"):
            for network in ("policy", "value"):
                assert records[f"{section}/{network}/effective_rank"] == pytest.approx(1, abs=1e-6)
                assert records[f"{section}/{network}/stable_rank"] == pytest.approx(1, abs=1e-6)

    def test_the_same_measures_but_for_changes(self) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", **SMALL)
        records = record_all(model)
        model.learn(64, callback=PlasticityCallback(n_samples=64))
        own = {key.removeprefix("plasticity/") for key in records if key.startswith("plasticity/")}
        control = {key.removeprefix("plasticity_control/") for key in records if key.startswith("plasticity_control/")}
        assert own - control == {key for key in own if "weight_change" in key} and control < own
        assert records["plasticity/policy/gradient_norm"] != records["plasticity_control/policy/gradient_norm"]

    def test_off(self) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", **SMALL)
        records = record_all(model)
        model.learn(64, callback=PlasticityCallback(control=False, n_samples=64))
        assert not any(key.startswith("plasticity_control") for key in records)

    @pytest.mark.parametrize(
        "algorithm, policy, env, kwargs",
        [
            (PPO, "CnnPolicy", image_env, dict(share_features_extractor=False, **CNN["policy_kwargs"])),
            (PPO, "MlpPolicy", lambda: "Pendulum-v1", dict(net_arch=dict(pi=[3], vf=[5, 4]), activation_fn=nn.ELU)),
            (RecurrentPPO, "MlpLstmPolicy", lambda: "Pendulum-v1", dict(lstm_hidden_size=3, enable_critic_lstm=False)),
            (MaskablePPO, "MlpPolicy", Masked, dict(net_arch=[3])),
        ],
    )
    def test_is_built_like_the_networks_of_the_model(
        self,
        algorithm: Callable[..., OnPolicyAlgorithm],
        policy: str,
        env: Callable[[], Any],
        kwargs: dict[str, Any],
    ) -> None:
        model = algorithm(policy, env(), n_steps=64, device="cpu", policy_kwargs=kwargs)
        states = th.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
        fresh, again = fresh_policy(model, 7), fresh_policy(model, 7)
        assert th.equal(th.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1])  # noqa: NPY002
        th.manual_seed(7)
        expected = algorithm(policy, env(), n_steps=64, device="cpu", policy_kwargs=kwargs).policy
        assert str(fresh) == str(model.policy)
        for name, value in expected.state_dict().items():
            assert th.equal(fresh.state_dict()[name], value) and th.equal(again.state_dict()[name], value)


class TestLayers:
    def layers(
        self,
        measure: str,
        algorithm: type[OnPolicyAlgorithm] = PPO,
        env: Any = "Pendulum-v1",
        policy: str = "MlpPolicy",
        **arguments: Any,
    ) -> list[tuple[str, ...]]:
        spy = Spy(control=False)
        learn(spy, 64, algorithm, env, policy, **arguments)
        pattern = re.compile(rf"(policy|value)/(.+)/{measure}")
        return [match.groups() for key in spy.measures if (match := pattern.fullmatch(key))]

    def test_a_shared_extractor_counts_once_with_the_policy(self) -> None:
        units = [("policy", f"features_extractor.{name}") for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0")]
        assert self.layers("effective_rank", env=image_env(), policy="CnnPolicy", **CNN) == units
        norms = self.layers("gradient_norm", env=image_env(), policy="CnnPolicy", **CNN)
        assert norms == [*units, ("policy", "action_net"), ("value", "value_net")]

    def test_separate_extractors(self) -> None:
        kwargs: dict[str, Any] = dict(policy_kwargs=dict(share_features_extractor=False, **CNN["policy_kwargs"]))
        layers = self.layers("dead_units", env=image_env(), policy="CnnPolicy", **kwargs)
        assert [network for network, _ in layers] == ["policy"] * 4 + ["value"] * 4

    def test_recurrent(self) -> None:
        layers = self.layers("stable_rank", RecurrentPPO, policy="MlpLstmPolicy", **LSTM)
        assert set(layers) == {
            ("policy", f"{PI}.0"),
            ("policy", "lstm_actor"),
            ("value", f"{VF}.0"),
            ("value", "lstm_critic"),
        }

    def test_dictionaries_of_images_and_vectors(self) -> None:
        layers = self.layers("dormant_units", env=dict_env(), policy="MultiInputPolicy")
        image = "features_extractor.extractors.img"
        own = [("policy", f"{image}.{name}") for name in ("cnn.0", "cnn.2", "cnn.4", "linear.0")]
        assert layers == [*own, ("policy", f"{PI}.0"), ("value", f"{VF}.0")]

    def test_without_hidden_layers_only_norms(self) -> None:
        spy = Spy()
        learn(spy, 64, policy_kwargs=dict(net_arch=[]))
        assert "policy/action_net/weight_norm" in spy.measures
        assert not any("rank" in key or "units" in key for key in spy.measures)

    def test_frozen_layers_do_not_count(self) -> None:
        model = PPO("CnnPolicy", image_env(), n_steps=64, device="cpu", **CNN)
        model.policy.features_extractor.requires_grad_(False)
        spy = Spy()
        model.learn(64, callback=spy)
        assert not any("features_extractor" in key for key in spy.measures)


class TestWhen:
    def steps(
        self, monkeypatch: pytest.MonkeyPatch, callback: PlasticityCallback | Spy, total: int, **arguments: Any
    ) -> tuple[OnPolicyAlgorithm, list[int]]:
        steps: list[int] = []
        original = PlasticityCallback._measure

        def measure(self: PlasticityCallback, samples: Any) -> None:
            steps.append(self.num_timesteps)
            original(self, samples)

        monkeypatch.setattr(
            PlasticityCallback,
            "_measure",
            measure,
        )
        return learn(callback, total, **arguments), steps

    def test_the_first_rollout_and_every_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.steps(monkeypatch, PlasticityCallback(every=3, n_samples=64), 7 * 64)[1] == [64, 256, 448]

    def test_a_continued_run_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        callback = Spy(every=2)
        model, steps = self.steps(monkeypatch, callback, 64)
        start = callback.seen[0][0]
        model.learn(128, callback=callback, reset_num_timesteps=False)
        assert steps == [64, 192]
        moved = np.linalg.norm(callback.seen[-1][0]["action_net.weight"] - start["action_net.weight"])
        assert callback.measures["policy/action_net/weight_change_from_start"] >= moved > 0

    def test_a_new_callback_starts_from_the_weights_it_finds(self) -> None:
        model, spy = learn(None, 64), Spy()
        model.learn(64, callback=spy, reset_num_timesteps=False)
        assert spy.measures["policy/weight_change_from_start"] == 0

    def test_a_new_model_starts_anew(self) -> None:
        spy = Spy()
        learn(spy, 128)
        learn(spy, 64, policy_kwargs=dict(net_arch=[5, 5]))
        assert spy.measures["value/weight_change_from_start"] == 0 and f"policy/{PI}.2/stable_rank" in spy.measures


class TestLogs:
    def test_tensorboard_at_its_own_steps(self, tmp_path: Path) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", tensorboard_log=str(tmp_path), **SMALL)
        spy = Spy(every=2)
        model.learn(320, callback=spy, log_interval=10)
        events = EventAccumulator(str(tmp_path / "PPO_1"))
        events.Reload()
        for key, last in spy.measures.items():
            scalars = events.Scalars(f"plasticity/{key}")
            assert [event.step for event in scalars] == [64, 192, 320]
            assert scalars[-1].value == pytest.approx(last, rel=1e-6)
        assert len(events.Scalars("plasticity_control/value/stable_rank")) == 3

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_charts_of_all_callbacks_survive(self, tmp_path: Path, reverse: bool) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", tensorboard_log=str(tmp_path), **SMALL)
        plasticity = PlasticityCallback(n_samples=64)
        callbacks = [CurvatureCallback(n_samples=16, kinds=("ggn",), save_dir=tmp_path), plasticity]
        model.learn(64, callback=callbacks[::-1] if reverse else callbacks)
        events = EventAccumulator(str(tmp_path / "PPO_1"))
        events.Reload()
        # TensorBoard shows the last layout of a run.
        last = events.Tensors("custom_scalars__config__")[-1].tensor_proto
        layout = layout_pb2.Layout.FromString(last.string_val[0])
        charts = {category.title: category.chart for category in layout.category}
        assert set(charts) == {"Overview", "curvature", "plasticity", "plasticity by layer"}
        tags = events.Tags()["scalars"]
        shown = {}
        for category in charts:
            for chart in charts[category]:
                assert 1 <= len(chart.multiline.tag) <= 6
                shown[category, chart.title] = [
                    tag for pattern in chart.multiline.tag for tag in tags if re.match(pattern, tag)
                ]
        assert all(shown.values())  # no chart is empty
        metrics = {metric.name.replace("_", " ") for metric in plasticity.metrics}
        titles = {title for category, title in shown if category == "Overview"}
        assert titles - metrics == {"epsilon-rank at 0.01 of the curvature"}
        # Units of a tanh saturate, they do not die; Pendulum has no tasks.
        assert metrics - titles == {"dead units", "weight change from task"}
        assert shown["Overview", "churn"] == [
            f"{section}/{network}/churn"
            for section in ("plasticity", "plasticity_control")
            for network in ("policy", "value")
        ]
        name = "policy: effective rank"
        assert shown["plasticity", name] == [
            "plasticity/policy/effective_rank",
            "plasticity_control/policy/effective_rank",
        ]
        assert shown["plasticity by layer", name] == [f"plasticity/policy/{PI}.0/effective_rank"]

    def test_csv_and_a_terminal_too_narrow_for_the_names(self, tmp_path: Path) -> None:
        model = PPO("MlpPolicy", "Pendulum-v1", **SMALL)
        model.set_logger(configure(str(tmp_path), ["csv", "json", "stdout"]))
        model.learn(128, callback=PlasticityCallback(every=1, n_samples=64))
        header, first, *_ = (tmp_path / "progress.csv").read_text().splitlines()
        row = dict(zip(header.split(","), first.split(","), strict=True))
        assert float(row[f"plasticity_control/policy/{PI}.0/weight_norm"]) > 0
        assert f"plasticity/value/{VF}.0/weight_change_from_start" in (tmp_path / "progress.json").read_text()

    def test_verbose_prints_both(self, capsys: pytest.CaptureFixture[str]) -> None:
        learn(PlasticityCallback(verbose=1, n_samples=64), 64)
        line = next(
            line for line in capsys.readouterr().out.splitlines() if line.startswith("Plasticity at 64, value:")
        )
        assert re.search(r"effective_rank [\d.]+ \[[\d.]+\]", line) and "dead_units" not in line


class TestBadInput:
    @pytest.mark.parametrize(
        "arguments, message",
        [
            (dict(every=0), "`every` must be a whole number >= 1, got 0"),
            (dict(every="task"), "`every` must be a whole number >= 1, got 'task'"),
            (dict(every=True), "`every` must be a whole number >= 1, got True"),
            (dict(n_samples=1), "`n_samples` must be a whole number >= 2, got 1"),
            (dict(n_samples=64.0), "`n_samples` must be a whole number >= 2, got 64.0"),
            (dict(tau=-0.1), "`tau` must be a finite number >= 0, got -0.1"),
            (dict(tau=float("nan")), "`tau` must be a finite number >= 0, got nan"),
            (dict(control="yes"), "`control` must be True or False, got 'yes'"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PlasticityCallback(**arguments)

    @pytest.mark.parametrize(
        "field, term",
        [
            ("observations", "observations of the transitions: NaN or infinity"),
            ("advantages", "advantages of the transitions: NaN or infinity"),
        ],
    )
    def test_nan_names_the_step_and_the_term(self, field: str, term: str) -> None:
        class Poison(PlasticityCallback):
            def _on_rollout_end(self) -> None:
                assert isinstance(self.model, OnPolicyAlgorithm)
                getattr(self.model.rollout_buffer, field)[3] = np.nan
                super()._on_rollout_end()

        with pytest.raises(FloatingPointError, match=f"PlasticityCallback at 64 timesteps, {term}"):
            learn(Poison(n_samples=64), 64)

    def test_nan_in_a_weight(self) -> None:
        class Poison(PlasticityCallback):
            def _on_rollout_end(self) -> None:
                with th.no_grad():
                    self.model.policy.get_parameter("value_net.bias")[0] = np.inf
                super()._on_rollout_end()

        with pytest.raises(
            FloatingPointError, match=r"at 64 timesteps, value_net\.bias of the policy: NaN or infinity"
        ):
            learn(Poison(n_samples=64), 64)

    def test_overflow_inside_the_network_is_left_out(self) -> None:
        """Finite weights, infinite units: training is not the callback's to end."""

        class Inflate(PlasticityCallback):
            def _on_rollout_end(self) -> None:
                weight = self.model.policy.get_parameter(f"{VF}.0.weight")
                kept = weight.detach().clone()
                with th.no_grad():
                    weight[:] = 3e38
                super()._on_rollout_end()
                with th.no_grad():
                    weight[:] = kept

        relu: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[8], activation_fn=nn.ReLU))
        with pytest.warns(UserWarning, match=rf"leaves out .* at 64 timesteps: .* of {VF}.0: .* contain NaN or inf"):
            learn(Inflate(n_samples=64), 64, **relu)
