"""What stands in the way of compiling a policy's update."""

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_plasticity.common.injection import terms_of
from sb3_plasticity.common.layers import BATCH_NORM_TYPES, DROPOUT_TYPES
from sb3_plasticity.mitigations.base import Mitigation
from sb3_plasticity.ppo_l2er.inductor import no_compiler
from sb3_plasticity.ppo_l2er.update import _RowsRank

# PyTorch has no public way to ask for hooks. What it costs to look is not measurable; not to look would silence them.
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def why_uncompilable(policy: ActorCriticPolicy, mitigations: Sequence[Mitigation]) -> str | None:
    """
    Say why the update of a policy, with what is attached to it now, cannot become a program.

    :param policy: the actor-critic, the mitigations' own hooks not in place
    :param mitigations: that act on it
    :return: the reason, or None if nothing is known to stand in the way
    """
    return (
        _of_optimizer(policy.optimizer)
        or _of_policy(policy)
        or no_compiler()
        or _of_mitigations(mitigations)
        or _of_hooks(policy)
    )


def _of_optimizer(optimizer: th.optim.Optimizer) -> str | None:
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
        return f"its optimizer is {type(optimizer).__name__}, not Adam or AdamW"
    if len(optimizer.param_groups) > 1:
        return "its optimizer has several parameter groups"
    group = optimizer.param_groups[0]
    options = [name for name in ("amsgrad", "maximize", "capturable", "differentiable", "fused") if group.get(name)]
    return f"its optimizer has {options[0]}=True" if options else None


def _of_policy(policy: ActorCriticPolicy) -> str | None:
    if policy.device.type != "cpu":
        return f"it is on {policy.device}: compiled updates were only tested on CPUs"
    if terms_of(policy):
        return "plasticity_injection has given it frozen heads"
    for module in policy.modules():
        if isinstance(module, (*BATCH_NORM_TYPES, *DROPOUT_TYPES)):
            return f"it has a {type(module).__name__} layer, which acts differently in training"
    return None


def _of_mitigations(mitigations: Sequence[Mitigation]) -> str | None:
    for part in mitigations:
        if not part.pure and not isinstance(part, _RowsRank):
            return f"{part.name} depends on more than its arguments"
    return None


def _of_hooks(policy: ActorCriticPolicy) -> str | None:
    owners = (policy, _MODULE_HOOKS), (next(policy.parameters()), _TENSOR_HOOKS), (policy.optimizer, _STEP_HOOKS)
    for owner, kinds in owners:
        for kind in kinds:
            if not hasattr(owner, kind):
                return f"PyTorch {th.__version__} lacks what tells of hooks ({kind})"
    for name, parameter in policy.named_parameters():
        if any(getattr(parameter, kind) for kind in _TENSOR_HOOKS):
            return f"there is a hook on the gradient of {name}"
    for name, module in policy.named_modules():
        if any(getattr(module, kind) for kind in _MODULE_HOOKS):
            return f"there is a hook on {name or type(module).__name__}"
    return None


def is_watched(optimizer: th.optim.Optimizer) -> bool:
    """
    Tell whether somebody wants to know when an optimizer steps.

    :param optimizer: any
    :return: True if it has hooks, or a ``step`` of its own as learning rate schedulers give it
    """
    return any(getattr(optimizer, kind) for kind in _STEP_HOOKS) or "step" in vars(optimizer)
