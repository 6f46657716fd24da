"""
What "friction", "gravity", ... mean in an ``MjModel``: pure functions from the robot's own values to new ones.

The same functions serve one simulation (they fill an ``MjModel``) and many (they fill the rows of a
``mujoco.batch.Batch``), so a task is the same physics in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

__all__ = ["PARAMETERS", "Fields", "Parameter", "get_parameter", "read_field", "write_field"]

Fields = dict[str, np.ndarray]
"""Arrays of an ``MjModel`` by field name; ``opt.<name>`` for those of its options."""


@dataclass(frozen=True)
class Parameter:
    """
    A physical quantity that a task may set.

    :param name: how users call it
    :param fields: the MjModel fields that it writes
    :param unit: unit of the task's value; "1" is a factor on the robot's own values
    :param minimum: smallest value accepted
    :param minimum_included: whether the minimum itself is accepted
    :param default_range: (low, high) of schedules that name none
    :param set_const: whether MuJoCo must derive other constants from the fields anew (``mj_setConst``)
    :param compute: (own fields, model, value) -> new fields
    """

    name: str
    fields: tuple[str, ...]
    unit: str
    minimum: float
    minimum_included: bool
    default_range: tuple[float, float]
    set_const: bool
    compute: Callable[[Fields, mujoco.MjModel, float], Fields]

    def own(self, model: mujoco.MjModel) -> Fields:
        """Copy the fields as they are in a freshly compiled model."""
        return {name: read_field(model, name).copy() for name in self.fields}

    def check_lowest(self, value: float) -> None:
        """
        Refuse a schedule that reaches values without a physical meaning.

        :param value: the schedule's smallest value
        :raises ValueError: if it is below what the parameter accepts
        """
        if value < self.minimum or (value == self.minimum and not self.minimum_included):
            sign = ">=" if self.minimum_included else ">"
            raise ValueError(
                f"the schedule of parameter {self.name!r} reaches {value}: accepted are values {sign} {self.minimum:g}"
            )


def read_field(model: mujoco.MjModel, name: str) -> np.ndarray:
    """
    Return the live array of a model field.

    :param model: the model
    :param name: a field of MjModel, or ``opt.<field>``
    """
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)


def write_field(model: mujoco.MjModel, name: str, value: np.ndarray) -> None:
    """
    Overwrite a model field in place.

    :param model: the model
    :param name: a field of MjModel, or ``opt.<field>``
    :param value: the new content, of the field's shape
    """
    read_field(model, name)[...] = value


def _friction(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
    if model.npair:
        raise ValueError("parameter = 'friction': the model has contact pairs with a friction of their own")
    friction = own["geom_friction"].copy()
    # MuJoCo takes the larger friction of two touching geoms, so every geom that can touch anything has to change
    touching = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    sliding = friction[touching, 0]
    uniform = bool(np.all(sliding == sliding[0]))
    friction[touching, 0] = value if uniform else sliding * value
    return {"geom_friction": friction}


def _gravity(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
    gravity = own["opt.gravity"]
    magnitude = np.linalg.norm(gravity)
    if magnitude == 0:
        raise ValueError("parameter = 'gravity': the model has no gravity, so its direction is unknown")
    return {"opt.gravity": gravity / magnitude * value}


def _scaled(*names: str) -> Callable[[Fields, mujoco.MjModel, float], Fields]:
    def compute(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
        return {name: own[name] * value for name in names}

    return compute


PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        # Overwrites: the value is the sliding friction coefficient of every contact. Except where the robot's geoms
        # have different coefficients (Hopper, Walker2d): there it scales each one, so that soles keep their grip
        # relative to shins.
        Parameter("friction", ("geom_friction",), "1", 0.0, False, (0.02, 2.0), False, _friction),
        # Overwrites: the acceleration of free fall, along the model's own direction. Half to twice that of Earth.
        Parameter("gravity", ("opt.gravity",), "m/s^2", 0.0, True, (4.905, 19.62), False, _gravity),
        # Scales: mass and rotational inertia of every body, as a change of density does.
        Parameter(
            "mass",
            ("body_mass", "body_inertia"),
            "1",
            0.0,
            False,
            (0.5, 2.0),
            True,
            _scaled("body_mass", "body_inertia"),
        ),
        # Scales: viscous damping of every joint, in N m s/rad (hinge) or N s/m (slide).
        Parameter("damping", ("dof_damping",), "1", 0.0, True, (0.5, 2.0), False, _scaled("dof_damping")),
        # Scales: force per unit of control (gain) and, for servos, the force law's own terms (bias).
        Parameter(
            "actuator_strength",
            ("actuator_gainprm", "actuator_biasprm"),
            "1",
            0.0,
            True,
            (0.5, 2.0),
            False,
            _scaled("actuator_gainprm", "actuator_biasprm"),
        ),
    )
}
"""The parameters by name. See the table in :mod:`sb3_plasticity.envs.slippery` for what each does to which robot."""


def get_parameter(name: Any) -> Parameter:
    """
    Look a parameter up.

    :param name: one of the keys of ``PARAMETERS``
    :raises ValueError: if there is none of that name
    """
    if not isinstance(name, str) or name not in PARAMETERS:
        raise ValueError(f"parameter = {name!r}: accepted are {', '.join(PARAMETERS)}")
    return PARAMETERS[name]
