"""
Resets: networks, or parts of them, restart at a change of the task or after a number of environment steps.

All of them act before data are collected, and never between data collection and update, because PPO's stored log
probabilities would then belong to a different policy. They write into the existing tensors, so optimizers keep their
parameters.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch as th
from torch import nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.agents.networks import Network
from sb3_plasticity.common.checks import check_choice, check_count, check_number, must_be
from sb3_plasticity.common.generators import own_generators
from sb3_plasticity.mitigations.base import Mitigation

When = int | Literal["task"]


class _Reset(Mitigation):
    """
    Something that is done at the change of a task, or every so many environment steps.

    :param when: ``"task"``, or a number of environment steps (updates without RL)
    :param networks: names of the networks it acts on; all if None
    :param seed: of what is drawn
    :raises ValueError: if ``when`` is neither ``"task"`` nor a whole number >= 1
    """

    def __init__(self, when: When, networks: Iterable[str] | None, seed: int = 0) -> None:
        if when != "task":
            if isinstance(when, str):
                raise must_be("when", "'task' or a whole number >= 1", when)
            check_count("when", when, at_least=1)
        super().__init__(networks=networks, seed=seed)
        self.when = when

    @override
    def setup(self) -> None:
        self.state.setdefault("resets", 0)
        self.state.setdefault("calls", 0)
        self.state.setdefault("last", self._now)

    @property
    def _now(self) -> int:
        return self.agent.num_timesteps if self.agent.model is not None else self.state["calls"]

    @override
    def task_change(self) -> None:
        if self.when == "task":
            self._reset()

    @override
    def rollout_start(self) -> None:
        self.state["calls"] += 1
        if self.when != "task" and self._now - self.state["last"] >= int(self.when):
            self.state["last"] = self._now
            self._reset()

    def _reset(self) -> None:
        self.state["resets"] += 1
        with th.no_grad():
            self.reset()

    def reset(self) -> None:
        """Do it; gradients are off."""
        raise NotImplementedError

    @override
    def logs(self) -> dict[str, float]:
        return {**super().logs(), "resets": float(self.state["resets"])}

    def fresh(self) -> dict[str, th.Tensor]:
        """
        Draw all parameters anew, by the initialiser of the policy, or of each module where there is no policy.

        :return: by their names in the networks' root; other draws at every reset
        """
        seed = self.seed + self.state["resets"]
        root = next(iter(self.targets.values())).root
        if self.agent.model is not None:
            return dict(fresh_policy(self.agent.model, seed).named_parameters())
        return fresh_parameters(root, seed)

    def clear_moments(self, names: Iterable[str], log_std_too: bool = False) -> None:
        """
        Forget what optimizers remember of parameters, as if they had never been stepped.

        :param names: of the parameters
        :param log_std_too: whether those of exploration are among them
        """
        for network in self.targets.values():
            for name in names:
                if name not in network.parameters or network.optimizer is None:
                    continue
                if log_std_too or name not in network.exploration:
                    network.optimizer.state.pop(network.parameters[name], None)


def fresh_parameters(module: nn.Module, seed: int) -> dict[str, th.Tensor]:
    """
    Draw a module's parameters anew by each submodule's ``reset_parameters``; the module stays as it is.

    :param module: plain torch
    :param seed: of the draw
    :return: name to new value; a parameter whose submodule cannot draw keeps its value
    """
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with own_generators(seed), th.no_grad():
        for part in module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        drawn = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
    return drawn


def copy_to_targets(model: Any) -> None:
    """
    Make target networks copies of the networks they follow.

    :param model: an algorithm of SB3 or sb3-contrib; None for plain torch, which has neither
    """
    for online in ("actor", "critic", "q_net", "quantile_net"):
        network, target = (getattr(getattr(model, "policy", None), name, None) for name in (online, f"{online}_target"))
        if network is not None and target is not None:
            target.load_state_dict(network.state_dict())


def empty_memory(model: Any) -> None:
    """
    Let a recurrent policy begin with an empty memory.

    :param model: an algorithm of SB3 or sb3-contrib; None for plain torch, which has none
    """
    for states in getattr(model, "_last_lstm_states", None) or ():
        for state in states:
            state.zero_()


class LayerReset(_Reset):
    """
    Reinitialise layers of a network, and reset the optimizer's state of their parameters.

    Source: Nikishin et al. 2022, https://arxiv.org/abs/2205.07802. The authors reset all layers of SAC, including
    targets and optimizers, every 200,000 environment steps and keep the replay buffer (``layers="all"``); in SPR they
    reset the last layer every 20,000 steps. The method is meant for off-policy algorithms, which relearn from their
    replay buffer; PPO has nothing to relearn from. The entropy coefficient is kept, and so is ``log_std`` unless
    requested otherwise. Some published versions replace the modules and leave the new ones out of the optimizer, so
    they are never trained. Here, the tensors stay the same and their values change.

    :param layers: number of layers, counted from the output, or ``"all"``
    :param when: ``"task"`` for every change of the task, or a number of environment steps
    :param networks: names of the networks to act on, or None for all
    :param log_std: whether to reset parameters that only set the scale of exploration as well: SAC's layer for it, or
        PPO's vector
    :param seed: seed of the draws
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        layers: int | Literal["all"] = "all",
        when: When = 200_000,
        networks: Iterable[str] | None = None,
        log_std: bool = False,
        seed: int = 0,
    ) -> None:
        if isinstance(layers, str):
            check_choice("layers", layers, ("all",))
        else:
            check_count("layers", layers, at_least=1)
        check_choice("log_std", log_std, (True, False))
        super().__init__(when, networks, seed)
        self.layers = layers
        self.resets_log_std = log_std

    @override
    def reset(self) -> None:
        drawn = self.fresh()
        for network in self.targets.values():
            names = self._names(network)
            for name in names:
                network.parameters[name].copy_(drawn[name])
            self.clear_moments(names, self.resets_log_std)
        if self.layers == "all":  # the targets of a part are left to Polyak averaging
            copy_to_targets(self.agent.model)
            empty_memory(self.agent.model)

    def _names(self, network: Network) -> list[str]:
        kept = () if self.layers == "all" else network.layers[-int(self.layers) :]
        return [
            name
            for name in network.parameters
            if (self.layers == "all" or name.rpartition(".")[0] in kept)
            and (self.resets_log_std or name not in network.exploration)
        ]


class ShrinkHead(_Reset):
    """
    Multiply the weights and biases of the output layers by a factor, and reset the optimizer's state of them.

    This comes from a public ablation on Slippery Ant (bnshin83's fork of UPGD, 2026). There, halving the output layers
    at a change of friction did as well as continual backprop, whereas reinitialising them made PPO's ratio explode.

    :param factor: factor in [0, 1]; 1 changes nothing and keeps the optimizer's state
    :param when: ``"task"`` for every change of the task, or a number of environment steps
    :param networks: names of the networks to act on, or None for all
    :raises ValueError: if an argument is out of range
    """

    def __init__(self, factor: float = 0.5, when: When = "task", networks: Iterable[str] | None = None) -> None:
        check_number("factor", factor, 0, 1)
        super().__init__(when, networks)
        self.factor = factor

    @override
    def reset(self) -> None:
        if self.factor == 1:
            return
        shrunk: set[str] = set()
        for network in self.targets.values():
            names = [name for name in network.parameters if name.rpartition(".")[0] in network.outputs]
            for name in set(names) - shrunk - network.exploration:
                network.parameters[name].mul_(self.factor)
            self.clear_moments(names)
            shrunk.update(names)


class OptimizerReset(_Reset):
    """
    Reset the optimizer's state, that is, the moments and step counts of all parameters.

    Source: Asadi et al. 2023, https://arxiv.org/abs/2306.17833. Juliani and Ash (2024) do this at every shift for every
    method including the baseline, so compare methods with and without it.

    :param when: ``"task"`` for every change of the task, or a number of environment steps
    :param networks: names of the networks to act on, or None for all
    :param log_std: whether to reset the state of the parameters of exploration as well
    :raises ValueError: if an argument is out of range
    """

    def __init__(self, when: When = "task", networks: Iterable[str] | None = None, log_std: bool = False) -> None:
        check_choice("log_std", log_std, (True, False))
        super().__init__(when, networks)
        self.forgets_log_std = log_std

    @override
    def reset(self) -> None:
        for network in self.targets.values():
            self.clear_moments(network.parameters, log_std_too=self.forgets_log_std)


class FIRE(_Reset):
    r"""
    Make every weight matrix orthogonal, by its polar factor scaled to the variance of a fresh layer.

    .. math:: W \leftarrow \sqrt{d_\text{out} / d_\text{in}} \; U V^\top, \quad W = U \Sigma V^\top

    Source: https://arxiv.org/abs/2602.08040. The authors approximate the polar factor by ten Newton-Schulz iterations,
    :math:`X \leftarrow 1.5 X - 0.5 X X^\top X`; here it is computed by a singular value decomposition. A convolution is
    treated separately for each position of its kernel and divided by the number of positions. Biases are not changed.
    As in the authors' SAC, the optimizer's state of the changed weights is reset, and target networks become copies of
    the networks. In PPO, this mitigation changes the policy, so use it at a change of the task.

    :param when: ``"task"`` for every change of the task, or a number of environment steps
    :param networks: names of the networks to act on, or None for all
    :raises ValueError: if an argument is out of range
    """

    def __init__(self, when: When = "task", networks: Iterable[str] | None = None) -> None:
        super().__init__(when, networks)

    @override
    def reset(self) -> None:
        done: set[str] = set()
        for network in self.targets.values():
            for layer in network.layers:
                module = network.root.get_submodule(layer)
                name = f"{layer}.weight"
                if name in done or name not in network.parameters or not isinstance(module, (nn.Linear, _ConvNd)):
                    continue
                weight = network.parameters[name]
                weight.copy_(polar(weight))
                done.add(name)
        self.clear_moments(done)
        copy_to_targets(self.agent.model)
        empty_memory(self.agent.model)


def polar(weight: th.Tensor) -> th.Tensor:
    """
    The scaled polar factor of a weight.

    :param weight: (out, in), or (out, in, ...) of a convolution, whose positions are treated one by one
    :return: of the same shape
    """
    n_positions = weight[0, 0].numel()
    matrices = weight.reshape(*weight.shape[:2], n_positions).movedim(-1, 0)  # (positions, out, in)
    left, _, right = th.linalg.svd(matrices.double(), full_matrices=False)
    scale = (weight.shape[0] / weight.shape[1]) ** 0.5 / n_positions
    factor: th.Tensor = scale * left @ right
    return factor.movedim(0, -1).reshape(weight.shape).to(weight.dtype)
