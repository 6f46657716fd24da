"""``gymnasium.make_vec`` over a batch against ``SyncVectorEnv``: equal bits in every autoreset mode."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics

from sb3_plasticity.envs.vector import MujocoVectorEnv

pytest.importorskip("mujoco.batch", reason="this MuJoCo has none", exc_type=ImportError)

CYCLE = {"kind": "cyclic", "values": [0.3, 2.3, 1.1], "period": 17}
KEYWORDS: dict[str, Any] = {"schedule": CYCLE, "switch": "immediate", "max_episode_steps": 23}
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def pair(env_id: str, mode: AutoresetMode, n: int = 3, **keywords: Any) -> tuple[SyncVectorEnv, MujocoVectorEnv]:
    keywords = {**KEYWORDS, **keywords}
    sync = gym.make_vec(env_id, n, "sync", vector_kwargs={"autoreset_mode": mode}, **keywords)
    batch = gym.make_vec(env_id, n, autoreset_mode=mode, **keywords)
    assert type(sync) is SyncVectorEnv and type(batch) is MujocoVectorEnv
    return sync, batch


def assert_same_infos(one: dict[str, Any], other: dict[str, Any]) -> None:
    # Importing rl_zoo3, as tests of the zoo do in the same process, lets Gymnasium's TimeLimit say this, too.
    one = {key: value for key, value in one.items() if not key.endswith("TimeLimit.truncated")}
    assert one.keys() == other.keys()
    for key in one:
        if isinstance(one[key], dict):
            assert_same_infos(one[key], other[key])
        else:
            assert one[key].dtype == other[key].dtype and one[key].shape == other[key].shape, key
            if one[key].dtype == object:
                for a, b in zip(one[key], other[key], strict=True):
                    np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    for a, b in zip(one[:-1], other[:-1], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert_same_infos(one[-1], other[-1])


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("env_id", ["SlipperyAnt-v0", "SlipperyHopper-v0", "SlipperyHumanoid-v0", "SlipperySwimmer-v0"])
def test_bit_equal_to_a_sync_vector_env(env_id: str, mode: AutoresetMode) -> None:
    sync, batch = pair(env_id, mode)
    assert batch.observation_space == sync.observation_space and batch.action_space == sync.action_space
    assert batch.metadata["autoreset_mode"] is mode
    assert_same(sync.reset(seed=3), batch.reset(seed=3))
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(90):
        actions = rng.uniform(-0.4, 0.4, sync.action_space.shape).astype(np.float32)
        said = sync.step(actions)
        assert_same(said, batch.step(actions))
        done = said[2] | said[3]
        ended += done.sum()
        if mode is AutoresetMode.DISABLED and done.any():
            results = [env.reset(options={"reset_mask": done.copy()}) for env in (sync, batch)]
            assert_same(*results)
    assert ended >= 3 * 3
    assert_same(sync.reset(seed=[5, None, 7]), batch.reset(seed=[5, None, 7]))


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)
def test_a_diverged_simulation_is_told_as_in_a_sync_vector_env(
    mode: AutoresetMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory
    sync, batch = pair("SlipperyHopper-v0", mode)
    assert_same(sync.reset(seed=0), batch.reset(seed=0))
    actions = np.zeros((3, 3), np.float32)
    actions[1, 0] = np.nan
    for given in (actions, np.zeros_like(actions), np.zeros_like(actions)):
        assert_same(sync.step(given), batch.step(given))


def test_gymnasiums_own_wrappers_and_clocks() -> None:
    env: Any = gym.make_vec("SlipperyAnt-v0", num_envs=4, schedule=CYCLE, terminate_when_unhealthy=False)
    assert (
        isinstance(env, MujocoVectorEnv)
        and env.spec is not None
        and env.spec.id == "SlipperyAnt-v0"
        and env.num_envs == 4
    )
    wrapped = NormalizeObservation(RecordEpisodeStatistics(env))
    wrapped.reset(seed=0)
    env.call("sync_clock", 40, 4)
    env.call("set_task", 1)
    for _ in range(30):
        observations, rewards, _, _, infos = wrapped.step(env.action_space.sample())
    assert observations.shape == (4, 27) and rewards.shape == (4,) and infos["task_index"].tolist() == [1] * 4
    assert [clock.step for clock in env.get_attr("clock")] == [40 + 4 * 30] * 4
    assert gym.make_vec(env.spec).num_envs == 4
    env.close()


def test_what_a_batch_cannot_do_is_a_sync_vector_env_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="SlipperyAnt-v0 in a SyncVectorEnv, not in a batch: contact forces"):
        env = gym.make_vec("SlipperyAnt-v0", num_envs=2, contact_cost_weight=5e-4)
    assert type(env) is SyncVectorEnv


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`autoreset_mode` must be one of 'NextStep', .* got 'Never'"):
        gym.make_vec("SlipperyAnt-v0", num_envs=2, autoreset_mode="Never")
    with pytest.raises(ValueError, match=r"`num_envs` must be a whole number >= 1, got 0"):
        gym.make_vec("SlipperyAnt-v0", num_envs=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env: Any = gym.make_vec("SlipperyAnt-v0", num_envs=2, autoreset_mode="Disabled", max_episode_steps=1)
    with pytest.raises(ValueError, match=r"`seed` must be a list of 2 seeds"):
        env.reset(seed=[1])
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with pytest.raises(RuntimeError, match=r"episodes \[0, 1\] have ended"):
        env.step(env.action_space.sample())
    with pytest.raises(ValueError, match=r"`reset_mask` must be a Boolean array of shape \(2,\)"):
        env.reset(options={"reset_mask": [True, True]})
