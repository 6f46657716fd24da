"""Every penalty: value and gradient against autograd of the published formula, in float64; and its life on an agent."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.mitigations import (
    L2,
    ChurnReduction,
    EffectiveRank,
    FeatureNorm,
    L2Init,
    Mitigation,
    MitigationCallback,
    Parseval,
    RegenerativeWasserstein,
    SpectralRegularization,
    make_mitigations,
    mitigate,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from algorithms import make_agent

FEATURES = 1e-6


def network() -> nn.Sequential:
    th.manual_seed(0)
    conv = [th.nn.Conv2d(1, 3, 2), th.nn.ReLU(), th.nn.Flatten()]
    dense = [
        th.nn.Linear(12, 8),
        th.nn.LayerNorm(8),
        th.nn.ReLU(),
        th.nn.Linear(8, 6),
        th.nn.Tanh(),
        th.nn.Linear(6, 2),
    ]
    net = th.nn.Sequential(*conv, *dense).double()
    with th.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return net


def l2(p: dict[str, th.Tensor], _start: dict[str, th.Tensor]) -> th.Tensor:
    return th.stack([value.square().sum() for value in p.values()]).sum()


def l2_init(p: dict[str, th.Tensor], start: dict[str, th.Tensor]) -> th.Tensor:
    moved = [(value - start[name]).square().sum() for name, value in p.items() if not name.startswith("4.")]
    return th.stack(moved).sum() / 2


def wasserstein(p: dict[str, th.Tensor], start: dict[str, th.Tensor]) -> th.Tensor:
    terms = [(v.flatten().sort().values - start[n].flatten().sort().values).square() for n, v in p.items()]
    return th.stack([term.mean() for term, name in zip(terms, p, strict=True) if not name.startswith("4.")]).sum()


def parseval(p: dict[str, th.Tensor], _start: dict[str, th.Tensor]) -> th.Tensor:
    excess = {n: p[n] @ p[n].T - 2 * th.eye(len(p[n]), dtype=th.float64) for n in ("3.weight", "6.weight")}
    return th.stack([(64 / len(value)) ** 2 * value.square().sum() for value in excess.values()]).sum()


def spectral(p: dict[str, th.Tensor], _start: dict[str, th.Tensor]) -> th.Tensor:
    loss = th.zeros((), dtype=th.float64)
    for name, value in p.items():
        if value.ndim > 1:
            loss = loss + (th.linalg.svdvals(value.flatten(1))[0] ** 2 - 1) ** 2
        elif name == "4.weight":
            loss = loss + (value - 1).square().sum()
        else:
            loss = loss + value.square().sum() ** 2
    return loss


FORMULAS: dict[type[Mitigation], Callable[[dict[str, th.Tensor], dict[str, th.Tensor]], th.Tensor]] = {
    L2: l2,
    L2Init: l2_init,
    RegenerativeWasserstein: wasserstein,
    Parseval: parseval,
    SpectralRegularization: spectral,
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_value_and_gradient_are_those_of_the_published_formula(kind: type[Mitigation]) -> None:
    net = network()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer, part = th.optim.SGD(net.parameters(), lr=1.0), kind(0.7)
    inputs = th.randn(5, 1, 3, 3, dtype=th.float64)
    with mitigate(net, optimizer, [part]):
        net(inputs).sum().backward()
        with th.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * th.randn_like(parameter))
        if isinstance(part, SpectralRegularization):  # the power iteration has seen these weights for a while
            for _ in range(3000):
                for name, vectors in part.state["vectors"].items():
                    part._iterate(part.parameters[name].detach().flatten(1), *vectors)
        optimizer.zero_grad()
        net(inputs).sum().backward()
        ours = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        value = part.logs()["penalty"]
    optimizer.zero_grad()
    named: dict[str, th.Tensor] = dict(net.named_parameters())
    penalty = FORMULAS[kind](named, start)
    (net(inputs).sum() + 0.7 * penalty).backward()
    assert value == pytest.approx(penalty.item(), rel=1e-9)
    for name, tensor in named.items():
        th.testing.assert_close(ours[name], tensor.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
@pytest.mark.parametrize("part", [FeatureNorm, EffectiveRank])
def test_feature_penalties_are_terms_of_the_loss(part: type[Mitigation], aggregate: str) -> None:
    th.manual_seed(0)
    net = th.nn.Sequential(
        th.nn.Linear(3, 6), th.nn.ReLU(), th.nn.Linear(6, 6), th.nn.Tanh(), th.nn.Linear(6, 1)
    ).double()
    inputs = th.randn(9, 3, dtype=th.float64)
    first = net[1](net[0](inputs))
    second = net[3](net[2](first))

    def rank(moment: th.Tensor) -> th.Tensor:
        share = th.linalg.eigvalsh(moment / moment.trace()).clamp(min=1e-300)
        entropy: th.Tensor = -(share * share.log()).sum()
        return entropy.exp()

    mitigation: Mitigation
    if part is FeatureNorm:
        penalty = (first.square().sum(1).mean() + second.square().sum(1).mean()) / 2
        mitigation = FeatureNorm(0.3)
    elif aggregate == "sum":
        penalty, mitigation = -rank(first.T @ first + second.T @ second), EffectiveRank(0.3, aggregate="sum")
    else:
        penalty = -(rank(first.T @ first) + rank(second.T @ second)) / 2
        mitigation = EffectiveRank(0.3)
    (net[4](second).square().sum() + 0.3 * penalty).backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    optimizer = th.optim.SGD(net.parameters(), lr=1.0)
    optimizer.zero_grad()
    with mitigate(net, optimizer, [mitigation]):
        net(inputs).square().sum().backward()
    for parameter, value in zip(net.parameters(), expected, strict=True):
        th.testing.assert_close(parameter.grad, value, rtol=1e-6, atol=FEATURES)


def test_decoupled_decay_is_adamw_bit_for_bit() -> None:
    nets = []
    for ours in (True, False):
        net = network()
        optimizer: th.optim.Optimizer = (
            th.optim.Adam(net.parameters(), lr=0.01)
            if ours
            else th.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.25)
        )
        parts = [L2(0.125, decoupled=True)] if ours else []
        th.manual_seed(1)
        with mitigate(net, optimizer, parts):
            for _ in range(4):
                optimizer.zero_grad()
                net(th.randn(5, 1, 3, 3, dtype=th.float64)).square().sum().backward()
                optimizer.step()
        nets.append(net)
    assert all(th.equal(p, q) for p, q in zip(*(net.parameters() for net in nets), strict=True))


@pytest.mark.parametrize("interval", [1, 8])
def test_ppo_with_two_mitigations_is_ppo_l2er(interval: int) -> None:
    kwargs: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[16, 16]), n_steps=32, batch_size=16)
    ours = make_agent("PPO", **kwargs)
    parts = [EffectiveRank(1e-2, interval=interval), L2(5e-4, log_std=True)]
    ours.learn(128, callback=MitigationCallback(parts))
    theirs = make_agent("PPO_L2ER", er_coef=1e-2, er_interval=interval, l2_coef=5e-4, **kwargs).learn(128)
    for name, value in ours.policy.state_dict().items():
        th.testing.assert_close(value, theirs.policy.state_dict()[name], rtol=0, atol=1e-6)


PARTS: dict[str, dict[str, Any]] = {
    "l2": dict(coef=0.1),
    "l2_init": dict(coef=0.1),
    "regenerative_wasserstein": dict(coef=0.1, interval=3),
    "parseval": dict(coef=0.1),
    "spectral_regularization": dict(coef=0.1),
    "feature_norm": dict(coef=0.1),
    "effective_rank": dict(coef=0.1, interval=3),
    "churn_reduction": dict(coef=10.0, batch_size=8),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("algorithm", ["A2C", "TRPO", "RecurrentPPO", "CrossQ"])
@pytest.mark.filterwarnings("ignore:.*alone. TRPO")
def test_a_penalty_acts_on_every_algorithm_and_at_strength_0_does_not(name: str, algorithm: str) -> None:
    steps = 64 if algorithm == "A2C" else 32  # four updates at least
    plain = make_agent(algorithm).learn(steps).policy.state_dict()
    for coef, acts in ((0.0, False), (PARTS[name]["coef"], True)):
        callback = MitigationCallback([{name: {**PARTS[name], "coef": coef}}])
        model = make_agent(algorithm)
        if name == "churn_reduction" and algorithm in ("TRPO", "RecurrentPPO"):
            with pytest.raises(ValueError, match="without churn_reduction"):
                model.learn(steps, callback=callback)
            continue
        found = model.learn(steps, callback=callback).policy.state_dict()
        assert all(bool(value.isfinite().all()) for value in found.values())
        assert acts != all(th.equal(value, found[key]) for key, value in plain.items())


def test_churn_is_measured_between_two_updates() -> None:
    """D of two categorical distributions and of two mean actions, by hand."""
    part = ChurnReduction(1.0, batch_size=8)
    model = make_agent("PPO")
    churn = []
    part.observe = lambda key, value: churn.append((key, float(value)))  # type: ignore[method-assign]
    states = []
    gradient = part._churn_gradients

    def spy(net: Network) -> dict[str, th.Tensor]:
        before = part.state[net.name]
        with th.no_grad():
            now = model.policy.get_distribution(before["observations"]).distribution.mean
        states.append(float((now - before["outputs"][0]).square().mean()))
        return gradient(net)

    part._churn_gradients = spy  # type: ignore[method-assign, assignment]
    model.learn(16, callback=MitigationCallback(part))
    assert [value for _, value in churn] == pytest.approx(states, rel=1e-5)
    assert len(states) == 3 and min(states) > 0  # the first of four updates has no predecessor


def test_bad_input_is_one_sentence_before_training() -> None:
    for entry, message in {
        "l2_innit": "did you mean 'l2_init'",
        "no.such.Thing": "paths to classes that can be imported",
        "sb3_plasticity.mitigations.names": "subclasses of Mitigation",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_mitigations([entry])
    with pytest.raises(ValueError, match="a list of names, or of mappings of one name"):
        make_mitigations([{"l2": {}, "parseval": {}}])
    with pytest.raises(ValueError, match="`scale` must be a finite number > 0, got 0"):
        make_mitigations([{"parseval": {"scale": 0}}])
    with pytest.raises(ValueError, match="`networks of l2` must be one of 'policy', 'value', got 'polcy'"):
        make_agent("PPO").learn(16, callback=MitigationCallback([L2(networks=["polcy"])]))
    with pytest.raises(ValueError, match="TRPO moves its policy without one"):
        make_agent("TRPO").learn(16, callback=MitigationCallback([L2(networks=["policy"])]))
    with pytest.raises(ValueError, match="a number >= 0, a schedule, or 'lin_<number>'"):
        make_mitigations([{"l2": {"coef": "1e-3x"}}])
    (linear,) = make_mitigations([{"l2": {"coef": "lin_1e-3"}}])
    own = L2(lambda progress: progress)
    assert linear.schedule is not None and linear.schedule(0.5) == pytest.approx(5e-4)
    assert own.schedule is not None and np.isclose(own.schedule(0.25), 0.25)
