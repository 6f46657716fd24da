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
    from sb3_plasticity import mitigations
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
    from sb3_plasticity.mitigations.attachment import mitigate
    from sb3_plasticity.mitigations.base import Mitigation
    from sb3_plasticity.mitigations.callback import MitigationCallback
    from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER
    from sb3_plasticity.vec_env import MujocoBatchVecEnv, MujocoWarpVecEnv, make_nonstationary_vec_env

try:
    __version__ = version("sb3-plasticity")
except PackageNotFoundError:  # a source tree on sys.path that was never installed
    __version__ = "unknown"

# Public name to its home.
_HOME = {
    "PPO_L2ER": "ppo_l2er.ppo_l2er",
    "MitigationCallback": "mitigations.callback",
    "Mitigation": "mitigations.base",
    "mitigate": "mitigations.attachment",
    "CurvatureCallback": "callbacks.curvature",
    "PlasticityCallback": "callbacks.plasticity",
    "Metric": "callbacks.metrics",
    "TaskSyncCallback": "callbacks.task_sync",
    "MujocoBatchVecEnv": "vec_env",
    "MujocoWarpVecEnv": "vec_env",
    "make_nonstationary_vec_env": "vec_env",
    "NonStationary": "envs.wrappers",
    "TaskSequence": "envs.sequence",
    "register_nonstationary": "envs.registration",
    "effective_rank": "common.rank",
    "epsilon_rank": "common.rank",
    "Spectrum": "curvature.spectrum",
    "hessian_spectrum": "curvature.hessian",
    "ggn_spectrum": "curvature.ggn",
    "kfac_spectrum": "curvature.kfac",
    "entk_spectrum": "curvature.entk",
    "load_spectra": "curvature.records",
}

__all__ = [
    "CurvatureCallback",
    "Metric",
    "Mitigation",
    "MitigationCallback",
    "MujocoBatchVecEnv",
    "MujocoWarpVecEnv",
    "NonStationary",
    "PPO_L2ER",
    "PlasticityCallback",
    "Spectrum",
    "TaskSequence",
    "TaskSyncCallback",
    "effective_rank",
    "entk_spectrum",
    "epsilon_rank",
    "ggn_spectrum",
    "hessian_spectrum",
    "kfac_spectrum",
    "load_spectra",
    "make_nonstationary_vec_env",
    "mitigate",
    "mitigations",
    "register_nonstationary",
]


def __getattr__(name: str) -> Any:
    if name == "mitigations":
        return importlib.import_module(f"{__name__}.mitigations")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "envs"])
