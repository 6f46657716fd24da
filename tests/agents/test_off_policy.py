"""Off-policy objectives against the algorithms' own logs, dense Hessians in float64 and a Monte Carlo Fisher."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algorithms import make_agent
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_plasticity import ggn_spectrum, hessian_spectrum
from sb3_plasticity.agents import networks_of, objectives_of, source_of
from sb3_plasticity.agents.distributions import distribution_fisher
from sb3_plasticity.agents.problems import curvature_problem
from sb3_plasticity.agents.samples import ReplaySamples, replay_samples

OFF_POLICY = ("SAC", "TD3", "DDPG", "TQC", "CrossQ", "DQN", "QRDQN")


def trained(name: str, steps: int = 40, **arguments: Any) -> Any:
    model = make_agent(name, **arguments)
    model.learn(steps)
    return model


def samples_of(model: BaseAlgorithm, count: int = 16) -> ReplaySamples:
    source = source_of(model)
    result: ReplaySamples = source.read([source.latest(count)])
    return result


@pytest.mark.parametrize("name", OFF_POLICY)
def test_the_loss_is_the_one_that_an_update_logs(name: str) -> None:
    """One update at learning rate 0 on the same transitions with the same noise."""
    plain: dict[str, Any] = dict(policy_kwargs=dict(batch_norm=False, net_arch=[8, 8])) if name == "CrossQ" else {}
    model = trained(name, **plain)
    samples = samples_of(model)
    replay = ReplayBufferSamples(*samples[:5])  # type: ignore[arg-type]  # observations are no dictionaries here
    model.replay_buffer.sample = lambda batch_size, env=None: replay
    model.lr_schedule = lambda _progress: 0.0
    model.policy_delay = 1
    shape = samples.actions.shape
    th.manual_seed(3)
    if name in ("TD3", "DDPG"):
        unit = th.empty(shape).normal_(0, 1)
        samples = samples._replace(next_noise=unit)
    elif name == "CrossQ":  # draws the next actions first
        following, present = (th.normal(th.zeros(shape), th.ones(shape)) for _ in range(2))
        samples = samples._replace(noise=present, next_noise=following)
    elif name in ("SAC", "TQC"):
        present, following = (th.normal(th.zeros(shape), th.ones(shape)) for _ in range(2))
        samples = samples._replace(noise=present, next_noise=following)
    losses = {}
    for network, objective in objectives_of(model).items():
        losses[network] = objective.loss(model.policy, objective.hold_fixed(model.policy, samples)).item()
    th.manual_seed(3)
    model.train(gradient_steps=1, batch_size=len(samples.actions))
    log = model.logger.name_to_value
    if name in ("DQN", "QRDQN"):
        assert losses["q"] == pytest.approx(log["train/loss"], rel=1e-5)
        return
    critics = sum(loss for network, loss in losses.items() if network.startswith("critic"))
    assert critics == pytest.approx(log["train/critic_loss"], rel=1e-5)
    assert losses["actor"] == pytest.approx(log["train/actor_loss"], rel=1e-5)


@pytest.mark.parametrize("name", OFF_POLICY)
def test_objectives_and_networks_have_the_same_names_and_parameters(name: str) -> None:
    model = trained(name)
    samples = samples_of(model)
    networks, objectives = networks_of(model), objectives_of(model)
    assert list(networks) == list(objectives)
    for network, objective in objectives.items():
        problem = curvature_problem(model.policy, objective, samples)
        assert set(problem.params) == set(networks[network].parameters)


def in_float64(model: SAC) -> None:
    """SB3 casts observations to float32; the features go on in float64."""
    model.policy.double()
    for part in model.policy.modules():
        if type(part).__name__ == "FlattenExtractor":
            part.register_forward_hook(lambda _module, _inputs, features: features.double())


def flat(params: dict[str, th.Tensor]) -> th.Tensor:
    return th.cat([value.reshape(-1) for value in params.values()])


def unflat(vector: th.Tensor, params: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    pieces = vector.split([value.numel() for value in params.values()])
    return {name: piece.view(params[name].shape) for name, piece in zip(params, pieces, strict=True)}


def double(samples: ReplaySamples) -> ReplaySamples:
    values: Any = tuple(samples)
    return ReplaySamples(*(value.double() if value.is_floating_point() else value for value in values))


@pytest.mark.parametrize("name, network", [("SAC", "actor"), ("SAC", "critic_1"), ("TD3", "actor"), ("DQN", "q")])
def test_the_hessian_against_a_dense_one(name: str, network: str) -> None:
    model = trained(name, policy_kwargs=dict(net_arch=[4], activation_fn=th.nn.Tanh))
    in_float64(model)
    problem = curvature_problem(model.policy, objectives_of(model)[network], double(samples_of(model)))
    dense = th.autograd.functional.hessian(
        lambda vector: problem.loss_fn(unflat(vector, problem.params), problem.samples), flat(problem.params)
    )
    expected = np.linalg.eigvalsh(dense.numpy())
    spectrum = hessian_spectrum(problem.loss_fn, problem.params, problem.samples, steps=200)
    assert spectrum.dim == len(expected)
    scale = np.abs(expected).max()
    assert spectrum.largest == pytest.approx(expected[-1], rel=1e-6, abs=1e-9 * scale)
    assert spectrum.smallest == pytest.approx(expected[0], rel=1e-6, abs=1e-9 * scale)


# What the algorithm's loss of a sample is in the network's outputs, by hand.
CRITICS: dict[str, tuple[str, Callable[..., th.Tensor]]] = {
    "SAC": ("critic_0", lambda q, y: 0.5 * (q - y) ** 2),
    "TD3": ("critic_1", lambda q, y: (q - y) ** 2),
    "DQN": ("q", lambda q, y: th.where((q - y).abs() < 1, 0.5 * (q - y) ** 2, (q - y).abs() - 0.5)),
}


@pytest.mark.parametrize("name", CRITICS)
def test_a_critics_ggn_against_a_dense_one(name: str) -> None:
    model = trained(name, policy_kwargs=dict(net_arch=[4], activation_fn=th.nn.Tanh))
    in_float64(model)
    network, loss = CRITICS[name]
    samples = double(samples_of(model))
    samples = samples._replace(rewards=samples.rewards * th.linspace(0, 3, len(samples.rewards))[:, None])
    problem = curvature_problem(model.policy, objectives_of(model)[network], samples)
    targets = problem.samples.targets[:, 0]
    assert targets.grad_fn is None  # held fixed

    def outputs(vector: th.Tensor) -> th.Tensor:
        return problem.output_fn(unflat(vector, problem.params), problem.samples)[:, 0]

    values = outputs(flat(problem.params))
    curvature = th.stack(
        [th.autograd.functional.hessian(lambda q, y=y: loss(q, y), q) for q, y in zip(values, targets, strict=True)]
    )
    th.testing.assert_close(problem.output_hessian[:, 0], curvature)
    jacobian = th.autograd.functional.jacobian(outputs, flat(problem.params))
    expected = np.linalg.eigvalsh((jacobian.T @ (curvature[:, None] * jacobian) / len(values)).numpy())
    spectrum = ggn_spectrum(problem.output_fn, problem.params, problem.samples, problem.output_hessian)
    large = expected[expected > 1e-8 * expected[-1]]
    np.testing.assert_allclose(np.sort(spectrum.nodes[spectrum.nodes > 1e-8 * expected[-1]]), large, rtol=1e-6)
    if name == "DQN":
        assert 0 < float(curvature.mean()) < 1  # on both sides of Huber's bend


@pytest.mark.parametrize("use_sde", [False, True])
def test_the_ggn_of_a_squashed_actor_against_the_dense_fisher(use_sde: bool) -> None:
    """Half the Hessian of the symmetrised KL divergence of the *squashed* actions is that of the Gaussians."""
    model = trained("SAC", policy_kwargs=dict(net_arch=[4], activation_fn=th.nn.Tanh), use_sde=use_sde)
    in_float64(model)
    problem = curvature_problem(model.policy, objectives_of(model)["actor"], double(samples_of(model, 12)))
    before = problem.output_fn(problem.params, problem.samples).detach()

    def mean_kl(vector: th.Tensor) -> th.Tensor:
        after = problem.output_fn(unflat(vector, problem.params), problem.samples)
        old, new = (th.distributions.Normal(x[:, :2], x[:, 2:].exp()) for x in (before, after))
        squash = th.distributions.TanhTransform(cache_size=1)
        pair = [th.distributions.TransformedDistribution(normal, [squash]) for normal in (old, new)]
        return th.distributions.kl_divergence(*pair).sum(1).mean()

    expected = np.linalg.eigvalsh(th.autograd.functional.hessian(mean_kl, flat(problem.params)).numpy())
    spectrum = ggn_spectrum(problem.output_fn, problem.params, problem.samples, problem.output_hessian)
    large = expected[expected > 1e-6 * expected[-1]]
    np.testing.assert_allclose(np.sort(spectrum.nodes[spectrum.nodes > 1e-6 * expected[-1]]), large, rtol=1e-5)


def test_the_fisher_of_a_squashed_gaussian_is_the_mean_square_of_its_scores() -> None:
    """Monte Carlo, through SB3's own log probabilities of squashed actions."""
    generator = th.Generator().manual_seed(0)
    mean = th.tensor([[0.3, -0.8]], dtype=th.float64)
    log_std = th.tensor([-0.5, 0.2], dtype=th.float64)
    fisher = distribution_fisher(SquashedDiagGaussianDistribution(2).proba_distribution(mean, log_std))
    draws = 40_000
    gaussian = mean + log_std.exp() * th.randn(draws, 2, generator=generator, dtype=th.float64)
    outputs = th.cat([mean, log_std[None]], 1).expand(draws, 4).clone().requires_grad_()
    squashed = SquashedDiagGaussianDistribution(2).proba_distribution(outputs[:, :2], outputs[:, 2:])
    (scores,) = th.autograd.grad(squashed.log_prob(th.tanh(gaussian), gaussian).sum(), outputs)
    estimate = scores.T @ scores / draws
    th.testing.assert_close(estimate, th.diag(fisher[0]), rtol=0.05, atol=0.05)


class TestReplaySamples:
    """Chosen transitions of a buffer are those that were stored there."""

    class Counting(gym.Env):
        """Observation, action and reward tell the step."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def __init__(self, start: float = 0.0) -> None:
            self.start = start

        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.count = self.start
            return np.array([self.count], np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.count += 1.0
            return np.array([self.count], np.float32), self.count, False, self.count % 10 == 0, {}

    def model(self, envs: int = 2, **arguments: Any) -> DQN:
        env: Any = make_vec_env(lambda: self.Counting(), n_envs=envs)
        for index in range(envs):
            env.envs[index].unwrapped.start = 100.0 * index
        settings: dict[str, Any] = dict(
            buffer_size=60, learning_starts=1000, train_freq=1, seed=0, policy_kwargs=dict(net_arch=[4])
        )
        return DQN("MlpPolicy", env, **(settings | arguments))

    def test_the_latest_in_order_without_drawing(self) -> None:
        model = self.model()
        model.learn(48)
        states = np.random.get_state(legacy=False)["state"]["key"].copy(), th.get_rng_state()  # noqa: NPY002
        samples: Any = samples_of(model, 8)
        assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[0])  # noqa: NPY002
        assert th.equal(th.get_rng_state(), states[1])
        # 24 steps each of two environments, episodes of 10: the 21st to 24th.
        assert samples.observations[:, 0].tolist() == [0, 100, 1, 101, 2, 102, 3, 103]
        assert samples.rewards[:, 0].tolist() == [1, 101, 2, 102, 3, 103, 4, 104]
        assert samples.next_observations[:, 0].tolist() == samples.rewards[:, 0].tolist()
        assert samples.discounts.unique().tolist() == [pytest.approx(0.99)]

    def test_around_the_end_of_the_buffer(self) -> None:
        model = self.model()
        source = source_of(model)
        for _ in range(3):
            model.learn(model.num_timesteps + 14, reset_num_timesteps=False)
            source.rollout_ended(0)
        model.learn(model.num_timesteps + 26, reset_num_timesteps=False)
        source.rollout_ended(0)
        rows = source.take(np.ones((2, 2), dtype=bool), 4)
        expected: Any = samples_of(model, 4)
        assert th.equal(source.read([rows]).observations, expected.observations)
        with pytest.raises(ValueError, match=r"replay buffer \(buffer_size=60\) no longer holds"):
            source.read([rows - [40, 0]])

    def test_n_step_returns_are_the_buffers_own(self) -> None:
        model = self.model(
            envs=1, replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3, gamma=0.5)
        )
        model.learn(27)
        assert model.replay_buffer is not None
        samples: Any = replay_samples(model.replay_buffer, np.array([0, 8]), np.array([0, 0]), 0.99)
        assert samples.rewards[:, 0].tolist() == [1 + 0.5 * 2 + 0.25 * 3, 9 + 0.5 * 10]  # an episode ends at 10
        assert samples.discounts[:, 0].tolist() == [0.125, 0.25]
        assert samples.next_observations[:, 0].tolist() == [3, 10]
        assert not model.replay_buffer.timeouts[26, 0]  # which the buffer sets for a moment

    def test_normalised_as_for_an_update(self) -> None:
        env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
        model = SAC("MlpPolicy", env, learning_starts=1000, policy_kwargs=dict(net_arch=[4]), seed=0, buffer_size=100)
        model.learn(40)
        samples: Any = samples_of(model, 4)
        assert isinstance(model.replay_buffer, ReplayBuffer)
        raw = model.replay_buffer.observations[18:20].reshape(4, 3)
        np.testing.assert_allclose(samples.observations.numpy(), np.asarray(env.normalize_obs(raw)), rtol=1e-6)
