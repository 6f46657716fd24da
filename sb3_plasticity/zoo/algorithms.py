"""rl_zoo3's algorithms by their names, ``ppo_l2er`` among them; our environments are registered with it."""

from rl_zoo3.utils import ALGOS

import sb3_plasticity.envs  # noqa: F401  (registers the environments)
from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER

# rl_zoo3 offers no other way to add one
ALGOS["ppo_l2er"] = PPO_L2ER

__all__ = ["ALGOS"]
