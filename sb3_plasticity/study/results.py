"""The folders of runs as tidy tables: runs, episodes, progress, spectra and tasks. Nothing is written."""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
from gymnasium.envs.registration import load_env_creator

import sb3_plasticity.envs  # noqa: F401  (registers the environments)
from sb3_plasticity.curvature.records import load_spectra
from sb3_plasticity.study.spec import STUDY_FILE, PlannedRun, ReportSettings, Study, planned_runs, read_study
from sb3_plasticity.study.tasks import RUN, Timeline, period_of, task_table
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import STATE, RunFolder, joined

SPECTRUM = ["step", "task_index", "task_value", "phase", "network", "kind", "n_samples", "dim", "spectrum"]
RANK = ["epsilon_rank", "epsilon_rank_low", "epsilon_rank_high"]
# Of a log: what is about learning or a whole network, not about single layers.
WHOLE = r"^step$|^train/|^(?:plasticity|plasticity_control|mitigation)/[^/]+/[^/]+$"
WORDS = {"pending": "has not been finished", "running": "is still running", "crashed": "crashed"}


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
        (it is in the other tables), ``description`` (what it was asked for, and made with)
    :param episodes: a row per episode: the run, ``step`` at its end, ``return``, ``length``, ``task_index``,
        ``task_value``
    :param progress: a row per line of the logs: the run, ``step``, and what was logged of whole networks
    :param spectra: a row per spectrum: the run, ``step``, ``task_index``, ``task_value``, ``phase``, ``network``,
        ``kind``, ``epsilon_rank`` with ``_low`` and ``_high`` (what the quadrature leaves open) and ``spectrum``
    :param tasks: a row per run and task, see :func:`~sb3_plasticity.study.tasks.task_table`
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
        found = _find_runs(path)
    methods = list(study.methods if study is not None else dict.fromkeys(run.method for run, _ in found))
    settings = study.report if study is not None else ReportSettings(baseline=methods[0])
    if baseline is not None:
        if baseline not in methods:
            raise UsageError(f"`--baseline` must be one of {', '.join(methods)}, got {baseline!r}")
        settings = settings.model_copy(update={"baseline": baseline})

    rows, parts, problems, idle = [], [], list[str](), list[str]()
    for run, folder in found:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row, tables = _read_run(run, folder, settings.epsilon)
        rows.append(row)
        for message in dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning)):
            warnings.warn(message, stacklevel=2)  # it names a file that is damaged
            problems.append(f"Damaged: {message}.")
        if row["used"]:
            parts.append(tables)
            problems += _remarks(run, row["description"], study)
        elif row["state"] == "pending" and not folder.attempts():
            idle.append(title(run))
        else:
            problems.append(_why_left_out(run, row))
    problems += [f"Not begun: {'; '.join(idle)}."] if idle else []
    if not parts:
        raise UsageError(f"{path}: none of its {len(rows)} runs is finished, and a report needs one: {problems[0]}")
    runs = pd.DataFrame(rows)
    used = runs[runs.used]
    timelines = {env_id: _timeline(of) for env_id, of in dict(zip(used.env_id, used.description, strict=True)).items()}
    tables = {name: joined([each[name] for each in parts]) for name in parts[0]}
    for name in ("episodes", "spectra"):  # a run continues to the end of its rollout, a little past its last task
        last = tables[name].env_id.map({env_id: time.n_tasks for env_id, time in timelines.items()})
        tables[name] = tables[name][tables[name].task_index < last]
    tasks = task_table(settings, timelines, methods, tables["episodes"], tables["spectra"])
    return Results(
        name=path.name if study is None else study.name,
        settings=settings,
        methods=[method for method in methods if (used.method == method).any()],
        timelines=timelines,
        controls=frozenset(run.label for run, _ in found if run.control),
        parameter=_parameter(used.description.iloc[0]),
        text=text,
        runs=runs,
        tasks=tasks,
        problems=[*problems, *_missing(settings, tasks)],
        **tables,
    )


def _parameter(description: dict[str, Any]) -> str:
    """Name what changes: the keyword of the run, the default of its robot, or nothing in particular."""
    given = _env_kwargs(description).get("parameter")
    if given is None:
        try:
            entry_point = gym.spec(description["env_id"]).entry_point
            world = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        except (gym.error.Error, ImportError, AttributeError):  # a package that is not installed here
            world = None
        given = getattr(world, "default_parameter", "value of the task")
    return str(given).replace("_", " ")


# -- runs --------------------------------------------------------------------------------------------------------------


def _find_runs(path: Path) -> list[tuple[PlannedRun, RunFolder]]:
    """
    Find runs that no study planned.

    A method is an algorithm, or what its user called it (the tag ``method``), with the hyper-parameters in which its
    runs differ; of runs that are alike in everything the newest counts.
    """
    folders = [RunFolder(file.parent) for file in sorted(path.rglob(STATE))]
    known = [(folder, given) for folder in folders if (given := folder.description()).get("env_id")]
    if not known:
        raise UsageError(f"{path}: must be the folder of a study, or have runs' folders with a {STATE} below it")
    names = pd.Series([str(given.get("tags", {}).get("method") or given.get("algo")) for _, given in known])
    entries = pd.json_normalize([given.get("hyperparams", {}) for _, given in known])
    entries = entries.drop(columns=[name for name in entries if str(name).startswith("env_kwargs")]).map(str)
    differs = entries.groupby(names).transform("nunique") > 1
    found: dict[str, tuple[PlannedRun, RunFolder]] = {}
    for place, (folder, given) in enumerate(known):
        differing = [f"{key}={entries[key][place]}" for key in entries if differs[key][place]]
        method = ", ".join([names[place], *differing])
        control = bool(given.get("tags", {}).get("control", False))
        run = PlannedRun(str(given["env_id"]), method, int(given.get("seed") or 0), control)
        found[run.name] = run, folder
    return list(found.values())


def title(run: PlannedRun) -> str:
    """Name a run in a sentence, such as ``PPO, seed 0, on SlipperyAnt-v0``."""
    return f"{run.method}, seed {run.seed}, on {run.label}"


def _read_run(run: PlannedRun, folder: RunFolder, epsilon: float) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    keys: dict[str, Any] = dict(zip(RUN, (run.label, run.method, run.seed), strict=True))
    row = {**keys, **vars(folder.state()), "used": False, "description": folder.description()}
    if row["state"] != "finished":
        return row, {}
    episodes = folder.episodes()
    tables = {
        "episodes": episodes.assign(task_index=episodes.task_index.clip(lower=0)),
        "progress": folder.progress().filter(regex=WHOLE),
        "spectra": read_spectra(folder, epsilon),
    }
    return row | {"used": len(episodes) > 0}, {name: table.assign(**keys) for name, table in tables.items()}


def read_spectra(folder: RunFolder, epsilon: float) -> pd.DataFrame:
    """
    Read the spectra of a run's timeline.

    :param folder: of the run
    :param epsilon: of the epsilon-rank
    :return: see :class:`Results`; one for each task, phase, network and kind, and step for periodic ones
    """
    names = {f"epsilon_rank_{epsilon:g}{end}": f"epsilon_rank{end}" for end in ("", "_low", "_high")}
    found = [pd.DataFrame(columns=[*SPECTRUM, *RANK])]
    for attempt in folder.attempts():
        if (attempt.path / "curvature").is_dir():
            frame = load_spectra(attempt.path / "curvature", (epsilon,)).rename(columns=names)
            found.append(attempt.part(frame.reindex(columns=[*SPECTRUM, *RANK])))
    once = ["task_index", "phase", "network", "kind", "step"]
    return joined(found).drop_duplicates(once, keep="last", ignore_index=True).fillna({"task_index": 0})


def _why_left_out(run: PlannedRun, row: dict[str, Any]) -> str:
    if row["state"] == "finished":
        return f"{title(run)}, is finished, but its records in {run.name} have no episode."
    reason = f": {row['error']}" if row["error"] else ""
    steps = row["description"].get("n_timesteps", 0)
    return f"{title(run)}, {WORDS[row['state']]} (step {row['step']:,} of {steps:,}){reason}."


def _remarks(run: PlannedRun, description: dict[str, Any], study: Study | None) -> list[str]:
    """Say where a run is not what the study file says now."""
    if study is None:
        return []
    found = []
    if (steps := description.get("n_timesteps", study.n_timesteps)) != study.n_timesteps:
        found.append(f"{steps:,} steps, the study file says {study.n_timesteps:,}")
    asked = study.methods[run.method]
    entry = {"algo": description.get("algo"), **description.get("hyperparams", {})}
    if any(entry.get(key) != value for key, value in asked.items() if key != "callback"):
        found.append("hyper-parameters that differ from the study file's")
    return [f"{title(run)}, was trained with {'; and with '.join(found)}. It is in the report."] if found else []


def _missing(settings: ReportSettings, tasks: pd.DataFrame) -> list[str]:
    """Say which tasks have no final return, and which have no spectrum at their start though others have one."""
    found = []
    if lacking := int(tasks.final_return.isna().sum()):
        found.append(
            f"{lacking} of {len(tasks)} tasks have no final return: no episode ended in the last "
            f"{settings.final_share:.0%} of their steps."
        )
    for name in [str(name) for name in tasks if str(name).startswith("epsilon_rank_")]:
        places = [
            f"{method}, seed {seed}, on {env_id} (task {', '.join(str(index + 1) for index in part.task_index)})"
            for (env_id, method, seed), part in tasks[tasks[name].isna()].groupby(RUN, sort=False)
        ]
        if places:
            matrix = name.removeprefix("epsilon_rank_").replace("_", " ")
            more = f"; and {len(places) - 5} more runs" if len(places) > 5 else ""
            found.append(f"No spectrum of the {matrix} at the start of: {'; '.join(places[:5])}{more}.")
    return found


def _env_kwargs(description: dict[str, Any]) -> dict[str, Any]:
    return description.get("hyperparams", {}).get("env_kwargs") or {}


def _timeline(description: dict[str, Any]) -> Timeline:
    """Divide a run into tasks: by the period of its study, its schedule or, by default, its environment."""
    n_timesteps = int(description.get("n_timesteps") or 1)
    schedule = _env_kwargs(description).get("schedule")
    period = description.get("tags", {}).get("period") or (isinstance(schedule, dict) and schedule.get("period"))
    if not period:
        try:
            for package in description.get("gym_packages") or ():
                importlib.import_module(package)
            with gym.make(description["env_id"], disable_env_checker=True, **_env_kwargs(description)) as env:
                period = period_of(env)
        except Exception:  # a package that is not installed here, or somebody else's constructor
            period = None
    return Timeline(n_timesteps, int(period or n_timesteps))
