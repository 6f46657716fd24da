"""From a study file to trained runs."""

from pathlib import Path

from sb3_plasticity.common.files import replacing
from sb3_plasticity.study.cluster import RayScheduler
from sb3_plasticity.study.folder import RunFolder
from sb3_plasticity.study.scheduler import LocalScheduler, Scheduler
from sb3_plasticity.study.spec import STUDY_FILE, Run, Study, read_study
from sb3_plasticity.study.table import StudyTable
from sb3_plasticity.study.train import train
from sb3_plasticity.zoo.errors import UsageError


def run_study(path: Path, out: Path | None, jobs: int | None, ray: str | None = None) -> int:
    """
    Train the runs of a study that are not finished.

    :param path: study file
    :param out: folder of the runs; None for ``runs/<name of the study>``
    :param jobs: how many runs at a time; None, on a cluster, for as many as it has CPUs
    :param ray: address of a Ray cluster; None to train here
    :return: exit status: 1 if a run crashed
    :raises UsageError: for what cannot be used
    """
    study = read_study(path)
    out = Path("runs") / study.name if out is None else out
    keep_study(path, study, out)
    runs = [(run, RunFolder(out / run.name)) for run in study.runs()]
    unfinished = [folder for _, folder in runs if folder.state().state != "finished"]
    print(f"{study.name}: {len(runs)} runs of {study.n_timesteps:,} steps in {out}, {len(unfinished)} to train")
    if not unfinished:
        return 0
    scheduler: Scheduler = LocalScheduler(out, jobs or 1) if ray is None else RayScheduler(out, ray, jobs)
    with StudyTable(runs, study.n_timesteps) as table:
        scheduler.train(unfinished, table.look)
    crashed = [(run, folder) for run, folder in runs if folder.state().state == "crashed"]
    for run, folder in crashed:
        print(f"{run.name}: {folder.state().error}; see {folder.log}")
    return 1 if crashed else 0


def keep_study(path: Path, study: Study, out: Path) -> None:
    """
    Copy a study file into the folder of its runs; more seeds, methods and environments may be added later.

    :param path: the file
    :param study: what it says
    :param out: folder of the runs
    :raises UsageError: if runs of another study, or with other hyper-parameters, are there
    """
    copy = out / STUDY_FILE
    if copy.is_file():
        kept = read_study(copy)
        for name in ("name", "n_timesteps", "env_kwargs", "curvature", "plasticity"):
            if getattr(kept, name) != getattr(study, name):
                raise UsageError(
                    f"{path}: {name} is {getattr(study, name)!r}, but the runs in {out} have {getattr(kept, name)!r}; "
                    "use another folder (-f)"
                )
        now = {run.name: run for run in study.runs()}
        for run in kept.runs():
            if run.name in now and now[run.name] != run and RunFolder(out / run.name).description():
                raise UsageError(
                    f"{path}: {run.name} was begun with {dict(run.entry)!r}, not {dict(now[run.name].entry)!r}; use -f"
                )
    elif out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: is not empty and not a study's folder; use another one (-f)")
    text = path.read_text(encoding="utf-8")
    if not copy.is_file() or copy.read_text(encoding="utf-8") != text:
        with replacing(copy) as temporary:
            temporary.write_text(text, encoding="utf-8")


def train_run(out: Path, name: str) -> int:
    """
    Train one run of a study, in this process.

    :param out: folder of the runs
    :param name: the run's folder in it
    :return: exit status
    :raises UsageError: if there is no such run, or another process is training it
    """
    study = read_study(out / STUDY_FILE)
    runs: dict[str, Run] = {run.name: run for run in study.runs()}
    if name not in runs:
        raise UsageError(f"{name}: accepted are the runs of {out / STUDY_FILE}, such as {next(iter(runs))}")
    try:
        train(study, runs[name], RunFolder(out / name))
    except BlockingIOError:
        raise UsageError(f"{name}: another process is training it") from None
    return 0
