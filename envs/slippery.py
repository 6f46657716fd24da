"""
Five robots of Gymnasium on a ground, or in a body, that changes.

Each class is its ``-v5`` parent plus :class:`~sb3_plasticity.envs.nonstationary.NonStationaryMixin`. Contact forces are
left out of observation and cost unless asked for, as in both published versions of Slippery Ant.

What a task's value does (``MjModel`` field; unit; how):

=================  ==========================================  =====  ==================================================
parameter          field                                       unit   value
=================  ==========================================  =====  ==================================================
friction           ``geom_friction[:, 0]`` of every geom that  1      Ant, HalfCheetah, Humanoid: overwrites, and is the
                   can touch another                                  sliding friction coefficient of every contact (the
                                                                      parents' own: 1, 0.4, 1). Hopper, Walker2d, whose
                                                                      geoms differ: scales each geom's own coefficient.
gravity            ``opt.gravity``                             m/s^2  overwrites the magnitude (the parents' own: 9.81)
mass               ``body_mass``, ``body_inertia``             1      scales both, and what MuJoCo derives from them
damping            ``dof_damping``                             1      scales every joint's own (N m s/rad)
actuator_strength  ``actuator_gainprm``, ``actuator_biasprm``  1      scales the torque per unit of control
=================  ==========================================  =====  ==================================================

A schedule that names no ``low`` and ``high`` uses [0.02, 2] for friction, half to twice the parent's own for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv

from .nonstationary import NonStationaryMixin
from .schedules import Schedule

__all__ = [
    "NonStationaryAntEnv",
    "SlipperyAntEnv",
    "SlipperyHalfCheetahEnv",
    "SlipperyHopperEnv",
    "SlipperyHumanoidEnv",
    "SlipperyWalker2dEnv",
]


class _NoContactForcesMixin(NonStationaryMixin):
    """A world that changes, without the contact forces unless they are asked for."""

    def __init__(
        self,
        *,
        contact_cost_weight: float = 0.0,
        include_cfrc_ext_in_observation: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            contact_cost_weight=contact_cost_weight,
            include_cfrc_ext_in_observation=include_cfrc_ext_in_observation,
            **kwargs,
        )


class SlipperyAntEnv(_NoContactForcesMixin, AntEnv):
    """
    ``Ant-v5`` on a ground whose friction changes every two million steps (Dohare et al., Nature, 2024).

    :param contact_cost_weight: weight of the contact forces in the cost
    :param include_cfrc_ext_in_observation: whether the 78 contact forces are part of the observation
    :param kwargs: keywords of :class:`NonStationaryMixin` and of ``Ant-v5``
    """


class NonStationaryAntEnv(SlipperyAntEnv):
    """
    ``Ant-v5`` with any parameter and schedule; by default its friction swings between 0.1 and 2.

    :param schedule: as for :class:`NonStationaryMixin`
    :param kwargs: keywords of :class:`NonStationaryMixin` and of ``Ant-v5``
    """

    default_period: ClassVar[int] = 1_000_000
    default_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"friction": (0.1, 2.0)}

    def __init__(self, *, schedule: str | Mapping[str, Any] | Schedule = "sinusoid", **kwargs: Any) -> None:
        super().__init__(schedule=schedule, **kwargs)


class SlipperyHalfCheetahEnv(NonStationaryMixin, HalfCheetahEnv):
    """``HalfCheetah-v5`` on a ground whose friction changes; keywords of :class:`NonStationaryMixin` and the parent."""


class SlipperyHopperEnv(NonStationaryMixin, HopperEnv):
    """``Hopper-v5`` on a ground whose friction changes; keywords of :class:`NonStationaryMixin` and the parent."""


class SlipperyWalker2dEnv(NonStationaryMixin, Walker2dEnv):
    """``Walker2d-v5`` on a ground whose friction changes; keywords of :class:`NonStationaryMixin` and the parent."""


class SlipperyHumanoidEnv(_NoContactForcesMixin, HumanoidEnv):
    """
    ``Humanoid-v5`` on a ground whose friction changes.

    :param contact_cost_weight: weight of the contact forces in the cost
    :param include_cfrc_ext_in_observation: whether the 78 contact forces are part of the observation
    :param kwargs: keywords of :class:`NonStationaryMixin` and of ``Humanoid-v5``
    """
