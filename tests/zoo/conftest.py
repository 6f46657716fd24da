import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sb3_plasticity.cli import main

# A run that takes a second or two, on a world that changes every 100 steps.
TINY = [
    *("--env", "SlipperyAnt-v0", "--verbose", "0", "--device", "cpu"),
    *("--env-kwargs", "schedule:{'kind': 'cyclic', 'values': [0.2, 0.5, 1.0], 'period': 100}"),
    *("-params", "n_envs:2", "n_steps:32", "n_epochs:1", "callback:null"),
]
# Compiling takes longer than so few steps.
TINY_L2ER = [*TINY, "compile:False"]


@pytest.fixture(autouse=True)
def _own_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whatever a command writes beside itself goes to a folder of the test's own."""
    if "trained" not in request.fixturenames:
        monkeypatch.chdir(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Train in this process; return the exit status and what was written to standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["train", *arguments])
        return status, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with normalised observations and rewards: the folder it was started in."""
    folder = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(folder)
    try:
        options = [
            *TINY_L2ER,
            "normalize:True",
            "-n",
            "400",
            "--save-freq",
            "128",
            "--seed",
            "3",
            "--tensorboard-log",
            "runs",
        ]
        evaluation = ["--eval-freq", "200", "--eval-episodes", "1", "--eval-env-kwargs", "reset_noise_scale:0.01"]
        assert main(["train", "--algo", "ppo_l2er", *options, *evaluation]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def command() -> Callable[..., str]:
    """Run ``python -m sb3_plasticity.zoo`` as a user does, in the present folder."""

    def run(*arguments: str, status: int = 0) -> str:
        process = subprocess.run(
            [sys.executable, "-m", "sb3_plasticity.zoo", *arguments], capture_output=True, text=True, check=False
        )
        assert process.returncode == status, process.stdout + process.stderr
        return process.stdout + process.stderr

    return run
