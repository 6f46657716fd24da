"""Who trains the runs: what is done about lost processes, and a real Ray cluster and submitit's executor (slow)."""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from stable_baselines3 import PPO

from sb3_plasticity.cli import main
from sb3_plasticity.study import schedulers
from sb3_plasticity.study.matrix import run_study
from sb3_plasticity.study.progress import StudyProgress
from sb3_plasticity.study.schedulers import Job, SlurmScheduler, train_all
from sb3_plasticity.study.spec import Resources
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder, State

STUDY = {
    "name": "tiny",
    "env_ids": ["SlipperyAnt-v0"],
    "n_timesteps": 4096,
    "seeds": [3],
    "env_kwargs": {"schedule": {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": 2048}},
    "save_freq": 128,
    "curvature": None,
    "plasticity": None,
    "hyperparams": {"algo": "ppo", "policy": "MlpPolicy", "n_envs": 4, "n_steps": 32, "n_epochs": 1},
    "methods": {"PPO": {}, "slow PPO": {"learning_rate": 0.0001}},
    "report": {"baseline": "PPO"},
}


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "LOOK_EVERY", 0.01)


class ScriptedJob:
    def __init__(self, run: RunFolder, status: int | None, state: str) -> None:
        self.run, self.status, self.state, self.stopped = run, status, state, False

    def poll(self) -> int | None:
        if self.status is not None:
            self.run.write_state(State(self.state, 7, 1.0))
        return self.status

    def stop(self) -> None:
        self.stopped = True

    def wait(self) -> None:
        assert self.stopped


class Scripted:
    """A scheduler whose jobs end as written: statuses per start of a run, and what the run's state is then."""

    def __init__(self, endings: dict[str, Any], slots: int | None = None) -> None:
        self.endings = endings
        self.slots = slots
        self.batches: list[list[str]] = []

    def start(self, runs: Sequence[RunFolder]) -> Sequence[Job]:
        self.batches.append([run.path.name for run in runs])
        return [ScriptedJob(run, *self.endings[run.path.name].pop(0)) for run in runs]


def test_a_lost_run_is_started_again_and_a_mistaken_one_is_not(tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / name) for name in ("lost_once", "lost_for_good", "mistaken", "crashed", "whole")]
    endings = {
        "lost_once": [(-9, "running"), (0, "finished")],
        "lost_for_good": [(-9, "running")] * 3,
        "mistaken": [(2, "pending")],
        "crashed": [(1, "crashed")],
        "whole": [(0, "finished")],
    }
    scheduler = Scripted(endings)
    train_all(runs, scheduler, retries=2, look=lambda: None)
    assert not any(endings.values())
    assert scheduler.batches[0] == [run.path.name for run in runs], "not handed over all at once, as a job array needs"
    states = {run.path.name: run.state() for run in runs}
    assert {name: state.state for name, state in states.items()} == {
        "lost_once": "finished", "lost_for_good": "crashed", "mistaken": "crashed", "crashed": "crashed",
        "whole": "finished",
    }  # fmt: skip
    assert states["lost_for_good"].error == "its process ended with status -9, after 3 starts"
    assert states["mistaken"].error == "its process ended with status 2, after 1 start"


def test_no_more_than_there_are_slots_for_and_an_interrupt_stops_what_runs(tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / name) for name in "abc"]
    endings = {"a": [(0, "finished")], "b": [(None, "running")], "c": [(None, "running")]}
    scheduler = Scripted(endings, slots=1)
    looks = iter(range(5))

    def look() -> None:
        if next(looks, None) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(runs, scheduler, retries=2, look=look)
    assert scheduler.batches == [["a"], ["b"]] and endings["c"]


def test_unusable_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"--slurm: .*'partion'"):
        SlurmScheduler(tmp_path, {"cluster": "local", "partion": "gpu"}, Resources(), None)
    with pytest.raises(UsageError, match="--slurm: "):
        SlurmScheduler(tmp_path, {"cluster": "no_such_cluster"}, Resources(), None)
    assert main(["study", "run", "x.yml", "--slurm", "partition"]) == 2
    assert "must be name=value, got 'partition'" in capsys.readouterr().err


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def kill(pids: Iterable[int], sign: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


def trainers(runs: Path) -> list[int]:
    """Processes that hold the lock of a run."""
    found = []
    for fds in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(
                str(runs) in os.readlink(fd) and fd.name and os.readlink(fd).endswith(".lock") for fd in fds.iterdir()
            ):
                found.append(int(fds.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def killing_look(monkeypatch: pytest.MonkeyPatch, runs: Path, sign: signal.Signals) -> list[int]:
    """Send a signal to the process of the first run that has two checkpoints, once."""
    run = RunFolder(runs / "SlipperyAnt-v0" / "PPO" / "seed_3")
    done: list[int] = []
    look = StudyProgress.look

    def kill_once(self: StudyProgress) -> None:
        look(self)
        if not done and len(run.checkpoints()) >= 2 and (pids := trainers(run.path)):
            done.extend(pids)
            kill(pids, sign)

    monkeypatch.setattr(StudyProgress, "look", kill_once)
    return done


@pytest.mark.slow
def test_a_ray_worker_that_is_killed_is_replaced(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        killed = killing_look(monkeypatch, tmp_path / "runs", signal.SIGKILL)
        assert run_study(study, tmp_path / "runs", ray=cluster.address) == 0
        assert killed and len({node["NodeID"] for node in ray.nodes()}) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    first = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    second = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "slow_PPO" / "seed_3")
    assert len(first.attempts()) == 2 and len(second.attempts()) == 1
    for run in (first, second):
        assert run.state().state == "finished" and run.state().step == 4096
    assert PPO.load(first.model).num_timesteps == 4096


@pytest.mark.slow
def test_a_slurm_job_that_is_preempted_is_queued_again(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit's local executor: SIGUSR2, as Slurm's before a time limit, makes it hand the task on."""
    pytest.importorskip("submitit")
    sent = killing_look(monkeypatch, tmp_path / "runs", signal.SIGUSR2)
    slurm = {"cluster": "local", "timeout_min": 10}
    assert run_study(study, tmp_path / "runs", slurm=slurm) == 0
    run = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    assert sent and len(run.attempts()) == 2 and run.state().step == 4096
    other = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "slow_PPO" / "seed_3")
    assert len(other.attempts()) == 1
    # where the run was not interrupted, nothing depends on who trained it
    here = tmp_path / "here"
    assert run_study(study, here, jobs=1) == 0
    state = PPO.load(other.model).policy.state_dict()
    local = PPO.load(RunFolder(here / "SlipperyAnt-v0" / "slow_PPO" / "seed_3").model).policy.state_dict()
    assert all(np.array_equal(state[name], local[name]) for name in state)


@pytest.mark.slow
def test_no_such_cluster_is_one_line(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="--ray auto: "):
        run_study(study, tmp_path / "runs", ray="auto")
