"""Mitigations attached to an agent: the hooks on its parameters, layers and optimizers."""

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from torch.utils import _pytree as pytree

from sb3_plasticity.agents.networks import Network, networks_of, observed, trace_networks
from sb3_plasticity.common.layers import as_feature_matrix, hook_layers
from sb3_plasticity.mitigations.base import Agent, Mitigation

# Of each model, what is attached to it now.
_ATTACHED: weakref.WeakKeyDictionary[Any, list["Attachment"]] = weakref.WeakKeyDictionary()


class Attachment:
    """
    Mitigations bound to an agent. Its hooks exist between :meth:`arm` and :meth:`disarm`.

    :param agent: to act on
    :param mitigations: in the order in which they act
    :param states: by label, saved states to continue from
    :param alive: whether the training that it was made for is still running; when it is not, the hooks are removed
    :raises ValueError: for mitigations that cannot act on this agent, or not together
    """

    def __init__(
        self,
        agent: Agent,
        mitigations: Sequence[Mitigation],
        states: dict[str, Any] | None = None,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self.agent = agent
        self.mitigations = list(mitigations)
        self.labels: dict[str, Mitigation] = {}
        for part in self.mitigations:
            count = sum(other.name == part.name for other in self.labels.values())
            self.labels[f"{part.name}_{count + 1}" if count else part.name] = part
        for label, part in self.labels.items():
            part.bind(agent, (states or {}).get(label))
        _check_compatible(self.mitigations)
        self._alive = alive
        self._handles: list[Any] = []
        self._suspended = False

    def state_dict(self) -> dict[str, Any]:
        """State of each mitigation by its label."""
        return {label: part.state_dict() for label, part in self.labels.items()}

    def logs(self) -> dict[str, float]:
        """Numbers for the log, by ``mitigation/<label>/<key>``."""
        return {
            f"mitigation/{label}/{key}": value
            for label, part in self.labels.items()
            for key, value in part.logs().items()
        }

    def call(self, hook: str) -> None:
        """
        Call a hook of every mitigation that takes no arguments.

        :param hook: ``"rollout_start"``, ``"rollout_end"`` or ``"task_change"``
        """
        for part in self.mitigations:
            getattr(part, hook)()

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Register the hooks; there is nothing to do if they are."""
        if self._handles:
            return
        self._hook_gradients()
        self._hook_features()
        self._hook_optimizers()

    def disarm(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the hooks without effect, for somebody who runs the mitigations in another way."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def _guarded(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Let a hook act while training is running, and remove all hooks when it raises."""

        @functools.wraps(hook)
        def guarded(*args: Any) -> Any:
            if self._suspended or not self._handles or not self._alive():
                return None
            try:
                return hook(*args)
            except BaseException:
                self.disarm()
                raise

        return guarded

    def _hook_gradients(self) -> None:
        entries: dict[str, list[tuple[Mitigation, str]]] = {}
        for part in self.mitigations:
            if part.uses("gradient"):
                for name in part.parameters:
                    network = next(key for key, target in part.targets.items() if name in target.parameters)
                    entries.setdefault(name, []).append((part, network))
        for name, parts in entries.items():

            def add(parameter: th.Tensor, name: str = name, parts: Any = parts) -> None:
                for part, network in parts:
                    strength = part.strength()
                    if strength == 0 or not part.due(_counts(part, "updates").get(network, 0)):
                        continue
                    addition = part.gradient(name, parameter.detach(), strength * part.interval, *part.constants(name))
                    parameter.grad.add_(addition)  # type: ignore[union-attr]

            parameter = parts[0][0].parameters[name]
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._guarded(add)))

    def _hook_features(self) -> None:
        for network in self.agent.networks.values():
            penalties = [
                part for part in self.mitigations if part.uses("feature_penalty") and network.name in part.targets
            ]
            recorded = {
                layer for part in self.mitigations if network.name in part.targets for layer in part.records(network)
            }
            layers = recorded | {layer for part in penalties for layer in part.feature_layers(network)}
            watch = self._guarded(_Tap(self.agent, network, penalties, recorded).watch)
            self._handles += hook_layers({name: network.root.get_submodule(name) for name in layers}, before=watch)

    def _hook_optimizers(self) -> None:
        optimizers = {id(n.optimizer): n.optimizer for n in self.agent.networks.values() if n.optimizer is not None}
        for optimizer in optimizers.values():
            jobs: list[tuple[Mitigation, tuple[Network, ...]]] = []
            for part in self.mitigations:
                stepped = tuple(network for network in part.targets.values() if network.optimizer is optimizer)
                if stepped:
                    jobs.append((part, stepped))

            def before(_optimizer: Any, _args: Any, _kwargs: Any, jobs: Any = jobs) -> None:
                for part, networks in jobs:
                    if part.uses("before_update"):
                        part.before_update(networks)

            def after(_optimizer: Any, _args: Any, _kwargs: Any, jobs: Any = jobs) -> None:
                for part, networks in jobs:
                    counts = _counts(part, "updates")
                    for network in networks:
                        counts[network.name] = counts.get(network.name, 0) + 1
                    part.after_update(networks)

            if any(part.uses("before_update") for part, _ in jobs):
                self._handles.append(optimizer.register_step_pre_hook(self._guarded(before)))
            if jobs:
                self._handles.append(optimizer.register_step_post_hook(self._guarded(after)))


@contextmanager
def attached(
    model: Any, mitigations: Sequence[Mitigation], states: dict[str, Any] | None = None
) -> Iterator[Attachment]:
    """
    Attach mitigations to a model of SB3, hooks in place, and remove them however the context ends.

    :param model: an algorithm whose networks are known
    :param mitigations: in the order in which they act
    :param states: by label, saved states to continue from
    :yields: the attachment
    """
    attachment = Attachment(Agent(networks_of(model), model), mitigations, states)
    enlist(model, attachment)
    attachment.arm()
    try:
        yield attachment
    finally:
        release(model, attachment)


def enlist(model: Any, attachment: Attachment) -> None:
    """
    Note that an attachment belongs to a model; what a training that broke off left behind goes.

    :param model: the algorithm
    :param attachment: new
    """
    for stale in [old for old in _ATTACHED.get(model, []) if not old._alive()]:
        release(model, stale)
    _ATTACHED.setdefault(model, []).append(attachment)


def release(model: Any, attachment: Attachment) -> None:
    """
    Remove an attachment's hooks and forget it.

    :param model: the algorithm
    :param attachment: of that model
    """
    attachment.disarm()
    _ATTACHED[model] = [other for other in _ATTACHED.get(model, []) if other is not attachment]


def attachments_of(model: Any) -> list[Attachment]:
    """
    List what is attached to a model now.

    :param model: an algorithm
    :return: oldest first
    """
    return [attachment for attachment in _ATTACHED.get(model, []) if attachment._alive()]


@contextmanager
def mitigate(
    module: nn.Module, optimizer: th.optim.Optimizer, mitigations: Sequence[Mitigation]
) -> Iterator[Callable[[], None]]:
    """
    Apply mitigations in any PyTorch training loop: ``with mitigate(net, optimizer, [L2Init(1e-3)]): ...``.

    The module counts as one network, called ``"network"``. Its structure is traced on the inputs of its first call,
    with a second pass in evaluation mode; unknown layers raise an error at this point. Mitigations that otherwise act
    between rollouts act after every update here, because there are no collected data that a change of the function
    could invalidate.

    :param module: module that is called as ``module(inputs)`` in the loop
    :param optimizer: optimizer that updates its parameters
    :param mitigations: mitigations in the order in which they act
    :yields: a function to call when the task changes
    """
    attachment: Attachment | None = None
    handles: list[Any] = []

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal attachment
        if attachment is not None or not module.training:
            return
        with observed(module) as graph:
            outputs = module(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, th.Tensor)]
        networks = trace_networks(module, graph, {"network": tensors}, optimizer)
        attachment = Attachment(Agent(networks), mitigations)
        attachment.arm()
        handles.append(optimizer.register_step_post_hook(lambda *_: _call(attachment, "rollout_start")))

    def task_change() -> None:
        _call(attachment, "task_change")

    handles.append(module.register_forward_pre_hook(start, with_kwargs=True))
    try:
        yield task_change
    finally:
        for handle in handles:
            handle.remove()
        if attachment is not None:
            attachment.disarm()


def _call(attachment: Attachment | None, hook: str) -> None:
    if attachment is not None:
        attachment.call(hook)


class _Pass:
    """One training pass forward through a network: its activations, and their gradients once they are asked for."""

    def __init__(self, network: Network, parts: list[tuple[Mitigation, float]]) -> None:
        self.network = network
        self.parts = parts
        self.inputs: dict[str, th.Tensor] = {}
        self.own: set[Any] = set()
        self.started_back = False
        self._gradients: dict[str, th.Tensor] = {}

    def gradient(self, layer: str) -> th.Tensor | None:
        """Gradient of all penalties by the input of a layer; they are computed when the first is asked for."""
        if not self.started_back:
            self.started_back = True
            self.own.clear()
            self._compute()
        return self._gradients.get(layer)

    def _compute(self) -> None:
        with th.enable_grad():
            for part, strength in self.parts:
                names = [name for name in part.feature_layers(self.network) if name in self.inputs]
                leaves = [self.inputs[name].detach().requires_grad_() for name in names]
                modules = [self.network.root.get_submodule(name) for name in names]
                features = {
                    name: as_feature_matrix(module, leaf)
                    for name, module, leaf in zip(names, modules, leaves, strict=True)
                }
                if not features:
                    continue
                value = part.feature_penalty(self.network, features)
                part.observe("penalty", value.detach())
                for name, gradient in zip(names, th.autograd.grad(value, leaves, allow_unused=True), strict=True):
                    if gradient is not None:
                        addition = strength * gradient
                        self._gradients[name] = self._gradients.get(name, 0) + addition


class _Tap:
    """Watches the hidden activations of one network."""

    def __init__(self, agent: Agent, network: Network, penalties: list[Mitigation], recorded: set[str]) -> None:
        self.agent, self.network, self.penalties, self.recorded = agent, network, penalties, recorded
        self._own = {id(parameter) for parameter in network.parameters.values()}
        self._pass: _Pass | None = None

    def watch(self, layer: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer runs, note its input, and let its gradient take up the penalties'."""
        activation = args[0]
        if not (module.training and th.is_grad_enabled() and activation.requires_grad):
            return None
        current = self._pass
        fresh = current is None or layer in current.inputs or current.started_back
        known = set() if fresh or current is None else current.own
        if not self._is_own(activation, known):
            return None  # the critic, say, through which an actor's loss goes back
        if fresh or current is None:
            current = self._pass = self._begin()
            current.own = known
        current.inputs[layer] = activation.detach()
        if layer in self.recorded:
            self.agent.activations[layer] = as_feature_matrix(module, activation.detach())
        if not any(layer in part.feature_layers(self.network) for part, _ in current.parts):
            return None
        return (_AddGradient.apply(activation, current, layer), *args[1:])  # type: ignore[no-untyped-call]

    def _begin(self) -> _Pass:
        parts = []
        for part in self.penalties:
            counts = _counts(part, "passes")
            count = counts.get(self.network.name, 0)
            counts[self.network.name] = count + 1
            strength = part.strength()
            if strength != 0 and part.due(count):
                parts.append((part, strength * part.interval))
        return _Pass(self.network, parts)

    def _is_own(self, activation: th.Tensor, known: set[Any]) -> bool:
        """Whether a gradient by an activation would reach this network's parameters alone."""
        if activation.grad_fn is None:
            return id(activation) in self._own
        waiting, seen = [activation.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node in seen or node in known:
                continue
            seen.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in self._own:
                return False
            waiting.extend(following for following, _ in node.next_functions if following is not None)
        known |= seen
        return True


class _AddGradient(th.autograd.Function):
    """The identity; backward it adds the gradient of the penalties on the activation."""

    @staticmethod
    def forward(ctx: Any, activation: th.Tensor, of: _Pass, layer: str) -> th.Tensor:
        ctx.of, ctx.layer = of, layer
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor, None, None]:
        addition = ctx.of.gradient(ctx.layer)
        return gradient if addition is None else gradient + addition, None, None


def _counts(part: Mitigation, kind: str) -> dict[str, int]:
    """How often each network was updated, or passed forward in training, with this mitigation attached."""
    counts: dict[str, int] = part.state.setdefault(kind, {})
    return counts


def _check_compatible(mitigations: Sequence[Mitigation]) -> None:
    for first, second in itertools.combinations(mitigations, 2):
        common = [network for network in first.targets if network in second.targets]
        if first.exclusive is not None and first.exclusive == second.exclusive and common:
            raise ValueError(
                f"`mitigations` must hold at most one that acts on the {first.exclusive} of a network, "
                f"got {first.name} and {second.name}, both on {common[0]!r}"
            )
