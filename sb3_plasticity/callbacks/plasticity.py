"""PlasticityCallback: what of a network's ability to learn is left, beside a fresh network's."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.utils import _pytree as pytree

from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.callbacks.curvature import SEQUENCE_LENGTH
from sb3_plasticity.callbacks.tensorboard import Layout, add_charts, summary_writer
from sb3_plasticity.common.actor_critic import evaluate_samples
from sb3_plasticity.common.networks import Units, record_units
from sb3_plasticity.common.plasticity import (
    DORMANT_TAU,
    check_tau,
    dead_units,
    dormant_units,
    euclidean_norm,
    saturated_units,
    stable_rank,
)
from sb3_plasticity.common.rank import effective_rank
from sb3_plasticity.common.rollout import Samples, is_recurrent, rollout_samples, spread_rows
from sb3_plasticity.curvature.agents import loss_of

NETWORKS = ("policy", "value")
# Layers whose outputs are no units but the networks' results.
HEADS = ("action_net", "value_net")
# Not one that people give to their runs, so that the control is not the very network that training began with.
CONTROL_SEED = 20_230_213

RANKS = ("effective_rank", "stable_rank")
SHARES = ("dormant_units", "dead_units", "saturated_units")
NORMS = ("weight_norm", "weight_change", "weight_change_from_start", "gradient_norm")

# Of each network the names of its parameters, layer by layer.
Layers = dict[str, dict[str, list[str]]]
# Measures by key, as in "policy/mlp_extractor.policy_net.0/effective_rank" or "policy/effective_rank".
Measures = dict[str, float]


class PlasticityCallback(BaseCallback):
    r"""
    Record how much of their ability to learn an on-policy agent's networks have left, each measure beside a control.

    Measured on the rollout's own observations at its end, before the update, that is under the weights that collected
    it: in the first rollout and every ``every``-th after it. For each layer of the policy and value network, where
    :math:`a` are the layer's units after their nonlinearity, (n_samples, units), or for a convolution
    (n_samples * height * width, channels):

    * ``effective_rank``: :math:`\exp` of the entropy of the normalised eigenvalues of :math:`E[a a^\top]` (Roy and
      Vetterli 2007; of the covariance as in L2-ER): :func:`~sb3_plasticity.common.rank.effective_rank`. It grows with
      the number of samples: compare at equal ``n_samples``
    * ``stable_rank``: :math:`\lVert a \rVert_F^2 / \lVert a \rVert_2^2` (Rudelson and Vershynin 2007):
      :func:`~sb3_plasticity.common.plasticity.stable_rank`
    * ``dormant_units``: share of units with :math:`E|a_i| \le \tau \cdot \mathrm{mean}_k E|a_k|` (Sokar et al. 2023):
      :func:`~sb3_plasticity.common.plasticity.dormant_units`
    * ``dead_units``: share of units that are 0 on every sample; in its place for tanh ``saturated_units``, the share
      with :math:`|a_i| > 0.99` on every sample; neither for recurrent layers
    * ``weight_norm``: Euclidean norm of the layer's parameters (weights and biases together; Dohare et al. 2024
      report that weights grow where plasticity is lost)
    * ``weight_change``, ``weight_change_from_start``: Euclidean distance of the parameters to those of the previous
      measurement, and to those at initialisation (of a resumed run: to those it resumed with)
    * ``gradient_norm``: Euclidean norm of the gradient of the algorithm's own loss, all terms but L2-ER's, on all
      ``n_samples`` at once and before clipping (vanishing gradients: Abbas et al. 2023). Of TRPO the surrogate plus the
      value loss

    A network's own value, without a layer in the key, is the mean of its layers' ranks, the share among all its units,
    and the norm of all its parameters. Layers that both networks share count once, with the policy; frozen ones do not
    count. Parameters outside any layer, such as ``log_std``, have norms under their own name. The networks' last
    layers, ``action_net`` and ``value_net``, have norms only.

    With ``control`` the same measures are taken on the same data of a newly initialised network of the same class and
    arguments (always the same one; a distance from the start it cannot have). A measure that looks alarming and is no
    different in the control tells about the data or the architecture, not about lost plasticity.

    Logged as ``plasticity/<network>[/<layer>]/<measure>`` and ``plasticity_control/...``: to TensorBoard at the step of
    the measurement, with charts that show both under Custom Scalars, and to CSV and JSON logs. The latest measures are
    also in the attribute ``measures``. Training is bit-identical with and without this callback.

    For two [256, 256] networks a measurement takes about as long as 20 minibatches of 128, a tenth of an iteration of
    PPO with 2,048 steps; hence every tenth rollout. With A2C, whose rollouts are short, choose a larger ``every``, such
    as 1000.

    :param every: number of rollouts from one measurement to the next; the first rollout is always measured
    :param n_samples: transitions to measure on, spread evenly over the rollout, at least 2; all of a smaller rollout.
        Recurrent policies run over stretches of 16 steps
    :param tau: threshold of the dormant units' score, >= 0; 0.025 and 0.1 are those of Sokar et al.
    :param control: measure a newly initialised network too, which doubles the cost
    :param verbose: 1 prints the networks' measures, with the control's in brackets
    :raises ValueError: for arguments outside what is accepted
    """

    model: OnPolicyAlgorithm

    def __init__(
        self,
        every: int = 10,
        n_samples: int = 512,
        tau: float = DORMANT_TAU,
        control: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value, least in (("every", every, 1), ("n_samples", n_samples, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: accepted are whole numbers >= {least}")
        check_tau(tau)
        if not isinstance(control, bool):
            raise ValueError(f"control={control!r}: accepted are True and False")
        self.every = every
        self.n_samples = n_samples
        self.tau = tau
        self.control = control
        self.measures: Measures = {}
        self._rollouts = 0
        self._seen: OnPolicyAlgorithm | None = None
        self._layers: Layers | None = None
        self._fresh: ActorCriticPolicy | None = None
        self._start: dict[str, th.Tensor] = {}
        self._previous: dict[str, th.Tensor] = {}

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                f"PlasticityCallback: {type(self.model).__name__} has no rollout buffer; accepted are on-policy "
                "algorithms (PPO_L2ER, PPO, A2C, and sb3-contrib's TRPO, RecurrentPPO and MaskablePPO)"
            )
        loss_of(self.model)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0 or self.model is not self._seen:
            self._seen = self.model
            self._rollouts = 0
            self._layers = None
            self._start = self._previous = _copy_parameters(self.model.policy)
            self._fresh = fresh_policy(self.model, CONTROL_SEED) if self.control else None
        if (writer := summary_writer(self.logger)) is not None:
            add_charts(writer, self._charts())

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self._rollouts % self.every == 0:
            self._measure()
        self._rollouts += 1

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        samples = self._samples()
        self._check_finite(samples)
        if self._layers is None:
            self._layers = find_layers(self.model.policy, samples)
        self.measures = self._measures_of(self.model.policy, samples, "own")
        self.measures |= self._changes()
        self._log("plasticity", self.measures)
        control: Measures = {}
        if self._fresh is not None:
            control = self._measures_of(self._fresh, samples, "control")
            self._log("plasticity_control", control)
        if self.verbose >= 1:
            self._print(control)

    def _samples(self) -> Samples:
        buffer = self.model.rollout_buffer
        eligible = np.ones((buffer.buffer_size, buffer.n_envs), dtype=bool)
        if is_recurrent(buffer):
            length = min(SEQUENCE_LENGTH, buffer.buffer_size)
            return rollout_samples(buffer, spread_rows(eligible, max(length, self.n_samples), length))
        return rollout_samples(buffer, spread_rows(eligible, self.n_samples))

    def _measures_of(self, policy: ActorCriticPolicy, samples: Samples, whose: str) -> Measures:
        """Take the measures of a policy that need no other weights than its own."""
        assert self._layers is not None
        parameters = dict(policy.named_parameters())
        names = [name for layers in self._layers.values() for layer in layers.values() for name in layer]
        with _evaluation_mode(policy), th.enable_grad():
            with record_units(policy) as units:
                values, log_prob, entropy = evaluate_samples(policy, samples)
            if policy is not self.model.policy:
                # An update of these weights would begin at a probability ratio of 1.
                samples = samples._replace(old_values=values.detach().flatten(), old_log_prob=log_prob.detach())
            loss = loss_of(self.model)(values, log_prob, entropy, samples)
            gradients = th.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
        gradient_of = dict(zip(names, gradients, strict=True))
        measures: Measures = {}
        for network, layers in self._layers.items():
            measures |= self._unit_measures(network, policy, units, whose)
            for layer, members in layers.items():
                held = [gradient for name in members if (gradient := gradient_of[name]) is not None]
                measures[f"{network}/{layer}/weight_norm"] = float(euclidean_norm(parameters[name] for name in members))
                measures[f"{network}/{layer}/gradient_norm"] = float(euclidean_norm(held))
            measures |= self._totals(network, measures, ("weight_norm", "gradient_norm"))
        for key, value in measures.items():
            if not np.isfinite(value):
                raise self._error(f"{key} ({whose})", f"{value}")
        return measures

    def _unit_measures(self, network: str, policy: nn.Module, units: Mapping[str, Units], whose: str) -> Measures:
        """Take the measures of a network's hidden units, layer by layer and of all of them."""
        assert self._layers is not None
        measures: Measures = {}
        masks: dict[str, list[th.Tensor]] = defaultdict(list)
        ranks: dict[str, list[float]] = defaultdict(list)
        for layer in self._layers[network]:
            if layer not in units or layer.split(".")[0] in HEADS:
                continue
            try:
                for name, rank in features_ranks(units[layer]).items():
                    measures[f"{network}/{layer}/{name}"] = rank
                    ranks[name].append(rank)
                for name, mask in unit_masks(units[layer], policy.get_submodule(layer), self.tau).items():
                    measures[f"{network}/{layer}/{name}"] = float(mask.double().mean())
                    masks[name].append(mask)
            except ValueError as error:
                raise self._error(f"the units of {layer} ({whose})", error) from error
        measures |= {f"{network}/{name}": float(np.mean(values)) for name, values in ranks.items()}
        measures |= {f"{network}/{name}": float(th.cat(values).double().mean()) for name, values in masks.items()}
        return measures

    def _changes(self) -> Measures:
        """Measure how far the parameters have come since the previous measurement and since the start."""
        assert self._layers is not None
        parameters = dict(self.model.policy.named_parameters())
        measures: Measures = {}
        changes = (("weight_change", self._previous), ("weight_change_from_start", self._start))
        for network, layers in self._layers.items():
            for layer, members in layers.items():
                for measure, before in changes:
                    distance = euclidean_norm(parameters[name] - before[name] for name in members)
                    measures[f"{network}/{layer}/{measure}"] = float(distance)
            measures |= self._totals(network, measures, [measure for measure, _ in changes])
        self._previous = _copy_parameters(self.model.policy)
        return measures

    def _check_finite(self, samples: Samples) -> None:
        """Name what is not finite before distributions and losses hide where it came from."""
        for path, tensor in pytree.tree_leaves_with_path(samples):
            if tensor.is_floating_point() and not bool(th.isfinite(tensor).all()):
                raise self._error(f"{getattr(path[0], 'name', path[0])} of the rollout", "NaN or infinity")
        for name, parameter in self.model.policy.named_parameters():
            if not bool(th.isfinite(parameter).all()):
                raise self._error(f"{name} of the policy", "NaN or infinity")

    def _totals(self, network: str, measures: Measures, norms: Iterable[str]) -> Measures:
        assert self._layers is not None
        return {
            f"{network}/{norm}": float(
                np.linalg.norm([measures[f"{network}/{layer}/{norm}"] for layer in self._layers[network]])
            )
            for norm in norms
        }

    def _error(self, term: str, reason: object) -> FloatingPointError:
        return FloatingPointError(f"PlasticityCallback at {self.num_timesteps} timesteps, {term}: {reason}")

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _log(self, section: str, measures: Mapping[str, float]) -> None:
        writer = summary_writer(self.logger)
        for key, value in measures.items():
            # For the CSV and JSON logs; the terminal's table truncates names this long.
            self.logger.record(f"{section}/{key}", value, exclude=("stdout", "log", "tensorboard"))
            if writer is not None:
                writer.add_scalar(f"{section}/{key}", value, self.num_timesteps)

    def _print(self, control: Mapping[str, float]) -> None:
        for network in NETWORKS:
            shown = []
            for name in (*RANKS, *SHARES, *NORMS):
                key = f"{network}/{name}"
                if key in self.measures:
                    beside = f" [{control[key]:.3g}]" if key in control else ""
                    shown.append(f"{name} {self.measures[key]:.3g}{beside}")
            if shown:
                print(f"Plasticity at {self.num_timesteps}, {network}: {', '.join(shown)}")

    def _charts(self) -> Layout:
        """Return TensorBoard's custom scalars: each network's measures beside the control's, and layer by layer."""
        beside, by_layer = {}, {}
        for network in NETWORKS:
            # A network has dead units or saturated ones, as its activation will have it.
            for name in (*RANKS, "dormant_units", "(dead|saturated)_units", *NORMS):
                title = f"{network}: {name.replace('_', ' ').replace('(dead|saturated)', 'dead or saturated')}"
                beside[title] = ["Multiline", [f"plasticity(_control)?/{network}/{name}$"]]
                by_layer[title] = ["Multiline", [f"plasticity/{network}/.+/{name}$"]]
        return {"plasticity": beside, "plasticity by layer": by_layer}


def features_ranks(units: Units) -> dict[str, float]:
    """
    Ranks of a layer's features.

    :param units: of the layer
    :return: measure -> value
    :raises ValueError: for a NaN or infinity
    """
    features = units.features.detach()
    return dict(effective_rank=float(effective_rank(features)), stable_rank=float(stable_rank(features)))


def unit_masks(units: Units, layer: nn.Module, tau: float) -> dict[str, th.Tensor]:
    """
    Which of a layer's units no longer do anything, by each of the definitions that make sense for it.

    :param units: of the layer
    :param layer: that produced them
    :param tau: threshold of dormancy
    :return: measure -> (units,) bool
    :raises ValueError: for a NaN or infinity
    """
    masks = {"dormant_units": dormant_units(units.features, tau)}
    if units.activation.startswith("tanh"):
        masks["saturated_units"] = saturated_units(units.features)
    elif not isinstance(layer, nn.RNNBase):
        masks["dead_units"] = dead_units(units.features)
    return masks


def find_layers(policy: ActorCriticPolicy, samples: Samples) -> Layers:
    """
    Find whose a policy's parameters are, by what depends on them.

    :param policy: an actor-critic policy of SB3 or sb3-contrib
    :param samples: transitions of its buffer
    :return: network -> layer -> names of the layer's own parameters; a parameter that log probabilities depend on is
        the policy's, another that values depend on the value network's, any other nobody's. Parameters that belong to
        no layer (``log_std``) are a layer of their own name
    """
    parameters = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    with _evaluation_mode(policy), th.enable_grad():
        values, log_prob, _ = evaluate_samples(policy, samples)
        used = {
            network: th.autograd.grad(result.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
            for network, result in zip(NETWORKS, (log_prob, values), strict=True)
        }
    found: Layers = {network: {} for network in NETWORKS}
    for place, name in enumerate(parameters):
        for network in NETWORKS:
            if used[network][place] is not None:
                found[network].setdefault(name.rpartition(".")[0] or name, []).append(name)
                break
    return found


@contextmanager
def _evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    training = policy.training
    policy.set_training_mode(False)
    try:
        yield
    finally:
        policy.set_training_mode(training)


def _copy_parameters(policy: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in policy.named_parameters()}
