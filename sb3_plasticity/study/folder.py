"""
What a run leaves on disk, and how to read it back as one timeline.

::

    <env id>/<method>/seed_<n>/
        run.json             what was asked for: method, seed, hyper-parameters; versions, git commit, processor, and
                             those that it was resumed with
        state.json           how far it is: state, step, seconds, error
        from_0/              records of the first attempt: monitor.csv, progress.csv, curvature/, TensorBoard events
        from_409600/         those of the attempt that went on from step 409,600 after the first was killed
        checkpoints/         rl_model_<step>_steps.zip, with the statistics of a run that normalises
        model.zip            the final model
        log.txt              what the process printed

A killed attempt's records past the step that its successor went on from stay where they are; they are not part of the
timeline.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.checkpoints import step_of

# Seconds that a run's lock is waited for: whoever only looks at the run has it for an instant.
PATIENCE = 1.0
ATTEMPT = re.compile(r"from_(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class State:
    """
    How far a run is.

    :param state: ``"pending"``, ``"running"``, ``"finished"`` or ``"crashed"``
    :param step: environment steps, of those that count
    :param seconds: of training that led there, killed attempts' lost time left out
    :param error: last line of the traceback of a run that crashed
    """

    state: str = "pending"
    step: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Attempt:
    """
    Records of one process.

    :param path: their folder
    :param start: step it began at
    :param stop: step up to which (included) its records are part of the timeline; None for all of them
    """

    path: Path
    start: int
    stop: int | None


class RunFolder:
    """
    The folder of one run.

    :param path: of the folder
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def last_checkpoint(self) -> Path | None:
        """Find the checkpoint that a killed run goes on from."""
        return max(self.checkpoints.glob("*_steps.zip"), key=lambda path: step_of(path) or 0, default=None)

    @property
    def model(self) -> Path:
        """Where the final model is."""
        return self.path / "model.zip"

    @property
    def log(self) -> Path:
        """Where the output of the run's process is."""
        return self.path / "log.txt"

    def write_description(self, description: dict[str, Any]) -> None:
        """
        Say what the run is.

        :param description: method, seed, hyper-parameters, versions, ...
        """
        self._write("run.json", description)

    def description(self) -> dict[str, Any]:
        """Read what :meth:`write_description` wrote; empty for a run that was never begun."""
        return self._read("run.json")

    def write_state(self, state: State) -> None:
        """
        Say how far the run is.

        :param state: of the run
        """
        self._write("state.json", asdict(state))

    def state(self) -> State:
        """Say how far the run is; ``"running"`` only while a process holds its lock."""
        state = State(**self._read("state.json"))
        if state.state == "running" and not self.is_locked():
            return replace(state, state="pending")
        return state

    def new_attempt(self, step: int) -> Path:
        """
        Make the folder for the records of an attempt.

        :param step: it begins at
        :return: a folder that did not exist before
        """
        number = 1
        while True:
            path = self.path / (f"from_{step}" if number == 1 else f"from_{step}_{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
            number += 1

    def attempts(self) -> list[Attempt]:
        """List the attempts in order, each with the part of the timeline that its records are."""
        found = []
        for path in self.path.glob("from_*"):
            if match := ATTEMPT.fullmatch(path.name):
                found.append((int(match[1]), int(match[2] or 1), path))
        found.sort()
        stops: list[int | None] = [start for start, _, _ in found[1:]]
        return [Attempt(path, start, stop) for (start, _, path), stop in zip(found, [*stops, None], strict=False)]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """
        Keep other processes from training the same run; a killed process lets go by itself.

        :raises BlockingIOError: if another process has it
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self._lock, "w") as file:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(0.01)
            yield

    def is_locked(self) -> bool:
        """Say whether a process is training this run."""
        if not self._lock.exists():
            return False
        with open(self._lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def _write(self, name: str, content: dict[str, Any]) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + os.linesep, encoding="utf-8")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
