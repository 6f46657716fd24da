"""One small agent of each algorithm, for tests that go over all of them."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_plasticity.ppo_l2er.ppo_l2er import PPO_L2ER


class Toy(gym.Env[Any, Any]):
    """A few random observations; the reward likes small actions."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], length: int = 20) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def _observe(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: self._sample(sub) for key, sub in space.items()}
        return self._sample(space)

    def _sample(self, space: Any) -> np.ndarray:
        if space.dtype == np.uint8:
            result: np.ndarray = self.np_random.integers(0, 256, space.shape, dtype=np.uint8)
            return result
        result = self.np_random.standard_normal(space.shape).astype(space.dtype)
        return result

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._observe(), -float(np.square(action).sum()), False, self.count >= self.length, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(self.action_space.n, dtype=bool)  # type: ignore[attr-defined]


VECTOR = spaces.Box(-np.inf, np.inf, (3,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
BOX, CHOICE = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

_ON_POLICY: dict[str, Any] = dict(n_steps=16)
_MINIBATCHES: dict[str, Any] = dict(_ON_POLICY, batch_size=8, n_epochs=2)
_OFF_POLICY: dict[str, Any] = dict(learning_starts=8, batch_size=8, buffer_size=200)
# Algorithm, its keywords, whether its actions are choices.
ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any], bool]] = {
    "PPO": (PPO, _MINIBATCHES, False),
    "PPO_L2ER": (PPO_L2ER, dict(_MINIBATCHES, er_coef=0.0, l2_coef=0.0), False),
    "A2C": (A2C, _ON_POLICY, False),
    "TRPO": (TRPO, dict(_ON_POLICY, batch_size=8, n_critic_updates=2), False),
    "RecurrentPPO": (RecurrentPPO, _MINIBATCHES, False),
    "MaskablePPO": (MaskablePPO, _MINIBATCHES, True),
    "SAC": (SAC, _OFF_POLICY, False),
    "TD3": (TD3, _OFF_POLICY, False),
    "DDPG": (DDPG, _OFF_POLICY, False),
    "DQN": (DQN, _OFF_POLICY, True),
    "TQC": (TQC, _OFF_POLICY, False),
    "QRDQN": (QRDQN, _OFF_POLICY, True),
    "CrossQ": (CrossQ, _OFF_POLICY, False),
}


def make_agent(name: str, observation_space: spaces.Space[Any] = VECTOR, **kwargs: Any) -> Any:
    """An agent with two hidden layers of eight units, seeded."""
    algorithm, arguments, discrete = ALGORITHMS[name]
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    if observation_space is IMAGE:
        policy = "CnnPolicy"
    if name == "RecurrentPPO":
        policy = policy.replace("Policy", "LstmPolicy")
    policy_kwargs = dict(net_arch=[8, 8]) | kwargs.pop("policy_kwargs", {})
    if name == "RecurrentPPO":
        policy_kwargs.setdefault("lstm_hidden_size", 8)
    env = Toy(observation_space, CHOICE if discrete else BOX)
    return algorithm(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **{**arguments, **kwargs})
