"""Which layers read hidden activations, and whose they are."""

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from torch import nn

from sb3_plasticity.common.actor_critic import find_hidden_layers
from sb3_plasticity.common.networks import as_feature_matrix

CNN = "features_extractor.cnn"


def policy(kind, env, **policy_kwargs):
    return PPO(kind, env, n_steps=8, batch_size=4, device="cpu", policy_kwargs=policy_kwargs).policy


def image_env():
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)


def test_mlp():
    layers = find_hidden_layers(policy("MlpPolicy", "Pendulum-v1", net_arch=dict(pi=[16, 8], vf=[32])))
    assert layers.policy == ("mlp_extractor.policy_net.2", "action_net")
    assert layers.value == ("value_net",)
    assert layers.widths == {"mlp_extractor.policy_net.2": 16, "action_net": 8, "value_net": 32}


def test_linear_policy_has_none():
    assert find_hidden_layers(policy("MlpPolicy", "Pendulum-v1", net_arch=[])).names == ()


def test_shared_convolutions_count_once_with_the_policy():
    layers = find_hidden_layers(policy("CnnPolicy", image_env()))
    assert layers.policy == (f"{CNN}.2", f"{CNN}.4", "features_extractor.linear.0", "action_net")
    assert layers.value == ()  # the value head reads the very features that action_net reads
    assert [layers.widths[name] for name in layers.policy] == [32, 64, 64, 512]


def test_separate_convolutions():
    layers = find_hidden_layers(policy("CnnPolicy", image_env(), share_features_extractor=False))
    assert len(layers.policy) == len(layers.value) == 4
    assert layers.value[-1] == "value_net"
    assert all("vf_features_extractor" in name for name in layers.value[:-1])


def test_dict_features_mix_images_and_vectors():
    layers = find_hidden_layers(policy("MultiInputPolicy", SimpleMultiObsEnv(random_start=False)))
    assert "mlp_extractor.policy_net.0" in layers.policy  # its input holds the CNN's features
    assert layers.value == ("mlp_extractor.value_net.2", "value_net")


def test_frozen_layers_have_nothing_to_gain():
    frozen = policy("CnnPolicy", image_env(), net_arch=[16])
    frozen.features_extractor.requires_grad_(False)
    assert find_hidden_layers(frozen).policy == ("action_net",)


def test_find_hidden_layers_leaves_no_trace():
    model = policy("CnnPolicy", image_env())
    model.set_training_mode(True)
    th.manual_seed(0)
    expected = th.get_rng_state()
    find_hidden_layers(model)
    assert th.equal(th.get_rng_state(), expected)
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_convolution_positions_are_rows():
    activations = th.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = as_feature_matrix(nn.Conv2d(3, 1, 1), activations)
    assert rows.shape == (2 * 4 * 5, 3)
    assert th.equal(rows[7], activations[0, :, 1, 2])


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Discrete(4)])
def test_every_action_space(space):
    class Env(gym.Env):
        observation_space = spaces.Box(-1, 1, (5,))
        action_space = space

        def reset(self, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    layers = find_hidden_layers(policy("MlpPolicy", Env()))
    assert len(layers.policy) == len(layers.value) == 2
