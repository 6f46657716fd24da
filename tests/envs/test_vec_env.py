import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.vec_env import make_nonstationary_vec_env

CYCLE = {"kind": "cyclic", "values": [0.1, 0.5, 2.0], "period": 10}


@pytest.mark.parametrize(("backend", "cls"), [("dummy", DummyVecEnv), ("subproc", SubprocVecEnv)])
def test_backends_are_monitored_and_seeded_alike(backend: str, cls: type[VecEnv]) -> None:
    keywords: dict[str, Any] = {"schedule": CYCLE, "switch": "immediate", "healthy_z_range": (0.5, 1.0)}
    env = make_nonstationary_vec_env("SlipperyAnt-v0", 2, seed=7, backend=backend, env_kwargs=keywords)
    assert type(env) is cls and env.env_is_wrapped(Monitor) == [True, True]
    singles = [gym.make("SlipperyAnt-v0", **keywords) for _ in range(2)]
    first = [single.reset(seed=7 + i)[0] for i, single in enumerate(singles)]
    np.testing.assert_array_equal(np.asarray(env.reset()), first)
    rng = np.random.default_rng(0)
    episodes = 0
    for _ in range(60):
        actions = rng.uniform(-1, 1, (2, 8)).astype(np.float32)
        said: Any = env.step(actions)
        observations, rewards, dones, infos = said
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, info = single.step(actions[i])
            assert np.float32(rewards[i]) == np.float32(reward) and dones[i] == (terminated or truncated)
            assert infos[i]["task_index"] == info["task_index"]
            if dones[i]:
                episodes += 1
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                observation, _ = single.reset()
                assert infos[i]["episode"]["l"] > 0
            np.testing.assert_array_equal(observations[i], observation)
    assert episodes > 0
    assert env.env_method("sync_clock", 100, 2) == [None, None]
    assert [clock.step for clock in env.get_attr("clock")] == [100, 100]
    env.close()


def test_sb3s_own_helper_works_with_subprocesses() -> None:
    # the prefix makes the child import the package that registers the id
    env = make_vec_env("sb3_plasticity.envs:SlipperyAnt-v0", 1, seed=0, vec_env_cls=SubprocVecEnv)
    assert np.asarray(env.reset()).shape == (1, 27)
    env.close()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"backend": "threads"}, r"`backend` must be one of 'auto', 'batch', 'dummy', 'subproc', got 'threads'"),
        ({"n_envs": 0}, r"`n_envs` must be a whole number >= 1, got 0"),
        ({"env_kwargs": {"switch": "now"}}, r"`switch` must be .* got 'now'"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_nonstationary_vec_env("SlipperyAnt-v0", **keywords)


def test_an_older_mujoco_falls_back_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)
    env = make_nonstationary_vec_env("SlipperyAnt-v0", 2)
    assert type(env) is DummyVecEnv and len(caplog.records) == 1
    assert "no mujoco.batch, which begins with 3.17; pip install 'mujoco>=4'" in caplog.text
    with pytest.raises(NotBatchableError, match=r"mujoco\.batch"):
        make_nonstationary_vec_env("SlipperyAnt-v0", 2, backend="batch")
    with pytest.warns(UserWarning, match=r"in a SyncVectorEnv, not in a batch: .* no mujoco\.batch"):
        assert type(gym.make_vec("SlipperyAnt-v0", num_envs=2)) is SyncVectorEnv


def test_mistyped_ids_name_the_nearest() -> None:
    with pytest.raises(gym.error.NameNotFound, match="SlipperyHopper"):
        make_nonstationary_vec_env("SliperyHopper-v0")
