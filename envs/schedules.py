"""
What the world looks like at a global step: pure, seeded functions ``step -> Task``.

A schedule never looks at an environment, a clock or a global random generator. The same specification gives the same
tasks in every process, for any number of environments, and in whatever order steps are asked for.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from sb3_plasticity.common.checks import check_choice, check_names, check_number, must_be

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cyclic",
    "LogUniform",
    "Numbered",
    "Paralysis",
    "Schedule",
    "Sinusoid",
    "Table",
    "Task",
    "Uniform",
    "make_schedule",
]


ORDERS = ("cyclic", "once", "shuffled")


@dataclasses.dataclass(frozen=True)
class Task:
    """
    One setting of the world.

    :param index: how many changes have happened since step 0
    :param value: the value of the changing parameter, or the number of the variation of the world
    :param name: of the variation, where it has one
    """

    index: int
    value: float
    name: str = ""


class Schedule(ABC):
    """A function of the global step. Instances are immutable, comparable and can be pickled."""

    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, step: int) -> Task:
        """
        Say which task is due at a global step.

        :param step: number of environment steps that the whole training has taken before this one
        :return: the task, with its index and its value
        """

    @abstractmethod
    def task(self, index: int) -> Task:
        """
        Give a task by its index, as needed to freeze it.

        :param index: number of the task, from 0
        :return: the task
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
        _store(self, **_low_high(self.low, self.high), period=_period(self.period), seed=whole("seed", self.seed))

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
            raise must_be("low", "> 0 in a schedule of kind 'log_uniform'", self.low)

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
            raise must_be("values", "one flat list in a schedule of kind 'cyclic'", self.values)
        _store(self, values=tuple(values.tolist()), period=_period(self.period))

    def _value(self, index: int) -> float:
        return self.values[index % len(self.values)]

    @property
    @override
    def lowest(self) -> float:
        return min(self.values)


@dataclasses.dataclass(frozen=True)
class Paralysis(Cyclic):
    """
    Strength that is lost step by step and comes back: 100, 75, 50, 25, 0, 25, 50, 75 and again 100%.

    The scheme of the paralysis experiments of EPPO (Akgül et al., TMLR, 2025, arXiv 2503.01468), for
    ``parameter="actuator_strength"`` and some ``actuators``.

    :param values: factors on the strength
    :param period: global steps between changes
    """

    kind: ClassVar[str] = "paralysis"
    values: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.0, 0.25, 0.5, 0.75)
    period: int = 500_000
    _known: dict[int, Task] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Numbered(_Piecewise):
    """
    Variations of a world by their number, from 0: what a sequence of games or of permutations follows.

    :param period: global steps between changes
    :param n: how many variations there are; None for a new one in every task
    :param order: ``"cyclic"``, ``"once"`` (the last one stays) or ``"shuffled"``: every variation once in each round,
        in an order of its own
    :param seed: of the orders, and of what the wrappers of this package draw for a number
    """

    kind: ClassVar[str] = "numbered"
    period: int
    n: int | None = None
    order: str = "cyclic"
    seed: int = 0
    _known: dict[int, Task] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        n = None if self.n is None else whole("n", self.n, 1)
        if n is None and self.order != "cyclic":
            raise must_be("n", f"a whole number >= 1 if `order` is {self.order!r}", self.n)
        _store(self, period=_period(self.period), n=n, seed=whole("seed", self.seed))

    @override
    def __call__(self, step: int) -> Task:
        if self.order == "once" and self.n is not None:
            step = min(int(step), (self.n - 1) * self.period)
        return super().__call__(step)

    @override
    def task(self, index: int) -> Task:
        _check_index(index, self.n if self.order == "once" else None, f"a schedule of order {self.order!r}")
        return super().task(index)

    def _value(self, index: int) -> float:
        if self.n is None:
            return float(index)
        turn, place = divmod(index, self.n)
        if self.order == "shuffled":
            place = int(np.random.default_rng((self.seed, turn)).permutation(self.n)[place])
        return float(place)

    @property
    @override
    def lowest(self) -> float:
        return 0.0


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
            given = {"values": self.values, "path": self.path}
            raise must_be("schedule", "given either 'values' or 'path' if its kind is 'table'", given)
        rows = np.atleast_2d(_values(self.values) if self.path is None else _read_csv(self.path))
        row = whole("row", self.row)
        if row >= len(rows):
            raise must_be("row", f"a whole number from 0 to {len(rows) - 1}", row)
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
    schedule.kind: schedule
    for schedule in (Constant, LogUniform, Uniform, Cyclic, Table, Sinusoid, Paralysis, Numbered)
}


def make_schedule(spec: str | Mapping[str, Any] | Schedule, defaults: Mapping[str, Any] | None = None) -> Schedule:
    """
    Build a schedule from a kind, or from a mapping with the kind and its keywords.

    :param spec: for example ``"log_uniform"`` or ``{"kind": "cyclic", "values": [0.1, 1.0], "period": 100_000}``
    :param defaults: keywords to use if ``spec`` does not contain them and the kind accepts them
    :return: the schedule, or ``spec`` itself if it is one
    :raises ValueError: if the kind or a keyword is unknown, a keyword is missing, or a value is out of range
    """
    if isinstance(spec, Schedule):
        return spec
    keywords = {"kind": spec} if isinstance(spec, str) else spec
    if not isinstance(keywords, Mapping) or "kind" not in keywords:
        raise must_be("schedule", f"a kind ({', '.join(SCHEDULES)}) or a mapping with a kind and its keywords", spec)
    keywords = dict(keywords)
    kind = keywords.pop("kind")
    check_choice("kind of the schedule", kind, SCHEDULES)
    accepted = {field.name: field for field in dataclasses.fields(SCHEDULES[kind]) if field.init}  # type: ignore[arg-type]
    check_names(f"keyword of schedule {kind!r}", keywords, accepted)
    # a table's period has a default only because it follows a field that has one
    needed = [
        name
        for name, field in accepted.items()
        if field.default is dataclasses.MISSING or (name == "period" and field.default is None)
    ]
    keywords = {name: value for name, value in (defaults or {}).items() if name in needed} | keywords
    for name in needed:
        if name not in keywords:
            raise must_be(name, f"given for a schedule of kind {kind!r}", "nothing")
    return SCHEDULES[kind](**keywords)


def _store(schedule: Schedule, **checked: Any) -> None:
    for name, value in checked.items():
        object.__setattr__(schedule, name, value)  # the way to normalise the fields of a frozen dataclass


def _number(name: str, value: Any) -> float:
    check_number(name, value)
    return float(value)


def whole(name: str, value: Any, at_least: int = 0, unit: str = "") -> int:
    """
    Check a whole number; 1e6 is one, as Python and YAML read it as a float.

    :param name: of the argument
    :param value: as given
    :param at_least: smallest accepted number
    :param unit: for the message
    :return: the number as an int
    :raises ValueError: if it is none
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not float(value).is_integer() or value < at_least:
        raise must_be(name, f"a whole number >= {at_least}{unit}", value)
    return int(value)


def _period(value: Any) -> int:
    return whole("period", value, 1, " of global steps")


def _low_high(low: Any, high: Any) -> dict[str, float]:
    low, high = _number("low", low), _number("high", high)
    if low > high:
        raise must_be("low", f"<= `high` = {high}", low)
    return {"low": low, "high": high}


def _values(values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise must_be("values", "numbers, in rows of equal length", values) from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise must_be("values", "a list of numbers, or a list of such rows", values)
    return _finite(array, "values")


def _read_csv(path: str) -> np.ndarray:
    file = Path(path).expanduser()
    if not file.is_file():
        raise must_be("path", "a file", str(path))
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        array = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, 0))
    except ValueError as error:
        raise ValueError(f"{must_be('path', 'a table of numbers', str(path))}: {error}") from error
    if array.size == 0:
        raise must_be("path", "a table of numbers, not an empty one", str(path))
    return _finite(array, f"values of {path}")


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(f"{must_be(name, 'finite numbers', float(array[where]))} at {where}")
    return array


def _check_index(index: Any, length: int | None, owner: str) -> None:
    integer = isinstance(index, numbers.Integral) and not isinstance(index, bool)
    if not integer or index < 0 or (length is not None and index >= length):
        accepted = ">= 0" if length is None else f"from 0 to {length - 1}"
        raise must_be("task", f"a whole number {accepted} for {owner}", index)
