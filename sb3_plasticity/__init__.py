"""
Reinforcement learning that keeps learning: an extension of stable-baselines3.

Importing this package registers its environments with Gymnasium. Everything else is imported on first use, so that
``sb3_plasticity.envs`` serves users of other RL libraries (and worker processes) without loading torch.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import sb3_plasticity.envs  # noqa: F401  (registers the environments)

if TYPE_CHECKING:
    from sb3_plasticity.callbacks.curvature import CurvatureCallback
    from sb3_plasticity.callbacks.metrics import Metric
    from sb3_plasticity.callbacks.plasticity import PlasticityCallback
    from sb3_plasticity.callbacks.task_sync import TaskSyncCallback
    from sb3_plasticity.common.rank import effective_rank, epsilon_rank
    from sb3_plasticity.curvature.entk import entk_spectrum
    from sb3_plasticity.curvature.ggn import ggn_spectrum
    from sb3_plasticity.curvature.hessian import hessian_spectrum
    from sb3_plasticity.curvature.kfac import kfac_spectrum
    from sb3_plasticity.curvature.records import load_spectra
    from sb3_plasticity.curvature.spectrum import Spectrum
    from sb3_plasticity.envs.registration import register_nonstationary
    from sb3_plasticity.envs.sequence import TaskSequence
    from sb3_plasticity.envs.wrappers import NonStationary
    from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER
    from sb3_plasticity.vec_env import MujocoBatchVecEnv, make_nonstationary_vec_env

try:
    __version__ = version("sb3-plasticity")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "unknown"

_HOME = {
    "register_nonstationary": "envs.registration",
    "NonStationary": "envs.wrappers",
    "TaskSequence": "envs.sequence",
    "PPO_L2ER": "ppo_l2er.ppo_l2er",
    "CurvatureCallback": "callbacks.curvature",
    "Metric": "callbacks.metrics",
    "PlasticityCallback": "callbacks.plasticity",
    "TaskSyncCallback": "callbacks.task_sync",
    "MujocoBatchVecEnv": "vec_env",
    "make_nonstationary_vec_env": "vec_env",
    "effective_rank": "common.rank",
    "epsilon_rank": "common.rank",
    "Spectrum": "curvature.spectrum",
    "hessian_spectrum": "curvature.hessian",
    "entk_spectrum": "curvature.entk",
    "ggn_spectrum": "curvature.ggn",
    "kfac_spectrum": "curvature.kfac",
    "load_spectra": "curvature.records",
}

__all__ = [
    "register_nonstationary",
    "NonStationary",
    "TaskSequence",
    "CurvatureCallback",
    "MujocoBatchVecEnv",
    "Metric",
    "PPO_L2ER",
    "PlasticityCallback",
    "Spectrum",
    "TaskSyncCallback",
    "effective_rank",
    "epsilon_rank",
    "entk_spectrum",
    "ggn_spectrum",
    "hessian_spectrum",
    "kfac_spectrum",
    "load_spectra",
    "make_nonstationary_vec_env",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
