"""
What a run leaves on disk, and how to read it back as one timeline.

::

    <algo>/<env id>_<n>/         or any other folder
        state.json               how far it is: state, step, seconds, error
        <env id>.zip             the final model
        best_model.zip           the best one, as evaluated
        rl_model_<step>_steps.zip  checkpoints, with the statistics of a run that normalises
        <env id>/                as rl-zoo has it: args.yml (options, and with which versions, git commit and processor
                                 the run was begun and resumed), config.yml (hyper-parameters), command.txt,
                                 vecnormalize.pkl
        0.monitor.csv, progress.csv, evaluations.npz, curvature/, TensorBoard events: records of the first attempt
        attempt_2_from_409600/   records of the attempt that went on from step 409,600 after the first was killed
        log.txt                  what the process printed, if a study started it

A killed attempt's records past the step that its successor went on from stay where they are; they are not part of the
timeline.
"""

import contextlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.description import ARGS, read_description, write_description
from sb3_plasticity.zoo.errors import UsageError

# Seconds that a run's lock is waited for: a process that only reads the run holds it for an instant.
PATIENCE = 1.0
ATTEMPT = re.compile(r"attempt_(\d+)_from_(\d+)")
CHECKPOINT = re.compile(r"(.+)_(\d+)_steps")
STATE = "state.json"
STATES = ("pending", "running", "finished", "crashed")
MONITOR = "0.monitor.csv"
EPISODE_COLUMNS = {"r": "return", "l": "length", "step": "step", "task_index": "task_index", "task_value": "task_value"}


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
    :param stop: step up to which (included) its records are part of the timeline; infinity for all of them
    """

    path: Path
    start: int
    stop: float

    def part(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep the rows of a table, by its column ``step``, that are part of the run's timeline."""
        return frame[(frame.step > self.start) & (frame.step <= self.stop)]


class RunFolder:
    """
    The folder of one run.

    :param path: of the folder
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # -- what and how far ----------------------------------------------------------------------------------------------

    def write_description(self, description: Mapping[str, Any]) -> None:
        """Say what the run is: see :meth:`sb3_plasticity.zoo.spec.RunSpec.begin`."""
        write_description(self.path / file_name(description["env_id"]), description)

    def description(self) -> dict[str, Any]:
        """Read what :meth:`write_description` wrote; empty without it and, with a warning, if it is damaged."""
        try:
            return read_description(self.files)
        except UsageError as error:
            warnings.warn(str(error), stacklevel=2)
            return {}

    @property
    def begun(self) -> bool:
        """Whether it is the folder of a run, and not one of rl-zoo's own."""
        return (self.path / STATE).is_file()

    def write_state(self, state: State) -> None:
        """Say how far the run is."""
        with replacing(self.path / STATE) as temporary:
            temporary.write_text(json.dumps(asdict(state), indent=1) + os.linesep, encoding="utf-8")

    def state(self) -> State:
        """Say how far the run is; ``"running"`` only while a process holds its lock."""
        if not self.begun:
            return State()
        try:
            written = dict(json.loads((self.path / STATE).read_text(encoding="utf-8")))
            state = State(**{item.name: written[item.name] for item in fields(State) if item.name in written})
            if state.state not in STATES or not isinstance(state.step, int) or not state.seconds >= 0:
                raise TypeError
        except (OSError, ValueError, TypeError) as error:
            _warn(self.path / STATE, f"it is not the state of a run: {error}")
            return State()
        if state.state == "running" and not self.is_locked():
            return replace(state, state="pending")
        return state

    # -- models --------------------------------------------------------------------------------------------------------

    @property
    def files(self) -> Path:
        """Folder with ``args.yml``, ``config.yml`` and the final statistics of a run that normalises."""
        found = list(self.path.glob(f"*/{ARGS}"))
        return found[0].parent if len(found) == 1 else self.path

    @property
    def model(self) -> Path:
        """Where the final model is."""
        return self.path / f"{self.files.name}.zip"

    @property
    def log(self) -> Path:
        """Where the output of the run's process is."""
        return self.path / "log.txt"

    def checkpoint(self, step: int) -> Path:
        """Say where the checkpoint of a number of environment steps is."""
        return self.path / f"rl_model_{step}_steps.zip"

    def checkpoints(self) -> list[Path]:
        """List the checkpoints, the newest first."""
        found = [path for path in self.path.glob("*_steps.zip") if step_of(path) is not None]
        return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)

    def last_checkpoint(self) -> Path | None:
        """Find the newest checkpoint."""
        return next(iter(self.checkpoints()), None)

    # -- records -------------------------------------------------------------------------------------------------------

    def new_attempt(self, step: int) -> Path:
        """
        Make the folder for the records of an attempt.

        :param step: it begins at
        :return: the run's folder for the first attempt, else one that did not exist before
        """
        number = len(self.attempts()) + 1
        path = self.path if number == 1 else self.path / f"attempt_{number}_from_{step}"
        path.mkdir(parents=True, exist_ok=number == 1)
        return path

    def attempts(self) -> list[Attempt]:
        """List the attempts in their order, each with the part of the timeline that its records are."""
        later = []
        for path in self.path.glob("attempt_*"):
            if match := ATTEMPT.fullmatch(path.name):
                later.append((int(match[1]), int(match[2]), path))
        first = [(1, 0, self.path)] if later or (self.path / MONITOR).is_file() else []
        found = [*first, *sorted(later)]
        stops = [min((start for _, start, _ in found[i + 1 :]), default=math.inf) for i in range(len(found))]
        return [Attempt(path, start, stop) for (_, start, path), stop in zip(found, stops, strict=True)]

    def episodes(self) -> pd.DataFrame:
        """
        Read the episodes of the run's timeline.

        :return: ``return``, ``length``, ``step`` (at the end), ``task_index`` and ``task_value`` (-1 and NaN in
            environments without tasks), in the order in which the episodes ended
        """
        frames = [pd.DataFrame(columns=[*EPISODE_COLUMNS.values()], dtype=float)]
        for attempt in self.attempts():
            frame = read_table(attempt.path / MONITOR).reindex(columns=list(EPISODE_COLUMNS))
            frame = frame.rename(columns=EPISODE_COLUMNS).dropna(subset=["return", "length", "step"])
            frames.append(attempt.part(frame))
        return joined(frames).fillna({"task_index": -1}).astype({"length": int, "step": int, "task_index": int})

    def progress(self, columns: Iterable[str] | None = None) -> pd.DataFrame:
        """
        Read the logged lines of the run's timeline.

        :param columns: keys such as ``train/loss``; None for all
        :return: ``step`` and the columns that there are; NaN where a line lacks one
        """
        frames = [pd.DataFrame(columns=["step"], dtype=float)]
        wanted = None if columns is None else set(columns)
        for attempt in self.attempts():
            frame = read_table(attempt.path / "progress.csv").rename(columns={"time/total_timesteps": "step"})
            if "step" in frame:
                kept = [name for name in frame if name == "step" or wanted is None or name in wanted]
                frames.append(attempt.part(frame[kept].dropna(subset=["step"])))
        return joined(frames)

    # -- one process at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """
        Keep other processes from training the same run; a killed process lets go by itself.

        :return: a context
        :raises UsageError: if another process has it
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock", timeout=PATIENCE)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UsageError(f"{self.path}: another process is training it") from None
        try:
            yield
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Say whether a process is training this run."""
        path = self.path / ".lock"
        if not path.exists():
            return False
        try:
            with filelock.FileLock(path, timeout=0):
                return False
        except filelock.Timeout:
            return True
        except OSError:  # only to be read: nobody trains here
            return False


def file_name(env_id: str) -> str:
    """
    Turn an environment's id into a file's name, as rl-zoo does.

    :param env_id: such as ``"package:Ant-v0"`` or ``"ALE/Pong-v5"``
    :return: such as ``"Ant-v0"`` or ``"ALE-Pong-v5"``
    """
    return env_id.rpartition(":")[2].replace("/", "-")


def step_of(model_path: Path) -> int | None:
    """Say at which step ``rl_model_<step>_steps.zip`` was saved; None for a model that is no checkpoint."""
    match = CHECKPOINT.fullmatch(model_path.stem)
    return int(match[2]) if match else None


def read_table(path: Path) -> pd.DataFrame:
    """
    Read a CSV file of numbers, whatever a kill or a bad disk has made of it.

    :param path: of the file
    :return: its rows; cells that are not numbers are NaN and lines that are not rows are left out, with one
        warning that names the file
    """
    if not path.is_file():
        return pd.DataFrame()
    text = path.read_bytes().decode("utf-8", errors="replace")
    # a kill may leave half a line at the end
    text = text[: text.rfind("\n") + 1]
    try:
        frame = pd.read_csv(io.StringIO(text), comment="#", on_bad_lines="skip")
    except (pd.errors.EmptyDataError, pd.errors.ParserError):
        frame = pd.DataFrame()
    numbers: pd.DataFrame = frame.apply(pd.to_numeric, errors="coerce")
    lines = sum(1 for line in text.splitlines() if line and not line.startswith("#"))
    if "\ufffd" in text or lines > len(frame) + 1 or bool((numbers.isna() & frame.notna()).any(axis=None)):
        _warn(path, "some of its lines are damaged and left out")
    return numbers


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put tables below each other; where none has a row, the columns are those of the first."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _warn(path: Path, reason: str) -> None:
    warnings.warn(f"{path}: {reason}", stacklevel=3)
