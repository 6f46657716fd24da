"""
A rollout buffer's contents, read without consuming them.

``RolloutBuffer.get`` draws from NumPy's global generator and flattens the buffer in place; these functions do neither,
so whoever looks at a rollout leaves training as it was.
"""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples


def rollout_size(buffer: RolloutBuffer) -> int:
    """
    Number of transitions of a full buffer.

    :param buffer: a rollout buffer
    :return: n_steps * n_envs
    """
    return buffer.buffer_size * buffer.n_envs


def rollout_samples(buffer: RolloutBuffer, rows: np.ndarray | slice | None = None) -> RolloutBufferSamples:
    """
    Transitions of a full buffer, in the order ``RolloutBuffer.get`` indexes them: env by env, each in time order.

    :param buffer: a full rollout buffer, flattened or not
    :param rows: which of the n_steps * n_envs transitions, all if None
    :return: tensors on the buffer's device; the dtypes are those ``RolloutBuffer.get`` gives
    """
    index = slice(None) if rows is None else rows

    def flat(array: np.ndarray) -> np.ndarray:
        if not buffer.generator_ready:
            array = buffer.swap_and_flatten(array)
        return array[index]

    def tensor(array: np.ndarray) -> th.Tensor:
        return buffer.to_torch(flat(array))

    observations: PyTorchObs
    if isinstance(buffer.observations, dict):
        observations = {key: tensor(value) for key, value in buffer.observations.items()}
    else:
        observations = tensor(buffer.observations)
    return RolloutBufferSamples(
        observations=observations,  # type: ignore[arg-type]
        # Cast as RolloutBuffer.get does (SB3 issue 1145: a float64 Box action space)
        actions=buffer.to_torch(flat(buffer.actions).astype(np.float32, copy=False)),
        old_values=tensor(buffer.values).flatten(),
        old_log_prob=tensor(buffer.log_probs).flatten(),
        advantages=tensor(buffer.advantages).flatten(),
        returns=tensor(buffer.returns).flatten(),
    )
