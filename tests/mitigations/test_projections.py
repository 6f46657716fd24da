"""Maps on parameters, by hand on a plain module and on agents."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from algorithms import make_agent
from stable_baselines3 import PPO
from torch import nn

from sb3_plasticity.mitigations import Mitigation, MitigationCallback, mitigate
from sb3_plasticity.mitigations.projections import (
    NormalizeAndProject,
    SelectiveWeightReinit,
    ShrinkAndPerturb,
    WeightClipping,
)
from sb3_plasticity.mitigations.resets import fresh_parameters

BUSY: dict[str, Callable[[], Mitigation]] = {
    "boundary": lambda: ShrinkAndPerturb(when=16),
    "soft": lambda: ShrinkAndPerturb(0.99, 0.1, when="update", interval=3),
    "noise": lambda: ShrinkAndPerturb(1, 0.01, when="update", noise="normal", interval=1),
    "clip": lambda: WeightClipping(0.9),
    "nap": lambda: NormalizeAndProject(),
    "swr": lambda: SelectiveWeightReinit(0.1, every=2),
}
IDLE: dict[str, Callable[[], Mitigation]] = {
    "boundary": lambda: ShrinkAndPerturb(1, 0, when=16),
    "soft": lambda: ShrinkAndPerturb(1, 0, when="update", interval=1),
    "clip": lambda: WeightClipping(1e6),
    "swr": lambda: SelectiveWeightReinit(0.0),
}


def make_net() -> nn.Sequential:
    th.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))


def steps(net: nn.Sequential, part: Mitigation, n: int, lr: float = 0.1, task_change: bool = False) -> Mitigation:
    optimizer = th.optim.SGD(net.parameters(), lr=lr)
    with mitigate(net, optimizer, [part]) as change:
        for _ in range(n):
            optimizer.zero_grad()
            net(2 * th.eye(3)).add(1).square().sum().backward()
            optimizer.step()
        if task_change:
            change()
    return part


def test_boundary_mixes_in_a_fresh_network() -> None:
    net, expected = make_net(), {}
    fresh = fresh_parameters(net, 5 + 1)
    for name, parameter in net.named_parameters():
        expected[name] = 0.4 * parameter.detach() + 0.3 * fresh[name]
    steps(net, ShrinkAndPerturb(0.4, 0.3, seed=5), 1, lr=0.0, task_change=True)
    assert all(th.allclose(p, expected[name]) for name, p in net.named_parameters())


def test_soft_takes_updates_together() -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    part = steps(net, ShrinkAndPerturb(0.9, 0.1, when="update", interval=4), 7, lr=0.0)
    fresh = fresh_parameters(net, 1)
    for name, parameter in net.named_parameters():
        assert th.allclose(parameter, 0.9**4 * before[name] + 0.1 * 2 * fresh[name], atol=1e-6)
    assert part.state["resets"] == 1


def test_normal_noise_has_its_variance() -> None:
    net = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 3))
    before = net.get_parameter("0.weight").detach().clone()
    optimizer = th.optim.SGD(net.parameters(), lr=0.0)
    with mitigate(net, optimizer, [ShrinkAndPerturb(1, 0.1, when="update", noise="normal", interval=1)]):
        for _ in range(4):
            net(th.ones(1, 100)).sum().backward()
            optimizer.step()
    assert (net.get_parameter("0.weight") - before).std().item() == pytest.approx(0.2, rel=0.03)


def test_weights_are_clipped_at_the_bound_of_their_layer() -> None:
    net = make_net()
    sigma = net.get_parameter("0.weight").detach().numpy().std()
    output = copy.deepcopy(net[5].state_dict())
    part = steps(net, WeightClipping(0.5), 1, lr=0.0)
    bound = 0.5 * math.sqrt(3) * sigma
    assert net.get_parameter("0.weight").abs().max().item() == pytest.approx(bound, rel=1e-5)
    assert net.get_parameter("0.bias").abs().max().item() <= bound * (1 + 1e-6)
    assert th.equal(net.get_parameter("5.weight"), output["weight"])
    assert th.equal(net.get_parameter("1.weight"), th.ones(4))  # a gain is no weight
    assert part.state["bounds"].keys() == {"0", "3"}
    steps(net, WeightClipping(0.1, outputs=True), 1, lr=0.0)
    assert net.get_parameter("5.weight").abs().max().item() == pytest.approx(0.1 / 2, rel=1e-6)


def test_weights_return_to_their_norm() -> None:
    net = make_net()
    norms = {i: net.get_parameter(f"{i}.weight").norm().item() for i in (0, 3, 5)}
    steps(net, NormalizeAndProject(gains="project"), 5)
    for i in (0, 3):
        assert net.get_parameter(f"{i}.weight").norm().item() == pytest.approx(norms[i], rel=1e-6)
    assert net.get_parameter("5.weight").norm().item() != pytest.approx(norms[5], rel=1e-3)
    gains = net.get_parameter("1.weight").square().sum() + net.get_parameter("1.bias").square().sum()
    assert gains.item() == pytest.approx(4, rel=1e-6)


def test_the_smallest_weights_are_drawn_anew() -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    part = steps(net, SelectiveWeightReinit(0.25, every=2), 3, lr=0.0)
    fresh = fresh_parameters(net, 0)
    for name in ("0.weight", "3.weight", "5.weight"):
        order = before[name].abs().flatten().argsort()
        count = before[name].numel() // 4
        now, drawn = net.get_parameter(name).detach().flatten(), fresh[name].flatten()
        assert th.equal(now[order[:count]], drawn[order[:count]])
        assert th.equal(now[order[count:]], before[name].flatten()[order[count:]])
    assert part.state["weights"] == 3 + 4 + 1
    assert th.equal(net.get_parameter("0.bias"), before["0.bias"])


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("name", ["PPO", "SAC"])
@pytest.mark.parametrize("kind", BUSY)
def test_agents(name: str, kind: str) -> None:
    model = make_agent(name)
    objects = {key: id(p) for key, p in model.policy.named_parameters()}
    exploration = model.policy.log_std.detach().clone() if name == "PPO" else None
    model.learning_rate = 0.0
    model._setup_lr_schedule()
    model.learn(48, callback=MitigationCallback([BUSY[kind]()]))
    assert {key: id(p) for key, p in model.policy.named_parameters()} == objects
    assert exploration is None or th.equal(model.policy.log_std, exploration)
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())


@pytest.mark.parametrize("name", ["PPO", "SAC"])
@pytest.mark.parametrize("kind", IDLE)
def test_doing_nothing_is_bit_identical(name: str, kind: str) -> None:
    model = make_agent(name).learn(32, callback=MitigationCallback([IDLE[kind]()]))
    plain = parameters(make_agent(name).learn(32))
    assert all(th.equal(p, plain[key]) for key, p in parameters(model).items())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ShrinkAndPerturb(1.1), "`shrink` must be a finite number >= 0 and <= 1, got 1.1"),
        (lambda: ShrinkAndPerturb(perturb=-1), "`perturb` must be"),
        (lambda: ShrinkAndPerturb(when="now"), "`when` must be"),  # type: ignore[arg-type]
        (lambda: ShrinkAndPerturb(noise="white"), "`noise` must be one of 'fresh', 'normal'"),
        (lambda: WeightClipping(0), "`kappa` must be"),
        (lambda: NormalizeAndProject("frozen"), "`gains` must be"),
        (lambda: SelectiveWeightReinit(2), "`share` must be"),
        (lambda: SelectiveWeightReinit(utility="age"), "`utility` must be"),
    ],
)
def test_bad_arguments(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
