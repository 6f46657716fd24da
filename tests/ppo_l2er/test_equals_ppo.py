"""With both coefficients 0, PPO_L2ER is SB3's PPO, bit for bit: parameters, optimizer state and logged values."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.logger import Logger

from sb3_plasticity import PPO_L2ER


def image_env(discrete: bool = True) -> FakeImageEnv:
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=discrete)
    env.observation_space.seed(0)  # its observations are samples of the space, which reset(seed) does not seed
    return env


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "mlp-box": ("MlpPolicy", lambda: IdentityEnvBox(eps=0.1), {}),
    "mlp-discrete": ("MlpPolicy", lambda: IdentityEnv(4), {}),
    "mlp-multidiscrete": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(3), {}),
    "mlp-multibinary": ("MlpPolicy", lambda: IdentityEnvMultiBinary(3), {}),
    "mlp-gsde": ("MlpPolicy", "Pendulum-v1", dict(use_sde=True, sde_sample_freq=4)),
    "mlp-gsde-squashed": ("MlpPolicy", "Pendulum-v1", dict(use_sde=True, policy_kwargs=dict(squash_output=True))),
    "mlp-separate": ("MlpPolicy", "Pendulum-v1", dict(policy_kwargs=dict(share_features_extractor=False))),
    "mlp-linear": ("MlpPolicy", "Pendulum-v1", dict(policy_kwargs=dict(net_arch=[]))),
    "mlp-relu-adamw": (
        "MlpPolicy",
        "Pendulum-v1",
        dict(policy_kwargs=dict(net_arch=[32], activation_fn=th.nn.ReLU, optimizer_class=th.optim.AdamW)),
    ),
    "target-kl": ("MlpPolicy", "Pendulum-v1", dict(target_kl=1e-4, learning_rate=3e-3)),
    "clip-range-vf": ("MlpPolicy", "Pendulum-v1", dict(clip_range_vf=0.1, ent_coef=0.01)),
    "schedules": ("MlpPolicy", "Pendulum-v1", dict(clip_range=lambda p: 0.2 * p, learning_rate=lambda p: 1e-3 * p)),
    "no-advantage-normalisation": ("MlpPolicy", "Pendulum-v1", dict(normalize_advantage=False)),
    "truncated-minibatch": ("MlpPolicy", "Pendulum-v1", dict(batch_size=24)),
    "cnn-shared": ("CnnPolicy", image_env, {}),
    "cnn-separate": ("CnnPolicy", image_env, dict(policy_kwargs=dict(share_features_extractor=False))),
    "cnn-box": ("CnnPolicy", lambda: image_env(discrete=False), {}),
    "dict-shared": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False), {}),
    "dict-separate": (
        "MultiInputPolicy",
        lambda: SimpleMultiObsEnv(random_start=False, discrete_actions=False),
        dict(policy_kwargs=dict(share_features_extractor=False)),
    ),
}


def learn(
    algorithm: type[PPO], policy: str, env: Any, arguments: dict[str, Any], **extra: Any
) -> tuple[PPO, list[tuple[str, Any]]]:
    env = env() if callable(env) else env
    defaults: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=2, seed=7, device="cpu")
    model = algorithm(policy, env, **(defaults | arguments | extra))
    logger = RecordingLogger()
    model.set_logger(logger)
    model.learn(3 * 64)
    # Whoever drew one number more from a global generator gets other numbers next.
    logger.recorded.append(("generators", [np.random.random(), th.rand(()).item()]))  # noqa: NPY002
    return model, [(key, value) for key, value in logger.recorded if not key.startswith(("time/", "train/erank"))]


class RecordingLogger(Logger):
    def __init__(self) -> None:
        super().__init__(folder=None, output_formats=[])
        self.recorded: list[tuple[str, Any]] = []

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        self.recorded.append((key, value))
        super().record(key, value, exclude)


@pytest.mark.parametrize("name", CASES)
def test_zero_coefficients_are_ppo(name: str) -> None:
    policy, env, arguments = CASES[name]
    stock, stock_log = learn(PPO, policy, env, arguments)
    ours, our_log = learn(PPO_L2ER, policy, env, arguments, er_coef=0.0, l2_coef=0.0)

    assert stock.num_timesteps == ours.num_timesteps == 192
    expected, actual = stock.get_parameters(), ours.get_parameters()
    assert_equal(expected, actual)
    assert len(stock_log) > 20
    assert [key for key, _ in stock_log] == [key for key, _ in our_log]
    for (key, value), (_, our_value) in zip(stock_log, our_log, strict=True):
        np.testing.assert_array_equal(our_value, value, err_msg=key)


def assert_equal(expected: Any, actual: Any) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys()
        for key in expected:
            assert_equal(expected[key], actual[key])
    elif isinstance(expected, (list, tuple)):
        assert len(expected) == len(actual)
        for left, right in zip(expected, actual, strict=True):
            assert_equal(left, right)
    elif isinstance(expected, th.Tensor):
        assert th.equal(expected, actual)
    else:
        assert expected == actual or (expected != expected and actual != actual)
