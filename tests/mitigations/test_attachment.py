"""Mitigations attached to algorithms as they are."""

from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_plasticity.mitigations import L2, MitigationCallback, make_mitigations


def ppo(callback: MitigationCallback | None = None, **keywords: Any) -> PPO:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=2, seed=0, **keywords)
    return model.learn(192, callback=callback)


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return dict(model.policy.named_parameters())


def test_l2_is_adams_weight_decay_where_nothing_is_clipped() -> None:
    ours = parameters(ppo(MitigationCallback([L2(5e-4, log_std=True)]), max_grad_norm=float("inf")))
    decay = {"optimizer_kwargs": {"weight_decay": 1e-3, "eps": 1e-5}}  # SB3's own eps
    torchs = parameters(ppo(max_grad_norm=float("inf"), policy_kwargs=decay))
    for name, parameter in ours.items():
        th.testing.assert_close(parameter, torchs[name], rtol=0, atol=1e-6)


def test_strength_zero_is_bit_identical() -> None:
    plain, attached = parameters(ppo()), parameters(ppo(MitigationCallback([L2(0.0)])))
    assert all(th.equal(parameter, attached[name]) for name, parameter in plain.items())


def test_no_hook_is_left() -> None:
    model = ppo(MitigationCallback([L2(1e-3)]))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.policy.parameters())
    assert not model.policy.optimizer._optimizer_step_post_hooks


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="got 'l3'"):
        make_mitigations(["l3"])
    with pytest.raises(ValueError, match=r"'coeff' .did you mean 'coef'"):
        make_mitigations([{"l2": {"coeff": 1}}])
    with pytest.raises(ValueError, match="`coef` must be a finite number >= 0, got -1"):
        make_mitigations([{"l2": {"coef": -1}}])
