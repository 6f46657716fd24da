"""Recyclers: which units they choose, by hand; and what they leave alone, on real agents."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from algorithms import IMAGE, make_agent
from stable_baselines3 import PPO
from torch import nn

from sb3_plasticity.mitigations import Mitigation, MitigationCallback, mitigate
from sb3_plasticity.mitigations.recycling import (
    CalibratedPartialResets,
    ContinualBackprop,
    ReDo,
    ReGraMa,
    SelfNormalizedResets,
)

BUSY: dict[str, Callable[[], Mitigation]] = {
    "cbp": lambda: ContinualBackprop(0.3, maturity_threshold=1),
    "redo": lambda: ReDo(tau=0.9, every=2),
    "regrama": lambda: ReGraMa(tau=0.9, every=3),
    "cpr": lambda: CalibratedPartialResets(rho=0.3, every=3),
}
IDLE: dict[str, Callable[[], Mitigation]] = {
    "cbp": lambda: ContinualBackprop(0.0, maturity_threshold=1),
    "redo": lambda: ReDo(tau=0.9, every=10**6),
    "regrama": lambda: ReGraMa(tau=0.9, every=10**6),
    "cpr": lambda: CalibratedPartialResets(rho=0.0, every=1),
}


def three_units(weights: list[float], outgoing: list[float]) -> nn.Sequential:
    """A network of one input, three ReLU units and one output."""
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    with th.no_grad():
        net.get_parameter("0.weight").copy_(th.tensor(weights)[:, None])
        net.get_parameter("2.weight").copy_(th.tensor(outgoing)[None])
        net.get_parameter("0.bias").zero_()
        net.get_parameter("2.bias").zero_()
    return net


def steps(
    net: Any,
    mitigation: Mitigation,
    n: int,
    optimizer: th.optim.Optimizer | None = None,
    loss: Callable[[th.Tensor], th.Tensor] = lambda out: out.mean(),
) -> Mitigation:
    """Updates that by themselves change nothing, on the inputs 1 and 3."""
    optimizer = optimizer or th.optim.SGD(net.parameters(), lr=0.0)
    with mitigate(net, optimizer, [mitigation]):
        for _ in range(n):
            optimizer.zero_grad()
            loss(net(th.tensor([[1.0], [3.0]]))).backward()
            optimizer.step()
    return mitigation


@pytest.mark.parametrize(
    "utility, worst",
    [
        ("contribution", 1),  # mean h: 4, 2, 1; |V|: 1, .5, 5: 4, 1, 5
        ("weight", 1),
        ("adaptation", 0),  # 1/2, 1, 2
        ("zero_contribution", 1),  # mean |h - mean h|: 2, 1, .5
        ("adaptable_contribution", 1),  # 1, .5, 5
    ],
)
def test_continual_backprop_recycles_the_least_useful(utility: str, worst: int) -> None:
    net = three_units([2.0, 1.0, 0.5], [1.0, 0.5, 5.0])
    before = copy.deepcopy(net.state_dict())
    part = steps(net, ContinualBackprop(0.34, maturity_threshold=2, utility=utility, decay_rate=0.5), 3)
    assert part.state["recycled"] == 1
    changed = [i for i in range(3) if net.get_parameter("0.weight")[i] != before["0.weight"][i]]
    assert changed == [worst] and net.get_parameter("2.weight")[0, worst] == 0
    # The mean output over the batch is what it was: the contribution has moved.
    mean = th.relu(2 * before["0.weight"][worst, 0]) * before["2.weight"][0, worst]
    assert net.get_parameter("2.bias").item() == pytest.approx(mean.item(), rel=1e-6)
    assert part.state["layers"]["0"]["age"].tolist() == [0 if i == worst else 3 for i in range(3)]


def test_continual_backprop_protects_the_young_and_accumulates_fractions() -> None:
    net = three_units([2.0, 1.0, 0.5], [1.0, 0.5, 5.0])
    assert steps(net, ContinualBackprop(1.0, maturity_threshold=3), 3).state["recycled"] == 0
    # .1 of 3 units an update: the first after four mature updates.
    assert steps(net, ContinualBackprop(0.1, maturity_threshold=0), 3).state["recycled"] == 0
    assert steps(net, ContinualBackprop(0.1, maturity_threshold=0), 4).state["recycled"] == 1


def test_redo_recycles_the_dormant() -> None:
    net = three_units([2.0, 0.05, -1.0], [1.0, 1.0, 1.0])  # scores 2.93, .073, 0
    part = steps(net, ReDo(tau=0.05, every=1), 1)
    assert part.state["recycled"] == 1 and net.get_parameter("2.weight")[0].tolist() == [1, 1, 0]
    assert net.get_parameter("2.bias").item() == 0
    part = steps(three_units([2.0, 0.05, -1.0], [1.0, 1.0, 1.0]), ReDo(tau=0.1, every=1), 1)
    assert part.state["recycled"] == 2


def test_regrama_recycles_units_without_gradient() -> None:
    net = three_units([2.0, 1.0, 0.5], [1.0, 0.001, 5.0])  # gradients by incoming weights: as the outgoing ones
    part = steps(net, ReGraMa(tau=0.01, every=2), 1)
    assert part.state["recycled"] == 0
    part = steps(net, ReGraMa(tau=0.01, every=2), 2)
    assert (
        part.state["recycled"] == 1
        and net.get_parameter("2.weight")[0, 1] == 0
        and net.get_parameter("2.weight")[0, 0] == 1
    )


def test_calibrated_partial_resets_by_hand() -> None:
    net = three_units([2.0, 1.0, 0.5], [1.0, 2.0, 3.0])  # scores .5, 1, 1.5
    part = CalibratedPartialResets(rho=0.5, every=1, decay_rate=0.5)
    steps(net, part, 1)  # u = .75, 1, 1.25
    share = [0.5, 0.5, 0.5 * 2 / (1 + 2.718281828459045**4)]
    expected = [v * (1 - s) for v, s in zip((1.0, 2.0, 3.0), share, strict=True)]
    assert net.get_parameter("2.weight")[0].tolist() == pytest.approx(expected, rel=1e-5)
    fresh = part.rows.fresh(part.rows.seed)["0.weight"][:, 0]
    incoming = [(1 - s) * w + s * f for w, s, f in zip((2.0, 1.0, 0.5), share, fresh.tolist(), strict=True)]
    assert net.get_parameter("0.weight")[:, 0].tolist() == pytest.approx(incoming, rel=1e-5)
    assert net.get_parameter("2.bias").item() == 0 and part.state["layers"]["0"]["utility"].tolist() == [1, 1, 1]


def test_self_normalized_resets_wait_for_their_own_percentile() -> None:
    net = three_units([2.0, 1.0, -1.0], [1.0, 1.0, 1.0])  # the last never fires
    part = steps(net, SelfNormalizedResets(percentile=0.9, refresh=10**6), 99)
    assert part.state["recycled"] == 0 and part.state["layers"]["0"]["age"].tolist() == [0, 0, 198]
    net = three_units([2.0, 1.0, -1.0], [1.0, 1.0, 1.0])
    part = SelfNormalizedResets()
    state = dict(counts=th.zeros(3, 24), threshold=th.full((3,), 10_000.0))
    state["counts"][0, 3], state["counts"][1, 0], state["counts"][1, 5] = 100, 80, 20
    part._refresh(state, 2)
    # Ages 7 to 14; the 90th of 100 is in the bin from 31 to 62; nobody knows of the third.
    assert state["threshold"].tolist() == [15, 63, 10_000]
    state["threshold"][0] = 10
    part._refresh(state, 2)
    assert state["threshold"][0] == 20  # not below: doubled
    with pytest.raises(ValueError, match="activation of 0` must be 'relu' for self_normalized_resets, got 'tanh'"):
        steps(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)), SelfNormalizedResets(), 1)


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("name", ["PPO", "RecurrentPPO", "SAC", "DQN", "CrossQ"])
@pytest.mark.parametrize("kind", BUSY)
def test_agents(name: str, kind: str) -> None:
    model = make_agent(name)
    objects = {key: id(p) for key, p in model.policy.named_parameters()}
    part = BUSY[kind]()
    model.learn(48, callback=MitigationCallback([part]))
    assert kind == "cpr" or part.state["recycled"] > 0
    assert {key: id(p) for key, p in model.policy.named_parameters()} == objects
    assert all(bool(th.isfinite(p).all()) for p in model.policy.parameters())


@pytest.mark.parametrize("name", ["PPO", "SAC"])
@pytest.mark.parametrize("kind", IDLE)
def test_doing_nothing_is_bit_identical(name: str, kind: str) -> None:
    model = make_agent(name).learn(32, callback=MitigationCallback([IDLE[kind]()]))
    plain = parameters(make_agent(name).learn(32))
    assert all(th.equal(p, plain[key]) for key, p in parameters(model).items())


def test_a_shared_extractor_is_recycled_once() -> None:
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[])
    model = make_agent("PPO", IMAGE, policy_kwargs=kwargs)
    part = ContinualBackprop(0.5, maturity_threshold=0)
    model.learn(16, callback=MitigationCallback([part]))
    assert set(part.state["layers"]) == {
        "features_extractor.cnn.0",
        "features_extractor.cnn.2",
        "features_extractor.cnn.4",
        "features_extractor.linear.0",
    }
    columns = part.hidden["policy"][3].consumers
    assert {consumer.layer for consumer in columns} == {"action_net", "value_net"}
    assert part.hidden["value"] == ()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ContinualBackprop(-0.1), "`replacement_rate` must be"),
        (lambda: ContinualBackprop(utility="use"), "`utility` must be one of 'contribution'"),
        (lambda: ContinualBackprop(decay_rate=1), "`decay_rate` must be"),
        (lambda: ReDo(tau=-1), "`tau` must be"),
        (lambda: ReDo(every=0), "`every` must be"),
        (lambda: ReGraMa(tau=float("nan")), "`tau` must be"),
        (lambda: SelfNormalizedResets(percentile=1), "`percentile` must be"),
        (lambda: CalibratedPartialResets(rho=2), "`rho` must be"),
    ],
)
def test_bad_arguments(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_be_recycled_is_refused_before_training() -> None:
    linear = make_agent("PPO", policy_kwargs=dict(net_arch=[]))
    with pytest.raises(ValueError, match="networks with hidden units that can be told apart, got 'policy, value'"):
        linear.learn(16, callback=MitigationCallback([ReDo()]))
    half = make_agent("PPO", policy_kwargs=dict(net_arch=dict(pi=[8], vf=[])))
    with pytest.raises(ValueError, match="hidden units that can be told apart, got 'value'"):
        half.learn(16, callback=MitigationCallback([ReDo(networks=["value"])]))
    with pytest.raises(ValueError, match="at most one that acts on the units of a network, got redo and regrama"):
        make_agent("PPO").learn(16, callback=MitigationCallback([ReDo(), ReGraMa()]))


def test_layers_that_are_left_alone_are_named() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(1, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: th.Tensor) -> th.Tensor:
            h = th.relu(self.a(x))
            result: th.Tensor = self.c(th.relu(self.b(h)) + h)
            return result

    with pytest.warns(UserWarning, match=r"redo leaves alone .*: a \(add reads them\); b \(add reads them\)"):
        with pytest.raises(ValueError, match="hidden units that can be told apart, got 'network'"):
            steps(Residual(), ReDo(), 1)
