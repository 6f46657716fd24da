"""
Robots: MuJoCo environments of Gymnasium in which the ground, the medium or the body changes.

Each file contains the environment for one simulation and the formulas for many. Each environment is its ``-v5`` parent
with :class:`~sb3_plasticity.envs.NonStationaryMixin`. By default, contact forces are excluded from the observation and
the cost, as in both published versions of Slippery Ant.

The following table describes the effect of a task's value (field of ``MjModel``, unit, effect):

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
actuator_strength  ``actuator_gainprm``, ``actuator_biasprm``  1      scales the torque per unit of control, of all
                                                                      actuators or of those that are named
viscosity          ``opt.viscosity``                           Pa s   overwrites (Swimmer's own: 0.1, the others': 0)
=================  ==========================================  =====  ==================================================

A schedule without ``low`` and ``high`` uses [0.02, 2] for friction, [0.1, 10] for viscosity, and half to twice the
parent's own value for the other parameters.
"""

from .ant import BatchedAnt, NonStationaryAntEnv, SlipperyAntEnv
from .half_cheetah import BatchedHalfCheetah, SlipperyHalfCheetahEnv
from .hopper import BatchedHopper, SlipperyHopperEnv
from .humanoid import BatchedHumanoid, SlipperyHumanoidEnv
from .swimmer import BatchedSwimmer, SlipperySwimmerEnv
from .walker2d import BatchedWalker2d, SlipperyWalker2dEnv

__all__ = [
    "BatchedAnt",
    "BatchedHalfCheetah",
    "BatchedHopper",
    "BatchedHumanoid",
    "BatchedSwimmer",
    "BatchedWalker2d",
    "NonStationaryAntEnv",
    "SlipperyAntEnv",
    "SlipperyHalfCheetahEnv",
    "SlipperyHopperEnv",
    "SlipperyHumanoidEnv",
    "SlipperySwimmerEnv",
    "SlipperyWalker2dEnv",
]
