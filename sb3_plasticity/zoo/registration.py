"""PPO_L2ER among rl_zoo3's algorithms, samplers and converters."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_plasticity.envs  # noqa: F401  (registers the environments)
from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER

NAME = "ppo_l2er"


def register() -> None:
    """Add ``ppo_l2er`` to the dictionaries that all of rl_zoo3's scripts share. Doing so twice changes nothing."""
    ALGOS[NAME] = PPO_L2ER
    HYPERPARAMS_SAMPLER[NAME] = sample_ppo_l2er_params
    # The names sampled beside PPO's are PPO_L2ER's arguments as they are.
    HYPERPARAMS_CONVERTER[NAME] = HYPERPARAMS_CONVERTER["ppo"]


def sample_ppo_l2er_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample PPO's hyper-parameters as rl_zoo3 does, and the strengths of the two penalties.

    :param trial: of the study
    :param n_actions: dimensions of the action
    :param n_envs: environments
    :param additional_args: for off-policy algorithms
    :return: arguments of PPO_L2ER
    """
    hyperparams = HYPERPARAMS_SAMPLER["ppo"](trial, n_actions, n_envs, additional_args)
    hyperparams["er_coef"] = trial.suggest_float("er_coef", 1e-5, 1e-1, log=True)
    hyperparams["l2_coef"] = trial.suggest_float("l2_coef", 1e-6, 1e-2, log=True)
    hyperparams["er_interval"] = trial.suggest_int("er_interval", 1, 16, log=True)
    return hyperparams
