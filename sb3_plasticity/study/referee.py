"""
The referee of diagnostics: which measure at a task's start predicts what the task will reach.

Every measure that was logged enters, and every measure that a fresh network was measured on enters a second time, less
that network's value. For each there are three rank correlations with the final return of the task:

* over all task starts: what makes a task hard may make the measure small, and methods differ in both;
* within methods: every method's mean is taken off, which leaves its own tasks and seeds;
* between methods: the mean over methods on the same task of the same seed is taken off, so that only the difference
  between methods under the same change is left.

Their intervals resample seeds with all their tasks; their p values (Student's t over the seeds' own correlations) are
corrected by Holm's method for the number of measures tried. An alarm is a measure on the bad side of the threshold that
best tells the tasks that fail from those that succeed; on a stationary control, where nothing changes, every alarm
before a task that reaches what the run had reached is a false one.
"""

import math
import re

import numpy as np
import pandas as pd

from sb3_plasticity.study.statistics import centred, cluster_interval, clusters, holm, over_clusters, spearman
from sb3_plasticity.study.summary import RUN

# Columns of a log that may be referred to: a measure of a whole network, or of the policy's exploration.
MEASURE = re.compile(r"plasticity/[^/]+/[^/]+|train/(?:std|erank_\w+)|mitigation/[^/]+/[^/]+")
VIEWS = {"all": None, "within": ["method"], "between": ["seed", "task_index"]}
# How far from a task's start a record may be, as a share of the task.
NEAR = 0.1


def start_measures(progress: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """
    Take the measures at task starts from the logs: of each the record nearest to the start of the task.

    :param progress: lines of the logs: the run, ``step`` and columns that match ``MEASURE``, with those of the fresh
        network under ``plasticity_control/``
    :param tasks: a row per run and task, with ``begin`` and ``end`` (steps)
    :return: (rows of ``tasks``, measures), NaN where none was logged within a tenth of the task of its start
    """
    logged = progress.set_index(RUN).sort_index()
    names = [str(name) for name in progress if MEASURE.fullmatch(str(name)) or str(name).startswith("plasticity_con")]
    rows = []
    for task in tasks.to_dict("records"):
        key = tuple(task[name] for name in RUN)
        lines = logged.loc[[key]] if key in logged.index else logged.iloc[:0]
        lines = lines[(lines.step - task["begin"]).abs() <= NEAR * (task["end"] - task["begin"])]
        nearest = (lines.step - task["begin"]).abs().argsort()
        rows.append(lines[names].iloc[nearest].bfill().head(1).squeeze(axis=0).to_dict() if len(lines) else {})
    table = pd.DataFrame(rows, index=tasks.index, columns=names).astype(float)
    for name in names:
        if (fresh := name.replace("plasticity/", "plasticity_control/", 1)) != name and fresh in table:
            table[f"{name} less fresh"] = table[name] - table[fresh]
    return table[[name for name in table if not str(name).startswith("plasticity_con")]]


def judge(tasks: pd.DataFrame, measures: pd.DataFrame, control: pd.Series) -> pd.DataFrame:
    """
    Judge every measure on one environment.

    :param tasks: a row per run and task: ``method``, ``seed``, ``task_index``, ``final_return``, ``success``
    :param measures: (rows of ``tasks``, measures) at the starts of these tasks
    :param control: (rows of ``tasks``,) whether the row is of the stationary twin
    :return: a row per measure, the most telling first: ``measure``, ``n``; of each view ``<view>``, ``<view>_low``,
        ``<view>_high``, ``<view>_p`` (after Holm); ``hits`` (share of failing tasks with an alarm), ``alarms`` (share
        of succeeding ones), ``false_alarms`` (share of the control's starts) and ``control_n``
    """
    rows = []
    seen = tasks.final_return.notna()
    for name in map(str, measures):
        known = seen & measures[name].notna() & ~control
        part, values = tasks[known], measures.loc[known, name]
        if len(part) < 3 or values.nunique() < 2:
            continue
        row: dict[str, object] = {"measure": name, "n": len(part)}
        for view, groups in VIEWS.items():
            row |= _correlate(part, values, groups, view)
        quiet = control & seen & measures[name].notna() & (tasks.task_index > 0) & (tasks.success == 1)
        row |= alarms(values, part.success, measures.loc[quiet, name])
        rows.append(row)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    for view in VIEWS:
        table[f"{view}_p"] = holm(table[f"{view}_p"].to_numpy())
    return table.sort_values("between", key=abs, ascending=False, na_position="last", ignore_index=True)


def _correlate(part: pd.DataFrame, values: pd.Series, groups: list[str] | None, view: str) -> dict[str, float]:
    points = np.stack([values.to_numpy(dtype=float), part.final_return.to_numpy(dtype=float)], axis=1)
    if groups is not None:
        label = part.groupby(groups).ngroup().to_numpy()
        points = np.stack([centred(column, label) for column in points.T], axis=1)
    kept = np.isfinite(points).all(axis=1)
    members = clusters(points[kept], part.seed.to_numpy()[kept])
    found = cluster_interval(members, spearman)
    p = over_clusters(members, spearman)
    return {view: found.value, f"{view}_low": found.low, f"{view}_high": found.high, f"{view}_p": p}


def alarms(values: pd.Series, success: pd.Series, quiet: pd.Series) -> dict[str, float]:
    """
    Count the alarms of the threshold that best tells failing tasks from others (Youden's index).

    :param values: (n,) measure at task starts
    :param success: (n,) 1 or 0
    :param quiet: (m,) measure at starts at which nothing changed and nothing was lost
    :return: ``threshold``, ``below`` (whether small values alarm), ``hits``, ``alarms``, ``false_alarms`` and
        ``control_n``; shares are NaN where there is nothing to take them of
    """
    failed = success.to_numpy() == 0
    x = values.to_numpy(dtype=float)
    found = {"threshold": math.nan, "below": math.nan, "hits": math.nan, "alarms": math.nan}
    if failed.any() and not failed.all():
        edges = np.unique(x)
        cuts = np.concatenate([(edges[1:] + edges[:-1]) / 2, edges[-1:] + 1])
        under = x[None] < cuts[:, None]
        index = under[:, failed].mean(axis=1) - under[:, ~failed].mean(axis=1)
        best = int(np.abs(index).argmax())
        small = index[best] >= 0
        alarm = under[best] == small
        found = {
            "threshold": float(cuts[best]),
            "below": float(small),
            "hits": float(alarm[failed].mean()),
            "alarms": float(alarm[~failed].mean()),
        }
    false = math.nan
    if len(quiet) and math.isfinite(found["threshold"]):
        false = float(((quiet < found["threshold"]) == bool(found["below"])).mean())
    return {**found, "false_alarms": false, "control_n": float(len(quiet))}
