"""CurvatureCallback: when it measures, on what, what it leaves, and that training never notices."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sb3_plasticity import PPO_L2ER, CurvatureCallback, Spectrum, ggn_spectrum, load_spectra
from sb3_plasticity.agents import objectives_of
from sb3_plasticity.agents.problems import curvature_problem
from sb3_plasticity.callbacks.progress import Measurement
from sb3_plasticity.curvature import loggable

SMALL: dict[str, Any] = dict(n_steps=64, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]))


class Tasks(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum, or another environment, whose task changes every ``period`` steps."""

    def __init__(self, period: int = 96, env: str | gym.Env[Any, Any] = "Pendulum-v1") -> None:
        super().__init__(gym.make(env) if isinstance(env, str) else env)
        self.period, self.count = period, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *result, info = self.env.step(action)
        info |= dict(task_index=self.count // self.period, task_value=0.5 + self.count // self.period)
        self.count += 1
        return *result, info


def learn(
    callback: Any,
    steps: int,
    algorithm: type[OnPolicyAlgorithm] = PPO,
    env: Any = None,
    policy: str = "MlpPolicy",
    **arguments: Any,
) -> OnPolicyAlgorithm:
    model = algorithm(policy, env if env is not None else Tasks(), **(SMALL | arguments))
    return model.learn(steps, callback=callback)


def curvature(tmp_path: Path, **arguments: Any) -> CurvatureCallback:
    settings: dict[str, Any] = dict(save_dir=tmp_path, n_samples=16, lanczos_steps=5, kinds=("ggn",))
    return CurvatureCallback(**(settings | arguments))


def image_env() -> gym.Env[Any, Any]:
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=True)
    env.observation_space.seed(0)
    return Tasks(96, env)


LSTM = dict(policy_kwargs=dict(net_arch=[4], lstm_hidden_size=5))


@pytest.mark.parametrize(
    "algorithm, env, policy, arguments",
    [
        (PPO, Tasks, "MlpPolicy", {}),
        (PPO_L2ER, Tasks, "MlpPolicy", {}),
        (PPO, Tasks, "MlpPolicy", dict(use_sde=True)),
        (A2C, Tasks, "MlpPolicy", {}),
        (TRPO, Tasks, "MlpPolicy", {}),
        (RecurrentPPO, Tasks, "MlpLstmPolicy", LSTM),
        (PPO, image_env, "CnnPolicy", dict(policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=16)))),
    ],
    ids=["ppo", "ppo_l2er", "gsde", "a2c", "trpo", "recurrent", "cnn"],
)
def test_training_is_bit_identical_with_and_without(
    tmp_path: Path,
    algorithm: type[OnPolicyAlgorithm],
    env: Callable[[], Any],
    policy: str,
    arguments: dict[str, Any],
) -> None:
    callback = curvature(tmp_path, every=("task", 2), kinds=("ggn", "hessian"))
    results = []
    for used in (None, callback):
        model = learn(used, 256, algorithm, env(), policy, **arguments)
        results.append(
            (
                model.policy.state_dict(),
                model.policy.optimizer.state_dict(),
                np.random.get_state(legacy=False)["state"]["key"],  # noqa: NPY002
                th.get_rng_state(),
            )
        )
    (plain, optimizer, numpy_state, torch_state), (watched, watched_optimizer, watched_numpy, watched_torch) = results
    assert all(th.equal(plain[name], watched[name]) for name in plain)
    assert str(optimizer) == str(watched_optimizer)
    assert np.array_equal(numpy_state, watched_numpy) and th.equal(torch_state, watched_torch)
    assert len(load_spectra(tmp_path)) == 2 * 2 * (3 + 2 + 2)  # starts 0-2, ends 0-1, and rollouts 2 and 4


def test_measures_at_the_first_rollout_of_each_task(tmp_path: Path) -> None:
    # Rollouts end at 64, 128, 192, 256; tasks change at 96 and 192.
    learn(curvature(tmp_path), 256)
    table = load_spectra(tmp_path)
    rows = table[["step", "task_index", "task_value", "phase", "network"]].itertuples(index=False)
    assert {tuple(row) for row in rows} == {
        (step, task, 0.5 + task, phase, network)
        for step, task, phase in [
            (64, 0, "start"),
            (128, 0, "end"),
            (128, 1, "start"),
            (256, 1, "end"),
            (256, 2, "start"),
        ]
        for network in ("policy", "value")
    }
    assert (table.n_samples == 16).all()
    share = table.set_index(["task_index", "phase"]).share.to_dict()
    # In the second rollout half the transitions are of each task; the old one has none in the fourth.
    assert share == {(0, "start"): 1.0, (0, "end"): 0.5, (1, "start"): 0.5, (1, "end"): 0.0, (2, "start"): 1.0}


def test_the_spectra_are_of_the_old_weights_on_the_new_tasks_transitions(tmp_path: Path) -> None:
    """Repeat a measurement by hand: the weights before the update, rows of the new task only."""
    seen: dict[str, Any] = {}

    class Spy(CurvatureCallback):
        def _on_rollout_end(self) -> None:
            assert isinstance(self.model, OnPolicyAlgorithm)
            buffer = self.model.rollout_buffer
            if self.num_timesteps == 128:
                seen["state"] = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
                seen["observations"] = buffer.observations[32:, 0].copy()
            super()._on_rollout_end()

    model = learn(Spy(save_dir=tmp_path, n_samples=32, kinds=("ggn",), networks=("value",)), 128)
    model.policy.load_state_dict(seen["state"])
    observations = th.as_tensor(seen["observations"])
    params: dict[str, th.Tensor] = {name: value for name, value in model.policy.named_parameters() if "value" in name}

    def values(params: dict[str, th.Tensor], observations: th.Tensor) -> th.Tensor:
        hidden = th.tanh(
            observations @ params["mlp_extractor.value_net.0.weight"].T + params["mlp_extractor.value_net.0.bias"]
        )
        return hidden @ params["value_net.weight"].T + params["value_net.bias"]

    expected = ggn_spectrum(values, params, observations, th.full((32, 1), 2.0))
    table = load_spectra(tmp_path)
    (actual,) = table[(table.task_index == 1) & (table.phase == "start")].spectrum
    assert actual.dim == expected.dim
    assert actual.trace == pytest.approx(float(expected.trace), rel=1e-4)
    assert actual.largest == pytest.approx(float(expected.largest), rel=1e-4)


def test_too_few_transitions_wait_for_more_with_their_weights(tmp_path: Path) -> None:
    """Task 1 starts 4 transitions before the rollout ends: its weights wait for 12 more."""
    kept: dict[str, Any] = {}

    class Spy(CurvatureCallback):
        def _measure(self, measurement: Measurement) -> None:
            if (measurement.task[0], measurement.phase) == (1, "start"):
                kept["measurement"], kept["at"] = measurement, self.num_timesteps
            super()._measure(measurement)

        def _on_rollout_end(self) -> None:
            if self.num_timesteps == 64:
                kept["state"] = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
            super()._on_rollout_end()

    model = learn(Spy(save_dir=tmp_path, n_samples=16, kinds=("ggn",)), 128, env=Tasks(60))
    measurement: Measurement = kept["measurement"]
    assert (measurement.step, kept["at"]) == (64, 128)
    assert [len(part.advantages) for part in measurement.parts] == [4, 12]
    assert measurement.share == 4 / 64
    assert measurement.state is not None
    assert all(th.equal(measurement.state[name], value) for name, value in kept["state"].items())
    table = load_spectra(tmp_path)
    row = table[(table.task_index == 1) & (table.phase == "start") & (table.network == "policy")].iloc[0]
    assert row.step == 64 and row.n_samples == 16
    samples = type(measurement.parts[0])(*(th.cat(fields) for fields in zip(*measurement.parts, strict=True)))
    problem = curvature_problem(model.policy, objectives_of(model)["policy"], samples, kept["state"])
    expected = ggn_spectrum(problem.output_fn, problem.params, samples, problem.output_hessian)
    assert row.spectrum.trace == pytest.approx(float(expected.trace), rel=1e-5)


def test_every_number_of_rollouts(tmp_path: Path) -> None:
    learn(curvature(tmp_path, every=2), 320, env="Pendulum-v1")
    table = load_spectra(tmp_path)
    assert sorted(set(table.step)) == [128, 256] and set(table.phase) == {"periodic"}


def test_several_environments_and_their_rows(tmp_path: Path) -> None:
    learn(curvature(tmp_path), 512, env=make_vec_env(lambda: Tasks(48), n_envs=2), n_steps=32)
    table = load_spectra(tmp_path)
    # Each of two environments changes its task every 48 of its own steps, 96 in all; rollouts hold 64.
    first_rollout = {task: (task * 96 // 64 + 1) * 64 for task in range(6)}
    starts = table[table.phase == "start"]
    assert dict(zip(starts.task_index, starts.step, strict=True)) == first_rollout


def test_an_environment_without_tasks_is_one_task(tmp_path: Path) -> None:
    learn(curvature(tmp_path), 192, env="Pendulum-v1")
    table = load_spectra(tmp_path)
    assert set(table.step) == {64} and set(table.phase) == {"start"}


def test_maskable_ppo_and_joint_and_kfac(tmp_path: Path) -> None:
    class Masked(Tasks):
        def action_masks(self) -> np.ndarray:
            return np.array([True, self.count % 2 == 0])

    callback = curvature(tmp_path, networks=("policy", "value", "joint"), kinds=("ggn", "hessian", "kfac"))
    learn(callback, 128, MaskablePPO, Masked(96, "CartPole-v1"))
    table = load_spectra(tmp_path)
    assert set(zip(table.network, table.kind, strict=True)) == {
        (network, kind) for network in ("policy", "value", "joint") for kind in ("ggn", "hessian", "kfac")
    }


def test_a_resumed_run_does_not_take_its_first_rollout_for_a_start(tmp_path: Path) -> None:
    env = Tasks(96)
    model = learn(None, 64, env=env)
    model.learn(192, callback=curvature(tmp_path), reset_num_timesteps=False)
    table = load_spectra(tmp_path)
    assert set(zip(table.step, table.phase, strict=True)) == {
        (128, "start"),
        (128, "end"),
        (256, "start"),
        (256, "end"),
    }


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for _ in range(2):
        learn(curvature(tmp_path), 64)
    assert len(list(tmp_path.glob("*.npz"))) == 4
    assert (tmp_path / "0000000064_task0_start_policy_ggn_2.npz").exists()


def test_default_folder_is_the_runs(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Tasks(), tensorboard_log=str(tmp_path), **SMALL)
    model.learn(64, callback=CurvatureCallback(n_samples=16, lanczos_steps=5))
    assert len(load_spectra(tmp_path / "PPO_1" / "curvature")) == 4


def test_tensorboard(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Tasks(), tensorboard_log=str(tmp_path), **SMALL)
    model.learn(128, callback=CurvatureCallback(n_samples=16, lanczos_steps=5), log_interval=10)
    events = EventAccumulator(str(tmp_path / "PPO_1"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    table = load_spectra(tmp_path)
    for network in ("policy", "value"):
        for kind in ("ggn", "hessian"):
            rows = table[(table.network == network) & (table.kind == kind) & (table.phase == "start")]
            assert list(rows.step) == [64, 128]
            # What is not resolved is written as its interval; each at its own step, whatever log_interval is.
            written: dict[str, list[tuple[int, float]]] = {}
            for _, row in rows.iterrows():
                for name, value in loggable(row.spectrum.measures()).items():
                    written.setdefault(name, []).append((row.step, value))
            assert kind == "hessian" or not any(name.endswith("_low") for name in written)
            for name, values in written.items():
                found = [(event.step, event.value) for event in events.Scalars(f"curvature/{network}/{kind}/{name}")]
                np.testing.assert_allclose(found, values, rtol=1e-6)
            (first, *_) = events.Histograms(f"curvature/{network}/{kind}/log10_abs_eigenvalue")
            spectrum = rows.spectrum.iloc[0]
            nodes, shares = spectrum.shares()
            nonzero = spectrum.dim * shares[np.abs(nodes) > max(spectrum.rounding, 1e-12)].sum()
            assert first.histogram_value.num == pytest.approx(nonzero)
            assert sum(first.histogram_value.bucket) == pytest.approx(nonzero)
            assert kind == "hessian" or nonzero <= 16 * 4
            assert f"curvature/{network}/{kind}/density" in tags["images"]
            assert any(tag.startswith(f"curvature_end/{network}/{kind}/") for tag in tags["scalars"])
    assert any("custom_scalars" in tag for tag in tags["tensors"])


@pytest.mark.parametrize("kinds", [("ggn", "hessian"), ("hessian", "kfac")])
def test_a_chart_has_at_most_six_series(tmp_path: Path, kinds: tuple[str, str]) -> None:
    epsilon = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    model = PPO("MlpPolicy", Tasks(), tensorboard_log=str(tmp_path), **SMALL)
    model.learn(64, callback=CurvatureCallback(n_samples=16, lanczos_steps=5, kinds=kinds, epsilon=epsilon))
    events = EventAccumulator(str(tmp_path / "PPO_1")).Reload()
    tags = events.Tags()["scalars"]
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    drawn: dict[str, list[str]] = {}
    for category in layout.category:
        for chart in category.chart:
            found = [tag for pattern in chart.multiline.tag for tag in tags if re.match(pattern, tag)]
            assert 1 <= len(found) <= 6, (category.title, chart.title, found)
            drawn.setdefault(category.title, []).extend(found)
    # Every rank has its chart, and both networks are seen at one glance.
    assert {tag for tag in tags if re.match("curvature/.*epsilon_rank", tag)} <= set(drawn["curvature"])
    assert {tag.split("/")[1] for tag in drawn["Overview"]} == {"policy", "value"}


def test_csv_log_holds_the_measures(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", Tasks(), **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv", "stdout"]))
    model.learn(128, callback=CurvatureCallback(n_samples=16, lanczos_steps=5))
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    assert "curvature/policy/ggn/epsilon_rank_0.001" in header


class TestTimeBudget:
    def test_leaves_out_and_postpones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A clock by hand: 1 s a rollout, 10 s a measurement, half of the time allowed."""
        now = [0.0]
        monkeypatch.setattr("sb3_plasticity.callbacks.curvature.time.monotonic", lambda: now[0])
        measured = []

        class Timed(CurvatureCallback):
            def _on_rollout_end(self) -> None:
                now[0] += 1.0
                super()._on_rollout_end()

            def _measure(self, measurement: Measurement) -> None:
                now[0] += 10.0
                measured.append((self.num_timesteps, measurement.phase, measurement.step, now[0]))

        with pytest.warns(UserWarning, match="time_budget=0.5 left out 24 measurements"):
            learn(Timed(every=1, save_dir=tmp_path, n_samples=16, time_budget=0.5), 26 * 64, env="Pendulum-v1")
        # The first is free (nobody knows what it will cost). The second begins at 30 s: 20 of 40 s are half.
        assert [time for *_, time in measured] == [11.0, 40.0]

    def test_a_tasks_start_waits_with_its_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]
        monkeypatch.setattr("sb3_plasticity.callbacks.curvature.time.monotonic", lambda: now[0])
        measured = []

        class Timed(CurvatureCallback):
            def _on_rollout_end(self) -> None:
                now[0] += 1.0
                super()._on_rollout_end()

            def _measure(self, measurement: Measurement) -> None:
                now[0] += 2.0
                measured.append(
                    (self.num_timesteps // 64, measurement.phase, measurement.step // 64, measurement.state is None)
                )

        learn(Timed(save_dir=tmp_path, n_samples=16, time_budget=0.5), 10 * 64, env=Tasks(128))
        assert measured[0] == (1, "start", 1, True)
        assert all(not fresh for *_, fresh in measured[1:])
        assert [(phase, step) for _, phase, step, _ in measured[1:4]] == [("end", 3), ("start", 3), ("end", 5)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(every="rollout"), "`every` must be 'task', a number of rollouts >= 1, or a tuple of both, got 'rollout'"),
        (dict(every=0), "`every` must be .*, got 0"),
        (dict(every=("task", 0)), r"`every` must be .*, got \('task', 0\)"),
        (dict(every=()), r"`every` must be .*, got \(\)"),
        (dict(networks="policy"), "`networks` must be None or one or more names, in a tuple, got 'policy'"),
        (dict(kinds=()), r"`kinds` must be one or more of 'ggn', 'hessian', 'kfac', 'entk', in a tuple, got \(\)"),
        (dict(epsilon=(0.0,)), "`eps` must be a finite number > 0, got 0.0"),
        (dict(n_samples=1), "`n_samples` must be a whole number >= 2, got 1"),
        (dict(lanczos_steps=0), "`lanczos_steps` must be a whole number >= 1, got 0"),
        (dict(draws=0), "`draws` must be a whole number >= 1, got 0"),
        (dict(time_budget=0), r"`time_budget` must be a finite number > 0 and <= 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CurvatureCallback(**arguments)


def test_a_network_that_the_algorithm_does_not_have() -> None:
    with pytest.raises(ValueError, match="`networks` must be one of 'policy', 'value', 'joint', got 'actor'"):
        learn(CurvatureCallback(networks=("actor",)), 64)


def test_nan_names_the_step_and_the_term(tmp_path: Path) -> None:
    class Poison(CurvatureCallback):
        def _on_rollout_end(self) -> None:
            assert isinstance(self.model, OnPolicyAlgorithm)
            self.model.rollout_buffer.returns[:] = np.nan
            super()._on_rollout_end()

    with pytest.raises(
        FloatingPointError, match="CurvatureCallback at 64 timesteps, returns of the transitions: NaN or infinity"
    ):
        learn(Poison(save_dir=tmp_path, n_samples=16, networks=("value",), kinds=("hessian",)), 64)


def test_files_are_plain_spectra(tmp_path: Path) -> None:
    learn(curvature(tmp_path), 64)
    spectrum = Spectrum.load(tmp_path / "0000000064_task0_start_policy_ggn.npz")
    assert spectrum.info["algorithm"] == "PPO" and spectrum.info["seconds"] >= 0
    assert spectrum.info["task_value"] == 0.5


def test_observations_that_overflow_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """Finite observations and weights, infinite squares: whether training goes on is not the callback's to say."""

    class Huge(gym.ObservationWrapper):
        def observation(self, observation: np.ndarray) -> np.ndarray:
            return observation * np.float32(1e30)

    env = Huge(gym.make("Pendulum-v1"))
    env.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[8], activation_fn=th.nn.ReLU), n_epochs=1)
    callback = curvature(tmp_path, networks=("policy",), kinds=("ggn", "kfac"), n_samples=4)
    with pytest.warns(UserWarning, match="leaves out its measurement at 64 timesteps, ggn of policy"):
        learn(callback, 64, env=env, **kwargs)
    assert not list(tmp_path.glob("*ggn.npz"))


def test_one_threshold_or_several() -> None:
    assert CurvatureCallback(epsilon=0.1).epsilon == (0.1,)
    assert CurvatureCallback(epsilon=[0.1, 1.0]).epsilon == (0.1, 1.0)


def test_the_ceiling_of_a_rank_is_logged(tmp_path: Path) -> None:
    """16 transitions with one value each, of a network of 41 parameters; the policy's 16 x 2 outputs of 41 too."""
    model = PPO("MlpPolicy", Tasks(), tensorboard_log=str(tmp_path), **SMALL)
    model.learn(64, callback=CurvatureCallback(n_samples=16, kinds=("ggn", "entk", "hessian"), lanczos_steps=4))
    events = EventAccumulator(str(tmp_path / "PPO_1"))
    events.Reload()
    for kind in ("ggn", "entk"):
        (ceiling,) = events.Scalars(f"curvature/value/{kind}/rank_ceiling")
        assert ceiling.value == pytest.approx(16 / 41)
    assert "curvature/value/hessian/rank_ceiling" not in events.Tags()["scalars"]
    table = load_spectra(tmp_path)
    limited = table[table.kind != "hessian"]
    assert len(limited) == 4 and (limited["epsilon_rank_0.001"] <= limited.rank_ceiling).all()
