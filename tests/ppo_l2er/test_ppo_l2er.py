"""PPO_L2ER's own arguments, objective, logs and persistence."""

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnvBox, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

import sb3_plasticity.ppo_l2er.update as module
from sb3_plasticity import PPO_L2ER
from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.rollout import rollout_samples

SMALL: dict[str, Any] = dict(n_steps=64, batch_size=16, n_epochs=2, seed=3, device="cpu")
RELU = dict(net_arch=[12, 12], activation_fn=nn.ReLU)


def parameters(model: PPO) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.named_parameters()}


def collected(**arguments: Any) -> PPO_L2ER:
    """A model with a full rollout buffer, one train() away from its first update."""
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", **(SMALL | arguments))
    train, model.train = model.train, lambda: None  # type: ignore[method-assign]
    model.learn(model.n_steps)
    model.train = train  # type: ignore[method-assign]
    return model


def hidden_features(
    model: PPO_L2ER, observations: th.Tensor
) -> tuple[dict[str, th.Tensor], dict[str, list[th.Tensor]]]:
    """Both networks' hidden features, layer by layer, from the weights alone."""
    weights = {name: value.detach().double() for name, value in model.policy.named_parameters()}
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    features: dict[str, list[th.Tensor]] = {}
    for network in ("policy", "value"):
        a, features[network] = observations, []
        for layer in (0, 2):
            name = f"mlp_extractor.{network}_net.{layer}"
            a = (a @ weights[name + ".weight"].T + weights[name + ".bias"]).clamp(min=0)
            features[network].append(a)
    return weights, features


def svd_entropy(features: th.Tensor, power: int) -> th.Tensor:
    spectrum = th.linalg.svdvals(features) ** power
    share = spectrum / spectrum.sum()
    share = share[share > 1e-14]
    return th.exp(-(share * share.log()).sum())


@pytest.mark.parametrize("rank_of, power", [("covariance", 2), ("features", 1)])
def test_step_mode_is_one_gradient_step_on_the_rank_of_the_rollout(rank_of: str, power: int) -> None:
    er_coef = 0.05
    model = collected(
        er_mode="step", er_coef=er_coef, l2_coef=0.0, rank_of=rank_of, learning_rate=0.0, n_epochs=1, policy_kwargs=RELU
    )
    observations = rollout_samples(model.rollout_buffer).observations.double()
    weights, features = hidden_features(model, observations)
    ranks = {network: th.stack([svd_entropy(a, power) for a in layers]).mean() for network, layers in features.items()}
    gradients = th.autograd.grad(ranks["policy"] + ranks["value"], list(weights.values()), allow_unused=True)

    model.train()  # learning rate 0: the minibatches change nothing

    after = parameters(model)
    for (name, before), gradient in zip(weights.items(), gradients, strict=True):
        expected = before if gradient is None else before + er_coef * gradient
        th.testing.assert_close(after[name].double(), expected.detach(), rtol=0, atol=2e-7)
    assert max(gradient.abs().max().item() for gradient in gradients if gradient is not None) > 1e-2
    logged = model.logger.name_to_value
    for network, rank in ranks.items():
        assert logged[f"train/erank_{network}"] == pytest.approx(rank.item(), rel=1e-5)
    assert logged["train/er_loss"] == pytest.approx(-(ranks["policy"] + ranks["value"]).item(), rel=1e-5)


@pytest.mark.parametrize(
    "er_aggregate, er_interval, er_batch_size", [("mean", 1, None), ("sum", 4, None), ("mean", 2, 64)]
)
def test_loss_mode_adds_the_rank_to_the_gradient(
    er_aggregate: str, er_interval: int, er_batch_size: int | None
) -> None:
    """SGD on a single minibatch: plain PPO's parameters plus lr * er_interval * er_coef * d erank / d theta."""
    lr, er_coef = 0.5, 0.1
    arguments: dict[str, Any] = dict(
        l2_coef=0.0,
        er_aggregate=er_aggregate,
        er_interval=er_interval,
        er_batch_size=er_batch_size,  # all rows: the same features, in another order
        learning_rate=lr,
        n_epochs=1,
        batch_size=64,
        vf_coef=1e-4,  # Pendulum's returns are in the thousands
        max_grad_norm=1e9,
        policy_kwargs=RELU | dict(optimizer_class=th.optim.SGD),
    )
    plain, ours = collected(er_coef=0.0, **arguments), collected(er_coef=er_coef, **arguments)
    weights, features = hidden_features(ours, rollout_samples(ours.rollout_buffer).observations.double())
    if er_aggregate == "mean":
        total = th.stack([svd_entropy(a, 2) / 2 for layers in features.values() for a in layers]).sum()
    else:  # erank(A^T A + B^T B): the singular values of A stacked on B, squared
        total = th.stack([svd_entropy(th.cat(layers), 2) for layers in features.values()]).sum()
    gradients = th.autograd.grad(total, list(weights.values()), allow_unused=True)

    plain.train()
    ours.train()

    expected, actual = parameters(plain), parameters(ours)
    for name, gradient in zip(weights, gradients, strict=True):
        shift = 0 if gradient is None else lr * er_interval * er_coef * gradient
        th.testing.assert_close(
            actual[name].double() - expected[name].double(), shift + th.zeros_like(weights[name]), rtol=0, atol=5e-6
        )


@pytest.mark.parametrize("optimizer", [th.optim.SGD, th.optim.Adam])
def test_l2_is_coupled_weight_decay(optimizer: type[th.optim.SGD] | type[th.optim.Adam]) -> None:
    """Stock PPO whose optimizer has weight decay wd is the oracle for l2_coef = wd / 2."""
    wd = 0.02
    common: dict[str, Any] = SMALL | dict(
        learning_rate=1e-2, vf_coef=1e-4, max_grad_norm=1e9, policy_kwargs=dict(optimizer_class=optimizer)
    )
    stock_kwargs = dict(optimizer_class=optimizer, optimizer_kwargs=dict(weight_decay=wd))
    stock = PPO("MlpPolicy", "Pendulum-v1", **(common | dict(policy_kwargs=stock_kwargs))).learn(128)
    if optimizer is th.optim.Adam:  # SB3's own eps, which explicit optimizer_kwargs displace
        common = common | dict(policy_kwargs=dict(optimizer_class=optimizer, optimizer_kwargs=dict(eps=1e-8)))
    ours = PPO_L2ER("MlpPolicy", "Pendulum-v1", er_coef=0.0, l2_coef=wd / 2, **common).learn(128)
    plain = PPO("MlpPolicy", "Pendulum-v1", **common).learn(128)
    for name, expected in parameters(stock).items():
        th.testing.assert_close(parameters(ours)[name], expected, rtol=1e-4, atol=1e-6)
    assert any(
        not th.allclose(parameters(plain)[name], parameters(stock)[name], atol=1e-4) for name in parameters(stock)
    )


def test_l2_log_std_leaves_the_log_std_out() -> None:
    common: dict[str, Any] = dict(
        er_coef=0.0,
        l2_coef=0.1,
        n_epochs=1,
        batch_size=64,
        learning_rate=0.5,
        max_grad_norm=1e9,
        policy_kwargs=dict(optimizer_class=th.optim.SGD, log_std_init=-2.0),
    )
    included, left_out, alone = (collected(l2_log_std=choice, **common) for choice in (True, False, "only"))
    none = collected(**{**common, "l2_coef": 0.0})
    for model in (included, left_out, alone, none):
        model.train()
    first, second, third, plain = map(parameters, (included, left_out, alone, none))
    # lr * 2 * l2_coef * theta = 0.5 * 2 * 0.1 * (-2): decay moves log_std up by 0.2
    assert (first["log_std"] - second["log_std"]).item() == pytest.approx(0.2, abs=1e-6)
    assert (third["log_std"] - plain["log_std"]).item() == pytest.approx(0.2, abs=1e-6)
    for name in first.keys() - {"log_std"}:
        th.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-5)
        th.testing.assert_close(third[name], plain[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("choice", "env", "message"),
    [
        ("all", "Pendulum-v1", "`l2_log_std` must be one of True, False, 'only', got 'all'"),
        ("only", "CartPole-v1", "`l2_log_std` must be True or False for a policy without log standard deviation"),
    ],
)
def test_l2_log_std_that_cannot_be(choice: str, env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO_L2ER("MlpPolicy", env, l2_log_std=choice)


@pytest.mark.parametrize("er_interval, minibatches", [(1, 4), (2, 4), (3, 4), (8, 4), (5, 3)])
def test_er_interval_counts_across_epochs(monkeypatch: pytest.MonkeyPatch, er_interval: int, minibatches: int) -> None:
    """er_interval epochs: a whole number of periods, whatever divides what."""
    model = PPO_L2ER(
        "MlpPolicy",
        "Pendulum-v1",
        n_steps=16 * minibatches,
        batch_size=16,
        n_epochs=er_interval,
        er_coef=0.5,
        er_interval=er_interval,
    )
    seen: list[str] = []
    original = model._rank.feature_penalty

    def spy(network: Network, features: Mapping[str, th.Tensor]) -> th.Tensor:
        seen.append(network.name)
        return original(network, features)

    monkeypatch.setattr(model._rank, "feature_penalty", spy)
    monkeypatch.setattr(model, "_rollout_ranks", dict)
    model.learn(model.n_steps)
    assert seen == ["value", "policy"] * minibatches or seen == ["policy", "value"] * minibatches
    assert model._n_minibatches == minibatches * er_interval


def test_er_batch_size_ranks_rows_of_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", er_batch_size=48, er_coef=0.01, er_interval=2, **SMALL)
    calls: list[int] = []
    original = module.policy_features

    def spy(*args: Any) -> Any:
        calls.append(len(args[1].actions))
        return original(*args)

    monkeypatch.setattr(module, "policy_features", spy)
    model.learn(64)
    # every second of 2 x 4 minibatches
    assert calls == [48] * 4
    assert -32 < model.logger.name_to_value["train/er_loss"] < -2


def test_schedules_of_the_coefficients() -> None:
    seen: list[float] = []

    def l2_coef(progress: float) -> float:
        seen.append(progress)
        return 1e-4 * progress

    model = PPO_L2ER(
        "MlpPolicy",
        "Pendulum-v1",
        er_coef=LinearSchedule(1e-2, 0.0, 1.0),
        l2_coef=l2_coef,
        **SMALL,
    )
    seen.clear()
    model.learn(256)
    assert seen == [0.75, 0.5, 0.25, 0.0]
    # At progress 0 both are 0: that last rollout logged no penalty.
    assert "train/erank_policy" in model.logger.name_to_value


def image_env() -> FakeImageEnv:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)


@pytest.mark.parametrize("er_mode", ["loss", "step"])
@pytest.mark.parametrize("rank_of", ["covariance", "features"])
@pytest.mark.parametrize(
    "env, extra",
    [
        (lambda: IdentityEnvBox(eps=0.1), {}),
        (lambda: gym.make("Pendulum-v1"), dict(use_sde=True)),
        (image_env, {}),
        (image_env, dict(policy_kwargs=dict(share_features_extractor=False))),
        (lambda: SimpleMultiObsEnv(random_start=False), {}),
    ],
    ids=["box", "gsde", "cnn-shared", "cnn-separate", "dict"],
)
def test_trains_saves_loads_and_continues(
    tmp_path: Path, er_mode: str, rank_of: str, env: Callable[..., Any], extra: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = (
        SMALL | dict(batch_size=32, er_mode=er_mode, rank_of=rank_of, er_coef=1e-3, l2_coef=1e-4) | extra
    )
    if er_mode == "loss":
        arguments |= dict(er_interval=3)
    model = PPO_L2ER(env(), **arguments).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = PPO_L2ER.load(tmp_path / "model.zip", env=env())
    for name, value in parameters(model).items():
        assert th.equal(parameters(loaded)[name], value)
    for name in ("er_mode", "er_interval", "er_batch_size", "l2_log_std", "rank_of", "er_aggregate", "preset"):
        assert getattr(loaded, name) == getattr(model, name)
    assert callable(loaded.er_coef) and callable(loaded.l2_coef)
    assert loaded.er_coef(0.3) == 1e-3 and loaded.l2_coef(0.3) == 1e-4
    assert loaded._n_minibatches == model._n_minibatches == 4
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128
    assert all(th.isfinite(value).all() for value in parameters(loaded).values())
    assert any(not th.equal(parameters(loaded)[name], value) for name, value in parameters(model).items())


def test_same_seed_same_parameters() -> None:
    first, second = (PPO_L2ER("MlpPolicy", "Pendulum-v1", er_coef=1e-2, **SMALL).learn(128) for _ in range(2))
    for name, value in parameters(first).items():
        assert th.equal(parameters(second)[name], value)


def test_loads_and_continues_a_stock_ppo(tmp_path: Path) -> None:
    stock = PPO("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    stock.save(tmp_path / "ppo.zip")
    loaded = PPO_L2ER.load(tmp_path / "ppo.zip", env=gym.make("Pendulum-v1"), er_coef=0.01)
    for name, value in parameters(stock).items():
        assert th.equal(parameters(loaded)[name], value)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128
    assert "train/er_loss" in loaded.logger.name_to_value


def test_replay_of_a_saved_model_is_exact(tmp_path: Path) -> None:
    model = PPO_L2ER("MlpPolicy", "Pendulum-v1", **SMALL).learn(64)
    model.save(tmp_path / "m")
    loaded = PPO_L2ER.load(tmp_path / "m")
    observation = np.array([[0.1, -0.9, 0.4]], dtype=np.float32)
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )


class TestOneArgumentForm:
    @pytest.mark.parametrize("form", [lambda env: PPO_L2ER(env, **SMALL), lambda env: PPO_L2ER(env=env, **SMALL)])
    @pytest.mark.parametrize(
        "env, policy",
        [
            (lambda: gym.make("Pendulum-v1"), "ActorCriticPolicy"),
            (lambda: "CartPole-v1", "ActorCriticPolicy"),
            (image_env, "ActorCriticCnnPolicy"),
            (lambda: SimpleMultiObsEnv(), "MultiInputActorCriticPolicy"),
        ],
    )
    def test_chooses_the_policy_by_the_observation_space(
        self, form: Callable[..., Any], env: Callable[..., Any], policy: str
    ) -> None:
        assert type(form(env())).__name__ in (policy, "PPO_L2ER")
        assert type(form(env()).policy).__name__ == policy

    @pytest.mark.parametrize("arguments", [(), ("MlpPolicy",), (None, None)])
    def test_needs_an_environment(self, arguments: tuple[str | None, ...]) -> None:
        with pytest.raises(ValueError, match=r"`env` must be.*PPO_L2ER\('SlipperyAnt-v0'\).*'MlpPolicy'.*got None"):
            PPO_L2ER(*arguments)

    def test_a_mistyped_id_names_the_nearest(self) -> None:
        with pytest.raises(gym.error.UnregisteredEnv, match="SlipperyAnt"):
            PPO_L2ER("SliperyAnt-v0")

    def test_signature_is_sb3s_first(self) -> None:
        ours, stock = inspect.signature(PPO_L2ER.__init__).parameters, inspect.signature(PPO.__init__).parameters
        assert list(ours)[: len(stock)] == list(stock)
        for name in list(stock)[3:]:
            assert ours[name].default == stock[name].default


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(er_coef=-1e-3), "`er_coef` must be a finite number >= 0 or a function of .* progress, got -0.001"),
        (dict(er_coef=float("nan")), "`er_coef` must be .* got nan"),
        (dict(er_coef="lin_1e-3"), "`er_coef` must be .* got 'lin_1e-3'"),
        (dict(l2_coef=float("inf")), "`l2_coef` must be .* got inf"),
        (dict(er_mode="los"), "`er_mode` must be one of 'loss', 'step', got 'los' \\(did you mean 'loss'"),
        (dict(rank_of="gram"), "`rank_of` must be one of 'covariance', 'features', got 'gram'"),
        (dict(er_aggregate="max"), "`er_aggregate` must be one of 'mean', 'sum', got 'max'"),
        (dict(er_interval=0), "`er_interval` must be a whole number >= 1, got 0"),
        (dict(er_interval=2.5), "`er_interval` must be a whole number >= 1, got 2.5"),
        (dict(er_batch_size=1), "`er_batch_size` must be a whole number >= 2, got 1"),
        (dict(er_batch_size=65), "`er_batch_size` must be at most n_steps \\* n_envs = 64, got 65"),
        (dict(er_batch_size=32, er_mode="step"), "`er_batch_size` must be None where er_mode='step'"),
        (dict(preset="paper"), "`preset` must be one of 'auto', None, got 'paper'"),
        (
            dict(er_aggregate="sum", policy_kwargs=dict(net_arch=[16, 8])),
            "`aggregate` must be 'mean' for hidden layers of different widths .*: 16.*: 8",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO_L2ER("MlpPolicy", "Pendulum-v1", **(SMALL | dict(er_coef=1e-3) | arguments))


class BadReward(gym.Wrapper[Any, Any, Any, Any]):
    """Pendulum with one bad reward, in the second rollout of 64 steps."""

    def __init__(self, value: float) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.value, self.count = value, 0

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        self.count += 1
        return observation, self.value if self.count == 70 else reward, *rest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_reported_and_never_written_over_good_weights(value: float) -> None:
    model = PPO_L2ER("MlpPolicy", BadReward(value), **(SMALL | dict(batch_size=64, n_epochs=1)))
    model.learn(64)
    before, optimizer = parameters(model), copy.deepcopy(model.policy.optimizer.state_dict())
    with pytest.raises(FloatingPointError, match="PPO_L2ER stopped at 128 timesteps, update 1: policy_loss is nan"):
        model.learn(64, reset_num_timesteps=False)
    assert all(th.equal(now, before[name]) for name, now in parameters(model).items())
    assert str(model.policy.optimizer.state_dict()) == str(optimizer)


def test_the_term_at_fault_is_named() -> None:
    model = collected(er_coef=1e-3, l2_coef=1e-4, er_interval=1)
    good = copy.deepcopy(model.rollout_buffer)
    before = parameters(model)

    model.rollout_buffer.returns[:] = np.inf
    with pytest.raises(FloatingPointError, match="stopped at 64 timesteps, update 0: value_loss is inf"):
        model.train()

    model.rollout_buffer = copy.deepcopy(good)
    model.policy.value_net.bias.register_hook(lambda gradient: gradient * th.nan)
    with pytest.raises(FloatingPointError, match=r"the gradient of .*value_net\.bias.* is not finite"):
        model.train()

    assert all(th.equal(value, before[name]) for name, value in parameters(model).items())
    model.rollout_buffer = good
    with th.no_grad():
        model.policy.get_parameter("mlp_extractor.value_net.0.weight")[0, 0] = th.nan
    with pytest.raises(FloatingPointError, match="effective_rank: features contain NaN or infinity"):
        model.train()


def test_usable_with_sb3s_helpers() -> None:
    model = PPO_L2ER("CartPole-v1", **SMALL).learn(64)
    env = model.get_env()
    assert env is not None
    mean, std = evaluate_policy(model, env, n_eval_episodes=2)
    assert float(np.asarray(mean)) >= 1 and float(np.asarray(std)) >= 0
