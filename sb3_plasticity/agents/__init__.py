"""What an algorithm is to an instrument or a mitigation: its networks, optimizers, losses, outputs and samples."""

from sb3_plasticity.agents import off_policy  # noqa: F401  (registers its algorithms)
from sb3_plasticity.agents.networks import Network, networks_of, trace_networks
from sb3_plasticity.agents.objectives import Objective, actor_critic, objectives_of, regression, stochastic_policy
from sb3_plasticity.agents.samples import SampleSource, source_of

__all__ = [
    "Network",
    "Objective",
    "SampleSource",
    "actor_critic",
    "networks_of",
    "objectives_of",
    "regression",
    "source_of",
    "stochastic_policy",
    "trace_networks",
]
