"""One task clock for the training and the evaluation environments of an SB3 algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_plasticity.common.checks import must_be, suggests_names
from sb3_plasticity.envs import has_clock

if TYPE_CHECKING:
    from sb3_plasticity.envs import Schedule, Task

TaskChange = Callable[["Task", "Task"], None]


class TaskSyncCallback(BaseCallback):
    """
    Let non-stationary environments follow the trainer's ``num_timesteps`` instead of counting their own steps.

    Training environments are synchronised when training and when each rollout starts, so the schedule does not depend
    on the number of environments, and a resumed run continues where its predecessor stood. The environments of every
    :class:`~stable_baselines3.common.callbacks.EvalCallback` among the callbacks stay in the task that training is in;
    one that was frozen (``task=...``) keeps its own. Environments without a schedule are left alone.

    Logs ``task/index`` and ``task/value`` of the latest task that any training environment has reached.

    :param on_task_change: called with the old and the new task at the first transition of a new task
    :param verbose: 1 prints every task change
    :raises ValueError: if ``on_task_change`` is no function
    """

    @suggests_names()
    def __init__(self, on_task_change: TaskChange | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        if on_task_change is not None and not callable(on_task_change):
            raise must_be("on_task_change", "a function of two tasks, or None", on_task_change)
        self.on_task_change = on_task_change
        self.schedule: Schedule | None = None
        self.task: Task | None = None
        self._eval_envs: list[VecEnv] = []
        self._eval_task: Task | None = None

    def _on_training_start(self) -> None:
        self.schedule = self.task = self._eval_task = None
        self._eval_envs = []
        if not has_clock(self.training_env):
            return
        self.schedule = self.training_env.get_attr("schedule", indices=0)[0]
        # the variables of learn() hold the root of the tree of callbacks
        callbacks = callbacks_in(self.locals.get("callback", self))
        eval_envs = [callback.eval_env for callback in callbacks if isinstance(callback, EvalCallback)]
        self._eval_envs = [env for env in eval_envs if has_clock(env)]
        self._sync_training()
        self._sync_evaluation(self.num_timesteps)
        self._freeze_evaluation()

    def _on_rollout_start(self) -> None:
        self._sync_training()

    def _on_step(self) -> bool:
        if self.schedule is not None:
            # every environment has made its last transition at, or shortly after, this global step
            step = max(self.num_timesteps - self.training_env.num_envs, 0)
            due = self.schedule(step)
            task = self._latest(due)
            self.logger.record("task/index", task.index)
            self.logger.record("task/value", task.value)
            if task.index == due.index:
                self._sync_evaluation(step)
            previous, self.task = self.task, task
            if previous is not None and previous.index != task.index:
                if self.verbose:
                    print(f"Step {self.num_timesteps}: task {task.index} (value {task.value:g}) after {previous.index}")
                if self.on_task_change is not None:
                    self.on_task_change(previous, task)
        return True

    def _latest(self, due: Task) -> Task:
        """Return the task of the newest transitions: with ``switch="reset"`` it may lag behind the one that is due."""
        batch: Any = self.training_env.unwrapped
        indices = getattr(batch, "task_indices", None)
        if indices is not None:  # a batch of simulations has them at hand, with infos or without
            newest = indices.argmax()
            return dataclasses.replace(due, index=int(indices[newest]), value=float(batch.task_values[newest]))
        tasks = [
            (info["task_index"], info["task_value"], info.get("task_name", ""))
            for info in self.locals.get("infos", ())
            if "task_index" in info
        ]
        if not tasks:
            return due
        index, value, name = max(tasks)
        return dataclasses.replace(due, index=index, value=value, name=name)

    def _sync_training(self) -> None:
        if self.schedule is not None:
            self.training_env.env_method("sync_clock", self.num_timesteps, self.training_env.num_envs)

    def _sync_evaluation(self, step: int) -> None:
        """Stop the clocks of the evaluation environments at a global step."""
        if self.schedule is None or not self._eval_envs:
            return
        task = self.schedule(step)
        if task != self._eval_task:
            self._eval_task = task
            for env in self._eval_envs:
                env.env_method("sync_clock", step, 0)

    def _freeze_evaluation(self) -> None:
        """Where training was frozen at a task, freeze the evaluation there too."""
        if not self._eval_envs:
            return
        frozen = self.training_env.get_attr("clock", indices=0)[0].frozen
        if frozen is None:
            return
        for env in self._eval_envs:
            if env.get_attr("clock", indices=0)[0].frozen is None:
                env.env_method("set_task", frozen.index)


def callbacks_in(root: BaseCallback) -> Iterator[BaseCallback]:
    """
    Walk through a callback and all callbacks that it holds.

    :param root: such as a ``CallbackList``
    :yields: each once, ``root`` first
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        callback = waiting.pop()
        if id(callback) in seen:
            continue
        seen.add(id(callback))
        yield callback
        for value in vars(callback).values():
            children = value if isinstance(value, (list, tuple)) else (value,)
            waiting.extend(child for child in children if isinstance(child, BaseCallback))
