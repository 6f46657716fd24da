"""Two evaluations: on the task that training is in, and on a fixed set of tasks."""

import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_plasticity.envs import Schedule, Task
from sb3_plasticity.envs.schedules import Sinusoid

N_TASKS = 5


@dataclass(frozen=True)
class FixedTasks:
    """
    The tasks that models are compared on, whatever task training is in.

    :param indices: in the schedule of the environments
    :param labels: a name for each
    :param env_kwargs: what the environments need to have these tasks
    """

    indices: list[int]
    labels: list[str]
    env_kwargs: dict[str, Any] = field(default_factory=dict)


def fixed_tasks(env: VecEnv, tasks: list[int] | None = None) -> FixedTasks:
    """
    Choose the tasks that models are compared on.

    :param env: of evaluation
    :param tasks: indices; None for the one that the environments are frozen in, else for the schedule's first five, or
        five points evenly spread over a sinusoid's range
    :return: tasks that differ
    """
    schedule: Schedule = env.get_attr("schedule")[0]
    frozen: Task | None = env.get_attr("clock")[0].frozen
    parameter = env.get_attr("parameter")[0] if env.has_attr("parameter") else None
    name = str(getattr(parameter, "name", None) or "task")
    if tasks is None and frozen is not None:
        tasks = [frozen.index]
    if tasks is None and isinstance(schedule, Sinusoid):
        values = np.linspace(schedule.low, schedule.high, N_TASKS).tolist()
        table = {"kind": "cyclic", "values": values, "period": 1}
        return FixedTasks(list(range(N_TASKS)), [_label(name, Task(0, value)) for value in values], {"schedule": table})
    chosen = first_tasks(schedule) if tasks is None else [schedule.task(index) for index in tasks]
    labels = [_label(name, task) for task in chosen]
    return FixedTasks([task.index for task in chosen], labels, {"task": None} if frozen is not None else {})


def first_tasks(schedule: Schedule) -> list[Task]:
    """
    List a schedule's first tasks.

    :param schedule: that may end
    :return: at most five of different values
    """
    found: dict[float, Task] = {}
    for index in range(N_TASKS):
        try:
            task = schedule.task(index)
        except ValueError:  # schedules may end
            break
        found.setdefault(task.value, task)
    return list(found.values())


def _label(parameter: str, task: Task) -> str:
    return str(getattr(task, "name", None) or f"{parameter}_{task.value:.3g}")


def episodes_for(n_tasks: int, n_episodes: int) -> int:
    """
    Give every task the same number of episodes.

    :param n_tasks: tasks
    :param n_episodes: asked for in all
    :return: at least as many, and a multiple of the tasks
    """
    return math.ceil(n_episodes / n_tasks) * n_tasks


class _Prefixed:
    """A logger that files ``eval/`` under another name."""

    def __init__(self, logger: Any, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix

    def record(self, key: str, value: Any, **kwargs: Any) -> None:
        self._logger.record(key.replace("eval/", f"{self._prefix}/", 1), value, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


class Evaluation(EvalCallback):
    """
    SB3's ``EvalCallback`` under a name of its own, with a record that a kill cannot spoil.

    :param eval_env: environments; with ``labels``, the i-th stays in the i-th task
    :param prefix: of the logged keys
    :param record: ``.npz`` file of all evaluations
    :param labels: a name for the task of each environment, each of which is then logged by itself
    :param callback_on_new_best: called when the mean return is the best so far
    :param start: step that the run goes on from; evaluations up to there that the record holds are kept
    :param kwargs: further arguments of ``EvalCallback``
    """

    def __init__(
        self,
        eval_env: VecEnv,
        prefix: str,
        record: Path,
        labels: list[str] | None = None,
        callback_on_new_best: BaseCallback | None = None,
        start: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_env, callback_on_new_best, **kwargs)
        self.prefix = prefix
        self.record = record
        self.labels = labels
        self.log_path = str(record.with_name(f".partial-{record.stem}"))
        self._returns: list[list[float]] = []
        if start and record.is_file():
            self._take_up(start)

    def _take_up(self, start: int) -> None:
        try:
            with np.load(self.record) as before:
                kept = before["timesteps"] <= start
                self.evaluations_timesteps = before["timesteps"][kept].tolist()
                self.evaluations_results = before["results"][kept].tolist()
                self.evaluations_length = before["ep_lengths"][kept].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"{self.record}: {error}", stacklevel=2)
            return
        self.best_mean_reward = max((float(np.mean(one)) for one in self.evaluations_results), default=-np.inf)

    @property
    def logger(self) -> Any:
        """The model's logger, under this evaluation's prefix."""
        return _Prefixed(self.model.logger, self.prefix)

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq:
            return True
        if self.verbose >= 1:
            print(f"Evaluation {self.prefix}:")
        self._returns = [[] for _ in range(self.eval_env.num_envs)]
        go_on = super()._on_step()
        partial = Path(f"{self.log_path}.npz")
        if partial.exists():
            partial.replace(self.record)
        return go_on

    def _log_success_callback(self, locals_: Mapping[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)  # type: ignore[arg-type]
        if locals_["done"] and self.labels is not None and "episode" in locals_["info"]:
            returns = self._returns[locals_["i"]]
            returns.append(locals_["info"]["episode"]["r"])
            self.logger.record(f"eval/{self.labels[locals_['i']]}", float(np.mean(returns)))
