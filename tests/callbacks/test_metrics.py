"""Each metric's value by hand, and the list that they make."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_plasticity import Metric, PlasticityCallback
from sb3_plasticity.callbacks.metrics import (
    DEFAULT_METRICS,
    METRICS,
    LayerGradients,
    LayerParameters,
    LayerUnits,
    Outputs,
    Problem,
    Update,
    find_metrics,
    refit_loss,
)


def value(name: str, view: Any) -> Any:
    return METRICS[name].function(view)


def test_units() -> None:
    features = th.tensor([[0.0, 1.0, -0.995], [0.0, 3.0, -0.999]])
    relu, tanh, lstm = (LayerUnits(features, name, name == "") for name in ("relu", "tanh", ""))
    assert value("dead_units", relu).tolist() == [True, False, False]
    assert value("dead_units", tanh) is None and value("dead_units", lstm) is None
    assert value("saturated_units", tanh).tolist() == [False, True, True] and value("saturated_units", relu) is None
    assert value("dormant_units", relu).tolist() == [True, False, False]
    np.testing.assert_allclose(value("activation_spread", relu), [0, 1, 0.002], atol=1e-7)


def test_parameters() -> None:
    now = {"weight": th.tensor([[3.0, 4.0], [4.0, 3.0], [0.0, 0.0]]), "bias": th.tensor([0.0, 0.0, 12.0])}
    before = {name: th.zeros_like(tensor) for name, tensor in now.items()}
    layer = LayerParameters(now, {"start": before})
    assert value("weight_norm", layer) == pytest.approx(math.sqrt(25 + 25 + 144))
    assert value("weight_change_from_start", layer) == value("weight_norm", layer)
    assert value("weight_change", layer) is None and value("weight_change_from_task", layer) is None
    # The rows' cosine is 24/25; the row of zeros is orthogonal to both.
    assert value("weight_cosine", layer) == pytest.approx(2 * 24 / 25 / 6)
    assert value("largest_singular_value", layer) == pytest.approx(7)  # of [[3, 4], [4, 3]]
    assert value("weight_cosine", LayerParameters({"log_std": th.zeros(3)}, {})) is None


def test_gradients() -> None:
    values = {"weight": th.tensor([[3.0, -3.0], [0.01, 0.01], [0.0, 6.0]]), "bias": th.ones(3)}
    assert value("gradient_norm", LayerGradients(values, False)) == pytest.approx(math.sqrt(18 + 2e-4 + 36 + 3))
    # Mean magnitudes 3, .01 and 3, so scores 1.497, .005 and 1.497 against tau = .01.
    assert value("inactive_gradients", LayerGradients(values, True)).tolist() == [False, True, False]
    assert value("inactive_gradients", LayerGradients(values, False)) is None


def test_outputs() -> None:
    mean, log_std = th.tensor([[0.0, 1.0]]), th.tensor([0.0, math.log(3.0)])
    entropy = math.log(2 * math.pi * math.e) + math.log(3.0)
    for kind in (DiagGaussianDistribution, SquashedDiagGaussianDistribution):
        outputs = Outputs(mean, kind(2).proba_distribution(mean, log_std))
        assert value("entropy", outputs) == pytest.approx(entropy) and value("std", outputs) == pytest.approx(2)
    choice = CategoricalDistribution(4).proba_distribution(th.zeros(5, 4))
    assert value("entropy", Outputs(mean, choice)) == pytest.approx(math.log(4))
    assert value("std", Outputs(mean, choice)) is None and value("entropy", Outputs(mean, None)) is None


def test_updates() -> None:
    before, after = {"w": th.tensor([3.0, 4.0])}, {"w": th.tensor([3.0, 4.5])}
    outputs = th.zeros(2, 2), th.tensor([[1.0, -1.0], [0.0, 2.0]])
    update = Update(before, after, *outputs, n_steps=5)
    assert value("churn", update) == 1.0
    assert value("effective_learning_rate", update) == pytest.approx(0.5 / 5 / 5)
    assert value("effective_learning_rate", Update(before, after, *outputs, n_steps=None)) is None


class TestRefit:
    def problem(self, optimizer: Any = th.optim.SGD, scale: float = 1.0, **settings: Any) -> Problem:
        """A linear model of as many features as samples, which can fit anything."""
        inputs = scale * th.eye(4, dtype=th.float64)
        params = {"w": th.full((4, 1), 7.0, dtype=th.float64)}
        return Problem(params, lambda p, x: x @ p["w"], inputs, optimizer(list(params.values()), **settings))

    def test_gradient_descent_by_hand(self) -> None:
        """With x = I the error of each sample shrinks by 1 - 2 lr / N a step; the offset 7 is no burden."""
        noise = th.randn(4, 1, generator=th.Generator().manual_seed(20_230_213)).double()
        problem = self.problem(lr=0.1)
        assert refit_loss(problem, 3) == pytest.approx(float(noise.square().mean()) * (1 - 2 * 0.1 / 4) ** 6)
        assert problem.params["w"].tolist() == [[7.0]] * 4 and not problem.params["w"].requires_grad

    def test_the_agents_settings_count_and_not_its_state(self) -> None:
        problem = self.problem(th.optim.Adam, lr=0.5)
        assert problem.optimizer is not None
        problem.optimizer.state[problem.params["w"]] = {"step": th.tensor(5.0)}
        assert (loss := refit_loss(problem, 200)) is not None and loss < 1e-3
        assert refit_loss(self.problem(th.optim.AdamW, lr=1e-9), 50) == pytest.approx(refit_loss(self.problem(lr=0.0)))

    def test_a_network_that_sees_nothing_does_not_learn(self) -> None:
        blind = refit_loss(self.problem(scale=0.0, lr=0.1))
        assert blind == pytest.approx(refit_loss(self.problem(lr=0.0)))

    def test_beside_a_fresh_network(self) -> None:
        callback = PlasticityCallback(every=1, n_samples=32, metrics=("trainability",))
        PPO("MlpPolicy", "Pendulum-v1", n_steps=32, seed=0, policy_kwargs=dict(net_arch=[8])).learn(32, callback)
        assert set(callback.measures) == set(callback.control_measures) == {"policy/trainability", "value/trainability"}


class HandMade(BaseFeaturesExtractor):
    """Four units of which two never fire; the critics share it."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.layer = nn.Linear(3, 4)
        with th.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.copy_(th.tensor([1.0, 2.0, -1.0, -5.0]))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.relu(self.layer(observations))


def test_dormant_units_of_an_extractor_and_twin_critics() -> None:
    """By hand, layer by layer: what the twins share counts once, with the first."""

    class ByHand(PlasticityCallback):
        def _on_rollout_end(self) -> None:
            model: Any = self.model
            critic = model.critic
            with th.no_grad():
                for network, biases in zip(critic.q_networks, ([1.0, -1.0], [1.0, 1.0]), strict=True):
                    network[0].weight.zero_()
                    network[0].bias.copy_(th.tensor(biases))
            super()._on_rollout_end()

    kwargs = dict(net_arch=[2], features_extractor_class=HandMade, share_features_extractor=False)
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=100, policy_kwargs=kwargs, seed=0, buffer_size=50)
    callback = ByHand(every=1, n_samples=8, control=False)
    model.learn(8, callback)
    found = {key: callback.measures[key] for key in callback.measures if key.endswith("/dead_units")}
    assert found["critic_0/critic.features_extractor.layer/dead_units"] == 0.5
    assert found["critic_0/critic.qf0.0/dead_units"] == 0.5 and found["critic_1/critic.qf1.0/dead_units"] == 0
    assert found["critic_0/dead_units"] == 3 / 6 and found["critic_1/dead_units"] == 0
    assert found["actor/actor.features_extractor.layer/dead_units"] == 0.5
    assert not any("critic_1/critic.features_extractor" in key for key in found)
    assert callback.measures["critic_0/dormant_units"] == 3 / 6
    assert isinstance(model.action_space, spaces.Box)


class TestList:
    def test_reductions(self) -> None:
        layers = [np.array([True, False, False, False]), np.array([True])]

        def reduced(how: str, values: list[np.ndarray]) -> float:
            return Metric("m", "units", len, how).reduced(values)

        assert reduced("units", layers) == 2 / 5 and reduced("mean", layers) == (1 / 4 + 1) / 2
        numbers = [np.array(3.0), np.array(4.0)]
        assert reduced("norm", numbers) == 5 and reduced("max", numbers) == 4

    def test_by_name_and_tau(self) -> None:
        callback = PlasticityCallback(metrics=["weight_norm", Metric("mine", "outputs", lambda outputs: 0.5)])
        assert [metric.name for metric in callback.metrics] == ["weight_norm", "mine"]
        assert "trainability" in METRICS and "trainability" not in {metric.name for metric in DEFAULT_METRICS}

    @pytest.mark.parametrize(
        "metrics, message",
        [
            ("weight_norm", "`metrics` must be one or more metrics, in a tuple, got 'weight_norm'"),
            ((), "`metrics` must be one or more metrics"),
            (("wieght_norm",), r"got 'wieght_norm' \(did you mean 'weight_norm'\?\)"),
            ((3,), "`metrics` must be a Metric or the name of one, got 3"),
            (("churn", "churn"), "`metrics` must be metrics of different names, got 'churn'"),
        ],
    )
    def test_mistakes(self, metrics: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_metrics(metrics)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (dict(name="a/b"), "`name` must be a word"),
            (dict(of="unit"), "`of` must be one of 'units'.*did you mean 'units'"),
            (dict(reduce="sum"), "`reduce` must be one of 'mean', 'units', 'norm', 'max', got 'sum'"),
            (dict(function=3), "`function` must be callable, got 3"),
        ],
    )
    def test_mistakes_in_a_metric(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Metric(**{"name": "a", "of": "units", "function": len, **arguments})
