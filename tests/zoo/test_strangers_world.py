"""A robot of a stranger's package, from the command line: trained, shown on a task, and studied."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sb3_plasticity.cli import main

ROBOTS = Path(__file__).parents[1] / "envs"
SCHEDULE = {"kind": "cyclic", "values": [9.81, 30.0], "period": 64}
SETTINGS: dict[str, Any] = {
    "policy": "MlpPolicy",
    "n_envs": 2,
    "n_steps": 32,
    "n_epochs": 1,
    "batch_size": 64,
    "policy_kwargs": {"net_arch": [8]},
}


@pytest.fixture(autouse=True)
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is found: by this process and by those that a study starts."""
    monkeypatch.syspath_prepend(str(ROBOTS))
    monkeypatch.setenv("PYTHONPATH", str(ROBOTS))


def test_it_is_trained_and_shown_on_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {**SETTINGS, "n_timesteps": 128, "env_kwargs": {"schedule": SCHEDULE}}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"DriftingPendulum-v0": entry}))
    world = ["--env", "DriftingPendulum-v0", "--gym-packages", "example_robots"]
    options = ["--conf-file", str(tmp_path / "mine.yml"), "-f", str(tmp_path / "logs"), "--verbose", "0"]
    assert main(["train", "--algo", "ppo", *world, *options, "--device", "cpu"]) == 0
    show = ["--algo", "ppo", *world, "-f", str(tmp_path / "logs"), "--no-render", "-n", "20", "--device", "cpu"]
    capsys.readouterr()
    assert main(["enjoy", *show, "--task", "1"]) == 0
    assert "Task 1: gravity 30" in capsys.readouterr().out


def test_it_is_studied(tmp_path: Path) -> None:
    for package in ("jinja2", "pydantic"):
        pytest.importorskip(package, reason="studies need the extra `study`")
    study = {
        "name": "pendulum",
        "gym_packages": ["example_robots"],
        "env_ids": ["DriftingPendulum-v0"],
        "n_timesteps": 128,
        "seeds": [0],
        "env_kwargs": {"schedule": SCHEDULE},
        "curvature": None,
        "plasticity": None,
        "hyperparams": SETTINGS,
        "methods": {"PPO": {"algo": "ppo"}},
        "report": {"baseline": "PPO"},
    }
    (tmp_path / "study.yml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "sb3_plasticity", "study"]
    subprocess.run([*command, "run", "study.yml", "-f", "runs"], cwd=tmp_path, check=True)
    subprocess.run([*command, "report", "runs", "--out", "report"], cwd=tmp_path, check=True)
    tasks = pd.read_csv(tmp_path / "report" / "tasks.csv")
    assert set(tasks["task_value"] if "task_value" in tasks else tasks["value"]) == {9.81, 30.0}
