"""
The metrics of plasticity as a list: what each is of, how it is computed, how a network's layers become one number.

A metric's function gets what the metric is ``of`` and returns a number, or one for each unit, or None where it does not
apply:

=================  ===========================  ====================================================
of                 called with                  once for each
=================  ===========================  ====================================================
``"units"``        :class:`LayerUnits`          hidden layer
``"parameters"``   :class:`LayerParameters`     layer, and each parameter outside any layer
``"gradients"``    :class:`LayerGradients`      layer, and each parameter outside any layer
``"outputs"``      :class:`Outputs`             network
``"update"``       :class:`Update`              network, after the update that follows a measurement
``"problem"``      :class:`Problem`             network
=================  ===========================  ====================================================
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_plasticity.agents.distributions import distribution_entropy, gaussian_of
from sb3_plasticity.common.checks import check_choice, must_be, nearest
from sb3_plasticity.common.plasticity import (
    DORMANT_TAU,
    GRAMA_TAU,
    dead_units,
    dormant_units,
    euclidean_norm,
    inactive_gradients,
    largest_singular_value,
    row_cosine,
    saturated_units,
    stable_rank,
)
from sb3_plasticity.common.rank import effective_rank

KINDS = ("units", "parameters", "gradients", "outputs", "update", "problem")
REDUCTIONS = ("mean", "units", "norm", "max")
PROBE_STEPS = 100
_PROBE_SEED = 20_230_213

Tensors = Mapping[str, th.Tensor]


@dataclass(frozen=True)
class LayerUnits:
    """
    A hidden layer's units.

    :param features: (rows, units) after the nonlinearity; every position of a convolution is a row
    :param activation: name of the last function applied, such as ``"tanh"`` or ``"relu"``; empty for none
    :param recurrent: whether the layer is one
    """

    features: th.Tensor
    activation: str
    recurrent: bool


@dataclass(frozen=True)
class LayerParameters:
    """
    A layer's parameters.

    :param now: name in the layer (``"weight"``, ``"bias"``) -> tensor
    :param at: the same at other moments: ``"previous"`` measurement, ``"start"`` of training, start of the ``"task"``.
        Moments that are not known, all of a fresh network's, are missing
    """

    now: Tensors
    at: Mapping[str, Tensors]


@dataclass(frozen=True)
class LayerGradients:
    """
    Gradients of the algorithm's own loss in a layer's parameters.

    :param values: name in the layer -> gradient; without those that the loss does not depend on
    :param hidden: whether the layer's outputs are units
    """

    values: Tensors
    hidden: bool


@dataclass(frozen=True)
class Outputs:
    """
    What a network says of the transitions.

    :param values: (N, C)
    :param distribution: of actions; None for a network that gives none
    """

    values: th.Tensor
    distribution: Distribution | None


@dataclass(frozen=True)
class Update:
    """
    A network before and after the update that follows a measurement.

    :param parameters: name -> tensor, before
    :param new_parameters: the same after
    :param outputs: (N, C) on the measurement's transitions, before
    :param new_outputs: the same after
    :param n_steps: of the optimizer; None where it does not count them
    """

    parameters: Tensors
    new_parameters: Tensors
    outputs: th.Tensor
    new_outputs: th.Tensor
    n_steps: int | None


@dataclass(frozen=True)
class Problem:
    """
    A network as a function of its parameters, and the optimizer that moves them.

    :param params: name -> tensor
    :param output_fn: ``output_fn(params, samples)`` -> (N, C)
    :param samples: transitions
    :param optimizer: whose class and settings count, not its state; None where no optimizer moves them
    """

    params: dict[str, th.Tensor]
    output_fn: Callable[[dict[str, th.Tensor], Any], th.Tensor]
    samples: Any
    optimizer: th.optim.Optimizer | None


@dataclass(frozen=True)
class Metric:
    """
    One measure of plasticity.

    :param name: a word, part of the keys that are logged
    :param of: what ``function`` gets: one of ``"units"``, ``"parameters"``, ``"gradients"`` (layer by layer),
        ``"outputs"``, ``"update"``, ``"problem"`` (of the network)
    :param function: its argument is described in this module's text; it returns a number, a tensor with one for each
        unit (whose mean is the layer's value), or None where the metric does not apply
    :param reduce: how layers become the network's number: ``"mean"``, ``"units"`` (the mean over all units together),
        ``"norm"`` (the root of the sum of squares) or ``"max"``; not used for metrics of the network
    :raises ValueError: for arguments outside what is accepted
    """

    name: str
    of: str
    function: Callable[[Any], float | th.Tensor | None] = field(repr=False)
    reduce: str = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise must_be("name", "a word of letters, digits and underscores", self.name)
        check_choice("of", self.of, KINDS)
        check_choice("reduce", self.reduce, REDUCTIONS)
        if not callable(self.function):
            raise must_be("function", "callable", self.function)

    def reduced(self, values: Sequence[np.ndarray]) -> float:
        """
        Make one number of the layers'.

        :param values: at least one: (units,) or () of each layer
        :return: the network's value
        """
        if self.reduce == "units":
            return float(np.concatenate([np.atleast_1d(value) for value in values]).mean())
        numbers = [value.mean() for value in values]
        if self.reduce == "norm":
            return float(np.linalg.norm(numbers))
        return float(np.max(numbers) if self.reduce == "max" else np.mean(numbers))


def _dead(units: LayerUnits) -> th.Tensor | None:
    return None if units.recurrent or units.activation.startswith("tanh") else dead_units(units.features)


def _saturated(units: LayerUnits) -> th.Tensor | None:
    return saturated_units(units.features) if units.activation.startswith("tanh") else None


def _spread(units: LayerUnits) -> th.Tensor:
    return units.features.to(th.float64).std(0, correction=0)


def _distance(moment: str, layer: LayerParameters) -> float | None:
    if moment not in layer.at:
        return None
    return float(euclidean_norm(value - layer.at[moment][name] for name, value in layer.now.items()))


def _of_weight(function: Callable[[th.Tensor], th.Tensor], layer: LayerParameters) -> float | None:
    weight = layer.now.get("weight")
    return None if weight is None or weight.ndim < 2 else float(function(weight.flatten(1)))


def _inactive(tau: float, layer: LayerGradients) -> th.Tensor | None:
    weight = layer.values.get("weight")
    return None if not layer.hidden or weight is None else inactive_gradients(weight.flatten(1), tau)


def _entropy(outputs: Outputs) -> float | None:
    if outputs.distribution is None:
        return None
    return float(distribution_entropy(outputs.distribution).mean())


def _std(outputs: Outputs) -> float | None:
    normal = None if outputs.distribution is None else gaussian_of(outputs.distribution)
    return None if normal is None else float(normal.stddev.mean())


def _churn(update: Update) -> float:
    return float((update.new_outputs - update.outputs).abs().mean())


def _effective_learning_rate(update: Update) -> float | None:
    if not update.n_steps:
        return None
    change = euclidean_norm(update.new_parameters[name] - value for name, value in update.parameters.items())
    return float(change / euclidean_norm(update.parameters.values())) / update.n_steps


def refit_loss(problem: Problem, steps: int = PROBE_STEPS) -> float | None:
    r"""
    Measure the mean squared error that a network reaches on random targets: what is left of its ability to learn.

    From the present weights, ``steps`` full-batch steps of a new optimizer of the agent's class and settings on
    :math:`y_n = \bar f + z_n` with fixed standard normal :math:`z_n`, where :math:`\bar f` is the mean of the network's
    own outputs, so that it need not learn an offset (target-fitting capacity: Lyle, Rowland and Dabney 2022,
    *Understanding and preventing capacity loss*; the offset: Lyle et al. 2023, *Understanding plasticity in neural
    networks*). 0 is a perfect fit, 1 is what a constant reaches; more than 1, what it had learned is still in the way.
    Outputs that cannot differ between samples, as a free log standard deviation, stay at 1, in a fresh network too.

    :param problem: the network; its parameters are not changed
    :param steps: of the optimizer
    :return: the error after them, a mean over samples and outputs; None without an optimizer (TRPO's policy)
    """
    if problem.optimizer is None:
        return None
    leaves = {name: value.detach().clone().requires_grad_() for name, value in problem.params.items()}
    with th.enable_grad():
        outputs = problem.output_fn(leaves, problem.samples).detach()
        noise = th.randn(outputs.shape, generator=th.Generator().manual_seed(_PROBE_SEED)).to(outputs)
        targets = outputs.mean(0) + noise
        optimizer = _renewed(problem.optimizer, list(leaves.values()))
        for _ in range(steps):
            optimizer.zero_grad()
            loss = th.nn.functional.mse_loss(problem.output_fn(leaves, problem.samples), targets)
            loss.backward()
            optimizer.step()
        return float(th.nn.functional.mse_loss(problem.output_fn(leaves, problem.samples).detach(), targets))


def _renewed(optimizer: th.optim.Optimizer, parameters: list[th.Tensor]) -> th.optim.Optimizer:
    """Make an optimizer of the same class and settings, without its state."""
    accepted = set(inspect.signature(type(optimizer)).parameters) - {"params", "foreach", "fused", "capturable"}
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name in accepted}
    settings["lr"] = float(settings["lr"])
    return type(optimizer)(parameters, **settings)


def dormant(tau: float = DORMANT_TAU) -> Metric:
    """
    Build the metric of the share of tau-dormant units, see :func:`~sb3_plasticity.common.plasticity.dormant_units`.

    :param tau: threshold on a unit's score
    :return: the metric
    """
    return Metric("dormant_units", "units", lambda units: dormant_units(units.features, tau), "units")


def gradient_dormant(tau: float = GRAMA_TAU) -> Metric:
    """
    Build GraMa's metric, the units with small gradients: :func:`~sb3_plasticity.common.plasticity.inactive_gradients`.

    :param tau: threshold on a unit's score
    :return: the metric
    """
    return Metric("inactive_gradients", "gradients", partial(_inactive, tau), "units")


def trainability(steps: int = PROBE_STEPS) -> Metric:
    """
    Build the metric of the error that a refit to random targets reaches, see :func:`refit_loss`.

    Not among the defaults: for a [256, 256] network and 512 samples it takes about ``steps`` minibatches of that size,
    a second or so for each network and as long again for the fresh one.

    :param steps: of the optimizer
    :return: the metric
    """
    return Metric("trainability", "problem", partial(refit_loss, steps=steps))


DEFAULT_METRICS: tuple[Metric, ...] = (
    Metric("effective_rank", "units", lambda units: float(effective_rank(units.features))),
    Metric("stable_rank", "units", lambda units: float(stable_rank(units.features))),
    dormant(),
    Metric("dead_units", "units", _dead, "units"),
    Metric("saturated_units", "units", _saturated, "units"),
    Metric("activation_spread", "units", _spread, "units"),
    Metric("weight_norm", "parameters", lambda layer: float(euclidean_norm(layer.now.values())), "norm"),
    Metric("weight_change", "parameters", partial(_distance, "previous"), "norm"),
    Metric("weight_change_from_start", "parameters", partial(_distance, "start"), "norm"),
    Metric("weight_change_from_task", "parameters", partial(_distance, "task"), "norm"),
    Metric("weight_cosine", "parameters", partial(_of_weight, row_cosine)),
    Metric("largest_singular_value", "parameters", partial(_of_weight, largest_singular_value), "max"),
    Metric("gradient_norm", "gradients", lambda layer: float(euclidean_norm(layer.values.values())), "norm"),
    gradient_dormant(),
    Metric("entropy", "outputs", _entropy),
    Metric("std", "outputs", _std),
    Metric("churn", "update", _churn),
    Metric("effective_learning_rate", "update", _effective_learning_rate),
)
# Those that can be asked for by name, in YAML for instance.
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*DEFAULT_METRICS, trainability())}


def find_metrics(metrics: Sequence[Metric | str]) -> tuple[Metric, ...]:
    """
    Look up metrics that are given by name.

    :param metrics: metrics, or names of this module's
    :return: metrics
    :raises ValueError: for an unknown name, something else, or two of one name
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise must_be("metrics", "one or more metrics, in a tuple", metrics)
    found: dict[str, Metric] = {}
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in METRICS:
                raise ValueError(
                    f"{must_be('metrics', f'a Metric or one of {sorted(METRICS)}', metric)}{nearest(metric, METRICS)}"
                )
            metric = METRICS[metric]
        if not isinstance(metric, Metric):
            raise must_be("metrics", "a Metric or the name of one", metric)
        if metric.name in found:
            raise must_be("metrics", "metrics of different names", metric.name)
        found[metric.name] = metric
    return tuple(found.values())
