"""How the report says things: numbers with their intervals, and the sentences that it begins with."""

import math
from collections.abc import Callable, Sequence

from sb3_plasticity.study.statistics import Estimate, coverage
from sb3_plasticity.study.summary import MethodSummary

# With fewer seeds, no sentence about an interval goes without a warning.
FEW = 5


def headlines(methods: Sequence[MethodSummary], baseline: str, several: bool) -> list[str]:
    """
    Say in a sentence or two for each method what the study found.

    :param methods: summaries
    :param baseline: the method that the others are compared with
    :param several: there are several environments: name them
    :return: sentences
    """
    compared = [row for row in methods if not math.isnan(row.last_return_difference.value)]
    if not compared:
        lines = (
            f"{_on(row, several)}{row.method}'s IQM return on the last task is {numbers(row.last_return)} "
            f"({_seeds(row.last_return)})"
            for row in methods
        )
        return [f"{line}; there is no finished run to compare it with." for line in lines]
    return [_comparison(row, baseline, several) for row in compared]


def _comparison(row: MethodSummary, baseline: str, several: bool) -> str:
    last, mean = row.last_return_difference, row.mean_return_difference
    way = "more" if last.value >= 0 else "less"
    text = f"{_on(row, several)}{row.method} returns {number(abs(last.value))} {way} than {baseline} on the last task"
    if not last.has_interval:
        return f"{text} ({_seeds(last)}: no interval, it may be chance)."
    text += (
        f": IQM of the differences between runs of the same seed {numbers(last, sign=True)}, {_seeds(last)}; "
        f"the interval {_verdict(last)} 0"
    )
    if last.n < FEW:
        text += f", but over {last.n} seeds such an interval misses the truth in {100 - coverage(last.n)}% of studies"
    text += "."
    if mean.has_interval:
        text += f" Over all tasks: {numbers(mean, sign=True)}, which {_verdict(mean)} 0."
    return text


def _on(row: MethodSummary, several: bool) -> str:
    return f"On {row.env_id}, " if several else ""


def _seeds(estimate: Estimate) -> str:
    return f"{estimate.n} seed{'s' * (estimate.n != 1)}"


def _verdict(estimate: Estimate) -> str:
    return "excludes" if estimate.excludes_zero else "contains"


def certainty(counts: Sequence[int]) -> str:
    """
    Say what the intervals are worth.

    :param counts: numbers of seeds, of each method on each environment
    :return: sentences
    """
    least, most = min(counts), max(counts)
    seeds = f"{least} seed{'s' * (least != 1)}" if least == most else f"between {least} and {most} seeds"
    text = f"Every method has {seeds}. "
    if least < 2:
        return text + "One seed has no interval: what it shows may be chance. Where intervals are missing, that is why."
    return text + (
        "Intervals are 95% percentile bootstraps over seeds, and with so few of them too narrow: over "
        f"{least} they hold the truth in about {coverage(least)}% of studies, not in 95% (simulated, for normally "
        f"distributed returns; over 3 seeds in {coverage(3)}%, over 5 in {coverage(5)}%, over 10 in {coverage(10)}%). "
        "They are not corrected for the number of comparisons on this page."
    )


def number(value: float, sign: bool = False) -> str:
    """
    Write a return.

    :param value: such as 1234.5
    :param sign: write + as well
    :return: such as ``1,234``; small ones with digits; a dash for NaN
    """
    if math.isnan(value):
        return "–"
    value += 0.0  # no -0
    digits = 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 1 else 2
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def numbers(estimate: Estimate, sign: bool = False) -> str:
    """
    Write a return with its interval.

    :param estimate: of a return or a difference
    :param sign: write + as well
    :return: such as ``+812 [+101, +1,510]``
    """
    return _bracketed(estimate, lambda value: number(value, sign))


def percent(share: float) -> str:
    """
    Write a share.

    :param share: between 0 and 1
    :return: such as ``25%``; a dash for NaN
    """
    return "–" if math.isnan(share) else f"{100 * share:.0f}%"


def percents(estimate: Estimate) -> str:
    """
    Write a share with its interval.

    :param estimate: between 0 and 1
    :return: such as ``25% [10, 40]``
    """
    text = percent(estimate.value)
    return f"{text} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]" if estimate.has_interval else text


def correlation(estimate: Estimate) -> str:
    """
    Write a correlation or the like with its interval.

    :param estimate: between -1 and 1
    :return: such as ``−0.21 [−0.40, 0.02]``
    """
    return _bracketed(estimate, lambda value: f"{value:.2f}".replace("-", "−"))


def rank(estimate: Estimate) -> str:
    """
    Write an epsilon-rank with its interval.

    :param estimate: between 0 and 1
    :return: such as ``0.0312 [0.028, 0.0351]``
    """
    return _bracketed(estimate, lambda value: f"{value:.3g}")


def recovery(steps: float, period: int) -> str:
    """
    Write the steps that recovering took.

    :param steps: infinity if it did not happen, NaN if the question does not arise
    :param period: of the tasks
    :return: such as ``40,000``, ``> 200,000`` or a dash
    """
    if math.isnan(steps):
        return "–"
    return f"{steps:,.0f}" if math.isfinite(steps) else f"> {period:,}"


def duration(seconds: float) -> str:
    """
    Write a time.

    :param seconds: of it
    :return: such as ``59 s``, ``12 min`` or ``2 h 05 min``
    """
    if math.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def short(steps: float) -> str:
    """
    Write a number of steps in few letters.

    :param steps: such as 1_200_000
    :return: such as ``1.2M``
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:.4g}{letter}"
    return f"{steps:.4g}"


def _bracketed(estimate: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(estimate.value):
        return "–"
    text = write(estimate.value)
    return f"{text} [{write(estimate.low)}, {write(estimate.high)}]" if estimate.has_interval else text
