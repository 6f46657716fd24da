"""What the runs of a method come to, and how far that is from the baseline's: tidy tables of estimates over seeds."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sb3_plasticity.study.statistics import Estimate, Statistic, improvement, interval, iqm

RUN = ["env_id", "method", "seed"]
# Shares of tasks are averaged: the interquartile mean of a few zeros and ones says little.
SHARES = ("success", "better")


def run_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """
    Sum up every run in one number for each measure.

    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`, or differences of such
    :return: a row per run: ``last_return`` (final return of the last task), ``mean_return`` (of all tasks), ``change``
        (last less first), ``auc``, and where ``tasks`` has them ``success`` and ``better`` (shares of tasks) and
        ``epsilon_rank`` at their starts
    """
    of_task = tasks.set_index(RUN).final_return
    index = tasks.set_index(RUN).task_index
    last, first = (index.groupby("env_id").transform(end) for end in ("max", "min"))
    table = pd.DataFrame(
        {"last_return": of_task[index == last], "mean_return": of_task.groupby(RUN, sort=False).mean()}
    )
    table["change"] = table.last_return - of_task[(index == first) & (first < last)]
    means = [name for name in ("auc", "success", "better", "epsilon_rank") if name in tasks]
    return table.join(tasks.groupby(RUN, sort=False)[means].mean())


def differences(tasks: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Take every task of every method less the baseline's of the same seed, which went through the same changes.

    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :param baseline: method
    :return: rows that have a partner, less the baseline's own: ``final_return`` and ``auc`` are differences,
        ``better`` is 1, 0.5 or 0 by the sign of the former
    """
    same = ["env_id", "seed", "task_index"]
    values = ["final_return", "auc"]
    partner = tasks[tasks.method == baseline].set_index(same)[values].add_suffix("_baseline")
    rows = tasks[tasks.method != baseline].join(partner, on=same, how="inner")
    rows = rows.assign(**{name: rows[name] - rows[f"{name}_baseline"] for name in values})
    rows = rows.assign(better=(np.sign(rows.final_return) + 1) / 2)
    return rows[[*RUN, "task_index", *values, "better"]].reset_index(drop=True)


def summarize(tasks: pd.DataFrame, runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every method on every environment.

    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :param runs: finished ones, with ``seconds``
    :param baseline: method
    :return: a row per environment, method and measure: ``value``, ``low``, ``high`` (95% interval over seeds) and
        ``n`` (seeds). Measures are those of :func:`run_table`, each also as ``<measure>_difference`` to the baseline's
        run of the same seed; ``improvement``, the probability that a run has a higher ``mean_return`` than one of the
        baseline; ``recovered`` (share of tasks, of those with a task before) and ``recovery_steps`` (median; infinity
        where half did not); ``seconds`` and ``seconds_ratio`` (to the baseline's run of the same seed), medians
    """
    own = run_table(tasks)
    rows = list(_estimates(own))
    if not (paired := differences(tasks, baseline)).empty:
        table = run_table(paired)
        rows += _estimates(table.rename(columns={name: f"{name}_difference" for name in table if name != "better"}))
    of = dict(list(own.groupby(["env_id", "method"], sort=False)))
    seconds = {key: part.set_index("seed").seconds for key, part in runs.groupby(["env_id", "method"])}
    for (env_id, method), part in of.items():
        steps = tasks[(tasks.env_id == env_id) & (tasks.method == method)].steps_to_recover.dropna()
        times = seconds[env_id, method]
        numbers = {
            "recovered": Estimate(float(np.isfinite(steps).mean()) if len(steps) else math.nan, n=len(part)),
            "recovery_steps": Estimate(median(steps), n=len(part)),
            "seconds": Estimate(float(times.median()), n=len(times)),
        }
        if method != baseline and (env_id, baseline) in of:
            other = of[env_id, baseline].mean_return
            numbers["improvement"] = improvement(part.mean_return.to_numpy(), other.to_numpy())
            ratio = times / seconds[env_id, baseline].reindex(times.index)
            numbers["seconds_ratio"] = Estimate(float(ratio.median()), n=int(ratio.count()))
        rows += [_row(env_id, method, name, estimate) for name, estimate in numbers.items()]
    return pd.DataFrame(rows)


def summarize_tasks(tasks: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every task of every method on every environment.

    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :param baseline: method
    :return: as :func:`summarize`, with ``task_index``; measures ``final_return``, ``auc``, ``difference`` (of the final
        return to the baseline's of the same seed), ``recovered`` and ``recovery_steps``
    """
    paired = differences(tasks, baseline).rename(columns={"final_return": "difference"})
    whole = tasks.merge(paired[[*RUN, "task_index", "difference"]], how="left", on=[*RUN, "task_index"])
    whole = whole.sort_values("task_index", kind="stable")
    rows = []
    for (env_id, task, method), part in whole.groupby(["env_id", "task_index", "method"], sort=False):
        steps = part.steps_to_recover.dropna()
        numbers = {name: interval(part[name].to_numpy()) for name in ("final_return", "auc", "difference")}
        numbers["recovered"] = Estimate(float(np.isfinite(steps).mean()) if len(steps) else math.nan, n=len(part))
        numbers["recovery_steps"] = Estimate(median(steps), n=len(part))
        rows += [{**_row(env_id, method, name, each), "task_index": task} for name, each in numbers.items()]
    return pd.DataFrame(rows)


def across_environments(tasks: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every method over environments in measures without a unit; runs are resampled within their environment.

    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :param baseline: method
    :return: ``method``, ``measure`` (``better``, ``success``) and the estimate, of methods that every environment has
    """
    environments = tasks.env_id.nunique()
    rows = []
    for table in (tasks, differences(tasks, baseline)):
        measure = "better" if "better" in table else "success"
        for method, part in table.groupby("method", sort=False):
            strata = [group[measure].groupby(group.seed).mean().to_numpy() for _, group in part.groupby("env_id")]
            if len(strata) == environments:
                rows.append(_row("all", method, measure, interval(*strata, statistic=np.mean)))
    return pd.DataFrame(rows)


def estimate(table: pd.DataFrame, **keys: object) -> Estimate:
    """
    Find a number in a table of estimates.

    :param table: see :func:`summarize`
    :param keys: its ``method``, ``measure``, ...
    :return: the estimate; NaN if it is not there
    """
    for name, value in keys.items():
        table = table[table[name] == value]
    if table.empty:
        return Estimate(math.nan)
    row = table.iloc[0]
    return Estimate(float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]))


def median(values: pd.Series) -> float:
    """
    Take the median of numbers that may be infinite.

    :param values: without NaN
    :return: the median; NaN of none
    """
    return float(np.median(values)) if len(values) else math.nan


def _estimates(table: pd.DataFrame) -> Iterator[dict[str, object]]:
    for (env_id, method), part in table.groupby(["env_id", "method"], sort=False):
        for name, values in part.items():
            statistic: Statistic = np.mean if name in SHARES else iqm
            yield _row(env_id, method, str(name), interval(values.to_numpy(), statistic=statistic))


def _row(env_id: object, method: object, measure: str, number: Estimate) -> dict[str, object]:
    return {"env_id": env_id, "method": method, "measure": measure, **vars(number)}
