"""Transitions of an agent, read where its algorithm keeps them, without consuming them or drawing random numbers."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch.utils import _pytree as pytree

from sb3_plasticity.common.generators import own_generators
from sb3_plasticity.common.rollout import (
    concatenate_samples,
    is_recurrent,
    last_samples,
    rollout_samples,
    spread_rows,
)

# Steps of one environment that a recurrent network is unrolled over.
SEQUENCE_LENGTH = 16
_NOISE_SEED = 0


class ReplaySamples(NamedTuple):
    """
    Transitions of a replay buffer, and the random numbers that losses on them would draw.

    :param observations: (N, ...), normalised as for an update
    :param actions: (N, ...) as the buffer stores them
    :param next_observations: (N, ...)
    :param dones: (N, 1), 0 where an episode was cut off by a time limit
    :param rewards: (N, 1), of several steps in an n-step buffer
    :param discounts: (N, 1)
    :param noise: (N, actions) standard normal, for actions in ``observations``
    :param next_noise: the same for ``next_observations``
    :param targets: (N, ...) what values are fitted to, once it is known
    """

    observations: PyTorchObs
    actions: th.Tensor
    next_observations: PyTorchObs
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor
    noise: th.Tensor
    next_noise: th.Tensor
    targets: th.Tensor


class SampleSource(ABC):
    """
    Where an algorithm's transitions come from, one rollout after another.

    It is told when a rollout has ended. What it hands out as a *part* is opaque: transitions, or where to read them.
    """

    @abstractmethod
    def rollout_ended(self, keep: int) -> None:
        """
        Notice a finished rollout.

        :param keep: keep the last transitions of rollouts, this many at most, for :meth:`latest`
        """

    @abstractmethod
    def take(self, eligible: np.ndarray, count: int, *, last: bool = False, ago: int = 0) -> Any:
        """
        Choose among the transitions of the rollout that has just ended.

        :param eligible: (n_steps, n_envs) bool
        :param count: how many at most
        :param last: rather the last ones than the first, where the rollout's order counts
        :param ago: how many steps ago ``eligible`` ends; not 0 only for a source that :attr:`remembers`
        :return: a part, None if there is none
        """

    @abstractmethod
    def some(self, part: Any, count: int) -> Any:
        """
        Choose among the transitions of a part.

        :param part: from :meth:`take`
        :param count: how many at most
        :return: a part
        """

    @abstractmethod
    def latest(self, count: int) -> Any:
        """
        Hand out the latest transitions of all rollouts so far.

        :param count: how many
        :return: a part with as many, or fewer if there are fewer
        """

    @abstractmethod
    def size(self, part: Any) -> int:
        """
        Count the transitions of a part.

        :param part: from :meth:`take`, :meth:`latest` or :meth:`last`
        :return: N
        """

    @abstractmethod
    def last(self, parts: Sequence[Any], count: int) -> Any:
        """
        Join parts and keep the end.

        :param parts: at least one
        :param count: how many transitions at most
        :return: a part
        """

    @abstractmethod
    def read(self, parts: Sequence[Any]) -> Any:
        """
        Join parts to samples.

        :param parts: at least one
        :return: a NamedTuple of tensors
        """

    @abstractmethod
    def rounded(self, count: int) -> int:
        """
        Say how many transitions are handed out where so many are asked for.

        :param count: asked for
        :return: the same, or that of whole sequences
        """

    @property
    @abstractmethod
    def capacity(self) -> float:
        """How many transitions can be held at once: infinity where they are copied."""

    @property
    @abstractmethod
    def remembers(self) -> bool:
        """Whether transitions of past rollouts can still be taken."""

    @property
    @abstractmethod
    def n_envs(self) -> int:
        """Number of environments."""


@singledispatch
def source_of(model: Any) -> SampleSource:
    """
    Say where an algorithm's transitions are; a stranger's joins with ``@source_of.register(MyAlgorithm)``.

    :param model: an algorithm of SB3 or sb3-contrib, set up
    :return: the source, at the state the buffer is in
    :raises TypeError: for an algorithm that is neither on-policy nor off-policy, and is not registered
    """
    raise TypeError(
        f"`model` must be an on-policy or off-policy algorithm, got a {type(model).__name__}: "
        "register it with @source_of.register"
    )


@source_of.register(OnPolicyAlgorithm)
class RolloutSource(SampleSource):
    """
    Transitions of a rollout buffer, which holds one rollout at a time; parts are copies.

    :param model: an on-policy algorithm
    """

    def __init__(self, model: OnPolicyAlgorithm) -> None:
        self.model = model
        self._window: deque[Any] = deque()

    def rollout_ended(self, keep: int) -> None:  # noqa: D102
        buffer = self.model.rollout_buffer
        if keep <= 0 or buffer.buffer_size * buffer.n_envs >= keep:
            self._window.clear()
            return
        part = self.take(np.ones((buffer.buffer_size, buffer.n_envs), dtype=bool), keep)
        if part is None:
            return
        self._window.append(part)
        held = sum(map(self.size, self._window))
        while held - self.size(self._window[0]) >= keep:
            held -= self.size(self._window.popleft())

    def take(self, eligible: np.ndarray, count: int, *, last: bool = False, ago: int = 0) -> Any:  # noqa: D102
        buffer = self.model.rollout_buffer
        length = min(SEQUENCE_LENGTH, buffer.buffer_size) if is_recurrent(buffer) else None
        rows = spread_rows(eligible, max(count, length or 0), length)
        return rollout_samples(buffer, rows) if rows.size else None

    def some(self, part: Any, count: int) -> Any:  # noqa: D102
        return last_samples(part, count)

    def latest(self, count: int) -> Any:  # noqa: D102
        if self._window:
            return self.last(list(self._window), count)
        buffer = self.model.rollout_buffer
        return self.take(np.ones((buffer.buffer_size, buffer.n_envs), dtype=bool), count)

    def size(self, part: Any) -> int:  # noqa: D102
        return len(part.actions)

    def last(self, parts: Sequence[Any], count: int) -> Any:  # noqa: D102
        return last_samples(self.read(parts), count)

    def read(self, parts: Sequence[Any]) -> Any:  # noqa: D102
        # those of a resumed run come from a file
        return concatenate_samples([pytree.tree_map(lambda tensor: tensor.to(self.model.device), p) for p in parts])

    def rounded(self, count: int) -> int:  # noqa: D102
        if is_recurrent(self.model.rollout_buffer):
            length = min(SEQUENCE_LENGTH, self.model.rollout_buffer.buffer_size)
            return max(1, count // length) * length
        return count

    @property
    def capacity(self) -> float:  # noqa: D102
        return np.inf

    @property
    def remembers(self) -> bool:  # noqa: D102
        return False

    @property
    def n_envs(self) -> int:  # noqa: D102
        return self.model.n_envs


@source_of.register(OffPolicyAlgorithm)
class ReplaySource(SampleSource):
    """
    Transitions of a replay buffer; parts say where they are: (n, 2) of how many-th step and which environment.

    :param model: an off-policy algorithm
    """

    def __init__(self, model: OffPolicyAlgorithm) -> None:
        self.model = model
        self._position = self._buffer.pos
        self._steps = 0  # that were added since then

    @property
    def _buffer(self) -> ReplayBuffer:
        assert self.model.replay_buffer is not None
        return self.model.replay_buffer

    def rollout_ended(self, keep: int) -> None:  # noqa: D102
        position = self._buffer.pos
        self._steps += (position - self._position) % self._buffer.buffer_size
        self._position = position

    def take(self, eligible: np.ndarray, count: int, *, last: bool = False, ago: int = 0) -> Any:  # noqa: D102
        rows = np.argwhere(eligible)  # in order of time
        rows = rows[-count:] if last else rows[:count]
        return rows + [self._steps - ago - len(eligible), 0] if len(rows) else None

    def some(self, part: Any, count: int) -> Any:  # noqa: D102
        return part[:count] if isinstance(part, np.ndarray) else last_samples(part, count)

    def latest(self, count: int) -> Any:  # noqa: D102
        buffer = self._buffer
        steps = min(-(-count // buffer.n_envs), buffer.size())
        rows = np.stack(np.divmod(np.arange(steps * buffer.n_envs), buffer.n_envs), axis=1)
        return (rows + [self._steps - steps, 0])[-count:]

    def size(self, part: Any) -> int:  # noqa: D102
        return len(part) if isinstance(part, np.ndarray) else len(part.actions)

    def last(self, parts: Sequence[Any], count: int) -> Any:  # noqa: D102
        if all(isinstance(part, np.ndarray) for part in parts):
            return np.concatenate(parts)[-count:]
        return last_samples(self.read(parts), count)  # some are a resumed run's

    def rounded(self, count: int) -> int:  # noqa: D102
        return count

    @property
    def capacity(self) -> float:  # noqa: D102
        return self._buffer.buffer_size * self._buffer.n_envs

    @property
    def remembers(self) -> bool:  # noqa: D102
        return True

    @property
    def n_envs(self) -> int:  # noqa: D102
        return self._buffer.n_envs

    def read(self, parts: Sequence[Any]) -> ReplaySamples:  # noqa: D102
        if all(isinstance(part, np.ndarray) for part in parts):
            return self._at(np.concatenate(parts))
        pieces = [self._at(part) if isinstance(part, np.ndarray) else self._here(part) for part in parts]
        samples: ReplaySamples = concatenate_samples(pieces)
        return samples

    def _here(self, samples: ReplaySamples) -> ReplaySamples:
        moved: ReplaySamples = pytree.tree_map(lambda tensor: tensor.to(self.model.device), samples)
        return moved

    def _at(self, rows: np.ndarray) -> ReplaySamples:
        if rows[:, 0].min() < self._steps - self._buffer.buffer_size:
            raise ValueError(
                f"the replay buffer (buffer_size={self._buffer.buffer_size * self._buffer.n_envs}) no longer holds the "
                "transitions: `n_samples` must be smaller, or `buffer_size` larger"
            )
        positions = (self._position + rows[:, 0] - self._steps) % self._buffer.buffer_size
        return replay_samples(self._buffer, positions, rows[:, 1], self.model.gamma, self.model.get_vec_normalize_env())


def replay_samples(
    buffer: ReplayBuffer,
    positions: np.ndarray,
    environments: np.ndarray,
    gamma: float,
    normalization: VecNormalize | None = None,
) -> ReplaySamples:
    """
    Read transitions of a replay buffer, as ``ReplayBuffer.sample`` would give them, n-step returns included.

    :param buffer: of SB3, or a subclass with its ``_get_samples``
    :param positions: (N,) indices of steps in the buffer
    :param environments: (N,) whose transition
    :param gamma: discount where the buffer gives none
    :param normalization: statistics to normalise with
    :return: samples in the order given, targets empty
    """
    pieces, order = [], []
    with own_generators(_NOISE_SEED):  # _get_samples draws the environment of each transition: here there is one
        for environment in np.unique(environments):
            chosen = np.flatnonzero(environments == environment)
            order.append(chosen)
            pieces.append(_one_environment(buffer, int(environment))._get_samples(positions[chosen], normalization))
    back = th.as_tensor(np.argsort(np.concatenate(order)))

    def joined(values: Sequence[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: joined([value[key] for value in values]) for key in values[0]}
        return th.cat(list(values))[back.to(values[0].device)]

    actions, rewards = joined([piece.actions for piece in pieces]), joined([piece.rewards for piece in pieces])
    discounts = [getattr(piece, "discounts", None) for piece in pieces]
    generator = th.Generator().manual_seed(_NOISE_SEED)
    noise = th.randn(2, *actions.shape, generator=generator).to(rewards)
    return ReplaySamples(
        observations=joined([piece.observations for piece in pieces]),
        actions=actions,
        next_observations=joined([piece.next_observations for piece in pieces]),
        dones=joined([piece.dones for piece in pieces]),
        rewards=rewards,
        discounts=th.full_like(rewards, gamma) if discounts[0] is None else joined(discounts),
        noise=noise[0],
        next_noise=noise[1],
        targets=rewards[:, :0],
    )


def _one_environment(buffer: ReplayBuffer, index: int) -> ReplayBuffer:
    """View a buffer of many environments as one of a single environment; its arrays are slices, not copies."""
    view: ReplayBuffer = object.__new__(type(buffer))  # HER's copy would drop its environment
    size, n_envs = buffer.buffer_size, buffer.n_envs

    def sliced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: sliced(item) for key, item in value.items()}
        if isinstance(value, np.ndarray) and value.shape[:2] == (size, n_envs):
            return value[:, index : index + 1]
        return value

    vars(view).update({name: sliced(value) for name, value in vars(buffer).items()})
    view.n_envs = 1
    return view
