"""PPO with the L2-ER objective."""

import inspect
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_plasticity.agents.networks import networks_of
from sb3_plasticity.callbacks.task_sync import TaskSyncCallback, callbacks_in
from sb3_plasticity.common.checks import check_choice, check_count, check_strength, must_be, nearest
from sb3_plasticity.common.objective import ER_AGGREGATES, ErAggregate, PPOCoefficients
from sb3_plasticity.common.rank import RANKS_OF, RankOf
from sb3_plasticity.common.rollout import Samples, rollout_samples, rollout_size
from sb3_plasticity.mitigations.attachment import Attachment, attachments_of
from sb3_plasticity.mitigations.base import Agent, Mitigation
from sb3_plasticity.mitigations.effective_rank import EffectiveRank, gradient_step
from sb3_plasticity.mitigations.penalties import L2
from sb3_plasticity.ppo_l2er.acting import lean_acting
from sb3_plasticity.ppo_l2er.compilable import why_uncompilable
from sb3_plasticity.ppo_l2er.compiled import (
    STATISTICS,
    CompiledUpdate,
    Hyperparameters,
    Variant,
    minibatches_seen,
)
from sb3_plasticity.ppo_l2er.inductor import CompilationError
from sb3_plasticity.ppo_l2er.presets import one_argument_form
from sb3_plasticity.ppo_l2er.update import (
    GradientCheck,
    Minibatches,
    _RowsRank,
    policy_features,
    rank_loss,
    rank_penalties,
    ranked_layers,
)

SelfPPO_L2ER = TypeVar("SelfPPO_L2ER", bound="PPO_L2ER")
ErMode = Literal["loss", "step"]

# Rows of the rollout on which train/erank_* is taken: enough for a stable number, few enough for image features.
LOGGED_ROWS = 1024
OWN_ARGUMENTS = ("er_coef", "l2_coef", "er_mode", "er_interval", "l2_log_std", "rank_of", "er_aggregate", "compile")


class PPO_L2ER(PPO):
    r"""
    Proximal Policy Optimization with L2-ER, which keeps a network able to learn while its task changes.

    .. math:: L = L_\text{PPO} - \text{er\_coef} \, (\text{erank}_\text{policy} + \text{erank}_\text{value})
              + \text{l2\_coef} \, \lVert\theta\rVert^2

    Paper: Prakash, He, Guo et al. (ICML 2026), https://arxiv.org/abs/2509.22335

    erank is the effective rank of the hidden features: the inputs of every linear and convolutional layer after the
    first, averaged over a network's layers. Layers that policy and value network share count once, with the policy.

    It is PPO with two mitigations, :class:`~sb3_plasticity.mitigations.EffectiveRank` and
    :class:`~sb3_plasticity.mitigations.L2`; others can be attached with
    :class:`~sb3_plasticity.mitigations.MitigationCallback`.

    Everything :class:`stable_baselines3.PPO` takes is taken in the same order and means the same; with ``er_coef=0``
    and ``l2_coef=0`` the results are PPO's, bit for bit. Built from an environment alone, ``PPO_L2ER(env)`` or
    ``PPO_L2ER("SlipperyAnt-v0")``, it chooses the policy class by the observation space; for an id with a packaged
    preset the arguments left out come from that preset.

    Besides PPO's keys, each update logs ``train/erank_policy`` and ``train/erank_value``, on the rollout's own features
    before the update (at most 1,024 rows: compare only at equal numbers of rows), and, of the penalties that are on,
    ``train/er_loss``, -(erank_policy + erank_value) on the samples it was applied to, and ``train/l2_loss``,
    :math:`\lVert\theta\rVert^2`, both without their coefficient.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...); may be left out
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update
    :param batch_size: Minibatch size
    :param n_epochs: Number of epoch when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function; None (default) for no clipping
    :param normalize_advantage: Whether to normalize or not the advantage
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping; the penalties are inside it
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param rollout_buffer_class: Rollout buffer class to use
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates; None (default) for no limit
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param er_coef: Weight of the effective rank (``er_mode="loss"``) or size of its step (``er_mode="step"``), >= 0;
        it can be a function of the current progress remaining (from 1 to 0)
    :param l2_coef: Weight of the squared norm of the parameters, >= 0, or a schedule. The coupled weight decay ``wd``
        of the authors' optimizer is ``l2_coef = wd / 2``; the default is their wd = 1e-3
    :param er_mode: ``"loss"``: the poster's objective, one gradient for all terms. ``"step"``: the authors' code,
        before each epoch's minibatches one plain gradient step of size ``er_coef`` on the whole rollout's features
    :param er_interval: in ``"loss"`` mode, every how many minibatches one carries the effective rank, at
        ``er_interval``-fold strength, so that the sum of its gradients keeps its expectation. What Adam and gradient
        clipping make of few large gradients may be less. An eigendecomposition a layer is what it costs
    :param er_batch_size: in ``"loss"`` mode, rank the features of this many transitions drawn from the rollout instead
        of the minibatch's own, which cannot show more rank than it has rows
    :param l2_log_std: Whether the squared norm includes the log standard deviation of the actions. Decay pulls it to 0,
        the standard deviation to 1: more exploration, whatever it does for the networks. ``"only"``: the squared norm
        is that of the log standard deviation alone, the control that tells the one from the other
    :param rank_of: spectrum whose effective rank is taken: ``"covariance"``, the eigenvalues of E[a a^T] (poster), or
        ``"features"``, the singular values of the uncentred feature matrix (authors' code)
    :param er_aggregate: ``"mean"``: mean over layers of their effective ranks. ``"sum"``: effective rank of the layers'
        summed second moments (poster), for layers of equal width
    :param compile: Whether to compile the minibatch update: the same numbers up to rounding, several times faster after
        some seconds of compilation. Attached mitigations act in it, too. Where that is not possible (another optimizer
        than Adam, batch normalisation, no C++ compiler, a mitigation or a hook that no program can hold, ...) a warning
        names the reason and the update runs as without
    :param preset: ``"auto"`` takes what a one-argument call leaves out from the packaged preset for that environment
        id, where there is one; None never does
    :raises ValueError: for arguments outside what is accepted
    """

    @one_argument_form
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy] | None = None,
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        er_coef: float | Schedule = 1e-3,
        l2_coef: float | Schedule = 5e-4,
        er_mode: ErMode = "loss",
        er_interval: int = 16,
        er_batch_size: int | None = None,
        l2_log_std: bool | Literal["only"] = True,
        rank_of: RankOf = "covariance",
        er_aggregate: ErAggregate = "mean",
        compile: bool = False,
        preset: Literal["auto"] | None = "auto",
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.er_coef = er_coef
        self.l2_coef = l2_coef
        self.er_mode = er_mode
        self.er_interval = er_interval
        self.er_batch_size = er_batch_size
        self.l2_log_std = l2_log_std
        self.rank_of = rank_of
        self.er_aggregate = er_aggregate
        self.compile = compile
        self.preset = preset
        # Minibatches seen so far: every er_interval-th carries the effective rank, across epochs, rollouts and saves.
        self._n_minibatches = 0

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()
        self.er_coef = FloatSchedule(self.er_coef)
        self.l2_coef = FloatSchedule(self.l2_coef)

        self._attach()
        if self.l2_log_std == "only" and not self._decay.parameters:
            raise must_be("l2_log_std", "True or False for a policy without log standard deviation", self.l2_log_std)
        self._compiled: CompiledUpdate | None = None
        self._uncompilable: dict[tuple[Mitigation, ...], str] = {}
        self._warned: set[str] = set()
        constant_zero = self.er_coef(1.0) == self.er_coef(0.5) == self.er_coef(0.0) == 0
        if not constant_zero and not ranked_layers(self._rank):
            warnings.warn(
                f"er_coef={self.er_coef(1.0)} has no effect: this policy has no hidden layer whose features could be "
                f"ranked (net_arch={self.policy.net_arch}); it trains as PPO with L2"
            )

    def _attach(self) -> None:
        """Make the two mitigations that L2-ER is; their hooks are in place during updates only."""
        arguments: dict[str, Any] = dict(
            interval=self.er_interval if self.er_mode == "loss" else 1,
            rank_of=self.rank_of,
            aggregate=self.er_aggregate,
        )
        self._rank = EffectiveRank(**arguments)
        if self.er_batch_size is not None:
            self._rank = _RowsRank(self._draw_er_batch, **arguments)
        self._decay = L2(log_std=self.l2_log_std)
        self._own = Attachment(Agent(networks_of(self), self), [self._rank, self._decay])

    def _check_arguments(self) -> None:
        """Refuse values that are out of range, before anything is built."""
        check_strength("er_coef", self.er_coef)
        check_strength("l2_coef", self.l2_coef)
        check_choice("er_mode", self.er_mode, get_args(ErMode))
        check_choice("rank_of", self.rank_of, RANKS_OF)
        check_choice("er_aggregate", self.er_aggregate, ER_AGGREGATES)
        check_choice("l2_log_std", self.l2_log_std, (True, False, "only"))
        check_count("er_interval", self.er_interval, at_least=1)
        if self.er_batch_size is None:
            return
        if self.er_mode == "step":
            raise must_be("er_batch_size", "None where er_mode='step' ranks the whole rollout", self.er_batch_size)
        check_count("er_batch_size", self.er_batch_size, at_least=2)
        if self.er_batch_size > (size := self.n_steps * self.n_envs):
            raise must_be("er_batch_size", f"at most n_steps * n_envs = {size}", self.er_batch_size)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experiences as SB3 does, acting by the short way where the policy has one.

        :param env: The training environment
        :param callback: Callback that will be called at each step
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :return: False if the callback ended training
        """
        with lean_acting(self.policy):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def train(self) -> None:
        """Update policy using the currently gathered rollout buffer."""
        progress = self._current_progress_remaining
        er_coef, l2_coef = self.er_coef(progress), self.l2_coef(progress)  # type: ignore[operator]
        # Once a rollout, as every other schedule.
        in_loss = self.er_mode == "loss" and ranked_layers(self._rank)
        self._rank.schedule = ConstantSchedule(er_coef if in_loss else 0.0)
        self._decay.schedule = ConstantSchedule(l2_coef)
        self._ascent = er_coef if self.er_mode == "step" and ranked_layers(self._rank) else 0.0
        self._er_losses: list[float] = []
        self._l2_losses: list[Any] = []
        self._count_minibatches(self._n_minibatches)
        try:
            ranks = self._rollout_ranks()
            if not (self.compile and self._train_compiled()):
                self._train_eager()
        except FloatingPointError as error:
            self.policy.optimizer.zero_grad()
            raise FloatingPointError(
                f"{type(self).__name__} stopped at {self.num_timesteps} timesteps, update {self._n_updates}: {error}. "
                "The parameters are those before this minibatch"
            ) from error
        penalties = self._rank.logs()
        if "penalty" in penalties:  # a mean over networks
            self._er_losses.append(penalties["penalty"] * (len(ranks) if self.er_batch_size is None else 1))
        if self._er_losses:
            self.logger.record("train/er_loss", np.mean(self._er_losses))
        if self._l2_losses:
            self.logger.record("train/l2_loss", np.mean([float(value) for value in self._l2_losses]))
        for network, rank in ranks.items():
            self.logger.record(f"train/erank_{network}", rank)

    def _count_minibatches(self, count: int) -> None:
        """Let the effective rank take its turns across epochs, rollouts and saves."""
        self._n_minibatches = count
        for kind in ("passes", "updates"):
            self._rank.state[kind] = dict.fromkeys(self._rank.targets, count)

    def _train_eager(self) -> None:
        """Run SB3's ``train()`` with both mitigations attached, the steps of ``er_mode="step"`` between its passes."""
        buffer = self.rollout_buffer
        minibatches = Minibatches(buffer, self._rank_ascent)
        check = GradientCheck(self.policy, PPOCoefficients.of(self))
        decayed = list(self._decay.parameters.values()) if self._decay.strength() != 0 else []

        def before_step(*_: Any) -> None:
            check(minibatches.last)
            if decayed:
                with th.no_grad():
                    self._l2_losses.append(nn.utils.get_total_norm(decayed).square())

        handle = self.policy.optimizer.register_step_pre_hook(before_step)
        self.rollout_buffer = minibatches  # type: ignore[assignment]
        if self._rank.strength() != 0 or decayed:
            self._own.arm()
        try:
            super().train()
        finally:
            self._own.disarm()
            self.rollout_buffer = buffer
            handle.remove()
            self._count_minibatches(self._n_minibatches + minibatches.count)

    def _train_compiled(self) -> bool:
        """Update by compiled programs; False, after a warning and before anything changed, where they cannot be had."""
        others = attachments_of(self)
        parts = (self._rank, *(part for attachment in others for part in attachment.mitigations))
        for attachment in others:
            attachment.disarm()  # what hangs on policy and optimizer now is somebody else's
        try:
            reason = self._uncompilable.get(parts) or why_uncompilable(self.policy, parts)
            if reason is None:
                self._compiled = self._compiled or CompiledUpdate(self.policy, self._rank)
                self._prepare_programs(others)
        except CompilationError as error:
            reason = self._uncompilable[parts] = str(error)
        finally:
            for attachment in others:
                attachment.arm()
        if reason is not None:
            if reason not in self._warned:
                self._warned.add(reason)
                name = type(self.policy).__name__
                warnings.warn(f"compile=True: the update of this {name} runs uncompiled, because {reason}")
            return False
        self._run_programs()
        return True

    def _prepare_programs(self, others: list[Attachment]) -> None:
        assert self._compiled is not None
        self._update_learning_rate(self.policy.optimizer)
        self.policy.set_training_mode(True)
        coefficients = PPOCoefficients.of(self)
        hyperparameters = Hyperparameters(
            learning_rate=self.policy.optimizer.param_groups[0]["lr"],
            clip_range=coefficients.clip_range,
            clip_range_vf=coefficients.clip_range_vf or 0.0,
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            kl_limit=float("inf") if self.target_kl is None else 1.5 * self.target_kl,
        )
        names = list(self._decay.parameters) if self._decay.strength() != 0 else None
        self._compiled.begin(hyperparameters, [self._own, *others], names)
        self._rollout = rollout_samples(self.rollout_buffer)
        size = rollout_size(self.rollout_buffer)
        seen = range(self.n_epochs * -(-size // self.batch_size))
        rows = (
            None if self.er_batch_size is None else rollout_samples(self.rollout_buffer, np.arange(self.er_batch_size))
        )
        self._compiled.prepare(self._rollout, self.batch_size, {self._variant(offset) for offset in seen}, rows)
        if self._ascent > 0:
            self._compiled.ascent.prepare(self._rollout)

    def _variant(self, offset: int) -> Variant:
        """Return the variant of the minibatch after so many others."""
        assert self._compiled is not None
        return Variant(
            due=self._compiled.due(lambda part: minibatches_seen(part) + offset),
            clip_range_vf=self.clip_range_vf is not None,
            normalize_advantage=self.normalize_advantage,
            steps=self._compiled.steps,
        )

    def _run_programs(self) -> None:
        """Update as SB3's ``train()`` does, on the same minibatches in the same order."""
        compiled, size = self._compiled, rollout_size(self.rollout_buffer)
        assert compiled is not None
        history: dict[str, list[Any]] = defaultdict(list)
        for epoch in range(self.n_epochs):
            if self._ascent > 0:
                self._er_losses.append(compiled.ascent.take(self._rollout, self._ascent))
            order = np.random.permutation(size)  # noqa: NPY002  (as RolloutBuffer.get)
            offsets = itertools.count()

            def variant(offsets: Iterator[int] = offsets) -> tuple[Variant, Samples | None]:
                found = self._variant(next(offsets))
                return found, self._draw_er_batch() if compiled.ranks_rows(found) else None

            rows = compiled.epoch(self._rollout, order, self.batch_size, variant)
            columns = dict(zip(STATISTICS, rows.T, strict=False))
            used = len(rows) if columns["applied"].all() else int(columns["applied"].argmin()) + 1
            applied = bool(columns["applied"][used - 1])
            penalties = list(compiled.penalties(rows[:used]))
            if not columns["finite"][:used].all():
                raise FloatingPointError(
                    _culprit({name: column[used - 1] for name, column in columns.items()}, penalties)
                )
            history["approx_kl"].clear()  # SB3 logs the last epoch's
            for name in ("loss", "policy_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl"):
                history[name].extend(columns[name][:used])
            if self._decay.strength() != 0:
                self._l2_losses.extend(columns["l2_loss"][: used if applied else used - 1])
            for part, acted, values in penalties:
                for value in values[acted]:
                    part.observe("penalty", value)
            compiled.count(used, used if applied else used - 1)
            self._count_minibatches(self._n_minibatches + used)
            self._n_updates += 1
            if not applied:
                if self.verbose >= 1:
                    kl = columns["approx_kl"][used - 1]
                    print(f"Early stopping at step {epoch} due to reaching max kl: {kl:.2f}")
                break
        self._record_training(history)

    def _record_training(self, history: dict[str, list[Any]]) -> None:
        """Log what SB3's ``train()`` logs, under the same keys and in the same order."""
        record, progress = self.logger.record, self._current_progress_remaining
        record("train/entropy_loss", np.mean(history["entropy_loss"]))
        record("train/policy_gradient_loss", np.mean(history["policy_loss"]))
        record("train/value_loss", np.mean(history["value_loss"]))
        record("train/approx_kl", np.mean(history["approx_kl"]))
        record("train/clip_fraction", np.mean(history["clip_fraction"]))
        record("train/loss", history["loss"][-1])
        values, returns = self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
        record("train/explained_variance", explained_variance(values, returns))
        if hasattr(self.policy, "log_std"):
            record("train/std", th.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", self.clip_range(progress))  # type: ignore[operator]
        if self.clip_range_vf is not None:
            record("train/clip_range_vf", self.clip_range_vf(progress))  # type: ignore[operator]

    def _draw_er_batch(self) -> Samples:
        rows = th.randperm(rollout_size(self.rollout_buffer))[: self.er_batch_size]
        return rollout_samples(self.rollout_buffer, rows.numpy())

    def _rank_ascent(self) -> None:
        """In ``er_mode="step"``, take one step on the whole rollout's features."""
        if self._ascent == 0:
            return
        loss = rank_loss(self._rank, policy_features(self._rank, rollout_samples(self.rollout_buffer)))
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        gradient_step(parameters, loss, self._ascent)
        self._er_losses.append(loss.item())

    def _rollout_ranks(self) -> dict[str, float]:
        """Return the effective ranks on the rollout's features, under the weights that collected it."""
        size = rollout_size(self.rollout_buffer)
        rows = np.linspace(0, size - 1, LOGGED_ROWS).astype(int) if size > LOGGED_ROWS else None
        rollout = rollout_samples(self.rollout_buffer, rows)
        with th.no_grad():
            penalties = rank_penalties(self._rank, policy_features(self._rank, rollout))
        return {network: -penalty.item() for network, penalty in penalties.items()}

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callbacks: list[Any] = callback if isinstance(callback, list) else [] if callback is None else [callback]
        callbacks = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in callbacks]
        if not any(isinstance(c, TaskSyncCallback) for root in callbacks for c in callbacks_in(root)):
            # First, so that evaluations of the same step already see the right task.
            callbacks = [TaskSyncCallback(), *callbacks]
        return super()._init_callback(callbacks, progress_bar)

    def learn(
        self: SelfPPO_L2ER,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "PPO_L2ER",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfPPO_L2ER:
        """
        Return a trained model: SB3's ``learn``, with every environment of the call on one task clock.

        :param total_timesteps: The total number of samples (env steps) to train on
        :param callback: callback(s) called at every step with state of the algorithm
        :param log_interval: for on-policy algos, the number of training iterations between two logs
        :param tb_log_name: the name of the run for TensorBoard logging
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging and by the
            task clock)
        :param progress_bar: Display a progress bar using tqdm and rich
        :return: the trained model
        """
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,  # type: ignore[arg-type]  # SB3 takes None
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @classmethod
    def load(
        cls: type[SelfPPO_L2ER],
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfPPO_L2ER:
        """
        Load a model as SB3 does, a saved PPO included, without passing over misspelt arguments.

        :param path: path to the file, or a file-like object, where to load the agent from
        :param env: the new environment to run the loaded model on; None if you only need predictions
        :param device: Device on which the code should run
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: attributes of the model that replace the saved ones, such as ``er_coef=0.01``
        :return: the model
        :raises TypeError: for an attribute that the model does not have, with the nearest one
        """
        accepted = {*vars(cls("MlpPolicy", _init_setup_model=False)), *inspect.signature(cls).parameters}
        for name in sorted(kwargs.keys() - accepted):
            hint = nearest(name, sorted(accepted))
            raise TypeError(f"{cls.__name__}.load got an unexpected keyword argument {name!r}{hint}")
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def __repr__(self) -> str:
        progress, shown = self._current_progress_remaining, {}
        for name in ("n_envs", "learning_rate", "n_steps", "batch_size", "n_epochs", *OWN_ARGUMENTS, "num_timesteps"):
            value = getattr(self, name, None)
            shown[name] = value(progress) if callable(value) else value
        policy = getattr(self.policy_class, "__name__", self.policy_class)
        return f"{type(self).__name__}({policy}, {', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_TRANSIENT]


# Attributes that are made anew when a model is loaded.
_TRANSIENT = (
    *("_rank", "_decay", "_own", "_ascent", "_er_losses", "_l2_losses"),
    *("_compiled", "_uncompilable", "_warned", "_rollout"),
)


def _culprit(last: dict[str, Any], penalties: list[Any]) -> str:
    """Name the first term of a minibatch that is not finite; penalties first, as the eager update meets them first."""
    for part, _, values in penalties:
        if np.isnan(values[-1]):
            return f"{part.name}: features contain NaN or infinity"
    for name in ("policy_loss", "value_loss", "entropy_loss"):
        if not np.isfinite(last[name]):
            return f"{name} is {last[name]}"
    return "the gradient is not finite"
