"""Every ready world: Gymnasium's checker, the same rollout from the same seed, and what is published of it."""

import pickle
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_plasticity.envs import has_clock
from sb3_plasticity.envs.ready import minatar
from sb3_plasticity.envs.ready.metaworld import CW10

SHORT = {"kind": "numbered", "period": 30}
WORLDS: dict[str, dict[str, Any]] = {
    "ContinualCartPole-v0": {"schedule": {"kind": "log_uniform", "period": 30}},
    "ContinualAcrobot-v0": {"schedule": {"kind": "log_uniform", "period": 30}},
    "ContinualGymControl-v0": {"schedule": SHORT},
    "ContinualMinAtar-v0": {"schedule": SHORT, "max_episode_steps": 20},
    "ContinualMiniGrid-v0": {"schedule": SHORT, "max_episode_steps": 20},
    "ContinualMetaWorld-v0": {"schedule": SHORT, "tasks": CW10[:2], "max_episode_steps": 20},
}
NEEDS = {"ContinualMinAtar-v0": "minatar", "ContinualMiniGrid-v0": "minigrid", "ContinualMetaWorld-v0": "metaworld"}


def make(env_id: str, **keywords: Any) -> gym.Env[Any, Any]:
    if env_id in NEEDS:
        pytest.importorskip(NEEDS[env_id], exc_type=ImportError)
    if env_id == "ContinualMiniGrid-v0":
        keywords = {name: value for name, value in keywords.items() if name != "max_episode_steps"}
        keywords["max_steps"] = 20
    return gym.make(env_id, **keywords)


def rollout(env: gym.Env[Any, Any], steps: int = 100) -> list[tuple[Any, ...]]:
    env.action_space.seed(0)
    said: list[tuple[Any, ...]] = [env.reset(seed=1)]
    for _ in range(steps):
        said.append(env.step(env.action_space.sample()))
        if said[-1][2] or said[-1][3]:
            said.append(env.reset())
    return said


@pytest.mark.parametrize("env_id", WORLDS)
def test_checker(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(make(env_id, **WORLDS[env_id]), skip_render_check=True)


@pytest.mark.parametrize("env_id", WORLDS)
def test_same_seed_same_rollout(env_id: str) -> None:
    env = make(env_id, **WORLDS[env_id])
    assert has_clock(env)
    first, second = rollout(env), rollout(make(env_id, **WORLDS[env_id]))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:-1] == other[1:-1] and one[-1]["task_index"] == other[-1]["task_index"]
        assert env.observation_space.contains(one[0])
    again = rollout(env)  # a seed starts everything anew
    np.testing.assert_array_equal(first[-1][0], again[-1][0])
    if env_id not in ("ContinualCartPole-v0", "ContinualGymControl-v0", "ContinualAcrobot-v0"):
        assert {one[-1]["task_index"] for one in first} >= {0, 1}


@pytest.mark.parametrize(("env_id", "own"), [("ContinualCartPole-v0", 0.5), ("ContinualAcrobot-v0", 1.0)])
def test_at_their_own_physics_they_are_their_parents(env_id: str, own: float) -> None:
    env = gym.make(env_id, schedule={"kind": "constant", "value": own})
    parent = gym.make(env_id.removeprefix("Continual").replace("v0", "v1"))
    assert env.spec is not None and parent.spec is not None
    assert env.spec.max_episode_steps == parent.spec.max_episode_steps
    for one, other in zip(rollout(env), rollout(parent), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:-1] == other[1:-1]


def test_a_longer_pole_falls_more_slowly() -> None:
    """A pole of half-length l near upright: angular acceleration 3 g theta / (4 l) on a cart of great mass."""
    for value in (0.25, 1.0):
        env: Any = gym.make("ContinualCartPole-v0", schedule={"kind": "constant", "value": value}).unwrapped
        env.reset(seed=0)
        env.masscart = 1e9
        env.total_mass, env.force_mag = env.masscart + env.masspole, 0.0
        env.state = np.array([0.0, 0.0, 0.01, 0.0])
        env.step(0)
        assert env.state[3] / env.tau == pytest.approx(9.8 * np.sin(0.01) / (value * 4 / 3), rel=1e-6)


def test_acrobots_quantities() -> None:
    for name, attribute, expected in (
        ("length", "LINK_MOI", 4.0),
        ("mass", "LINK_MASS_2", 2.0),
        ("torque", "AVAIL_TORQUE", [-2.0, 0.0, 2.0]),
    ):
        env = gym.make("ContinualAcrobot-v0", parameter=name, schedule={"kind": "constant", "value": 2.0}).unwrapped
        assert getattr(env, attribute) == expected


def test_published_settings() -> None:
    env: Any = gym.make("ContinualGymControl-v0", env_id="Acrobot-v1")
    assert env.get_wrapper_attr("scale") == 2.0 and env.get_wrapper_attr("schedule").period == 160_000
    assert env.spec.id == "ContinualGymControl-v0" and env.observation_space.shape == (6,)
    steps = 1
    env.reset(seed=0)
    while not any(env.step(1)[2:4]):
        steps += 1
    assert steps == 400
    pytest.importorskip("minatar")
    env = gym.make("ContinualMinAtar-v0").unwrapped
    assert env.names == ["space_invaders", "asterix", "seaquest"] and env.schedule.period == 2_000_000
    assert env.observation_space.shape == (10, 10, 10) and env.action_space.n == 6


def test_minatar_is_the_real_game() -> None:
    module = pytest.importorskip("minatar")
    env, game = minatar.MinAtarEnv("breakout", render_mode="rgb_array"), module.Environment("breakout")
    env.reset(seed=3)
    game.seed(int(np.random.default_rng(np.random.PCG64(3)).integers(2**31)))
    game.reset()
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = int(rng.integers(6))
        observation, reward, terminated, *_ = env.step(action)
        assert (reward, terminated) == game.act(action)
        np.testing.assert_array_equal(observation, game.state())
        if terminated:
            break
    assert env.render().shape == (160, 160, 3)
    copy = pickle.loads(pickle.dumps(gym.make("ContinualMinAtar-v0")))
    assert copy.reset(seed=0)[1]["task_name"] == "space_invaders"


@pytest.mark.parametrize(("env_id", "module"), NEEDS.items())
def test_a_missing_package_says_which_extra_to_install(
    env_id: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        gym.error.DependencyNotInstalled, match=rf"{env_id} needs {module} .*sb3-plasticity\[{module}\]"
    ):
        gym.make(env_id)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`parameter` must be one of .* got 'lengthx' \(did you mean 'length'\?\)"):
        gym.make("ContinualCartPole-v0", parameter="lengthx")
    with pytest.raises(ValueError, match=r"`schedule` must be one of values > 0 for 'length', got 0.0"):
        gym.make("ContinualCartPole-v0", schedule={"kind": "constant", "value": 0})
    pytest.importorskip("minatar")
    with pytest.raises(ValueError, match=r"`games` must be one of .* got 'brekout' \(did you mean 'breakout'\?\)"):
        gym.make("ContinualMinAtar-v0", games=["brekout"])
