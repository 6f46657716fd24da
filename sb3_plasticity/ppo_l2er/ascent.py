"""The authors' gradient step on the effective rank (``er_mode="step"``) as a compiled program."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.utils import _pytree as pytree

from sb3_plasticity.common.functional import functional_call
from sb3_plasticity.common.rollout import Samples
from sb3_plasticity.mitigations.effective_rank import NONFINITE_GRADIENT, EffectiveRank
from sb3_plasticity.ppo_l2er.inductor import Program, compile_program
from sb3_plasticity.ppo_l2er.update import NONFINITE_FEATURES, policy_features, rank_loss


class CompiledAscent:
    """
    Compiled gradient steps on -(erank_policy + erank_value) of one policy.

    :param policy: the actor-critic
    :param rank: how its effective rank is taken
    """

    def __init__(self, policy: ActorCriticPolicy, rank: EffectiveRank) -> None:
        self.policy = policy
        self.rank = rank
        self._programs: dict[Any, Program] = {}

    def prepare(self, samples: Samples) -> Program:
        """
        Compile the step, unless it has been.

        :param samples: of the shapes it will be taken with
        :return: the program
        :raises CompilationError: if it cannot be compiled
        """
        leaves, structure = pytree.tree_flatten(samples)
        key = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._programs:
            self._programs[key] = self._compile(structure, self._inputs(samples, 0.0))
        return self._programs[key]

    def take(self, samples: Samples, step_size: float) -> float:
        """
        Take one step, in place.

        :param samples: transitions whose features are ranked
        :param step_size: of the step
        :return: the loss before the step
        :raises FloatingPointError: when the gradient holds a NaN or infinity; the parameters are then unchanged
        """
        program = self.prepare(samples)
        with th.no_grad():
            loss, finite = program(*self._inputs(samples, step_size))[0].tolist()
        if not finite:
            raise FloatingPointError(NONFINITE_FEATURES if math.isnan(loss) else NONFINITE_GRADIENT)
        return float(loss)

    def _trainable(self) -> dict[str, th.Tensor]:
        return {name: value.detach() for name, value in self.policy.named_parameters() if value.requires_grad}

    def _inputs(self, samples: Samples, step_size: float) -> list[th.Tensor]:
        return [*self._trainable().values(), th.tensor(step_size), *pytree.tree_leaves(samples)]

    def _compile(self, structure: Any, inputs: list[th.Tensor]) -> Program:
        names = list(self._trainable())
        count = len(names)
        objective = _RankLoss(self.policy, self.rank)

        def ascent(*flat: th.Tensor) -> tuple[th.Tensor, ...]:
            parameters, step_size, leaves = flat[:count], flat[count], flat[count + 1 :]
            samples = pytree.tree_unflatten(list(leaves), structure)

            def loss(values: Sequence[th.Tensor]) -> th.Tensor:
                named = {f"policy.{name}": value for name, value in zip(names, values, strict=True)}
                value: th.Tensor = functional_call(objective, named, (samples,))
                return value

            gradients, er_loss = th.func.grad_and_value(loss)(list(parameters))
            finite = th.stack([th.isfinite(gradient).all() for gradient in (*gradients, er_loss)]).all()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.copy_(th.where(finite, parameter - step_size * gradient, parameter))
            return (th.stack([er_loss, finite.to(er_loss.dtype)]),)

        return compile_program(self.policy, ascent, inputs)


class _RankLoss(nn.Module):
    """The loss of the step behind a ``forward``, for ``functional_call``."""

    def __init__(self, policy: ActorCriticPolicy, rank: EffectiveRank) -> None:
        super().__init__()
        self.policy = policy
        self.rank = rank

    def forward(self, samples: Any) -> th.Tensor:
        return rank_loss(self.rank, policy_features(self.rank, samples))
