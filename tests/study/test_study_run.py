"""Studies as a user runs them: a matrix of real, tiny runs; skipped, resumed, crashed."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from stable_baselines3 import PPO

from sb3_plasticity import PPO_L2ER, load_spectra
from sb3_plasticity.cli import main as sb3_plasticity
from sb3_plasticity.envs.schedules import make_schedule
from sb3_plasticity.study.results import read_results
from sb3_plasticity.zoo.folder import RunFolder
from sb3_plasticity.zoo.spec import RunSpec


def main(arguments: list[str]) -> int:
    return sb3_plasticity(["study", *arguments])


TINY: dict[str, Any] = {
    "name": "tiny",
    "env_ids": ["SlipperyAnt-v0"],
    "n_timesteps": 512,
    "seeds": [3],
    "env_kwargs": {
        "schedule": {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": 256},
        "switch": "immediate",
    },
    "save_freq": 128,
    "curvature": {"n_samples": 8, "lanczos_steps": 4},
    "hyperparams": {
        "policy": "MlpPolicy",
        "n_envs": 4,
        "n_steps": 32,
        "n_epochs": 1,
        "normalize": True,
        "policy_kwargs": {"net_arch": [8]},
    },
    "methods": {"PPO": {"algo": "ppo"}, "PPO + L2": {"er_coef": 0.0}},
    "report": {"baseline": "PPO"},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Any]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    return write


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The matrix, trained: its folder."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yml").write_text(yaml.safe_dump(TINY))
    assert main(["run", str(folder / "tiny.yml"), "-f", str(folder / "runs"), "--jobs", "2"]) == 0
    return folder


def run_of(folder: Path, method: str = "PPO") -> RunFolder:
    return RunFolder(folder / "runs" / "SlipperyAnt-v0" / method / "seed_3")


def test_a_run_leaves_everything_needed_to_judge_it(tiny: Path) -> None:
    for method, algorithm in (("PPO", PPO), ("PPO_L2", PPO_L2ER)):
        run = run_of(tiny, method)
        assert run.state().state == "finished" and run.state().step == 512
        description = run.description()
        assert description["seed"] == 3 and description["hyperparams"]["n_steps"] == 32
        assert description["versions"]["stable-baselines3"]
        assert description["hyperparams"]["env_kwargs"]["schedule"]["seed"] == 3
        assert description["tags"] == {"study": "tiny", "method": method.replace("_L2", " + L2"), "control": False,
                                       "period": 256}  # fmt: skip
        assert algorithm.load(run.model).num_timesteps == 512
        assert (run.files / "vecnormalize.pkl").is_file()
        (attempt,) = run.attempts()
        assert {"time/total_timesteps", "train/loss"} <= set(pd.read_csv(attempt.path / "progress.csv"))
        spectra = load_spectra(attempt.path)
        assert {(0, "start"), (1, "start")} <= set(zip(spectra.task_index, spectra.phase, strict=True))
        assert not list(attempt.path.glob("progress_*")) and list(attempt.path.glob("events.out.tfevents.*"))


def test_the_episodes_know_their_task_and_every_method_sees_the_same_frictions(tiny: Path) -> None:
    schedule = make_schedule({**TINY["env_kwargs"]["schedule"], "seed": 3})
    for method in ("PPO", "PPO_L2"):
        episodes = run_of(tiny, method).episodes()
        assert set(episodes.task_index) <= {0, 1} and episodes.step.is_monotonic_increasing
        for index, value in set(zip(episodes.task_index, episodes.task_value, strict=True)):
            assert value == schedule(256 * index).value
        # every step of an episode that has ended was one of the four environments'
        assert episodes.length.sum() <= 512 and (episodes.step % 4 == 0).all()


def test_a_method_equals_the_algorithm_by_itself(tiny: Path) -> None:
    """The study adds measurements and files, nothing to what is learned."""
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_plasticity import MujocoBatchVecEnv, TaskSyncCallback

    schedule = {**TINY["env_kwargs"]["schedule"], "seed": 3}
    env = VecNormalize(MujocoBatchVecEnv("SlipperyAnt-v0", 4, seed=3, schedule=schedule, switch="immediate"))
    alone = PPO("MlpPolicy", env, n_steps=32, n_epochs=1, policy_kwargs={"net_arch": [8]}, seed=3)
    alone.learn(512, callback=TaskSyncCallback())
    studied = PPO.load(run_of(tiny).model)
    for name, value in alone.policy.state_dict().items():
        assert (value == studied.policy.state_dict()[name]).all(), name


def test_finished_runs_are_skipped(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tiny / "runs").rglob("*") if path.is_file()}
    assert main(["run", str(tiny / "tiny.yml"), "-f", str(tiny / "runs")]) == 0
    assert "2 runs of 512 steps" in (out := capsys.readouterr().out) and "0 to train" in out
    assert before == {path: path.stat().st_mtime_ns for path in (tiny / "runs").rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(n_timesteps=4_096, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    folder = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    command = [sys.executable, "-m", "sb3_plasticity.study", "run", str(study), "-f", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(folder.checkpoints()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # the run's process is in a session of its own, and the study's must not get to end it gently
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(process.pid, signal.SIGKILL)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while folder.is_locked():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert folder.state().state == "pending"
    first = (folder.path / "0.monitor.csv").read_bytes()
    checkpoint = folder.last_checkpoint()

    study = write(n_timesteps=4_096, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 0
    assert folder.state().state == "finished" and folder.state().step == 4_096
    before, after = folder.attempts()
    assert checkpoint is not None and checkpoint.stem == f"rl_model_{after.start}_steps" and before.stop == after.start
    assert (before.path / "0.monitor.csv").read_bytes() == first, "an old record was touched"
    rest = pd.read_csv(after.path / "0.monitor.csv", comment="#")
    assert rest.step.min() > after.start and rest.task_index.min() >= after.start // 256 - 1
    assert PPO.load(folder.model).num_timesteps == 4_096
    (resumed,) = folder.description()["resumed"]
    assert resumed["step"] == after.start and resumed["versions"] == folder.description()["versions"]


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_what_was_started(write: Callable[..., Any], tmp_path: Path, kind: signal.Signals) -> None:
    study = write(n_timesteps=100_000, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    folder = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    command = [sys.executable, "-m", "sb3_plasticity.study", "run", str(study), "-f", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # whoever runs the tests in the background of a script has interrupts ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while folder.last_checkpoint() is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(kind)
    assert process.communicate(timeout=120)[1].splitlines()[-1].startswith("interrupted: the same command resumes")
    assert process.returncode == 130
    assert folder.state().state == "pending" and not folder.is_locked() and folder.last_checkpoint() is not None


CALLBACKS = """
from stable_baselines3.common.callbacks import BaseCallback

class Breaks(BaseCallback):
    def _on_step(self):
        raise RuntimeError("it broke")
"""


def test_a_crashed_run_is_reported_and_the_others_go_on(
    write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback's module lies in the working directory, where `python -m` finds it and a console script does not."""
    (tmp_path / "my_callbacks.py").write_text(CALLBACKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    methods = {"broken": {"algo": "ppo", "callback": "my_callbacks.Breaks"}, "PPO": {"algo": "ppo"}}
    study = write(methods=methods, curvature=None, plasticity=None)
    assert main(["run", str(study), "-f", str(tmp_path / "runs"), "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "1 finished" in out and "1 crashed" in out and "it broke" in out
    assert out.splitlines()[-1] == f"Its report: sb3-plasticity study report {tmp_path / 'runs'}"
    runs = tmp_path / "runs" / "SlipperyAnt-v0"
    assert RunFolder(runs / "PPO" / "seed_3").state().state == "finished"
    assert "Traceback" in RunFolder(runs / "broken" / "seed_3").log.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "`seeds` must be different from each other, got [1, 1]"),
        ({"seeds": 3}, "`seeds` must be a tuple, got 3"),
        ({"seeds": []}, "`seeds` must not be empty"),
        ({"seed": 3}, "got 'seed' (did you mean 'seeds'?)"),
        ({"env_ids": ["SlipperyAnt"]}, "did you mean 'SlipperyAnt-v0'"),
        ({"n_timesteps": 100}, "`n_timesteps` must be at least a period of the tasks, 256, got 100"),
        ({"n_timesteps": 0}, "`n_timesteps` must be greater than or equal to 1, got 0"),
        ({"n_timesteps": float("nan")}, "`n_timesteps` must be a finite number, got nan"),
        ({"save_freq": float("nan")}, "`save_freq` must be a finite number, got nan"),
        ({"methods": {"PPO": {"algo": "ppo", "gama": 0.9}}}, "'gama' (did you mean 'gamma'?)"),
        ({"methods": {"PPO": {"algo": "pppo"}}}, "'pppo' (did you mean 'ppo'?)"),
        ({"methods": {"PPO": {"env_kwargs": {}}}}, "`methods.PPO` must not have 'env_kwargs': the study sets it"),
        ({"methods": {"PPO": {}, "P PO": {}, "P-PO": {}, "P+PO": {}}}, "names that differ in more than blanks"),
        ({"methods": {"PPO": {}, "ppo": {}}}, "names that differ in more than blanks, signs and case"),
        ({"methods": {"PPO": {}, "..": {}}}, "`methods` must be names with a letter or a digit"),
        ({"methods": {"PPO": {}, "++": {}}}, "`methods` must be names with a letter or a digit"),
        ({"methods": {"PPO": {"algo": "ppo", "callback": "no_such_module.Callback"}}}, "No module named 'no_such_mod"),
        ({"methods": {"PPO": {"algo": "ppo", "policy": "no_such_module.Policy"}}}, "No module named 'no_such_module'"),
        ({"gym_packages": ["no_such_module"]}, "No module named 'no_such_module'"),
        ({"report": {"baseline": "SAC"}}, "`report.baseline` must be one of 'PPO', 'PPO + L2', got 'SAC'"),
        ({"report": {"baseline": "PPO", "epsilon": -1}}, "`report.epsilon` must be greater than 0, got -1"),
        ({"report": {"baseline": "PPO", "rho": [0.1, "a"]}}, "`report.rho.1` must be a number, got 'a'"),
        ({"report": {"baseline": "PPO", "rho": []}}, "`report.rho` must not be empty"),
        ({"report": {"baseline": "PPO", "tasks": [0, 2]}}, "`report.tasks` must be between 0 and 1, got 2"),
        ({"name": "../elsewhere"}, "`name` must be the name of a folder"),
        ({"name": ".."}, "`name` must be the name of a folder"),
        ({"env_kwargs": {"schedule": {"kind": "log_uniform", "perod": 3}}}, "perod"),
        ({"curvature": {"n_sample": 8}}, "'n_sample' (did you mean 'n_samples'?)"),
    ],
)
def test_mistakes_in_the_file_are_named(
    write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main(["run", str(write(**changes)), "-f", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_method_may_have_any_name_and_an_environment_any_tasks(write: Callable[..., Any], tmp_path: Path) -> None:
    """A name without ASCII letters; an algorithm that is off-policy; an environment of Gymnasium without tasks."""
    methods = {"метод": {"algo": "dqn", "policy": "MlpPolicy", "learning_starts": 16, "buffer_size": 100}}
    changes: dict[str, Any] = {
        "env_ids": ["CartPole-v1"],
        "env_kwargs": {},
        "n_timesteps": 128,
        "hyperparams": {},
        "save_freq": 64,
    }
    study = write(methods=methods, report={"baseline": "метод"}, curvature=None, plasticity=None, **changes)
    assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 0
    run = RunFolder(tmp_path / "runs" / "CartPole-v1" / "метод" / "seed_3")
    assert run.state().state == "finished" and RunSpec.of(run).algo == "dqn"
    results = read_results(tmp_path / "runs")
    assert len(results.tasks) == 1 and results.timelines["CartPole-v1"].n_tasks == 1


def test_the_control_is_the_same_world_standing_still(write: Callable[..., Any], tmp_path: Path) -> None:
    schedule = {"kind": "cyclic", "values": [0.5], "period": 256}
    study = write(methods={"PPO": {"algo": "ppo"}}, control={"schedule": schedule}, curvature=None, plasticity=None)
    assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 0
    control = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0_control" / "PPO" / "seed_3")
    assert set(control.episodes().task_value) == {0.5} and set(control.episodes().task_index) == {0, 1}
    assert read_results(tmp_path / "runs").controls == {"SlipperyAnt-v0 (control)"}


def test_a_full_disk_is_one_line(
    write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: RunFolder | dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "args.yml")

    monkeypatch.setattr(RunFolder, "write_description", full)
    assert main(["run", str(write()), "-f", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err == "error: args.yml: No space left on device\n"


def test_any_zoo_run_can_be_made_of_a_studys_and_back(tiny: Path) -> None:
    """A study's run is a run: `train -i` finds nothing left to do, and the report reads the runs without the study."""
    run = run_of(tiny)
    before = run.model.stat().st_mtime_ns
    assert sb3_plasticity(["train", "-i", str(run.path)]) == 0 and run.model.stat().st_mtime_ns == before
    alone = read_results(tiny / "runs" / "SlipperyAnt-v0")
    together = read_results(tiny / "runs")
    assert list(alone.methods) == list(together.methods) == ["PPO", "PPO + L2"]
    assert alone.tasks.final_return.equals(together.tasks.final_return)


def test_runs_are_not_mixed_with_those_of_another_study(
    tiny: Path, write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-f", str(tiny / "runs")]
    assert main(["run", str(write(n_timesteps=1024)), *arguments]) == 2
    assert "was begun with n_timesteps 512, not 1024" in capsys.readouterr().err
    methods = {**TINY["methods"], "PPO": {"algo": "ppo", "gamma": 0.9}}
    assert main(["run", str(write(methods=methods)), *arguments]) == 2
    assert "SlipperyAnt-v0/PPO/seed_3 was begun with hyperparams" in capsys.readouterr().err
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    assert main(["run", str(write()), "-f", str(tmp_path / "thesis")]) == 2
    assert "is not empty and not a study's folder" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(
    write: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second leaves the run alone, and does not take it for crashed."""
    study = write(methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    run = run_of(tmp_path)
    run.path.mkdir(parents=True)
    (tmp_path / "runs" / "study.yml").write_text(study.read_text())
    with run.lock():
        assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 1
    assert "another process is training it" in run.log.read_text()
    assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 0
