"""The epsilon-rank at a task's start against what the task reaches: linear fits and tau-trainability."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from sb3_plasticity.study.statistics import Estimate, centred, cluster_interval, clusters, r_squared, spearman


def fit_ranks(tasks: pd.DataFrame) -> pd.DataFrame:
    """
    Fit the final return by a line in the epsilon-rank, over all task starts and over parts of them.

    Intervals resample seeds: the tasks of one are not independent.

    :param tasks: of one environment: ``method``, ``seed``, ``task_index``, ``epsilon_rank``, ``final_return``
    :return: a row per part that a line can be fitted to, all starts first: ``starts`` (what they are), ``n``,
        ``slope``, ``intercept``, and the :class:`Estimate` s ``r_squared`` and ``spearman``
    """
    columns = ["epsilon_rank", "final_return"]
    known = tasks[tasks[columns].notna().all(axis=1)]
    same = known.groupby(["seed", "task_index"]).ngroup().to_numpy()
    inside = known.assign(**{name: centred(known[name].to_numpy(dtype=float), same) for name in columns}).dropna(
        subset=columns
    )
    parts = {
        "all task starts": known,
        "without the first task": known[known.task_index > 0],
        "methods in the same task of the same seed": inside,
        "the same, without the first task": inside[inside.task_index > 0],
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
        correlations = {
            name: cluster_interval(members, of) for name, of in (("r_squared", r_squared), ("spearman", spearman))
        }
        rows.append(
            {"starts": name, "n": len(points), "slope": line.slope, "intercept": line.intercept, **correlations}
        )
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
    known = tasks[tasks.epsilon_rank.notna() & tasks.success.notna()]
    rows = []
    for method, part in (("all", known), *known.groupby("method", sort=False)):
        for threshold in rho:
            reached = part.epsilon_rank >= threshold
            rows.append(
                {
                    "method": method,
                    "rho": float(threshold),
                    "n": len(part),
                    "n_reached": int(reached.sum()),
                    "share_reached": float(reached.mean()),
                    "success_reached": _success_rate(part[reached]),
                    "success_below": _success_rate(part[~reached]),
                }
            )
    return pd.DataFrame(rows)


def _success_rate(part: pd.DataFrame) -> Estimate:
    members = [group.to_numpy(dtype=float) for _, group in part.groupby("seed").success]
    return cluster_interval(members, lambda rows: float(rows.mean()))


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """
    Spread estimates over plain columns: the ends of ``<name>`` are ``<name>_low`` and ``<name>_high``.

    :param table: with :class:`Estimate` s among its columns
    :return: a table for a CSV file
    """
    for name in table:
        if len(table) and isinstance(table[name].iloc[0], Estimate):
            parts = pd.DataFrame([vars(each) for each in table[name]], index=table.index)
            table = table.assign(
                **{str(name): parts["value"], f"{name}_low": parts["low"], f"{name}_high": parts["high"]}
            )
    return table
