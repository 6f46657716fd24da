"""
What the world looks like at a global step: pure, seeded functions ``step -> Task``.

A schedule never looks at an environment, a clock or a global random generator. The same specification gives the same
tasks in every process, for any number of environments, and in whatever order steps are asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cyclic",
    "LogUniform",
    "Schedule",
    "Sinusoid",
    "Table",
    "Task",
    "Uniform",
    "make_schedule",
]


@dataclasses.dataclass(frozen=True)
class Task:
    """
    One setting of the world.

    :param index: how many changes have happened since step 0
    :param value: the value of the changing physical parameter
    """

    index: int
    value: float


class Schedule(ABC):
    """A function of the global step. Instances are immutable, comparable and can be pickled."""

    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, step: int) -> Task:
        """
        Say which task is due at a global step.

        :param step: number of environment steps that the whole training has taken before this one
        """

    @abstractmethod
    def task(self, index: int) -> Task:
        """
        Give a task by its index, as needed to freeze it.

        :param index: number of the task, from 0
        :raises ValueError: if the schedule has no such task
        """

    @property
    @abstractmethod
    def lowest(self) -> float:
        """The smallest value that the schedule can ever give."""


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """
    A world that stays as it is.

    :param value: the value, at every step
    """

    kind: ClassVar[str] = "constant"
    value: float

    def __post_init__(self) -> None:
        _store(self, value=_number("value", self.value))

    @override
    def __call__(self, step: int) -> Task:
        return Task(0, self.value)

    @override
    def task(self, index: int) -> Task:
        _check_index(index, 1, "a constant schedule")
        return Task(0, self.value)

    @property
    @override
    def lowest(self) -> float:
        return self.value


class _Piecewise(Schedule):
    """One value for each stretch of ``period`` steps."""

    period: int
    _known: dict[int, Task]  # a task never changes once drawn, so it is drawn once

    @override
    def __call__(self, step: int) -> Task:
        index = int(step) // self.period
        task = self._known.get(index)
        if task is None:
            task = self._known[index] = Task(index, self._value(index))
        return task

    @override
    def task(self, index: int) -> Task:
        _check_index(index, None, f"schedule {self.kind!r}")
        return self(index * self.period)

    @abstractmethod
    def _value(self, index: int) -> float:
        """Value of the stretch that starts at ``index * period``."""


@dataclasses.dataclass(frozen=True)
class Uniform(_Piecewise):
    """
    Independent uniform draws.

    Draw ``i`` comes from a generator seeded with ``(seed, i)``, so no draw depends on having made the earlier ones.

    :param low: smallest value
    :param high: largest value, may equal ``low``
    :param period: global steps between changes
    :param seed: which sequence of draws
    """

    kind: ClassVar[str] = "uniform"
    low: float
    high: float
    period: int
    seed: int = 0
    _known: dict[int, Task] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _store(self, **_low_high(self.low, self.high), period=_period(self.period), seed=_natural("seed", self.seed))

    def _draw(self, index: int, low: float, high: float) -> float:
        return float(np.random.default_rng((self.seed, index)).uniform(low, high))

    def _value(self, index: int) -> float:
        return self._draw(index, self.low, self.high)

    @property
    @override
    def lowest(self) -> float:
        return self.low


@dataclasses.dataclass(frozen=True)
class LogUniform(Uniform):
    """
    Independent draws whose logarithm is uniform, as the frictions of Slippery Ant in Dohare et al. (Nature, 2024).

    :param low: smallest value, above 0
    :param high: largest value, may equal ``low``
    :param period: global steps between changes
    :param seed: which sequence of draws
    """

    kind: ClassVar[str] = "log_uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"low = {self.low} of schedule 'log_uniform': a logarithm needs low > 0")

    def _value(self, index: int) -> float:
        value = math.exp(self._draw(index, math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # exp(log(low)) may fall a rounding error outside


@dataclasses.dataclass(frozen=True)
class Cyclic(_Piecewise):
    """
    The given values in turn, over and over.

    :param values: the values
    :param period: global steps between changes
    """

    kind: ClassVar[str] = "cyclic"
    values: tuple[float, ...]
    period: int
    _known: dict[int, Task] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = _values(self.values)
        if values.ndim != 1:
            raise ValueError(f"values of schedule 'cyclic' have shape {values.shape}: accepted is one flat list")
        _store(self, values=tuple(values.tolist()), period=_period(self.period))

    def _value(self, index: int) -> float:
        return self.values[index % len(self.values)]

    @property
    @override
    def lowest(self) -> float:
        return min(self.values)


@dataclasses.dataclass(frozen=True)
class Table(_Piecewise):
    """
    The given values once; the last one stays.

    :param values: the values, or a list of such rows
    :param period: global steps between changes
    :param path: instead of ``values``, a CSV file with one row of numbers per line and no header
    :param row: which row, where there are several
    """

    kind: ClassVar[str] = "table"
    values: tuple[float, ...] = None  # type: ignore[assignment]  # either this or path
    period: int = None  # type: ignore[assignment]  # required, but follows an optional field
    path: str | None = None
    row: int = 0
    _known: dict[int, Task] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.values is None) == (self.path is None):
            raise ValueError(
                "schedule 'table' needs either 'values' or 'path': "
                f"got values = {self.values!r} and path = {self.path!r}"
            )
        rows = np.atleast_2d(_values(self.values) if self.path is None else _read_csv(self.path))
        row = _natural("row", self.row)
        if row >= len(rows):
            raise ValueError(f"row = {row} of schedule 'table': accepted is 0 to {len(rows) - 1}")
        # path and row are spent: a pickled schedule does not need the file
        _store(self, values=tuple(rows[row].tolist()), period=_period(self.period), path=None, row=0)

    @override
    def __call__(self, step: int) -> Task:
        return super().__call__(min(int(step), (len(self.values) - 1) * self.period))

    @override
    def task(self, index: int) -> Task:
        _check_index(index, len(self.values), "the table")
        return super().task(index)

    def _value(self, index: int) -> float:
        return self.values[index]

    @property
    @override
    def lowest(self) -> float:
        return min(self.values)


@dataclasses.dataclass(frozen=True)
class Sinusoid(Schedule):
    """
    A value that changes at every step: from the middle up to ``high``, down to ``low`` and back.

    The index counts completed periods; frozen tasks (:meth:`task`) therefore all have the middle value.

    :param low: smallest value
    :param high: largest value
    :param period: global steps in one oscillation
    """

    kind: ClassVar[str] = "sinusoid"
    low: float
    high: float
    period: int

    def __post_init__(self) -> None:
        _store(self, **_low_high(self.low, self.high), period=_period(self.period))

    @override
    def __call__(self, step: int) -> Task:
        index, phase = divmod(int(step), self.period)
        middle, amplitude = (self.high + self.low) / 2, (self.high - self.low) / 2
        return Task(index, middle + amplitude * math.sin(2 * math.pi * phase / self.period))

    @override
    def task(self, index: int) -> Task:
        _check_index(index, None, "schedule 'sinusoid'")
        return self(index * self.period)

    @property
    @override
    def lowest(self) -> float:
        return self.low


SCHEDULES: dict[str, type[Schedule]] = {
    schedule.kind: schedule for schedule in (Constant, LogUniform, Uniform, Cyclic, Table, Sinusoid)
}


def make_schedule(spec: str | Mapping[str, Any] | Schedule, defaults: Mapping[str, Any] | None = None) -> Schedule:
    """
    Build a schedule from a kind, or from a mapping with the kind and its keywords.

    :param spec: for example ``"log_uniform"`` or ``{"kind": "cyclic", "values": [0.1, 1.0], "period": 100_000}``
    :param defaults: keywords used where ``spec`` leaves them out and the kind has them
    :raises ValueError: for an unknown kind, an unknown or a missing keyword, or a value that is out of range
    """
    if isinstance(spec, Schedule):
        return spec
    keywords = {"kind": spec} if isinstance(spec, str) else spec
    if not isinstance(keywords, Mapping) or "kind" not in keywords:
        raise ValueError(
            f"schedule = {spec!r}: accepted is a kind ({', '.join(SCHEDULES)}) or a mapping with a kind and keywords"
        )
    keywords = dict(keywords)
    kind = keywords.pop("kind")
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise ValueError(f"schedule kind {kind!r}{_did_you_mean(kind, SCHEDULES)}: accepted are {', '.join(SCHEDULES)}")
    accepted = {field.name: field for field in dataclasses.fields(SCHEDULES[kind]) if field.init}  # type: ignore[arg-type]
    for name in keywords:
        if name not in accepted:
            hint = _did_you_mean(name, accepted)
            raise ValueError(f"keyword {name!r} of schedule {kind!r}{hint}: accepted are {', '.join(accepted)}")
    keywords = {name: value for name, value in (defaults or {}).items() if name in accepted} | keywords
    for name, field in accepted.items():
        needed = field.default is dataclasses.MISSING or (kind, name) == ("table", "period")
        if needed and name not in keywords:
            raise ValueError(f"schedule {kind!r} needs the keyword {name!r}: accepted are {', '.join(accepted)}")
    return SCHEDULES[kind](**keywords)


def _store(schedule: Schedule, **checked: Any) -> None:
    for name, value in checked.items():
        object.__setattr__(schedule, name, value)  # the way to normalise the fields of a frozen dataclass


def _did_you_mean(name: object, names: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} = {value!r} of the schedule: accepted is a finite number")
    return float(value)


def _natural(name: str, value: Any) -> int:
    # 1e6 is a float in Python and in YAML, so whole floats count as integers
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value).is_integer() or value < 0:
        raise ValueError(f"{name} = {value!r}: accepted is an integer from 0")
    return int(float(value))


def _period(value: Any) -> int:
    try:
        period = _natural("period", value)
    except ValueError:
        period = 0
    if period == 0:
        raise ValueError(f"period = {value!r} of the schedule: accepted is a positive integer, in global steps")
    return period


def _low_high(low: Any, high: Any) -> dict[str, float]:
    low, high = _number("low", low), _number("high", high)
    if low > high:
        raise ValueError(f"low = {low} > high = {high} in the schedule: accepted is low <= high")
    return {"low": low, "high": high}


def _values(values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"values = {values!r} of the schedule: accepted are numbers, in rows of equal length"
        ) from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"values = {values!r} of the schedule: accepted is a list of numbers, or a list of such rows")
    return _finite(array, "values")


def _read_csv(path: str) -> np.ndarray:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"path = {str(path)!r} of schedule 'table': there is no such file")
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        array = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, 0))
    except ValueError as error:
        raise ValueError(f"path = {str(path)!r} of schedule 'table': {error}") from error
    if array.size == 0:
        raise ValueError(f"path = {str(path)!r} of schedule 'table': the file holds no numbers")
    return _finite(array, f"path = {str(path)!r}")


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(f"{name} of the schedule: entry {where} is {array[where]}, accepted are finite numbers")
    return array


def _check_index(index: Any, length: int | None, owner: str) -> None:
    integer = isinstance(index, numbers.Integral) and not isinstance(index, bool)
    if not integer or index < 0 or (length is not None and index >= length):
        accepted = "an integer from 0" if length is None else f"0 to {length - 1}"
        raise ValueError(f"task = {index!r}: {owner} accepts {accepted}")
