"""A study's folders as tables: the timeline of interrupted runs, and what is said about what is missing."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import describe, write_monitor, write_run, write_study

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.results import WHOLE, _parameter, read_results, read_spectra
from sb3_plasticity.study.spec import planned_runs
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder, State


def test_spectra_follow_the_timeline_of_an_interrupted_run(tmp_path: Path) -> None:
    """Killed after its checkpoint at step 100, it went on from there; the task that began at 120 was measured twice."""
    folder = RunFolder(tmp_path)
    write_monitor(folder.path, [(1, 10, 50, 0, 0.5)])
    for place, attempt in enumerate((folder.path, folder.new_attempt(100))):
        for step, task in ((90, 0), (120, 1)):
            info = {"step": step, "task_index": task, "task_value": 0.5, "phase": "start", "network": "policy"}
            rank = Spectrum.from_eigenvalues(np.arange(1.0, place + task + 2), 10, info=info | {"kind": "ggn"})
            rank.save(attempt / "curvature" / f"{step}.npz")
    spectra = read_spectra(folder, 0.5)
    # The first attempt's at 90, one eigenvalue of ten; the second's at 120, three.
    assert list(spectra.step) == [90, 120]
    assert list(spectra.epsilon_rank) == pytest.approx([0.1, 0.3])


def test_only_what_is_about_WHOLE_is_kept(tmp_path: Path) -> None:
    names = [
        "step",
        "train/std",
        "plasticity/policy/effective_rank",
        "plasticity_control/q/churn",
        "mitigation/l2/coef",
    ]
    layers = ["plasticity/policy/layer/effective_rank", "curvature/policy/ggn/trace", "time/fps"]
    assert list(pd.DataFrame(columns=[*names, *layers]).filter(regex=WHOLE)) == names


def test_measures_of_tasks_by_hand(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO", "L2"], [3], 2, 200, success_within=30)
    runs = {run.method: RunFolder(tmp_path / run.name) for run in planned_runs(study)}
    for run in planned_runs(study):
        describe(runs[run.method], study, run)
    write_monitor(
        runs["PPO"].new_attempt(0),
        [
            (10, 100, 100, 0, 0.5),
            (40, 25, 150, 0, 0.5),  # not in the last quarter of the task: it ends at its boundary
            (40, 25, 180, 0, 0.5),
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


def test_what_is_missing_is_said_and_left_out(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO", "L2"], [0, 1])
    states = iter(["finished", "crashed", "finished", None])
    for run in planned_runs(study):
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


def test_ranks_at_task_starts_are_in_the_task_table(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO"], [0], epsilon=1.0)
    (run,) = planned_runs(study)
    write_run(tmp_path, study, run, spectra_per_start=("ggn", "hessian"))
    results = read_results(tmp_path)
    names = [f"epsilon_rank_{network}_{kind}" for network in ("policy", "value") for kind in ("ggn", "hessian")]
    assert results.tasks[names].notna().all(axis=None)
    spectrum = Spectrum.load(tmp_path / run.name / "curvature" / "1_policy_ggn.npz")
    assert results.tasks.epsilon_rank_policy_ggn[1] == float(spectrum.epsilon_rank(1.0))


def test_runs_that_the_study_file_no_longer_describes(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO"], [0])
    (run,) = planned_runs(study)
    folder = write_run(tmp_path, study, run)
    folder.write_description({**folder.description(), "n_timesteps": 40_000, "hyperparams": {"policy": "MlpPolicy"}})
    problem = read_results(tmp_path).problems[0]
    assert "40,000 steps, the study file says 60,000" in problem and "hyper-parameters that differ" in problem


def test_no_study_and_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be the folder of a study, or have runs' folders"):
        read_results(tmp_path)
    write_study(tmp_path, ["PPO"], [0])
    with pytest.raises(UsageError, match=r"none of its 1 runs is finished.*Not begun: PPO, seed 0"):
        read_results(tmp_path)


def damage(folder: RunFolder) -> None:
    """Every way in which FINDINGS saw a record spoiled."""
    curvature = folder.path / "curvature"
    whole = (curvature / "0_policy_ggn.npz").read_bytes()
    (curvature / "0_policy_ggn.npz").write_bytes(whole[:300])
    (curvature / "1_policy_ggn.npz").write_bytes(whole[:4000] + b"\xff\x00\xff" + whole[4003:])
    (curvature / "2_value_ggn.npz").write_bytes(b"")
    (curvature / "x.npz").mkdir()
    (curvature / "y.npz").symlink_to(folder.path / "nothing")
    monitor = folder.path / "0.monitor.csv"
    head, rows = monitor.read_bytes().split(b"task_value\n")
    monitor.write_bytes(head + b"task_value\n" + rows.replace(b"\n", b"\n\xff\xfe,garbage\n", 3))


def test_damaged_files_are_passed_over_and_named(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO", "L2"], [0, 1])
    folders = [write_run(tmp_path, study, run) for run in planned_runs(study)]
    whole = read_results(tmp_path)
    assert not whole.problems
    damage(folders[0])
    (folders[3].path / "state.json").write_text('{"state": "fini')
    with pytest.warns(UserWarning) as caught:
        results = read_results(tmp_path)
    for name in ("0_policy_ggn.npz", "1_policy_ggn.npz", "2_value_ggn.npz", "0.monitor.csv", "state.json"):
        assert sum(name in str(each.message) for each in caught) == 1, name
        assert sum(name in problem for problem in results.problems) == 1, name
    assert any("L2, seed 1, on SlipperyAnt-v0, has not been finished" in problem for problem in results.problems)
    (missing,) = [problem for problem in results.problems if "No spectrum of the policy ggn" in problem]
    assert "PPO, seed 0, on SlipperyAnt-v0 (task 1, 2)" in missing
    # nothing else is lost: every episode is there, and the runs that were whole are as they were
    assert len(results.episodes) == len(whole.episodes[(whole.episodes.method == "PPO") | (whole.episodes.seed == 0)])
    kept = (whole.tasks.method == "PPO") & (whole.tasks.seed == 1)
    again = (results.tasks.method == "PPO") & (results.tasks.seed == 1)
    pd.testing.assert_series_equal(
        results.tasks[again].final_return.reset_index(drop=True), whole.tasks[kept].final_return.reset_index(drop=True)
    )


def test_runs_of_no_study_are_read_too(tmp_path: Path) -> None:
    """Folders as `train` makes them: methods are what the runs differ in; the newest of two equal ones counts."""
    study = write_study(tmp_path / "study", ["PPO", "L2"], [0, 1], 2)
    for number, run in enumerate(planned_runs(study)):
        folder = write_run(tmp_path / "study", study, run)
        folder.write_description({**folder.description(), "tags": {}})
        folder.path.rename(tmp_path / f"logs_{number}")
    (tmp_path / "study" / "study.yml").unlink()
    results = read_results(tmp_path, baseline="ppo_l2er, er_coef=0.001")
    assert list(results.methods) == ["ppo_l2er, er_coef=0.0", "ppo_l2er, er_coef=0.001"]
    assert results.settings.baseline == "ppo_l2er, er_coef=0.001"
    assert results.timelines["SlipperyAnt-v0"].n_tasks == 2 and len(results.tasks) == 8
    with pytest.raises(UsageError, match="`--baseline` must be one of"):
        read_results(tmp_path, baseline="SAC")


def test_an_environment_without_tasks_is_one_task(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "ppo" / "Pendulum-v1_1")
    write_monitor(folder.path, [(-1000, 200, 200 * i, -1, "") for i in range(1, 11)])
    given = {
        "algo": "ppo",
        "env_id": "Pendulum-v1",
        "seed": 3,
        "n_timesteps": 2000,
        "hyperparams": {"policy": "MlpPolicy"},
    }
    folder.write_description(given)
    folder.write_state(State("finished", 2000, 1.0))
    tasks = read_results(tmp_path).tasks
    assert list(tasks.final_return) == [-1000] and list(tasks.end) == [2000]


@pytest.mark.parametrize(
    ("env_id", "keywords", "name"),
    [
        ("SlipperyAnt-v0", {}, "friction"),
        ("SlipperySwimmer-v0", {}, "viscosity"),
        ("SlipperyAnt-v0", {"parameter": "actuator_strength"}, "actuator strength"),
        ("ContinualGymControl-v0", {}, "value of the task"),
        ("OfAPackageThatIsNotHere-v0", {}, "value of the task"),
    ],
)
def test_what_changes_is_named(env_id: str, keywords: dict[str, str], name: str) -> None:
    assert _parameter({"env_id": env_id, "hyperparams": {"env_kwargs": keywords}}) == name


def test_the_period_that_an_environment_has_by_default(tmp_path: Path) -> None:
    """SlipperyAnt's friction changes every two million steps, also in runs whose description does not repeat it."""
    folder = RunFolder(tmp_path / "ppo" / "SlipperyAnt-v0_1")
    write_monitor(folder.path, [(10, 1000, 1_900_000, 0, 1.0), (20, 1000, 3_900_000, 1, 0.5)])
    given = {"algo": "ppo", "env_id": "SlipperyAnt-v0", "seed": 0, "n_timesteps": 4_000_000, "hyperparams": {}}
    folder.write_description(given)
    folder.write_state(State("finished", 4_000_000, 1.0))
    tasks = read_results(tmp_path).tasks
    assert list(tasks.begin) == [0, 2_000_000] and list(tasks.final_return) == [10, 20]
