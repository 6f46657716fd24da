"""The objectives of SB3's and sb3-contrib's off-policy algorithms: actors, twin critics, Q networks."""

from collections.abc import Callable
from typing import Any

import torch as th
from sb3_contrib import QRDQN, TQC, CrossQ
from sb3_contrib.common.utils import quantile_huber_loss
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.distributions import Distribution
from torch.nn import functional as F

from sb3_plasticity.agents.distributions import gaussian_of
from sb3_plasticity.agents.objectives import Objective, Root, objectives_of, regression, stochastic_policy
from sb3_plasticity.agents.samples import ReplaySamples

# As SB3's squashed distributions have it.
_SQUASH_EPSILON = 1e-6

Target = Callable[[Root, ReplaySamples], th.Tensor]


def critics(
    n_critics: int,
    values: Callable[[Root, ReplaySamples], Any],
    critic_loss: Callable[[th.Tensor, ReplaySamples], th.Tensor],
    target: Target,
) -> dict[str, Objective]:
    """
    Pose the objectives of several critics, each by itself.

    :param n_critics: how many
    :param values: ``(root, samples)`` -> the values of each critic in turn, (N, C)
    :param critic_loss: ``(values, samples)`` -> scalar: the term of one critic in the algorithm's loss
    :param target: ``(root, samples)`` -> what the critics are fitted to, held fixed
    :return: ``critic_0``, ``critic_1``, ...
    """

    def of(index: int) -> Objective:
        return regression(lambda root, samples: values(root, samples)[index], critic_loss, _fixed(target))

    return {f"critic_{index}": of(index) for index in range(n_critics)}


def _fixed(target: Target) -> Callable[[Root, ReplaySamples], ReplaySamples]:
    def hold_fixed(root: Root, samples: ReplaySamples) -> ReplaySamples:
        with th.no_grad():
            return samples._replace(targets=target(root, samples))

    return hold_fixed


def _bootstrapped(samples: ReplaySamples, next_values: th.Tensor) -> th.Tensor:
    return samples.rewards + (1 - samples.dones) * samples.discounts * next_values


# -- actors that draw their actions: SAC, TQC, CrossQ ------------------------------------------------------------------


def action_distribution(actor: Any, observations: Any) -> Distribution:
    """
    Build the distribution of a SAC actor's actions.

    :param actor: SAC's, TQC's or CrossQ's
    :param observations: (N, ...)
    :return: a squashed Gaussian, or gSDE's
    """
    mean, log_std, arguments = actor.get_action_dist_params(observations)
    distribution: Distribution = actor.action_dist.proba_distribution(mean, log_std, **arguments)
    return distribution


def act(actor: Any, observations: Any, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw a SAC actor's actions with given noise.

    gSDE's noise, a matrix that many steps share, has the same distribution for each sample by itself.

    :param actor: SAC's, TQC's or CrossQ's
    :param observations: (N, ...)
    :param noise: (N, actions) standard normal
    :return: actions in [-1, 1], and their log probabilities (N, 1), both with graph
    """
    normal = gaussian_of(action_distribution(actor, observations))
    assert normal is not None
    gaussian = normal.mean + normal.stddev * noise
    actions = th.tanh(gaussian)
    correction = th.log(1 - actions**2 + _SQUASH_EPSILON)
    log_prob: th.Tensor = normal.log_prob(gaussian)
    return actions, (log_prob - correction).sum(1, keepdim=True)


def _soft_actor(entropy_coefficient: float, target: Target, reduce: Callable[[Any], th.Tensor]) -> Objective:
    """Pose SAC's actor's objective: the entropy term minus the value of its actions, one number of all critics."""

    def loss(root: Root, samples: ReplaySamples) -> th.Tensor:
        actions, log_prob = act(root.actor, samples.observations, samples.noise)
        return (entropy_coefficient * log_prob - reduce(root.critic(samples.observations, actions))).mean()

    def distribution(root: Root, samples: ReplaySamples) -> Distribution:
        return action_distribution(root.actor, samples.observations)

    return stochastic_policy(distribution, loss, _fixed(target))


def _smallest(values: tuple[th.Tensor, ...]) -> th.Tensor:
    return th.cat(values, dim=1).amin(dim=1, keepdim=True)


def _taken(root: Root, samples: ReplaySamples) -> Any:
    return root.critic(samples.observations, samples.actions)


def _entropy_coefficient(model: Any) -> float:
    """Return the temperature as an update that began now would have it."""
    tensor = model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()
    return float(tensor)


def _half_squared(values: th.Tensor, samples: ReplaySamples) -> th.Tensor:
    return 0.5 * F.mse_loss(values, samples.targets)


@objectives_of.register(SAC)
def _sac(model: SAC) -> dict[str, Objective]:
    ent_coef = _entropy_coefficient(model)

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        actions, log_prob = act(root.actor, samples.next_observations, samples.next_noise)
        next_values = _smallest(root.critic_target(samples.next_observations, actions))
        return _bootstrapped(samples, next_values - ent_coef * log_prob)

    return {
        "actor": _soft_actor(ent_coef, target, _smallest),
        **critics(model.critic.n_critics, _taken, _half_squared, target),
    }


@objectives_of.register(CrossQ)
def _crossq(model: CrossQ) -> dict[str, Objective]:
    """
    CrossQ has no target networks: its targets are the critics' own, held fixed.

    It normalises a batch by that batch's statistics while it trains, which couples the samples; here the running
    statistics are taken, as when it acts.
    """
    ent_coef = _entropy_coefficient(model)

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        actions, log_prob = act(root.actor, samples.next_observations, samples.next_noise)
        next_values = _smallest(root.critic(samples.next_observations, actions))
        return _bootstrapped(samples, next_values - ent_coef * log_prob)

    return {
        "actor": _soft_actor(ent_coef, target, _smallest),
        **critics(model.critic.n_critics, _taken, _half_squared, target),
    }


@objectives_of.register(TQC)
def _tqc(model: TQC) -> dict[str, Objective]:
    """TQC's critics share one mean loss, of which each has its share."""
    ent_coef, n_critics = _entropy_coefficient(model), model.critic.n_critics
    n_kept = model.critic.quantiles_total - model.top_quantiles_to_drop_per_net * n_critics

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        actions, log_prob = act(root.actor, samples.next_observations, samples.next_noise)
        quantiles = root.critic_target(samples.next_observations, actions)
        kept = quantiles.reshape(len(actions), -1).sort().values[:, :n_kept]
        return _bootstrapped(samples, kept - ent_coef * log_prob)

    def critic_loss(quantiles: th.Tensor, samples: ReplaySamples) -> th.Tensor:
        return quantile_huber_loss(quantiles, samples.targets, sum_over_quantiles=False) / n_critics

    def values(root: Root, samples: ReplaySamples) -> list[th.Tensor]:
        # Not critic.forward, which stacks the critics: the graph of each would hold all of them.
        critic = root.critic
        with th.set_grad_enabled(th.is_grad_enabled() and not critic.share_features_extractor):
            features = critic.extract_features(samples.observations, critic.features_extractor)
        inputs = th.cat([features, samples.actions], dim=1)
        return [network(inputs) for network in critic.q_networks]

    def mean(quantiles: th.Tensor) -> th.Tensor:
        return quantiles.mean(dim=2).mean(dim=1, keepdim=True)

    return {"actor": _soft_actor(ent_coef, target, mean), **critics(n_critics, values, critic_loss, target)}


# -- actors that compute their actions: TD3, DDPG ----------------------------------------------------------------------


@objectives_of.register(TD3)
def _td3(model: TD3) -> dict[str, Objective]:
    """
    Pose TD3's and DDPG's objectives.

    A deterministic actor gives no distribution and so has no Fisher information. Its output Hessian is the identity,
    the Fisher information of a Gaussian of unit variance around its actions: the GGN's metric is the squared change of
    the actions.
    """
    noise_scale, noise_clip = model.target_policy_noise, model.target_noise_clip

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        noise = (noise_scale * samples.next_noise).clamp(-noise_clip, noise_clip)
        actions = (root.actor_target(samples.next_observations) + noise).clamp(-1, 1)
        return _bootstrapped(samples, _smallest(root.critic_target(samples.next_observations, actions)))

    def actions(root: Root, samples: ReplaySamples) -> th.Tensor:
        acted: th.Tensor = root.actor(samples.observations)
        return acted

    def actor_loss(root: Root, samples: ReplaySamples) -> th.Tensor:
        values: th.Tensor = root.critic.q1_forward(samples.observations, actions(root, samples))
        return -values.mean()

    def squared(values: th.Tensor, samples: ReplaySamples) -> th.Tensor:
        return F.mse_loss(values, samples.targets)

    def identity(root: Root, samples: ReplaySamples) -> th.Tensor:
        return th.ones_like(actions(root, samples))

    return {
        "actor": Objective(actions, actor_loss, identity, _fixed(target)),
        **critics(model.critic.n_critics, _taken, squared, target),
    }


# -- discrete actions: DQN, QRDQN --------------------------------------------------------------------------------------


@objectives_of.register(DQN)
def _dqn(model: DQN) -> dict[str, Objective]:
    def outputs(root: Root, samples: ReplaySamples) -> th.Tensor:
        values: th.Tensor = root.q_net(samples.observations)
        return values.gather(1, samples.actions.long())

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        return _bootstrapped(samples, root.q_net_target(samples.next_observations).amax(dim=1, keepdim=True))

    def huber(values: th.Tensor, samples: ReplaySamples) -> th.Tensor:
        return F.smooth_l1_loss(values, samples.targets)

    return {"q": regression(outputs, huber, _fixed(target))}


@objectives_of.register(QRDQN)
def _qrdqn(model: QRDQN) -> dict[str, Objective]:
    def of_actions(quantiles: th.Tensor, actions: th.Tensor) -> th.Tensor:  # (N, quantiles, actions), (N, 1)
        chosen = actions.long()[:, None].expand(-1, quantiles.shape[1], 1)
        return quantiles.gather(2, chosen).squeeze(2)

    def outputs(root: Root, samples: ReplaySamples) -> th.Tensor:
        return of_actions(root.quantile_net(samples.observations), samples.actions)

    def target(root: Root, samples: ReplaySamples) -> th.Tensor:
        quantiles = root.quantile_net_target(samples.next_observations)
        greedy = quantiles.mean(dim=1).argmax(dim=1, keepdim=True)
        return _bootstrapped(samples, of_actions(quantiles, greedy))

    def huber(quantiles: th.Tensor, samples: ReplaySamples) -> th.Tensor:
        return quantile_huber_loss(quantiles, samples.targets)

    return {"q": regression(outputs, huber, _fixed(target))}
