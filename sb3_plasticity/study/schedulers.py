"""Who trains the runs of a study: processes on this machine, a Ray cluster, or a Slurm job array."""

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from sb3_plasticity.study.spec import Resources
from sb3_plasticity.zoo.commands import ZOO, main
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder

# Seconds between two looks at the runs.
LOOK_EVERY = 0.5
# Seconds that an interrupted process gets to end by itself.
GRACE = 10.0
# Exit status of a process that did not end by itself: its worker died, its node went.
LOST = -1


class Job(Protocol):
    """A run in training."""

    def poll(self) -> int | None:
        """Return the exit status, negative if the process was killed or lost; None while it trains."""

    def stop(self) -> None:
        """Ask it to end; its last checkpoint is whole."""

    def wait(self) -> None:
        """Wait until it has ended, by force if it does not listen."""


class Scheduler(Protocol):
    """
    A place to train.

    :param slots: how many runs at a time; None to hand over all of them at once
    """

    slots: int | None

    def start(self, runs: Sequence[RunFolder]) -> Sequence[Job]:
        """Begin to train the runs of these folders, with a job for each."""


def train_all(runs: Sequence[RunFolder], scheduler: Scheduler, retries: int, look: Callable[[], None]) -> None:
    """
    Train runs until all are finished or crashed; an interrupt ends them.

    A run whose process was lost is resumed from its last checkpoint.

    :param runs: folders of the runs
    :param scheduler: who trains them
    :param retries: how often a lost run is started again
    :param look: is called twice a second
    """
    waiting, running, starts = list(runs), list[tuple[RunFolder, Job]](), Counter[Path]()
    try:
        while waiting or running:
            free = len(waiting) if scheduler.slots is None else scheduler.slots - len(running)
            if waiting and free > 0:
                batch, waiting = waiting[:free], waiting[free:]
                starts.update(run.path for run in batch)
                running += zip(batch, scheduler.start(batch), strict=True)
            for run, job in list(running):
                status = job.poll()
                if status is None:
                    continue
                running.remove((run, job))
                if run.state().state in ("finished", "crashed"):
                    continue
                if status < 0 and starts[run.path] <= retries:
                    waiting.append(run)
                else:
                    reason = "was lost" if status == LOST else f"ended with status {status}"
                    error = f"its process {reason}, after {starts[run.path]} start{'s' * (starts[run.path] > 1)}"
                    run.write_state(replace(run.state(), state="crashed", error=error))
            look()
            time.sleep(LOOK_EVERY)
    finally:
        for _, job in running:
            job.stop()
        for _, job in running:
            job.wait()
        look()


def _train_here(path: str, folder: str) -> int:
    """Train a run in this process, which a cluster started for nothing else; the folder has the user's own modules."""
    sys.path.insert(0, folder)
    with open(RunFolder(path).log, "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), 1 if stream is sys.stdout else 2)
    return main(ZOO, "sb3-plasticity", ["train", "-i", path])


# -- this machine ------------------------------------------------------------------------------------------------------


class LocalScheduler:
    """
    One process a run, several at a time.

    :param resources: of a run
    :param jobs: how many at a time; None for as many as there are cores for
    """

    def __init__(self, resources: Resources, jobs: int | None) -> None:
        self.slots: int | None = jobs or max(1, (os.cpu_count() or 1) // resources.num_cpus)
        self.threads = resources.num_cpus

    def start(self, runs: Sequence[RunFolder]) -> Sequence[Job]:
        """Start a process for each run; its output goes to the run's ``log.txt``."""
        return [_Process(run, self.threads) for run in runs]


class _Process:
    def __init__(self, run: RunFolder, threads: int) -> None:
        with open(run.log, "ab") as log:
            # In a session of its own: the terminal's interrupt is the scheduler's to hand on.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sb3_plasticity", "train", "-i", str(run.path)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                self._process.terminate()
            else:
                self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# -- Ray ---------------------------------------------------------------------------------------------------------------


class RayScheduler:
    """
    One Ray task a run, each in a worker of its own.

    Every node needs this package and sees the study's folder under the same path.

    :param address: of the cluster: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``
    :param resources: of a run
    :param jobs: how many at a time; None for as many as the cluster has room for
    :raises UsageError: without Ray, or if there is no such cluster
    """

    def __init__(self, address: str, resources: Resources, jobs: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--ray: ray is not installed: pip install 'sb3-plasticity[ray]'") from None
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray {address}: {error}") from error
        self.slots = jobs
        # The study itself starts lost runs again. A worker's threads and open files end with its run.
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "max_retries": 0,
            "max_calls": 1,
        }
        self._remote = ray.remote(**options)(_train_here)

    def start(self, runs: Sequence[RunFolder]) -> Sequence[Job]:
        """Start a Ray task for each run."""
        return [_RayTask(self._remote.remote(str(run.path.absolute()), os.getcwd())) for run in runs]


class _RayTask:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.RayTaskError:  # it raised: the run's own mistake
            return 1
        except ray.exceptions.RayError:
            return LOST

    def stop(self) -> None:
        import ray

        ray.cancel(self._reference)

    def wait(self) -> None:
        import ray

        if not ray.wait([self._reference], timeout=GRACE)[0]:
            ray.cancel(self._reference, force=True)


# -- Slurm -------------------------------------------------------------------------------------------------------------


class SlurmScheduler:
    """
    A job array, a run each, through submitit: a job that is preempted or runs out of time is queued again and resumed.

    :param folder: for submitit's files, which every node sees
    :param options: of ``sbatch``, such as ``{"partition": "gpu", "timeout_min": 240}``; ``cluster: local`` tries it
        out with processes on this machine
    :param resources: of a run
    :param jobs: how many at a time; None for as many as Slurm grants
    :raises UsageError: without submitit or Slurm, or for an option that neither knows
    """

    slots: int | None = None

    def __init__(self, folder: Path, options: Mapping[str, Any], resources: Resources, jobs: int | None) -> None:
        try:
            import submitit
        except ImportError:
            raise UsageError("--slurm: submitit is not installed: pip install 'sb3-plasticity[slurm]'") from None
        given = dict(options)
        cluster = str(given.pop("cluster", "slurm"))
        shared = submitit.AutoExecutor._typed_parameters()
        parameters: dict[str, Any] = {
            "name": "sb3-plasticity",
            "timeout_min": 24 * 60,
            "cpus_per_task": resources.num_cpus,
            "gpus_per_node": math.ceil(resources.num_gpus),
            "slurm_array_parallelism": jobs or 10_000,
            **{key if key in shared or key.startswith("slurm_") else f"slurm_{key}": given[key] for key in given},
        }
        try:
            self._executor = submitit.AutoExecutor(folder, cluster, **{f"{cluster}_max_num_timeout": 1000})
            self._executor.update_parameters(**parameters)
        except (NameError, ValueError, RuntimeError, AssertionError) as error:
            raise UsageError(f"--slurm: {error}") from error

    def start(self, runs: Sequence[RunFolder]) -> Sequence[Job]:
        """Submit a job array of the runs."""
        tasks = [_SlurmTask(str(run.path.absolute()), os.getcwd()) for run in runs]
        return [_SlurmJob(job) for job in self._executor.submit_array(tasks)]


class _SlurmTask:
    """What a Slurm job runs, and again after it was preempted: a run resumes from its last checkpoint."""

    def __init__(self, path: str, folder: str) -> None:
        self.path = path
        self.folder = folder

    def __call__(self) -> int:
        return _train_here(self.path, self.folder)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _SlurmJob:
    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # submitit's own, of a node that went, and whatever the job raised
            return LOST

    def stop(self) -> None:
        self._job.cancel(check=False)

    def wait(self) -> None:
        deadline = time.monotonic() + GRACE
        while not self._job.done() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
