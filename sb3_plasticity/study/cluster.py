"""The runs of a study on a Ray cluster."""

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sb3_plasticity.study.folder import RunFolder
from sb3_plasticity.study.scheduler import LOOK_EVERY, command, environment, note_loss
from sb3_plasticity.zoo.errors import UsageError


class RayScheduler:
    """
    One Ray task per run, each on one CPU and in a process of its own, as :class:`LocalScheduler` has them.

    Every node needs this package and sees the study's folder under the same path.

    :param study: the study's folder
    :param address: of the cluster: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``
    :param jobs: how many at a time; None for as many as the cluster has CPUs
    :raises UsageError: without Ray, or if there is no such cluster
    """

    def __init__(self, study: Path, address: str, jobs: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--ray: ray is not installed: pip install 'sb3-plasticity[ray]'") from None
        self._ray = ray
        self.study = study.absolute()
        self.jobs = jobs
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray {address}: {error}") from error

    def train(self, folders: Sequence[RunFolder], look: Callable[[], None]) -> None:
        """
        Train runs until all are finished or crashed; an interrupt ends them.

        :param folders: of the runs
        :param look: is called twice a second
        """
        ray = self._ray
        # A run that lost its node goes on from its last checkpoint when the study is started again.
        remote = ray.remote(num_cpus=1, max_retries=0)(train_here)
        waiting, running = [RunFolder(folder.path.absolute()) for folder in folders], dict[object, RunFolder]()
        try:
            while waiting or running:
                while waiting and (self.jobs is None or len(running) < self.jobs):
                    folder = waiting.pop(0)
                    running[remote.remote(command(self.study, folder)[1:], str(folder.log))] = folder
                done, _ = ray.wait(list(running), timeout=LOOK_EVERY)
                for task in done:
                    error = "its process ended before it did"
                    try:
                        ray.get(task)
                    except ray.exceptions.RayError as lost:
                        error = str(lost).strip().splitlines()[0]
                    note_loss(running.pop(task), error)
                look()
        finally:
            for task in running:
                ray.cancel(task)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=2 * LOOK_EVERY)
            look()


def train_here(arguments: list[str], log: str) -> None:
    """
    Train a run on the node that Ray chose.

    :param arguments: of this node's Python
    :param log: file for the process's output
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, env=environment())
        try:
            process.wait()
        finally:  # a cancelled task
            process.kill()
