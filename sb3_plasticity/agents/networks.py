"""The networks of an agent by name: which parameters and layers are whose, and which optimizer moves them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import torch as th
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from sb3_plasticity.common.actor_critic import zero_action, zero_observation
from sb3_plasticity.common.functional import evaluation_mode
from sb3_plasticity.common.layers import hooked_layers
from sb3_plasticity.common.units import HiddenLayer, UnitGraph, trace_units


@dataclass(frozen=True)
class Network:
    """
    One of an agent's networks: what its loss can change, and by which optimizer.

    Parameters that several networks share, such as those of a common features extractor, are in each of them. Target
    networks and the entropy coefficient are in none.

    :param name: ``policy`` or ``value`` (on-policy algorithms); ``actor``, ``critic_0``, ``critic_1``, ... (SAC, TD3,
        DDPG, TQC, CrossQ); ``q`` (DQN, QRDQN)
    :param root: the module that all names refer to, normally ``model.policy``
    :param parameters: the trainable parameters by their name in ``root``, ``log_std`` and its like among them
    :param layers: names in ``root`` of the network's linear, convolutional and recurrent layers, in forward order
    :param features: names of those layers that read hidden activations, which depend on the network's parameters; an
        activation that several layers or networks read counts once, with the first
    :param optimizer: the optimizer that steps these parameters; None where none does (TRPO's policy moves by a line
        search)
    :param units: its hidden layers by name, in forward order, with all layers that read them, in other networks too
    :param unclear: its hidden layers whose units cannot be told apart where they are read, and why
    :param outputs: names of its layers that no other layer reads
    :param exploration: names of those parameters that only set the scale of the exploration noise
    """

    name: str
    root: nn.Module
    parameters: Mapping[str, nn.Parameter]
    layers: tuple[str, ...]
    features: tuple[str, ...]
    optimizer: th.optim.Optimizer | None
    units: Mapping[str, HiddenLayer] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    exploration: frozenset[str] = frozenset()


@singledispatch
def networks_of(model: Any) -> dict[str, Network]:
    """
    Name an agent's networks. A stranger's algorithm joins with ``@networks_of.register(MyAlgorithm)``.

    Runs each network on one all-zero observation, in evaluation mode, without touching any random generator.

    :param model: an algorithm of SB3 or sb3-contrib, its policy built
    :return: name to network, the one that acts first
    :raises TypeError: for an algorithm that nobody has registered
    """
    raise TypeError(
        f"`model` must be an algorithm whose networks are known, got a {type(model).__name__}: "
        "register it with @networks_of.register"
    )


@networks_of.register(OnPolicyAlgorithm)
def _actor_critic(model: OnPolicyAlgorithm) -> dict[str, Network]:
    policy: Any = model.policy
    observation, action = zero_observation(policy), zero_action(policy)
    context: tuple[Any, ...] = ()
    if isinstance(policy, RecurrentActorCriticPolicy):
        layers, _, width = policy.lstm_hidden_state_shape
        state = th.zeros(layers, 1, width, device=policy.device)
        context = RNNStates((state, state), (state, state)), th.zeros(1, device=policy.device)
    with observed(policy) as graph:
        values, log_prob, _ = policy.evaluate_actions(observation, action, *context)
    return trace_networks(policy, graph, {"policy": [log_prob], "value": [values]}, policy.optimizer)


@networks_of.register(TRPO)
def _trust_region(model: TRPO) -> dict[str, Network]:
    networks = _actor_critic(model)
    return {**networks, "policy": replace(networks["policy"], optimizer=None)}


@networks_of.register(SAC)
@networks_of.register(TQC)
@networks_of.register(CrossQ)
def _stochastic_actor(model: SAC) -> dict[str, Network]:
    policy: Any = model.policy
    observation, action = zero_observation(policy), zero_action(policy)
    with observed(policy) as graph:
        mean, log_std, _ = policy.actor.get_action_dist_params(observation)
        critics = _critics(policy.critic, observation, action)
    return {
        **trace_networks(policy, graph, {"actor": [mean, log_std]}, policy.actor.optimizer),
        **trace_networks(policy, graph, critics, policy.critic.optimizer),
    }


@networks_of.register(TD3)
def _deterministic_actor(model: TD3) -> dict[str, Network]:
    policy: Any = model.policy
    observation, action = zero_observation(policy), zero_action(policy)
    with observed(policy) as graph:
        mean = policy.actor(observation)
        critics = _critics(policy.critic, observation, action)
    return {
        **trace_networks(policy, graph, {"actor": [mean]}, policy.actor.optimizer),
        **trace_networks(policy, graph, critics, policy.critic.optimizer),
    }


@networks_of.register(DQN)
def _q_network(model: DQN) -> dict[str, Network]:
    policy: Any = model.policy
    with observed(policy) as graph:
        values = policy.q_net(zero_observation(policy))
    return trace_networks(policy, graph, {"q": [values]}, policy.optimizer)


@networks_of.register(QRDQN)
def _quantile_network(model: QRDQN) -> dict[str, Network]:
    policy: Any = model.policy
    with observed(policy) as graph:
        quantiles = policy.quantile_net(zero_observation(policy))
    return trace_networks(policy, graph, {"q": [quantiles]}, policy.optimizer)


def trace_networks(
    root: nn.Module,
    graph: UnitGraph,
    outputs: Mapping[str, Iterable[th.Tensor]],
    optimizer: th.optim.Optimizer,
) -> dict[str, Network]:
    """
    Find the parameters and layers of networks from the graphs of their outputs.

    :param root: the module that holds all of them
    :param graph: from :func:`~sb3_plasticity.common.units.trace_units` while the outputs were computed
    :param outputs: of each network, tensors whose graphs reach all that its loss can change
    :param optimizer: that steps their parameters
    :return: name to network; one that has no trainable parameter is left out
    """
    modules = dict(root.named_modules())
    networks = {}
    counted: set[str] = set()
    for network, tensors in outputs.items():
        reached = reached_parameters(tensors)
        parameters = {name: p for name, p in root.named_parameters() if id(p) in reached}
        layers = [name for name in graph.called if any(id(p) in reached for p in modules[name].parameters())]
        if parameters:
            networks[network] = Network(
                name=network,
                root=root,
                parameters=parameters,
                layers=tuple(layers),
                features=tuple(name for name in layers if name in graph.features and name not in counted),
                units={name: graph.hidden[name] for name in layers if name in graph.hidden},
                unclear={name: graph.unclear[name] for name in layers if name in graph.unclear},
                outputs=tuple(name for name in layers if name in graph.outputs),
                optimizer=optimizer,
                exploration=frozenset(name for name in parameters if "log_std" in name.split(".")),
            )
            counted.update(networks[network].features)
    return networks


def reached_parameters(outputs: Iterable[th.Tensor]) -> set[int]:
    """
    Walk the graphs of tensors down to their leaves.

    :param outputs: tensors with graphs
    :return: identities of the leaves that a backward pass would reach
    """
    outputs = list(outputs)
    waiting = [output.grad_fn for output in outputs]
    leaves = {id(output) for output in outputs if output.is_leaf}
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.add(id(leaf))
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


@contextmanager
def observed(root: nn.Module) -> Iterator[UnitGraph]:
    """
    Watch layers and what reads them, with gradients, in evaluation mode, and leave the module as it was.

    :param root: the module whose parts will be called inside the context
    :yields: what :func:`~sb3_plasticity.common.units.trace_units` sees
    """
    distributions: list[Any] = [module.action_dist for module in root.modules() if hasattr(module, "action_dist")]
    states = [dict(vars(distribution)) for distribution in distributions]
    try:
        with evaluation_mode(root), th.enable_grad(), trace_units(root) as graph:
            yield graph
    finally:
        for distribution, state in zip(distributions, states, strict=True):  # no graph stays behind
            vars(distribution).clear()
            vars(distribution).update(state)


def _critics(critic: Any, observation: Any, action: th.Tensor) -> dict[str, list[th.Tensor]]:
    """Return the outputs critic by critic, also where the critic's own result joins them (TQC)."""
    found: dict[str, list[th.Tensor]] = {}

    def note(name: str, _net: nn.Module, _inputs: Any, output: th.Tensor) -> None:
        found[name] = [output]

    with hooked_layers({f"critic_{index}": net for index, net in enumerate(critic.q_networks)}, after=note):
        critic(observation, action)
    return found
