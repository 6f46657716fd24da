"""What every task of every run came to, and what the methods come to against the baseline: tidy tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd

from sb3_plasticity.study.spec import ReportSettings
from sb3_plasticity.study.statistics import Estimate, holm, improvement, interval, iqm, p_of_mean

RUN = ["env_id", "method", "seed"]
TASK = [*RUN, "task_index"]
# Bins of a task: curves over steps have a point for each, and recovery is told in them.
BINS_PER_TASK = 20
# Shares of tasks are averaged: the interquartile mean of a few zeros and ones says little.
SHARES = ("success", "better")
# Of these, the differences to the baseline are tested.
TESTED = ("last_return", "mean_return")


@dataclass(frozen=True)
class Timeline:
    """
    The tasks of a run.

    :param n_timesteps: of the run
    :param period: steps from one task to the next
    """

    n_timesteps: int
    period: int

    @property
    def n_tasks(self) -> int:
        """Tasks that a run goes through."""
        return math.ceil(self.n_timesteps / self.period)


def period_of(env: gym.Env[Any, Any]) -> int | None:
    """
    Ask an environment for the length of its tasks.

    :param env: any environment
    :return: steps from one task to the next; None if it has no schedule, or one without a period
    """
    schedule = env.get_wrapper_attr("schedule") if env.has_wrapper_attr("schedule") else None
    period = getattr(schedule, "period", None)
    return int(period) if period else None


# -- tasks -------------------------------------------------------------------------------------------------------------


def task_table(
    settings: ReportSettings,
    timelines: Mapping[str, Timeline],
    methods: Sequence[str],
    episodes: pd.DataFrame,
    spectra: pd.DataFrame,
) -> pd.DataFrame:
    """
    Measure every task of every run.

    :param settings: of the report
    :param timelines: of the environments
    :param methods: in their order
    :param episodes: see :class:`~sb3_plasticity.study.results.Results`
    :param spectra: see :class:`~sb3_plasticity.study.results.Results`
    :return: a row per run and task: ``env_id``, ``method``, ``seed``, ``task_index``, ``task_value``, ``begin``,
        ``end`` (steps), ``final_return`` (mean return of the episodes that ended in the last ``final_share`` of its
        steps, or after it while still under it), ``auc`` (mean return, weighted by the episodes' lengths),
        ``steps_to_recover`` (infinity: not within the task; NaN: no task before), ``best_known`` (best final return of
        any method's run in the same task), ``success`` (1, 0, or NaN without a final return),
        ``epsilon_rank_<network>_<kind>`` at its start of all that were measured, and ``epsilon_rank`` of the report's
    """
    places = {"env_id": list(timelines).index, "method": list(methods).index}
    runs = episodes[RUN].drop_duplicates()
    runs = runs.sort_values(RUN, key=lambda column: column.map(places.get(str(column.name), int)))
    runs = runs.assign(time=runs.env_id.map(timelines))
    tasks = runs.assign(task_index=[range(time.n_tasks) for time in runs.time]).explode("task_index")  # type: ignore[misc]
    tasks = tasks.astype({"task_index": int}).reset_index(drop=True)
    tasks["begin"] = tasks.task_index * [time.period for time in tasks.time]
    tasks["end"] = np.minimum(tasks.begin + [time.period for time in tasks.time], [t.n_timesteps for t in tasks.time])
    tasks = tasks.drop(columns="time")

    played = episodes.merge(tasks, on=TASK, suffixes=("", "_task"))
    of_task = played.assign(area=played["return"] * played.length).groupby(TASK)
    late = played[played.step > played.end - settings.final_share * (played.end - played.begin)]
    measures = {
        "task_value": of_task.task_value.first(),
        "final_return": late.groupby(TASK)["return"].mean(),
        "auc": of_task.area.sum() / of_task.length.sum(),
    }
    tasks = tasks.join(pd.DataFrame(measures), on=TASK)
    before = tasks.groupby(RUN).final_return.shift()
    parts = dict(list(of_task))
    tasks["steps_to_recover"] = [
        steps_to_recover(part.step, part["return"], begin, end, final, settings.recovered_share)
        if (part := parts.get(key)) is not None
        else math.nan
        for key, begin, end, final in zip(
            tasks[TASK].itertuples(False, None), tasks.begin, tasks.end, before, strict=True
        )
    ]
    best = tasks.groupby(["env_id", "seed", "task_index"]).final_return.transform("max")
    success = (tasks.final_return >= best - settings.success_within).astype(float)
    tasks = tasks.assign(best_known=best, success=success.where(tasks.final_return.notna()))
    tasks.insert(len(TASK), "task_value", tasks.pop("task_value"))
    starts = spectra[spectra.phase == "start"]
    if len(starts):
        starts = starts.assign(name="epsilon_rank_" + starts.network.astype(str) + "_" + starts.kind.astype(str))
        wide = starts.drop_duplicates([*TASK, "name"]).pivot(index=TASK, columns="name", values="epsilon_rank")
        tasks = tasks.join(wide.astype(float), on=TASK)
    return tasks.assign(epsilon_rank=tasks.get(f"epsilon_rank_{settings.network}_{settings.kind}", math.nan))


def steps_to_recover(steps: pd.Series, returns: pd.Series, begin: int, end: int, before: float, share: float) -> float:
    """
    Count the steps from a task's beginning until its return has come back from its lowest point.

    The task's episodes are averaged in twentieths of its time. It has recovered at the end of the first twentieth, not
    before that of the lowest average, that reaches ``low + share * (before - low)``. A task whose lowest average is not
    below ``before`` had nothing to recover from: 0 steps.

    :param steps: (n,) environment steps at which the task's episodes ended
    :param returns: (n,) their returns
    :param begin: step at which the task was due
    :param end: step at which the next one was due, or the run ended
    :param before: final return of the task before
    :param share: of the way back, in (0, 1]
    :return: steps; infinity if it did not recover; NaN without a task before, or without episodes
    """
    if not math.isfinite(before) or not len(steps):
        return math.nan
    means = bin_means(steps.clip(upper=end), returns, np.linspace(begin, end, BINS_PER_TASK + 1)).dropna()
    low = means.min()
    if low >= before:
        return 0.0
    after = means.loc[means.idxmin() :]
    recovered = after.index[after >= low + share * (before - low)]
    return float(recovered[0] - begin) if len(recovered) else math.inf


def bin_means(steps: pd.Series, values: pd.Series, edges: np.ndarray) -> pd.Series:
    """
    Average what falls between edges, the upper one included.

    :param steps: (n,) where; what is outside of the edges is left out
    :param values: (n,) what
    :param edges: (m + 1,) ascending
    :return: (m,) by upper edge, NaN for an empty bin
    """
    return (
        values.groupby(pd.cut(steps, edges.tolist(), labels=edges[1:].tolist()), observed=False)
        .mean()
        .rename_axis(None)
    )


# -- methods -----------------------------------------------------------------------------------------------------------


def _run_table(tasks: pd.DataFrame) -> pd.DataFrame:
    """Sum up every run, or the differences of a run, in one number for each measure."""
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

    :param tasks: see :func:`task_table`
    :param baseline: method
    :return: rows that have a partner, less the baseline's own: ``final_return`` and ``auc`` are differences,
        ``better`` is 1, 0.5 or 0 by the sign of the former
    """
    same, values = ["env_id", "seed", "task_index"], ["final_return", "auc"]
    partner = tasks[tasks.method == baseline].set_index(same)[values].add_suffix("_baseline")
    rows = tasks[tasks.method != baseline].join(partner, on=same, how="inner")
    rows = rows.assign(**{name: rows[name] - rows[f"{name}_baseline"] for name in values})
    rows = rows.assign(better=(np.sign(rows.final_return) + 1) / 2)
    return rows[[*TASK, *values, "better"]].reset_index(drop=True)


def summarize(tasks: pd.DataFrame, runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every method on every environment.

    :param tasks: see :func:`task_table`
    :param runs: finished ones, with ``seconds``
    :param baseline: method
    :return: a row per environment, method and measure: ``value``, ``low``, ``high`` (95% interval over seeds) and
        ``n`` (seeds). Measures are ``last_return`` (final return of the last task), ``mean_return`` (of all tasks),
        ``change`` (last less first), ``auc``, ``success`` (share of tasks) and ``epsilon_rank`` at their starts, each
        also as ``<measure>_difference`` to the baseline's run of the same seed; ``last_return_p`` and
        ``mean_return_p``, p values of paired t-tests over seeds, after Holm's correction for the number of methods;
        ``better`` (share of tasks); ``improvement``, the probability that a run has a higher ``mean_return`` than one
        of the baseline; ``recovered`` (share of tasks, of those with a task before) and ``recovery_steps`` (median;
        infinity where half did not); ``seconds`` and ``seconds_ratio`` (to the baseline's run of the same seed),
        medians
    """
    own: Any
    paired: Any  # pandas' stubs know no key of several levels
    own, paired = (_run_table(table).sort_index() for table in (tasks, differences(tasks, baseline)))
    seconds: Any = runs.set_index(RUN).seconds.sort_index()
    tests = _paired_tests(paired)
    rows = []
    for (env_id, method), part in tasks.groupby(["env_id", "method"], sort=False):
        numbers = dict(_estimates(own.loc[env_id, method])) | _recovery(part.steps_to_recover, part.seed.nunique())
        times = seconds[env_id, method]
        numbers["seconds"] = Estimate(float(times.median()), n=len(times))
        if (env_id, method) in paired.index:
            of_pairs = dict(_estimates(paired.loc[env_id, method]))
            numbers |= {name if name in SHARES else f"{name}_difference": each for name, each in of_pairs.items()}
            numbers |= {f"{name}_p": Estimate(p, n=of_pairs[name].n) for name, p in tests.loc[env_id, method].items()}
            returns = (own.loc[env_id, each].mean_return.to_numpy() for each in (method, baseline))
            numbers["improvement"] = improvement(*returns)
            ratio = (times / seconds[env_id, baseline]).dropna()
            numbers["seconds_ratio"] = Estimate(float(ratio.median()), n=len(ratio))
        rows += [{"env_id": env_id, "method": method, "measure": name, **vars(of)} for name, of in numbers.items()]
    return pd.DataFrame(rows)


def _paired_tests(paired: pd.DataFrame) -> Any:
    """Test the differences of every method, corrected for the number of methods on the environment."""
    tested = paired.groupby(["env_id", "method"])[list(TESTED)].agg(p_of_mean)
    return tested.apply(lambda column: column.groupby("env_id").transform(lambda each: holm(each.to_numpy())))


def summarize_tasks(tasks: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every task of every method on every environment.

    :param tasks: see :func:`task_table`
    :param baseline: method
    :return: as :func:`summarize`, with ``task_index``; measures ``final_return``, ``auc``, ``difference`` (of the final
        return to the baseline's of the same seed), ``recovered`` and ``recovery_steps``
    """
    paired = differences(tasks, baseline).rename(columns={"final_return": "difference"})
    whole = tasks.merge(paired[[*TASK, "difference"]], how="left", on=TASK).sort_values("task_index", kind="stable")
    rows = []
    for (env_id, index, method), part in whole.groupby(["env_id", "task_index", "method"], sort=False):
        numbers = dict(_estimates(part[["final_return", "auc", "difference"]]))
        numbers |= _recovery(part.steps_to_recover, len(part))
        key = {"env_id": env_id, "method": method, "task_index": index}
        rows += [{**key, "measure": name, **vars(each)} for name, each in numbers.items()]
    return pd.DataFrame(rows)


def across_environments(tasks: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """
    Sum up every method over environments in measures without a unit; runs are resampled within their environment.

    :param tasks: see :func:`task_table`
    :param baseline: method
    :return: ``method``, ``measure`` (``better``, ``success``) and the estimate, of methods that every environment has
    """
    rows = []
    for measure, table in (("success", tasks), ("better", differences(tasks, baseline))):
        for method, part in table.groupby("method", sort=False):
            strata = [group.to_numpy() for _, group in part.groupby(RUN)[measure].mean().groupby("env_id")]
            if len(strata) == tasks.env_id.nunique():
                rows.append({"method": method, "measure": measure, **vars(interval(*strata, statistic=np.mean))})
    return pd.DataFrame(rows)


def _estimates(table: pd.DataFrame) -> Iterator[tuple[str, Estimate]]:
    for name, values in table.items():
        yield str(name), interval(values.to_numpy(), statistic=np.mean if name in SHARES else iqm)


def _recovery(steps: pd.Series, n: int) -> dict[str, Estimate]:
    known = steps.dropna()
    share = float(np.isfinite(known).mean()) if len(known) else math.nan
    return {"recovered": Estimate(share, n=n), "recovery_steps": Estimate(float(known.median()), n=n)}
