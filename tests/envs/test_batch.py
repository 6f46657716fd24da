"""MujocoBatchVecEnv against DummyVecEnv over the same monitored ids and seeds: equal bits and all of SB3's API."""

import logging
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
from sb3_plasticity.envs import Task
from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.envs.physics import PARAMETERS
from sb3_plasticity.vec_env import MujocoBatchVecEnv, make_nonstationary_vec_env

pytest.importorskip("mujoco.batch", reason="this MuJoCo has none", exc_type=ImportError)

ROBOTS = [f"Slippery{name}-v0" for name in ("Ant", "HalfCheetah", "Hopper", "Walker2d", "Humanoid", "Swimmer")]
CYCLE: dict[str, Any] = {"kind": "cyclic", "values": [0.3, 2.3, 1.1], "period": 37}


def pair(env_id: str, n_envs: int = 3, seed: int = 3, **keywords: Any) -> list[Any]:
    """The same environments in a DummyVecEnv and in a batch."""
    return [make_nonstationary_vec_env(env_id, n_envs, seed, backend, keywords) for backend in ("dummy", "batch")]


def assert_same_info(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key == "episode":
            assert {k: v for k, v in value.items() if k != "t"} == {k: v for k, v in other[key].items() if k != "t"}
        else:
            assert np.shape(value) == np.shape(other[key])
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def assert_same_reset(one: Any, other: Any) -> None:
    first, second = one.reset(), other.reset()
    assert first.dtype == second.dtype
    np.testing.assert_array_equal(first, second)
    for infos in zip(one.reset_infos, other.reset_infos, strict=True):
        assert_same_info(*infos)


def assert_same_steps(
    one: Any, other: Any, steps: int, dtype: type[np.floating[Any]] = np.float32
) -> list[dict[str, Any]]:
    """Random actions, extreme ones, none and, over time, all of them on each simulation. Returns the ended episodes."""
    rng = np.random.default_rng(0)
    episodes: list[dict[str, Any]] = []
    space = one.action_space
    for step in range(steps):
        actions = rng.uniform(space.low, space.high, (one.num_envs, *space.shape)).astype(dtype)
        if step % 3 == 1:
            actions = np.where(actions > 0, space.high, space.low).astype(dtype)
        elif step % 30 == 2:
            actions[:] = 0
        first, second = one.step(actions), other.step(actions)
        for a, b in zip(first[:3], second[:3], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for infos in zip(first[3], second[3], strict=True):
            assert_same_info(*infos)
        for infos in zip(one.reset_infos, other.reset_infos, strict=True):
            assert_same_info(*infos)
        episodes += [info for info in first[3] if "episode" in info]
    return episodes


# Episodes are cut off at 1,000 steps.
@pytest.mark.parametrize(("switch", "steps"), [("reset", 1100), ("immediate", 250)])
@pytest.mark.parametrize("env_id", ROBOTS)
def test_bit_equal(env_id: str, switch: str, steps: int) -> None:
    dummy, batch = pair(env_id, n_envs=2, schedule=CYCLE, switch=switch)
    assert batch.observation_space == dummy.observation_space and batch.action_space == dummy.action_space
    assert_same_reset(dummy, batch)
    episodes = assert_same_steps(dummy, batch, steps)
    if env_id in ("SlipperyHalfCheetah-v0", "SlipperySwimmer-v0"):  # these never fall
        assert [info["TimeLimit.truncated"] for info in episodes] == [True] * (2 * (steps > 1000))
    else:
        assert len(episodes) > steps // 200


@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize("env_id", ["SlipperyHopper-v0", "SlipperyHumanoid-v0", "NonStationaryAnt-v0"])
def test_bit_equal_for_every_parameter(env_id: str, parameter: str) -> None:
    dummy, batch = pair(env_id, parameter=parameter, schedule=CYCLE, switch="immediate")
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 120)


OPTIONS: dict[str, dict[str, Any]] = {
    "SlipperyAnt-v0": {"main_body": "aux_1", "healthy_z_range": (0.3, 0.9), "healthy_reward": 2.0},
    "SlipperyHalfCheetah-v0": {"forward_reward_weight": 2.0},
    "SlipperyHopper-v0": {"healthy_state_range": (-5.0, 5.0), "healthy_angle_range": (-1.0, 1.0)},
    "SlipperyWalker2d-v0": {"healthy_angle_range": (-0.5, 0.5)},
    "SlipperySwimmer-v0": {"forward_reward_weight": 2.0, "parameter": "mass"},
    "SlipperyHumanoid-v0": {"include_cinert_in_observation": False, "include_qfrc_actuator_in_observation": False},
}


@pytest.mark.parametrize("env_id", ROBOTS)
@pytest.mark.parametrize("terminate", [False, True])
def test_bit_equal_under_the_parents_options(env_id: str, terminate: bool) -> None:
    keywords: dict[str, Any] = {
        "exclude_current_positions_from_observation": terminate,
        "frame_skip": 3,
        "ctrl_cost_weight": 0.3,
        "reset_noise_scale": 0.02,
        "action_bound": 5.0,
        "max_episode_steps": 40,
        "schedule": {"kind": "sinusoid", "low": 0.1, "high": 2.0, "period": 60},
        "switch": "immediate",
        **OPTIONS[env_id],
    }
    if env_id not in ("SlipperyHalfCheetah-v0", "SlipperySwimmer-v0"):
        keywords["terminate_when_unhealthy"] = terminate
    dummy, batch = pair(env_id, **keywords)
    assert_same_reset(dummy, batch)
    assert assert_same_steps(dummy, batch, 100)
    # float64 actions make the parents' control cost float64 too
    assert_same_steps(dummy, batch, 20, dtype=np.float64)


def test_bit_equal_with_paralysed_legs() -> None:
    keywords: dict[str, Any] = {
        "parameter": "actuator_strength",
        "actuators": ["hip_1", "ankle_1"],
        "switch": "immediate",
    }
    dummy, batch = pair("SlipperyAnt-v0", schedule={"kind": "paralysis", "period": 30}, **keywords)
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 80)
    assert batch.get_attr("parameter") == dummy.get_attr("parameter")


def test_bit_equal_without_a_time_limit() -> None:
    dummy, batch = pair("SlipperyHalfCheetah-v0", n_envs=1, max_episode_steps=-1)
    assert_same_reset(dummy, batch)
    assert assert_same_steps(dummy, batch, 1100) == []
    assert batch.env_is_wrapped(TimeLimit) == dummy.env_is_wrapped(TimeLimit) == [False]


def test_clocks_seeds_and_frozen_tasks_of_single_simulations() -> None:
    dummy, batch = pair("SlipperyHopper-v0", n_envs=4, schedule=CYCLE)
    for env in (dummy, batch):
        env.env_method("sync_clock", 80, 4)
        env.env_method("set_task", 7, indices=[1, 2])
    assert_same_reset(dummy, batch)
    tasks = [info["task_index"] for info in batch.reset_infos]
    assert tasks == [2, 7, 7, 2] and batch.get_attr("task") == dummy.get_attr("task")
    assert_same_steps(dummy, batch, 60)
    for env in (dummy, batch):
        env.env_method("set_task", None, indices=1)
        env.seed(11)
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 60)
    assert [clock.step for clock in batch.get_attr("clock")] == [80 + 4 * 120] * 4
    for one, other in zip(dummy.get_attr("model"), batch.get_attr("model"), strict=True):
        np.testing.assert_array_equal(one.geom_friction, other.geom_friction)


def test_an_unmoved_episode_starts_in_the_task_of_the_new_clock() -> None:
    dummy, batch = pair("SlipperyAnt-v0", n_envs=2, schedule=CYCLE)
    assert_same_reset(dummy, batch)
    for env in (dummy, batch):
        env.env_method("sync_clock", 40, 2)
    assert batch.get_attr("task") == [Task(1, 2.3)] * 2
    assert_same_steps(dummy, batch, 3)


def test_seeded_resets_restart_the_own_clocks() -> None:
    dummy, batch = pair("SlipperyAnt-v0", n_envs=2, schedule=CYCLE, switch="immediate")
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 50)
    for env in (dummy, batch):
        env.seed(5)
    assert_same_reset(dummy, batch)
    assert batch.get_attr("task") == [Task(0, 0.3)] * 2


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_any_number_of_threads(n_threads: int) -> None:
    keywords: dict[str, Any] = {"schedule": CYCLE, "switch": "immediate"}
    dummy = make_nonstationary_vec_env("SlipperyAnt-v0", 7, 0, "dummy", keywords)
    batch = MujocoBatchVecEnv("SlipperyAnt-v0", 7, seed=0, n_threads=n_threads, **keywords)
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 100)


@pytest.mark.parametrize("env_id", ROBOTS)
@pytest.mark.parametrize("cause", ["velocity", "action"])
def test_a_diverged_simulation_ends_alone_and_as_in_a_dummy(
    env_id: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory
    dummy, batch = pair(env_id, schedule=CYCLE)
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 5)
    actions = np.zeros((3, *dummy.action_space.shape), np.float32)
    if cause == "velocity":
        dummy.envs[1].unwrapped.data.qvel[:] = 1e12
        batch._sims.batch.bind("qvel")[1] = 1e12
    else:
        actions[1, 0] = np.nan
    first, second = dummy.step(actions), batch.step(actions)
    for a, b in zip(first[:3], second[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    for infos in zip(first[3], second[3], strict=True):
        assert_same_info(*infos)
    assert second[2][1] and second[1][1] == 0 and "BAD" in second[3][1]["simulation_error"]
    assert ["simulation_error" in info for info in second[3]] == [False, True, False]
    assert np.isfinite(second[0]).all()
    assert_same_steps(dummy, batch, 50)


def test_training_gives_the_same_weights() -> None:
    dummy, batch = pair("SlipperyAnt-v0", n_envs=4, schedule=CYCLE)

    def weights(env: VecEnv) -> dict[str, Any]:
        model = PPO("MlpPolicy", VecNormalize(env), n_steps=64, batch_size=64, n_epochs=2, seed=1, device="cpu")
        return model.learn(512).get_parameters()["policy"]

    for one, other in zip(weights(dummy).values(), weights(batch).values(), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("wrapper", [VecNormalize, lambda env: VecFrameStack(env, 3), VecMonitor])
def test_wrappers(wrapper: Any) -> None:
    dummy, batch = map(wrapper, pair("SlipperyHopper-v0", schedule=CYCLE))
    np.testing.assert_array_equal(dummy.reset(), batch.reset())
    for _ in range(60):
        actions = np.ones((3, 3), np.float32)
        first, second = dummy.step(actions), batch.step(actions)
        for a, b in zip(first[:3], second[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for one, other in zip(first[3], second[3], strict=True):
            assert_same_info(one, other)


def test_results_belong_to_the_caller() -> None:
    _, batch = pair("SlipperyAnt-v0")
    kept = [batch.reset(), *batch.step(np.zeros((3, 8), np.float32))[:3]]
    copies = [array.copy() for array in kept]
    _, _, _, infos = batch.step(np.ones((3, 8), np.float32))
    position = infos[0]["x_position"].copy()
    batch.step(np.ones((3, 8), np.float32))
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert infos[0]["x_position"] == position


def test_attributes_and_methods() -> None:
    dummy, batch = pair("SlipperyHopper-v0", schedule=CYCLE)
    assert_same_reset(dummy, batch)
    assert_same_steps(dummy, batch, 10)
    for name in ("schedule", "switch", "action_bound", "dt", "render_mode", "parameter", "_healthy_z_range"):
        assert batch.get_attr(name) == dummy.get_attr(name), name
    for one, other in zip(dummy.get_attr("spec"), batch.get_attr("spec"), strict=True):
        assert (one.id, one.kwargs, one.max_episode_steps) == (other.id, other.kwargs, other.max_episode_steps)
    assert batch.get_attr("is_healthy") == dummy.get_attr("is_healthy")  # follows from the state
    for one, other in zip(dummy.get_attr("data"), batch.get_attr("data"), strict=True):
        np.testing.assert_array_equal(one.qpos, other.qpos)
    assert batch.has_attr("sync_clock") and not batch.has_attr("no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        batch.get_attr("no_such_thing")
    with pytest.raises(AttributeError, match=r"'set_state' would act on a copy: .* backend='dummy'"):
        batch.env_method("set_state", 0, 0)
    batch.set_attr("note", "mine", indices=[0, 2])
    assert batch.get_attr("note", indices=[0, 2]) == ["mine", "mine"] and not batch.has_attr("note")
    assert batch.env_is_wrapped(Monitor) == [True] * 3 and batch.env_is_wrapped(VecMonitor) == [False] * 3
    assert batch.env_is_wrapped(TimeLimit, indices=0) == [True]
    assert batch.unwrapped is batch
    assert [simulation.task for simulation in batch.get_attr("unwrapped")] == batch.get_attr("task")
    assert batch.env_method("get_wrapper_attr", "switch") == dummy.env_method("get_wrapper_attr", "switch")
    assert batch.seed(5) == [5, 6, 7] == dummy.seed(5)
    batch.close(), dummy.close()


def test_unseeded_batches_differ() -> None:
    first, second = (MujocoBatchVecEnv("SlipperyAnt-v0", 2) for _ in range(2))
    observations = np.concatenate([first.reset(), second.reset()])
    assert len(np.unique(observations[:, 0])) == 4


def test_pickling_makes_it_anew() -> None:
    batch = MujocoBatchVecEnv("SlipperyAnt-v0", 2, seed=3, n_threads=1, schedule=CYCLE, switch="immediate")
    first = batch.reset()
    for _ in range(50):
        batch.step(np.zeros((2, 8), np.float32))
    copy = pickle.loads(pickle.dumps(batch))
    assert copy.get_attr("clock")[0].step == 0 and copy.get_attr("switch") == ["immediate"] * 2
    np.testing.assert_array_equal(copy.reset(), first)


def test_infos_of_episodes_only() -> None:
    keywords: dict[str, Any] = {"seed": 3, "schedule": CYCLE, "switch": "immediate", "max_episode_steps": 30}
    full = MujocoBatchVecEnv("SlipperyHopper-v0", 4, **keywords)
    brief = MujocoBatchVecEnv("SlipperyHopper-v0", 4, infos="episode", **keywords)
    assert_same_reset(full, brief)
    rng, episodes = np.random.default_rng(0), 0
    for _ in range(70):
        actions = rng.uniform(-1, 1, (4, 3)).astype(np.float32)
        first, second = full.step(actions), brief.step(actions)
        for a, b in zip(first[:3], second[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for one, other, done in zip(first[3], second[3], first[2], strict=True):
            if done:
                episodes += 1
                assert_same_info(one, other)
            else:
                assert not other
                with pytest.raises(TypeError):
                    other["mine"] = 1
        assert [info["task_index"] for info in first[3]] == brief.task_indices.tolist()
        assert [info["task_value"] for info in first[3]] == brief.task_values.tolist()
    assert episodes > 8
    with pytest.raises(ValueError, match=r"`infos` must be one of 'all', 'episode', got 'none'"):
        MujocoBatchVecEnv("SlipperyHopper-v0", 4, infos="none")


def test_training_with_infos_of_episodes_only() -> None:
    changes = []
    env = MujocoBatchVecEnv("SlipperyHopper-v0", 4, seed=0, infos="episode", schedule={**CYCLE, "period": 128})
    model = PPO("MlpPolicy", VecNormalize(env), n_steps=64, batch_size=64, n_epochs=1, device="cpu")
    model.learn(512, callback=TaskSyncCallback(lambda old, new: changes.append((new.index, new.value))))
    assert changes == [(1, 2.3), (2, 1.1), (3, 0.3)] and len(model.ep_info_buffer or ()) > 3


def test_contact_forces_are_refused_or_left_to_a_dummy(caplog: pytest.LogCaptureFixture) -> None:
    refused: list[dict[str, Any]] = [{"include_cfrc_ext_in_observation": True}, {"contact_cost_weight": 5e-4}]
    for keywords in refused:
        for env_id in ("SlipperyAnt-v0", "SlipperyHumanoid-v0"):
            with pytest.raises(NotBatchableError, match=r"contact forces .* use backend='dummy'"):
                MujocoBatchVecEnv(env_id, 2, **keywords)
    with caplog.at_level(logging.INFO):
        env = make_nonstationary_vec_env("SlipperyAnt-v0", 2, env_kwargs={"contact_cost_weight": 5e-4})
    assert type(env) is DummyVecEnv and "SlipperyAnt-v0 in a DummyVecEnv" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        env = make_nonstationary_vec_env("SlipperyAnt-v0", 2)
    assert type(env) is MujocoBatchVecEnv and "MujocoBatchVecEnv" in caplog.text


def test_other_environments_are_refused() -> None:
    with pytest.raises(NotBatchableError, match="CartPoleEnv cannot be stepped in a batch: register_nonstationary"):
        MujocoBatchVecEnv("CartPole-v1", 2)
    assert type(make_nonstationary_vec_env("Pendulum-v1", 2)) is DummyVecEnv


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"n_envs": 0}, ValueError, r"`n_envs` must be a whole number >= 1, got 0"),
        ({"n_envs": 2, "n_threads": -1}, ValueError, r"`n_threads` must be .* got -1"),
        ({"n_envs": 2, "switch": "now"}, ValueError, r"`switch` must be .* got 'now'"),
        (
            {"n_envs": 2, "render_mode": "human"},
            ValueError,
            r"`render_mode` must be .* got 'human'",
        ),
        ({"n_envs": 2, "frictions": 1}, TypeError, "frictions"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], error: type[BaseException], message: str) -> None:
    with pytest.raises(error, match=message):
        MujocoBatchVecEnv("SlipperyAnt-v0", **keywords)


def test_bad_actions_and_ids() -> None:
    env = MujocoBatchVecEnv("SlipperyAnt-v0", 2)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(np.zeros((2, 8), np.float32))
    env.reset()
    with pytest.raises(ValueError, match=r"`actions` must be of shape \(2, 8\), got \(2, 3\)"):
        env.step(np.zeros((2, 3), np.float32))
    with pytest.raises(gym.error.NameNotFound, match="SlipperyAnt"):
        MujocoBatchVecEnv("SliperyAnt-v0", 2)
