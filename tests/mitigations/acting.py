"""Arguments with which every mitigation acts within a few small rollouts, and an agent that shows that it did."""

from typing import Any

import numpy as np
from algorithms import BOX, VECTOR, Toy, make_agent
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_plasticity.mitigations import find_mitigation, names

# A name may come several times, where a method has forms that differ in what they keep. ReLU units and minibatches of
# eight, so that some units are silent now and then; a new task every 24 steps.
ACTING: list[tuple[str, dict[str, Any]]] = [
    ("calibrated_partial_resets", dict(rho=0.3, every=3)),
    ("churn_reduction", dict(coef=10.0, batch_size=8)),
    ("continual_backprop", dict(replacement_rate=0.3, maturity_threshold=1)),
    ("effective_rank", dict(coef=0.1, interval=3)),
    ("feature_norm", dict(coef=0.1)),
    ("fire", dict(when="task")),
    ("l2", dict(coef=0.1)),
    ("l2", dict(coef=0.1, decoupled=True)),
    ("l2_init", dict(coef=0.1)),
    ("layer_reset", dict(layers=1, when=20)),
    ("layer_reset", dict(when="task")),
    ("normalize_and_project", dict(outputs=True)),
    ("optimizer_reset", dict(when="task")),
    ("parseval", dict(coef=0.1)),
    ("plasticity_injection", dict(when=20, times=3)),
    ("rank_ascent", dict(coef=1e-2)),
    ("redo", dict(tau=0.9, every=2)),
    ("regenerative_wasserstein", dict(coef=0.1, interval=3)),
    ("regrama", dict(tau=0.9, every=3)),
    ("selective_weight_reinit", dict(share=0.05, every=3)),
    ("self_normalized_resets", dict(percentile=0.5, refresh=2)),
    ("shrink_and_perturb", dict(when="task")),
    ("shrink_and_perturb", dict(shrink=0.99, perturb=0.01, when="update", interval=3)),
    ("shrink_and_perturb", dict(shrink=1.0, perturb=0.01, when="update", noise="normal", interval=3)),
    ("shrink_head", dict(when=20)),
    ("spectral_regularization", dict(coef=0.1)),
    ("weight_clipping", dict(kappa=0.5)),
]


def labels(entries: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names of test cases."""
    return [name + "".join(f"-{value}" for value in arguments.values()) for name, arguments in entries]


def ours() -> set[str]:
    """Names of the mitigations that this package registers."""
    return {name for name in names() if find_mitigation(name).__module__.startswith("sb3_plasticity.")}


class Changing(Toy):
    """A new task every 24 steps."""

    def __init__(self) -> None:
        super().__init__(VECTOR, BOX)
        self.total = 0

    def step(self, action: Any) -> Any:
        self.total += 1
        observation, reward, terminated, truncated, _ = super().step(action)
        info = {"task_index": self.total // 24}
        return observation * np.float32(1 + self.total // 24), reward, terminated, truncated, info


def make_acting(algorithm: str) -> Any:
    """An agent in a world that changes."""
    rollouts: dict[str, Any] = dict(train_freq=4) if algorithm == "SAC" else {}
    model = make_agent(algorithm, policy_kwargs=dict(activation_fn=nn.ReLU), **rollouts)
    env = DummyVecEnv([Changing])
    env.seed(0)
    model.set_env(env)
    return model


def n_hooks(model: Any) -> int:
    """All hooks of a model's parameters, modules and optimizers."""
    modules = list(model.policy.modules())
    optimizers = [part.optimizer for part in modules if hasattr(part, "optimizer")]
    count = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)
    count += sum(len(p._post_accumulate_grad_hooks or ()) for p in model.policy.parameters())
    return count + sum(
        len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers if o is not None
    )
