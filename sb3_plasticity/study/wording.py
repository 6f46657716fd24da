"""How the report says things: numbers with their intervals, and the sentences that it begins with."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from sb3_plasticity.study.statistics import Estimate, coverage
from sb3_plasticity.study.summary import estimate

# With fewer seeds, no sentence about an interval goes without a warning.
FEW = 5
# More methods than this are summed up in one sentence instead of having one each.
MANY = 4


def headlines(summary: pd.DataFrame, baseline: str) -> list[str]:
    """
    Say what the study found, of each method or, if there are many, of all together.

    :param summary: see :func:`~sb3_plasticity.study.summary.summarize`
    :param baseline: the method that the others are compared with
    :return: sentences
    """
    lines = []
    for env_id, part in summary.groupby("env_id", sort=False):
        where = f"On {env_id}: " if summary.env_id.nunique() > 1 else ""
        methods = list(dict.fromkeys(part.method))
        found = {
            method: last
            for method in methods
            if not math.isnan((last := estimate(part, method=method, measure="last_return_difference")).value)
        }
        if not found:
            ends = {method: estimate(part, method=method, measure="last_return") for method in methods}
            lines += [
                f"{where}{method}'s IQM return on the last task is {numbers(value)} ({_seeds(value)}); there is no "
                "finished run to compare it with."
                for method, value in ends.items()
            ]
        elif len(found) > MANY:
            lines.append(where + _verdicts(found, baseline))
        else:
            for method, last_task in found.items():
                mean = estimate(part, method=method, measure="mean_return_difference")
                lines.append(where + _comparison(method, last_task, mean, baseline))
    return lines


def _verdicts(found: dict[str, Estimate], baseline: str) -> str:
    more = [method for method, last in found.items() if last.excludes_zero and last.value > 0]
    less = [method for method, last in found.items() if last.excludes_zero and last.value < 0]
    open_ = len(found) - len(more) - len(less)
    parts = [f"of {open_} no difference to {baseline} can be told"] if open_ else []
    for names, way in ((more, "more"), (less, "less")):
        if names:
            verb = "returns" if len(names) == 1 else "return"
            parts.append(f"{len(names)} {verb} {way} than {baseline} ({', '.join(names)})")
    text = "; ".join(parts)
    return (
        f"Of {len(found)} methods, on the last task: {text}. A 95% interval over {_seeds(next(iter(found.values())))} "
        "decides, uncorrected for the number of methods."
    )


def _comparison(method: str, last: Estimate, mean: Estimate, baseline: str) -> str:
    if not last.has_interval:
        way = "more" if last.value >= 0 else "less"
        return (
            f"{method} returns {number(abs(last.value))} {way} than {baseline} on the last task ({_seeds(last)}: no "
            "interval, it may be chance)."
        )
    if last.excludes_zero:
        way = "more" if last.value >= 0 else "less"
        text = f"{method} returns {number(abs(last.value))} {way} than {baseline} on the last task"
    else:
        text = f"No difference between {method} and {baseline} can be told on the last task"
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


def _seeds(number: Estimate) -> str:
    return f"{number.n} seed{'s' * (number.n != 1)}"


def _verdict(number: Estimate) -> str:
    return "excludes" if number.excludes_zero else "contains"


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


def backwards(table: pd.DataFrame) -> str:
    """
    Say where tasks succeed more often from a low rank, against what tau-trainability expects.

    :param table: see :func:`~sb3_plasticity.study.ranks.trainability`
    :return: a sentence; empty where it is as expected
    """
    rows = table[table.method == "all"]
    found = [
        f"{row['rho']:g} ({percents(row['success_below'])} against {percents(row['success_reached'])})"
        for row in rows.to_dict("records")
        if row["success_below"].value > row["success_reached"].value
    ]
    if not found:
        return ""
    return (
        "Here the success rate is higher below the threshold than above it at ρ = "
        f"{', '.join(found)}: the opposite of what τ-trainability expects."
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


def numbers(each: Estimate, sign: bool = False) -> str:
    """
    Write a return with its interval.

    :param each: of a return or a difference
    :param sign: write + as well
    :return: such as ``+812 [+101, +1,510]``
    """
    return _bracketed(each, lambda value: number(value, sign))


def percent(share: float) -> str:
    """
    Write a share.

    :param share: between 0 and 1
    :return: such as ``25%``; a dash for NaN
    """
    return "–" if math.isnan(share) else f"{100 * share:.0f}%"


def percents(each: Estimate) -> str:
    """
    Write a share with its interval.

    :param each: between 0 and 1
    :return: such as ``25% [10, 40]``
    """
    text = percent(each.value)
    return f"{text} [{100 * each.low:.0f}, {100 * each.high:.0f}]" if each.has_interval else text


def correlation(each: Estimate) -> str:
    """
    Write a correlation or the like with its interval.

    :param each: between -1 and 1
    :return: such as ``−0.21 [−0.40, 0.02]``
    """
    return _bracketed(each, lambda value: f"{value:.2f}".replace("-", "−"))


def rank(each: Estimate) -> str:
    """
    Write an epsilon-rank with its interval.

    :param each: between 0 and 1
    :return: such as ``0.0312 [0.028, 0.0351]``
    """
    return _bracketed(each, lambda value: f"{value:.3g}")


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


def _bracketed(each: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(each.value):
        return "–"
    text = write(each.value)
    return f"{text} [{write(each.low)}, {write(each.high)}]" if each.has_interval else text
