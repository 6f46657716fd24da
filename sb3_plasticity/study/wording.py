"""How the report writes numbers with their intervals; its sentences are in the templates."""

import math
from collections.abc import Callable

import jinja2

from sb3_plasticity.study.statistics import Estimate, coverage


def number(value: float) -> str:
    """Write a return, such as ``1,234``; small ones with digits."""
    digits = 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 1 else 2
    return f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """Write a difference, such as ``+1,234``."""
    return f"{'+' * (value >= 0)}{number(value)}"


def duration(seconds: float) -> str:
    """Write a number of seconds, such as ``59 s``, ``12 min`` or ``2 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


WRITERS: dict[str, Callable[[float], str]] = {
    "number": number,
    "signed": signed,
    "duration": duration,
    "percent": lambda share: f"{100 * share:.0f}%",
    "correlation": "{:.2f}".format,
    "rank": "{:.3g}".format,
    "p": "{:.2g}".format,
}


def written(given: object, writer: str) -> object:
    """
    Write a number, and its interval if it has one.

    :param given: a number, an estimate, or a text or count, which is left as it is
    :param writer: which of ``WRITERS``; ``"text"`` for what is left as it is
    :return: such as ``+812 [+101, +1,510]`` or ``25% [10, 40]``; a dash where there is nothing
    """
    value = given.value if isinstance(given, Estimate) else given
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if writer == "text" or not isinstance(value, (int, float)):
        return value

    def write(each: float) -> str:
        return WRITERS[writer](each + 0.0).replace("-", "−")  # no -0

    text = write(value)
    if not isinstance(given, Estimate) or not given.has_interval:
        return text
    return f"{text} [{write(given.low).rstrip('%')}, {write(given.high).rstrip('%')}]"


def templates() -> jinja2.Environment:
    """Make the environment that the report's templates are rendered in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb3_plasticity.study", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["written"] = written
    environment.globals["coverage"] = coverage
    return environment
