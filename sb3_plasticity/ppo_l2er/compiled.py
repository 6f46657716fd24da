"""
The minibatch update as one compiled functional step: loss, gradient, L2-ER, clipping and Adam in a single program; and
the authors' gradient step on the effective rank as another.

What is compiled is the traced arithmetic of the very functions the eager update calls, so there is one loss. The
policy's parameters and the optimizer's state are updated in place: they stay the truth, and eager and compiled updates
can follow each other.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import fx, nn
from torch._inductor import compile as inductor_compile
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sb3_plasticity.common import onednn
from sb3_plasticity.common.functional import functional_call
from sb3_plasticity.common.objective import PPOCoefficients
from sb3_plasticity.common.rollout import Samples
from sb3_plasticity.ppo_l2er.update import EffectiveRankReward, l2er_terms

# What a program reports of a minibatch, in this order.
STATISTICS = (
    "loss",
    "policy_loss",
    "value_loss",
    "entropy_loss",
    "approx_kl",
    "clip_fraction",
    "er_loss",
    "l2_loss",
    "finite",
    "applied",
)


Program = Callable[..., tuple[th.Tensor]]

# Calling the kernels from C++ and without checks that the key of the program cache has made takes a third off the time
# of a small minibatch.
_OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,
    "size_asserts": False,
    "alignment_asserts": False,
    "scalar_asserts": False,
    # A stack is computed once and read, not recomputed inside the loops over the parameters that use it.
    "max_pointwise_cat_inputs": 0,
}


class CompilationError(RuntimeError):
    """An update cannot be compiled; the message says why."""


class Hyperparameters(NamedTuple):
    """What may change from one rollout to the next; handed to the programs as one float64 tensor."""

    learning_rate: float
    clip_range: float
    clip_range_vf: float
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    kl_limit: float
    er_coef: float
    l2_coef: float


@dataclass(frozen=True)
class Variant:
    """
    What a program is specialised on, besides the shapes of its inputs.

    :param effective_rank: whether the minibatch carries the effective rank
    :param l2: whether it carries the L2 penalty
    :param clip_range_vf: whether the change of the value is bounded
    :param normalize_advantage: whether advantages are standardised
    """

    effective_rank: bool
    l2: bool
    clip_range_vf: bool
    normalize_advantage: bool


def why_not(policy: ActorCriticPolicy) -> str | None:
    """
    Say why a policy's update cannot be compiled.

    :param policy: the actor-critic
    :return: the reason, or None if nothing is known to stand in the way
    """
    optimizer = policy.optimizer
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
        return f"its optimizer is {type(optimizer).__name__}, not Adam or AdamW"
    if len(optimizer.param_groups) > 1:
        return "its optimizer has several parameter groups"
    group = optimizer.param_groups[0]
    options = [name for name in ("amsgrad", "maximize", "capturable", "differentiable", "fused") if group.get(name)]
    if options:
        return f"its optimizer has {options[0]}=True"
    if policy.device.type != "cpu":
        return f"it is on {policy.device}: compiled updates were only tested on CPUs"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++ or clang++) on this machine"
    for module in policy.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)):
            return f"it has a {type(module).__name__} layer, which acts differently in training"
    return None


class CompiledUpdate:
    """
    Compiled updates of one policy.

    :param reward: the policy and how its effective rank is taken
    :param l2_names: names of the parameters that the L2 penalty runs over
    """

    def __init__(self, reward: EffectiveRankReward, l2_names: Sequence[str]) -> None:
        self.reward = reward
        self.policy = reward.policy
        self.l2_names = tuple(l2_names)
        self._programs: dict[Any, Program] = {}

    def begin(self, hyperparameters: Hyperparameters) -> None:
        """
        Take up the parameters and the optimizer's state as they now are.

        :param hyperparameters: of this rollout's updates
        :raises CompilationError: if the optimizer has updated some parameters more often than others
        """
        self.names = [name for name, parameter in self.policy.named_parameters() if parameter.requires_grad]
        by_name = dict(self.policy.named_parameters())
        self._parameters = [by_name[name] for name in self.names]
        state = self.policy.optimizer.state
        for parameter in self._parameters:
            if not state[parameter]:  # as Adam sets it up at its first step
                state[parameter]["step"] = th.tensor(0.0)
                state[parameter]["exp_avg"] = th.zeros_like(parameter)
                state[parameter]["exp_avg_sq"] = th.zeros_like(parameter)
        steps = {float(state[parameter]["step"]) for parameter in self._parameters}
        if len(steps) > 1:
            raise CompilationError(f"its optimizer's parameters are at different steps: {sorted(steps)}")
        self._step = th.tensor(steps.pop(), dtype=th.float64)
        self._hyperparameters = th.tensor(hyperparameters, dtype=th.float64)
        self._state = [
            *(parameter.detach() for parameter in self._parameters),
            *(state[parameter]["exp_avg"] for parameter in self._parameters),
            *(state[parameter]["exp_avg_sq"] for parameter in self._parameters),
            self._step,
            th.ones(()),  # 0 once a minibatch was not applied
        ]

    def epoch(
        self,
        rollout: Samples,
        order: np.ndarray,
        batch_size: int,
        variants: Iterator[tuple[Variant, Samples | None]],
    ) -> np.ndarray:
        """
        Update on a pass over the rollout.

        After a minibatch that ``target_kl`` or a NaN forbids to apply, none of the pass is applied.

        :param rollout: all transitions
        :param order: permutation of them
        :param batch_size: of the minibatches; the last one may be smaller
        :param variants: for each minibatch, its variant and the transitions whose features are ranked, if not its own
        :return: (n_minibatches, len(STATISTICS))
        :raises CompilationError: if a program cannot be compiled; nothing was updated then
        """
        index = th.as_tensor(order)
        leaves, structure = pytree.tree_flatten(pytree.tree_map(lambda tensor: tensor[index], rollout))
        jobs = []
        for parts in zip(*(leaf.split(batch_size) for leaf in leaves), strict=True):
            variant, er_batch = next(variants)
            inputs = list(parts) if er_batch is None else [*parts, *pytree.tree_leaves(er_batch)]
            key = (variant, self._adam_options(), tuple((leaf.shape, leaf.dtype) for leaf in inputs))
            if key not in self._programs:
                self._programs[key] = self._compile_update(variant, structure, er_batch is not None, inputs)
            jobs.append((self._programs[key], inputs))
        with th.no_grad():
            statistics = [program(*self._state, self._hyperparameters, *inputs)[0] for program, inputs in jobs]
        return th.stack(statistics).numpy()

    def end(self) -> None:
        """Write the number of steps taken back to the optimizer."""
        for parameter in self._parameters:
            self.policy.optimizer.state[parameter]["step"].fill_(float(self._step))

    def ascend(self, samples: Samples, step_size: float) -> tuple[float, bool]:
        """
        Take one plain gradient step on -(erank_policy + erank_value), where its gradient is finite.

        :param samples: transitions whose features are ranked
        :param step_size: of the step
        :return: the loss before the step, and whether it was taken
        :raises CompilationError: if the program cannot be compiled; nothing was updated then
        """
        leaves, structure = pytree.tree_flatten(samples)
        inputs = [*(parameter.detach() for parameter in self._parameters), th.tensor(step_size), *leaves]
        key = ("ascent", tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._programs:
            self._programs[key] = self._compile_ascent(structure, inputs)
        with th.no_grad():
            loss, finite = self._programs[key](*inputs)[0].tolist()
        return loss, bool(finite)

    def _compile_ascent(self, structure: pytree.TreeSpec, inputs: list[th.Tensor]) -> Program:
        count = len(self._parameters)
        objective = _RankLoss(self.reward)

        def ascent(*flat: th.Tensor) -> tuple[th.Tensor]:
            parameters, step_size, leaves = flat[:count], flat[count], flat[count + 1 :]
            samples = pytree.tree_unflatten(list(leaves), structure)

            def loss(values: Sequence[th.Tensor]) -> th.Tensor:
                named = {f"policy.{name}": value for name, value in zip(self.names, values, strict=True)}
                return functional_call(objective, named, (samples,))

            gradients, er_loss = th.func.grad_and_value(loss)(list(parameters))
            finite = th.stack([th.isfinite(gradient).all() for gradient in (*gradients, er_loss)]).all()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.copy_(th.where(finite, parameter - step_size * gradient, parameter))
            return (th.stack([er_loss, finite.to(er_loss.dtype)]),)

        return self._compile(ascent, inputs)

    def _compile_update(
        self, variant: Variant, structure: pytree.TreeSpec, has_er_batch: bool, inputs: list[th.Tensor]
    ) -> Program:
        count = len(self._parameters)

        def update(*flat: th.Tensor) -> tuple[th.Tensor]:
            parameters, first, second = flat[:count], flat[count : 2 * count], flat[2 * count : 3 * count]
            step, alive, hyperparameters, *leaves = flat[3 * count :]
            size = structure.num_leaves
            minibatch = pytree.tree_unflatten(leaves[:size], structure)
            er_batch = pytree.tree_unflatten(leaves[size:], structure) if has_er_batch else None
            statistics = self._update(
                variant, parameters, first, second, step, alive, hyperparameters, minibatch, er_batch
            )
            return (statistics,)

        return self._compile(update, [*self._state, self._hyperparameters, *inputs])

    def _compile(self, function: Program, inputs: list[th.Tensor]) -> Program:
        """Trace a function on copies of its inputs and compile the trace."""
        copies: list[Any] = [tensor.clone() for tensor in inputs]
        # Straight to the compiler: torch.compile's guards on some forty inputs would cost as much as the update itself,
        # and the key of the program cache already holds all that they would check.
        try:
            with tracing(self.policy), _quiet(), th.no_grad():
                trace = make_fx(function, tracing_mode="fake")(*copies)
                return inductor_compile(use_onednn(trace), copies, options=_OPTIONS)
        except Exception as error:  # an exotic policy, or a compiler that does not work: it runs uncompiled
            first_line = (str(error).splitlines() or [""])[0]
            raise CompilationError(f"{type(error).__name__}: {first_line}") from error

    def _update(
        self,
        variant: Variant,
        parameters: Sequence[th.Tensor],
        first_moments: Sequence[th.Tensor],
        second_moments: Sequence[th.Tensor],
        step: th.Tensor,
        alive: th.Tensor,
        hyperparameters: th.Tensor,
        minibatch: Samples,
        er_batch: Samples | None,
    ) -> th.Tensor:
        """One update, in place; traced once for each program."""
        at: Any = Hyperparameters._make(hyperparameters.unbind())
        single: Any = Hyperparameters._make(hyperparameters.float().unbind())
        coefficients = PPOCoefficients(
            clip_range=single.clip_range,
            clip_range_vf=single.clip_range_vf if variant.clip_range_vf else None,
            ent_coef=single.ent_coef,
            vf_coef=single.vf_coef,
            normalize_advantage=variant.normalize_advantage,
        )
        objective = _Objective(self.reward)

        def loss(values: Sequence[th.Tensor]) -> tuple[th.Tensor, tuple[th.Tensor, ...]]:
            named = dict(zip(self.names, values, strict=True))
            terms = functional_call(
                objective,
                {f"policy.{name}": value for name, value in named.items()},
                (
                    minibatch,
                    coefficients,
                    single.er_coef if variant.effective_rank else None,
                    er_batch,
                    single.l2_coef if variant.l2 else None,
                    [named[name] for name in self.l2_names],
                ),
            )
            ppo = terms.ppo
            zero = terms.loss.new_zeros(())
            reported = (
                terms.loss,
                ppo.policy_loss,
                ppo.value_loss,
                ppo.entropy_loss,
                ppo.approx_kl,
                ppo.clip_fraction,
                zero if terms.er_loss is None else terms.er_loss,
                zero if terms.l2_loss is None else terms.l2_loss,
            )
            return terms.loss, tuple(term.detach() for term in reported)

        gradients, (_, reported) = th.func.grad_and_value(loss, has_aux=True)(list(parameters))
        # A sum that no finite entries can take out of range: compiled, isfinite of each takes several times as long.
        finite = th.isfinite(th.stack([(gradient * 1e-30).sum() for gradient in gradients]).sum())
        norm = th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]).square().sum().sqrt()
        approx_kl = reported[STATISTICS.index("approx_kl")]
        alive.mul_((finite & (approx_kl <= single.kl_limit)).to(alive.dtype))
        self._adam(parameters, gradients, first_moments, second_moments, step, alive > 0, at, single, norm)
        return th.stack([*reported, finite.float(), alive])

    def _adam_options(self) -> tuple[Any, ...]:
        group = self.policy.optimizer.param_groups[0]
        decoupled = isinstance(self.policy.optimizer, th.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return *group["betas"], group["eps"], group["weight_decay"], decoupled

    def _adam(
        self,
        parameters: Sequence[th.Tensor],
        gradients: Sequence[th.Tensor],
        first_moments: Sequence[th.Tensor],
        second_moments: Sequence[th.Tensor],
        step: th.Tensor,
        apply: th.Tensor,
        at: Any,
        single: Any,
        norm: th.Tensor,
    ) -> None:
        """Adam (Kingma and Ba 2015), or AdamW, as torch computes it, where ``apply``."""
        beta1, beta2, eps, decay, decoupled = self._adam_options()
        step.add_(apply.to(step.dtype))
        scalars = [
            (single.max_grad_norm / (norm + 1e-6)).clamp(max=1.0),
            # In float64: early on, 1 - beta^t would lose most of its digits in float32.
            (at.learning_rate / (1 - beta1**step)).float(),
            (1 - beta2**step).sqrt().float(),
            apply.float(),
        ]
        clip, step_size, root, apply = th.stack(scalars).unbind()  # see _OPTIONS
        apply = apply > 0
        for parameter, gradient, first, second in zip(
            parameters, gradients, first_moments, second_moments, strict=True
        ):
            gradient = gradient * clip
            value = parameter
            if decay and decoupled:
                value = value * (1 - single.learning_rate * decay)
            elif decay:
                gradient = gradient + decay * value
            new_first = th.lerp(first, gradient, 1 - beta1)
            new_second = second * beta2 + (1 - beta2) * gradient * gradient
            value = value - step_size * new_first / (new_second.sqrt() / root + eps)
            first.copy_(th.where(apply, new_first, first))
            second.copy_(th.where(apply, new_second, second))
            parameter.copy_(th.where(apply, value, parameter))


class _Objective(nn.Module):
    """The eager update's objective behind a ``forward``, for ``functional_call``."""

    def __init__(self, reward: EffectiveRankReward) -> None:
        super().__init__()
        self.policy = reward.policy
        self.reward = reward

    def forward(self, minibatch: Any, coefficients: Any, er_coef: Any, er_batch: Any, l2_coef: Any, l2: Any) -> Any:
        return l2er_terms(
            self.reward,
            minibatch,
            coefficients,
            er_coef=er_coef,
            er_batch=er_batch,
            l2_coef=l2_coef,
            l2_parameters=l2,
        )


class _RankLoss(nn.Module):
    """The loss of the authors' step behind a ``forward``, for ``functional_call``."""

    def __init__(self, reward: EffectiveRankReward) -> None:
        super().__init__()
        self.policy = reward.policy
        self.reward = reward

    def forward(self, samples: Any) -> th.Tensor:
        return self.reward.loss(self.reward.features(samples.observations, samples.actions))


@contextmanager
def tracing(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Let a policy be traced: nothing looks at values, and no distribution that was traced stays behind.

    :param policy: the actor-critic
    """
    distribution = th.distributions.Distribution
    validate, state = distribution._validate_args, dict(vars(policy.action_dist))
    one_hot = F.one_hot
    distribution.set_default_validate_args(False)
    F.one_hot = _one_hot  # with which SB3 reads discrete observations
    try:
        yield
    finally:
        F.one_hot = one_hot
        distribution.set_default_validate_args(validate)
        vars(policy.action_dist).clear()
        vars(policy.action_dist).update(state)


def _one_hot(tensor: th.Tensor, num_classes: int = -1) -> th.Tensor:
    """As torch's, for values that are in range."""
    return (tensor[..., None] == th.arange(num_classes)).long()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back that eigendecompositions are called by a longer way: it is lost in what they take."""

    def keep_back(record: logging.LogRecord) -> bool:
        return "c-shim" not in record.getMessage()

    logger = logging.getLogger("torch._inductor.ir")
    logger.addFilter(keep_back)
    try:
        yield
    finally:
        logger.removeFilter(keep_back)


# Products smaller than this are not worth oneDNN's call: 128 x 256 x 256 gains a factor of two, 16 x 256 x 256 nothing.
_ONEDNN_FROM = 64 * 128 * 128
# Inductor accepts mkldnn's own operator with constant weights only; to one that it does not know it just passes on.
_LIBRARY = th.library.Library("sb3_plasticity", "FRAGMENT")
_LIBRARY.define("product(Tensor left, Tensor weight, Tensor? bias) -> Tensor")


_LIBRARY.impl("product", onednn.linear, "CPU")
th.library.register_fake(
    "sb3_plasticity::product", lambda left, weight, bias: left.new_empty(left.shape[0], weight.shape[0]), lib=_LIBRARY
)


def use_onednn(trace: fx.GraphModule) -> fx.GraphModule:
    """
    Send the large float32 matrix products of a traced update through oneDNN.

    :param trace: as ``make_fx`` gives it
    :return: the same module, changed in place
    """
    if not onednn.is_available():
        return trace
    aten = th.ops.aten
    for node in list(trace.graph.nodes):
        if node.target not in (aten.mm.default, aten.addmm.default):
            continue
        *bias, left, right = node.args
        left_like, right_like = left.meta["tensor_meta"], right.meta["tensor_meta"]
        if left_like.dtype != th.float32 or math.prod((*left_like.shape, right_like.shape[1])) < _ONEDNN_FROM:
            continue
        with trace.graph.inserting_before(node):
            weight = trace.graph.call_function(aten.t.default, (right,))
            arguments = (left, weight, bias[0] if bias else None)
            product = trace.graph.call_function(th.ops.sb3_plasticity.product.default, arguments)
        node.replace_all_uses_with(product)
        trace.graph.erase_node(node)
    trace.recompile()
    return trace
