"""A study's folders as tables: the timeline of interrupted runs, and what is said about what is missing."""

import math

import numpy as np
import pytest
from synthetic import write_monitor, write_run, write_study

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.folder import RunFolder, State
from sb3_plasticity.study.results import read_episodes, read_progress, read_results, read_spectra, start_ranks
from sb3_plasticity.zoo.errors import UsageError


@pytest.fixture
def interrupted(tmp_path):
    """A run that was killed after its checkpoint at step 100, and went on from there."""
    folder = RunFolder(tmp_path)
    first, second = folder.new_attempt(0), folder.new_attempt(100)
    write_monitor(first, [(1, 10, 50, 0, 0.5), (2, 10, 100, 0, 0.5), (3, 10, 101, 0, 0.5), (4, 10, 150, 1, 0.1)])
    write_monitor(second, [(5, 10, 101, 0, 0.5), (6, 10, 150, 1, 0.1)])
    for place, attempt in enumerate((first, second)):
        (attempt / "progress.csv").write_text(
            "train/std,time/total_timesteps,other\n" + f"0.{place + 1},100,7\n0.{place + 3},120,7\n,,\n"
        )
        for step, task in ((90, 0), (120, 1)):
            info = {"step": step, "task_index": task, "task_value": 0.5, "phase": "start", "network": "policy"}
            rank = Spectrum.from_eigenvalues(np.arange(1.0, place + task + 2), 10, info=info | {"kind": "ggn"})
            rank.save(attempt / "curvature" / f"{step}.npz")
    return folder.attempts()


def test_a_killed_attempt_counts_up_to_where_its_successor_began(interrupted):
    episodes = read_episodes(interrupted)
    assert list(episodes["return"]) == [1, 2, 5, 6]
    assert list(episodes.step) == [50, 100, 101, 150]
    assert list(episodes.task_index) == [0, 0, 0, 1]


def test_progress_and_spectra_follow_the_same_timeline(interrupted):
    progress = read_progress(interrupted)
    assert list(progress.columns) == ["train/std", "step"]
    assert list(zip(progress.step, progress["train/std"], strict=True)) == [(100, 0.1), (120, 0.4)]
    spectra = read_spectra(interrupted, 0.5)
    # The first attempt's at 90, one eigenvalue of ten; the second's at 120, three.
    assert list(spectra.step) == [90, 120]
    assert list(spectra.epsilon_rank) == pytest.approx([0.1, 0.3])


def test_attempts_without_records(tmp_path):
    folder = RunFolder(tmp_path)
    empty = folder.new_attempt(0)
    (empty / "monitor.csv").write_text("")
    assert read_episodes(folder.attempts()).empty and read_progress(folder.attempts()).empty
    assert start_ranks(read_spectra(folder.attempts(), 1.0).assign(env_id="", method="", seed=0)).empty


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    records = folder.new_attempt(0)
    write_monitor(records, [(1, 10, 50, 0, 0.5)])
    with open(records / "monitor.csv", "a") as file:
        file.write("2,10,0.1,9")
    assert list(read_episodes(folder.attempts())["return"]) == [1]


def test_measures_of_tasks_by_hand(tmp_path):
    study = write_study(tmp_path, ["PPO", "L2"], [3], 2, 200, success_within=30)
    runs = {run.method: RunFolder(tmp_path / run.name) for run in study.runs()}
    write_monitor(
        runs["PPO"].new_attempt(0),
        [
            (10, 100, 100, 0, 0.5),
            (40, 50, 180, 0, 0.5),
            (60, 50, 204, 0, 0.5),  # begun in the first task, ended after it
            (0, 40, 250, 1, 0.1),
            (46, 40, 300, 1, 0.1),
            (100, 120, 400, 1, 0.1),
            (999, 10, 401, 2, 0.7),  # a third task that the last rollout ran into
        ],
    )
    write_monitor(runs["L2"].new_attempt(0), [(75, 100, 200, 0, 0.5), (140, 100, 400, 1, 0.1)])
    for folder in runs.values():
        folder.write_state(State("finished", 410, 7.0))
    tasks = read_results(tmp_path).tasks
    assert list(tasks.method) == ["PPO", "PPO", "L2", "L2"] and list(tasks.task_index) == [0, 1, 0, 1]
    assert list(tasks.final_return) == [50, 100, 75, 140]
    assert list(tasks.auc) == [(1000 + 2000 + 3000) / 200, (46 * 40 + 12000) / 200, 75, 140]
    # From 0 nine tenths of the way to 50, that is 45, at step 300.
    assert tasks.steps_to_recover.to_list() == pytest.approx([math.nan, 100, math.nan, 0], nan_ok=True)
    assert list(tasks.best_known) == [75, 140, 75, 140]
    assert list(tasks.success) == [1, 0, 1, 1]
    assert list(tasks.task_value) == [0.5, 0.1, 0.5, 0.1]


def test_what_is_missing_is_said_and_left_out(tmp_path):
    study = write_study(tmp_path, ["PPO", "L2"], [0, 1])
    states = iter(["finished", "crashed", "finished", None])
    for run in study.runs():
        if (state := next(states)) is not None:
            write_run(tmp_path, study, run, state)
    results = read_results(tmp_path)
    assert list(results.runs.used) == [True, False, True, False]
    assert set(results.tasks.method) == {"PPO"} and set(results.episodes.seed) == {0, 1}
    crashed, pending = results.problems
    assert crashed == (
        "L2, seed 0, on SlipperyAnt-v0, crashed (step 30,000 of 60,000): RuntimeError: <b>out of memory</b>."
    )
    assert pending == "Not begun: L2, seed 1, on SlipperyAnt-v0."


def test_ranks_at_task_starts_are_in_the_task_table(tmp_path):
    study = write_study(tmp_path, ["PPO"], [0], epsilon=1.0)
    (run,) = study.runs()
    write_run(tmp_path, study, run, spectra_per_start=("ggn", "hessian"))
    results = read_results(tmp_path)
    names = [f"epsilon_rank_{network}_{kind}" for network in ("policy", "value") for kind in ("ggn", "hessian")]
    assert results.tasks[names].notna().all(axis=None)
    spectrum = Spectrum.load(tmp_path / run.name / "from_0" / "curvature" / "1_policy_ggn.npz")
    assert results.tasks.epsilon_rank_policy_ggn[1] == float(spectrum.epsilon_rank(1.0))


def test_runs_that_the_study_file_no_longer_describes(tmp_path):
    study = write_study(tmp_path, ["PPO"], [0])
    (run,) = study.runs()
    folder = write_run(tmp_path, study, run)
    folder.write_description({"n_timesteps": 7, "hyperparams": {"policy": "MlpPolicy"}})
    (problem,) = read_results(tmp_path).problems
    assert "7 steps, the study file says 60,000" in problem and "hyper-parameters that differ" in problem


def test_no_study_and_no_finished_run(tmp_path):
    with pytest.raises(UsageError, match=r"there is no study\.yml: accepted is"):
        read_results(tmp_path)
    write_study(tmp_path, ["PPO"], [0])
    with pytest.raises(UsageError, match=r"none of the study's 1 runs is finished.*Not begun: PPO, seed 0"):
        read_results(tmp_path)
