"""
A rollout buffer's contents, read without consuming them.

``RolloutBuffer.get`` draws from NumPy's global generator and flattens the buffer in place; these functions do neither,
so whoever looks at a rollout leaves training as it was.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.buffers import (
    MaskableDictRolloutBuffer,
    MaskableRolloutBuffer,
    MaskableRolloutBufferSamples,
)
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from torch.utils import _pytree as pytree

Samples = RolloutBufferSamples | MaskableRolloutBufferSamples | RecurrentRolloutBufferSamples


def rollout_size(buffer: RolloutBuffer) -> int:
    """
    Count the transitions of a full buffer.

    :param buffer: a rollout buffer
    :return: n_steps * n_envs
    """
    return buffer.buffer_size * buffer.n_envs


def is_recurrent(buffer: RolloutBuffer) -> bool:
    """
    Tell whether transitions only make sense in sequences.

    :param buffer: a rollout buffer
    :return: True for sb3-contrib's recurrent buffers
    """
    return isinstance(buffer, (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer))


def rollout_samples(buffer: RolloutBuffer, rows: np.ndarray | None = None) -> Samples:
    """
    Read transitions of a full buffer, as ``RolloutBuffer.get`` would give them.

    Row ``env * n_steps + step`` is the transition of an environment at a step, as in a flattened buffer.

    :param buffer: a full rollout buffer of any of SB3's and sb3-contrib's kinds; a recurrent one not yet flattened
    :param rows: (n,) which transitions, all if None. For recurrent buffers (n_sequences, length): successive steps of
        one environment in each row of the array; each starts from the recurrent state it was collected with
    :return: tensors on the buffer's device
    :raises ValueError: if ``rows`` does not have two axes for a recurrent buffer
    """
    if rows is None:
        rows = np.arange(rollout_size(buffer))
    flat_rows = rows.reshape(-1)

    def tensor(array: np.ndarray) -> th.Tensor:
        if not buffer.generator_ready:
            array = buffer.swap_and_flatten(array)
        return buffer.to_torch(array[flat_rows])

    observations: PyTorchObs
    if isinstance(buffer.observations, dict):
        observations = {key: tensor(value) for key, value in buffer.observations.items()}
    else:
        observations = tensor(buffer.observations)
    fields: dict[str, Any] = dict(
        observations=observations,
        actions=tensor(buffer.actions).float(),
        old_values=tensor(buffer.values).flatten(),
        old_log_prob=tensor(buffer.log_probs).flatten(),
        advantages=tensor(buffer.advantages).flatten(),
        returns=tensor(buffer.returns).flatten(),
    )
    if isinstance(buffer, (MaskableRolloutBuffer, MaskableDictRolloutBuffer)):
        return MaskableRolloutBufferSamples(**fields, action_masks=tensor(buffer.action_masks))
    if is_recurrent(buffer):
        if rows.ndim != 2:
            raise ValueError(f"`rows` must have shape (n_sequences, length) for a recurrent buffer, got {rows.shape}")
        env, step = np.divmod(rows[:, 0], buffer.buffer_size)

        def state(array: np.ndarray) -> th.Tensor:  # (n_steps, layers, n_envs, hidden) -> (layers, n_sequences, hidden)
            return buffer.to_torch(array[step, :, env].swapaxes(0, 1))

        states = {name: getattr(buffer, name) for name in ("hidden_states_pi", "cell_states_pi")}
        states |= {name: getattr(buffer, name) for name in ("hidden_states_vf", "cell_states_vf")}
        return RecurrentRolloutBufferSamples(
            **fields,
            lstm_states=RNNStates(
                pi=(state(states["hidden_states_pi"]), state(states["cell_states_pi"])),
                vf=(state(states["hidden_states_vf"]), state(states["cell_states_vf"])),
            ),
            episode_starts=tensor(buffer.episode_starts).flatten(),
            mask=th.ones(len(flat_rows), dtype=th.bool, device=buffer.device),
        )
    return RolloutBufferSamples(**fields)


def concatenate_samples(parts: Sequence[Any]) -> Any:
    """
    Join transitions of one buffer kind, a rollout's or a replay buffer's.

    :param parts: NamedTuples of tensors, at least one; recurrent ones with sequences of equal length
    :return: one batch
    """

    def join(path: tuple[Any, ...], *tensors: th.Tensor) -> th.Tensor:
        return th.cat(tensors, dim=1 if _is_recurrent_state(path) else 0)

    return pytree.tree_map_with_path(join, parts[0], *parts[1:])


def last_samples(samples: Any, count: int) -> Any:
    """
    Keep the last transitions of a batch, a rollout's or a replay buffer's.

    :param samples: a NamedTuple of tensors
    :param count: how many at most, >= 1; of recurrent batches whole sequences
    :return: the batch, or its end
    """
    available = len(samples.actions)
    if available <= count:
        return samples
    n_sequences = count
    if isinstance(samples, RecurrentRolloutBufferSamples):
        length = available // samples.lstm_states.pi[0].shape[1]
        n_sequences = count // length
        count = n_sequences * length

    def keep(path: tuple[Any, ...], tensor: th.Tensor) -> th.Tensor:
        if _is_recurrent_state(path):
            return tensor[:, tensor.shape[1] - n_sequences :]
        return tensor[available - count :]

    return pytree.tree_map_with_path(keep, samples)


def spread_rows(eligible: np.ndarray, n_samples: int, sequence_length: int | None = None) -> np.ndarray:
    """
    Choose transitions spread evenly over those that are eligible.

    :param eligible: (n_steps, n_envs) bool
    :param n_samples: how many at most
    :param sequence_length: choose runs of this many successive steps of one environment
    :return: (n,) rows, or (n_sequences, length), for :func:`rollout_samples`; all eligible ones if there are too few
    """
    by_env = eligible.T  # row = env * n_steps + step
    if sequence_length is None:
        candidates = np.flatnonzero(by_env.reshape(-1))
        rows: np.ndarray = candidates[_spread(len(candidates), n_samples)]
        return rows
    n_envs, n_steps = by_env.shape
    usable = n_steps - n_steps % sequence_length
    windows = np.arange(n_envs * n_steps).reshape(n_envs, n_steps)[:, :usable].reshape(-1, sequence_length)
    candidates = windows[by_env[:, :usable].reshape(-1, sequence_length).all(1)]
    rows = candidates[_spread(len(candidates), n_samples // sequence_length)]
    return rows


def _spread(available: int, wanted: int) -> np.ndarray:
    if available <= wanted:
        return np.arange(available)
    return np.linspace(0, available - 1, wanted).round().astype(int)


def _is_recurrent_state(path: tuple[Any, ...]) -> bool:
    """Tell whether a leaf of a batch is a recurrent state, (layers, n_sequences, hidden)."""
    return getattr(path[0], "name", None) == "lstm_states"
