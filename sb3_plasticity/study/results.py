"""The folders of runs as tidy tables: runs, episodes, progress, spectra and tasks. Nothing is written."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_plasticity.curvature.records import load_spectra
from sb3_plasticity.study.measures import area_under_curve, final_return, steps_to_recover
from sb3_plasticity.study.spec import STUDY_FILE, PlannedRun, ReportSettings, Study, planned_runs, read_study
from sb3_plasticity.study.summary import RUN
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder

SPECTRUM_COLUMNS = ["step", "task_index", "task_value", "phase", "network", "kind", "n_samples", "dim"]
RANK_COLUMNS = ["epsilon_rank", "epsilon_rank_low", "epsilon_rank_high"]
WORDS = {"pending": "has not been finished", "running": "is still running", "crashed": "crashed"}


@dataclass(frozen=True)
class Timeline:
    """
    The tasks of a run.

    :param n_timesteps: of the run
    :param period: steps from one task to the next
    """

    n_timesteps: int
    period: int

    @property
    def n_tasks(self) -> int:
        """Tasks that a run goes through."""
        return math.ceil(self.n_timesteps / self.period)


@dataclass(frozen=True)
class Results:
    """
    What runs have found so far. Every table but ``runs`` has finished runs only.

    :param name: of the study
    :param settings: of the report
    :param methods: their names, in order
    :param timelines: of each environment
    :param controls: environments that are stationary
    :param parameter: what changes from task to task
    :param text: of the study file; empty for runs of no study
    :param runs: a row per run: ``env_id``, ``method``, ``seed``, ``state``, ``step``, ``seconds``, ``error``, ``used``
        (it is in the other tables), ``description`` (its run.json)
    :param episodes: a row per episode: the run, ``step`` at its end, ``return``, ``length``, ``task_index``,
        ``task_value``
    :param progress: a row per line of the logs: the run, ``step``, and what was logged of whole networks
    :param spectra: a row per spectrum: the run, ``step``, ``task_index``, ``task_value``, ``phase``, ``network``,
        ``kind``, ``epsilon_rank`` with ``_low`` and ``_high`` (what the quadrature leaves open) and ``spectrum``
    :param tasks: a row per run and task, see :func:`task_table`
    :param problems: what is missing, in words
    """

    name: str
    settings: ReportSettings
    methods: Sequence[str]
    timelines: dict[str, Timeline]
    controls: frozenset[str]
    parameter: str
    text: str
    runs: pd.DataFrame
    episodes: pd.DataFrame
    progress: pd.DataFrame
    spectra: pd.DataFrame
    tasks: pd.DataFrame
    problems: Sequence[str]


def read_results(path: Path, baseline: str | None = None) -> Results:
    """
    Read the folder of a study, or any folder with runs in it.

    :param path: folder with ``study.yml`` and the runs' folders, or with runs' folders somewhere below
    :param baseline: method that the others are compared with; None for the study's, or the first one
    :return: tables of the finished runs, and what is missing
    :raises UsageError: if there is no run, or none of them is finished
    """
    text, study = "", None
    if (path / STUDY_FILE).is_file():
        text, study = (path / STUDY_FILE).read_text(encoding="utf-8"), read_study(path / STUDY_FILE)
        found = [(run, RunFolder(path / run.name)) for run in planned_runs(study)]
    else:
        found = find_runs(path)
    methods = list(study.methods if study is not None else dict.fromkeys(run.method for run, _ in found))
    settings = study.report if study is not None else ReportSettings(baseline=methods[0])
    if baseline is not None:
        if baseline not in methods:
            raise UsageError(f"`--baseline` must be one of {', '.join(methods)}, got {baseline!r}")
        settings = settings.model_copy(update={"baseline": baseline})

    rows, problems, idle = list[dict[str, Any]](), list[str](), list[str]()
    parts: dict[str, list[pd.DataFrame]] = {"episodes": [], "progress": [], "spectra": []}
    for run, folder in found:
        tables, row, warned = _listen(lambda: _read_run(run, folder, settings.epsilon))  # noqa: B023
        rows.append(row)
        problems += warned
        if row["used"]:
            for name, table in tables.items():
                parts[name].append(table)
            problems += _remarks(run, row, study)
        elif row["state"] == "pending" and not folder.attempts():
            idle.append(title(run))
        else:
            problems.append(_why_left_out(run, row))
    if idle:
        problems.append(f"Not begun: {'; '.join(idle)}.")
    runs = pd.DataFrame(rows)
    used = runs[runs.used]
    if used.empty:
        raise UsageError(f"{path}: none of its {len(runs)} runs is finished, a report needs one: {problems[0]}")
    descriptions = dict(zip(used.env_id, used.description, strict=True))
    timelines = {env_id: _timeline(description) for env_id, description in descriptions.items()}
    tables = {name: _whole(frames) for name, frames in parts.items()}
    for name in ("episodes", "spectra"):  # a run goes on to the end of its rollout, a little past its last task
        last = tables[name].env_id.map({env_id: time.n_tasks for env_id, time in timelines.items()})
        tables[name] = tables[name][tables[name].task_index < last]
    tasks = task_table(settings, timelines, methods, tables["episodes"], tables["spectra"])
    problems += missing_measures(settings, tasks, tables["spectra"])
    kwargs = next(iter(descriptions.values())).get("hyperparams", {}).get("env_kwargs") or {}
    return Results(
        name=path.name if study is None else study.name,
        settings=settings,
        methods=[method for method in methods if (used.method == method).any()],
        timelines=timelines,
        controls=frozenset(run.label for run, _ in found if run.control),
        parameter=str(kwargs.get("parameter", "friction")).replace("_", " "),
        text=text,
        runs=runs,
        tasks=tasks,
        problems=problems,
        **tables,
    )


# -- runs --------------------------------------------------------------------------------------------------------------


def find_runs(path: Path) -> list[tuple[PlannedRun, RunFolder]]:
    """
    Find runs that no study planned.

    :param path: folder with runs' folders somewhere below
    :return: what each is, and its folder. A method is an algorithm, or what its user called it (the tag ``method``),
        with the hyper-parameters in which its runs differ; of runs that are alike in everything the newest counts
    :raises UsageError: if there is none
    """
    folders = sorted((RunFolder(file.parent) for file in path.rglob("run.json")), key=lambda each: each.path)
    known = [(folder, given) for folder in folders if (given := folder.description()).get("env_id")]
    if not known:
        raise UsageError(f"{path}: must be the folder of a study, or have runs' folders with a run.json below it")
    names = [str(given.get("tags", {}).get("method") or given.get("algo")) for _, given in known]
    entries = pd.json_normalize([given.get("hyperparams", {}) for _, given in known])
    entries = entries.drop(columns=[name for name in entries if str(name).startswith("env_kwargs")]).map(str)
    found: dict[str, tuple[PlannedRun, RunFolder]] = {}
    for (folder, given), name, row in zip(known, names, entries.to_dict("records"), strict=True):
        alike = entries[[other == name for other in names]]
        differing = [f"{key}={row[key]}" for key in alike if alike[key].nunique() > 1]
        method = ", ".join([name, *differing])
        control = bool(given.get("tags", {}).get("control", False))
        run = PlannedRun(str(given["env_id"]), method, int(given.get("seed") or 0), control)
        found[run.name] = run, folder
    return list(found.values())


def title(run: PlannedRun) -> str:
    """
    Name a run in a sentence.

    :param run: of the study
    :return: such as ``PPO, seed 0, on SlipperyAnt-v0``
    """
    return f"{run.method}, seed {run.seed}, on {run.label}"


def _read_run(run: PlannedRun, folder: RunFolder, epsilon: float) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    state = folder.state()
    row = {"env_id": run.label, "method": run.method, "seed": run.seed, **vars(state), "used": False}
    row["description"] = folder.description()
    if state.state != "finished":
        return {}, row
    tables = {
        "episodes": folder.episodes(),
        "progress": whole_networks(folder.progress()),
        "spectra": read_spectra(folder, epsilon),
    }
    row["used"] = len(tables["episodes"]) > 0
    tables["episodes"] = tables["episodes"].assign(task_index=tables["episodes"].task_index.clip(lower=0))
    keys: dict[str, Any] = {"env_id": run.label, "method": run.method, "seed": run.seed}
    return {name: table.assign(**keys) for name, table in tables.items()}, row


def whole_networks(progress: pd.DataFrame) -> pd.DataFrame:
    """
    Leave the columns out that a report does not show: those of single layers, and whatever is not about learning.

    :param progress: lines of a log
    :return: ``step`` and columns such as ``train/std`` or ``plasticity/policy/effective_rank``
    """
    parts = {str(name): str(name).split("/") for name in progress}
    measured = {"plasticity", "plasticity_control", "mitigation"}
    kept = [
        name
        for name, part in parts.items()
        if name == "step" or part[0] == "train" or (part[0] in measured and len(part) == 3)
    ]
    return progress[kept]


def read_spectra(folder: RunFolder, epsilon: float) -> pd.DataFrame:
    """
    Read the spectra of a run's timeline.

    :param folder: of the run
    :param epsilon: of the epsilon-rank
    :return: see :class:`Results`; one for each task, phase, network and kind, and step for periodic ones
    """
    columns = [*SPECTRUM_COLUMNS, *RANK_COLUMNS, "spectrum"]
    frames = []
    for attempt in folder.attempts():
        if (attempt.path / "curvature").is_dir():
            frame = load_spectra(attempt.path / "curvature", (epsilon,))
            names = {f"epsilon_rank_{epsilon:g}{suffix}": f"epsilon_rank{suffix}" for suffix in ("", "_low", "_high")}
            frames.append(attempt.part(frame.rename(columns=names).reindex(columns=columns)))
    whole = _whole(frames, columns)
    once = ["task_index", "phase", "network", "kind", "step"]
    return whole.drop_duplicates(once, keep="last", ignore_index=True).fillna({"task_index": 0})


def _listen(read: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any], list[str]]:
    """Read, and give every warning on and back as a sentence: it names a file that is damaged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tables, row = read()
    found = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    for message in found:
        warnings.warn(message, stacklevel=3)
    return tables, row, [f"Damaged: {message}." for message in found]


def _why_left_out(run: PlannedRun, row: dict[str, Any]) -> str:
    if row["state"] == "finished":
        return f"{title(run)}, is finished, but its records in {run.name} have no episode."
    reason = f": {row['error']}" if row["error"] else ""
    steps = row["description"].get("n_timesteps", 0)
    return f"{title(run)}, {WORDS[row['state']]} (step {row['step']:,} of {steps:,}){reason}."


def _remarks(run: PlannedRun, row: dict[str, Any], study: Study | None) -> list[str]:
    """Say where a run is not what the study file says now."""
    if study is None:
        return []
    description, found = row["description"], []
    if (steps := description.get("n_timesteps", study.n_timesteps)) != study.n_timesteps:
        found.append(f"{steps:,} steps, the study file says {study.n_timesteps:,}")
    asked = json.loads(json.dumps(study.methods[run.method], default=str))
    entry = {"algo": description.get("algo"), **description.get("hyperparams", {})}
    if any(entry.get(key) != value for key, value in asked.items() if key != "callback"):
        found.append("hyper-parameters that differ from the study file's")
    return [f"{title(run)}, was trained with {'; and with '.join(found)}. It is in the report."] if found else []


def _timeline(description: dict[str, Any]) -> Timeline:
    n_timesteps = int(description.get("n_timesteps") or 1)
    schedule = (description.get("hyperparams", {}).get("env_kwargs") or {}).get("schedule")
    period = schedule.get("period") if isinstance(schedule, dict) else None
    return Timeline(n_timesteps, int(description.get("tags", {}).get("period") or period or n_timesteps))


def _whole(frames: Iterable[pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=list(columns) or [*RUN, *SPECTRUM_COLUMNS, *RANK_COLUMNS, "spectrum"])
    return pd.concat(filled, ignore_index=True)


# -- tasks -------------------------------------------------------------------------------------------------------------


def task_table(
    settings: ReportSettings,
    timelines: dict[str, Timeline],
    methods: Sequence[str],
    episodes: pd.DataFrame,
    spectra: pd.DataFrame,
) -> pd.DataFrame:
    """
    Measure every task of every run.

    :param settings: of the report
    :param timelines: of the environments
    :param methods: in their order
    :param episodes: see :class:`Results`
    :param spectra: see :class:`Results`
    :return: a row per run and task: ``env_id``, ``method``, ``seed``, ``task_index``, ``task_value``, ``begin``,
        ``end``, ``final_return``, ``auc``, ``steps_to_recover`` (infinity: not within the task; NaN: no task before),
        ``best_known`` (best final return of any method's run in the same task), ``success`` (1, 0, or NaN without a
        final return), ``epsilon_rank`` of the report's network and kind at its start, and
        ``epsilon_rank_<network>_<kind>`` for all that were measured
    """
    rows: list[dict[str, Any]] = []
    for _, group in episodes.groupby(RUN, sort=False):
        run = {name: group[name].iloc[0] for name in RUN}
        rows += [{**run, **row} for row in _run_tasks(settings, timelines[run["env_id"]], group)]
    tasks = pd.DataFrame(rows)
    best = tasks.groupby(["env_id", "seed", "task_index"]).final_return.transform("max")
    success = (tasks.final_return >= best - settings.success_within).astype(float)
    tasks = tasks.assign(best_known=best, success=success.where(tasks.final_return.notna()))
    starts = spectra[spectra.phase == "start"]
    if len(starts):
        starts = starts.assign(name="epsilon_rank_" + starts.network.astype(str) + "_" + starts.kind.astype(str))
        keys = [*RUN, "task_index"]
        wide = starts.drop_duplicates([*keys, "name"]).pivot(index=keys, columns="name", values="epsilon_rank")
        tasks = tasks.join(wide.astype(float), on=keys)
    shown = f"epsilon_rank_{settings.network}_{settings.kind}"
    tasks["epsilon_rank"] = tasks[shown] if shown in tasks else math.nan
    order = tasks[RUN].assign(
        env_id=tasks.env_id.map(list(timelines).index), method=tasks.method.map(list(methods).index)
    )
    return tasks.loc[order.sort_values(RUN, kind="stable").index].reset_index(drop=True)


def _run_tasks(settings: ReportSettings, time: Timeline, episodes: pd.DataFrame) -> Iterable[dict[str, Any]]:
    before = math.nan
    groups = dict(list(episodes.groupby("task_index")))
    for index in range(time.n_tasks):
        begin, end = index * time.period, min((index + 1) * time.period, time.n_timesteps)
        group = groups.get(index, episodes.iloc[:0])
        steps, returns = group.step.to_numpy(dtype=float), group["return"].to_numpy(dtype=float)
        final = final_return(steps, returns, begin, end, settings.final_share)
        yield {
            "task_index": index,
            "task_value": float(group.task_value.iloc[0]) if len(group) else math.nan,
            "begin": begin,
            "end": end,
            "final_return": final,
            "auc": area_under_curve(returns, group.length.to_numpy(dtype=float)),
            "steps_to_recover": steps_to_recover(steps, returns, begin, end, before, settings.recovered_share),
        }
        before = final


def missing_measures(settings: ReportSettings, tasks: pd.DataFrame, spectra: pd.DataFrame) -> list[str]:
    """
    Say which tasks have no final return, and which have no spectrum at their start though others have one.

    :param settings: of the report
    :param tasks: see :func:`task_table`
    :param spectra: see :class:`Results`
    :return: sentences
    """
    found = []
    if lacking := int(tasks.final_return.isna().sum()):
        found.append(
            f"{lacking} of {len(tasks)} tasks have no final return: no episode ended in the last "
            f"{settings.final_share:.0%} of their steps."
        )
    if not (spectra.phase == "start").any():
        return found
    for name in [str(name) for name in tasks if str(name).startswith("epsilon_rank_")]:
        absent = tasks[tasks[name].isna()]
        if len(absent) == 0 or len(absent) == len(tasks):
            continue
        places = [
            f"{method}, seed {seed}, on {env_id} (task {', '.join(str(index + 1) for index in part.task_index)})"
            for (env_id, method, seed), part in absent.groupby(RUN, sort=False)
        ]
        matrix = name.removeprefix("epsilon_rank_").replace("_", " ")
        more = f"; and {len(places) - 5} more runs" if len(places) > 5 else ""
        found.append(f"No spectrum of the {matrix} at the start of: {'; '.join(places[:5])}{more}.")
    return found
