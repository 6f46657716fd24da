"""
What "friction", "gravity", ... mean in an ``MjModel``: pure functions from the robot's own values to new ones.

The same functions serve one simulation (they fill an ``MjModel``) and many (they fill the rows of a
``mujoco.batch.Batch``), so a task is the same physics in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import mujoco
import numpy as np

from sb3_plasticity.common.checks import check_choice, check_names, must_be, one_of

__all__ = ["PARAMETERS", "Fields", "Parameter", "get_parameter", "read_field", "write_field"]

Fields = dict[str, np.ndarray]
"""Arrays of an ``MjModel`` by field name; ``opt.<name>`` for those of its options."""

Compute = Callable[[Fields, mujoco.MjModel, float], Fields]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """
    A physical quantity that a task may set.

    :param name: how users call it
    :param fields: the MjModel fields that it writes
    :param meaning: of the task's value, for messages
    :param unit: of the task's value; "1" for a number without one
    :param minimum: smallest value accepted
    :param minimum_included: whether the minimum itself is accepted
    :param default_range: (low, high) of schedules that name none
    :param compute: (own fields, model, value) -> new fields
    :param obstacle: model -> why the parameter would change nothing there, or None
    :param set_const: whether MuJoCo must derive other constants from the fields anew (``mj_setConst``)
    """

    name: str
    fields: tuple[str, ...]
    meaning: str
    unit: str
    minimum: float
    minimum_included: bool
    default_range: tuple[float, float]
    compute: Compute
    obstacle: Callable[[mujoco.MjModel], str | None]
    set_const: bool = False

    def own(self, model: mujoco.MjModel) -> Fields:
        """Copy the fields as they are in a freshly compiled model."""
        return {name: np.array(read_field(model, name)) for name in self.fields}

    def check_lowest(self, value: float) -> None:
        """
        Refuse a schedule that reaches values without a physical meaning.

        :param value: the schedule's smallest value
        :raises ValueError: if it is below what the parameter accepts
        """
        if value < self.minimum or (value == self.minimum and not self.minimum_included):
            sign = ">=" if self.minimum_included else ">"
            accepted = f"one of values {sign} {self.minimum:g} for {self.name!r}, which is {self.meaning}"
            raise must_be("schedule", accepted, value)

    def check_model(self, model: mujoco.MjModel, owner: str) -> None:
        """
        Refuse a model in which the parameter would change nothing.

        :param model: of the environment
        :param owner: name of the environment
        :raises ValueError: naming the parameters that work there
        """
        reason = self.obstacle(model)
        if reason is not None:
            works = [name for name, parameter in PARAMETERS.items() if parameter.obstacle(model) is None]
            raise ValueError(f"{must_be('parameter', f'{one_of(works)} for {owner}', self.name)}: {reason}")


def read_field(model: mujoco.MjModel, name: str) -> Any:
    """
    Return the live array of a model field, or the number that it is.

    :param model: the model
    :param name: a field of MjModel, or ``opt.<field>``
    :return: an array, which is written to change the model, or a number of ``opt``
    """
    return getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name)


def write_field(model: mujoco.MjModel, name: str, value: np.ndarray) -> None:
    """
    Overwrite a model field in place.

    :param model: the model
    :param name: a field of MjModel, or ``opt.<field>``
    :param value: the new content, of the field's shape
    """
    field = read_field(model, name)
    if isinstance(field, np.ndarray):
        field[...] = value
    else:
        setattr(model.opt, name[4:], float(value))


def _touching(model: mujoco.MjModel) -> Any:
    """Which geoms can touch another: shape (number of geoms,)."""
    return np.logical_or(model.geom_contype != 0, model.geom_conaffinity != 0)


def _friction(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
    friction = own["geom_friction"].copy()
    # MuJoCo takes the larger friction of two touching geoms, so every geom that can touch anything has to change
    touching = _touching(model)
    sliding = friction[touching, 0]
    uniform = bool(np.all(sliding == sliding[0]))
    friction[touching, 0] = value if uniform else sliding * value
    return {"geom_friction": friction}


def _no_contacts(model: mujoco.MjModel) -> str | None:
    if model.npair:
        return "its model has contact pairs with a friction of their own"
    return None if _touching(model).any() else "none of its geoms can touch another"


def _gravity(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
    gravity = own["opt.gravity"]
    return {"opt.gravity": gravity / np.linalg.norm(gravity) * value}


def _no_gravity(model: mujoco.MjModel) -> str | None:
    return None if np.any(model.opt.gravity) else "its model has no gravity, so the direction is unknown"


def _viscosity(own: Fields, model: mujoco.MjModel, value: float) -> Fields:
    return {"opt.viscosity": np.asarray(value)}


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """All entries of fields, times the value."""

    names: tuple[str, ...]

    def __call__(self, own: Fields, model: mujoco.MjModel, value: float) -> Fields:
        return {name: own[name] * value for name in self.names}


@dataclasses.dataclass(frozen=True)
class _ScaledActuators:
    """The rows of some actuators, times the value."""

    names: tuple[str, ...]
    actuators: tuple[str, ...]

    def __call__(self, own: Fields, model: mujoco.MjModel, value: float) -> Fields:
        rows = [index for index, names in enumerate(actuator_names(model)) if set(names) & set(self.actuators)]
        fields = {name: own[name].copy() for name in self.names}
        for field in fields.values():
            field[rows] *= value
        return fields


def actuator_names(model: mujoco.MjModel) -> list[list[str]]:
    """
    List what each actuator may be called: its own name and that of the joint it moves, where they have one.

    :param model: the model
    :return: for each actuator, in the model's order, its names
    """
    joint = int(mujoco.mjtTrn.mjTRN_JOINT)
    names = []
    for i in range(model.nu):
        moved = [model.joint(int(model.actuator_trnid[i, 0])).name] if model.actuator_trntype[i] == joint else []
        names.append([name for name in dict.fromkeys([model.actuator(i).name, *moved]) if name])
    return names


def _nothing_to_scale(field: str, what: str) -> Callable[[mujoco.MjModel], str | None]:
    def obstacle(model: mujoco.MjModel) -> str | None:
        return None if np.any(read_field(model, field)) else f"its model has no {what}"

    return obstacle


STRENGTH = ("actuator_gainprm", "actuator_biasprm")

PARAMETERS: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        # Overwrites: the value is the sliding friction coefficient of every contact. Except where the robot's geoms
        # have different coefficients (Hopper, Walker2d): there it scales each one, so that soles keep their grip
        # relative to shins.
        Parameter(
            "friction",
            ("geom_friction",),
            "a coefficient of sliding friction, or a factor on the robot's own",
            "1",
            0.0,
            False,
            (0.02, 2.0),
            _friction,
            _no_contacts,
        ),
        # Overwrites: the acceleration of free fall, along the model's own direction. Half to twice that of Earth.
        Parameter(
            "gravity",
            ("opt.gravity",),
            "a magnitude in m/s^2",
            "m/s^2",
            0.0,
            True,
            (4.905, 19.62),
            _gravity,
            _no_gravity,
        ),
        # Scales: mass and rotational inertia of every body, as a change of density does.
        Parameter(
            "mass",
            ("body_mass", "body_inertia"),
            "a factor on the robot's own",
            "1",
            0.0,
            False,
            (0.5, 2.0),
            _Scaled(("body_mass", "body_inertia")),
            _nothing_to_scale("body_mass", "mass"),
            set_const=True,
        ),
        # Scales: viscous damping of every joint, in N m s/rad (hinge) or N s/m (slide).
        Parameter(
            "damping",
            ("dof_damping",),
            "a factor on the robot's own",
            "1",
            0.0,
            True,
            (0.5, 2.0),
            _Scaled(("dof_damping",)),
            _nothing_to_scale("dof_damping", "damping"),
        ),
        # Scales: force per unit of control (gain) and, for servos, the force law's own terms (bias).
        Parameter(
            "actuator_strength",
            STRENGTH,
            "a factor on the robot's own",
            "1",
            0.0,
            True,
            (0.5, 2.0),
            _Scaled(STRENGTH),
            _nothing_to_scale("actuator_gainprm", "actuators"),
        ),
        # Overwrites: the dynamic viscosity of the medium. Swimmer's own, 0.1, is small beside the drag of its medium's
        # density: a hundredfold of it stops a gait.
        Parameter(
            "viscosity",
            ("opt.viscosity",),
            "a dynamic viscosity in Pa s",
            "Pa s",
            0.0,
            True,
            (0.1, 10.0),
            _viscosity,
            lambda model: None,
        ),
    )
}
"""The parameters by name. See the table in :mod:`sb3_plasticity.envs.robots` for what each does to which robot."""


def get_parameter(name: Any, actuators: Iterable[str] | None = None) -> Parameter:
    """
    Look a parameter up.

    :param name: one of the keys of ``PARAMETERS``
    :param actuators: the only ones that ``"actuator_strength"`` acts on; None for all
    :return: the parameter; with ``actuators``, one that acts on these only
    :raises ValueError: if there is none of that name, or if it has nothing to do with actuators
    """
    check_choice("parameter", name, PARAMETERS)
    parameter = PARAMETERS[name]
    if actuators is None:
        return parameter
    if name != "actuator_strength":
        raise must_be("actuators", "None unless `parameter` is 'actuator_strength'", actuators)
    if isinstance(actuators, str) or not all(isinstance(name, str) for name in actuators) or not list(actuators):
        raise must_be("actuators", "a list of names", actuators)
    return dataclasses.replace(parameter, compute=_ScaledActuators(STRENGTH, tuple(actuators)))


def check_actuators(actuators: Iterable[str] | None, model: mujoco.MjModel) -> None:
    """
    Refuse names of actuators that a model does not have.

    :param actuators: as given
    :param model: the model
    :raises ValueError: for the first that is not there, with the nearest one
    """
    known = list(dict.fromkeys(name for names in actuator_names(model) for name in names))
    check_names("actuators", actuators or (), known)
