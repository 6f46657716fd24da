"""The compiled update is the eager update, to rounding; the policy and its optimizer stay the truth."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch as th
import torch._inductor.cpp_builder
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

import sb3_plasticity.ppo_l2er.inductor as module
from sb3_plasticity import PPO_L2ER
from sb3_plasticity.common import onednn
from sb3_plasticity.ppo_l2er import acting, compilable

SMALL: dict[str, Any] = dict(
    n_steps=64, batch_size=24, n_epochs=2, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8])
)


def make(compile: bool, env: str = "Pendulum-v1", **arguments: Any) -> PPO_L2ER:
    return PPO_L2ER("MlpPolicy", env, **(SMALL | dict(compile=compile) | arguments))


def collect(model: PPO_L2ER) -> PPO_L2ER:
    """Fill the rollout buffer without an update."""
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(model.n_steps, reset_num_timesteps=False)
    del model.train
    return model


def assert_close(expected: PPO_L2ER, actual: PPO_L2ER, **tolerance: Any) -> None:
    left, right = expected.get_parameters(), actual.get_parameters()
    for name, value in left["policy"].items():
        th.testing.assert_close(right["policy"][name], value, **tolerance)
    states = left["policy.optimizer"]["state"], right["policy.optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert float(state["step"]) == float(states[1][index]["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            th.testing.assert_close(states[1][index][name], state[name], rtol=1e-3, atol=1e-5)


def train_both(pair: tuple[PPO_L2ER, ...]) -> None:
    for model in pair:
        np.random.seed(1)  # noqa: NPY002
        th.manual_seed(1)
        model.train()


CASES: dict[str, dict[str, Any]] = {
    "l2er": dict(er_coef=1e-2, l2_coef=1e-3, er_interval=2, ent_coef=0.01, batch_size=32),
    "clipped-values-adamw": dict(
        er_coef=0.0,
        l2_coef=0.0,
        batch_size=24,  # 64 = 24 + 24 + 16: a smaller last minibatch
        clip_range_vf=0.2,
        normalize_advantage=False,
        policy_kwargs=dict(net_arch=[8], optimizer_class=th.optim.AdamW, optimizer_kwargs=dict(weight_decay=0.1)),
    ),
    "rows-of-the-rollout-categorical": dict(
        env="CartPole-v1", er_coef=1e-2, l2_coef=0.0, er_interval=1, er_batch_size=40, batch_size=64, rank_of="features"
    ),
    "discrete-observations": dict(env="FrozenLake-v1", er_coef=1e-3, l2_coef=1e-4, batch_size=64),
    # products large enough for oneDNN
    "gsde-step": dict(
        er_coef=1e-3, l2_coef=1e-4, er_mode="step", batch_size=64, use_sde=True, policy_kwargs=dict(net_arch=[128, 128])
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_update_equals_the_eager_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used_onednn = False

    def spy(trace: Any) -> Any:
        nonlocal used_onednn
        trace = use_onednn(trace)
        used_onednn |= any(node.target is th.ops.sb3_plasticity.product.default for node in trace.graph.nodes)
        return trace

    use_onednn = module.use_onednn
    monkeypatch.setattr(module, "use_onednn", spy)
    monkeypatch.setattr(onednn, "is_faster", th.backends.mkldnn.is_available)
    pair = eager, compiled = collect(make(False, **CASES[name])), collect(make(True, **CASES[name]))
    train_both(pair)
    assert not compiled._uncompilable and compiled._compiled is not None and len(compiled._compiled._programs) >= 1
    assert used_onednn == ([128, 128] == compiled.policy.net_arch and th.backends.mkldnn.is_available())
    assert_close(eager, compiled, rtol=1e-5, atol=2e-7)
    assert eager._n_minibatches == compiled._n_minibatches
    expected, actual = eager.logger.name_to_value, compiled.logger.name_to_value
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
    programs = len(compiled._compiled._programs), len(compiled._compiled.ascent._programs)
    assert programs[1] == (CASES[name].get("er_mode") == "step")
    for model in pair:
        np.random.seed(2)  # noqa: NPY002
        th.manual_seed(2)
        collect(model)
    train_both(pair)
    again = len(compiled._compiled._programs), len(compiled._compiled.ascent._programs)
    assert again == programs, "recompiled at the second rollout"
    assert_close(eager, compiled, rtol=1e-3, atol=1e-5)


def test_schedules_early_stopping_switching_and_saving(tmp_path: Path) -> None:
    arguments: dict[str, Any] = dict(
        learning_rate=lambda progress: 3e-2 * progress, target_kl=0.01, er_coef=0.0, l2_coef=1e-3, n_epochs=4
    )
    pair = eager, compiled = tuple(collect(make(flag, batch_size=32, **arguments)) for flag in (False, True))
    for model in pair:
        model._current_progress_remaining = 0.9
    train_both(pair)
    assert_close(eager, compiled, rtol=1e-4, atol=1e-6)
    assert compiled._n_minibatches == eager._n_minibatches < 8, "target_kl did not end the update"
    assert eager.logger.name_to_value["train/n_updates"] == compiled.logger.name_to_value["train/n_updates"]

    eager.compile, compiled.compile = True, False  # switching sides
    train_both(pair)
    assert_close(eager, compiled, rtol=1e-3, atol=1e-4)

    eager.save(tmp_path / "compiled")
    loaded = PPO_L2ER.load(tmp_path / "compiled", env=gym.make("Pendulum-v1"))
    assert loaded.compile is True
    assert_close(eager, loaded, rtol=0, atol=0)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded._compiled is not None


def test_nan_is_reported_and_never_written_over_good_weights() -> None:
    model = collect(make(True, er_coef=0.0, l2_coef=1e-3, batch_size=32, n_epochs=4))
    model.train()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    collect(model)
    model.rollout_buffer.returns[:] = np.nan
    with pytest.raises(FloatingPointError, match="PPO_L2ER stopped at 128 timesteps, update 4: value_loss is nan"):
        model.train()
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize("compile", [False, True])
def test_a_finite_gradient_whose_norm_overflows_is_clipped_to_nothing(compile: bool) -> None:
    """As SB3 does it: 1e25 fits into float32, its square does not."""
    model = collect(make(compile, er_coef=0.0, l2_coef=1e25, batch_size=64))
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.train()
    assert (model._compiled is not None) == compile and model.logger.name_to_value["train/l2_loss"] > 0
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


@pytest.mark.parametrize("er_mode", ["loss", "step"])
def test_nan_in_the_features_says_the_same_eager_and_compiled(er_mode: str) -> None:
    message = (
        "PPO_L2ER stopped at 64 timesteps, update 0: effective_rank: features contain NaN or infinity. The parameters"
    )
    for compile in (False, True):
        model = collect(make(compile, er_coef=1e-3, er_mode=er_mode, er_interval=1, batch_size=32))
        with th.no_grad():
            model.policy.get_parameter("mlp_extractor.value_net.0.weight")[0, 0] = np.nan
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        with pytest.raises(FloatingPointError, match=message):
            model.train()
        model._rollout_ranks = lambda: {}  # type: ignore[method-assign]  # which looked first
        with pytest.raises(FloatingPointError, match=message):
            model.train()
        assert (model._compiled is not None) == compile
        for name, value in model.policy.state_dict().items():
            th.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


class BatchNormExtractor(FlattenExtractor):
    def __init__(self, observation_space: gym.Space[Any]) -> None:
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        normed: th.Tensor = self.norm(super().forward(observations))
        return normed


@pytest.mark.parametrize(
    "policy_kwargs, reason",
    [
        (dict(optimizer_class=th.optim.SGD), "its optimizer is SGD, not Adam or AdamW"),
        (dict(optimizer_kwargs=dict(amsgrad=True)), "its optimizer has amsgrad=True"),
        (dict(features_extractor_class=BatchNormExtractor), "it has a BatchNorm1d layer"),
    ],
)
def test_falls_back_with_one_warning(policy_kwargs: dict[str, Any], reason: str) -> None:
    model = make(True, batch_size=64, policy_kwargs=dict(net_arch=[8]) | policy_kwargs)
    with pytest.warns(UserWarning, match=f"compile=True.*runs uncompiled, because {reason}") as caught:
        model.learn(192)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert model.compile is True


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", nothing)
    model = make(True, batch_size=64)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        model.learn(64)


@pytest.mark.parametrize(
    "owner, name",
    [
        ("torch._inductor", "compile"),
        ("torch._inductor.cpp_builder", "get_cpp_compiler"),
        ("torch._inductor.exc", "InvalidCxxCompiler"),
    ],
)
def test_a_torch_that_moved_a_private_name_warns_once_and_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, owner: str, name: str
) -> None:
    monkeypatch.delattr(f"{owner}.{name}")
    eager = make(False, batch_size=64).learn(128)
    model = make(True, batch_size=64)
    with pytest.warns(UserWarning, match=f"uncompiled, because PyTorch .* lacks what it needs .*{name}") as caught:
        model.learn(128)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert_close(eager, model, rtol=0, atol=0)


@pytest.mark.parametrize("kinds", ["_MODULE_HOOKS", "_TENSOR_HOOKS", "_STEP_HOOKS"])
def test_a_torch_that_moved_its_hooks_warns_once_and_runs_eagerly(monkeypatch: pytest.MonkeyPatch, kinds: str) -> None:
    monkeypatch.setattr(compilable, kinds, ("_hooks_as_they_were_called",))
    monkeypatch.setattr(acting, "_HOOKS", ("_hooks_as_they_were_called",))
    eager = make(False, batch_size=64).learn(128)
    model = make(True, batch_size=64)
    words = r"uncompiled, because PyTorch .* lacks what tells of hooks \(_hooks_as_they_were_called\)"
    with pytest.warns(UserWarning, match=words) as caught:
        model.learn(128)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert_close(eager, model, rtol=0, atol=0)


def test_a_torch_that_renamed_an_option_warns_once_and_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPTIONS", {**module.OPTIONS, "an_option_as_it_was_called": True})
    eager = make(False, batch_size=64).learn(128)
    model = make(True, batch_size=64)
    with pytest.warns(UserWarning, match="uncompiled, because .*an_option_as_it_was_called") as caught:
        model.learn(128)
    assert sum("uncompiled" in str(warning.message) for warning in caught) == 1
    assert_close(eager, model, rtol=0, atol=0)


def test_a_torch_without_make_fx_still_imports_and_trains() -> None:
    code = """
import sys, warnings
import torch._inductor.compile_fx  # PyTorch itself needs what we pretend is gone
import torch.fx.experimental.proxy_tensor as module
del module.make_fx, module.get_proxy_mode
from sb3_plasticity import PPO_L2ER
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="compile=True.*lacks what it needs .*make_fx")
PPO_L2ER("MlpPolicy", "Pendulum-v1", n_steps=64, compile=True, device="cpu").learn(64)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("er_mode", ["loss", "step"])
def test_a_failing_compilation_falls_back_before_anything_is_updated(
    monkeypatch: pytest.MonkeyPatch, er_mode: str
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the compiler is broken\nand says so at length")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    model, eager = (collect(make(flag, batch_size=64, er_mode=er_mode)) for flag in (True, False))
    np.random.seed(1)  # noqa: NPY002
    with pytest.warns(UserWarning, match="because RuntimeError: the compiler is broken$"):
        model.train()
    np.random.seed(1)  # noqa: NPY002
    eager.train()
    assert_close(eager, model, rtol=0, atol=0)
    assert all(isinstance(value, float | int | np.floating) for value in model.logger.name_to_value.values())


def test_an_optimizer_that_is_ahead_for_some_parameters() -> None:
    """As it is after a reset of others: Adam's bias correction is each parameter's own."""
    eager, compiled = pair = tuple(collect(make(flag, batch_size=64, n_epochs=3)) for flag in (False, True))
    for agent in pair:
        bias = agent.policy.get_parameter("action_net.bias")
        state = agent.policy.optimizer.state[bias]
        state["step"] = th.tensor(3.0)
        state["exp_avg"], state["exp_avg_sq"] = (th.full_like(bias, x) for x in (0.1, 0.02))
    train_both(pair)
    assert compiled._compiled is not None and len(compiled._compiled._programs) >= 1
    assert_close(eager, compiled, rtol=1e-5, atol=2e-7)
    steps = {name: float(compiled.policy.optimizer.state[p]["step"]) for name, p in compiled.policy.named_parameters()}
    assert steps.pop("action_net.bias") == 6 and set(steps.values()) == {3.0}
