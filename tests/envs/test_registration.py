"""A robot of a stranger's package works as ours do."""

import pickle
import re
from pathlib import Path
from typing import Any

import example_robots
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_plasticity.envs import has_clock, register_nonstationary
from sb3_plasticity.vec_env import MujocoBatchVecEnv, make_nonstationary_vec_env

CYCLE = {"kind": "cyclic", "values": [9.81, 30.0, 2.0], "period": 20}


def rollout(env: VecEnv, steps: int = 60) -> list[Any]:
    rng = np.random.default_rng(0)
    said: list[Any] = [env.reset()]
    for _ in range(steps):
        actions = rng.uniform(-3, 3, (2, 1)).astype(np.float32)
        observations, rewards, dones, infos = env.step(actions)
        said += [observations, rewards, dones, [(info["task_index"], info["reward_survive"]) for info in infos]]
    env.close()
    return said


def test_every_backend_gives_the_same_numbers() -> None:
    pytest.importorskip("mujoco.batch", exc_type=ImportError)
    keywords = {"schedule": CYCLE, "switch": "immediate"}
    envs = [
        make_nonstationary_vec_env("DriftingPendulum-v0", 2, 0, backend, keywords)
        for backend in ("dummy", "subproc", "batch")
    ]
    assert type(envs[2]) is MujocoBatchVecEnv and all(map(has_clock, envs))
    dummy, *others = map(rollout, envs)
    for other in others:
        for one, two in zip(dummy, other, strict=True):
            np.testing.assert_array_equal(one, two)
    assert {index for index, _ in dummy[-1]} == {2}


def test_what_contributing_shows_runs_as_written() -> None:
    contributing = Path(__file__).parents[2] / "CONTRIBUTING.md"
    if not contributing.exists():
        pytest.skip("not in a checkout")
    section = contributing.read_text().split("## Add a world")[1].split("\n## ")[0]
    namespace = {"__name__": "a_contribution"}
    for block in re.findall(r"```python\n(.*?)```", section, re.S):
        exec(block, namespace)
    assert has_clock(gym.make("DriftingPole-v0"))
    pytest.importorskip("mujoco.batch", exc_type=ImportError)
    envs = [make_nonstationary_vec_env("SlipperyPendulum-v0", 2, 0, backend) for backend in ("dummy", "batch")]
    for one, other in zip(*map(rollout, envs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Other(example_robots.DriftingPendulumEnv):
        """May compute something else."""

    register_nonstationary("OtherPendulum-v0", Other, max_episode_steps=50)
    assert type(make_nonstationary_vec_env("OtherPendulum-v0", 2)) is DummyVecEnv


def test_any_id_and_any_mujoco_class() -> None:
    env: Any = gym.make("DriftingCart-v0", task=3)
    assert has_clock(env) and env.reset(seed=0)[1]["task_index"] == 3
    assert env.unwrapped.gravity == env.get_wrapper_attr("task").value
    env = gym.make("DriftingReacher-v0")
    copy: Any = pickle.loads(pickle.dumps(env.unwrapped))
    assert type(copy) is type(env.unwrapped) and copy.parameter.name == "mass"
    np.testing.assert_array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])


def test_bad_parents() -> None:
    with pytest.raises(ValueError, match=r"`parent` must be .* got 'CartPool-v1' \(did you mean 'CartPole-v1'\?\)"):
        register_nonstationary("A-v0", "CartPool-v1")
    with pytest.raises(ValueError, match=r"`parent` must be .* got 3"):
        register_nonstationary("A-v0", 3)
    with pytest.raises(ValueError, match=r"`batched` must be None unless"):
        register_nonstationary("A-v0", "CartPole-v1", example_robots.BatchedPendulum)
