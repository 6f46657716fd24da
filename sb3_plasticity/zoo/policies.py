"""The networks of the published runs."""

import math

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


class LecunPolicy(ActorCriticPolicy):
    """
    SB3's ``MlpPolicy`` with LeCun's uniform initialization and zero biases in every layer.

    That is how the networks of Dohare et al. (Nature, 2024) and of lop-jax start; SB3's orthogonal initialization gives
    the action layer weights a hundred times smaller.
    """

    @staticmethod
    def init_weights(module: nn.Module, gain: float = 1) -> None:
        """Initialize a linear layer; whatever the gain, it keeps the variance of its input."""
        if isinstance(module, nn.Linear):
            bound = math.sqrt(3 / module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
