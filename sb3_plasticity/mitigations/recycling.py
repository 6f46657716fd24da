"""
Recycling: units that have become useless are reinitialised.

All rates and periods are per update, that is, per step of the optimizer, as in the literature. They do not transfer
between settings with different numbers of updates per environment step. Every recycler therefore logs what it did per
million environment steps.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch as th
from torch import nn
from typing_extensions import override

from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, check_count, check_number, must_be
from sb3_plasticity.common.recycling import FreshRows, recycle_units
from sb3_plasticity.common.units import Consumer, HiddenLayer
from sb3_plasticity.mitigations.base import Agent, Mitigation
from sb3_plasticity.mitigations.resets import fresh_parameters

UTILITIES = ("contribution", "weight", "adaptation", "zero_contribution", "adaptable_contribution", "random")
# Added to the mean over a layer's units, as published.
SMALL = 1e-9
# Ages up to 2 ** BINS samples are told apart.
BINS = 24


class _Recycler(Mitigation):
    """
    Knows the hidden layers of its networks and recycles their units.

    A layer that several networks share is recycled with the first of them that is stepped; all its consumers are
    cleared, whosever they are. Output layers and recurrent cells are never recycled.
    """

    exclusive: ClassVar[str | None] = "units"

    @override
    def setup(self) -> None:
        self.hidden: dict[str, tuple[HiddenLayer, ...]] = {}
        seen: set[str] = set()
        for name, network in self.targets.items():
            own = [layer for layer in network.units.values() if layer.name not in seen and _is_trained(network, layer)]
            seen |= {layer.name for layer in own}
            self.hidden[name] = tuple(own)
            if self.networks is not None and not seen & set(network.layers):
                raise must_be(f"networks of {self.name}", "networks with hidden units that can be told apart", name)
        unclear = {layer: why for network in self.targets.values() for layer, why in network.unclear.items()}
        if unclear:
            told = "; ".join(f"{layer} ({why})" for layer, why in unclear.items())
            warnings.warn(f"{self.name} leaves alone layers whose units cannot be told apart: {told}")
        if not seen:
            accepted = "networks with hidden units that can be told apart"
            raise must_be(f"networks of {self.name}", accepted, ", ".join(self.targets))
        self.root = next(iter(self.targets.values())).root
        self.rows = FreshRows(fresh_draws(self.agent, self.root), 7919 * (self.seed + 1))
        self.rows.taken = self.state.setdefault("taken", {})
        self.state.setdefault("layers", {})
        self.state.setdefault("recycled", 0)

    def _layers(self, networks: Iterable[Network]) -> Iterable[HiddenLayer]:
        for network in networks:
            yield from self.hidden[network.name]

    def _state_of(self, layer: HiddenLayer, **initial: Any) -> dict[str, Any]:
        state: dict[str, Any] = self.state["layers"].setdefault(layer.name, {})
        for key, value in initial.items():
            if key not in state:
                like = self.root.get_parameter(layer.weight)
                state[key] = th.full((layer.n_units,), float(value), device=like.device)
        return state

    def _recycle(self, layer: HiddenLayer, chosen: th.Tensor, means: Mapping[str, th.Tensor] | None = None) -> bool:
        """Recycle the chosen units, and return whether there are any."""
        count = int(chosen.sum())
        if count == 0:
            return False
        self.state["recycled"] += count
        optimizers = {id(n.optimizer): n.optimizer for n in self.agent.networks.values() if n.optimizer is not None}
        rows = self.rows.take(layer, count)
        recycle_units(self.root, layer, chosen, rows, means, optimizers.values())
        touched = count / layer.n_units * sum(self.root.get_parameter(name).numel() for name in layer.incoming)
        self.observe("share_of_parameters", touched / sum(p.numel() for p in self.parameters.values()))
        return True

    def _recorded(self, layer: HiddenLayer) -> Consumer | None:
        """Find a consumer whose input was recorded."""
        return next((consumer for consumer in layer.consumers if consumer.layer in self.agent.activations), None)

    def _means(self, layer: HiddenLayer, means: th.Tensor) -> dict[str, th.Tensor]:
        """Bring the mean of each unit at each of its columns, (units, k), into the shape each consumer multiplies."""
        found = {}
        for consumer in layer.consumers:
            if consumer.columns.shape != means.shape:
                continue
            weight = self.root.get_parameter(consumer.weight)
            row = th.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)
            row[consumer.columns.to(weight.device)] = means.to(weight)
            found[consumer.layer] = row.reshape(-1, *[1] * (weight.ndim - 2)).expand(weight.shape[1:])
        return found

    @override
    def logs(self) -> dict[str, float]:
        found = super().logs()
        found["units_recycled"] = float(self.state["recycled"])
        if self.agent.num_timesteps:
            found["units_per_million_steps"] = 1e6 * self.state["recycled"] / self.agent.num_timesteps
        return found


class _ActivityRecycler(_Recycler):
    """A recycler that watches activations."""

    @override
    def records(self, network: Network) -> Iterable[str]:
        return [c.layer for layer in self.hidden[network.name] for c in layer.consumers if c.layer in network.layers]

    def _activity(self, layer: HiddenLayer) -> tuple[th.Tensor, th.Tensor] | None:
        """Return the activations at a consumer, (rows, inputs), and the columns there, (units, k)."""
        consumer = self._recorded(layer)
        if consumer is None:
            return None
        inputs = self.agent.activations[consumer.layer]
        return inputs, consumer.columns.to(inputs.device)


class ContinualBackprop(_ActivityRecycler):
    r"""
    Reinitialise the least useful mature units, a few at a time (continual backpropagation).

    Source: Dohare et al., *Loss of plasticity in deep continual learning*, Nature 2024. After every update, the utility
    of each unit of a hidden layer becomes :math:`u \leftarrow d u + (1 - d)\, \overline{|h_i|}\, \overline{|V_i|}`,
    where :math:`V_i` are the weights that read unit i, and is corrected by :math:`1 - d^\text{age}`. Of the units that
    are older than ``maturity_threshold`` updates, the share ``replacement_rate`` with the lowest utility is recycled;
    fractions of units accumulate. The published values for Slippery Ant are a rate of 1e-4, a maturity of 10,000 and a
    decay of .99, with Adam's betas (.99, .99), a learning rate of 1e-4 and L2 (``rl/cfg/sant/cbp.yml``).

    There are two differences to the published code. The mean contribution is really moved into the biases of the units
    that read it, whereas the published code zeroes it first. The optimizer's moments of the recycled slices restart,
    whereas plain Adam keeps them in the published code for RL. For a unit that another convolution reads, the mean is
    taken over all positions.

    :param replacement_rate: share of the mature units of a layer that is recycled per update
    :param maturity_threshold: age in updates up to which a unit is protected
    :param decay_rate: decay of the utility and the mean activation; 0 considers only the current update
    :param utility: ``"contribution"``; ``"weight"`` (only outgoing weights), ``"adaptation"`` (the reciprocal of the
        incoming weights), ``"zero_contribution"`` (:math:`|h_i - \bar h_i|` in place of :math:`|h_i|`),
        ``"adaptable_contribution"`` (the latter times adaptation), or ``"random"``
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range, or if a network has no hidden units
    """

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 10_000,
        decay_rate: float = 0.99,
        utility: str = "contribution",
        networks: Iterable[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("replacement_rate", replacement_rate, 0, 1)
        check_count("maturity_threshold", maturity_threshold)
        check_number("decay_rate", decay_rate, 0, below=1)
        check_choice("utility", utility, UTILITIES)
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.utility = utility

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for layer in self._layers(networks):
            activity = self._activity(layer)
            if activity is None:
                continue
            inputs, columns = activity
            mean = inputs.mean(0)
            state = self._state_of(layer, utility=0, age=0)
            state.setdefault("mean", th.zeros_like(mean[columns]))
            decay = self.decay_rate
            state["age"] += 1
            state["utility"].lerp_(self._utility(layer, inputs, mean, columns), 1 - decay)
            state["mean"].lerp_(mean[columns], 1 - decay)
            mature = state["age"] > self.maturity_threshold
            due = state.get("due", 0.0) + self.replacement_rate * int(mature.sum())
            state["due"] = due - int(due)
            if due < 1:
                continue
            correction = 1 - decay ** state["age"]
            corrected = (state["utility"] / correction).masked_fill(~mature, float("inf"))
            chosen = th.zeros_like(mature)
            chosen[corrected.argsort(stable=True)[: int(due)]] = True
            self._recycle(layer, chosen, self._means(layer, state["mean"] / correction[:, None]))
            for key in ("utility", "age", "mean"):
                state[key][chosen] = 0

    def _utility(self, layer: HiddenLayer, inputs: th.Tensor, mean: th.Tensor, columns: th.Tensor) -> th.Tensor:
        """Return what each unit is worth in this update: (units,)."""
        if self.utility == "random":
            return th.rand(layer.n_units, generator=self.generator).to(inputs.device)
        if self.utility == "adaptation":
            return 1 / self._incoming(layer)
        outgoing = []
        for consumer in layer.consumers:
            weight = self.root.get_parameter(consumer.weight)
            size = weight.abs().mean([axis for axis in range(weight.ndim) if axis != 1])
            outgoing.append(size[consumer.columns.to(weight.device)])
        activity = {
            "weight": lambda: th.ones_like(mean),
            "contribution": lambda: inputs.abs().mean(0),
        }.get(self.utility, lambda: (inputs - mean).abs().mean(0))()
        share = th.stack([(activity[columns] * size).mean(1) for size in outgoing]).mean(0)
        return share / self._incoming(layer) if self.utility == "adaptable_contribution" else share

    def _incoming(self, layer: HiddenLayer) -> th.Tensor:
        """Return the mean size of each unit's incoming weights: (units,)."""
        return self.root.get_parameter(layer.weight).abs().flatten(1).mean(1).clamp(min=SMALL)


class ReDo(_ActivityRecycler):
    r"""
    Recycle dormant units, which are those with :math:`\overline{|h_i|} \le \tau \cdot \mathrm{mean}_k
    \overline{|h_k|}`.

    Source: Sokar et al. 2023, https://arxiv.org/abs/2302.12902. The published values are a tau of .025 every 1,000
    updates for DQN, and a tau of .1 every 100 updates on Ant (Dohare et al.). The criterion is hardly meaningful for
    activations other than ReLU. The mitigation acts when the next rollout starts, because it changes the outputs of the
    networks. It uses the activations of all training passes since the last rollout.

    :param tau: threshold of the score of a unit
    :param every: minimum number of updates of a network between two checks
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range, or if a network has no hidden units
    """

    name: ClassVar[str] = "redo"

    def __init__(
        self, tau: float = 0.025, every: int = 1000, networks: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("tau", tau, 0)
        check_count("every", every, 1)
        self.tau = tau
        self.every = every

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for layer in self._layers(networks):
            activity = self._activity(layer)
            if activity is None:
                continue
            inputs, columns = activity
            state = self._state_of(layer)
            state["updates"] = state.get("updates", 0) + 1
            for key, values in (("sum", inputs.sum(0)), ("size", inputs.abs().sum(0))):
                state[key] = state.get(key, 0) + values[columns]
            state["rows"] = state.get("rows", 0) + len(inputs)

    @override
    @th.no_grad()
    def rollout_start(self) -> None:
        for layer in self._layers(self.targets.values()):
            state = self._state_of(layer)
            if state.get("rows", 0) == 0:
                continue
            rows, means = state.pop("rows"), state.pop("sum")
            size = state.pop("size").mean(1) / rows
            if state["updates"] < self.every:
                continue
            state["updates"] = 0
            chosen = size / (size.mean() + SMALL) <= self.tau
            self.observe("dormant_units", chosen.float().mean())
            self._recycle(layer, chosen, self._means(layer, means / rows))


class ReGraMa(_Recycler):
    r"""
    Recycle units whose gradient has vanished: the mean absolute gradient of their incoming weights is at most
    :math:`\tau` times the mean of the layer.

    Source: *Measure gradients, not activations* (2025), https://arxiv.org/abs/2505.24061, with a tau of .01 every 1,000
    updates. It needs no activations and works with any nonlinearity. Units are cleared without moving their mean
    contribution. A penalty on parameters is part of their gradient, so make sure that it does not hide the gradient of
    the loss.

    :param tau: threshold of the score of a unit
    :param every: number of updates between two checks
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range, or if a network has no hidden units
    """

    name: ClassVar[str] = "regrama"

    def __init__(
        self, tau: float = 0.01, every: int = 1000, networks: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("tau", tau, 0)
        check_count("every", every, 1)
        self.tau = tau
        self.every = every

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for layer in self._layers(networks):
            state = self._state_of(layer)
            state["updates"] = state.get("updates", 0) + 1
            score = gradient_score(self.root, layer)
            if state["updates"] % self.every == 0 and score is not None:
                self._recycle(layer, score <= self.tau)


class SelfNormalizedResets(_ActivityRecycler):
    r"""
    Reinitialise a unit when it has been silent for longer than is usual for this unit (self-normalised resets).

    Source: Farias and Jozefiak, ICLR 2025, https://arxiv.org/abs/2410.20098. For each unit, the number of samples since
    it last fired is compared with a percentile of this number at its own firings. Ages are counted from update to
    update and stored in bins whose width doubles; the authors store 20,000 counters per unit. The threshold starts at
    10,000 samples. It is updated every ``refresh`` updates (doubled if the percentile is not below it), and stays
    between one batch and 20,000 samples. Only ReLU is supported.

    :param percentile: percentile of a unit's own ages at firing
    :param refresh: number of updates between two updates of the thresholds
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range, if a network has no hidden units, or if its activations are not
        ReLU
    """

    def __init__(
        self, percentile: float = 0.9, refresh: int = 100, networks: Iterable[str] | None = None, seed: int = 0
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("percentile", percentile, above=0, below=1)
        check_count("refresh", refresh, 1)
        self.percentile = percentile
        self.refresh = refresh

    @override
    def setup(self) -> None:
        super().setup()
        for layer in self._layers(self.targets.values()):
            if not layer.activation.startswith("relu"):
                raise must_be(f"activation of {layer.name}", f"'relu' for {self.name}", layer.activation)

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for layer in self._layers(networks):
            activity = self._activity(layer)
            if activity is None:
                continue
            inputs, columns = activity
            state = self._state_of(layer, age=0, threshold=10_000)
            state.setdefault("counts", th.zeros(layer.n_units, BINS, device=inputs.device))
            state["updates"] = state.get("updates", 0) + 1
            fired = (inputs.amax(0) > 0)[columns].any(1)
            bins = (state["age"] + 1).log2().floor().long().clamp(max=BINS - 1)
            state["counts"][fired, bins[fired]] += 1
            state["age"] = th.where(fired, th.zeros_like(state["age"]), state["age"] + len(inputs))
            if state["updates"] % self.refresh == 0:
                self._refresh(state, len(inputs))
            chosen = state["age"] >= state["threshold"]
            if self._recycle(layer, chosen):
                state["age"][chosen] = 0
                state["counts"][chosen] = 0
                state["threshold"][chosen] = 10_000

    def _refresh(self, state: dict[str, Any], batch: int) -> None:
        counts = state["counts"]
        cumulative = counts.cumsum(1)
        place = (cumulative < self.percentile * cumulative[:, -1:]).sum(1)
        age = 2.0 ** (place + 1) - 1  # the upper end of the bin
        known = cumulative[:, -1] > 0
        proposed = th.where(age < state["threshold"], age, 2 * state["threshold"])
        state["threshold"] = th.where(known, proposed, state["threshold"]).clamp(batch, max(20_000, batch))


class CalibratedPartialResets(_Recycler):
    r"""
    Move units with small gradients a little towards fresh units (calibrated partial resets).

    Source: 2026, https://arxiv.org/abs/2607.24996. The score of a unit starts at 1 and becomes :math:`u \leftarrow .99
    u + .01 s`, where s is the mean absolute gradient of its incoming weights divided by the mean of the layer. Every
    ``every`` updates, with :math:`\phi = \min(1, 2\, \mathrm{sigmoid}(-16 (u - 1)))`, the incoming weights become
    :math:`(1 - \rho \phi) W_i + \rho \phi W^\text{fresh}_i`, the outgoing weights become :math:`(1 - \rho \phi) V_i`,
    and u becomes 1 again. Biases, the rows of the output layers and the optimizer's moments are not changed.

    :param rho: size of a reset; published are .015 for Ant and .05 for Humanoid
    :param every: number of updates between two resets
    :param decay_rate: decay rate of the score
    :param networks: names of the networks to act on, or None for all
    :param seed: seed of the new weights
    :raises ValueError: if an argument is out of range, or if a network has no hidden units
    """

    def __init__(
        self,
        rho: float = 0.015,
        every: int = 1000,
        decay_rate: float = 0.99,
        networks: Iterable[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(networks=networks, seed=seed)
        check_number("rho", rho, 0, 1)
        check_count("every", every, 1)
        check_number("decay_rate", decay_rate, 0, below=1)
        self.rho = rho
        self.every = every
        self.decay_rate = decay_rate

    @override
    @th.no_grad()
    def after_update(self, networks: tuple[Network, ...]) -> None:
        for layer in self._layers(networks):
            score = gradient_score(self.root, layer)
            if score is None:
                continue
            state = self._state_of(layer, utility=1)
            state["updates"] = state.get("updates", 0) + 1
            state["utility"].lerp_(score, 1 - self.decay_rate)
            if state["updates"] % self.every == 0 and self.rho > 0:
                self._move(layer, self.rho * (2 * th.sigmoid(-16 * (state["utility"] - 1))).clamp(max=1))
                state["utility"].fill_(1)

    def _move(self, layer: HiddenLayer, share: th.Tensor) -> None:
        """Move each unit by its share, (units,), towards a fresh one."""
        self.observe("mean_share", share.mean())
        weight = self.root.get_parameter(layer.weight)
        fresh = self.rows.take(layer, layer.n_units)[layer.weight].to(weight)
        weight.lerp_(fresh, share.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight))
        for consumer in layer.consumers:
            reader = self.root.get_parameter(consumer.weight)
            keep = th.ones(reader.shape[1], dtype=reader.dtype, device=reader.device)
            keep[consumer.columns.to(reader.device)] = (1 - share)[:, None].to(reader)
            reader.mul_(keep.reshape(-1, *[1] * (reader.ndim - 2)))


def gradient_score(root: nn.Module, layer: HiddenLayer) -> th.Tensor | None:
    """
    Score units by their gradients.

    :param root: that the layer's names refer to
    :param layer: whose units
    :return: (units,), mean absolute gradient of the incoming weights over its mean in the layer; None without gradient
    """
    gradient = root.get_parameter(layer.weight).grad
    if gradient is None:
        return None
    size = gradient.abs().flatten(1).mean(1)
    return size / (size.mean() + SMALL)


def fresh_draws(agent: Agent, root: nn.Module) -> Callable[[int], dict[str, th.Tensor]]:
    """
    Give what draws newly initialised parameters without any global generator noticing.

    :param agent: whose
    :param root: the module that holds all its networks
    :return: ``fresh(seed)`` -> parameters by name in ``root``
    """
    if agent.model is None:
        return lambda seed: fresh_parameters(root, seed)
    return lambda seed: dict(fresh_policy(agent.model, seed).named_parameters())


def _is_trained(network: Network, layer: HiddenLayer) -> bool:
    names = [layer.weight, *(consumer.weight for consumer in layer.consumers)]
    return all(network.root.get_parameter(name).requires_grad for name in names)
