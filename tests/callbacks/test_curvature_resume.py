"""A run that is killed and resumed records what the uninterrupted run records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_plasticity import CurvatureCallback, load_spectra

PERIOD, TOTAL = 96, 320  # rollouts end at 64, 128, ...; tasks change at 96, 192 and 288


class Tasks(gym.Wrapper):
    """Pendulum whose task is a function of the run's step, as with TaskSyncCallback."""

    def __init__(self, step: int = 0, lag: int = 0) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.count, self.lag = step, lag

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *result, info = self.env.step(action)
        index = max(self.count - self.lag, 0) // PERIOD
        self.count += 1
        return *result, info | dict(task_index=index, task_value=0.5 + index)


class Killed(Exception):
    pass


class KillAt(BaseCallback):
    """Kill the run at a step: in the middle of a rollout, at its end, or between update and next rollout."""

    def __init__(self, step: int, when: str) -> None:
        super().__init__()
        self.step, self.when = step, when

    def _die(self, when: str) -> None:
        if when == self.when and self.num_timesteps >= self.step:
            raise Killed

    def _on_step(self) -> bool:
        self._die("step")
        return True

    def _on_rollout_end(self) -> None:
        self._die("rollout end")

    def _on_rollout_start(self) -> None:
        self._die("rollout start")


class SaveBetweenRollouts(BaseCallback):
    """As the zoo's checkpoints: all that was collected has been learned from."""

    def __init__(self, path: Path, every: int = 64) -> None:
        super().__init__()
        self.path, self.every, self.saved = path, every, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self.saved >= self.every:
            self.saved = self.num_timesteps
            self.model.save(self.path / f"model_{self.num_timesteps}_steps")


PPO_SETTINGS: dict[str, Any] = dict(n_steps=64, n_epochs=1, seed=0, device="cpu", policy_kwargs=dict(net_arch=[4]))
SAC_SETTINGS: dict[str, Any] = dict(
    learning_starts=8, batch_size=4, buffer_size=400, seed=0, policy_kwargs=dict(net_arch=[4])
)


def curvature(folder: Path, n_samples: int = 16) -> CurvatureCallback:
    return CurvatureCallback(save_dir=folder, n_samples=n_samples, kinds=("ggn",), every=("task", 2))


def recorded(folder: Path) -> list[tuple[int, int, str, str]]:
    table = load_spectra(folder)
    return sorted(zip(table.step, table.task_index, table.phase, table.network, strict=True))


def newest(path: Path) -> tuple[Path | None, int]:
    found = sorted(path.glob("model_*_steps.zip"), key=lambda file: int(file.stem.split("_")[1]))
    return (found[-1], int(found[-1].stem.split("_")[1])) if found else (None, 0)


def run(
    tmp_path: Path,
    kills: list[tuple[int, str]],
    n_samples: int = 16,
    checkpoints: Callable[[Path], BaseCallback] = SaveBetweenRollouts,
    lag: int = 0,
) -> list[tuple[int, int, str, str]]:
    """Train PPO to the end through kills; each attempt has its own callback."""
    folder = tmp_path / "curvature"
    for kill in (*kills, None):
        path, step = newest(tmp_path)
        env = Tasks(step, lag)
        model = PPO("MlpPolicy", env, **PPO_SETTINGS) if path is None else PPO.load(path, env=env)
        callbacks = [curvature(folder, n_samples), checkpoints(tmp_path), *([KillAt(*kill)] if kill else [])]
        try:
            model.learn(TOTAL - model.num_timesteps, callback=callbacks, reset_num_timesteps=path is None)
        except Killed:
            continue
        assert kill is None
    return recorded(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[tuple[int, int, str, str]]]:
    return {
        (n_samples, lag): run(tmp_path_factory.mktemp("whole"), [], n_samples, lag=lag)
        for n_samples, lag in ((16, 0), (40, 0), (16, 40))
    }


@pytest.mark.parametrize(
    "kills",
    [
        [(30, "step")],  # before there is any checkpoint
        [(80, "step")],  # before a task begins
        [(110, "step")],  # after it has begun, before its measurement
        [(128, "rollout end")],  # just after the measurement, before the update
        [(128, "rollout start")],  # after the update
        [(150, "step")],  # in the next rollout
        [(110, "step"), (150, "step"), (250, "rollout end"), (300, "step")],
    ],
    ids=str,
)
def test_a_kill_at_any_moment(
    tmp_path: Path, uninterrupted: dict[tuple[int, int], list[tuple[int, int, str, str]]], kills: list[tuple[int, str]]
) -> None:
    assert run(tmp_path, kills) == uninterrupted[16, 0]


@pytest.mark.parametrize("kill", [(140, "step"), (200, "rollout start"), (230, "step")])
def test_a_kill_while_a_start_gathers_its_transitions(
    tmp_path: Path, uninterrupted: dict[tuple[int, int], list[tuple[int, int, str, str]]], kill: tuple[int, str]
) -> None:
    """Of the second task 32 transitions are in its first rollout, 40 are wanted: its weights wait."""
    assert run(tmp_path, [kill], n_samples=40) == uninterrupted[40, 0]
    starts = {(step, task) for step, task, phase, _ in uninterrupted[40, 0] if phase == "start"}
    assert {(64, 0), (128, 1), (256, 2)} <= starts


def test_a_task_that_lags_behind_the_checkpoint(
    tmp_path: Path, uninterrupted: dict[tuple[int, int], list[tuple[int, int, str, str]]]
) -> None:
    """``switch="reset"``: at 128 its boundary is past, its first transition is not yet there."""
    assert run(tmp_path, [(140, "step")], lag=40) == uninterrupted[16, 40]
    assert (192, 1, "start", "policy") in uninterrupted[16, 40]


def test_checkpoints_in_the_middle_of_a_rollout(tmp_path: Path) -> None:
    """SB3's own: the resumed run's rollouts end elsewhere, and each start and end is still there once."""

    def checkpoints(path: Path) -> CheckpointCallback:
        return CheckpointCallback(50, str(path), name_prefix="model")

    rows = run(tmp_path, [(120, "step"), (170, "step")], checkpoints=checkpoints)
    starts = [(task, phase, network) for _, task, phase, network in rows if phase != "periodic"]
    assert len(set(starts)) == len(starts)
    assert {task for task, phase, _ in starts if phase == "start"} == {0, 1, 2, 3}


@pytest.mark.filterwarnings("ignore:load_spectra passed over damaged files")
def test_records_of_the_lost_steps_are_replaced_and_others_are_left(
    tmp_path: Path, uninterrupted: dict[tuple[int, int], list[tuple[int, int, str, str]]]
) -> None:
    folder = tmp_path / "curvature"
    other = PPO("MlpPolicy", Tasks(), **PPO_SETTINGS)
    other.learn(128, callback=CurvatureCallback(save_dir=folder, n_samples=16, kinds=("ggn",)))
    before = recorded(folder)
    (folder / "damaged.npz").write_bytes(b"PK half of a file")
    rows = run(tmp_path, [(128, "rollout end"), (150, "step")])
    assert rows == sorted(before + uninterrupted[16, 0])
    assert (folder / "damaged.npz").exists()


def test_an_off_policy_run_without_its_replay_buffer(tmp_path: Path) -> None:
    """Its end of a task is of transitions that only the checkpoint still has."""

    def train(folder: Path, stop: int) -> SAC:
        model = SAC("MlpPolicy", Tasks(), **SAC_SETTINGS)
        callback = CurvatureCallback(save_dir=folder, n_samples=6, kinds=("ggn",), networks=("critic_0",))
        return model.learn(stop, callback=callback)

    train(tmp_path / "whole", 110)
    train(tmp_path / "parts", 94).save(tmp_path / "model")
    model = SAC.load(tmp_path / "model", env=Tasks(94))
    callback = CurvatureCallback(save_dir=tmp_path / "parts", n_samples=6, kinds=("ggn",), networks=("critic_0",))
    model.learn(16, callback=callback, reset_num_timesteps=False)
    whole, parts = (load_spectra(tmp_path / name) for name in ("whole", "parts"))
    columns = ["step", "task_index", "phase"]
    assert parts[columns].values.tolist() == whole[columns].values.tolist()
    assert ["end", "start"] == sorted(parts[parts.step == 97].phase)
    assert np.isfinite(parts.trace).all()
