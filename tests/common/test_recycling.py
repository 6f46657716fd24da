"""Recycling on networks of three units worked out by hand: linear, flattened convolution, two consumers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.common.layers import hooked_layers
from sb3_plasticity.common.recycling import FreshRows, recycle_units, restart_moments
from sb3_plasticity.common.units import HiddenLayer, trace_units

SECOND = th.tensor([False, True, False])
INPUT = th.randn(64, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))
IMAGES = th.randn(16, 1, 3, 4, dtype=th.float64, generator=th.Generator().manual_seed(1))


class Shared(nn.Module):
    """A layer of three units that two heads read."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        h = th.relu(self.body(x))
        return th.cat([self.policy(h), self.value(h)], dim=1)


def make(kind: str) -> tuple[nn.Module, th.Tensor, dict[str, Any]]:
    """A network in double precision, its inputs, and its parameters' slices that recycling unit 1 may change."""
    th.manual_seed(7)
    one = slice(1, 2)
    if kind == "linear":
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        return (
            net.double(),
            INPUT,
            {"0.weight": one, "0.bias": one, "2.weight": (slice(None), one), "2.bias": slice(None)},
        )
    if kind == "convolution":
        net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
        slices = {"0.weight": one, "0.bias": one, "3.weight": (slice(None), slice(6, 12)), "3.bias": slice(None)}
        return net.double(), IMAGES, slices
    if kind == "two convolutions":
        net = nn.Sequential(
            nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 2, padding=1, stride=2), nn.Flatten(), nn.Linear(8, 1)
        )
        slices = {"0.weight": one, "0.bias": one, "2.weight": (slice(None), one), "2.bias": slice(None)}
        return net.double(), IMAGES, slices
    slices = {"body.weight": one, "body.bias": one}
    for head in ("policy", "value"):
        slices |= {f"{head}.weight": (slice(None), one), f"{head}.bias": slice(None)}
    return Shared().double(), INPUT, slices


KINDS = ("linear", "convolution", "two convolutions", "shared")


def first_layer(net: nn.Module, inputs: th.Tensor) -> HiddenLayer:
    with trace_units(net) as graph:
        net(inputs[:1])
    return next(iter(graph.hidden.values()))


def means_of(net: nn.Module, layer: HiddenLayer, inputs: th.Tensor) -> dict[str, th.Tensor]:
    """Of each consumer, the mean of what its weights are multiplied with, over samples and positions."""
    means = {}

    def note(name: str, module: nn.Module, args: tuple[th.Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d):
            patches = F.unfold(args[0], module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
            means[name] = patches.mean((0, 2)).reshape(module.weight.shape[1:])
        else:
            means[name] = args[0].mean(0)

    with hooked_layers({c.layer: net.get_submodule(c.layer) for c in layer.consumers}, before=note), th.no_grad():
        net(inputs)
    return means


def adam_after_steps(
    net: nn.Module, inputs: th.Tensor, algorithm: type[th.optim.Adam] = th.optim.Adam
) -> th.optim.Adam:
    optimizer = algorithm(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        net(inputs).square().sum().backward()
        optimizer.step()
    return optimizer


def rows_of(layer: HiddenLayer, net: nn.Module) -> dict[str, th.Tensor]:
    return {name: th.full_like(net.get_parameter(name)[:1], 0.5) for name in layer.incoming}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_units_slices_change(kind: str) -> None:
    net, inputs, slices = make(kind)
    optimizer = adam_after_steps(net, inputs)
    layer = first_layer(net, inputs)
    objects, before = dict(net.named_parameters()), copy.deepcopy(net.state_dict())
    moments = {name: copy.deepcopy(optimizer.state[p]) for name, p in objects.items()}
    recycle_units(net, layer, SECOND, rows_of(layer, net), means_of(net, layer, inputs), [optimizer])
    for name, parameter in net.named_parameters():
        assert parameter is objects[name]
        untouched = th.ones_like(parameter, dtype=th.bool)
        if name in slices:
            untouched[slices[name]] = False
        assert th.equal(parameter[untouched], before[name][untouched])
        if name in slices and name not in (layer.bias, *(c.bias for c in layer.consumers)):
            assert (parameter[slices[name]] == (0.5 if name == layer.weight else 0)).all()
        # Consumers' biases move, their moments do not.
        if name in {c.bias for c in layer.consumers}:
            untouched[:] = True
        for key, value in moments[name].items():
            now = optimizer.state[parameter][key]
            assert th.equal(now[untouched], value[untouched]) if now.shape == untouched.shape else now == value
        assert optimizer.state[parameter]["step"] == 3
    assert layer.bias is not None and net.get_parameter(layer.bias)[1] == 0


def test_the_moments_of_a_linear_unit_by_hand() -> None:
    net, inputs, _ = make("shared")
    optimizer = adam_after_steps(net, inputs)
    layer = first_layer(net, inputs)
    state = {name: copy.deepcopy(optimizer.state[p]["exp_avg_sq"]) for name, p in net.named_parameters()}
    recycle_units(net, layer, SECOND, rows_of(layer, net), None, [optimizer])
    now = {name: optimizer.state[p] for name, p in net.named_parameters()}
    for name in ("body.weight", "body.bias"):
        assert (now[name]["exp_avg"][1] == 0).all()
        assert th.allclose(now[name]["exp_avg_sq"][1], (state[name][0] + state[name][2]) / 2)
    for name in ("policy.weight", "value.weight"):
        assert (now[name]["exp_avg"][:, 1] == 0).all()
        assert th.allclose(now[name]["exp_avg_sq"][:, 1], (state[name][:, 0] + state[name][:, 2]) / 2)


def test_the_moments_behind_a_flattened_convolution_are_meant_position_by_position() -> None:
    net, inputs, _ = make("convolution")
    optimizer = adam_after_steps(net, inputs)
    before = optimizer.state[net.get_parameter("3.weight")]["exp_avg_sq"].clone()
    recycle_units(net, layer := first_layer(net, inputs), SECOND, rows_of(layer, net), None, [optimizer])
    now = optimizer.state[net.get_parameter("3.weight")]["exp_avg_sq"]
    assert th.allclose(now[:, 6:12], (before[:, :6] + before[:, 12:]) / 2)


def test_other_optimizers_moments() -> None:
    parameter = nn.Parameter(th.ones(3, 2))
    for optimizer, key, expected in (
        (RMSpropTFLike([parameter], lr=0.1), "square_avg", 1.0),
        (th.optim.RMSprop([parameter], lr=0.1), "square_avg", None),
        (th.optim.SGD([parameter], lr=0.1, momentum=0.9), "momentum_buffer", 0.0),
    ):
        parameter.grad = th.arange(6.0).reshape(3, 2)
        optimizer.step()
        before = optimizer.state[parameter][key].clone()
        restart_moments(optimizer, parameter, 0, th.arange(3)[:, None], SECOND)
        now = optimizer.state[parameter][key]
        assert th.equal(now[[0, 2]], before[[0, 2]])
        assert th.allclose(now[1], before[[0, 2]].mean(0) if expected is None else th.full((2,), expected))
    # Nobody survives: as at the start.
    adam = th.optim.Adam([parameter])
    adam.step()
    restart_moments(adam, parameter, 0, th.arange(3)[:, None], th.ones(3, dtype=th.bool))
    assert (adam.state[parameter]["exp_avg_sq"] == 0).all() and adam.state[parameter]["step"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_contribution_moves_into_the_bias(kind: str) -> None:
    """The consumers' mean outputs on the statistics batch stay where they are."""
    net, inputs, _ = make(kind)
    layer = first_layer(net, inputs)

    def outputs() -> dict[str, th.Tensor]:
        found = {}

        def note(name: str) -> Callable[..., Any]:
            return lambda _m, _i, out: found.update({name: out.detach().movedim(1, -1).flatten(0, -2).mean(0)})

        handles = [net.get_submodule(c.layer).register_forward_hook(note(c.layer)) for c in layer.consumers]
        net(inputs)
        for handle in handles:
            handle.remove()
        return found

    before = outputs()
    recycle_units(net, layer, SECOND, rows_of(layer, net), means_of(net, layer, inputs))
    for name, after in outputs().items():
        assert th.allclose(after, before[name], rtol=0, atol=1e-14)
    recycle_units(net, layer, SECOND, rows_of(layer, net), None)  # nothing is read: nothing to move
    assert all(th.allclose(value, before[name], rtol=0, atol=1e-14) for name, value in outputs().items())


def test_a_recycled_unit_has_no_say() -> None:
    net, inputs, _ = make("linear")
    layer = first_layer(net, inputs)
    recycle_units(net, layer, SECOND, rows_of(layer, net))
    before = net(inputs)
    with th.no_grad():
        net.get_parameter("0.weight")[1] = 100
    assert th.equal(net(inputs), before)


def test_gains_start_afresh_too() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 1))
    with th.no_grad():
        net.get_parameter("1.weight").fill_(3)
        net.get_parameter("1.bias").fill_(4)
    layer = first_layer(net, INPUT.float())
    fresh = {"0.weight": th.ones(1, 2), "0.bias": th.ones(1), "1.weight": th.ones(1), "1.bias": th.zeros(1)}
    recycle_units(net, layer, SECOND, fresh)
    now = dict(net.named_parameters())
    assert now["1.weight"].tolist() == [3, 1, 3] and now["1.bias"].tolist() == [4, 0, 4]
    assert now["0.bias"][1] == 0


def test_nobody_chosen_changes_nothing() -> None:
    net, inputs, _ = make("linear")
    before = copy.deepcopy(net.state_dict())
    recycle_units(net, first_layer(net, inputs), SECOND & False, {})
    assert all(th.equal(value, before[name]) for name, value in net.state_dict().items())


def test_fresh_rows_are_handed_out_once() -> None:
    net, inputs, _ = make("linear")
    layer = first_layer(net, inputs)
    seeds = []

    def fresh(seed: int) -> dict[str, th.Tensor]:
        seeds.append(seed)
        return {"0.weight": 10.0 * seed + th.arange(3.0)[:, None].expand(3, 2), "0.bias": th.zeros(3)}

    rows = FreshRows(fresh, seed=1)
    assert rows.take(layer, 2)["0.weight"][:, 0].tolist() == [10, 11]
    assert rows.take(layer, 3)["0.weight"][:, 0].tolist() == [12, 20, 21]
    again = FreshRows(fresh, seed=1)  # goes on from the count alone
    again.taken = dict(rows.taken)
    assert again.take(layer, 1)["0.weight"][:, 0].tolist() == rows.take(layer, 1)["0.weight"][:, 0].tolist() == [22]
