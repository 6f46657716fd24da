"""What TensorBoard shows of a run at one glance: returns by task, friction, ranks, hyper-parameters."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam

from sb3_plasticity.callbacks.tensorboard import OVERVIEW, SERIES, add_charts, summary_writer
from sb3_plasticity.zoo.spec import RunSpec

# CurvatureCallback and PlasticityCallback add theirs.
CHARTS = {
    OVERVIEW: {
        "return in the current task": ["Multiline", ["task/ep_rew_mean", "eval/mean_reward"]],
        "return on the fixed tasks": ["Multiline", ["eval_fixed/.*(?<!ep_length)$"]],
        f"return by task (the latest {SERIES})": ["Multiline", [r"return_by_task/0$"]],
        "task value (friction, ...)": ["Multiline", ["task/value"]],
        "effective rank of the features": ["Multiline", ["train/erank_(policy|value)"]],
    }
}
# Shown beside the hyper-parameters in the HParams tab.
METRICS = (
    "rollout/ep_rew_mean",
    "task/ep_rew_mean",
    "eval/mean_reward",
    "eval_fixed/mean_reward",
    "train/erank_policy",
    "train/erank_value",
)


class OverviewCallback(BaseCallback):
    """
    Log the returns of each task by themselves, the hyper-parameters, and the charts that show a run at one glance.

    ``rollout/ep_rew_mean`` averages over the last 100 episodes whatever their task. ``task/ep_rew_mean`` starts anew
    with every task; ``return_by_task/<index>`` is its curve of one task, in TensorBoard only.

    :param spec: of the run
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        run = {"algo": spec.algo, "env": spec.env_id, "seed": spec.seed}
        self.hyperparams = flatten({**run, **spec.hyperparams, "n_timesteps": spec.n_timesteps})
        self._task: int | None = None
        self._returns: deque[float] = deque(maxlen=100)
        self._shown: deque[int] = deque(maxlen=SERIES)

    def _on_training_start(self) -> None:
        self._task = None
        self._returns.clear()
        self._shown.clear()
        if (writer := summary_writer(self.logger)) is not None:
            add_charts(writer, CHARTS)
        hparam = HParam(self.hyperparams, dict.fromkeys(METRICS, 0.0))
        self.logger.record("hparams", hparam, exclude=("stdout", "log", "json", "csv"))

    def _on_step(self) -> bool:
        for info in self.locals.get("infos", ()):
            if "episode" not in info or "task_index" not in info:
                continue
            task = int(info["task_index"])
            if self._task is None or task > self._task:
                self._task = task
                self._returns.clear()
            if task == self._task:  # not: an environment still in an episode of an older task
                self._returns.append(info["episode"]["r"])
        return True

    def _on_rollout_end(self) -> None:
        if not self._returns:
            return
        assert self._task is not None
        mean = float(np.mean(self._returns))
        self.logger.record("task/ep_rew_mean", mean)
        if (writer := summary_writer(self.logger)) is not None:
            writer.add_scalar(f"return_by_task/{self._task}", mean, self.num_timesteps)
            if self._task not in self._shown:
                self._shown.append(self._task)
                tags = f"return_by_task/({'|'.join(map(str, self._shown))})$"
                add_charts(writer, {OVERVIEW: {f"return by task (the latest {SERIES})": ["Multiline", [tags]]}})


def flatten(mapping: Mapping[str, Any]) -> dict[str, bool | float | int | str]:
    """Make hyper-parameters fit for TensorBoard: ``{"policy_kwargs.log_std_init": -1.0}``, numbers and text."""
    (flat,) = pd.json_normalize(dict(mapping)).to_dict("records")
    return {
        str(key): value if isinstance(value, bool | float | int | str) else str(value) for key, value in flat.items()
    }
