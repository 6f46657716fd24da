"""Churn: a penalty on how much an update changes the outputs of a network for other data."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from typing_extensions import override

from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_count, must_be
from sb3_plasticity.mitigations.base import Mitigation


class ChurnReduction(Mitigation):
    r"""
    Penalise the change that an update causes on data that it does not use (C-CHAIN): :math:`\text{coef} \cdot
    D(f_\theta(B), f_{\theta'}(B))`.

    Source: Tang, Obando-Ceron et al. 2025, https://arxiv.org/abs/2506.00592. B is drawn independently of the minibatch,
    and :math:`\theta'` are the parameters before the last update. D is the mean squared error of the mean actions for
    continuous actions (excluding the standard deviation and the value network), the cross-entropy of the action
    probabilities for discrete actions, and the mean squared error of the Q values for DQN and QRDQN. Published
    strengths start at 100 (DMC), 10 (ProcGen), 1 (Gym) and 50 (DQN) and are then scaled by the size of the loss. A hook
    does not see the loss, so the strength is ``coef`` here, a number or a schedule.

    :param coef: strength, or a schedule
    :param networks: names of the networks to act on, among ``policy``, ``actor`` and ``q``, or None for all of these
    :param batch_size: number of observations in B, >= 1
    :param seed: seed of the draws of B
    """

    pure = False

    def __init__(
        self,
        coef: float | Schedule | str = 1.0,
        networks: Iterable[str] | None = None,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(coef, networks=networks, seed=seed)
        check_count("batch_size", batch_size, at_least=1)
        self.batch_size = batch_size
        self._gradients: dict[str, th.Tensor] | None = None

    @override
    def selects(self, name: str, parameter: nn.Parameter) -> bool:
        return any(
            name in network.parameters for key, network in self.targets.items() if key in ("policy", "actor", "q")
        )

    @override
    def setup(self) -> None:
        kind = type(self.agent.model).__name__
        if not self.parameters or isinstance(self.agent.model.policy, RecurrentActorCriticPolicy):
            raise must_be("mitigations", f"without churn_reduction for {kind}: it has no network this can act on", kind)
        self._gradients = None

    def _outputs(self, network: Network, observations: Any) -> tuple[th.Tensor, ...]:
        """What must not change: mean actions, log probabilities of choices, or Q values."""
        root: Any = network.root
        if network.name == "q":
            return (root.q_net(observations) if hasattr(root, "q_net") else root.quantile_net(observations),)
        if network.name == "actor":
            actor = root.actor
            if hasattr(actor, "get_action_dist_params"):
                return (actor.get_action_dist_params(observations)[0],)
            return (actor(observations),)
        inner = root.get_distribution(observations).distribution
        parts = inner if isinstance(inner, (list, tuple)) else [inner]
        return tuple(part.logits if isinstance(part, Categorical) else part.mean for part in parts)

    def _evaluated(self, network: Network, observations: Any, gradients: bool) -> tuple[th.Tensor, ...]:
        modes = {module: module.training for module in network.root.modules()}
        network.root.eval()  # no statistics are updated, and no other mitigation takes this for a training pass
        try:
            with nullcontext() if gradients else th.no_grad():
                return self._outputs(network, observations)
        finally:
            for module, training in modes.items():
                module.training = training

    def _draw(self) -> Any:
        """Draw observations of the rollout, or of the replay buffer."""
        model = self.agent.model
        on_policy = hasattr(model, "rollout_buffer")
        buffer = model.rollout_buffer if on_policy else model.replay_buffer
        size = buffer.buffer_size if on_policy or buffer.full else buffer.pos
        rows = th.randint(size * buffer.n_envs, (self.batch_size,), generator=self.generator).numpy()
        steps, envs = np.divmod(rows, buffer.n_envs)

        def pick(array: np.ndarray) -> np.ndarray:
            # A rollout buffer that was flattened has one row for each transition, environment by environment.
            flat = getattr(buffer, "generator_ready", False)
            chosen: np.ndarray = array[envs * buffer.buffer_size + steps] if flat else array[steps, envs]
            return chosen

        observations = pytree.tree_map(pick, buffer.observations)
        if not on_policy and model.get_vec_normalize_env() is not None:  # the buffer holds them as they came
            observations = model.get_vec_normalize_env().normalize_obs(observations)
        return pytree.tree_map(lambda array: th.as_tensor(array, device=model.device), observations)

    @override
    def before_update(self, networks: tuple[Network, ...]) -> None:
        self._gradients = None
        if self.strength() == 0:
            return
        for network in networks:
            if network.name in ("policy", "actor", "q"):
                observations = self._draw()
                outputs = self._evaluated(network, observations, gradients=False)
                self.state[network.name] = {"observations": observations, "outputs": outputs}

    @override
    def gradient(self, name: str, parameter: th.Tensor, strength: Any, *constants: th.Tensor) -> th.Tensor:
        if self._gradients is None:
            self._gradients = {}
            for key, network in self.targets.items():
                if key in self.state:
                    self._gradients.update(self._churn_gradients(network))
        found = self._gradients.get(name)
        return th.zeros_like(parameter) if found is None else strength * found

    def _churn_gradients(self, network: Network) -> dict[str, th.Tensor]:
        before = self.state[network.name]
        names = [name for name in network.parameters if name in self.parameters]
        with th.enable_grad():
            outputs = self._evaluated(network, before["observations"], gradients=True)
            discrete = network.name == "policy" and not hasattr(network.root, "log_std")
            churn = sum(
                F.cross_entropy(now, then.softmax(-1)) if discrete else F.mse_loss(now, then)
                for now, then in zip(outputs, before["outputs"], strict=True)
            )
            assert isinstance(churn, th.Tensor)
            found = th.autograd.grad(churn, [self.parameters[name] for name in names], allow_unused=True)
        self.observe("churn", churn.detach())
        return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
