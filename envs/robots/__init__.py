"""
Robots of Gymnasium on a ground, or in a body, that changes: a file for each, for one simulation and for many.

Each environment is its ``-v5`` parent plus :class:`~sb3_plasticity.envs.NonStationaryMixin`. Contact forces are left
out of observation and cost unless asked for, as in both published versions of Slippery Ant.

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
actuator_strength  ``actuator_gainprm``, ``actuator_biasprm``  1      scales the torque per unit of control, of all
                                                                      actuators or of those that are named
viscosity          ``opt.viscosity``                           Pa s   overwrites (Swimmer's own: 0.1, the others': 0)
=================  ==========================================  =====  ==================================================

A schedule that names no ``low`` and ``high`` uses [0.02, 2] for friction, [0.1, 10] for viscosity, half to twice the
parent's own for the rest.
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
