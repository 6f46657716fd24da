"""Runs that are stopped, and go on in their own folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from stable_baselines3 import PPO

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.zoo import training
from sb3_plasticity.zoo.experiment import Experiment
from sb3_plasticity.zoo.folder import RunFolder, State
from sb3_plasticity.zoo.spec import RunSpec

RUN = Path("logs/ppo_l2er/SlipperyAnt-v0_1")
CART: dict[str, Any] = {"policy": "MlpPolicy", "n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1}


def spec(**changes: Any) -> RunSpec:
    options: dict[str, Any] = {
        "algo": "ppo",
        "env_id": "CartPole-v1",
        "seed": 3,
        "n_timesteps": 256,
        "hyperparams": CART,
    }
    return RunSpec(**{**options, "save_freq": 64, "eval_freq": -1, "device": "cpu", **changes})


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained / RUN, tmp_path / RUN)
    return RunFolder(tmp_path / RUN)


def test_a_run_goes_on_in_its_folder(copy: RunFolder, train: Callable[..., Any]) -> None:
    before = {path: path.read_bytes() for path in (copy.path / "progress.csv", copy.path / "0.monitor.csv")}
    assert copy.state().state == "finished" and copy.state().step == 448
    status, error = train("-i", str(copy.path))
    assert (status, error) == (0, ""), "what is finished is left as it is"
    status, error = train("-i", str(copy.path), "-n", "500", "--verbose", "0")
    assert (status, error) == (0, "")
    first, second = copy.attempts()
    assert (second.path.name, second.start, first.stop) == ("attempt_2_from_448", 448, 448)
    assert {path: path.read_bytes() for path in before} == before
    assert copy.state().state == "finished" and copy.state().step == 512
    (resumed,) = copy.description()["resumed"]
    assert resumed["step"] == 448 and copy.description()["n_timesteps"] == 500
    model = PPO_L2ER.load(copy.model, device="cpu")
    assert (model.num_timesteps, model._n_updates) == (512, 8)
    # both evaluations write a line
    assert copy.progress([]).step.unique().tolist() == [64, 128, 192, 200, 256, 320, 384, 400, 448, 512]


def test_a_damaged_model_is_passed_over(copy: RunFolder, train: Callable[..., Any]) -> None:
    copy.model.write_bytes(copy.model.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{copy.model}: not a whole"):
        assert train("-i", str(copy.path), "-n", "450", "--verbose", "0") == (0, "")
    assert copy.attempts()[-1].path.name == "attempt_2_from_384"
    assert PPO_L2ER.load(copy.model, device="cpu").num_timesteps == 512


@pytest.mark.parametrize("option", ["-params er_coef:1", "--seed 1", "--algo ppo", "--preset paper-l2er"])
def test_another_run_is_not_written_into_its_folder(option: str, copy: RunFolder, train: Callable[..., Any]) -> None:
    status, error = train("-i", str(copy.path), *option.split())
    assert status == 2 and error.count("\n") == 1
    assert "resumes the run as it is; for a new run from its model, -i" in error and "rl_model_384_steps.zip" in error


def test_a_run_folder_may_be_chosen_and_begun_twice(train: Callable[..., Any], tmp_path: Path) -> None:
    options = ["--run-folder", str(tmp_path / "run"), "--algo", "ppo", *TINY, "-n", "64", "--eval-freq", "-1"]
    assert train(*options, "--seed", "3") == (0, "")
    assert train(*options, "--seed", "3") == (0, "")
    assert len(RunFolder(tmp_path / "run").attempts()) == 1
    status, error = train(*options, "--seed", "4")
    assert (status, "was begun with seed 3, not 4" in error) == (2, True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    status, error = train("--run-folder", str(tmp_path / "thesis"), "--algo", "ppo", *TINY)
    assert (status, "is not empty, and no folder of a run" in error) == (2, True)


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sb3_plasticity", "train", *arguments]
    log = open(folder / "out.txt", "w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    log.close()
    return process


@pytest.mark.parametrize("kind", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupt_ends_between_rollouts_and_says_how_to_go_on(kind: signal.Signals, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    spec(n_timesteps=10_000_000, save_freq=1_000_000).begin(folder)
    process = start(tmp_path, "-i", "run", "--verbose", "0")
    try:
        deadline = time.monotonic() + 120
        while not (folder.path / "0.monitor.csv").is_file() or len(folder.episodes()) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(kind)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    (checkpoint,) = folder.checkpoints()
    step = int(checkpoint.stem.split("_")[2])
    last = (tmp_path / "out.txt").read_text().splitlines()[-1]
    assert last == (f"interrupted: at {step:,} of 10,000,000 steps; resume it with: sb3-plasticity train -i run")
    # every step that was taken has been learned from
    assert step % 64 == 0 and folder.episodes().step.max() <= step
    assert folder.state() == State("pending", step, folder.state().seconds) and not folder.is_locked()
    assert folder.model.is_file()


def test_stopped_and_resumed_is_as_if_uninterrupted_on_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of a run that was killed anywhere after a checkpoint join without a gap or a double."""
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    for folder in (whole, parts):
        spec().begin(folder)
    training.train(whole)
    real, left = Experiment.train, iter([2, 5, 100])

    class Killed(BaseException):
        pass

    def stopping(self: Experiment, model: PPO, callbacks: list[Any], progress: bool = False) -> None:
        budget = next(left)

        original = callbacks[0]._on_rollout_start

        def on_rollout_start() -> None:
            original()
            if callbacks[0].rollouts > budget:
                raise Killed

        callbacks[0]._on_rollout_start = on_rollout_start
        return real(self, model, callbacks, progress)

    monkeypatch.setattr(Experiment, "train", stopping)
    for expected in (Killed, None):
        if expected:
            with pytest.raises(expected):
                training.train(parts)
            assert parts.state().state == "pending"
        else:
            training.train(parts)
    assert parts.progress().step.tolist() == whole.progress().step.tolist() == [64, 128, 192, 256]
    assert parts.state().step == whole.state().step == 256
    assert [attempt.start for attempt in parts.attempts()] == [0, 128]


def test_a_full_disk_ends_in_one_line(tmp_path: Path) -> None:
    """A limit to the size of files stands for the disk: records fit, the model does not."""
    spec(hyperparams={**CART, "policy_kwargs": {"net_arch": [512, 512]}}).begin(RunFolder(tmp_path / "run"))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from sb3_plasticity.cli import main; sys.exit(main(['train', '-i', 'run', '--verbose', '0']))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ") and "File too large" in process.stderr
    assert not list(tmp_path.rglob(".partial*")) and not list(tmp_path.rglob("*.zip"))
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "crashed"


def test_a_place_that_cannot_be_written_to_is_one_line(train: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, error = train("--algo", "ppo", *TINY, "-f", str(tmp_path / "file"))
    assert status == 1 and error.count("\n") == 1 and "file" in error
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        status, error = train("--algo", "ppo", *TINY, "-f", str(tmp_path / "locked"))
        assert status == 1 and error.count("\n") == 1


def test_a_crash_is_told_in_one_line_and_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Callable[..., Any]
) -> None:
    (tmp_path / "breaking.py").write_text(
        "from stable_baselines3.common.callbacks import BaseCallback\n"
        "class Breaking(BaseCallback):\n"
        "    def _on_step(self):\n"
        "        assert self.num_timesteps < 150, 'enough'\n"
        "        return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = RunFolder(tmp_path / "run")
    spec(hyperparams={**CART, "callback": ["breaking.Breaking"]}).begin(folder)
    status, error = train("-i", str(folder.path), "--verbose", "0")
    assert status == 1 and error.count("\n") == 1 and "enough" in error and "log.txt" in error
    assert folder.state().state == "crashed" and folder.state().error == "enough"
    assert "Traceback" in folder.log.read_text() and folder.last_checkpoint() == folder.checkpoint(128)


def test_two_processes_do_not_train_one_run(tmp_path: Path, train: Callable[..., Any]) -> None:
    folder = RunFolder(tmp_path / "run")
    spec().begin(folder)
    with folder.lock():
        status, error = train("-i", str(folder.path))
    assert status == 2 and "another process is training it" in error
