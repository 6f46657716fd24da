"""An agent's loss, outputs and Fisher information, against the algorithms' own logs, autograd and KL divergences."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
)
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.distributions import kl_divergence

from sb3_plasticity import PPO_L2ER, ggn_spectrum, hessian_spectrum
from sb3_plasticity.agents import objectives_of
from sb3_plasticity.agents.distributions import distribution_fisher, distribution_outputs
from sb3_plasticity.agents.problems import CurvatureProblem, curvature_problem
from sb3_plasticity.common.rollout import concatenate_samples, is_recurrent, last_samples, rollout_samples, spread_rows

SMALL: dict[str, Any] = dict(n_steps=32, seed=0, device="cpu")
TINY: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[6]))


def collected(algorithm: type[OnPolicyAlgorithm], policy: str, env: Any, **arguments: Any) -> OnPolicyAlgorithm:
    """An agent with a full rollout buffer that it has not trained on."""
    model = algorithm(policy, env, **(SMALL | arguments))
    train, model.train = model.train, lambda: None  # type: ignore[method-assign]
    model.learn(model.n_steps)
    model.train = train  # type: ignore[method-assign]
    return model


def problem_of(
    model: OnPolicyAlgorithm, samples: Any, network: str, state: dict[str, th.Tensor] | None = None
) -> CurvatureProblem:
    return curvature_problem(model.policy, objectives_of(model)[network], samples, state)


def in_float64(model: OnPolicyAlgorithm) -> None:
    """SB3 casts observations to float32; the features go on in float64."""
    model.policy.double()
    model.policy.features_extractor.register_forward_hook(lambda _module, _inputs, features: features.double())


class MaskedEnv(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 4).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return observation, float(observation[0]), self.steps == 10, False, {}

    def action_masks(self) -> np.ndarray:
        space: Any = self.action_space
        size = space.n if isinstance(space, spaces.Discrete) else space.nvec.sum()
        mask = np.ones(size, dtype=bool)
        mask[self.steps % 2] = False
        return mask


class TestFisher:
    """The Fisher information is the Hessian of KL(p_theta' || p_theta) in theta at theta' = theta."""

    @staticmethod
    def hessian_of_kl(divergence: Callable[..., Any], outputs: th.Tensor) -> th.Tensor:
        blocks = [
            th.autograd.functional.hessian(lambda row, n=n: divergence(row, outputs[n]), outputs[n])
            for n in range(len(outputs))
        ]
        return th.stack(blocks)

    @staticmethod
    def dense(fisher: th.Tensor) -> th.Tensor:
        return th.diag_embed(fisher) if fisher.ndim == 2 else fisher

    @pytest.mark.parametrize("kind", [DiagGaussianDistribution, SquashedDiagGaussianDistribution])
    def test_gaussian(self, kind: type[DiagGaussianDistribution] | type[SquashedDiagGaussianDistribution]) -> None:
        th.manual_seed(0)
        mean, log_std = th.randn(5, 3, dtype=th.float64), th.randn(3, dtype=th.float64) * 0.3
        distribution = kind(3).proba_distribution(mean, log_std)
        outputs = distribution_outputs(distribution)
        th.testing.assert_close(outputs, th.cat([mean, log_std.expand(5, 3)], 1))

        def divergence(row: th.Tensor, at: th.Tensor) -> th.Tensor:
            old, new = (th.distributions.Normal(x[:3], x[3:].exp()) for x in (at, row))
            return kl_divergence(old, new).sum()

        th.testing.assert_close(self.dense(distribution_fisher(distribution)), self.hessian_of_kl(divergence, outputs))

    @pytest.mark.parametrize("sizes", [[4], [3, 2]])
    def test_categorical(self, sizes: list[int]) -> None:
        th.manual_seed(0)
        logits = th.randn(5, sum(sizes), dtype=th.float64)
        distribution = CategoricalDistribution(4) if len(sizes) == 1 else MultiCategoricalDistribution(sizes)
        distribution = distribution.proba_distribution(logits)

        def divergence(row: th.Tensor, at: th.Tensor) -> th.Tensor:
            pairs = zip(at.split(sizes), row.split(sizes), strict=True)
            parts = (kl_divergence(*(th.distributions.Categorical(logits=x) for x in pair)) for pair in pairs)
            return sum(parts, th.zeros((), dtype=row.dtype))

        outputs = distribution_outputs(distribution)
        th.testing.assert_close(self.dense(distribution_fisher(distribution)), self.hessian_of_kl(divergence, outputs))

    def test_bernoulli(self) -> None:
        th.manual_seed(0)
        distribution = BernoulliDistribution(3).proba_distribution(th.randn(5, 3, dtype=th.float64))

        def divergence(row: th.Tensor, at: th.Tensor) -> th.Tensor:
            return kl_divergence(*(th.distributions.Bernoulli(logits=x) for x in (at, row))).sum()

        outputs = distribution_outputs(distribution)
        th.testing.assert_close(self.dense(distribution_fisher(distribution)), self.hessian_of_kl(divergence, outputs))


def dense_hessian(function: Callable[..., Any], params: dict[str, th.Tensor]) -> th.Tensor:
    """Hessian of a scalar function of named tensors, by autograd, as one matrix."""
    names, sizes = list(params), [p.numel() for p in params.values()]

    def of_vector(vector: th.Tensor) -> th.Tensor:
        pieces = [piece.view(params[name].shape) for name, piece in zip(names, vector.split(sizes), strict=True)]
        result: th.Tensor = function(dict(zip(names, pieces, strict=True)))
        return result

    vector = th.cat([p.reshape(-1) for p in params.values()])
    result: th.Tensor = th.autograd.functional.hessian(of_vector, vector)
    return result


ACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gaussian": ("Pendulum-v1", {}),
    "gsde": ("Pendulum-v1", dict(use_sde=True)),
    "gsde-squashed": ("Pendulum-v1", dict(use_sde=True, policy_kwargs=dict(net_arch=[6], squash_output=True))),
    "categorical": ("CartPole-v1", {}),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_the_policys_ggn_is_the_hessian_of_the_mean_kl_divergence(name: str) -> None:
    env, arguments = ACTIONS[name]
    model = collected(PPO, "MlpPolicy", env, **(TINY | arguments))
    in_float64(model)
    samples = rollout_samples(model.rollout_buffer, np.arange(12))
    problem = problem_of(model, samples, "policy")
    before = problem.output_fn(problem.params, samples).detach()

    def mean_kl(params: dict[str, th.Tensor]) -> th.Tensor:
        now = problem.output_fn(params, samples)
        if name == "categorical":
            return kl_divergence(*(th.distributions.Categorical(logits=x) for x in (before, now))).mean()
        half = before.shape[1] // 2
        pair = (th.distributions.Normal(x[:, :half], x[:, half:].exp()) for x in (before, now))
        return kl_divergence(*pair).sum(1).mean()

    expected = np.linalg.eigvalsh(dense_hessian(mean_kl, problem.params).numpy())
    spectrum = ggn_spectrum(problem.output_fn, problem.params, samples, problem.output_hessian)
    assert spectrum.dim == len(expected)
    nonzero = spectrum.nodes[spectrum.nodes > 1e-9 * expected[-1]]
    np.testing.assert_allclose(np.sort(nonzero), expected[-len(nonzero) :], rtol=1e-5, atol=1e-9 * expected[-1])
    assert np.all(np.abs(expected[: -len(nonzero)]) < 1e-7 * expected[-1])


def test_the_values_ggn_is_that_of_the_mean_squared_error() -> None:
    model = collected(PPO, "MlpPolicy", "Pendulum-v1", **TINY)
    in_float64(model)
    samples = rollout_samples(model.rollout_buffer, np.arange(12))
    problem = problem_of(model, samples, "value")
    jacobian = th.autograd.functional.jacobian(
        lambda vector: problem.output_fn(
            dict(
                zip(
                    problem.params,
                    (
                        v.view(p.shape)
                        for v, p in zip(
                            vector.split([p.numel() for p in problem.params.values()]),
                            problem.params.values(),
                            strict=True,
                        )
                    ),
                    strict=True,
                )
            ),
            samples,
        )[:, 0],
        th.cat([p.reshape(-1) for p in problem.params.values()]),
    )
    expected = np.linalg.eigvalsh((2 * jacobian @ jacobian.T / 12).numpy())
    spectrum = ggn_spectrum(problem.output_fn, problem.params, samples, problem.output_hessian)
    largest = expected[-1]
    np.testing.assert_allclose(
        np.sort(spectrum.nodes[0])[-12:][expected > 1e-9 * largest], expected[expected > 1e-9 * largest], rtol=1e-6
    )


@pytest.mark.parametrize("network", ["policy", "value", "joint"])
def test_hessian_spectrum_of_an_agent(network: str) -> None:
    model = collected(PPO, "MlpPolicy", "Pendulum-v1", ent_coef=0.01, policy_kwargs=dict(net_arch=[3]))
    in_float64(model)
    samples = rollout_samples(model.rollout_buffer)
    assert isinstance(samples, RolloutBufferSamples)
    samples = RolloutBufferSamples(*(field.double() for field in samples))
    problem = problem_of(model, samples, network)
    expected = np.linalg.eigvalsh(dense_hessian(lambda p: problem.loss_fn(p, samples), problem.params).numpy())
    spectrum = hessian_spectrum(problem.loss_fn, problem.params, samples, steps=200)
    assert spectrum.dim == len(expected) == {"policy": 17, "value": 16, "joint": 33}[network]
    assert spectrum.largest == pytest.approx(expected[-1], rel=1e-6)
    assert spectrum.smallest == pytest.approx(expected[0], rel=1e-6, abs=1e-9 * expected[-1])


class TestLoss:
    """An objective's loss against what the algorithms log when they train on the rollout in one piece."""

    def loss(self, model: OnPolicyAlgorithm) -> float:
        samples = rollout_samples(model.rollout_buffer)
        problem = problem_of(model, samples, "joint")
        return problem.loss_fn(problem.params, samples).item()

    @pytest.mark.parametrize("algorithm", [PPO, PPO_L2ER])
    def test_ppo(self, algorithm: type[PPO]) -> None:
        extra = dict(er_coef=0.0, l2_coef=0.0) if algorithm is PPO_L2ER else {}
        model = collected(
            algorithm, "MlpPolicy", "Pendulum-v1", batch_size=32, n_epochs=1, ent_coef=0.02, clip_range_vf=0.2, **extra
        )
        expected = self.loss(model)
        model.train()
        assert model.logger.name_to_value["train/loss"] == pytest.approx(expected, rel=1e-5)

    def test_maskable_ppo(self) -> None:
        model = collected(MaskablePPO, "MlpPolicy", MaskedEnv(spaces.Discrete(4)), batch_size=32, n_epochs=1)
        expected = self.loss(model)
        model.train()
        assert model.logger.name_to_value["train/loss"] == pytest.approx(expected, rel=1e-5)

    def test_a2c(self) -> None:
        model = collected(A2C, "MlpPolicy", "Pendulum-v1", ent_coef=0.02, normalize_advantage=True)
        expected = self.loss(model)
        model.train()
        log = model.logger.name_to_value
        total = log["train/policy_loss"] + 0.02 * log["train/entropy_loss"] + model.vf_coef * log["train/value_loss"]
        assert total == pytest.approx(expected, rel=1e-5)

    def test_trpo(self) -> None:
        model = collected(TRPO, "MlpPolicy", "Pendulum-v1", batch_size=32, n_critic_updates=1, learning_rate=0.0)
        expected = self.loss(model)
        model.train()
        # Standardised advantages have mean 0 and the ratio is 1 before the step: only the value's loss remains.
        assert model.logger.name_to_value["train/value_loss"] == pytest.approx(expected, rel=1e-4)

    def test_unknown_algorithm(self) -> None:
        class Other:
            pass

        with pytest.raises(TypeError, match="`model` must be an algorithm whose objectives are known, got a Other"):
            objectives_of(Other())


def image_env() -> FakeImageEnv:
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)


LSTM: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[4], lstm_hidden_size=5))
AGENTS: dict[str, tuple[type[OnPolicyAlgorithm], str, Any, dict[str, Any]]] = {
    "ppo_l2er": (PPO_L2ER, "MlpPolicy", "Pendulum-v1", TINY),
    "a2c": (A2C, "MlpPolicy", "CartPole-v1", TINY),
    "trpo": (TRPO, "MlpPolicy", "Pendulum-v1", TINY),
    "maskable": (MaskablePPO, "MlpPolicy", lambda: MaskedEnv(spaces.Discrete(4)), TINY),
    "maskable-multi": (MaskablePPO, "MlpPolicy", lambda: MaskedEnv(spaces.MultiDiscrete([3, 2])), TINY),
    "recurrent": (RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", LSTM),
    "recurrent-shared": (
        RecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        dict(policy_kwargs=dict(net_arch=[4], lstm_hidden_size=5, shared_lstm=True, enable_critic_lstm=False)),
    ),
    "multidiscrete": (PPO, "MlpPolicy", lambda: MaskedEnv(spaces.MultiDiscrete([3, 2])), TINY),
    "multibinary": (PPO, "MlpPolicy", lambda: MaskedEnv(spaces.MultiBinary(3)), TINY),
    "cnn-shared": (
        PPO,
        "CnnPolicy",
        image_env,
        dict(policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=8))),
    ),
    "dict-separate": (
        PPO,
        "MultiInputPolicy",
        lambda: SimpleMultiObsEnv(random_start=False),
        dict(
            policy_kwargs=dict(
                share_features_extractor=False, net_arch=[4], features_extractor_kwargs=dict(cnn_output_dim=4)
            )
        ),
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_poses_a_problem(name: str) -> None:
    """The GGN's trace is the sum over samples and outputs of squared gradients: autograd is the oracle."""
    algorithm, policy, env, arguments = AGENTS[name]
    model = collected(algorithm, policy, env() if callable(env) else env, **arguments)
    live = [(id(parameter), parameter.clone()) for parameter in model.policy.parameters()]
    recurrent = is_recurrent(model.rollout_buffer)
    rows = spread_rows(np.ones((32, 1), dtype=bool), 8, 4 if recurrent else None)
    samples = rollout_samples(model.rollout_buffer, rows)
    for network in ("policy", "value"):
        problem = problem_of(model, samples, network)
        loss = problem.loss_fn(problem.params, samples)
        assert loss.ndim == 0 and th.isfinite(loss)
        leaves = {key: value.clone().requires_grad_() for key, value in problem.params.items()}
        outputs = problem.output_fn(leaves, samples)
        hessian = problem.output_hessian
        hessian = th.diag_embed(hessian) if hessian.ndim == 2 else hessian
        assert outputs.shape == hessian.shape[:2] == (8, outputs.shape[1])
        trace = 0.0
        for n in range(8):
            rows_of_jacobian = th.stack(
                [
                    th.cat(
                        [
                            g.reshape(-1)
                            for g in th.autograd.grad(
                                output, list(leaves.values()), retain_graph=True, materialize_grads=True
                            )
                        ]
                    )
                    for output in outputs[n]
                ]
            )
            trace += ((rows_of_jacobian @ rows_of_jacobian.T) * hessian[n]).sum().item() / 8
        spectrum = ggn_spectrum(problem.output_fn, problem.params, samples, problem.output_hessian)
        assert spectrum.trace == pytest.approx(trace, rel=1e-3)
        curvature = hessian_spectrum(problem.loss_fn, problem.params, samples, steps=5)
        assert np.isfinite(curvature.nodes).all() and curvature.dim == spectrum.dim
    for (identity, value), parameter in zip(live, model.policy.parameters(), strict=True):
        assert id(parameter) == identity and th.equal(parameter, value) and parameter.grad is None


def test_parameters_of_shared_and_separate_networks() -> None:
    separate = collected(PPO, "MlpPolicy", "Pendulum-v1", **TINY)
    names = {
        network: set(problem_of(separate, rollout_samples(separate.rollout_buffer), network).params)
        for network in ("policy", "value", "joint")
    }
    assert "log_std" in names["policy"] and not names["policy"] & names["value"]
    assert (
        names["joint"] == names["policy"] | names["value"] == {name for name, _ in separate.policy.named_parameters()}
    )
    shared = collected(PPO, "CnnPolicy", image_env())
    samples = rollout_samples(shared.rollout_buffer, np.arange(4))
    common = set(problem_of(shared, samples, "policy").params) & set(problem_of(shared, samples, "value").params)
    assert common == {name for name, _ in shared.policy.named_parameters() if name.startswith("features_extractor.")}


def test_kept_weights_start_their_update_anew() -> None:
    """Under weights kept aside, old values and log probabilities are those weights' own."""
    model = collected(PPO, "MlpPolicy", "Pendulum-v1", **TINY)
    kept = {name: value.clone() for name, value in model.policy.state_dict().items()}
    before = problem_of(model, rollout_samples(model.rollout_buffer), "joint")
    expected = before.loss_fn(before.params, before.samples).item()
    model.train()
    samples = rollout_samples(model.rollout_buffer, np.arange(32))
    moved = samples._replace(old_values=samples.old_values + 1, old_log_prob=samples.old_log_prob + 1)
    problem = problem_of(model, moved, "joint", kept)
    assert problem.loss_fn(problem.params, problem.samples).item() == pytest.approx(expected, rel=1e-5)
    assert all(th.equal(problem.params[name], kept[name]) for name in problem.params)


class TestRows:
    def test_order_is_the_flattened_buffers(self) -> None:
        buffer = collected(PPO, "MlpPolicy", "Pendulum-v1").rollout_buffer
        before = rollout_samples(buffer, np.array([3, 7, 31]))
        for _ in buffer.get(8):  # flattens in place
            pass
        after = rollout_samples(buffer, np.array([3, 7, 31]))
        assert isinstance(before, RolloutBufferSamples) and isinstance(after, RolloutBufferSamples)
        assert all(th.equal(x, y) for x, y in zip(before, after, strict=True))

    def test_spread_rows(self) -> None:
        eligible = np.zeros((6, 2), dtype=bool)
        eligible[2:, 0] = eligible[:5, 1] = True  # rows 2-5 and 6-10
        assert spread_rows(eligible, 100).tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
        assert spread_rows(eligible, 3).tolist() == [2, 6, 10]
        assert spread_rows(eligible, 4, sequence_length=2).tolist() == [[2, 3], [8, 9]]
        assert spread_rows(eligible, 100, sequence_length=3).tolist() == [[3, 4, 5], [6, 7, 8]]
        assert spread_rows(~np.ones((6, 2), dtype=bool), 4).size == 0

    def test_recurrent_sequences_start_from_their_own_state(self) -> None:
        """Outputs of a window of a rollout equal those of the whole rollout, unrolled from its start."""
        model = collected(RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", **LSTM)
        buffer = model.rollout_buffer
        whole = rollout_samples(buffer, np.arange(32)[None])
        window = rollout_samples(buffer, np.arange(8, 16)[None])
        all_outputs, outputs = (
            (problem := problem_of(model, samples, "policy")).output_fn(problem.params, samples)
            for samples in (whole, window)
        )
        th.testing.assert_close(outputs, all_outputs[8:16], rtol=1e-5, atol=1e-6)

    def test_joining_and_cutting_recurrent_batches(self) -> None:
        model = collected(RecurrentPPO, "MlpLstmPolicy", "Pendulum-v1", **LSTM)
        rows = np.arange(32).reshape(4, 8)
        whole: Any = rollout_samples(model.rollout_buffer, rows)
        parts = [rollout_samples(model.rollout_buffer, rows[:1]), rollout_samples(model.rollout_buffer, rows[1:])]
        joined: Any = concatenate_samples(parts)
        end: Any = last_samples(whole, 17)
        assert th.equal(joined.lstm_states.pi[0], whole.lstm_states.pi[0])
        assert th.equal(joined.observations, whole.observations)
        assert end.lstm_states.vf[1].shape[1] == 2 and len(end.advantages) == 16
        assert th.equal(end.lstm_states.pi[1], whole.lstm_states.pi[1][:, 2:])
        assert th.equal(end.observations, whole.observations[16:])
