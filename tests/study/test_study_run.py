"""Studies as a user runs them: a matrix of real, tiny runs; skipped, resumed, crashed, on a cluster."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from stable_baselines3 import PPO

from sb3_plasticity import PPO_L2ER, load_spectra
from sb3_plasticity.envs.schedules import make_schedule
from sb3_plasticity.study.__main__ import main
from sb3_plasticity.study.folder import RunFolder, State

TINY = {
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
def write(tmp_path):
    def write(**changes):
        path = tmp_path / "study.yml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    return write


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The matrix, trained: its folder."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yml").write_text(yaml.safe_dump(TINY))
    assert main(["run", str(folder / "tiny.yml"), "-f", str(folder / "runs"), "--jobs", "2"]) == 0
    return folder


def run_of(folder, method="PPO"):
    return RunFolder(folder / "runs" / "SlipperyAnt-v0" / method / "seed_3")


def test_a_run_leaves_everything_needed_to_judge_it(tiny):
    for method, algorithm in (("PPO", PPO), ("PPO_L2", PPO_L2ER)):
        run = run_of(tiny, method)
        assert run.state().state == "finished" and run.state().step == 512
        description = run.description()
        assert description["seed"] == 3 and description["hyperparams"]["n_steps"] == 32
        assert description["versions"]["stable-baselines3"] and description["env_kwargs"]["schedule"]["seed"] == 3
        assert algorithm.load(run.model).num_timesteps == 512
        assert (run.path / "model" / "vecnormalize.pkl").is_file()
        (attempt,) = run.attempts()
        assert {"time/total_timesteps", "train/loss"} <= set(pd.read_csv(attempt.path / "progress.csv"))
        spectra = load_spectra(attempt.path)
        assert {(0, "start"), (1, "start")} <= set(zip(spectra.task_index, spectra.phase, strict=True))
        assert not list(attempt.path.glob("progress_*")) and list(attempt.path.glob("events.out.tfevents.*"))


def test_the_episodes_know_their_task_and_every_method_sees_the_same_frictions(tiny):
    schedule = make_schedule({**TINY["env_kwargs"]["schedule"], "seed": 3})
    for method in ("PPO", "PPO_L2"):
        episodes = pd.read_csv(run_of(tiny, method).attempts()[0].path / "monitor.csv", comment="#")
        assert list(episodes.columns) == ["r", "l", "t", "step", "task_index", "task_value"]
        assert set(episodes.task_index) <= {0, 1} and episodes.step.is_monotonic_increasing
        for index, value in set(zip(episodes.task_index, episodes.task_value, strict=True)):
            assert value == schedule(256 * index).value
        # every step of an episode that has ended was one of the four environments'
        assert episodes.l.sum() <= 512 and (episodes.step % 4 == 0).all()


def test_a_method_equals_the_algorithm_by_itself(tiny):
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


def test_finished_runs_are_skipped(tiny, capsys):
    before = {path: path.stat().st_mtime_ns for path in (tiny / "runs").rglob("*") if path.is_file()}
    assert main(["run", str(tiny / "tiny.yml"), "-f", str(tiny / "runs")]) == 0
    assert "2 runs of 512 steps" in (out := capsys.readouterr().out) and "0 to train" in out
    assert before == {path: path.stat().st_mtime_ns for path in (tiny / "runs").rglob("*") if path.is_file()}


def test_a_killed_run_goes_on_from_its_last_checkpoint(write, tmp_path, capsys):
    study = write(n_timesteps=4_096, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    folder = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    command = [sys.executable, "-m", "sb3_plasticity.study", "run", str(study), "-f", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(folder.checkpoints.glob("*.zip"))) < 3:
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
    first = pd.read_csv(folder.attempts()[0].path / "monitor.csv", comment="#")
    checkpoint = folder.last_checkpoint()

    study = write(n_timesteps=4_096, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    assert main(["run", str(study), "-f", str(tmp_path / "runs")]) == 0
    assert folder.state().state == "finished" and folder.state().step == 4_096
    before, after = folder.attempts()
    assert checkpoint.stem == f"rl_model_{after.start}_steps" and before.stop == after.start
    assert pd.read_csv(before.path / "monitor.csv", comment="#").equals(first), "an old record was touched"
    rest = pd.read_csv(after.path / "monitor.csv", comment="#")
    assert rest.step.min() > after.start and rest.task_index.min() >= after.start // 256 - 1
    assert PPO.load(folder.model).num_timesteps == 4_096
    (resumed,) = folder.description()["resumed"]
    assert resumed["step"] == after.start and resumed["versions"] == folder.description()["versions"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_was_started(write, tmp_path, kind):
    study = write(n_timesteps=100_000, methods={"PPO": {"algo": "ppo"}}, curvature=None, plasticity=None)
    folder = RunFolder(tmp_path / "runs" / "SlipperyAnt-v0" / "PPO" / "seed_3")
    command = [sys.executable, "-m", "sb3_plasticity.study", "run", str(study), "-f", str(tmp_path / "runs")]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while folder.last_checkpoint() is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(kind)
    assert process.communicate(timeout=30)[1].splitlines()[-1].startswith("interrupted: the same command goes on")
    assert process.returncode == 130
    assert folder.state().state == "pending" and not folder.is_locked() and folder.last_checkpoint() is not None


def test_a_crashed_run_is_reported_and_the_others_go_on(write, tmp_path, capsys):
    methods = {"broken": {"algo": "ppo", "callback": "no_such_module.Callback"}, "PPO": {"algo": "ppo"}}
    study = write(methods=methods, curvature=None, plasticity=None)
    assert main(["run", str(study), "-f", str(tmp_path / "runs"), "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "1 finished" in out and "1 crashed" in out and "No module named 'no_such_module'" in out
    runs = tmp_path / "runs" / "SlipperyAnt-v0"
    assert RunFolder(runs / "PPO" / "seed_3").state().state == "finished"
    assert "Traceback" in RunFolder(runs / "broken" / "seed_3").log.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"seeds": 3}, "seeds: accepted is a list of whole numbers"),
        ({"env_ids": ["SlipperyAnt"]}, "did you mean 'SlipperyAnt-v0'"),
        ({"n_timesteps": 100}, "n_timesteps=100: accepted are at least a period, 256"),
        ({"methods": {"PPO": {"algo": "ppo", "gama": 0.9}}}, "unknown key 'gama' (did you mean 'gamma'?)"),
        ({"methods": {"PPO": {"algo": "sac"}}}, "algo: 'sac'"),
        ({"methods": {"PPO": {"env_kwargs": {}}}}, "env_kwargs: the study sets it for all methods"),
        ({"methods": {"PPO": {}, "P PO": {}, "P-PO": {}, "P+PO": {}}}, "names must differ"),
        ({"report": {"baseline": "SAC"}}, "baseline: 'SAC': accepted are PPO, PPO + L2"),
        ({"report": {"baseline": "PPO", "epsilon": -1}}, "epsilon: -1: accepted are numbers > 0"),
        ({"report": {"baseline": "PPO", "rho": [0.1, "a"]}}, "rho: 'a': accepted are numbers > 0 and <= 1"),
        ({"report": {"baseline": "PPO", "rho": []}}, "rho: accepted is a list of numbers, this is []"),
        ({"report": {"baseline": "PPO", "tasks": [0, 2]}}, "tasks: 2: accepted are 0 to 1"),
        ({"name": "../elsewhere"}, "name: '../elsewhere': accepted is the name of a folder"),
        ({"n_timesteps": 0}, "n_timesteps: 0: accepted are whole numbers >= 1"),
        ({"seeds": []}, "seeds is missing"),
        ({"env_kwargs": {"schedule": "log_uniform"}}, "accepted is a mapping with a period and no seed"),
        ({"seed": 3}, "unknown key 'seed' (did you mean 'seeds'?)"),
        ({"curvature": {"n_sample": 8}}, "n_sample"),
    ],
)
def test_mistakes_in_the_file_are_named(write, tmp_path, capsys, changes, message):
    assert main(["run", str(write(**changes)), "-f", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_runs_are_not_mixed_with_those_of_another_study(tiny, write, tmp_path, capsys):
    arguments = ["-f", str(tiny / "runs")]
    assert main(["run", str(write(name="other")), *arguments]) == 2
    assert "name is 'other', but the runs" in capsys.readouterr().err
    methods = {**TINY["methods"], "PPO": {"algo": "ppo", "gamma": 0.9}}
    assert main(["run", str(write(methods=methods)), *arguments]) == 2
    assert "SlipperyAnt-v0/PPO/seed_3 was begun with" in capsys.readouterr().err
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    assert main(["run", str(write()), "-f", str(tmp_path / "thesis")]) == 2
    assert "is not empty and not a study's folder" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(tiny, capsys):
    run = run_of(tiny)
    with run.lock():
        assert main(["train", str(tiny / "runs"), "SlipperyAnt-v0/PPO/seed_3"]) == 2
    assert "another process is training it" in capsys.readouterr().err
    assert main(["train", str(tiny / "runs"), "SlipperyAnt-v0/PPO/seed_4"]) == 2
    assert "accepted are the runs of" in capsys.readouterr().err


def test_the_timeline_of_several_attempts(tmp_path):
    run = RunFolder(tmp_path)
    paths = [run.new_attempt(step) for step in (0, 0, 300, 1000)]
    assert [path.name for path in paths] == ["from_0", "from_0_2", "from_300", "from_1000"]
    assert [(a.path, a.start, a.stop) for a in run.attempts()] == [
        (paths[0], 0, 0),
        (paths[1], 0, 300),
        (paths[2], 300, 1000),
        (paths[3], 1000, None),
    ]


def test_whoever_only_looks_at_a_run_does_not_keep_it_from_being_trained(tmp_path):
    run = RunFolder(tmp_path)
    with run.lock():
        pass
    with open(tmp_path / ".lock") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert not run.is_locked()
        letting_go = threading.Timer(0.1, fcntl.flock, (looker, fcntl.LOCK_UN))
        letting_go.start()
        with run.lock():
            assert run.is_locked()
        letting_go.join()


def test_a_running_state_without_a_process_is_pending(tmp_path):
    run = RunFolder(tmp_path)
    run.write_state(State("running", 128, 2.0))
    assert run.state() == State("pending", 128, 2.0)
    with run.lock():
        assert run.state() == State("running", 128, 2.0)
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "running"


def test_a_cluster_of_two_nodes_trains_the_same(tiny, write, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    methods = {**TINY["methods"], "broken": {"algo": "ppo", "callback": "no_such_module.Callback"}}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        study = write(methods=methods)
        assert main(["run", str(study), "-f", str(tmp_path / "runs"), "--ray", cluster.address]) == 1
        assert len({node["NodeID"] for node in ray.nodes()}) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "No module named 'no_such_module'" in capsys.readouterr().out
    for method in ("PPO", "PPO_L2"):
        here, there = (
            PPO.load(RunFolder(runs / "SlipperyAnt-v0" / method / "seed_3").model).policy.state_dict()
            for runs in (tiny / "runs", tmp_path / "runs")
        )
        assert all(np.array_equal(here[name], there[name]) for name in here), method


def test_no_such_cluster_is_one_line(write, tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["run", str(write()), "-f", str(tmp_path / "runs"), "--ray", "auto"]) == 2
    assert "--ray auto:" in capsys.readouterr().err
