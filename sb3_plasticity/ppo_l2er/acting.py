"""
Acting in the environment without the overhead of distributions and preprocessing, bit for bit as SB3 acts.

A forward pass of one observation through SB3's policy spends most of its time on building a distribution, checking its
arguments and choosing how to preprocess. For a standard MLP policy with Gaussian actions the arithmetic is a handful of
operations; done alone, in the same order and on the same random numbers, they give the same bits.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.nn import functional as F

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))
# Called without hooks and without a copy of their state, these are functions.
_ACTIVATIONS: dict[type[nn.Module], Callable[[th.Tensor], th.Tensor]] = {nn.Tanh: th.tanh, nn.ReLU: th.relu}


@contextmanager
def lean_acting(policy: ActorCriticPolicy) -> Iterator[bool]:
    """
    Let ``policy(observations)`` take the short way, where there is one, while a rollout is collected.

    The weights must not change inside the context.

    :param policy: any actor-critic
    :yields: whether there is a short way
    """
    forward = lean_forward(policy)
    if forward is None:
        yield False
        return
    policy.forward = forward  # type: ignore[method-assign]
    try:
        yield True
    finally:
        del policy.forward


def lean_forward(policy: ActorCriticPolicy) -> Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor]] | None:
    """
    Build the short way of a policy's ``forward``.

    :param policy: any actor-critic
    :return: a function with the arguments and results of ``ActorCriticPolicy.forward``, for as long as the weights
        stay as they are; None for anything but SB3's own MLP policy with vector observations, Gaussian actions, tanh
        or ReLU, and no hooks
    """
    if not _is_standard(policy):
        return None
    actor = _layers(policy.mlp_extractor.policy_net, policy.action_net)
    critic = _layers(policy.mlp_extractor.value_net, policy.value_net)
    if actor is None or critic is None:
        return None
    original, shape = type(policy).forward, policy.action_space.shape or ()
    scale = policy.log_std.detach().exp()
    double_variance, log_scale = 2 * scale**2, scale.log()

    def forward(obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        features = obs.float().flatten(1)
        mean, values = features, features
        for layer in actor:
            mean = layer(mean)
        for layer in critic:
            values = layer(values)
        actions = mean if deterministic else mean + th.empty_like(mean).normal_() * scale
        log_prob = (-((actions - mean) ** 2) / double_variance - log_scale - _LOG_SQRT_2_PI).sum(dim=1)
        if not math.isfinite(log_prob.sum()):
            return original(policy, obs, deterministic)  # which says what is wrong
        return actions.reshape(-1, *shape), values, log_prob

    return forward


def _is_standard(policy: ActorCriticPolicy) -> bool:
    return (
        type(policy) is ActorCriticPolicy
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_dist) is DiagGaussianDistribution
        and isinstance(policy.observation_space, spaces.Box)
        and not is_image_space(policy.observation_space)
        and policy.observation_space.shape != ()
        # A PyTorch that keeps its hooks elsewhere may have some: that is no short way.
        and not any(getattr(module, kind, True) for module in policy.modules() for kind in _HOOKS)
    )


def _layers(hidden: nn.Sequential, head: nn.Module) -> list[Callable[[th.Tensor], th.Tensor]] | None:
    functions: list[Callable[[th.Tensor], th.Tensor]] = []
    for module in (*hidden, head):
        if type(module) is nn.Linear:
            bias = None if module.bias is None else module.bias.detach()
            functions.append(partial(F.linear, weight=module.weight.detach(), bias=bias))
        elif type(module) in _ACTIVATIONS:
            functions.append(_ACTIVATIONS[type(module)])
        else:
            return None
    return functions
