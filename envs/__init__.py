"""Non-stationary environments for Gymnasium; importing this package registers them."""

from . import robots
from .batched import BatchedRobot
from .clock import TaskClock, has_clock
from .nonstationary import NonStationaryMixin, keywords_of
from .registration import register_nonstationary
from .schedules import Schedule, Task, make_schedule
from .sequence import TaskSequence
from .wrappers import ActionPermutation, NonStationary, ObservationPermutation, ObservationShift

__all__ = [
    "ActionPermutation",
    "BatchedRobot",
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
    "register_nonstationary",
]

register_nonstationary("SlipperyAnt-v0", robots.SlipperyAntEnv, robots.BatchedAnt, max_episode_steps=1000)
register_nonstationary(
    "SlipperyHalfCheetah-v0", robots.SlipperyHalfCheetahEnv, robots.BatchedHalfCheetah, max_episode_steps=1000
)
register_nonstationary("SlipperyHopper-v0", robots.SlipperyHopperEnv, robots.BatchedHopper, max_episode_steps=1000)
register_nonstationary(
    "SlipperyWalker2d-v0", robots.SlipperyWalker2dEnv, robots.BatchedWalker2d, max_episode_steps=1000
)
register_nonstationary(
    "SlipperyHumanoid-v0", robots.SlipperyHumanoidEnv, robots.BatchedHumanoid, max_episode_steps=1000
)
register_nonstationary("SlipperySwimmer-v0", robots.SlipperySwimmerEnv, robots.BatchedSwimmer, max_episode_steps=1000)
register_nonstationary("NonStationaryAnt-v0", robots.NonStationaryAntEnv, robots.BatchedAnt, max_episode_steps=1000)

READY = f"{__name__}.ready"
register_nonstationary("ContinualCartPole-v0", f"{READY}.classic_control:continual_cart_pole", max_episode_steps=500)
register_nonstationary("ContinualAcrobot-v0", f"{READY}.classic_control:continual_acrobot", max_episode_steps=500)
register_nonstationary("ContinualGymControl-v0", f"{READY}.classic_control:continual_gym_control")
register_nonstationary("ContinualMinAtar-v0", f"{READY}.minatar:continual_minatar")
register_nonstationary("ContinualMiniGrid-v0", f"{READY}.minigrid:continual_minigrid")
register_nonstationary("ContinualMetaWorld-v0", f"{READY}.metaworld:continual_metaworld")
