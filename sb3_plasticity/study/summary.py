"""What the runs of a method come to, and how far that is from the baseline's, with intervals over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import cast

import numpy as np
import pandas as pd

from sb3_plasticity.study.spec import Study
from sb3_plasticity.study.statistics import Estimate, interval, paired

NOTHING = Estimate(math.nan)


@dataclass(frozen=True)
class MethodSummary:
    """
    A method on an environment. Every estimate takes one number of each seed, the IQM of them unless it says otherwise.

    :param env_id: environment
    :param method: name
    :param seeds: of the finished runs
    :param mean_return: final return, mean over a run's tasks
    :param last_return: final return of a run's last task
    :param change: final return of the last task less that of the first
    :param auc: area under the curve, mean over a run's tasks
    :param mean_return_difference: to the baseline's run of the same seed, mean over tasks
    :param last_return_difference: to the baseline's run of the same seed, last task
    :param change_difference: to the baseline's run of the same seed
    :param auc_difference: to the baseline's run of the same seed, mean over tasks
    :param better: share of tasks with a higher final return than the baseline in the same task, mean over seeds
    :param success: share of tasks that succeeded, mean over seeds
    :param recovered: share of tasks, of those with a task before, that recovered; of all seeds together
    :param recovery_steps: median of the steps that took; infinity where half of the tasks or more did not
    :param epsilon_rank: at task starts, mean over a run's tasks
    :param seconds: of a run, median
    :param seconds_ratio: to the baseline's run of the same seed, median
    """

    env_id: str
    method: str
    seeds: tuple[int, ...]
    mean_return: Estimate
    last_return: Estimate
    change: Estimate
    auc: Estimate
    mean_return_difference: Estimate
    last_return_difference: Estimate
    change_difference: Estimate
    auc_difference: Estimate
    better: Estimate
    success: Estimate
    recovered: float
    recovery_steps: float
    epsilon_rank: Estimate
    seconds: float
    seconds_ratio: float


@dataclass(frozen=True)
class TaskSummary:
    """
    A task of a method on an environment; estimates are IQMs over seeds.

    :param env_id: environment
    :param method: name
    :param task_index: of the task
    :param final_return: of the task
    :param auc: area under the curve
    :param difference: of the final return to that of the baseline's run of the same seed
    :param recovered: share of seeds that recovered; NaN without a task before
    :param recovery_steps: median; infinity where half of the seeds or more did not
    """

    env_id: str
    method: str
    task_index: int
    final_return: Estimate
    auc: Estimate
    difference: Estimate
    recovered: float
    recovery_steps: float


def method_summaries(study: Study, tasks: pd.DataFrame, runs: pd.DataFrame) -> list[MethodSummary]:
    """
    Sum up every method on every environment that it has a finished run on.

    :param study: what was asked for
    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :param runs: finished ones, with ``env_id``, ``method``, ``seed`` and ``seconds``
    :return: in the study's order
    """
    found = []
    for env_id in study.env_ids:
        for method in study.methods:
            own, baseline = _rows(tasks, env_id, method), _rows(tasks, env_id, study.report.baseline)
            if len(own):
                times = _rows(runs, env_id, method), _rows(runs, env_id, study.report.baseline)
                found.append(_method_summary(study, own, baseline, *times))
    return found


def _method_summary(
    study: Study, own: pd.DataFrame, baseline: pd.DataFrame, runs: pd.DataFrame, baseline_runs: pd.DataFrame
) -> MethodSummary:
    spec = study.report
    env_id, method = own.env_id.iloc[0], own.method.iloc[0]
    is_baseline = method == spec.baseline
    numbers = {name: interval(values.to_numpy()) for name, values in _by_seed(own).items()}
    differences = {} if is_baseline else _differences(own, baseline)
    column = f"epsilon_rank_{spec.network}_{spec.kind}"
    ranks = own.groupby("seed")[column].mean() if column in own else pd.Series(dtype=float)
    recovered, recovery_steps = recovery(own.steps_to_recover)
    seconds = runs.set_index("seed").seconds
    ratio = seconds / baseline_runs.set_index("seed").seconds.reindex(seconds.index)
    return MethodSummary(
        env_id,
        method,
        tuple(int(seed) for seed in own.seed.unique()),
        **numbers,
        **{f"{name}_difference": differences.get(name, NOTHING) for name in numbers},
        better=differences.get("better", NOTHING),
        success=interval(own.groupby("seed").success.mean().to_numpy(), statistic=np.mean),
        recovered=recovered,
        recovery_steps=recovery_steps,
        epsilon_rank=interval(ranks.to_numpy()),
        seconds=float(seconds.median()),
        seconds_ratio=math.nan if is_baseline else float(ratio.median()),
    )


def _rows(frame: pd.DataFrame, env_id: str, method: str) -> pd.DataFrame:
    return frame[(frame.env_id == env_id) & (frame.method == method)]


def _by_seed(tasks: pd.DataFrame) -> dict[str, pd.Series]:
    """Number per seed, of a method's tasks or of differences between two methods'."""
    finals = tasks.pivot(index="seed", columns="task_index", values="final_return")
    last, first = finals.columns.max(), finals.columns.min()
    return {
        "mean_return": finals.mean(axis=1),
        "last_return": finals[last],
        "change": finals[last] - finals[first] if last > first else finals[last] * math.nan,
        "auc": tasks.groupby("seed").auc.mean(),
    }


def _differences(own: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, Estimate]:
    """Take differences task by task, so that both sides are of the same frictions, then a number of each seed."""
    by = ["seed", "task_index"]
    left, right = own.set_index(by), baseline.set_index(by)
    table = pd.DataFrame({name: (left[name] - right[name]) for name in ("final_return", "auc")}).reset_index()
    table = table[table.seed.isin(set(own.seed) & set(baseline.seed))]
    if table.empty:
        return {}
    found = {name: interval(values.to_numpy()) for name, values in _by_seed(table).items()}
    return found | {"better": interval(better_shares(own, baseline).to_numpy(), statistic=np.mean)}


def better_shares(own: pd.DataFrame, baseline: pd.DataFrame) -> pd.Series:
    """
    Share of a seed's tasks in which a method's final return is above the baseline's; equal ones count half.

    It has no unit, and so can be averaged over environments.

    :param own: task table of one method on one environment
    :param baseline: of the baseline
    :return: (seeds,) by seed
    """
    by = ["seed", "task_index"]
    difference = paired(own.set_index(by).final_return, baseline.set_index(by).final_return)
    return ((np.sign(difference) + 1) / 2).groupby("seed").mean()


def task_summaries(study: Study, tasks: pd.DataFrame) -> list[TaskSummary]:
    """
    Sum up every task of every method on every environment.

    :param study: what was asked for
    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :return: by environment, task and method
    """
    found = []
    for key, group in tasks.groupby(["env_id", "task_index"], sort=False):
        env_id, index = cast("tuple[str, int]", key)
        baseline = group[group.method == study.report.baseline].set_index("seed").final_return
        for method in (method for method in study.methods if (group.method == method).any()):
            own = group[group.method == method].set_index("seed")
            is_baseline = method == study.report.baseline
            found.append(
                TaskSummary(
                    env_id,
                    method,
                    int(index),
                    interval(own.final_return.to_numpy()),
                    interval(own.auc.to_numpy()),
                    NOTHING if is_baseline else interval(paired(own.final_return, baseline).to_numpy()),
                    *recovery(own.steps_to_recover),
                )
            )
    return found


def recovery(steps: pd.Series) -> tuple[float, float]:
    """
    Sum up how long recovering took, where some tasks ended first.

    :param steps: infinity where a task did not recover, NaN where the question does not arise
    :return: share that recovered, and the median: infinity if it lies among those that did not
    """
    known = steps.dropna().to_numpy(dtype=float)
    if not known.size:
        return math.nan, math.nan
    return float(np.isfinite(known).mean()), float(np.median(known))


@dataclass(frozen=True)
class AcrossEnvironments:
    """
    A method on all environments together, in measures without a unit; runs are resampled within their environment.

    :param method: name
    :param better: share of tasks with a higher final return than the baseline's
    :param success: share of tasks that succeeded
    """

    method: str
    better: Estimate
    success: Estimate


def across_environments(study: Study, tasks: pd.DataFrame) -> list[AcrossEnvironments]:
    """
    Sum up every method over environments, with the stratified bootstrap.

    :param study: what was asked for
    :param tasks: see :func:`~sb3_plasticity.study.results.task_table`
    :return: methods that were trained on every environment that any was
    """
    found = []
    env_ids = tasks.env_id.unique()
    for method in study.methods:
        own = [_rows(tasks, env_id, method) for env_id in env_ids]
        if not all(len(rows) for rows in own):
            continue
        shares = [rows.groupby("seed").success.mean().to_numpy() for rows in own]
        better = NOTHING
        baselines = [_rows(tasks, env_id, study.report.baseline) for env_id in env_ids]
        if method != study.report.baseline and all(len(rows) for rows in baselines):
            strata = [better_shares(*both).to_numpy() for both in zip(own, baselines, strict=True)]
            better = interval(*strata, statistic=np.mean)
        found.append(AcrossEnvironments(method, better, interval(*shares, statistic=np.mean)))
    return found


def as_frame(rows: Sequence[MethodSummary] | Sequence[TaskSummary]) -> pd.DataFrame:
    """
    Spread summaries over plain columns: an estimate's ends are ``<name>_low`` and ``<name>_high``.

    :param rows: of one kind
    :return: a row for each
    """
    return pd.DataFrame([dict(_flat(row)) for row in rows])


def _flat(row: MethodSummary | TaskSummary) -> Iterable[tuple[str, object]]:
    for item in fields(row):
        value = getattr(row, item.name)
        if isinstance(value, Estimate):
            yield from flat_estimate(item.name, value).items()
        elif item.name == "seeds":
            yield "n_seeds", len(value)
            yield "seeds", " ".join(map(str, value))
        else:
            yield item.name, value


def flat_estimate(name: str, estimate: Estimate) -> Mapping[str, float]:
    """
    Spread an estimate over plain columns.

    :param name: of the number
    :param estimate: of it
    :return: ``<name>``, ``<name>_low``, ``<name>_high``
    """
    ends = asdict(estimate)
    return {name: ends["value"], f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
