"""Hidden activations, parameters and outputs of an SB3 actor-critic, network by network."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableRolloutBufferSamples
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from sb3_plasticity.common.rollout import Samples


@dataclass(frozen=True)
class HiddenLayers:
    """
    The layers of an actor-critic that read hidden activations, by module name and in forward order.

    A parameterised layer counts when its input depends on parameters, that is every linear or convolutional layer
    after the first. Layers that both networks share, and inputs that both networks read, count once: with the policy.

    :param policy: module names in the policy network
    :param value: module names only the value network has
    :param widths: number of features of each named layer's input
    """

    policy: tuple[str, ...]
    value: tuple[str, ...]
    widths: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """All module names, the policy's first."""
        return self.policy + self.value


def as_feature_matrix(layer: nn.Module, activations: th.Tensor) -> th.Tensor:
    """
    Activations as a matrix with one feature a column.

    :param layer: the layer that reads them
    :param activations: (N, d), (N, ..., d), or (N, C, H, W) for a convolution
    :return: (rows, features); every position of a convolution's input is a row: (N * H * W, C)
    """
    if isinstance(layer, _ConvNd):
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])


@contextmanager
def record_inputs(module: nn.Module, names: Iterable[str] | None = None) -> Iterator[dict[str, th.Tensor]]:
    """
    Record the inputs of linear and convolutional layers while ``module`` runs.

    :param module: the module that will be called inside the context
    :param names: names of the layers to record; all linear and convolutional ones if None
    :return: a dictionary, filled as the layers are called, of layer name to its input, graph attached
    """
    layers = dict(module.named_modules())
    if names is None:
        names = [name for name, layer in layers.items() if isinstance(layer, (nn.Linear, _ConvNd))]
    recorded: dict[str, th.Tensor] = {}
    handles = []
    for name in names:

        def record(_layer: nn.Module, inputs: tuple[th.Tensor, ...], name: str = name) -> None:
            recorded[name] = inputs[0]

        handles.append(layers[name].register_forward_pre_hook(record))
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_features(policy: ActorCriticPolicy, names: Iterable[str]) -> Iterator[dict[str, th.Tensor]]:
    """
    Record hidden features while the policy runs.

    :param policy: the actor-critic that will be called inside the context
    :param names: names from :class:`HiddenLayers`
    :return: a dictionary of layer name to feature matrix (rows, features), filled when the context ends
    """
    features: dict[str, th.Tensor] = {}
    with record_inputs(policy, names) as recorded:
        yield features
    layers = dict(policy.named_modules())
    features.update({name: as_feature_matrix(layers[name], value) for name, value in recorded.items()})


@dataclass(frozen=True)
class Units:
    """
    The units of a layer after its nonlinearity.

    :param features: (rows, units), graph attached; every position of a convolution is a row
    :param activation: name of the last function applied to the layer's outputs, such as ``"tanh"`` or ``"relu"``; empty
        for none
    """

    features: th.Tensor
    activation: str


@contextmanager
def record_units(module: nn.Module) -> Iterator[dict[str, Units]]:
    """
    Record the units of linear, convolutional and recurrent layers, after their nonlinearity, while ``module`` runs.

    A layer's outputs are followed through the functions of one activation that keep their shape, be they modules or
    plain calls (normalisation, nonlinearity, dropout), until another layer reads them. Gradients must be enabled.

    :param module: the module that will be called inside the context
    :return: a dictionary of layer name to units, filled when the context ends; the rows of a layer that was called
        several times are joined
    """
    kinds = (nn.Linear, _ConvNd, nn.RNNBase)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}
    follow, handles = _FollowUnits(), []
    units: dict[str, Units] = {}
    for name, layer in layers.items():

        def read(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            follow.stop(inputs[0])

        def produced(_layer: nn.Module, _inputs: tuple[Any, ...], outputs: Any, name: str = name) -> None:
            follow.start(name, outputs[0] if isinstance(outputs, tuple) else outputs)

        handles += [layer.register_forward_pre_hook(read), layer.register_forward_hook(produced)]
    try:
        with follow:
            yield units
    finally:
        for handle in handles:
            handle.remove()
    for name, ends in follow.ends.items():
        features = th.cat([as_feature_matrix(layers[name], end) for end in ends])
        units[name] = Units(features, follow.activations.get(name, ""))


class _FollowUnits(TorchFunctionMode):
    """Follow the outputs of layers through the functions that are applied to them alone and keep their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[str, list[th.Tensor]] = {}
        self.activations: dict[str, str] = {}
        # By identity of a tensor in ends, which keeps it alive: its place there.
        self._followed: dict[int, tuple[str, int]] = {}

    def start(self, name: str, output: th.Tensor) -> None:
        ends = self.ends.setdefault(name, [])
        self._followed[id(output)] = (name, len(ends))
        ends.append(output)

    def stop(self, tensor: th.Tensor) -> None:
        self._followed.pop(id(tensor), None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not args or id(args[0]) not in self._followed:
            return func(*args, **(kwargs or {}))
        source = args[0]
        origin = source.grad_fn  # of an in-place function's argument it changes
        result = func(*args, **(kwargs or {}))
        changed = isinstance(result, th.Tensor) and result.grad_fn is not None and result.grad_fn is not origin
        if changed and result.shape == source.shape:
            others = [value for value in (*args[1:], *(kwargs or {}).values()) if isinstance(value, th.Tensor)]
            # Not: a matrix product, a sum with another activation, or something of the same shape only (zeros_like).
            alone = all(not other.requires_grad or (other.is_leaf and other.ndim <= 1) for other in others)
            if alone and (result is source or any(node is origin for node, _ in result.grad_fn.next_functions)):
                name, place = self._followed.pop(id(source))
                self.ends[name][place] = result
                self._followed[id(result)] = (name, place)
                self.activations[name] = getattr(func, "__name__", "")
        return result


def find_hidden_layers(policy: ActorCriticPolicy) -> HiddenLayers:
    """
    Find which layers of an actor-critic read hidden activations, and whose they are.

    Runs the policy on one all-zero observation, in evaluation mode and without touching any random generator.

    :param policy: an SB3 actor-critic policy
    :return: the layers, network by network
    """
    observation, action = zero_observation(policy), zero_action(policy)
    training = policy.training
    policy.set_training_mode(False)
    try:
        with th.enable_grad():
            with record_inputs(policy) as joint:
                evaluate_actions(policy, observation, action)
            with record_inputs(policy) as actor:
                policy.get_distribution(observation)
    finally:
        policy.set_training_mode(training)

    by_network: dict[bool, list[str]] = {True: [], False: []}
    seen: set[int] = set()
    for name in sorted(joint, key=lambda name: name not in actor):  # stable: the policy's layers first
        activations = joint[name]
        if activations.requires_grad and id(activations) not in seen:
            seen.add(id(activations))
            by_network[name in actor].append(name)
    modules = dict(policy.named_modules())
    widths = {
        name: as_feature_matrix(modules[name], joint[name]).shape[1] for names in by_network.values() for name in names
    }
    return HiddenLayers(policy=tuple(by_network[True]), value=tuple(by_network[False]), widths=widths)


def evaluate_actions(
    policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Values, log probabilities and entropy, for actions as a rollout buffer stores them.

    :param policy: an SB3 actor-critic policy
    :param observations: (N, ...), or a dictionary of such
    :param actions: (N, ...); discrete ones as floats (N, 1)
    :return: values (N, 1), log probabilities (N,), entropy (N,) or None
    """
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    return policy.evaluate_actions(observations, actions)


def evaluate_samples(policy: Any, samples: Samples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Values, log probabilities and entropy of transitions, with what recurrent and maskable policies need besides.

    :param policy: an actor-critic policy of SB3 or sb3-contrib
    :param samples: N transitions of that policy's buffer
    :return: values (N, 1), log probabilities (N,), entropy (N,) or None
    """
    actions = samples.actions
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    context: tuple[Any, ...] = ()
    if isinstance(samples, RecurrentRolloutBufferSamples):
        context = samples.lstm_states, samples.episode_starts
    elif isinstance(samples, MaskableRolloutBufferSamples):
        context = (samples.action_masks,)
    return policy.evaluate_actions(samples.observations, actions, *context)


def zero_observation(policy: ActorCriticPolicy) -> PyTorchObs:
    """
    One all-zero observation.

    :param policy: an SB3 actor-critic policy
    :return: a batch of one observation, on the policy's device
    """
    space = policy.observation_space
    if isinstance(space, spaces.Dict):
        zeros = {key: np.zeros((1, *(sub.shape or ())), dtype=sub.dtype) for key, sub in space.spaces.items()}
        return {key: th.as_tensor(value, device=policy.device) for key, value in zeros.items()}
    return th.as_tensor(np.zeros((1, *(space.shape or ())), dtype=space.dtype), device=policy.device)


def zero_action(policy: ActorCriticPolicy) -> th.Tensor:
    """
    One all-zero action.

    :param policy: an SB3 actor-critic policy
    :return: a batch of one action as ``evaluate_actions`` takes it, on the policy's device
    """
    space = policy.action_space
    if isinstance(space, spaces.Discrete):
        return th.zeros(1, dtype=th.long, device=policy.device)
    # As rollout buffers store them: a Box of any shape is one row of numbers.
    shape = (get_action_dim(space),) if isinstance(space, spaces.Box) else space.shape or ()
    return th.zeros(1, *shape, device=policy.device)
