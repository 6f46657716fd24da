"""Ids of worlds that change: one line for each, from any package."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator

from sb3_plasticity.common.checks import must_be, nearest

from .batched import BatchedRobot, register_batched
from .nonstationary import NonStationaryMixin
from .wrappers import NonStationary

__all__ = ["register_nonstationary"]

Maker = Callable[..., gym.Env[Any, Any]]


def register_nonstationary(
    id: str,
    parent: str | type[gym.Env[Any, Any]] | Maker,
    batched: type[BatchedRobot] | None = None,
    *,
    max_episode_steps: int | None = None,
    **kwargs: Any,
) -> None:
    """
    Register an environment that changes::

        register_nonstationary(
            "DriftingPole-v0", "CartPole-v1", parameter="gravity",
            schedule={"kind": "uniform", "low": 5, "high": 15, "period": 50_000},
        )
        register_nonstationary(
            "SlipperySwimmer-v0", SlipperySwimmerEnv, BatchedSwimmer, max_episode_steps=1000
        )

    :param id: id of the new environment, such as ``"SlipperySwimmer-v0"``
    :param parent: the environment that changes: a class of MuJoCo environments
        (:class:`~sb3_plasticity.envs.NonStationaryMixin` is put before it unless it has it); the id of any environment,
        which :class:`~sb3_plasticity.envs.NonStationary` wraps; or a function, or ``"module:name"``, that creates an
        environment with a clock
    :param batched: the formulas of a MuJoCo environment for many simulations. With them, ``MujocoBatchVecEnv`` and
        ``gymnasium.make_vec`` step it in one thread pool.
    :param max_episode_steps: time limit; an environment that is given by its id has its own
    :param kwargs: default keyword arguments of the environment
    :raises ValueError: if the parent is none of these
    """
    vector_entry_point = None
    if isinstance(parent, str) and ":" in parent:
        entry_point: str | Maker = parent
        parent = parent if batched is None else load_env_creator(parent)  # type: ignore[assignment]
    elif isinstance(parent, str):
        if parent not in gym.registry:
            accepted = "a class, a function or the id of an environment"
            raise ValueError(f"{must_be('parent', accepted, parent)}{nearest(parent, gym.registry)}")
        entry_point = functools.partial(_wrapped, parent)
    elif isinstance(parent, type) and issubclass(parent, MujocoEnv):
        parent = nonstationary_class(parent)
        entry_point = _name_of(parent)
    elif callable(parent):
        entry_point = _name_of(parent)
    else:
        raise must_be("parent", "a class, a function or the id of an environment", parent)
    if batched is not None:
        if not (isinstance(parent, type) and issubclass(parent, MujocoEnv)):
            raise must_be("batched", "None unless `parent` is a class of MuJoCo environments", batched)
        register_batched(parent, batched)
        vector_entry_point = f"sb3_plasticity.envs.vector:{id}"
    gym.register(
        id=id,
        entry_point=entry_point,
        max_episode_steps=max_episode_steps,
        vector_entry_point=vector_entry_point,
        kwargs=kwargs,
    )


def _name_of(maker: Any) -> str | Maker:
    """As a string where possible, so that a process that never imported its module can make the environment."""
    module, name = getattr(maker, "__module__", ""), getattr(maker, "__qualname__", "")
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is maker:
        return f"{module}:{name}"
    result: str | Callable[..., gym.Env[Any, Any]] = maker
    return result


def _wrapped(
    parent: str, *, parameter: Any, schedule: Any, switch: str = "reset", task: int | None = None, **kwargs: Any
) -> NonStationary:
    return NonStationary(gym.make(parent, **kwargs), parameter, schedule, switch=switch, task=task)


_made: dict[type[MujocoEnv], type[MujocoEnv]] = {}


def nonstationary_class(parent: type[MujocoEnv]) -> type[MujocoEnv]:
    """
    Put the mixin before a class of MuJoCo environments.

    :param parent: the class
    :return: a new class, or the same if it has the mixin
    """
    if issubclass(parent, NonStationaryMixin):
        return parent
    if parent not in _made:
        name, members = f"NonStationary{parent.__name__}", {"__doc__": parent.__doc__, "__reduce__": _reduce}
        _made[parent] = type(name, (NonStationaryMixin, parent), members)
    return _made[parent]


def _reduce(env: Any) -> tuple[Any, ...]:
    # the class is nobody's attribute, so an instance names what it is made of
    return _remake, (type(env).__bases__[1], env.__getstate__())


def _remake(parent: type[MujocoEnv], state: dict[str, Any]) -> Any:
    cls = nonstationary_class(parent)
    env = cls.__new__(cls)
    env.__setstate__(state)  # type: ignore[attr-defined]
    return env
