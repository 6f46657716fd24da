"""Who trains the runs of a study: processes on this machine, or a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sb3_plasticity.study.folder import RunFolder, State

# Seconds between two looks at the runs.
LOOK_EVERY = 0.5
# Seconds that an interrupted process gets to end by itself.
GRACE = 10.0


class Scheduler(Protocol):
    """What the command needs of a scheduler."""

    def train(self, folders: Sequence[RunFolder], look: Callable[[], None]) -> None:
        """
        Train runs until all are finished or crashed.

        :param folders: of the runs
        :param look: is called every now and then
        """


class LocalScheduler:
    """
    One process per run, several at a time.

    :param study: the study's folder
    :param jobs: how many at a time
    """

    def __init__(self, study: Path, jobs: int) -> None:
        self.study = study
        self.jobs = jobs

    def train(self, folders: Sequence[RunFolder], look: Callable[[], None]) -> None:
        """
        Train runs until all are finished or crashed; an interrupt ends the processes.

        :param folders: of the runs
        :param look: is called twice a second
        """
        waiting, running = list(folders), dict[subprocess.Popen[bytes], RunFolder]()
        try:
            while waiting or running:
                for process in [process for process in running if process.poll() is not None]:
                    note_loss(running.pop(process), f"its process ended with status {process.returncode}")
                while waiting and len(running) < self.jobs:
                    folder = waiting.pop(0)
                    running[start(self.study, folder)] = folder
                look()
                time.sleep(LOOK_EVERY)
        finally:
            end(list(running))
            look()


def command(study: Path, run: RunFolder) -> list[str]:
    """
    Say how a run is trained in a process of its own.

    :param study: the study's folder
    :param run: folder of the run
    :return: the command line
    """
    return [sys.executable, "-m", "sb3_plasticity.study", "train", str(study), str(run.path.relative_to(study))]


def environment() -> dict[str, str]:
    """Return the variables of a run's process: one thread, since a core has a run of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start(study: Path, run: RunFolder) -> subprocess.Popen[bytes]:
    """
    Begin to train a run.

    :param study: the study's folder
    :param run: folder of the run; its ``log.txt`` gets the output
    :return: the process
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with open(run.log, "ab") as log:
        # In a session of its own: the terminal's interrupt is the scheduler's to hand on.
        return subprocess.Popen(
            command(study, run),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """
    End processes, those that do not end by themselves by force: their last checkpoints are whole.

    :param processes: to end
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def note_loss(folder: RunFolder, error: str) -> None:
    """
    Note that a run's process ended before the run did, if it could not do so itself.

    :param folder: of the run
    :param error: what is known
    """
    state = folder.state()
    if state.state == "pending":
        folder.write_state(State("crashed", state.step, state.seconds, error))
