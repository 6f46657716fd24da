"""PPO_L2ER is PPO with two mitigations, and whatever else is attached acts in the compiled update, too."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from acting import ACTING, Changing, labels
from stable_baselines3 import DQN, PPO
from torch import nn

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.injection import terms_of
from sb3_plasticity.mitigations import (
    L2,
    EffectiveRank,
    Mitigation,
    MitigationCallback,
    RankAscent,
    attached,
    make_mitigations,
)

SMALL: dict[str, Any] = dict(
    n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8])
)


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def assert_close(expected: PPO, actual: PPO_L2ER, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for name, value in parameters(expected).items():
        th.testing.assert_close(parameters(actual)[name], value, rtol=rtol, atol=atol, msg=f"{name} differs")


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize("aggregate, rank_of", [("mean", "covariance"), ("sum", "features")])
def test_stock_ppo_with_both_mitigations_is_ppo_l2er(interval: int, aggregate: str, rank_of: str) -> None:
    arguments: dict[str, Any] = SMALL | dict(batch_size=16, policy_kwargs=dict(net_arch=[8, 8], activation_fn=nn.ReLU))
    settings: dict[str, Any] = dict(interval=interval, rank_of=rank_of, aggregate=aggregate)
    parts = [EffectiveRank(1e-2, **settings), L2(5e-4, log_std=True)]
    stock = PPO("MlpPolicy", "Pendulum-v1", **arguments).learn(192, callback=MitigationCallback(parts))
    coefficients: dict[str, Any] = dict(
        er_coef=1e-2, l2_coef=5e-4, er_interval=interval, er_aggregate=aggregate, rank_of=rank_of
    )
    ours = PPO_L2ER("MlpPolicy", "Pendulum-v1", **coefficients, **arguments).learn(192)
    plain = PPO("MlpPolicy", "Pendulum-v1", **arguments).learn(192)
    assert_close(stock, ours, rtol=0, atol=1e-6)
    distances = [(value - parameters(plain)[name]).abs().max() for name, value in parameters(ours).items()]
    assert max(distances) > 1e-4


@pytest.mark.parametrize("target_kl", [None, 1e-4])
def test_rank_ascent_is_the_step_mode(target_kl: float | None) -> None:
    arguments: dict[str, Any] = SMALL | dict(n_epochs=3, batch_size=24, target_kl=target_kl, learning_rate=3e-3)
    part = RankAscent(5e-3, rank_of="features")
    stock = PPO("MlpPolicy", "Pendulum-v1", **arguments).learn(192, callback=MitigationCallback(part))
    step: dict[str, Any] = dict(er_mode="step", er_coef=5e-3, l2_coef=0.0, rank_of="features")
    ours = PPO_L2ER("MlpPolicy", "Pendulum-v1", **step, **arguments).learn(192)
    assert (target_kl is not None) == (stock._n_updates < 9), "target_kl did not end an update"
    assert_close(stock, ours, rtol=0, atol=1e-6)
    plain = PPO("MlpPolicy", "Pendulum-v1", **arguments).learn(192)
    assert max((value - parameters(plain)[name]).abs().max() for name, value in parameters(ours).items()) > 1e-3


def test_rank_ascent_needs_a_rollout() -> None:
    with pytest.raises(ValueError, match="`model` must be an on-policy algorithm without recurrence"):
        DQN("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[8])).learn(
            1, callback=MitigationCallback(RankAscent())
        )


@pytest.mark.parametrize("er_batch_size", [None, 48])
def test_a_saved_model_goes_on_bit_for_bit(tmp_path: Path, er_batch_size: int | None) -> None:
    def make() -> PPO_L2ER:
        return PPO_L2ER("MlpPolicy", "Pendulum-v1", er_interval=3, er_batch_size=er_batch_size, er_coef=1e-2, **SMALL)

    def train(model: PPO_L2ER, seed: int) -> None:
        np.random.seed(seed)  # noqa: NPY002
        th.manual_seed(seed)
        assert model.env is not None
        model.env.seed(seed)
        model._last_obs = None
        model.learn(64, reset_num_timesteps=False)

    whole = make()
    train(whole, 1)
    whole.save(tmp_path / "half")
    train(whole, 2)
    resumed = PPO_L2ER.load(tmp_path / "half", env=gym.make("Pendulum-v1"), device="cpu")
    train(resumed, 2)
    assert whole._n_minibatches == resumed._n_minibatches == 8
    assert_close(whole, resumed, rtol=0, atol=0)


def test_no_hook_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)

    def count() -> int:
        hooks = [h for m in model.policy.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
        hooks += [h for p in model.policy.parameters() for h in (p._post_accumulate_grad_hooks or ())]
        optimizer = model.policy.optimizer
        return len(hooks) + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)

    assert count() == 0
    model.policy.optimizer.step = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        model.learn(64)
    assert count() == 0 and type(model.rollout_buffer).__name__ == "RolloutBuffer"


class Pull(Mitigation):
    """A stranger's penalty with a constant: the distance from where training began."""

    def setup(self) -> None:
        for name, parameter in self.parameters.items():
            self.state.setdefault(name, parameter.detach().clone())

    def constants(self, name: str) -> tuple[th.Tensor, ...]:
        return (self.state[name],)

    def gradient(
        self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: th.Tensor
    ) -> th.Tensor:
        return strength * (parameter - constants[0])


class Shrink(Mitigation):
    """Acts between updates, by what the update left: gradients and activations."""

    def records(self, network: Network) -> tuple[str, ...]:
        return network.features

    def after_update(self, networks: tuple[Network, ...]) -> None:
        with th.no_grad():
            for parameter in self.parameters.values():
                assert parameter.grad is not None
                parameter.sub_(self.strength() * parameter.grad.sign())
            for network in networks:
                for layer in network.features:
                    weight = network.root.get_parameter(f"{layer}.weight")
                    weight.mul_(1 - self.strength() * self.agent.activations[layer].abs().mean(0).clamp(max=1.0))


class Looks(Mitigation):
    """Depends on values, which no program can."""

    def gradient(self, name: str, parameter: th.Tensor, strength: float | th.Tensor, *constants: Any) -> th.Tensor:
        return strength * parameter if parameter.abs().max() > 0 else th.zeros_like(parameter)


class Impure(Pull):
    pure = False


def train_both(
    part: Callable[..., Any], make_env: Callable[[], Any] = lambda: "Pendulum-v1", **arguments: Any
) -> tuple[PPO_L2ER, PPO_L2ER, list[str], MitigationCallback]:
    """Two rollouts, eager and compiled, from the same random numbers; and what the compiled one warned."""
    models: list[PPO_L2ER] = []
    found: list[str] = []
    for compile in (False, True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = PPO_L2ER("MlpPolicy", make_env(), compile=compile, **(SMALL | arguments))
            callback = MitigationCallback(part())
            model.learn(128, callback=callback)
        models.append(model)
        found = [str(warning.message) for warning in caught if "runs uncompiled" in str(warning.message)]
    eager, compiled = models
    return eager, compiled, found, callback


def assert_equal_or_said(
    name: str, part: Callable[..., Any], *world: Callable[[], Any], **arguments: Any
) -> tuple[list[str], PPO_L2ER]:
    eager, compiled, warned, _ = train_both(part, *world, **arguments)
    if warned:
        assert len(warned) == 1 and name in warned[0]
        # unless it became so in the middle, nothing was compiled
        assert compiled._compiled is None or not compiled._compiled._programs or terms_of(compiled.policy)
    else:
        assert compiled._compiled is not None and compiled._compiled._programs
    assert_close(eager, compiled, rtol=1e-3, atol=2e-5)
    return warned, eager


OFF: dict[str, Any] = dict(er_coef=0.0, l2_coef=0.0)


def test_a_strangers_penalty_enters_the_program() -> None:
    warned, _ = assert_equal_or_said("pull", lambda: Pull(0.1, networks=["value"]), **OFF)
    assert not warned


def test_between_updates_it_gets_gradients_and_activations() -> None:
    eager, compiled, warned, callback = train_both(lambda: Shrink(1e-3), **OFF)
    assert not warned and compiled._compiled is not None and not compiled._compiled.steps
    assert_close(eager, compiled)
    assert callback.mitigations[0].state["updates"] == {"policy": 8, "value": 8}


def test_an_optimizers_hooks_are_called() -> None:
    calls: list[int] = []
    eager = PPO_L2ER("MlpPolicy", "Pendulum-v1", **OFF, **SMALL).learn(64)
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", compile=True, **OFF, **SMALL)
    model.policy.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    model.learn(64)
    assert len(calls) == 4 and model._compiled is not None and model._compiled._programs
    assert_close(eager, model)


@pytest.mark.parametrize(
    "part, reason",
    [(Looks, "looks cannot be traced"), (Impure, "impure depends on more than its arguments")],
)
def test_what_cannot_be_compiled_is_named_once_and_acts(part: type[Looks] | type[Impure], reason: str) -> None:
    warned, _ = assert_equal_or_said(part.name, lambda: part(0.1), **OFF)
    assert reason in warned[0]


@pytest.mark.parametrize(
    "hang, reason",
    [
        (lambda p, h: p.value_net.register_forward_hook(h), "there is a hook on value_net"),
        (lambda p, h: p.value_net.bias.register_hook(h), "there is a hook on the gradient of value_net.bias"),
        (
            lambda p, h: p.value_net.bias.register_post_accumulate_grad_hook(h),
            "there is a hook on the gradient of value_net.bias",
        ),
    ],
)
def test_foreign_hooks_are_named_once_and_called(hang: Callable[..., Any], reason: str) -> None:
    calls: list[int] = []
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", compile=True, **SMALL)
    hang(model.policy, lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match=f"runs uncompiled, because {reason}") as caught:
        model.learn(128)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert len(calls) >= 8


# Compiling takes seconds: a penalty on features and a reset of moments here, the rest slow.
EAGER = {"churn_reduction", "plasticity_injection"}
QUICK = [("feature_norm", dict(coef=0.1)), ("shrink_head", dict(when=20))]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [pytest.param(*entry, marks=() if entry in QUICK else pytest.mark.slow) for entry in ACTING],
    ids=labels(ACTING),
)
def test_every_mitigation_compiled_equals_eager_or_says_so(name: str, arguments: dict[str, Any]) -> None:
    # Of 32 samples there is always one that lets a unit fire.
    batch_size = 8 if name == "self_normalized_resets" else 32
    world = dict(policy_kwargs=dict(net_arch=[8, 8], activation_fn=nn.ReLU), batch_size=batch_size) | OFF
    warned, eager = assert_equal_or_said(name, lambda: make_mitigations([{name: arguments}]), Changing, **world)
    assert bool(warned) == (name in EAGER)
    plain = PPO_L2ER("MlpPolicy", Changing(), **(SMALL | world)).learn(128)
    assert any(not th.equal(value, parameters(plain)[key]) for key, value in parameters(eager).items())


def test_attached_outside_a_callback() -> None:
    """``attached`` around ``train()`` is the same as the callback."""
    models = []
    for inside in (False, True):
        model = PPO_L2ER("MlpPolicy", "Pendulum-v1", **OFF, **SMALL)
        if inside:
            train = model.train

            def wrapped(model: PPO_L2ER = model, train: Callable[..., Any] = train) -> None:
                with attached(model, [L2(0.1)]):
                    train()

            model.train = wrapped  # type: ignore[method-assign]
            model.learn(64)
        else:
            model.learn(64, callback=MitigationCallback(L2(0.1)))
        models.append(model)
    assert_close(models[0], models[1], rtol=0, atol=0)
