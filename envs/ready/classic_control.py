"""CartPole and Acrobot whose physics changes, and the shifted observations of TRAC and C-CHAIN."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from sb3_plasticity.common.checks import check_choice, must_be, suggests_names

from ..schedules import Schedule, make_schedule
from ..wrappers import NonStationary, ObservationShift

__all__ = ["continual_acrobot", "continual_cart_pole", "continual_gym_control"]

CART_POLE = {"gravity": 9.8, "length": 0.5, "masspole": 0.1, "masscart": 1.0, "force_mag": 10.0}
ACROBOT = {"length": 1.0, "mass": 1.0, "torque": 1.0}
GYM_CONTROL = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
PERIOD = 100_000


def set_cart_pole(env: Any, name: str, value: float) -> None:
    """
    Change a quantity of CartPole, and what it derives from it in its constructor.

    :param env: the environment
    :param name: of the attribute
    :param value: in SI units (``length`` is half the pole's)
    """
    setattr(env, name, value)
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


def set_acrobot(env: Any, name: str, value: float) -> None:
    """
    Change a quantity of both links of Acrobot, or of its motor.

    :param env: the environment
    :param name: ``length``, ``mass`` or ``torque``
    :param value: factor on its own
    """
    own = type(env)
    if name == "length":
        env.LINK_LENGTH_1, env.LINK_LENGTH_2 = value * own.LINK_LENGTH_1, value * own.LINK_LENGTH_2
        env.LINK_COM_POS_1, env.LINK_COM_POS_2 = value * own.LINK_COM_POS_1, value * own.LINK_COM_POS_2
        env.LINK_MOI = value**2 * own.LINK_MOI
    elif name == "mass":
        env.LINK_MASS_1, env.LINK_MASS_2 = value * own.LINK_MASS_1, value * own.LINK_MASS_2
        env.LINK_MOI = value * own.LINK_MOI
    else:
        env.AVAIL_TORQUE = [value * torque for torque in own.AVAIL_TORQUE]


@dataclasses.dataclass(frozen=True)
class Quantity:
    """
    A function of an environment and a value, equal to its copies, as Gymnasium asks of the arguments of wrappers.

    :param setter: function of the environment, a name and a value
    :param name: of the quantity
    """

    setter: Callable[[Any, str, float], None]
    name: str

    def __call__(self, env: Any, value: float) -> None:
        self.setter(env, self.name, value)


@suggests_names(CartPoleEnv, "ContinualCartPole-v0")
def continual_cart_pole(
    parameter: str = "length",
    schedule: str | Mapping[str, Any] | Schedule = "log_uniform",
    switch: str = "reset",
    task: int | None = None,
    **kwargs: Any,
) -> NonStationary:
    """
    ``CartPole-v1`` whose physics changes. We chose the ranges; they follow no publication.

    The reward is 1 in every step until the pole falls or the cart leaves the track.

    :param parameter: parameter that changes: ``"length"`` (half of the pole's, m), ``"gravity"`` (m/s^2),
        ``"masspole"``, ``"masscart"`` (kg) or ``"force_mag"`` (N)
    :param schedule: schedule, as for the robots; by default, values range from half to twice CartPole's own, and the
        period is 100,000 steps
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param kwargs: keyword arguments of ``CartPole-v1``
    :return: the environment
    """
    return _physics(CartPoleEnv(**kwargs), CART_POLE, set_cart_pole, parameter, schedule, switch, task)


@suggests_names(AcrobotEnv, "ContinualAcrobot-v0")
def continual_acrobot(
    parameter: str = "length",
    schedule: str | Mapping[str, Any] | Schedule = "log_uniform",
    switch: str = "reset",
    task: int | None = None,
    **kwargs: Any,
) -> NonStationary:
    """
    ``Acrobot-v1`` whose physics changes. We chose the ranges; they follow no publication.

    The reward is -1 in every step until the tip reaches the goal. The height of the goal, in lengths of a link, stays
    that of Acrobot.

    :param parameter: parameter that changes: ``"length"`` or ``"mass"`` of both links, or ``"torque"``; values are
        factors on Acrobot's own
    :param schedule: schedule, as for the robots; by default, values range from half to twice Acrobot's own, and the
        period is 100,000 steps
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param kwargs: keyword arguments of ``Acrobot-v1``
    :return: the environment
    """
    return _physics(AcrobotEnv(**kwargs), ACROBOT, set_acrobot, parameter, schedule, switch, task)


def _physics(
    env: gym.Env[Any, Any],
    own: Mapping[str, float],
    setter: Callable[[Any, str, float], None],
    parameter: str,
    schedule: str | Mapping[str, Any] | Schedule,
    switch: str,
    task: int | None,
) -> NonStationary:
    check_choice("parameter", parameter, own)
    value = own[parameter]
    schedule = make_schedule(schedule, {"low": value / 2, "high": value * 2, "period": PERIOD})
    if schedule.lowest <= 0:
        raise must_be("schedule", f"one of values > 0 for {parameter!r}", schedule.lowest)
    return NonStationary(env, Quantity(setter, parameter), schedule, switch=switch, task=task)


def continual_gym_control(
    env_id: str = "CartPole-v1",
    scale: float = 2.0,
    schedule: str | Mapping[str, Any] | Schedule = "numbered",
    switch: str = "reset",
    task: int | None = None,
    **kwargs: Any,
) -> ObservationShift:
    """
    Gym control tasks with shifted observations: those of TRAC (Muppidi et al., NeurIPS, 2024) as C-CHAIN (Tang et al.,
    ICML, 2025) runs them.

    The observations of each task are shifted by a normal draw with a standard deviation of 2; those of the first task
    are not shifted. In the publication, a run consists of 10 tasks of 200 iterations of 800 steps, and episodes end
    after 400 steps. The rewards are those of the environment whose observations are shifted.

    :param env_id: ``"CartPole-v1"``, ``"Acrobot-v1"``, ``"LunarLander-v3"`` (which needs Gymnasium's extra ``box2d``),
        or any other environment whose observations are a Box
    :param scale: standard deviation of the shifts
    :param schedule: schedule of kind ``numbered``; the default period is 160,000 steps, with a new shift in every task
    :param switch: ``"reset"`` starts a new task with the next episode, ``"immediate"`` at the step at which it is due
    :param task: index of the task to freeze, or None to follow the schedule
    :param kwargs: keyword arguments of the environment
    :return: the environment
    """
    env = gym.make(env_id, **{"max_episode_steps": 400, **kwargs})
    return ObservationShift(env, scale, schedule, switch=switch, task=task)
