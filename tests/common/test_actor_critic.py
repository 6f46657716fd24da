"""Which layers read hidden activations, and whose they are."""

from typing import Any

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from torch import nn

from sb3_plasticity.agents import networks_of
from sb3_plasticity.common.layers import as_feature_matrix

CNN = "features_extractor.cnn"


def agent(kind: str, env: Any, **policy_kwargs: Any) -> PPO:
    return PPO(kind, env, n_steps=8, batch_size=4, device="cpu", policy_kwargs=policy_kwargs)


def features(model: PPO) -> tuple[tuple[str, ...], tuple[str, ...]]:
    networks = networks_of(model)
    return networks["policy"].features, networks["value"].features


def image_env() -> FakeImageEnv:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)


def test_mlp() -> None:
    policy, value = features(agent("MlpPolicy", "Pendulum-v1", net_arch=dict(pi=[16, 8], vf=[32])))
    assert policy == ("mlp_extractor.policy_net.2", "action_net")
    assert value == ("value_net",)


def test_linear_policy_has_none() -> None:
    assert features(agent("MlpPolicy", "Pendulum-v1", net_arch=[])) == ((), ())


def test_shared_convolutions_count_once_with_the_policy() -> None:
    policy, value = features(agent("CnnPolicy", image_env()))
    assert policy == (f"{CNN}.2", f"{CNN}.4", "features_extractor.linear.0", "action_net")
    assert value == ()  # the value head reads the very features that action_net reads


def test_separate_convolutions() -> None:
    policy, value = features(agent("CnnPolicy", image_env(), share_features_extractor=False))
    assert len(policy) == len(value) == 4
    assert value[-1] == "value_net"
    assert all("vf_features_extractor" in name for name in value[:-1])


def test_dict_features_mix_images_and_vectors() -> None:
    policy, value = features(agent("MultiInputPolicy", SimpleMultiObsEnv(random_start=False)))
    assert "mlp_extractor.policy_net.0" in policy  # its input holds the CNN's features
    assert value == ("mlp_extractor.value_net.2", "value_net")


def test_frozen_layers_have_nothing_to_gain() -> None:
    frozen = agent("CnnPolicy", image_env(), net_arch=[16])
    frozen.policy.features_extractor.requires_grad_(False)
    assert features(frozen) == (("action_net",), ("value_net",))


def test_looking_leaves_no_trace() -> None:
    model = agent("CnnPolicy", image_env())
    model.policy.set_training_mode(True)
    th.manual_seed(0)
    expected = th.get_rng_state()
    features(model)
    assert th.equal(th.get_rng_state(), expected)
    assert model.policy.training
    assert all(not module._forward_pre_hooks for module in model.policy.modules())


def test_convolution_positions_are_rows() -> None:
    activations = th.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = as_feature_matrix(nn.Conv2d(3, 1, 1), activations)
    assert rows.shape == (2 * 4 * 5, 3)
    assert th.equal(rows[7], activations[0, :, 1, 2])


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Discrete(4)])
def test_every_action_space(space: spaces.Space[Any]) -> None:
    class Env(gym.Env):
        observation_space = spaces.Box(-1, 1, (5,))
        action_space = space

        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.observation_space.sample(), 0.0, False, False, {}

    policy, value = features(agent("MlpPolicy", Env()))
    assert len(policy) == len(value) == 2
