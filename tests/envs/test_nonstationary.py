import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.utils.env_checker import check_env

from sb3_plasticity.envs import NonStationaryMixin, Task

# the constant friction at which a task is its parent: Hopper and Walker2d scale their geoms' own
PARENTS = {
    "SlipperyAnt-v0": ("Ant-v5", 1.0),
    "NonStationaryAnt-v0": ("Ant-v5", 1.0),
    "SlipperyHalfCheetah-v0": ("HalfCheetah-v5", 0.4),
    "SlipperyHopper-v0": ("Hopper-v5", 1.0),
    "SlipperyWalker2d-v0": ("Walker2d-v5", 1.0),
    "SlipperyHumanoid-v0": ("Humanoid-v5", 1.0),
    "SlipperySwimmer-v0": ("Swimmer-v5", 0.1),  # viscosity
}
ENV_IDS = tuple(PARENTS)
CYCLE: dict[str, Any] = {"kind": "cyclic", "values": [0.1, 0.5, 2.0], "period": 10}


def make_parent(env_id: str) -> gym.Env[Any, Any]:
    parent = PARENTS[env_id][0]
    contacts = parent in ("Ant-v5", "Humanoid-v5")
    options: dict[str, Any] = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0} if contacts else {}
    return gym.make(parent, **options)


def rollout(env: Any, steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Everything that an env says, with actions from a generator of our own."""
    rng = np.random.default_rng(seed)
    said: list[tuple[Any, ...]] = [env.reset(seed=seed)]
    for _ in range(steps):
        said.append(env.step(rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)))
        if said[-1][2] or said[-1][3]:
            said.append(env.reset())
    return said


def assert_equal(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]], but: tuple[str, ...] = ()) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1:-1] == b[1:-1]
        assert a[-1].keys() - set(but) == b[-1].keys() - set(but)
        for key in a[-1].keys() - set(but):
            np.testing.assert_array_equal(a[-1][key], b[-1][key])


def indices(env: gym.Env[Any, Any], steps: int) -> list[int]:
    return [env.step(np.zeros(env.action_space.shape, np.float32))[-1]["task_index"] for _ in range(steps)]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_checker_finds_nothing_that_the_parent_does_not_have(env_id: str) -> None:
    def complaints(env: gym.Env[Any, Any]) -> set[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(env.unwrapped, skip_render_check=True)
        return {str(warning.message) for warning in caught}

    assert complaints(gym.make(env_id)) <= complaints(make_parent(env_id))


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_constant_at_the_parents_own_friction_is_the_parent(env_id: str) -> None:
    env = gym.make(env_id, schedule={"kind": "constant", "value": PARENTS[env_id][1]})
    parent = make_parent(env_id)
    assert env.observation_space == parent.observation_space and env.action_space == parent.action_space
    assert env.spec is not None and parent.spec is not None
    assert env.spec.max_episode_steps == parent.spec.max_episode_steps
    assert_equal(rollout(env, 300), rollout(parent, 300), but=("task_index", "task_value"))


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_same_seed_same_rollout_and_pickling(env_id: str) -> None:
    env: Any = gym.make(env_id, schedule=CYCLE)
    first = rollout(env, 60)
    copy = pickle.loads(pickle.dumps(env))  # its clock starts anew
    assert copy.unwrapped.clock.step == 0 and env.unwrapped.clock.step == 60
    assert_equal(first, rollout(copy, 60))
    assert_equal(first, rollout(gym.make(env_id, schedule=CYCLE), 60))


def test_pickling_keeps_every_argument() -> None:
    env = gym.make(
        "NonStationaryAnt-v0",
        parameter="gravity",
        schedule={"kind": "cyclic", "values": [5.0, 9.81], "period": 10},
        switch="immediate",
        task=1,
        action_bound=3.0,
        show_task=True,
        healthy_z_range=(0.1, 2.0),
    ).unwrapped
    copy = pickle.loads(pickle.dumps(env))
    for name in ("parameter", "schedule", "switch", "action_bound", "show_task", "task", "_healthy_z_range"):
        assert getattr(copy, name) == getattr(env, name), name
    assert copy.task == Task(1, 9.81) and copy.model.opt.gravity[2] == -9.81


def test_parents_info_keys_stay_and_contact_forces_can_be_asked_for() -> None:
    env = gym.make("SlipperyAnt-v0", include_cfrc_ext_in_observation=True, contact_cost_weight=5e-4, schedule=CYCLE)
    parent = gym.make("Ant-v5")
    assert env.observation_space == parent.observation_space
    env.reset(seed=0), parent.reset(seed=0)
    action = np.zeros(8, np.float32)
    assert env.step(action)[-1].keys() - {"task_index", "task_value"} == parent.step(action)[-1].keys()


def test_default_schedules() -> None:
    schedule = gym.make("SlipperyAnt-v0").get_wrapper_attr("schedule")
    values = [schedule(step).value for step in range(0, 400_000_000, 2_000_000)]
    assert len(set(values)) == 200 and 0.02 <= min(values) < 0.04 and 1 < max(values) <= 2
    assert schedule(1_999_999) == schedule(0) and schedule(2_000_000).index == 1
    schedule = gym.make("NonStationaryAnt-v0").get_wrapper_attr("schedule")
    assert schedule(250_000).value == pytest.approx(2.0) and schedule(750_000).value == pytest.approx(0.1)
    assert schedule(999_999).index == 0 and schedule(1_000_000).index == 1


def test_an_env_alone_counts_its_own_steps() -> None:
    env = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch="immediate")
    assert env.reset(seed=0)[1]["task_index"] == 0
    assert indices(env, 25) == [0] * 10 + [1] * 10 + [2] * 5
    assert env.reset()[1]["task_index"] == 2  # the clock goes on across episodes


def test_switch_reset_waits_for_the_next_episode() -> None:
    env = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch="reset")
    env.reset(seed=0)
    assert indices(env, 25) == [0] * 25
    _, info = env.reset()
    assert (info["task_index"], info["task_value"]) == (2, 2.0)
    assert indices(env, 3) == [2] * 3


def test_sync_clock_counts_steps_of_all_environments() -> None:
    env: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch="immediate")
    env.reset(seed=0)
    env.unwrapped.sync_clock(100, 4)
    # this env's steps happen at global steps 100, 104, 108, 112, ...
    assert indices(env, 6) == [10, 10, 10, 11, 11, 12]
    env.unwrapped.sync_clock(17, 0)
    assert indices(env, 15) == [1] * 15


def test_an_episode_that_has_not_moved_yet_starts_in_the_task_of_the_new_clock() -> None:
    env: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE)
    env.reset(seed=0)
    env.unwrapped.sync_clock(20, 1)  # as a trainer that resumes: it resets first and sets the clock then
    assert indices(env, 3) == [2] * 3
    env.unwrapped.sync_clock(30, 1)  # now it moves
    assert indices(env, 3) == [2] * 3


def test_a_seeded_reset_restarts_only_an_envs_own_clock() -> None:
    env: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch="immediate")
    env.reset(seed=0)
    indices(env, 15)
    assert env.reset(seed=0)[1]["task_index"] == 0
    env.unwrapped.sync_clock(25, 1)
    assert env.reset(seed=0)[1]["task_index"] == 2


@pytest.mark.parametrize("switch", ["reset", "immediate"])
def test_set_task_freezes_and_frees(switch: str) -> None:
    env: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch=switch)
    env.unwrapped.set_task(4)
    _, info = env.reset(seed=0)
    assert (info["task_index"], info["task_value"]) == (4, 0.5)
    assert indices(env, 12) == [4] * 12
    env.unwrapped.set_task(None)
    assert indices(env, 1) == ([4] if switch == "reset" else [1])
    assert env.reset()[1]["task_index"] == 1
    frozen: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch=switch, task=1)
    frozen.reset(seed=0)
    frozen.unwrapped.sync_clock(1000, 1)
    assert indices(frozen, 12) == [1] * 12


def test_info_names_the_task_of_that_very_transition() -> None:
    """Replay each step on a copy with the friction of its info: the physics must agree."""
    env: Any = gym.make("SlipperyAnt-v0", schedule=CYCLE, switch="immediate")
    fixed = {
        value: gym.make("SlipperyAnt-v0", schedule={"kind": "constant", "value": value}) for value in CYCLE["values"]
    }
    env.reset(seed=0)
    for other in fixed.values():
        other.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(35):
        data: Any = env.unwrapped.data
        state = data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        observation, *_, info = env.step(action)
        assert info["task_value"] == CYCLE["values"][step // 10 % 3]
        twin: Any = fixed[info["task_value"]].unwrapped
        twin.data.qpos[:], twin.data.qvel[:], twin.data.qacc_warmstart[:] = state
        np.testing.assert_array_equal(twin.step(action)[0], observation)


def test_action_bound_widens_the_box_but_not_the_torque() -> None:
    env: Any = gym.make("SlipperyAnt-v0", action_bound=10.0, task=0)
    tight = gym.make("SlipperyAnt-v0", task=0)
    assert env.action_space.low.tolist() == [-10.0] * 8 and env.action_space.high.tolist() == [10.0] * 8
    env.reset(seed=0), tight.reset(seed=0)
    wide_action = np.array([10, -10, 1, -1, 3, 0.5, 0, -0.25], np.float32)
    wide, clamped = env.step(wide_action), tight.step(np.clip(wide_action, -1, 1))
    np.testing.assert_array_equal(wide[0], clamped[0])
    assert wide[-1]["reward_ctrl"] == -0.5 * (100 + 100 + 1 + 1 + 9 + 0.25 + 0.0625)
    assert clamped[-1]["reward_ctrl"] == -0.5 * (1 + 1 + 1 + 1 + 1 + 0.25 + 0.0625)


def test_action_bound_humanoid_charges_the_raw_action() -> None:
    env: Any = gym.make("SlipperyHumanoid-v0", action_bound=2.0, task=0)
    plain: Any = gym.make("SlipperyHumanoid-v0")
    assert plain.action_space.high[0] == np.float32(0.4)
    env.reset(seed=0)
    info = env.step(np.full(17, 2.0, np.float32))[-1]
    assert info["reward_ctrl"] == pytest.approx(-0.1 * 17 * 4)
    assert np.abs(env.unwrapped.data.actuator_force).max() == pytest.approx(0.4)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("cause", ["velocity", "action"])
def test_a_diverged_simulation_ends_its_episode(
    env_id: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory
    env: Any = gym.make(env_id, terminate_when_unhealthy=False) if "Ant" in env_id else gym.make(env_id)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    usual = env.step(action)[-1]
    if cause == "velocity":
        env.unwrapped.data.qvel[:] = 1e12
    else:
        action[0] = np.nan
    observation, reward, terminated, truncated, info = env.step(action)
    assert terminated and not truncated and reward == 0
    assert {"velocity": "BADQVEL", "action": "BADCTRL"}[cause] in info["simulation_error"]
    assert np.isfinite(observation).all() and all(
        np.isfinite(v).all() for k, v in info.items() if k != "simulation_error"
    )
    assert info.keys() == usual.keys() | {"simulation_error"}
    env.reset()
    assert "simulation_error" not in env.step(np.zeros_like(action))[-1]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"parameter": "frction"}, r"`parameter` must be one of 'friction', .* \(did you mean 'friction'\?\)"),
        ({"parameter": 3}, r"`parameter` must be one of .* got 3"),
        ({"schedule": "loguniform"}, r"`kind of the schedule` must be .* \(did you mean 'log_uniform'\?\)"),
        ({"schedule": {"kind": "cyclic", "values": [1], "perod": 2}}, r"got 'perod' \(did you mean 'period'\?\)"),
        ({"schedule": {"kind": "cyclic", "values": [1], "period": 0}}, r"`period` must be .* got 0"),
        (
            {"schedule": {"kind": "constant", "value": 0}},
            r"`schedule` must be one of values > 0 for 'friction', .*, got 0.0",
        ),
        ({"schedule": {"kind": "cyclic", "values": [1, -1], "period": 3}}, r"'friction', .*, got -1.0"),
        ({"schedule": {"kind": "table", "values": [1, np.nan], "period": 3}}, r"got nan at \(1,\)"),
        ({"schedule": {"kind": "uniform", "low": 2, "high": 1}}, r"`low` must be <= `high` = 1.0, got 2.0"),
        ({"schedule": {"kind": "sinusoid", "low": 0, "high": 1}}, r"'friction', .*, got 0.0"),
        ({"parameter": "mass", "schedule": {"kind": "constant", "value": 0}}, r"'mass', .*, got 0.0"),
        ({"parameter": "damping", "schedule": {"kind": "constant", "value": -1}}, r">= 0 for 'damping', .*, got -1.0"),
        (
            {"parameter": "gravity", "schedule": {"kind": "constant", "value": -9.81}},
            r">= 0 for 'gravity', which is a magnitude in m/s\^2, got -9.81",
        ),
        ({"switch": "now"}, r"`switch` must be one of 'reset', 'immediate', got 'now'"),
        ({"task": -1}, r"`task` must be a whole number >= 0 .*, got -1"),
        ({"task": 1.5}, r"`task` must be .*, got 1.5"),
        (
            {"task": 2, "schedule": {"kind": "table", "values": [1, 2], "period": 3}},
            r"`task` must be a whole number from 0 to 1 for the table, got 2",
        ),
        ({"action_bound": 0}, r"`action_bound` must be a finite number > 0, got 0"),
        ({"action_bound": np.inf}, r"`action_bound` must be .*, got inf"),
        ({"actuators": ["hip_1"]}, r"`actuators` must be None unless `parameter` is 'actuator_strength'"),
        (
            {"parameter": "actuator_strength", "actuators": "hip_1"},
            r"`actuators` must be a list of names, got 'hip_1'",
        ),
        (
            {"parameter": "actuator_strength", "actuators": ["hip_5"]},
            r"`actuators` must be one of 'hip_4', 'ankle_4', .* got 'hip_5' \(did you mean 'hip_",
        ),
    ],
)
def test_bad_arguments_are_refused_by_make(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("SlipperyAnt-v0", **keywords)


def test_bad_clocks_are_refused() -> None:
    env: Any = gym.make("SlipperyAnt-v0").unwrapped
    for arguments, name in [((-1, 1), "`step`.* got -1"), ((0, -1), "`rate`.* got -1"), ((0.5, 1), "`step`.* got 0.5")]:
        with pytest.raises(ValueError, match=name):
            env.sync_clock(*arguments)
    with pytest.raises(ValueError, match=r"`task` must be .* got -1"):
        env.set_task(-1)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("parameterx", "parameter"),
        ("healthy_rewrd", "healthy_reward"),
        ("frame_skp", "frame_skip"),
        ("widthx", "width"),
    ],
)
def test_mistyped_keywords_name_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{typo}' \(did you mean '{meant}'\?\)"):
        options: dict[str, Any] = {typo: 1}
        gym.make("SlipperyAnt-v0", **options)


def test_mistyped_ids_name_the_nearest() -> None:
    with pytest.raises(gym.error.NameNotFound, match="SlipperyAnt"):
        gym.make("SliperyAnt-v0")


class NonStationarySwimmerEnv(NonStationaryMixin, SwimmerEnv):  # type: ignore[misc]
    """A robot that touches nothing, so friction changes nothing."""


class NonStationaryPendulumEnv(NonStationaryMixin, PendulumEnv):  # type: ignore[misc]
    """No MuJoCo behind it."""


def test_the_mixin_on_any_robot_says_which_parameters_work() -> None:
    with pytest.raises(ValueError, match=r"one of 'gravity', 'mass', 'actuator_strength', 'viscosity'"):
        NonStationarySwimmerEnv()
    with pytest.raises(ValueError, match=r"got 'damping': its model has no damping"):
        NonStationarySwimmerEnv(parameter="damping")
    env = NonStationarySwimmerEnv(parameter="mass", schedule=CYCLE)
    assert env.reset(seed=0)[1]["task_value"] == 0.1


def test_the_mixin_needs_a_mujoco_environment() -> None:
    with pytest.raises(TypeError, match=r"`NonStationaryPendulumEnv` must have .*; NonStationary\(env,"):
        NonStationaryPendulumEnv()
