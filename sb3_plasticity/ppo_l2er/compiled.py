"""
The minibatch update as one compiled functional step: loss, gradient, mitigations, clipping and Adam in one program.

What is compiled is the traced arithmetic of the very functions that the eager update calls, so there is one loss and
one formula of each mitigation. The policy's parameters and the optimizer's state are updated in place: they stay the
truth, and eager and compiled updates can follow each other. Where something acts between updates (a mitigation's
``before_update`` or ``after_update``, any hook on the optimizer), programs end with the clipped gradient, and the
optimizer itself takes the step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.utils import _pytree as pytree

from sb3_plasticity.common.actor_critic import evaluate_actions
from sb3_plasticity.common.functional import functional_call
from sb3_plasticity.common.layers import record_features
from sb3_plasticity.common.objective import PPOCoefficients, l2_penalty, ppo_terms
from sb3_plasticity.common.rollout import Samples
from sb3_plasticity.mitigations.attachment import Attachment
from sb3_plasticity.mitigations.base import Mitigation
from sb3_plasticity.mitigations.effective_rank import EffectiveRank
from sb3_plasticity.ppo_l2er.adam import AdamState, adam_options, adam_step, take_up_state, write_back_steps
from sb3_plasticity.ppo_l2er.ascent import CompiledAscent
from sb3_plasticity.ppo_l2er.compilable import is_watched
from sb3_plasticity.ppo_l2er.inductor import CompilationError, Program, compile_program
from sb3_plasticity.ppo_l2er.update import (
    _RowsRank,
    ranked_layers,
)

# What a program reports of a minibatch, in this order; then follow the penalties on features.
STATISTICS = (
    "loss",
    "policy_loss",
    "value_loss",
    "entropy_loss",
    "approx_kl",
    "clip_fraction",
    "l2_loss",
    "finite",
    "applied",
)


class Hyperparameters(NamedTuple):
    """What may change from one rollout to the next; handed to the programs as one float64 tensor."""

    learning_rate: float
    clip_range: float
    clip_range_vf: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    kl_limit: float


@dataclass(frozen=True)
class Variant:
    """
    What a program is specialised on, besides the shapes of its inputs.

    :param due: which mitigations act, by their place in the list
    :param clip_range_vf: whether the change of the value is bounded
    :param normalize_advantage: whether advantages are standardised
    :param steps: whether the program takes the optimizer's step, or ends with the clipped gradient
    """

    due: tuple[int, ...]
    clip_range_vf: bool
    normalize_advantage: bool
    steps: bool


def minibatches_seen(part: Mitigation) -> int:
    """
    Count the minibatches that a mitigation has seen, as its hooks do.

    :param part: bound to an agent whose networks are updated together
    :return: forward passes for penalties on features, updates for the others
    """
    counts: dict[str, int] = part.state.get("passes" if part.uses("feature_penalty") else "updates", {})
    return max((counts.get(network, 0) for network in part.targets), default=0)


class CompiledUpdate:
    """
    Compiled updates of one policy.

    :param policy: the actor-critic
    :param rank: how its effective rank is taken; the first of the mitigations where it takes part
    """

    def __init__(self, policy: ActorCriticPolicy, rank: EffectiveRank) -> None:
        self.policy = policy
        self.rank = rank
        self.ascent = CompiledAscent(policy, rank)
        self._programs: dict[Any, Program] = {}

    def begin(
        self, hyperparameters: Hyperparameters, attachments: Sequence[Attachment], l2_names: Sequence[str] | None
    ) -> None:
        """
        Take up the parameters, the optimizer's state and the mitigations as they now are.

        :param hyperparameters: of this rollout's updates
        :param attachments: whose mitigations act, in this order
        :param l2_names: parameters whose squared norm is reported, or None
        """
        self.attachments = list(attachments)
        self.parts = [part for attachment in attachments for part in attachment.mitigations]
        self.l2_names = l2_names
        self.steps = not is_watched(self.policy.optimizer) and not any(
            part.uses(hook) for part in self.parts for hook in ("before_update", "after_update")
        )
        self.names = [name for name, parameter in self.policy.named_parameters() if parameter.requires_grad]
        by_name = dict(self.policy.named_parameters())
        self._parameters = [by_name[name] for name in self.names]
        # Which penalties on features there are, and which layers somebody reads.
        self._penalties = [
            (index, network)
            for index, part in enumerate(self.parts)
            for network in part.targets
            if part.uses("feature_penalty") and self._layers_of(part, network)
        ]
        self._recorded = sorted(
            {layer for part in self.parts for network in part.targets.values() for layer in part.records(network)}
        )
        self._strengths = [part.strength() * part.interval for part in self.parts]
        self._hyperparameters = th.tensor([*hyperparameters, *self._strengths], dtype=th.float64)
        self._constants = [
            tuple(part.constants(name)) if name in part.parameters and part.uses("gradient") else ()
            for part in self.parts
            for name in self.names
        ]
        self._kl_limit = hyperparameters.kl_limit
        self._alive = th.ones(())  # 0 once a minibatch was not applied
        values = [parameter.detach() for parameter in self._parameters]
        if self.steps:
            self._adam = take_up_state(self.policy.optimizer, self._parameters)
            values += [*self._adam.first, *self._adam.second, self._adam.step]
        self._state = [*values, self._alive]

    def prepare(self, rollout: Samples, batch_size: int, variants: set[Variant], er_batch: Samples | None) -> None:
        """
        Compile what an update will need, so that nothing can fail half-way.

        :param rollout: all transitions
        :param batch_size: of the minibatches; the last one may be smaller
        :param variants: of the minibatches
        :param er_batch: transitions whose features are ranked, if not the minibatch's own
        :raises CompilationError: if a program cannot be compiled
        """
        total = len(rollout.advantages)
        for size in {min(batch_size, total), total % batch_size} - {0}:
            leaves, structure = pytree.tree_flatten(pytree.tree_map(lambda tensor, size=size: tensor[:size], rollout))
            for variant in sorted(variants, key=lambda variant: variant.due):
                given = er_batch if self.ranks_rows(variant) else None
                inputs = leaves if given is None else [*leaves, *pytree.tree_leaves(given)]
                self._program(variant, structure, given is not None, inputs)

    def ranks_rows(self, variant: Variant) -> bool:
        """
        Tell whether a minibatch comes with transitions that are drawn for the effective rank.

        :param variant: of the minibatch
        :return: False for those that rank their own features, or none
        """
        return isinstance(self.rank, _RowsRank) and any(self.parts[index] is self.rank for index in variant.due)

    def epoch(
        self,
        rollout: Samples,
        order: np.ndarray,
        batch_size: int,
        variants: Callable[[], tuple[Variant, Samples | None]],
    ) -> np.ndarray:
        """
        Update on a pass over the rollout.

        After a minibatch that ``target_kl`` or a NaN forbids to apply, none of the pass is applied.

        :param rollout: all transitions
        :param order: permutation of them
        :param batch_size: of the minibatches; the last one may be smaller
        :param variants: gives for each minibatch its variant and the transitions whose features are ranked, if not its
            own
        :return: (n_minibatches, statistics), up to the first that was not applied or beyond
        """
        index = th.as_tensor(order)
        leaves, structure = pytree.tree_flatten(pytree.tree_map(lambda tensor: tensor[index], rollout))
        jobs = []
        self._variants: list[Variant] = []
        for parts in zip(*(leaf.split(batch_size) for leaf in leaves), strict=True):
            variant, er_batch = variants()
            self._variants.append(variant)
            inputs = list(parts) if er_batch is None else [*parts, *pytree.tree_leaves(er_batch)]
            jobs.append((self._program(variant, structure, er_batch is not None, inputs), inputs))
        shared = [*self._state, self._hyperparameters, *(c for constants in self._constants for c in constants)]
        if self.steps:
            with th.no_grad():
                rows = [program(*shared, *inputs)[0] for program, inputs in jobs]
            write_back_steps(self.policy.optimizer, self._parameters, self._adam)
        else:
            rows = self._steps_between(shared, jobs)
        return th.stack(rows).numpy()

    def _program(self, variant: Variant, structure: Any, has_er_batch: bool, inputs: list[th.Tensor]) -> Program:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in inputs)
        reported = None if self.l2_names is None else tuple(self.l2_names)
        steps = self._adam.step_of if self.steps else ()
        options = adam_options(self.policy.optimizer)
        key = (variant, tuple(self.parts), tuple(self._recorded), reported, options, steps, shapes)
        if key not in self._programs:
            count, state_count = len(self._parameters), len(self._state) + 1
            lengths = [len(constants) for constants in self._constants]

            def update(*flat: th.Tensor) -> tuple[th.Tensor, ...]:
                *state, hyperparameters = flat[:state_count]
                constants, rest = [], list(flat[state_count:])
                for length in lengths:
                    constants.append(tuple(rest[:length]))
                    rest = rest[length:]
                size = structure.num_leaves
                minibatch = pytree.tree_unflatten(rest[:size], structure)
                er_batch = pytree.tree_unflatten(rest[size:], structure) if has_er_batch else None
                return self._update(variant, count, state, hyperparameters, constants, minibatch, er_batch)

            shared = [*self._state, self._hyperparameters, *(c for constants in self._constants for c in constants)]
            self._programs[key] = self._compile(update, [*shared, *inputs])
        return self._programs[key]

    def _compile(self, function: Program, inputs: list[th.Tensor]) -> Program:
        with ExitStack() as held:
            for attachment in self.attachments:
                held.enter_context(attachment.suspended())
            return compile_program(self.policy, function, inputs)

    def _steps_between(self, shared: list[th.Tensor], jobs: list[Any]) -> list[th.Tensor]:
        """Let the optimizer take the steps, with all that hangs on it."""
        rows = []
        optimizer = self.policy.optimizer
        for program, inputs in jobs:
            with th.no_grad():
                row, *outputs = program(*shared, *inputs)
            rows.append(row)
            if not row[STATISTICS.index("applied")] > 0:
                break
            for parameter, gradient in zip(self._parameters, outputs, strict=False):
                parameter.grad = gradient
            activations = dict(zip(self._recorded, outputs[len(self._parameters) :], strict=True))
            for attachment in self.attachments:
                attachment.agent.activations.update(activations)
            optimizer.step()
        return rows

    def due(self, counts: Callable[[Mitigation], int]) -> tuple[int, ...]:
        """
        Say which mitigations act on a minibatch.

        :param counts: how many minibatches each has seen
        :return: their places in the list
        """
        acting = []
        for index, part in enumerate(self.parts):
            penalises = part.uses("gradient") or part.uses("feature_penalty")
            if penalises and self._strengths[index] != 0 and part.due(counts(part)):
                acting.append(index)
        return tuple(acting)

    def _layers_of(self, part: Mitigation, network: str) -> tuple[str, ...]:
        return part.targets[network].features if part is self.rank else part.feature_layers(part.targets[network])

    def penalties(self, rows: np.ndarray) -> Iterator[tuple[Mitigation, np.ndarray, np.ndarray]]:
        """
        Go through the penalties on features that were reported.

        :param rows: as :meth:`epoch` gives them, from the first on
        :yields: for each mitigation and network: the mitigation, in which minibatches it acted, and its values
        """
        for column, (index, _) in enumerate(self._penalties):
            acted = np.array([index in variant.due for variant in self._variants[: len(rows)]], dtype=bool)
            yield self.parts[index], acted, rows[:, len(STATISTICS) + column]

    def count(self, passes: int, updates: int) -> None:
        """
        Let mitigations know of the updates that no hook of theirs has seen.

        :param passes: minibatches that were passed forward
        :param updates: those that were applied
        """
        for part in self.parts:
            kinds = {"passes": passes} if part.uses("feature_penalty") else {}
            if self.steps:
                kinds["updates"] = updates
            for kind, number in kinds.items():
                counts = part.state.setdefault(kind, {})
                for network in part.targets:
                    counts[network] = counts.get(network, 0) + number

    def _update(
        self,
        variant: Variant,
        count: int,
        state: list[th.Tensor],
        hyperparameters: th.Tensor,
        constants: list[tuple[th.Tensor, ...]],
        minibatch: Samples,
        er_batch: Samples | None,
    ) -> tuple[th.Tensor, ...]:
        """Take one update, in place; traced once for each program."""
        parameters, alive = state[:count], state[-1]
        numbers = len(Hyperparameters._fields)
        at: Any = Hyperparameters._make(hyperparameters[:numbers].unbind())
        single: Any = Hyperparameters._make(hyperparameters[:numbers].float().unbind())
        strengths = hyperparameters[numbers:].float().unbind()
        coefficients = PPOCoefficients(
            clip_range=single.clip_range,
            clip_range_vf=single.clip_range_vf if variant.clip_range_vf else None,
            ent_coef=single.ent_coef,
            vf_coef=single.vf_coef,
            normalize_advantage=variant.normalize_advantage,
        )
        penalties = [(index, network) for index, network in self._penalties if index in variant.due]
        layers = {layer for index, network in penalties for layer in self._layers_of(self.parts[index], network)}
        own = {} if er_batch is None else ranked_layers(self.rank)
        objective = _Objective(
            self.policy, sorted(layers | set(self._recorded)), [n for ns in own.values() for n in ns]
        )

        def loss(values: Sequence[th.Tensor]) -> tuple[th.Tensor, Any]:
            named = {f"policy.{name}": value for name, value in zip(self.names, values, strict=True)}
            ppo, features, ranked = functional_call(objective, named, (minibatch, coefficients, er_batch))
            total, found = ppo.loss, []
            for index, network in penalties:
                part = self.parts[index]
                of = ranked if er_batch is not None and part is self.rank else features
                matrices = {name: of[name] for name in self._layers_of(part, network)}
                penalty = self._named(part, part.feature_penalty, part.targets[network], matrices)
                total = total + strengths[index] * penalty
                found.append(penalty.detach())
            terms = (*ppo, *found, *(features[name] for name in (self._recorded if not variant.steps else ())))
            return total, tuple(term.detach() for term in terms)

        gradients, (_, terms) = th.func.grad_and_value(loss, has_aux=True)(list(parameters))
        terms = list(terms)
        ppo, found = terms[:6], dict(zip(penalties, terms[6:], strict=False))
        activations = terms[6 + len(penalties) :]
        zero = ppo[0].new_zeros(())
        squared = zero
        if self.l2_names is not None:
            by_name = dict(zip(self.names, parameters, strict=True))
            squared = l2_penalty(by_name[name] for name in self.l2_names)
        gradients = self._with_closed_forms(variant, parameters, gradients, strengths, constants)
        # A sum that no finite entries can take out of range: compiled, isfinite of each takes several times as long.
        finite = th.isfinite(th.stack([(gradient * 1e-30).sum() for gradient in gradients]).sum())
        norm = th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]).square().sum().sqrt()
        approx_kl = ppo[4]
        alive.mul_((finite & (approx_kl <= single.kl_limit)).to(alive.dtype))
        clip = (single.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        reported = th.stack(
            [*ppo, squared, finite.float(), alive, *(found.get(entry, zero) for entry in self._penalties)]
        )
        if not variant.steps:
            return (reported, *(gradient * clip for gradient in gradients), *activations)
        moments = AdamState(
            state[count : 2 * count], state[2 * count : 3 * count], state[3 * count], self._adam.step_of
        )
        options = adam_options(self.policy.optimizer)
        adam_step(options, parameters, gradients, moments, learning_rate=at.learning_rate, clip=clip, apply=alive > 0)
        return (reported,)

    def _with_closed_forms(
        self,
        variant: Variant,
        parameters: Sequence[th.Tensor],
        gradients: Sequence[th.Tensor],
        strengths: Sequence[th.Tensor],
        constants: list[tuple[th.Tensor, ...]],
    ) -> list[th.Tensor]:
        """Add the gradients of penalties on parameters."""
        added = []
        for place, (name, parameter, gradient) in enumerate(zip(self.names, parameters, gradients, strict=True)):
            for index in variant.due:
                part = self.parts[index]
                if part.uses("gradient") and name in part.parameters and part is not self.rank:
                    given = constants[index * len(self.names) + place]
                    gradient = gradient + self._named(part, part.gradient, name, parameter, strengths[index], *given)
            added.append(gradient)
        return added

    @staticmethod
    def _named(part: Mitigation, function: Callable[..., th.Tensor], *args: Any) -> th.Tensor:
        """Call a mitigation, and name it where it cannot be traced."""
        try:
            return function(*args)
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise CompilationError(f"{part.name} cannot be traced ({type(error).__name__}: {first_line})") from error


class _Objective(nn.Module):
    """PPO's loss and hidden features behind a ``forward``, for ``functional_call``."""

    def __init__(self, policy: ActorCriticPolicy, layers: list[str], ranked: list[str]) -> None:
        super().__init__()
        self.policy = policy
        self.layers = layers
        self.ranked = ranked

    def forward(self, minibatch: Any, coefficients: Any, er_batch: Any) -> Any:
        with record_features(self.policy, self.layers) as features:
            ppo = ppo_terms(self.policy, minibatch, coefficients)
        ranked: dict[str, th.Tensor] = {}
        if er_batch is not None:
            with record_features(self.policy, self.ranked) as ranked:
                evaluate_actions(self.policy, er_batch.observations, er_batch.actions)
        return ppo, features, ranked
