"""PPO_L2ER stands where PPO stood: every space, policy and call of SB3's, and mistakes are named."""

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch as th
import torch._inductor.cpp_builder
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from sb3_plasticity import PPO_L2ER

TINY: dict[str, Any] = dict(
    n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu", policy_kwargs=dict(net_arch=[6])
)


class Spaces(gym.Env[Any, Any]):
    """Draws observations from one space and takes actions of another, in episodes of 5 steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.count += 1
        return self.observation_space.sample(), float(np.sum(action)), self.count >= 5, False, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box-matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "box-cube": spaces.Box(-2, 1, (1, 2, 3), np.float32),
    "box-float64": spaces.Box(-1, 1, (2,), np.float64),
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
}
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": VECTOR,
    "box-matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "box-float64": spaces.Box(-1, 1, (3,), np.float64),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary-matrix": spaces.MultiBinary([2, 2]),
    "image": IMAGE,
    "dict": spaces.Dict({"vector": VECTOR, "image": IMAGE, "kind": spaces.Discrete(3)}),
}
PAIRS: dict[str, tuple[spaces.Space[Any], spaces.Space[Any]]] = {}
PAIRS |= {f"{name}-actions": (VECTOR, space) for name, space in ACTIONS.items()}
PAIRS |= {f"{name}-observations": (space, ACTIONS["box-matrix"]) for name, space in OBSERVATIONS.items()}


@pytest.mark.parametrize("pair", PAIRS)
def test_every_space(pair: str) -> None:
    """With coefficients 0 PPO's parameters and actions, bit for bit; at the defaults finite ones that differ."""

    def train(algorithm: type[PPO], **coefficients: Any) -> PPO:
        policy = {"dict-observations": "MultiInputPolicy", "image-observations": "CnnPolicy"}.get(pair, "MlpPolicy")
        env = Spaces(*PAIRS[pair])
        return algorithm(policy, env, **TINY, **coefficients).learn(16)

    stock, off, on = train(PPO), train(PPO_L2ER, er_coef=0.0, l2_coef=0.0), train(PPO_L2ER, er_interval=1)
    expected, without, with_penalties = (model.policy.state_dict() for model in (stock, off, on))
    assert all(th.equal(value, without[name]) for name, value in expected.items())
    assert all(th.isfinite(value).all() for value in with_penalties.values())
    assert any(not th.equal(value, with_penalties[name]) for name, value in expected.items())
    observation = stock.observation_space.sample()
    actions = [model.predict(observation, deterministic=True)[0] for model in (stock, off)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert on.action_space.contains(on.predict(observation)[0])


def test_loads_from_memory_with_another_number_of_environments() -> None:
    file = io.BytesIO()
    model = PPO_L2ER("MlpPolicy", make_vec_env("CartPole-v1", 2), **TINY).learn(32)
    model.save(file)
    file.seek(0)
    loaded = PPO_L2ER.load(file, env=make_vec_env("CartPole-v1", 3))
    assert loaded.n_envs == 3 and loaded.num_timesteps == 32
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))
    assert loaded.learn(48, reset_num_timesteps=False).num_timesteps == 80


def test_wrapped_environments_and_callbacks() -> None:
    env = VecFrameStack(VecNormalize(make_vec_env("Pendulum-v1", 2)), 2)
    seen: list[int] = []

    def count(local: dict[str, Any], _: Any) -> bool:
        seen.append(local["n_steps"])
        return len(seen) < 12

    model = PPO_L2ER(env, **TINY).learn(32, callback=count)
    assert len(seen) == 12 and model.num_timesteps == 24
    mean, _ = evaluate_policy(model, env, n_eval_episodes=1)
    assert np.isfinite(mean)


def test_without_hidden_layers_it_warns_and_is_ppo_with_l2() -> None:
    """L2 alone on both sides: the weight decay of stock PPO's SGD is twice l2_coef."""
    arguments: dict[str, Any] = TINY | dict(
        policy_kwargs=dict(net_arch=[], optimizer_class=th.optim.SGD), max_grad_norm=1e9
    )
    with pytest.warns(UserWarning, match=r"er_coef=0.001 has no effect.*net_arch=\[\]") as caught:
        ours = PPO_L2ER("MlpPolicy", "CartPole-v1", l2_coef=0.05, **arguments).learn(32)
    assert len([warning for warning in caught if "has no effect" in str(warning.message)]) == 1
    arguments["policy_kwargs"]["optimizer_kwargs"] = dict(weight_decay=0.1)
    stock = PPO("MlpPolicy", "CartPole-v1", **arguments).learn(32)
    for expected, actual in zip(stock.policy.parameters(), ours.policy.parameters(), strict=True):
        th.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert "train/er_loss" not in ours.logger.name_to_value and ours.logger.name_to_value["train/l2_loss"] > 0


def test_a_misspelt_argument_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"PPO_L2ER got an unexpected keyword argument 'er_coeff' .*'er_coef'"):
        PPO_L2ER("CartPole-v1", er_coeff=0.5)
    PPO_L2ER("MlpPolicy", "CartPole-v1", **TINY).save(tmp_path / "model")
    with pytest.raises(TypeError, match=r"PPO_L2ER\.load got an unexpected .* 'er_coeff' \(did you mean 'er_coef'\?"):
        PPO_L2ER.load(tmp_path / "model", er_coeff=0.5)
    loaded = PPO_L2ER.load(tmp_path / "model", er_coef=0.5, num_timesteps=7)
    assert callable(loaded.er_coef) and loaded.er_coef(1.0) == 0.5 and loaded.num_timesteps == 7


def test_the_preset_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    PPO_L2ER("SlipperyAnt-v0")
    lines = [line for line in capsys.readouterr().out.splitlines() if "preset" in line]
    assert len(lines) == 1
    assert lines[0].startswith("PPO_L2ER preset SlipperyAnt-v0: n_envs=8, ") and "er_interval=8" in lines[0]
    assert "compile=True" in lines[0]
    PPO_L2ER("MlpPolicy", "Pendulum-v1")
    PPO_L2ER("Pendulum-v1")
    assert capsys.readouterr().out == ""


def test_without_a_compiler_the_preset_trains_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", nothing)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler") as caught:
        model = PPO_L2ER("SlipperyAnt-v0", n_steps=8, n_epochs=1).learn(128)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert model.num_timesteps == 128


def test_repr_says_what_it_is() -> None:
    model = PPO_L2ER("MlpPolicy", "CartPole-v1", learning_rate=lambda progress: 1e-2 * progress, **TINY).learn(16)
    assert repr(model).startswith("PPO_L2ER(ActorCriticPolicy, n_envs=1, learning_rate=0.0, n_steps=16, ")
    assert "er_coef=0.001, l2_coef=0.0005, er_mode='loss'" in repr(model)
    assert repr(model).endswith("compile=False, num_timesteps=16)")


class Embedding(nn.Module):
    """A value-dependent extractor, without a linear layer of its own."""

    features_dim = 4

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        result: th.Tensor = self.table((observations.sum(-1) > 0).long())
        return result


def test_a_policy_of_ones_own() -> None:
    arguments: dict[str, Any] = TINY | dict(
        policy_kwargs=dict(features_extractor_class=Embedding, net_arch=dict(pi=[4], vf=[]))
    )
    model = PPO_L2ER("MlpPolicy", "CartPole-v1", er_interval=1, **arguments).learn(16)
    # The table's features feed the policy's first layer and the value head.
    assert {"train/erank_policy", "train/er_loss"} <= model.logger.name_to_value.keys()
