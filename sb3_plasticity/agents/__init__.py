"""What an algorithm is to an instrument or a mitigation: its networks, optimizers, losses, outputs and samples."""

from sb3_plasticity.agents.networks import Network, networks_of, trace_networks

__all__ = ["Network", "networks_of", "trace_networks"]
