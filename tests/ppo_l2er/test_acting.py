"""Acting the short way gives SB3's bits."""

from typing import Any

import gymnasium as gym
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.ppo_l2er.acting import lean_acting, lean_forward


def model(env: str = "Pendulum-v1", policy: str | type[ActorCriticPolicy] = "MlpPolicy", **arguments: Any) -> PPO_L2ER:
    return PPO_L2ER(policy, env, **(dict(n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu") | arguments))


@pytest.mark.parametrize("activation_fn", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("net_arch", [[], [64], [256, 256], dict(pi=[16, 8], vf=[32])])
@pytest.mark.parametrize("n_envs", [1, 3, 64])
@pytest.mark.parametrize("deterministic", [False, True])
def test_bit_equal(
    activation_fn: type[nn.Module], net_arch: list[int] | dict[str, list[int]], n_envs: int, deterministic: bool
) -> None:
    policy = model(
        er_coef=0.0, policy_kwargs=dict(net_arch=net_arch, activation_fn=activation_fn, log_std_init=-0.7)
    ).policy
    observations = th.randn(n_envs, 3, dtype=th.float64, generator=th.Generator().manual_seed(1))
    results = []
    for lean in (False, True):
        th.manual_seed(5)
        with th.no_grad():
            if lean:
                with lean_acting(policy) as found:
                    assert found
                    results.append((*policy(observations, deterministic), th.rand(3)))
            else:
                results.append((*policy(observations, deterministic), th.rand(3)))
    for stock, ours in zip(*results, strict=True):
        assert stock.shape == ours.shape and stock.dtype == ours.dtype
        assert th.equal(stock, ours)
    assert "forward" not in vars(policy)


def test_a_rollout_takes_the_short_way() -> None:
    agent = model()
    with lean_acting(agent.policy):
        pass
    assert lean_forward(agent.policy) is not None
    agent.learn(64)
    assert "forward" not in vars(agent.policy)


class OwnForward(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


class Discrete(gym.Env):
    observation_space, action_space = spaces.Discrete(3), spaces.Box(-1, 1, (2,))

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 0, 0.0, False, False, {}


@pytest.mark.parametrize(
    "arguments",
    [
        dict(policy=OwnForward),
        dict(env="CartPole-v1"),
        dict(env=Discrete()),
        dict(use_sde=True),
        dict(policy_kwargs=dict(activation_fn=nn.ELU)),
    ],
    ids=["own-forward", "categorical", "discrete-observations", "gsde", "other-activation"],
)
def test_other_policies_act_as_ever(arguments: dict[str, Any]) -> None:
    assert lean_forward(model(**arguments).policy) is None


def test_hooks_are_heard() -> None:
    policy = model().policy
    heard = []
    policy.value_net.register_forward_hook(lambda *_: heard.append(1))
    with lean_acting(policy) as found, th.no_grad():
        assert not found
        policy(th.zeros(1, 3))
    assert heard == [1]


def test_nan_gets_sb3s_own_error() -> None:
    policy = model().policy
    with lean_acting(policy), th.no_grad(), pytest.raises(ValueError, match="Expected parameter loc"):
        policy(th.full((1, 3), th.nan))
