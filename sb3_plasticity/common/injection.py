"""
Frozen terms on the output of a network's head, as plasticity injection adds them, and policies built with them.

The terms are buffers of the policy: they are saved with it, and neither optimizers nor Polyak averaging see them. What
a saved model is rebuilt from is its policy's class, so that class is the one that knows of them (:func:`injected`).
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from torch import nn

# Name of the policy's submodule that holds the terms.
SLOT = "injections"


@dataclass(frozen=True)
class Place:
    """
    Where a head is: modules that are called one after another, each on what the one before returned.

    :param chain: their names in the policy, from the head's first layer to the output layer
    :param count: how many pairs of terms there are
    """

    chain: tuple[str, ...]
    count: int = 0


class FrozenTerms(nn.Module):
    """
    Pairs of frozen copies of a head, added to its output: h(x) becomes h(x) - fresh(x) + old(x), pair by pair.

    :param policy: that holds the head; hooks on its first and its last module let the terms act
    :param place: where the head is
    """

    def __init__(self, policy: nn.Module, place: Place) -> None:
        super().__init__()
        self.place = place
        modules = [policy.get_submodule(name) for name in place.chain]
        self._skeletons = [_without_parameters(module) for module in modules]  # a list: not part of the policy
        self._names = [tuple(name for name, _ in module.named_parameters(recurse=False)) for module in modules]
        self._input: th.Tensor | None = None
        for index, module in enumerate(modules):
            for name in self._names[index]:
                like = module.get_parameter(name).detach()
                self.register_buffer(f"{name}_{index}", like.new_zeros(2 * place.count, *like.shape))
        modules[0].register_forward_pre_hook(self._take)
        modules[-1].register_forward_hook(self._add)

    def append(self, fresh: Mapping[str, th.Tensor], old: Mapping[str, th.Tensor]) -> None:
        """
        Add a pair of terms.

        :param fresh: parameters of the head that is subtracted, by their names in the policy
        :param old: of the one that is added
        """
        for index, module in enumerate(self.place.chain):
            for name in self._names[index]:
                values = self.get_buffer(f"{name}_{index}")
                pair = th.stack([terms[f"{module}.{name}"].to(values) for terms in (fresh, old)])
                self.register_buffer(f"{name}_{index}", th.cat([values, pair]))
        self.place = replace(self.place, count=self.place.count + 1)

    def forward(self, inputs: th.Tensor, term: int) -> th.Tensor:
        """
        Compute one term.

        :param inputs: of the head's first module
        :param term: its number
        :return: the head's output with the term's parameters
        """
        for index, (skeleton, names) in enumerate(zip(self._skeletons, self._names, strict=True)):
            values = {name: self.get_buffer(f"{name}_{index}")[term] for name in names}
            inputs = th.func.functional_call(skeleton, values, (inputs,))
        return inputs

    def _take(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._input = args[0]

    def _add(self, _module: nn.Module, _args: Any, output: th.Tensor) -> th.Tensor:
        if self._input is None:
            raise RuntimeError(f"{self.place.chain[-1]} was called without {self.place.chain[0]} before it")
        inputs, self._input = self._input, None
        # The latest pair first: its fresh head is the live one at first, so that the two cancel to the last bit.
        for pair in reversed(range(self.place.count)):
            output = output - self(inputs, 2 * pair) + self(inputs, 2 * pair + 1)
        return output


class InjectedPolicy:
    """A policy with frozen terms at its heads; see :func:`injected`."""

    stock: ClassVar[type]
    places: ClassVar[tuple[Place, ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_terms(self, self.places)  # type: ignore[arg-type]


def injected(policy_class: type, places: Iterable[Place]) -> type:
    """
    Derive the class of a policy that is built with frozen terms.

    It is made at run time and pickled by value, as SB3 pickles a policy's class.

    :param policy_class: any policy's, or what this function has returned for another number of terms
    :param places: where the heads are, and how many pairs of terms each has
    :return: a subclass of it with the same arguments
    """
    stock = policy_class.stock if issubclass(policy_class, InjectedPolicy) else policy_class
    members = {"stock": stock, "places": tuple(places), "__doc__": stock.__doc__, "__module__": __name__}
    return type(f"Injected{stock.__name__}", (InjectedPolicy, stock), members)


def add_terms(policy: nn.Module, places: Iterable[Place]) -> None:
    """
    Give a policy frozen terms, all of them zero.

    :param policy: which may have some already
    :param places: where further heads are
    """
    policy.add_module(SLOT, nn.ModuleList([*terms_of(policy), *(FrozenTerms(policy, place) for place in places)]))


def terms_of(policy: nn.Module) -> Sequence[FrozenTerms]:
    """
    List a policy's frozen terms.

    :param policy: any
    :return: in the order of their places; none for a policy without
    """
    return list(getattr(policy, SLOT, ()))


def _without_parameters(module: nn.Module) -> nn.Module:
    """Copy a module without hooks, its parameters buffers of no consequence."""
    skeleton = copy.copy(module)
    own = module._parameters.items()
    vars(skeleton).update(
        _forward_hooks=OrderedDict(),
        _forward_pre_hooks=OrderedDict(),
        _parameters={name: None for name, value in own if value is None},
        _buffers={name: value.detach().clone() for name, value in own if value is not None},
    )
    return skeleton
