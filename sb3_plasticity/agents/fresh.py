"""A newly initialised policy of any agent's class and arguments."""

from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_plasticity.common.generators import own_generators


def fresh_policy(model: Any, seed: int) -> Any:
    """
    Build a newly initialised policy of a model's class and arguments; no global random generator notices.

    Built as the algorithm builds its own, because ``policy._get_constructor_parameters`` leaves some arguments out.

    :param model: an algorithm of SB3 or sb3-contrib
    :param seed: of the initialisation
    :return: the policy, on the model's device
    """
    arguments: dict[str, Any] = dict(model.policy_kwargs)
    if isinstance(model, OnPolicyAlgorithm) and not isinstance(model, MaskablePPO):
        arguments["use_sde"] = model.use_sde
    with own_generators(seed):
        policy = model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **arguments)
    return policy.to(model.device)
