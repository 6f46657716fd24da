"""
What the networks are like at a task's start against what the task reaches: lines, thresholds, and a referee.

The referee asks of every measure whether it predicts the final return of the task. Every measure that was logged
enters, and every measure that a fresh network was measured on enters a second time, less that network's value. There
are three views:

* all task starts: what makes a task hard may make the measure small, and methods differ in both;
* within methods: every method's mean is taken off, which leaves its own tasks and seeds;
* between methods: the mean over methods on the same task of the same seed is taken off, so that only the difference
  between methods under the same change is left.

Each seed has its own rank correlation; their mean (of Fisher's transforms), its interval and its p value come from
Student's t over seeds, the last two corrected for the number of measures tried. An alarm is a measure on the bad side
of the threshold that best tells the tasks that fail from those that succeed; on a stationary control, where nothing
changes, every alarm before a task that reaches what the run had reached is a false one.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from sb3_plasticity.study.statistics import (
    Estimate,
    centred,
    cluster_interval,
    clusters,
    holm,
    mean_correlation,
    r_squared,
    spearman,
)
from sb3_plasticity.study.tasks import RUN

# Columns of a log that may be referred to: a measure of a whole network, or of the policy's exploration.
MEASURE = re.compile(r"plasticity/[^/]+/[^/]+|train/(?:std|erank_\w+)")
VIEWS = {"all": None, "within": ["method"], "between": ["seed", "task_index"]}
# How far from a task's start a record may be, as a share of the task.
NEAR = 0.1


# -- the epsilon-rank: figures 3 and 4 ---------------------------------------------------------------------------------


def fit_ranks(tasks: pd.DataFrame) -> pd.DataFrame:
    """
    Fit the final return by a line in the epsilon-rank, over all task starts and over parts of them.

    Intervals resample seeds: the tasks of one are not independent.

    :param tasks: of one environment: ``method``, ``seed``, ``task_index``, ``epsilon_rank``, ``final_return``
    :return: a row per part that a line can be fitted to, all starts first: ``starts`` (what they are), ``n``,
        ``slope``, ``intercept``, and the :class:`Estimate` s ``r_squared`` and ``spearman``
    """
    columns = ["epsilon_rank", "final_return"]
    known = tasks.dropna(subset=columns)
    between = _centred(known, columns, VIEWS["between"]).dropna(subset=columns)
    parts = {
        "all task starts": known,
        "without the first task": known[known.task_index > 0],
        "methods in the same task of the same seed": between,
        "the same, without the first task": between[between.task_index > 0],
    }
    if known.method.nunique() > 1:
        parts |= {f"{method} alone": part for method, part in known.groupby("method", sort=False)}
    rows = []
    for name, part in parts.items():
        points = part[columns].to_numpy(dtype=float)
        if not np.isfinite(r_squared(points)):
            continue
        line = stats.linregress(*points.T)
        members = clusters(points, part.seed.to_numpy())
        row = {"starts": name, "n": len(points), "slope": line.slope, "intercept": line.intercept}
        rows.append(row | {of.__name__: cluster_interval(members, of) for of in (r_squared, spearman)})
    return pd.DataFrame(rows)


def trainability(tasks: pd.DataFrame, rho: Sequence[float]) -> pd.DataFrame:
    """
    Count, for thresholds of the rank at a task's start, how many starts reach it, and how many of those tasks succeed.

    :param tasks: of one environment: ``method``, ``seed``, ``epsilon_rank``, ``success``
    :param rho: thresholds
    :return: a row per method (``"all"`` for all of them together, first) and threshold: ``n`` starts, of which
        ``n_reached`` have rank >= ``rho``, ``share_reached``, and the :class:`Estimate` s of the success rate among
        these (``success_reached``) and the others (``success_below``)
    """
    known = tasks.dropna(subset=["epsilon_rank", "success"])
    rows = []
    for method, part in (("all", known), *known.groupby("method", sort=False)):
        for threshold in map(float, rho):
            reached = part.epsilon_rank >= threshold
            row = {"method": method, "rho": threshold, "n": len(part), "n_reached": int(reached.sum())}
            rates = {"success_reached": _success_rate(part[reached]), "success_below": _success_rate(part[~reached])}
            rows.append(row | {"share_reached": float(reached.mean())} | rates)
    return pd.DataFrame(rows)


def _success_rate(part: pd.DataFrame) -> Estimate:
    return cluster_interval(clusters(part.success.to_numpy(), part.seed.to_numpy()), lambda rows: float(rows.mean()))


# -- the referee: figure 7 ---------------------------------------------------------------------------------------------


def start_measures(progress: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """
    Take the measures at task starts from the logs: of each the record nearest to the start of the task.

    :param progress: lines of the logs: the run, ``step`` and columns that match ``MEASURE``, with those of the fresh
        network under ``plasticity_control/``
    :param tasks: a row per run and task, with ``begin`` and ``end`` (steps)
    :return: (rows of ``tasks``, measures), NaN where none was logged within a tenth of the task of its start
    """
    fresh = {name: name.replace("plasticity_control/", "plasticity/", 1) for name in map(str, progress)}
    names = [name for name in fresh if MEASURE.fullmatch(fresh[name])]
    if not names:
        return pd.DataFrame(index=tasks.index)
    lines = progress[[*RUN, "step", *names]].astype({"step": float}).sort_values("step")
    starts = tasks[[*RUN, "begin", "end"]].astype({"begin": float}).assign(row=tasks.index).sort_values("begin")
    lines = pd.merge_asof(lines, starts, left_on="step", right_on="begin", by=RUN, direction="nearest")
    lines["distance"] = (lines.step - lines.begin).abs()
    near = lines[lines.distance <= NEAR * (lines.end - lines.begin)].sort_values("distance", kind="stable")
    table = near.groupby("row")[names].first().reindex(tasks.index).astype(float)  # the first that is not NaN
    for name in names:
        if (trained := fresh[name]) != name and trained in table:
            table[f"{trained} less fresh"] = table[trained] - table[name]
    return table[[name for name in table if not str(name).startswith("plasticity_control/")]]


def judge(tasks: pd.DataFrame, measures: pd.DataFrame, control: pd.Series) -> pd.DataFrame:
    """
    Judge every measure on one environment.

    :param tasks: a row per run and task: ``method``, ``seed``, ``task_index``, ``final_return``, ``success``
    :param measures: (rows of ``tasks``, measures) at the starts of these tasks
    :param control: (rows of ``tasks``,) whether the row is of the stationary twin
    :return: a row per measure, the most telling first: ``measure``, ``n``; of each view the :class:`Estimate`
        ``<view>``, whose intervals hold together in 95% of cases, and ``<view>_p`` (after Holm); ``hits`` (share of
        failing tasks with an alarm), ``alarms`` (share of succeeding ones), ``false_alarms`` (share of the control's
        starts) and ``control_n``
    """
    seen = tasks.final_return.notna()
    moving, quiet = seen & ~control, seen & control & (tasks.task_index > 0) & (tasks.success == 1)
    parts = {str(name): tasks[moving].assign(value=measures[name]).dropna(subset=["value"]) for name in measures}
    parts = {name: part for name, part in parts.items() if len(part) >= 3 and part.value.nunique() > 1}
    if not parts:
        return pd.DataFrame()
    rows = []
    for name, part in parts.items():
        row: dict[str, object] = {"measure": name, "n": len(part)}
        for view, groups in VIEWS.items():
            points = _centred(part, ["value", "final_return"], groups).dropna(subset=["value", "final_return"])
            members = clusters(points[["value", "final_return"]].to_numpy(dtype=float), points.seed.to_numpy())
            row[view], row[f"{view}_p"] = mean_correlation([spearman(each) for each in members], n_tests=len(parts))
        rows.append(row | alarms(part.value, part.success, measures.loc[quiet, name].dropna()))
    table = pd.DataFrame(rows)
    for view in VIEWS:
        table[f"{view}_p"] = holm(table[f"{view}_p"].to_numpy())
    strength = table.between.map(lambda each: abs(each.value))
    return table.loc[strength.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def _centred(part: pd.DataFrame, columns: list[str], groups: list[str] | None) -> pd.DataFrame:
    if groups is None:
        return part
    label = part.groupby(groups).ngroup().to_numpy()
    return part.assign(**{name: centred(part[name].to_numpy(dtype=float), label) for name in columns})


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
    found = dict.fromkeys(("threshold", "below", "hits", "alarms", "false_alarms"), math.nan)
    if failed.any() and not failed.all():
        edges = np.unique(values)
        cuts = np.concatenate([(edges[1:] + edges[:-1]) / 2, edges[-1:] + 1])
        under = values.to_numpy(dtype=float) < cuts[:, None]
        index = under[:, failed].mean(axis=1) - under[:, ~failed].mean(axis=1)
        best = int(np.abs(index).argmax())
        below = bool(index[best] >= 0)
        alarm, false = under[best] == below, (quiet < cuts[best]) == below
        found = {"threshold": float(cuts[best]), "below": float(below)}
        found |= {"hits": float(alarm[failed].mean()), "alarms": float(alarm[~failed].mean())}
        found["false_alarms"] = float(false.mean()) if len(false) else math.nan
    return {**found, "control_n": float(len(quiet))}
