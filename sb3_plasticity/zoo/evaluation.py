"""Two evaluations: on the task that training is in, and on a fixed set of tasks."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_plasticity.envs import Schedule
from sb3_plasticity.envs.schedules import Sinusoid

N_TASKS = 5


def fixed_tasks(schedule: Schedule, tasks: list[int] | None = None) -> list[float]:
    """
    Choose the tasks that models are compared on, whatever task training is in.

    :param schedule: of the training environment
    :param tasks: indices of its tasks; None for the first five, or five points evenly spread over a sinusoid's range
    :return: a value for each task, without repetitions
    """
    if tasks is not None:
        return [schedule.task(index).value for index in tasks]
    if isinstance(schedule, Sinusoid):
        return np.linspace(schedule.low, schedule.high, N_TASKS).tolist()
    values: dict[float, None] = {}
    for index in range(N_TASKS):
        try:
            values[schedule.task(index).value] = None
        except ValueError:  # schedules may end
            break
    return list(values)


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
    :param kwargs: further arguments of ``EvalCallback``
    """

    def __init__(
        self,
        eval_env: VecEnv,
        prefix: str,
        record: Path,
        labels: list[str] | None = None,
        callback_on_new_best: BaseCallback | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_env, callback_on_new_best, **kwargs)
        self.prefix = prefix
        self.record = record
        self.labels = labels
        self.log_path = str(record.with_name(f".partial-{record.stem}"))
        self._returns: list[list[float]] = []

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
