"""Which tasks the latest transitions are of."""

from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

# Of an environment that reports no task. One object, because NaN differs from NaN but is itself.
NO_TASK = (0, float("nan"))


def tasks_of(env: VecEnv, infos: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """
    Tell the tasks of the latest transitions.

    :param env: of the training; a batch of simulations knows its tasks, its infos need not
    :param infos: of the step
    :return: (index, value) for each environment
    """
    batch: Any = env.unwrapped
    if (indices := getattr(batch, "task_indices", None)) is not None:
        return list(zip(indices.tolist(), batch.task_values.tolist(), strict=True))
    return [
        (info["task_index"], info.get("task_value", NO_TASK[1])) if "task_index" in info else NO_TASK for info in infos
    ]
