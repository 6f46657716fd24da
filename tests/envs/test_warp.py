"""MujocoWarpVecEnv on the CPU against MujocoBatchVecEnv, for those who have installed the extra ``warp``."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_plasticity.envs.batched import NotBatchableError
from sb3_plasticity.vec_env import MujocoBatchVecEnv, MujocoWarpVecEnv

pytest.importorskip("mujoco.batch", reason="this MuJoCo has none", exc_type=ImportError)

CYCLE = {"kind": "cyclic", "values": [0.3, 2.3, 1.1], "period": 4}
STATE = ("qpos", "qvel", "qacc_warmstart")


@pytest.fixture
def warp() -> None:
    module = pytest.importorskip("warp", reason="extra warp", exc_type=ImportError)
    pytest.importorskip("mujoco_warp", reason="extra warp", exc_type=ImportError)
    module.config.quiet = True


def pair(env_id: str, n_envs: int = 3, **keywords: Any) -> tuple[Any, Any]:
    keywords = {"seed": 3, "schedule": CYCLE, "switch": "immediate", **keywords}
    return MujocoBatchVecEnv(env_id, n_envs, **keywords), MujocoWarpVecEnv(env_id, n_envs, device="cpu", **keywords)


def close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Infos of the same tasks and episodes, with nearly the same numbers."""
    assert one.keys() == other.keys()
    for key in one.keys() - {"episode"}:
        if key.startswith("task_"):
            assert one[key] == other[key]
        np.testing.assert_allclose(one[key], other[key], rtol=0, atol=tolerance, err_msg=key)


# On the ground, robots in three dimensions differ: the two programs lay the friction pyramid along other tangents.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "parameter"),
    [
        ("SlipperyHalfCheetah-v0", "friction"),
        ("SlipperyHalfCheetah-v0", "mass"),
        ("SlipperyHalfCheetah-v0", "gravity"),
        ("SlipperyHalfCheetah-v0", "viscosity"),
        ("SlipperySwimmer-v0", "viscosity"),
    ],
)
def test_a_step_is_within_single_precision_of_a_batch(warp: None, env_id: str, parameter: str) -> None:
    batch, device = pair(env_id, parameter=parameter, max_episode_steps=10)
    np.testing.assert_array_equal(batch.reset(), device.reset())
    rng, tasks = np.random.default_rng(0), set()
    for _ in range(15):
        for field in STATE:
            device._sims.batch.bind(field)[:] = batch._sims.batch.bind(field)
        actions = rng.uniform(-1, 1, batch.actions.shape).astype(np.float32)
        first, second = batch.step(actions), device.step(actions)
        for a, b in zip(first[:2], second[:2], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-3)
        np.testing.assert_array_equal(first[2], second[2])
        for infos in zip(first[3], second[3], strict=True):
            close(*infos, tolerance=2e-3)
            tasks.add(infos[1]["task_index"])
    assert tasks == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "env_id", ["SlipperyAnt-v0", "SlipperyHopper-v0", "SlipperyWalker2d-v0", "SlipperyHumanoid-v0"]
)
def test_a_step_in_the_air_is_within_single_precision_of_a_batch(warp: None, env_id: str) -> None:
    batch, device = pair(env_id)
    np.testing.assert_array_equal(batch.reset(), device.reset())
    height = 1 if env_id in ("SlipperyHopper-v0", "SlipperyWalker2d-v0") else 2
    for env in (batch, device):
        env._sims.batch.bind("qpos")[:, height] += 3
    for _ in range(3):
        actions = np.full(batch.actions.shape, 0.1, np.float32)
        first, second = batch.step(actions), device.step(actions)
        np.testing.assert_allclose(first[0], second[0], rtol=1e-4, atol=2e-3)
        np.testing.assert_allclose(first[1], second[1], rtol=1e-4, atol=2e-3)
        for env in (batch, device):  # too high to count as healthy, so every step ends an episode
            env._sims.batch.bind("qpos")[:, height] += 3


@pytest.mark.slow
def test_divergence_full_contacts_and_pickling(warp: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = MujocoWarpVecEnv("SlipperyHalfCheetah-v0", 3, seed=0, device="cpu", max_contacts=1, infos="episode")
    copy = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(copy.reset(), env.reset())
    env._sims.batch.bind("qvel")[1] = 1e12
    observations, rewards, dones, infos = env.step(np.zeros((3, 6), np.float32))
    assert dones[1] and rewards[1] == 0 and "BADQ" in infos[1]["simulation_error"]
    assert np.isfinite(np.asarray(observations)).all()
    errors: set[str | None] = set()
    for _ in range(100):
        _, _, _, infos = env.step(np.ones((3, 6), np.float32))
        errors |= {info.get("simulation_error") for info in infos}
    assert "CONTACTFULL" in errors


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(NotBatchableError, match=r"MuJoCo Warp is not installed .*sb3-plasticity\[warp\]"):
        MujocoWarpVecEnv("SlipperyAnt-v0", 2)


def test_bad_arguments(warp: None) -> None:
    with pytest.raises(ValueError, match=r"`device` must be one that Warp has \(.*cpu.*\) or None, got 'gpu:7'"):
        MujocoWarpVecEnv("SlipperyAnt-v0", 2, device="gpu:7")
    with pytest.raises(ValueError, match=r"`max_contacts` must be a whole number >= 1, got 0"):
        MujocoWarpVecEnv("SlipperyAnt-v0", 2, max_contacts=0)
