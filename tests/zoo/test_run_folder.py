"""The folder of a run: its timeline over several attempts, its lock, and what is damaged in it."""

import json
import math
import multiprocessing
import shutil
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch as th

from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import Attempt, RunFolder, State, file_name
from sb3_plasticity.zoo.spec import RunSpec, note_resumed

HEADER = '#{"t_start": 0.0, "env_id": "X"}\nr,l,t,step,task_index,task_value\n'
SPEC = RunSpec(algo="ppo", env_id="CartPole-v1", seed=3, n_timesteps=100, hyperparams={"policy": "MlpPolicy"})


def attempt(run: RunFolder, step: int, *ends: int) -> Path:
    path = run.new_attempt(step)
    (path / "0.monitor.csv").write_text(HEADER + "".join(f"{end / 10},5,0.1,{end},{end // 100},0.5\n" for end in ends))
    return path


def test_the_timeline_of_several_attempts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.attempts() == [] and run.new_attempt(0) == tmp_path and run.attempts() == []
    first = attempt(run, 0, 10, 320, 350)
    second = attempt(run, 300, 310, 1000, 1010)
    # the checkpoint of step 1000 turned out to be damaged: this one goes back behind it
    third = attempt(run, 800, 790, 900)
    assert (second.name, third.name) == ("attempt_2_from_300", "attempt_3_from_800")
    assert run.attempts() == [Attempt(first, 0, 300), Attempt(second, 300, 800), Attempt(third, 800, math.inf)]
    episodes = run.episodes()
    assert episodes.step.tolist() == [10, 310, 900]
    assert episodes["return"].tolist() == [1, 31, 90] and episodes.task_index.tolist() == [0, 3, 9]
    (tmp_path / "progress.csv").write_text("time/total_timesteps,train/loss,a\n64,,1\n128,2,2\n320,3,3\n")
    (third / "progress.csv").write_text("train/loss,time/total_timesteps\n9,864\n")
    assert run.progress(["train/loss"]).drop(columns="train/loss").step.tolist() == [64, 128, 864]
    assert run.progress(["train/loss"])["train/loss"].tolist()[1:] == [2, 9]


def test_episodes_without_tasks_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "0.monitor.csv").write_text('#{"t_start": 0.0}\nr,l,t,step\n1.5,5,0.1,20\n2.5,7,0.2,30\n')
    episodes = RunFolder(tmp_path).episodes()
    assert episodes["return"].tolist() == [1.5, 2.5] and episodes.task_index.tolist() == [-1, -1]
    assert RunFolder(tmp_path / "none").episodes().empty and RunFolder(tmp_path).progress().empty


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text.replace(b"2.0,5", b"2.\xff,5"), [10, 30]),  # a flipped byte
        (lambda text: text.replace(b"2.0,5", b"2.0,x"), [10, 30]),
        (lambda text: text.replace(b"2.0,5", b"2.0,5,1,1,1"), [10, 30]),
        (lambda text: b"\x00\xff" * 50 + b"\n", []),
    ],
)
def test_damaged_records_are_passed_over_with_one_warning(
    tmp_path: Path, damage: Callable[..., Any], left: list[int]
) -> None:
    run = RunFolder(tmp_path)
    path = attempt(run, 0, 10, 20, 30) / "0.monitor.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning) as caught:
        assert run.episodes().step.tolist() == left
    assert len(caught) == 1 and str(path) in str(caught[0].message)


def test_half_a_line_at_the_end_is_what_a_kill_leaves(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    path = attempt(run, 0, 10, 20, 30) / "0.monitor.csv"
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(len(HEADER), len(content) + 1):
            path.write_bytes(content[:length])
            assert len(run.episodes()) == content[:length].count(b"\n") - 2


@pytest.mark.parametrize("content", [b"", b'{"state": "runn', b"[1]", b'{"state": 3}', b'{"step": "x"}', b"\xff\xfe"])
def test_a_damaged_state_is_named_and_pending(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.warns(UserWarning, match="state.json") as caught:
        assert RunFolder(tmp_path).state() == State()
    assert len(caught) == 1


def test_a_state_of_another_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"state": "finished", "step": 7, "seconds": 1.0, "colour": "red"}))
    assert RunFolder(tmp_path).state() == State("finished", 7, 1.0)


def test_models_and_checkpoints_have_rl_zoos_names(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    SPEC.begin(run)
    assert run.model == tmp_path / "CartPole-v1.zip" and run.last_checkpoint() is None
    for step in (64, 1024, 128):
        run.checkpoint(step).touch()
    (tmp_path / "best_model.zip").touch()
    assert [path.name for path in run.checkpoints()] == [f"rl_model_{n}_steps.zip" for n in (1024, 128, 64)]
    # as in rl-zoo's own run folders
    shutil.move(tmp_path / "CartPole-v1", tmp_path / "Ant-v0")
    assert run.model == tmp_path / "Ant-v0.zip"
    assert [file_name(name) for name in ("pkg:Ant-v0", "ALE/Pong-v5")] == ["Ant-v0", "ALE-Pong-v5"]


def test_a_run_says_what_it_is_and_with_what_it_was_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    SPEC.begin(run)
    assert RunSpec.of(run) == SPEC and run.begun and run.state() == State()
    description = run.description()
    assert description["versions"]["stable-baselines3"] and "git_commit" in description and description["cpus"]
    note_resumed(run, 64)
    (resumed,) = run.description()["resumed"]
    assert resumed["step"] == 64 and resumed["versions"] == description["versions"] and RunSpec.of(run) == SPEC
    with pytest.raises(UsageError, match="no folder of a run"):
        RunSpec.of(RunFolder(tmp_path))


def test_a_damaged_description_written_anew_keeps_how_far_the_run_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    SPEC.begin(run)
    run.write_state(State("finished", 100, 2.0))
    (tmp_path / "CartPole-v1" / "args.yml").write_text("algo: [")
    with pytest.warns(UserWarning, match=r"args\.yml: not as rl_zoo3 writes it"):
        assert run.description() == {}
    SPEC.begin(run)
    assert RunSpec.of(run) == SPEC and run.state() == State("finished", 100, 2.0)


def test_a_description_keeps_tuples_and_names_of_classes(tmp_path: Path) -> None:
    kwargs = {"optimizer_class": th.optim.SGD, "net_arch": [8, 8], "betas": (0.9, math.inf)}
    entry = OrderedDict(policy="MlpPolicy", policy_kwargs=kwargs, learning_rate="lin_3e-4", seeds=[1, 1])
    spec = replace(SPEC, hyperparams=entry, tags={"method": "PPO + L2: no"})
    spec.begin(RunFolder(tmp_path))
    assert RunSpec.of(RunFolder(tmp_path)) == spec
    for value in (lambda: 0, object(), th.zeros(1)):
        with pytest.raises(UsageError, match="hyper-parameters must be numbers, texts, lists, mappings or named"):
            replace(SPEC, hyperparams={"x": value}).begin(RunFolder(tmp_path))
    assert RunSpec.of(RunFolder(tmp_path)) == spec


def test_a_running_state_without_a_process_is_pending(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_state(State("running", 128, 2.0))
    assert run.state() == State("pending", 128, 2.0)
    with run.lock():
        assert run.state() == State("running", 128, 2.0)
        with pytest.raises(UsageError, match="another process"), run.lock():
            pass
    assert run.state().state == "pending"


def test_whoever_only_looks_at_a_run_does_not_keep_it_from_being_trained(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    looker = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    looker.acquire()
    letting_go = threading.Timer(0.1, looker.release)
    letting_go.start()
    with run.lock():
        assert run.is_locked()
    letting_go.join()


def _hold(path: Path, held: Event) -> None:
    with RunFolder(path).lock():
        held.set()
        time.sleep(60)


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(60) and RunFolder(tmp_path).is_locked()
    finally:
        process.kill()
        process.join()
    assert not RunFolder(tmp_path).is_locked()
