"""All metrics of one agent's networks on given transitions: the arithmetic behind PlasticityCallback and inspect."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_plasticity.agents import Network, networks_of, objectives_of
from sb3_plasticity.agents.objectives import Objective
from sb3_plasticity.agents.problems import curvature_problem
from sb3_plasticity.callbacks.metrics import (
    LayerGradients,
    LayerParameters,
    LayerUnits,
    Metric,
    Outputs,
    Problem,
    Update,
)
from sb3_plasticity.common.functional import evaluation_mode
from sb3_plasticity.common.units import Units, read_layers, record_units

# Of each network the names of its parameters, layer by layer.
Layers = dict[str, dict[str, list[str]]]
# Measures by key, as in "policy/mlp_extractor.policy_net.0/effective_rank" or "policy/effective_rank".
Measures = dict[str, float]
Tensors = dict[str, th.Tensor]


@dataclass
class Pending:
    """
    A measurement whose update is still to come, for some networks at least.

    :param networks: those that have not changed since
    :param step: ``num_timesteps`` of the measurement
    :param samples: its transitions
    :param parameters: before the update
    :param outputs: of each network on the transitions, before the update
    :param optimizer_steps: of each network, before the update
    """

    networks: list[str]
    step: int
    samples: Any
    parameters: Tensors
    outputs: Tensors
    optimizer_steps: dict[str, int | None]


class AgentMeasures:
    """
    The measures of an agent's networks, in its own weights or in those of a fresh network.

    :param model: the algorithm, which says what the networks and losses are
    :param root: the module that is measured, the model's policy or one of its class
    :param metrics: what to measure
    :param networks: names of the networks to measure; None for all
    """

    def __init__(
        self, model: BaseAlgorithm, root: nn.Module, metrics: Sequence[Metric], networks: Sequence[str] | None = None
    ) -> None:
        self.model = model
        self.root = root
        self.metrics = tuple(metrics)
        self.networks: dict[str, Network] = {
            name: network for name, network in networks_of(model).items() if networks is None or name in networks
        }
        self.layers = own_layers(self.networks)
        self.pending: Pending | None = None
        self._moments: dict[str, Tensors] = {}
        self._hidden: set[str] | None = None

    def remember(self, *moments: str) -> None:
        """
        Keep the present parameters, which metrics measure distances to.

        :param moments: ``"start"``, ``"previous"``, ``"task"``
        """
        self._moments |= dict.fromkeys(moments, self._copy())

    def measure(self, samples: Any) -> Measures:
        """
        Take all metrics but those of updates, in evaluation mode; generators, gradients and weights stay as they are.

        :param samples: transitions
        :return: key -> value, layers and networks
        :raises FloatingPointError: for a measure that is NaN or infinite
        :raises ValueError: for units that are
        """
        with evaluation_mode(self.root):
            return self._measure(samples)

    def _measure(self, samples: Any) -> Measures:
        objectives = objectives_of(self.model)
        if self._hidden is None:
            self._hidden = set()
            for name in self.networks:
                self._hidden |= read_layers(self.root, partial(objectives[name].outputs, self.root, samples))
        units, gradients = self._passes(objectives, samples)
        measures: Measures = {}
        for network in self.networks:
            measures |= self._layer_measures(network, units[network], gradients)
            measures |= self._network_measures(network, objectives[network], samples)
        for key, value in measures.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"{key} is {value}")
        if self.root is self.model.policy and any(metric.of == "update" for metric in self.metrics):
            self.pending = Pending(
                networks=list(self.networks),
                step=self.model.num_timesteps,
                samples=samples,
                parameters=self._copy(),
                outputs=self._outputs(samples),
                optimizer_steps=self._optimizer_steps(),
            )
        return measures

    def changes(self) -> Measures:
        """
        Take the metrics of the update that followed the latest measurement, of those networks that it has changed.

        Others wait: an off-policy algorithm may not have begun to learn, or may update its actor less often.

        :return: key -> value
        """
        measures: Measures = {}
        if (pending := self.pending) is None:
            return measures
        now = self._copy()
        changed = {name for name, value in pending.parameters.items() if not th.equal(value, now[name])}
        if not changed:
            return measures
        outputs, steps = self._outputs(pending.samples), self._optimizer_steps()
        for name in list(pending.networks):
            members = [member for layer in self.layers[name].values() for member in layer]
            if changed.isdisjoint(members):
                continue
            pending.networks.remove(name)
            before, after = pending.optimizer_steps[name], steps[name]
            update = Update(
                parameters={member: pending.parameters[member] for member in members},
                new_parameters={member: now[member] for member in members},
                outputs=pending.outputs[name],
                new_outputs=outputs[name],
                n_steps=None if before is None or after is None else after - before,
            )
            for metric in self.metrics:
                if metric.of == "update" and (value := metric.function(update)) is not None:
                    measures[f"{name}/{metric.name}"] = float(value)
        if not pending.networks:
            self.pending = None
        return measures

    # -- forward and backward ------------------------------------------------------------------------------------------

    def _passes(self, objectives: Mapping[str, Objective], samples: Any) -> tuple[dict[str, dict[str, Units]], Tensors]:
        """Return the units of each network's hidden layers, and the gradients of its own loss in its parameters."""
        parameters = dict(self.root.named_parameters())
        units: dict[str, dict[str, Units]] = {}
        gradients: Tensors = {}
        # Networks that descend one loss, as an on-policy algorithm's, share its pass.
        by_loss: dict[Any, list[str]] = defaultdict(list)
        for name in self.networks:
            by_loss[objectives[name].loss].append(name)
        for loss, names in by_loss.items():
            held = objectives[names[0]].hold_fixed(self.root, samples)
            with th.enable_grad():
                with record_units(self.root) as recorded:
                    value = loss(self.root, held)
                members = [member for name in names for layer in self.layers[name].values() for member in layer]
                found = th.autograd.grad(value, [parameters[member] for member in members], allow_unused=True)
            units |= dict.fromkeys(names, recorded)
            gradients |= {name: g for name, g in zip(members, found, strict=True) if g is not None}
        return units, gradients

    def _outputs(self, samples: Any) -> Tensors:
        objectives = objectives_of(self.model)
        with evaluation_mode(self.root), th.no_grad():
            return {name: objectives[name].outputs(self.root, samples).clone() for name in self.networks}

    def _optimizer_steps(self) -> dict[str, int | None]:
        steps: dict[str, int | None] = {}
        for name, network in self.networks.items():
            held = {} if network.optimizer is None else network.optimizer.state
            states = [held.get(p, {}) for p in network.parameters.values()]
            counts = [int(state["step"]) for state in states if "step" in state]
            known = bool(counts) or (network.optimizer is not None and not any(states))  # no state yet: no step
            steps[name] = max(counts, default=0) if known else None
        return steps

    def _copy(self) -> Tensors:
        parameters = dict(self.root.named_parameters())
        members = [member for layers in self.layers.values() for layer in layers.values() for member in layer]
        return {member: parameters[member].detach().clone() for member in members}

    # -- metrics -------------------------------------------------------------------------------------------------------

    def _layer_measures(self, network: str, units: Mapping[str, Units], gradients: Tensors) -> Measures:
        assert self._hidden is not None
        measures: Measures = {}
        for metric in self.metrics:
            values: list[np.ndarray] = []
            for layer, members in self.layers[network].items():
                view = self._view(metric.of, layer, members, units, gradients)
                if view is None:
                    continue
                try:
                    value = metric.function(view)
                except ValueError as error:
                    raise FloatingPointError(f"{metric.name} of {layer}: {error}") from error
                if value is not None:
                    array = np.asarray(value.detach().cpu() if isinstance(value, th.Tensor) else value, dtype=float)
                    measures[f"{network}/{layer}/{metric.name}"] = float(array.mean())
                    values.append(array)
            if values:
                measures[f"{network}/{metric.name}"] = metric.reduced(values)
        return measures

    def _view(
        self, of: str, layer: str, members: list[str], units: Mapping[str, Units], gradients: Tensors
    ) -> LayerUnits | LayerParameters | LayerGradients | None:
        """Show a metric of layers what it is of; None where there is none."""
        assert self._hidden is not None

        def named(tensors: Mapping[str, th.Tensor]) -> Tensors:
            return {name.rpartition(".")[2]: tensors[name] for name in members if name in tensors}

        if of == "units" and layer in self._hidden and layer in units:
            module = self.root.get_submodule(layer)
            found = units[layer]
            return LayerUnits(found.features.detach(), found.activation, isinstance(module, nn.RNNBase))
        if of == "parameters":
            now = {name: value.detach() for name, value in self.root.named_parameters()}
            return LayerParameters(named(now), {moment: named(then) for moment, then in self._moments.items()})
        if of == "gradients":
            return LayerGradients(named(gradients), layer in self._hidden)
        return None

    def _network_measures(self, network: str, objective: Objective, samples: Any) -> Measures:
        measures: Measures = {}

        def take(of: str, view: Outputs | Problem) -> None:
            for metric in self.metrics:
                if metric.of == of and (value := metric.function(view)) is not None:
                    measures[f"{network}/{metric.name}"] = float(value)

        kinds = {metric.of for metric in self.metrics}
        if "outputs" in kinds:
            with th.no_grad():
                values = objective.outputs(self.root, samples)
                distribution = objective.distribution
                # the networks' own object, which their next pass changes
                take("outputs", Outputs(values, None if distribution is None else distribution(self.root, samples)))
        if "problem" in kinds:
            posed = curvature_problem(self.root, objective, samples)
            optimizer = self.networks[network].optimizer
            take("problem", Problem(posed.params, posed.output_fn, posed.samples, optimizer))
        return measures


def own_layers(networks: Mapping[str, Network]) -> Layers:
    """
    Say which parameters each network's layers have; what several networks share is the first one's.

    :param networks: of an agent
    :return: network -> layer -> names of the layer's own parameters; a parameter that belongs to no layer (``log_std``)
        is a layer of its own name
    """
    found: Layers = {}
    seen: set[int] = set()
    for network, described in networks.items():
        layers: dict[str, list[str]] = {}
        for name, parameter in described.parameters.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        found[network] = layers
    return found
