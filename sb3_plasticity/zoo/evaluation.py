"""Two evaluations: on the task that training is in, and on a fixed set of tasks."""

import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_plasticity.envs import Schedule, Task
from sb3_plasticity.envs.schedules import Sinusoid
from sb3_plasticity.zoo.checkpoints import save

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
    name = getattr(parameter, "name", None) or "task"
    env_kwargs: dict[str, Any] = {} if frozen is None else {"task": None}
    if tasks is not None:
        chosen = [schedule.task(index) for index in tasks]
    elif frozen is not None:
        chosen = [schedule.task(frozen.index)]
    elif isinstance(schedule, Sinusoid):
        values = np.linspace(schedule.low, schedule.high, N_TASKS).tolist()
        chosen = [Task(index, value) for index, value in enumerate(values)]
        env_kwargs = {"schedule": {"kind": "cyclic", "values": values, "period": 1}}
    else:
        chosen = _first_tasks(schedule)
    labels = [str(getattr(task, "name", None) or f"{name}_{task.value:.3g}") for task in chosen]
    return FixedTasks([task.index for task in chosen], labels, env_kwargs)


def _first_tasks(schedule: Schedule) -> list[Task]:
    """List a schedule's first tasks, at most five, of different values."""
    found: dict[float, Task] = {}
    for index in range(N_TASKS):
        try:
            task = schedule.task(index)
        except ValueError:  # schedules may end
            break
        found.setdefault(task.value, task)
    return list(found.values())


def episodes_for(n_tasks: int, n_episodes: int) -> int:
    """Round a number of episodes up so that each task gets equally many."""
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
    SB3's ``EvalCallback`` under a name of its own, with a record and a best model that a kill cannot spoil.

    :param eval_env: environments; with ``labels``, the i-th stays in the i-th task
    :param prefix: of the logged keys
    :param record: ``.npz`` file of all evaluations
    :param labels: a name for the task of each environment, each of which is then logged by itself
    :param best_model: where the model with the best mean return is kept; None for nowhere
    :param start: step that the run resumes from; evaluations up to there that the record holds are kept
    :param kwargs: further arguments of ``EvalCallback``
    """

    def __init__(
        self,
        eval_env: VecEnv,
        prefix: str,
        record: Path,
        labels: list[str] | None = None,
        best_model: Path | None = None,
        start: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(eval_env, **kwargs)
        self.prefix = prefix
        self.record = record
        self.labels = labels
        self.best_model = best_model
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
        if self.n_calls % self.eval_freq:
            return True
        if self.verbose >= 1:
            print(f"Evaluation {self.prefix}:")
        self._returns = [[] for _ in range(self.eval_env.num_envs)]
        best = self.best_mean_reward
        go_on = super()._on_step()
        Path(f"{self.log_path}.npz").replace(self.record)
        if self.best_model is not None and self.best_mean_reward > best:
            save(self.model, self.best_model)
        return go_on

    def _log_success_callback(self, locals_: Mapping[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)  # type: ignore[arg-type]
        if locals_["done"] and self.labels is not None and "episode" in locals_["info"]:
            returns = self._returns[locals_["i"]]
            returns.append(locals_["info"]["episode"]["r"])
            self.logger.record(f"eval/{self.labels[locals_['i']]}", float(np.mean(returns)))
