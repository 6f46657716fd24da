"""Packages that only some worlds need."""

from __future__ import annotations

import importlib
from types import ModuleType

from gymnasium.error import DependencyNotInstalled

__all__ = ["require"]


def require(module: str, extra: str, env_id: str) -> ModuleType:
    """
    Import what a world needs.

    :param module: its name
    :param extra: of sb3-plasticity, that installs it
    :param env_id: of the world
    :return: the module
    :raises gymnasium.error.DependencyNotInstalled: if it is not there, or not with this MuJoCo
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyNotInstalled(
            f"{env_id} needs {module} ({error}): pip install 'sb3-plasticity[{extra}]'"
        ) from error
