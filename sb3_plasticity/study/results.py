"""A study's folders as tidy tables: runs, episodes, progress, spectra and tasks. Nothing is written."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sb3_plasticity.curvature.records import load_spectra
from sb3_plasticity.study import statistics
from sb3_plasticity.study.folder import Attempt, RunFolder
from sb3_plasticity.study.spec import STUDY_FILE, Run, Study, read_study
from sb3_plasticity.zoo.errors import UsageError

KEYS = ["env_id", "method", "seed"]
EPISODE_COLUMNS = {"r": "return", "l": "length", "step": "step", "task_index": "task_index", "task_value": "task_value"}
STEP_COLUMN = "time/total_timesteps"
# Of the hundreds of columns of a progress.csv, those that the report shows.
PROGRESS_COLUMNS = (
    "train/std",
    "train/erank_policy",
    "train/erank_value",
    "train/l2_loss",
    "plasticity/policy/effective_rank",
    "plasticity/value/effective_rank",
    "plasticity/policy/dormant_units",
    "plasticity/value/dormant_units",
    "plasticity/policy/weight_norm",
    "plasticity/value/weight_norm",
)
SPECTRUM_COLUMNS = ["step", "task_index", "task_value", "phase", "network", "kind", "n_samples", "dim"]
RANK_COLUMNS = ["epsilon_rank", "epsilon_rank_low", "epsilon_rank_high"]
WORDS = {"pending": "has not been finished", "running": "is still running", "crashed": "crashed"}


@dataclass(frozen=True)
class Results:
    """
    What a study has found so far. Every table but ``runs`` has finished runs only.

    :param study: what was asked for
    :param text: of the study file
    :param runs: a row per run of the study: ``env_id``, ``method``, ``seed``, ``state``, ``step``, ``seconds``,
        ``error``, ``used`` (it is in the other tables), ``description`` (its run.json)
    :param episodes: a row per episode: the run, ``step`` at its end, ``return``, ``length``, ``task_index``,
        ``task_value``
    :param progress: a row per line of the logs: the run, ``step``, and of ``PROGRESS_COLUMNS`` those that any run has
    :param spectra: a row per spectrum: the run, ``step``, ``task_index``, ``task_value``, ``phase``, ``network``,
        ``kind``, ``epsilon_rank`` with ``_low`` and ``_high`` (what the quadrature leaves open) and ``spectrum``
    :param tasks: a row per run and task, see :func:`task_table`
    :param problems: what is missing, in words
    """

    study: Study
    text: str
    runs: pd.DataFrame
    episodes: pd.DataFrame
    progress: pd.DataFrame
    spectra: pd.DataFrame
    tasks: pd.DataFrame
    problems: tuple[str, ...]


def read_results(path: Path) -> Results:
    """
    Read a study's folder.

    :param path: folder with ``study.yml`` and the runs' folders
    :return: tables of the finished runs, and what is missing
    :raises UsageError: if there is no study, or none of its runs is finished
    """
    file = path / STUDY_FILE
    if not file.is_file():
        raise UsageError(
            f"{path}: there is no {STUDY_FILE}: accepted is the folder that `python -m sb3_plasticity.study run` made"
        )
    study = read_study(file)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    not_begun: list[str] = []
    parts: dict[str, list[pd.DataFrame]] = {"episodes": [], "progress": [], "spectra": []}
    for run in study.runs():
        folder = RunFolder(path / run.name)
        row = _run_row(run, folder)
        episodes = read_episodes(folder.attempts()) if row["state"] == "finished" else None
        row["used"] = episodes is not None and len(episodes) > 0
        if row["state"] == "pending" and not row["step"]:
            not_begun.append(_name(run))
        elif not row["used"]:
            problems.append(_why_left_out(run, row, study))
        else:
            assert episodes is not None
            parts["episodes"].append(_of_run(episodes, run))
            parts["progress"].append(_of_run(read_progress(folder.attempts()), run))
            parts["spectra"].append(_of_run(read_spectra(folder.attempts(), study.report.epsilon), run))
            problems.extend(_remarks(run, row, study))
        rows.append(row)
    if not_begun:
        problems.append(f"Not begun: {'; '.join(not_begun)}.")
    runs = pd.DataFrame(rows)
    if not runs.used.any():
        raise UsageError(f"{path}: none of the study's {len(runs)} runs is finished, a report needs one: {problems[0]}")
    tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    # A run goes on to the end of its rollout, a little past its last task.
    tables["episodes"] = tables["episodes"][tables["episodes"].task_index < study.n_tasks]
    tables["spectra"] = tables["spectra"][tables["spectra"].task_index < study.n_tasks]
    tasks = task_table(study, tables["episodes"], tables["spectra"])
    if lacking := int(tasks.final_return.isna().sum()):
        problems.append(
            f"{lacking} of {len(tasks)} tasks have no final return: no episode ended in the last "
            f"{study.report.final_share:.0%} of their steps."
        )
    text = file.read_text(encoding="utf-8")
    return Results(study, text, runs, tasks=tasks, problems=tuple(problems), **tables)


# -- runs --------------------------------------------------------------------------------------------------------------


def _run_row(run: Run, folder: RunFolder) -> dict[str, Any]:
    state = folder.state()
    return {
        "env_id": run.env_id,
        "method": run.method,
        "seed": run.seed,
        "state": state.state,
        "step": state.step,
        "seconds": state.seconds,
        "error": state.error,
        "description": folder.description(),
    }


def _name(run: Run) -> str:
    return f"{run.method}, seed {run.seed}, on {run.env_id}"


def _why_left_out(run: Run, row: dict[str, Any], study: Study) -> str:
    if row["state"] == "finished":
        return f"{_name(run)}, is finished, but no monitor.csv in {run.name} has an episode."
    reason = f": {row['error']}" if row["error"] else ""
    return f"{_name(run)}, {WORDS[row['state']]} (step {row['step']:,} of {study.n_timesteps:,}){reason}."


def _remarks(run: Run, row: dict[str, Any], study: Study) -> list[str]:
    """Say where a run is not what the study file says now."""
    description = row["description"]
    found = []
    if description.get("n_timesteps", study.n_timesteps) != study.n_timesteps:
        found.append(f"{description['n_timesteps']:,} steps, the study file says {study.n_timesteps:,}")
    asked = json.loads(json.dumps(dict(run.entry)))
    if description.get("hyperparams", asked) != asked:
        found.append("hyper-parameters that differ from the study file's")
    return [f"{_name(run)}, was trained with {'; and with '.join(found)}. It is in the report."] if found else []


def _of_run(frame: pd.DataFrame, run: Run) -> pd.DataFrame:
    keys = pd.DataFrame({"env_id": run.env_id, "method": run.method, "seed": run.seed}, index=frame.index)
    return pd.concat([keys, frame], axis=1)


# -- the timeline of a run ---------------------------------------------------------------------------------------------


def read_episodes(attempts: Iterable[Attempt]) -> pd.DataFrame:
    """
    Read the episodes of a run's timeline.

    :param attempts: of the run
    :return: ``return``, ``length``, ``step``, ``task_index``, ``task_value``, in the order in which they ended
    """
    frames = []
    for attempt in attempts:
        path = attempt.path / "monitor.csv"
        if _has_content(path):
            frame = pd.read_csv(path, comment="#", usecols=lambda name: name in EPISODE_COLUMNS, on_bad_lines="skip")
            frames.append(_in_timeline(frame.rename(columns=EPISODE_COLUMNS).dropna(), attempt))
    whole = _concatenated(frames, list(EPISODE_COLUMNS.values()))
    return whole.astype({"task_index": int, "step": int})


def read_progress(attempts: Iterable[Attempt]) -> pd.DataFrame:
    """
    Read the logged lines of a run's timeline.

    :param attempts: of the run
    :return: ``step`` and of ``PROGRESS_COLUMNS`` those that there are; NaN where a line lacks one
    """
    frames = []
    wanted = {STEP_COLUMN, *PROGRESS_COLUMNS}
    for attempt in attempts:
        path = attempt.path / "progress.csv"
        if _has_content(path):
            frame = pd.read_csv(path, usecols=lambda name: name in wanted, on_bad_lines="skip")
            if STEP_COLUMN in frame:
                frame = frame.rename(columns={STEP_COLUMN: "step"}).dropna(subset=["step"])
                frames.append(_in_timeline(frame, attempt))
    return _concatenated(frames, ["step"])


def read_spectra(attempts: Iterable[Attempt], epsilon: float) -> pd.DataFrame:
    """
    Read the spectra of a run's timeline.

    :param attempts: of the run
    :param epsilon: of the epsilon-rank
    :return: see :class:`Results`; one for each task, phase, network and kind, and step for periodic ones
    """
    frames = []
    for attempt in attempts:
        folder = attempt.path / "curvature"
        if folder.is_dir():
            frame = load_spectra(folder, (epsilon,))
            names = {f"epsilon_rank_{epsilon:g}{suffix}": f"epsilon_rank{suffix}" for suffix in ("", "_low", "_high")}
            frame = frame.rename(columns=names).reindex(columns=[*SPECTRUM_COLUMNS, *RANK_COLUMNS, "spectrum"])
            frames.append(_in_timeline(frame, attempt))
    whole = _concatenated(frames, [*SPECTRUM_COLUMNS, *RANK_COLUMNS, "spectrum"])
    once = ["task_index", "phase", "network", "kind", "step"]
    return whole.drop_duplicates(once, keep="last", ignore_index=True).astype({"task_index": int})


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _in_timeline(frame: pd.DataFrame, attempt: Attempt) -> pd.DataFrame:
    stop = math.inf if attempt.stop is None else attempt.stop
    return frame[(frame.step > attempt.start) & (frame.step <= stop)]


def _concatenated(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=columns)


# -- tasks -------------------------------------------------------------------------------------------------------------


def task_table(study: Study, episodes: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """
    Measure every task of every run.

    :param study: whose report settings hold
    :param episodes: see :class:`Results`
    :param spectra: see :class:`Results`
    :return: a row per run and task, in the study's order: ``env_id``, ``method``, ``seed``, ``task_index``,
        ``task_value``, ``final_return``, ``auc``, ``steps_to_recover`` (infinity: not within the task; NaN: no task
        before), ``epsilon_rank_<network>_<kind>`` at its start, ``best_known`` (best final return of any method's run
        in the same task), ``success`` (1, 0, or NaN without a final return)
    """
    rows: list[dict[str, Any]] = []
    for key, group in episodes.groupby(KEYS, sort=False):
        rows.extend({**dict(zip(KEYS, key, strict=True)), **row} for row in _run_tasks(study, group))
    tasks = pd.DataFrame(rows)
    best = tasks.groupby(["env_id", "seed", "task_index"]).final_return.transform("max")
    success = (tasks.final_return >= best - study.report.success_within).astype(float)
    tasks = tasks.assign(best_known=best, success=success.where(tasks.final_return.notna()))
    ranks = start_ranks(spectra)
    tasks = tasks.merge(ranks, how="left", on=[*KEYS, "task_index"])
    order = {(run.env_id, run.method, run.seed): place for place, run in enumerate(_by_method(study))}
    places = [order[key] for key in zip(tasks.env_id, tasks.method, tasks.seed, strict=True)]
    return tasks.iloc[np.lexsort([tasks.task_index.to_numpy(), np.array(places)])].reset_index(drop=True)


def _by_method(study: Study) -> list[Run]:
    methods = list(study.methods)
    return sorted(study.runs(), key=lambda run: (study.env_ids.index(run.env_id), methods.index(run.method)))


def _run_tasks(study: Study, episodes: pd.DataFrame) -> Iterable[dict[str, Any]]:
    before = math.nan
    groups = dict(list(episodes.groupby("task_index")))
    spec = study.report
    for index in range(study.n_tasks):
        begin, end = index * study.period, min((index + 1) * study.period, study.n_timesteps)
        group = groups.get(index, episodes.iloc[:0])
        steps, returns = group.step.to_numpy(dtype=float), group["return"].to_numpy(dtype=float)
        final = statistics.final_return(steps, returns, begin, end, spec.final_share)
        yield {
            "task_index": index,
            "task_value": float(group.task_value.iloc[0]) if len(group) else math.nan,
            "final_return": final,
            "auc": statistics.area_under_curve(returns, group.length.to_numpy(dtype=float)),
            "steps_to_recover": statistics.steps_to_recover(steps, returns, begin, end, before, spec.recovered_share),
        }
        before = final


def start_ranks(spectra: pd.DataFrame) -> pd.DataFrame:
    """
    Tabulate the epsilon-ranks at task starts.

    :param spectra: see :class:`Results`
    :return: a row per run and task: its keys, ``task_index``, and ``epsilon_rank_<network>_<kind>`` for all that were
        measured
    """
    starts = spectra[spectra.phase == "start"]
    keys = [*KEYS, "task_index"]
    if starts.empty:
        return pd.DataFrame({"env_id": [], "method": [], "seed": [], "task_index": []}).astype(
            {"env_id": object, "method": object, "seed": int, "task_index": int}
        )
    named = starts.assign(name="epsilon_rank_" + starts.network + "_" + starts.kind)
    wide = named.pivot_table(index=keys, columns="name", values="epsilon_rank", aggfunc="first")
    return wide.astype(float).reset_index().rename_axis(columns=None)
