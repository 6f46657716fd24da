"""Injection: a fresh head is trained beside the frozen old one, without a change of the output."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from typing_extensions import override

from sb3_plasticity.agents.networks import networks_of
from sb3_plasticity.common.checks import check_count, must_be
from sb3_plasticity.common.injection import Place, add_terms, injected, terms_of
from sb3_plasticity.common.layers import DROPOUT_TYPES, LAYER_TYPES, hooked_layers
from sb3_plasticity.mitigations.resets import When, _Reset, copy_to_targets


class PlasticityInjection(_Reset):
    r"""
    Freeze the head of a network and continue with a fresh head, without changing the output: :math:`h(x) + h'_1(x) -
    h'_2(x)`.

    Source: Nikishin, Oh, Ostrovski et al. 2023, https://arxiv.org/abs/2305.15555. The old head :math:`h` is frozen,
    :math:`h'_1 = h'_2` are newly initialised, and only :math:`h'_1` is trained. Gradients reach the layers below
    through all three heads. The authors do this once in the middle of training. Their head is everything after the
    convolutions, that is, one hidden and one output layer.

    :math:`h'_1` uses the tensors of the old head, so the optimizer keeps its parameters and only their moments restart.
    The two frozen heads are saved with the policy and restored when it is loaded, with or without this mitigation. If
    the head is linear (``layers=1``), the sum of the three heads is again a linear head, and the only effect is a reset
    of its moments. SAC's layer for the scale of exploration keeps its weights. Target networks become copies of the
    networks. At the injection, the output stays the same to the last bit. From then on, every pass costs two more
    passes through the head. Resets and shrinking in the same list act only on :math:`h'_1`. gSDE is not supported,
    because its noise is a function of hidden units, and neither are heads with batch normalisation, as in CrossQ.

    :param layers: number of layers, counted from the output, that form the head, >= 1
    :param when: ``"task"`` for every change of the task, or a number of environment steps
    :param times: maximum number of injections, >= 1; each one costs two more passes through the head
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new heads
    :raises ValueError: if an argument is out of range, or if the head of a network is not a chain of this many layers
    """

    def __init__(
        self,
        layers: int = 2,
        when: When = "task",
        times: int = 1,
        networks: Iterable[str] | None = None,
        seed: int = 0,
    ) -> None:
        check_count("layers", layers, at_least=1)
        check_count("times", times, at_least=1)
        super().__init__(when, networks, seed)
        self.layers = layers
        self.times = times

    @override
    def setup(self) -> None:
        super().setup()
        model = self.agent.model
        kind = type(model).__name__
        if model is None:
            raise must_be("mitigations", "without plasticity_injection in plain torch", self.name)
        if getattr(model, "use_sde", False):
            raise must_be("use_sde", f"False for {self.name}: its noise is a function of hidden units", True)
        self._root = next(iter(self.targets.values())).root
        self._chains = {output: chain for chain in self._find_chains(kind) for output in chain[-1:]}
        self._check_readers()
        # Which heads there are: those that act now, after those that have terms already.
        self._places = [terms.place for terms in terms_of(self._root)]
        known = {place.chain for place in self._places}
        for chain in self._chains.values():
            for one in (chain, *self._of_target(chain)):
                if one not in known:
                    self._places.append(Place(one))

    # -- where the heads are -------------------------------------------------------------------------------------------

    def _find_chains(self, kind: str) -> Iterator[tuple[str, ...]]:
        with _calls(self._root) as calls:
            networks_of(self.agent.model)
        names = {id(module): name for name, module in self._root.named_modules()}
        for network in self.targets.values():
            for output in network.outputs:
                end = max(index for index, (module, *_) in enumerate(calls) if names[id(module)] == output)
                chain, found = [output], 1
                while found < self.layers:
                    read = calls[end][1]
                    before = [index for index in range(end) if calls[index][2] is read]
                    if not before:
                        accepted = f"at most {found} for {output} of {kind}, which no chain of more layers leads to"
                        raise must_be("layers", accepted, self.layers)
                    end = before[-1]
                    module = calls[end][0]
                    self._check_module(module, names[id(module)], kind)
                    chain.insert(0, names[id(module)])
                    found += isinstance(module, LAYER_TYPES)
                yield tuple(chain)

    def _check_module(self, module: nn.Module, name: str, kind: str) -> None:
        if isinstance(module, (nn.RNNBase, *DROPOUT_TYPES)) or list(module.buffers()):
            accepted = f"so few for {self.name} that no {type(module).__name__} is in the head of {kind} ({name})"
            raise must_be("layers", accepted, self.layers)

    def _check_readers(self) -> None:
        """Refuse to draw anew what something outside the heads reads."""
        inside = {name for chain in self._chains.values() for name in chain}
        for network in self.agent.networks.values():
            for name in inside & set(network.unclear):
                raise must_be("layers", f"so few that {name} stays as it is ({network.unclear[name]})", self.layers)
            for name in inside & set(network.units):
                for consumer in network.units[name].consumers:
                    if consumer.layer not in inside:
                        accepted = f"so few that {name}, which {consumer.layer} reads too, stays as it is"
                        raise must_be("layers", accepted, self.layers)

    def _of_target(self, chain: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The same chain in the target network, where there is one."""
        online = chain[-1].partition(".")[0]
        if getattr(self._root, f"{online}_target", None) is None:
            return
        if any(name.partition(".")[0] != online for name in chain):
            raise must_be("layers", f"so few that they belong to {online} alone", self.layers)
        yield tuple(f"{online}_target.{name.partition('.')[2]}" for name in chain)

    # -- when it is time -----------------------------------------------------------------------------------------------

    @override
    def _reset(self) -> None:
        if self.state["resets"] < self.times:
            super()._reset()

    @override
    def reset(self) -> None:
        model, root = self.agent.model, self._root
        terms = {one.place.chain: one for one in terms_of(root)}
        if len(terms) < len(self._places):
            add_terms(root, self._places[len(terms) :])
            terms = {one.place.chain: one for one in terms_of(root)}
        drawn = self.fresh()
        kept = set().union(*(network.exploration for network in self.targets.values()))
        old = {name: parameter.detach().clone() for name, parameter in root.named_parameters()}
        heads = {name for chain in self._chains.values() for module in chain for name in self._parameters_of(module)}
        fresh = {name: old[name] if name in kept else drawn[name].detach().to(old[name]) for name in heads}
        for chain in self._chains.values():
            terms[chain].append(fresh, old)
            for target in self._of_target(chain):
                terms[target].append(*(_renamed(values, chain, target) for values in (fresh, old)))
        for name in heads:
            root.get_parameter(name).copy_(fresh[name])
        self.clear_moments(heads)
        copy_to_targets(model)
        model.policy_class = injected(model.policy_class, [one.place for one in terms_of(root)])

    def _parameters_of(self, module: str) -> list[str]:
        return [f"{module}.{kind}" for kind, _ in self._root.get_submodule(module).named_parameters(recurse=False)]


def _renamed(values: dict[str, th.Tensor], chain: tuple[str, ...], target: tuple[str, ...]) -> dict[str, th.Tensor]:
    """Parameters of a chain by their names in another one."""
    modules = dict(zip(chain, target, strict=True))
    split = {name: name.rpartition(".") for name in values}
    return {f"{modules[module]}.{kind}": values[name] for name, (module, _, kind) in split.items() if module in modules}


@contextmanager
def _calls(root: nn.Module) -> Iterator[list[tuple[nn.Module, Any, Any]]]:
    """Note each call of a module without parts: the module, its first argument and its result."""
    calls: list[tuple[nn.Module, Any, Any]] = []

    def note(_name: str, module: nn.Module, args: tuple[Any, ...], output: th.Tensor) -> None:
        if args:
            calls.append((module, args[0], output))

    parts = {name: module for name, module in root.named_modules() if not list(module.children())}
    with hooked_layers(parts, after=note):
        yield calls
