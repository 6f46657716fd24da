"""What an SB3 actor-critic says of transitions, and inputs of zeros for it."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_plasticity.common.rollout import Samples


def evaluate_actions(
    policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate a policy on actions as a rollout buffer stores them.

    :param policy: an SB3 actor-critic policy
    :param observations: (N, ...), or a dictionary of such
    :param actions: (N, ...); discrete ones as floats (N, 1)
    :return: values (N, 1), log probabilities (N,), entropy (N,) or None
    """
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    return policy.evaluate_actions(observations, actions)


def evaluate_samples(policy: Any, samples: Samples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate a policy on transitions, with what recurrent and maskable policies need besides.

    :param policy: an actor-critic policy of SB3 or sb3-contrib
    :param samples: N transitions of that policy's buffer
    :return: values (N, 1), log probabilities (N,), entropy (N,) or None
    """
    actions = samples.actions
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    context: tuple[Any, ...] = ()
    if isinstance(samples, RecurrentRolloutBufferSamples):
        context = samples.lstm_states, samples.episode_starts
    elif isinstance(samples, MaskableRolloutBufferSamples):
        context = (samples.action_masks,)
    result: tuple[th.Tensor, th.Tensor, th.Tensor | None] = policy.evaluate_actions(
        samples.observations, actions, *context
    )
    return result


def zero_observation(policy: ActorCriticPolicy) -> PyTorchObs:
    """
    Make an all-zero observation.

    :param policy: an SB3 actor-critic policy
    :return: a batch of one observation, on the policy's device
    """
    space = policy.observation_space
    if isinstance(space, spaces.Dict):
        zeros = {key: np.zeros((1, *(sub.shape or ())), dtype=sub.dtype) for key, sub in space.spaces.items()}
        return {key: th.as_tensor(value, device=policy.device) for key, value in zeros.items()}
    return th.as_tensor(np.zeros((1, *(space.shape or ())), dtype=space.dtype), device=policy.device)


def zero_action(policy: ActorCriticPolicy) -> th.Tensor:
    """
    Make an all-zero action.

    :param policy: an SB3 actor-critic policy
    :return: a batch of one action as ``evaluate_actions`` takes it, on the policy's device
    """
    space = policy.action_space
    if isinstance(space, spaces.Discrete):
        return th.zeros(1, dtype=th.long, device=policy.device)
    # As rollout buffers store them: a Box of any shape is one row of numbers.
    shape = (get_action_dim(space),) if isinstance(space, spaces.Box) else space.shape or ()
    return th.zeros(1, *shape, device=policy.device)
