"""PPO_L2ER among rl_zoo3's algorithms, and our environments among Gymnasium's."""

from rl_zoo3.utils import ALGOS

import sb3_plasticity.envs  # noqa: F401  (registers the environments)
from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER


def register() -> None:
    """Add ``ppo_l2er`` to the dictionary that rl_zoo3 keeps its algorithms in. Doing so twice changes nothing."""
    ALGOS["ppo_l2er"] = PPO_L2ER
