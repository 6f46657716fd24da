"""From a study file to trained runs."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import get_class_by_name

from sb3_plasticity.callbacks.curvature import CurvatureCallback
from sb3_plasticity.callbacks.plasticity import PlasticityCallback
from sb3_plasticity.common.checks import check_keywords, must_be, nearest, one_of
from sb3_plasticity.common.files import replacing
from sb3_plasticity.envs.schedules import SCHEDULES
from sb3_plasticity.study.progress import StudyProgress
from sb3_plasticity.study.schedulers import LocalScheduler, RayScheduler, Scheduler, SlurmScheduler, train_all
from sb3_plasticity.study.spec import STUDY_FILE, PlannedRun, Study, planned_runs, read_study
from sb3_plasticity.study.tasks import period_of
from sb3_plasticity.zoo import config
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder
from sb3_plasticity.zoo.spec import RunSpec

MEASUREMENTS = {"curvature": CurvatureCallback, "plasticity": PlasticityCallback}


def run_study(
    path: Path,
    out: Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> int:
    """
    Train the runs of a study that are not finished.

    :param path: study file
    :param out: folder of the runs; None for ``runs/<name of the study>``
    :param jobs: how many runs at a time; None for as many as there is room for
    :param ray: address of a Ray cluster
    :param slurm: options of Slurm jobs; without these and without ``ray``, the runs are trained here
    :return: exit status: 1 if a run crashed
    :raises UsageError: for what cannot be used
    """
    study = read_study(path)
    specs = prepare(study, str(path))
    out = Path("runs") / study.name if out is None else out
    try:
        runs = begin(path, out, specs)
        unfinished = [run for run in runs.values() if run.state().state != "finished"]
        print(f"{study.name}: {len(runs)} runs of {study.n_timesteps:,} steps in {out}, {len(unfinished)} to train")
        if unfinished:
            scheduler: Scheduler
            if ray is not None:
                scheduler = RayScheduler(ray, study.resources, jobs)
            elif slurm is not None:
                scheduler = SlurmScheduler(out / "slurm", slurm, study.resources, jobs)
            else:
                scheduler = LocalScheduler(study.resources, jobs)
            with StudyProgress(runs, study.n_timesteps) as progress:
                train_all(unfinished, scheduler, study.resources.retries, progress.look)
    except OSError as error:  # a full disk, a folder that can only be read
        raise UsageError(f"{error.filename or out}: {error.strerror or error}") from error
    crashed = {name: run for name, run in runs.items() if run.state().state == "crashed"}
    for name, run in crashed.items():
        print(f"{name}: {run.state().error}; see {run.log}")
    print(f"Its report: sb3-plasticity study report {out}")
    return 1 if crashed else 0


# -- before run 1 ------------------------------------------------------------------------------------------------------


def prepare(study: Study, where: str) -> dict[PlannedRun, RunSpec]:
    """
    Check everything in a study that can be checked without training, and say what each run is.

    :param study: what is asked for
    :param where: the study file, for messages
    :return: specifications of the runs
    :raises UsageError: for an environment, algorithm, policy, callback or keyword that cannot be used
    """
    try:
        for package in study.gym_packages:
            _import(package, f"`gym_packages`: {package}")
        for env_id in study.env_ids:
            if env_id not in gym.registry:
                raise ValueError(f"`env_ids` must be registered, got {env_id!r}{nearest(env_id, gym.registry)}")
        for name, callback in MEASUREMENTS.items():
            if (keywords := getattr(study, name)) is not None:
                check_keywords(callback, keywords, f"`{name}`")
                callback(**keywords)
        worlds = {(run.env_id, run.control): run for run in planned_runs(study)}
        periods = {world: _period(study, run) for world, run in worlds.items()}
        for method, entry in study.methods.items():
            for env_id in study.env_ids:
                _check_method(entry, f"{where}: methods: {method}", env_id)
        for period in periods.values():
            if study.n_timesteps < period:
                raise must_be("n_timesteps", f"at least a period of the tasks, {period}", study.n_timesteps)
            n_tasks = -(-study.n_timesteps // period)
            for task in study.report.tasks or ():
                if task >= n_tasks:
                    raise must_be("report.tasks", f"between 0 and {n_tasks - 1}", task)
        return {run: _specify(study, run, periods[run.env_id, run.control]) for run in planned_runs(study)}
    except UsageError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{where}: {error}") from error


def _check_method(entry: Mapping[str, Any], where: str, env_id: str) -> None:
    """Check a method's entry, which is rl-zoo's with ``algo``, its policy and callbacks included."""
    algo = entry["algo"]
    if not isinstance(algo, str) or algo not in ALGOS:
        raise UsageError(f"{where}: {must_be('algo', one_of(sorted(ALGOS)), algo)}{nearest(algo, ALGOS)}")
    if not isinstance(policy := entry.get("policy"), str):
        raise UsageError(f"{where}: {must_be('policy', 'the name of a policy', policy)}")
    config.check_entry({key: value for key, value in entry.items() if key != "algo"}, where, algo, env_id)
    config.parse_entry({key: value for key, value in entry.items() if key != "algo"}, where)
    if "." in policy:
        _import(policy, f"{where}: policy: {policy}")
    callbacks = entry.get("callback") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name, keywords = next(iter(callback.items())) if isinstance(callback, Mapping) and callback else (callback, {})
        if not isinstance(name, str) or not isinstance(keywords or {}, Mapping):
            raise UsageError(f"{where}: {must_be('callback', 'the name of a class, alone or with keywords', callback)}")
        check_keywords(_import(name, f"{where}: callback: {name}"), keywords or {}, f"{where}: callback: {name}")


def _import(name: str, where: str) -> Any:
    """Import a module or, from one, a class."""
    try:
        return get_class_by_name(name) if "." in name and "gym_packages" not in where else importlib.import_module(name)
    except Exception as error:  # somebody else's module may do anything
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error


def _period(study: Study, run: PlannedRun) -> int:
    """Make the environment and ask for its tasks; without tasks a run is a single one."""
    try:
        env = gym.make(run.env_id, disable_env_checker=True, **_seeded(study, run))
    except Exception as error:  # somebody else's constructor may do anything
        raise UsageError(f"`env_kwargs` of {run.env_id}: {error}") from error
    with env:
        period = period_of(env)
    return period or study.n_timesteps


def _seeded(study: Study, run: PlannedRun) -> dict[str, Any]:
    """Keywords of a run's environment: a schedule that is drawn gets the run's seed, unless it has one."""
    kwargs = {**study.env_kwargs, **((study.control or {}) if run.control else {})}
    schedule = kwargs.get("schedule")
    if isinstance(schedule, str):
        schedule = {"kind": schedule}
    if isinstance(schedule, Mapping):
        kind = SCHEDULES.get(schedule.get("kind", ""))
        if kind is not None and "seed" in {field.name for field in dataclasses.fields(kind)}:
            kwargs["schedule"] = {"seed": run.seed, **schedule}
    return kwargs


def _specify(study: Study, run: PlannedRun, period: int) -> RunSpec:
    entry = {key: value for key, value in study.methods[run.method].items() if key != "algo"}
    own = entry.get("callback") or []
    measured = {f"sb3_plasticity.{MEASUREMENTS[name].__name__}": getattr(study, name) for name in MEASUREMENTS}
    entry["callback"] = [{name: dict(keywords)} for name, keywords in measured.items() if keywords is not None]
    entry["callback"] += own if isinstance(own, list) else [own]
    return RunSpec(
        algo=study.methods[run.method]["algo"],
        env_id=run.env_id,
        seed=run.seed,
        n_timesteps=study.n_timesteps,
        hyperparams={**entry, "env_kwargs": _seeded(study, run)},
        save_freq=study.save_freq,
        eval_freq=-1,
        num_threads=study.resources.num_cpus,
        gym_packages=list(study.gym_packages),
        tags={"study": study.name, "method": run.method, "control": run.control, "period": period},
    )


def begin(path: Path, out: Path, specs: Mapping[PlannedRun, RunSpec]) -> dict[str, RunFolder]:
    """
    Make the folders of runs, and copy the study file beside them; more runs may be added to a study later.

    :param path: the study file
    :param out: folder of the runs
    :param specs: of the runs
    :return: the folders by name
    :raises UsageError: if something else is there, or runs that were begun with other settings
    """
    if out.exists() and not (out / STUDY_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is not empty and not a study's folder; use another one (-f)")
    folders = {run.name: RunFolder(out / run.name) for run in specs}
    fresh = []
    for folder, spec in zip(folders.values(), specs.values(), strict=True):
        if folder.attempts() and folder.description():
            spec.check_begun(folder)
        else:
            fresh.append((folder, spec))
    text = path.read_text(encoding="utf-8")
    if not (out / STUDY_FILE).is_file() or (out / STUDY_FILE).read_text(encoding="utf-8") != text:
        with replacing(out / STUDY_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for folder, spec in fresh:
        spec.begin(folder)
    return folders
