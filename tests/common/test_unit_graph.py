"""Which layers make units, and which columns of which weights read them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.envs import FakeImageEnv
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.common.units import HiddenLayer, UnitGraph, read_layers, trace_units


def trace(module: nn.Module, *inputs: th.Tensor) -> UnitGraph:
    module.eval()
    with trace_units(module) as graph:
        module(*inputs)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    return graph


def consumers(layer: HiddenLayer) -> dict[str, list[list[int]]]:
    return {consumer.layer: consumer.columns.tolist() for consumer in layer.consumers}


class Net(nn.Module):
    """Layers by keyword, and how they are put together."""

    def __init__(self, forward: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: th.Tensor) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        result: th.Tensor | tuple[th.Tensor, th.Tensor] = self.run(self, *inputs)
        return result


def test_linear_layers() -> None:
    graph = trace(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 1)),
        th.ones(1, 2),
    )
    assert graph.called == ("0", "2", "4") and graph.outputs == ("4",) and not graph.unclear
    first, second = graph.hidden["0"], graph.hidden["2"]
    assert (first.weight, first.bias, first.n_units, first.activation, first.gains) == (
        "0.weight",
        "0.bias",
        3,
        "relu",
        (),
    )
    assert consumers(first) == {"2": [[0], [1], [2]]}
    assert first.consumers[0].weight == "2.weight" and first.consumers[0].bias is None
    assert second.bias is None and second.activation == "tanh" and second.consumers[0].bias == "4.bias"


def test_a_flattened_convolution_owns_consecutive_columns() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 2),
        nn.ReLU(),
        nn.Conv2d(3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d((1, 2)),
        nn.Flatten(),
        nn.Linear(6, 1),
    )
    graph = trace(net, th.rand(1, 1, 4, 3))
    assert consumers(graph.hidden["0"]) == {"2": [[0], [1], [2]]}
    assert consumers(graph.hidden["2"]) == {"6": [[0, 1, 2], [3, 4, 5]]}


def test_a_flattened_channels_last_layout_strides() -> None:
    net = Net(lambda n, x: n.b(n.a(x).relu().permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(1, 2, 1), b=nn.Linear(8, 1))
    assert consumers(trace(net, th.rand(1, 1, 2, 2)).hidden["a"]) == {"b": [[0, 2, 4, 6], [1, 3, 5, 7]]}


def test_a_shared_layer_has_two_consumers_and_a_critic_reads_the_action_last() -> None:
    def forward(n: Any, x: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        h = th.tanh(n.a(x))
        return n.b(h), n.c(th.cat([h, action], dim=1))

    net = Net(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 1), c=nn.Linear(5, 1))
    graph = trace(net, th.ones(1, 2), th.ones(1, 2))
    assert consumers(graph.hidden["a"]) == {"b": [[0], [1], [2]], "c": [[0], [1], [2]]}
    assert graph.outputs == ("b", "c")


@pytest.mark.parametrize(
    "double", [lambda z: th.cat([z.relu(), (-z).relu()], 1), lambda z: th.cat((th.sin(z), th.cos(z)), dim=-1)]
)
def test_doubled_units_own_two_columns(double: Callable[..., Any]) -> None:
    net = Net(lambda n, x: n.b(double(n.a(x))), a=nn.Linear(2, 3), b=nn.Linear(6, 1))
    assert consumers(trace(net, th.ones(1, 2)).hidden["a"]) == {"b": [[0, 3], [1, 4], [2, 5]]}


def test_gains_of_normalisation() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 1))
    layer = trace(net, th.ones(1, 2)).hidden["0"]
    assert layer.gains == ("1.weight", "1.bias") and layer.activation == "relu"
    assert layer.incoming == ("0.weight", "0.bias", "1.weight", "1.bias")
    convolution = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    assert trace(convolution, th.ones(1, 1, 1, 1)).hidden["0"].gains == ("1.weight", "1.bias")


def test_gated_by_hand_is_elementwise() -> None:
    net = Net(lambda n, x: n.b((h := n.a(x)) * th.sigmoid(h)), a=nn.Linear(2, 3), b=nn.Linear(3, 1))
    assert consumers(trace(net, th.ones(1, 2)).hidden["a"]) == {"b": [[0], [1], [2]]}


def test_without_gradients_units_are_followed_too() -> None:
    def forward(n: Any, x: th.Tensor) -> th.Tensor:
        with th.no_grad():
            h = th.relu(n.a(x))
        th.zeros_like(h)
        result: th.Tensor = n.b(h) + n.c(th.relu(n.a(x)))
        return result

    graph = trace(Net(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 1), c=nn.Linear(3, 1)), th.ones(1, 2))
    assert set(consumers(graph.hidden["a"])) == {"b", "c"}


@pytest.mark.parametrize(
    "forward, reason",
    [
        (lambda n, x: n.c(n.b(h := n.a(x)) + h), "add reads them"),  # residual
        (lambda n, x: n.c(n.a(x) @ n.b.weight), "matmul"),
        (lambda n, x: n.c(n.a(x)) + n.a(x).sum(), "sum reads them"),
        (lambda n, x: n.c(F.avg_pool1d(n.a(x)[:, None], 3, 1, 1)[:, 0]), "avg_pool1d reads them"),
        (lambda n, x: n.c(F.max_pool1d(n.a(x)[:, None], 3, 1, 1)[:, 0]), "max_pool1d reads them"),
        (lambda n, x: n.c(n.a(x)[:, [0, 0, 1]]), "more often"),
        (lambda n, x: n.c(n.a(x)) + n.c(n.a(x).flip(1)), "twice"),
    ],
)
def test_what_cannot_be_told_apart_is_unclear(forward: Callable[..., Any], reason: str) -> None:
    graph = trace(Net(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 1)), th.ones(1, 2))
    assert reason in graph.unclear["a"]
    assert "a" not in graph.hidden and "a" not in graph.outputs


def test_an_lstm_reads_units_and_makes_none() -> None:
    net = Net(
        lambda n, x: n.c(n.lstm(n.a(x).relu()[None])[0][0]), a=nn.Linear(2, 3), lstm=nn.LSTM(3, 4), c=nn.Linear(4, 1)
    )
    graph = trace(net, th.ones(1, 2))
    assert list(graph.hidden) == ["a"] and graph.outputs == ("c",)
    (consumer,) = graph.hidden["a"].consumers
    assert (consumer.weight, consumer.bias) == ("lstm.weight_ih_l0", "lstm.bias_ih_l0")


class Twice(th.autograd.Function):
    """What no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return 2 * gradient


def test_layers_that_are_read_in_whatever_way() -> None:
    def forward(n: Any, x: th.Tensor) -> th.Tensor:
        h = Twice.apply(n.a(x))  # type: ignore[no-untyped-call]
        h, _ = n.lstm((h + F.relu_(n.b(h)) @ n.b.weight)[None])
        with th.no_grad():
            n.alone(x)
        result: th.Tensor = n.c(h[0])
        return result

    layers: dict[str, Any] = dict(
        a=nn.Linear(2, 3), b=nn.Linear(3, 3), lstm=nn.LSTM(3, 4), alone=nn.Linear(2, 2), c=nn.Linear(4, 1)
    )
    net = Net(forward, **layers)
    assert read_layers(net, lambda: net(th.ones(1, 2))) == {"a", "b", "lstm"}
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
    assert read_layers(last := net.get_submodule("c"), lambda: last(th.ones(1, 4))) == set()


def test_frozen_layers_have_no_units() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    net[0].requires_grad_(False)
    assert list(trace(net, th.ones(1, 2)).hidden) == ["2"]


def test_a_critic_that_extracts_features_without_gradients() -> None:
    """SAC's critic reads a shared extractor under no_grad: it is a consumer all the same."""
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    model = SAC("CnnPolicy", env, buffer_size=1, policy_kwargs=dict(net_arch=[4], share_features_extractor=True))
    policy = model.policy.eval()
    observation = th.zeros(1, 1, 36, 36)
    with trace_units(policy) as graph:
        policy.actor.get_action_dist_params(observation)
        policy.critic(observation, th.zeros(1, *(model.action_space.shape or ())))
    extractor = graph.hidden["actor.features_extractor.linear.0"]
    assert set(consumers(extractor)) == {"actor.latent_pi.0", "critic.qf0.0", "critic.qf1.0"}
    assert consumers(extractor)["critic.qf1.0"] == [[i] for i in range(512)]
    convolution = graph.hidden["actor.features_extractor.cnn.4"]
    (consumer,) = convolution.consumers
    assert consumer.columns.shape == (64, consumer.columns.max() // 64 + 1)
    assert th.equal(consumer.columns.flatten(), th.arange(consumer.columns.numel()))


def test_an_empty_net_arch_of_ppo() -> None:
    policy = PPO(
        "CnnPolicy", FakeImageEnv(screen_height=36, screen_width=36, n_channels=1), n_steps=8, batch_size=4
    ).policy.eval()
    with trace_units(policy) as graph:
        policy.evaluate_actions(th.zeros(1, 1, 36, 36), th.zeros(1, dtype=th.long))
    assert set(consumers(graph.hidden["features_extractor.linear.0"])) == {"action_net", "value_net"}
    assert graph.outputs == ("action_net", "value_net")
