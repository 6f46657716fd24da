"""Resets: exactly the right tensors change, and training goes on with the same objects."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from algorithms import make_agent
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_plasticity.mitigations import (
    FIRE,
    L2,
    LayerReset,
    Mitigation,
    MitigationCallback,
    OptimizerReset,
    ShrinkHead,
    attached,
    mitigate,
)
from sb3_plasticity.mitigations.resets import polar


def copies(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def changed(model: BaseAlgorithm, before: dict[str, th.Tensor]) -> set[str]:
    return {name for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}


def apply(model: BaseAlgorithm, part: Mitigation) -> tuple[dict[str, th.Tensor], set[str]]:
    """Let a mitigation do what it does at a change of task."""
    objects = {name: id(p) for name, p in model.policy.named_parameters()}
    before = copies(model)
    with attached(model, [part]) as attachment:
        attachment.call("task_change")
    assert {name: id(p) for name, p in model.policy.named_parameters()} == objects
    return before, changed(model, before)


def test_the_last_layer_starts_afresh() -> None:
    model = make_agent("PPO").learn(32)
    _, touched = apply(model, LayerReset(layers=1, when="task"))
    assert touched == {f"{net}.{kind}" for net in ("action_net", "value_net") for kind in ("weight", "bias")}
    # SB3's own initialiser: orthogonal, gain 0.01 and 1, biases 0
    action, value = model.policy.action_net.weight, model.policy.value_net.weight
    th.testing.assert_close(action @ action.T, 1e-4 * th.eye(2), rtol=0, atol=1e-9)
    th.testing.assert_close(value @ value.T, th.eye(1), rtol=0, atol=1e-5)
    assert (model.policy.action_net.bias == 0).all()
    state = model.policy.optimizer.state
    assert not state.get(action) and state[model.policy.mlp_extractor.policy_net[0].weight]


def test_everything_but_exploration_starts_afresh_targets_included() -> None:
    model = make_agent("SAC").learn(32)
    temperature = model.log_ent_coef.detach().clone()
    before, touched = apply(model, LayerReset(when="task"))
    weights = {name for name in before if name.endswith("weight") and "target" not in name}
    assert weights - touched == {"actor.log_std.weight"}
    for online, target in zip(model.critic.parameters(), model.critic_target.parameters(), strict=True):
        assert th.equal(online, target)
    assert th.equal(temperature, model.log_ent_coef)
    assert set(model.actor.optimizer.state) == set(model.actor.log_std.parameters())
    assert not model.critic.optimizer.state
    _, touched = apply(model, LayerReset(when="task", log_std=True))
    assert "actor.log_std.weight" in touched and not model.actor.optimizer.state
    model.learn(16, reset_num_timesteps=False)  # the same optimizers go on with the same tensors
    assert model.actor.optimizer.state


def test_log_std_is_left_alone() -> None:
    model = make_agent("PPO").learn(32)
    with th.no_grad():
        model.policy.log_std.fill_(-0.7)
    for part in (LayerReset(when="task"), ShrinkHead(), FIRE(), OptimizerReset()):
        apply(model, part)
        assert (model.policy.log_std == -0.7).all()


def test_head_is_halved() -> None:
    model = make_agent("PPO").learn(32)
    before, touched = apply(model, ShrinkHead(0.5))
    assert touched == {f"{net}.{kind}" for net in ("action_net", "value_net") for kind in ("weight", "bias")}
    for name in touched:
        assert th.equal(model.policy.get_parameter(name), before[name] / 2)
        assert not model.policy.optimizer.state.get(model.policy.get_parameter(name))
    assert model.policy.optimizer.state[model.policy.log_std]


def test_factor_one_changes_nothing() -> None:
    plain = make_agent("PPO").learn(64)
    shrunk = make_agent("PPO").learn(64, callback=MitigationCallback([ShrinkHead(1.0, when=16)]))
    assert not changed(shrunk, copies(plain))


def test_optimizer_state_is_forgotten() -> None:
    model = make_agent("PPO").learn(32)
    _, touched = apply(model, OptimizerReset())
    assert not touched
    assert set(model.policy.optimizer.state) == {model.policy.log_std}
    apply(model, OptimizerReset(log_std=True))
    assert not model.policy.optimizer.state


def test_polar_factor_against_newton_schulz() -> None:
    """The authors' own iteration, to convergence, on a matrix scaled to norm 1."""
    generator = th.Generator().manual_seed(0)
    weight = th.randn(6, 4, generator=generator, dtype=th.float64)
    x = weight / th.linalg.matrix_norm(weight, 2)
    for _ in range(40):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    th.testing.assert_close(polar(weight), (6 / 4) ** 0.5 * x)
    kernel = th.randn(5, 3, 2, 2, generator=generator, dtype=th.float64)
    for row in range(2):
        for column in range(2):
            expected = polar(kernel[:, :, row, column]) / 4
            th.testing.assert_close(polar(kernel)[:, :, row, column], expected)


def test_fire_leaves_biases() -> None:
    model = make_agent("DQN").learn(32)
    _, touched = apply(model, FIRE())
    assert all(name.endswith("weight") for name in touched if "target" not in name)
    for online, target in zip(model.q_net.parameters(), model.q_net_target.parameters(), strict=True):
        assert th.equal(online, target)
    singular = th.linalg.svdvals(model.q_net.q_net[2].weight)
    np.testing.assert_allclose(singular.detach(), 1.0, atol=1e-5)  # 8 x 8


@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN", "RecurrentPPO"])
def test_periods_count_environment_steps(name: str) -> None:
    callback = MitigationCallback([LayerReset(layers=1, when=32)])
    model = make_agent(name)
    model.learn(112, callback=callback)
    # a rollout of 16 (on-policy) or a few steps: resets when 32, 64 and 96 have passed since the last one
    assert callback.mitigations[0].state["resets"] == 3


def test_plain_torch() -> None:
    net = th.nn.Sequential(th.nn.Linear(2, 3), th.nn.ReLU(), th.nn.Linear(3, 1))
    optimizer = th.optim.Adam(net.parameters())
    with mitigate(net, optimizer, [LayerReset(layers=1, when="task")]) as task_change:
        net(th.ones(4, 2)).sum().backward()
        optimizer.step()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        task_change()
    after = dict(net.named_parameters())
    assert th.equal(before["0.weight"], after["0.weight"]) and not th.equal(before["2.weight"], after["2.weight"])
    assert after["2.weight"].abs().max() <= 3**-0.5 and after["2.weight"] not in optimizer.state


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerReset(when=0), "`when` must be a whole number >= 1, got 0"),
        (lambda: LayerReset(when="tasks"), "`when` must be 'task' or a whole number >= 1, got 'tasks'"),  # type: ignore[arg-type]
        (lambda: LayerReset(layers=0), "`layers` must be a whole number >= 1, got 0"),
        (lambda: ShrinkHead(factor=1.5), "`factor` must be a finite number >= 0 and <= 1, got 1.5"),
        (lambda: apply(make_agent("PPO"), FIRE(networks=["critic"])), "got 'critic'"),
    ],
)
def test_bad_input(make: Callable[..., Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_l2_and_resets_compose() -> None:
    make_agent("TD3").learn(40, callback=MitigationCallback([L2(1e-3), LayerReset(when=20), ShrinkHead(0.9, when=10)]))
