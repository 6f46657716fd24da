"""Activations: values by hand, and every algorithm trains with them."""

import pytest
import torch as th
from algorithms import ALGORITHMS, IMAGE, make_agent
from torch import nn

from sb3_plasticity.mitigations import CReLU, FourierFeatures, LayerNormReLU, LayerNormTanh
from sb3_plasticity.ppo_l2er.presets import parse_policy_kwargs

ALL = [LayerNormReLU, LayerNormTanh, CReLU, FourierFeatures]


def test_layer_norm_by_hand() -> None:
    # mean 2, variance 2: (0, 1, 2, 3, 4) -> (-2, -1, 0, 1, 2) / sqrt(2 + 1e-5)
    normalised = th.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0]]) / (2 + 1e-5) ** 0.5
    units = th.arange(5.0)[None]
    th.testing.assert_close(LayerNormReLU()(units), normalised.clamp(min=0))
    th.testing.assert_close(LayerNormTanh()(units), normalised.tanh())


def test_images_are_normalised_over_channels() -> None:
    units = th.tensor([1.0, 3.0])[None, :, None, None].expand(1, 2, 4, 4)
    out = LayerNormReLU()(units)
    th.testing.assert_close(out[0, 1], th.full((4, 4), (1 + 1e-5) ** -0.5))
    assert (out[0, 0] == 0).all()


def test_the_scale_of_the_weights_does_not_matter() -> None:
    units = th.randn(3, 8, dtype=th.float64)
    th.testing.assert_close(LayerNormReLU()(1000 * units), LayerNormReLU()(units), rtol=1e-4, atol=1e-4)


def test_concatenated_halves_by_hand() -> None:
    units = th.tensor([[-1.0, 2.0, 5.0, 6.0]])
    assert CReLU()(units).tolist() == [[0.0, 2.0, 1.0, 0.0]]
    expected = [th.sin(th.tensor(-1.0)), th.sin(th.tensor(2.0)), th.cos(th.tensor(-1.0)), th.cos(th.tensor(2.0))]
    assert FourierFeatures()(units).tolist() == [[value.item() for value in expected]]


@pytest.mark.parametrize("activation", [CReLU, FourierFeatures])
def test_odd_widths_are_refused(activation: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"`net_arch` must have layers of an even number .* got 3"):
        activation()(th.ones(1, 3))


@pytest.mark.parametrize("activation", ALL)
@pytest.mark.parametrize("name", ["PPO", "SAC", "DQN"])
def test_agents_train_with_them(name: str, activation: type[nn.Module]) -> None:
    make_agent(name, policy_kwargs={"activation_fn": activation}).learn(40)


def test_images() -> None:
    make_agent("PPO", IMAGE, policy_kwargs={"activation_fn": LayerNormReLU, "net_arch": [8]}).learn(16)


def test_every_algorithm_takes_them() -> None:
    for name in ALGORITHMS:
        agent = make_agent(name, policy_kwargs={"activation_fn": LayerNormReLU})
        assert any(isinstance(module, LayerNormReLU) for module in agent.policy.modules()), name


def test_yaml_names_them_by_path() -> None:
    arguments = parse_policy_kwargs({"activation_fn": "sb3_plasticity.mitigations.LayerNormReLU"})
    assert arguments == {"activation_fn": LayerNormReLU}
    with pytest.raises(ValueError, match=r"\(did you mean 'LayerNormReLU'\?\)"):
        parse_policy_kwargs({"activation_fn": "sb3_plasticity.mitigations.LayerNormRelu"})
