import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecVideoRecorder

from sb3_plasticity.envs import rendering
from sb3_plasticity.vec_env import make_nonstationary_vec_env

needs_batch = pytest.mark.skipif(find_spec("mujoco.batch") is None, reason="this MuJoCo has no batches")
CYCLE = {"kind": "cyclic", "values": [0.25, 1.5], "period": 10}


@pytest.fixture
def needs_opengl() -> None:
    try:
        rendering.headless_backend()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")


def frame(env_id: str = "SlipperyAnt-v0", **keywords: Any) -> np.ndarray:
    env = gym.make(env_id, render_mode="rgb_array", schedule=CYCLE, **keywords)
    env.reset(seed=0)
    image = env.render()
    env.close()
    assert isinstance(image, np.ndarray)
    return image


@pytest.mark.parametrize("env_id", ["SlipperyAnt-v0", "SlipperySwimmer-v0"])
def test_pictures_without_a_display(needs_opengl: None, env_id: str) -> None:
    before = os.environ.get("MUJOCO_GL")
    image = frame(env_id)
    assert image.shape == (480, 480, 3) and image.dtype == np.uint8 and image.std() > 10
    assert os.environ.get("MUJOCO_GL") == before  # others may want another backend


def test_the_task_is_written_into_the_corner_when_asked(needs_opengl: None) -> None:
    plain, first, second = frame(task=0), frame(task=0, show_task=True), frame(task=1, show_task=True)
    np.testing.assert_array_equal(plain, frame(task=1))  # friction itself cannot be seen
    for image in (first, second):
        rows, columns = np.nonzero((image != plain).any(axis=2))
        assert 0 < rows.max() < 120 and columns.max() < 240
    assert (first != second).any()


def test_overlay_says_task_parameter_value_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(rendering, "render", lambda renderer, mode, overlay: said.append(overlay))
    gravity = {"kind": "constant", "value": 1.62}
    env = gym.make("SlipperyHopper-v0", parameter="gravity", schedule=gravity, show_task=True).unwrapped
    env.render()
    env = gym.make("SlipperyHopper-v0", schedule=CYCLE, task=1, show_task=True).unwrapped
    env.render()
    assert said == [{"task": "0", "gravity": "1.62 m/s^2"}, {"task": "1", "friction": "1.5"}]


def test_each_environment_draws_into_its_own_context(needs_opengl: None) -> None:
    envs = [gym.make("SlipperyAnt-v0", render_mode="rgb_array") for _ in range(2)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    first = [np.asarray(env.render()) for env in envs]
    second = [env.render() for env in envs]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("backend", ["dummy", pytest.param("batch", marks=needs_batch)])
def test_videos(needs_opengl: None, backend: str, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = make_nonstationary_vec_env("SlipperyHopper-v0", 2, 0, backend, {"show_task": True, "schedule": CYCLE})
    env = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=10)
    env.reset()
    for _ in range(12):
        env.step(np.zeros((2, 3), np.float32))
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000


@needs_batch
def test_a_batch_draws_what_single_environments_draw(needs_opengl: None) -> None:
    dummy, batch = (
        make_nonstationary_vec_env("SlipperyHopper-v0", 2, 0, backend, {"schedule": CYCLE, "show_task": True})
        for backend in ("dummy", "batch")
    )
    for env in (dummy, batch):
        env.reset()
        env.env_method("set_task", 1, indices=1)
    for one, other in zip(dummy.get_images(), batch.get_images(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.asarray(batch.render()).shape == np.asarray(dummy.render()).shape
    observations = [np.asarray(env.step(np.ones((2, 3), np.float32))[0]) for env in (dummy, batch)]
    np.testing.assert_array_equal(observations[0], observations[1])  # a look does not disturb


def test_drawing_is_chosen_only_when_nobody_else_has(no_display: None, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"EGL", "OSMesa"}
    monkeypatch.setattr(rendering, "find_library", lambda name: name if name in libraries else None)
    assert rendering.headless_backend() == "egl"
    libraries.remove("EGL")
    assert rendering.headless_backend() == "osmesa"
    monkeypatch.setenv("DISPLAY", ":0")
    assert rendering.headless_backend() is None
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.headless_backend() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gymnasium frees what it never made
def test_errors_say_what_to_install(no_display: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match=r"neither is installed: install EGL .*libegl1.* or OSMesa"):
        frame()
    with pytest.raises(RuntimeError, match="`render_mode` must be 'rgb_array' where there is no display"):
        gym.make("SlipperyAnt-v0", render_mode="human").reset()
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(RuntimeError, match=r"No OpenGL context with 'vulkan' .*MUJOCO_GL to 'egl'"):
        frame()


def test_warnings_of_mujoco_have_names() -> None:
    from sb3_plasticity.envs.nonstationary import warning_names

    counts = np.zeros(int(mujoco.mjtWarning.mjNWARNING), int)
    counts[[int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADCTRL)]] = 1, 20
    assert warning_names(counts) == "BADQPOS, BADCTRL"
