"""Non-stationary MuJoCo tasks for Gymnasium: importing this package registers them."""

import gymnasium as gym

from .clock import TaskClock, has_clock
from .nonstationary import NonStationaryMixin, keywords_of
from .schedules import Schedule, Task, make_schedule
from .sequence import TaskSequence
from .wrappers import ActionPermutation, NonStationary, ObservationPermutation, ObservationShift

__all__ = [
    "ENV_IDS",
    "ActionPermutation",
    "NonStationary",
    "NonStationaryMixin",
    "ObservationPermutation",
    "ObservationShift",
    "Schedule",
    "Task",
    "TaskClock",
    "TaskSequence",
    "has_clock",
    "keywords_of",
    "make_schedule",
]

ENV_IDS = (
    "SlipperyAnt-v0",
    "SlipperyHalfCheetah-v0",
    "SlipperyHopper-v0",
    "SlipperyWalker2d-v0",
    "SlipperyHumanoid-v0",
    "NonStationaryAnt-v0",
)

for _id in ENV_IDS:
    if _id not in gym.registry:
        # entry points are strings, so a spec can be pickled and made in a subprocess that never imported this package
        gym.register(
            id=_id,
            entry_point=f"sb3_plasticity.envs.slippery:{_id.removesuffix('-v0')}Env",
            max_episode_steps=1000,  # as the parents
        )
