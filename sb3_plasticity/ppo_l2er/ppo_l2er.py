"""PPO with the L2-ER objective."""

import inspect
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
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_plasticity.callbacks.task_sync import TaskSyncCallback, _tree
from sb3_plasticity.common.actor_critic import find_hidden_layers
from sb3_plasticity.common.checks import check_choice, check_count, check_strength, must_be, nearest
from sb3_plasticity.common.objective import ER_AGGREGATES, ErAggregate, PPOCoefficients
from sb3_plasticity.common.rank import RANKS_OF, RankOf
from sb3_plasticity.common.rollout import Samples, rollout_samples, rollout_size
from sb3_plasticity.ppo_l2er.acting import lean_acting
from sb3_plasticity.ppo_l2er.compiled import (
    STATISTICS,
    CompilationError,
    CompiledUpdate,
    Hyperparameters,
    Variant,
    why_not,
)
from sb3_plasticity.ppo_l2er.presets import one_argument_form
from sb3_plasticity.ppo_l2er.update import (
    NONFINITE_FEATURES,
    NONFINITE_RANK_GRADIENT,
    EffectiveRankReward,
    gradient_step,
    l2er_terms,
    rank_ascent_step,
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
        it can be a function of the current progress remaining (from 1 to 0). The default comes from a small
        measurement, one seed each, the preset's settings at friction 0.3, mean return of the last 20 episodes after
        389,120 steps: 3,307 with 1e-3, 1,466 with 1e-2 (at more than twice the policy's effective rank), 1,921 without
        penalties
    :param l2_coef: Weight of the squared norm of the parameters, >= 0, or a schedule. The coupled weight decay ``wd``
        of the authors' optimizer is ``l2_coef = wd / 2``; the default is their wd = 1e-3
    :param er_mode: ``"loss"``: the poster's objective, one gradient for all terms. ``"step"``: the authors' code,
        before each epoch's minibatches one plain gradient step of size ``er_coef`` on the whole rollout's features
    :param er_interval: in ``"loss"`` mode, every how many minibatches one carries the effective rank, at
        ``er_interval``-fold strength, so that the sum of its gradients keeps its expectation. What Adam and gradient
        clipping make of few large gradients may be less: in ``studies/er_interval.yml`` every 32nd minibatch returned
        215 [96, 639] less than every 8th; of every 16th it cannot be told, +99 [-450, +136] (IQM of 4 seeds). An
        eigendecomposition a layer is what it costs: see ``benchmarks/overhead.py``
    :param er_batch_size: in ``"loss"`` mode, rank the features of this many transitions drawn from the rollout instead
        of the minibatch's own, which cannot show more rank than it has rows
    :param l2_log_std: Whether the squared norm includes the log standard deviation of the actions. Decay pulls it to 0,
        the standard deviation to 1: more exploration, whatever it does for the networks. ``"only"``: the squared norm
        is that of the log standard deviation alone, the control that tells the one from the other
    :param rank_of: spectrum whose effective rank is taken: ``"covariance"``, the eigenvalues of E[a a^T] (poster), or
        ``"features"``, the singular values of the uncentred feature matrix (authors' code)
    :param er_aggregate: ``"mean"``: mean over layers of their effective ranks. ``"sum"``: effective rank of the layers'
        summed second moments (poster), for layers of equal width
    :param compile: Whether to compile the minibatch update: the same numbers up to
        rounding, several times faster after some seconds of compilation. Where that is not possible (another optimizer
        than Adam, batch normalisation, no C++ compiler, ...) a warning says why and the update runs as without
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
        if self.l2_log_std == "only" and not self._l2_parameters:
            raise must_be("l2_log_std", "True or False for a policy without log standard deviation", self.l2_log_std)
        self.er_coef = FloatSchedule(self.er_coef)
        self.l2_coef = FloatSchedule(self.l2_coef)

        layers = find_hidden_layers(self.policy)
        self._compiled: CompiledUpdate | None = None
        self._uncompilable: str | None = None
        self._rank_reward = EffectiveRankReward(self.policy, layers, self.rank_of, self.er_aggregate)
        constant_zero = self.er_coef(1.0) == self.er_coef(0.5) == self.er_coef(0.0) == 0
        if not constant_zero and not layers.names:
            warnings.warn(
                f"er_coef={self.er_coef(1.0)} has no effect: this policy has no hidden layer whose features could be "
                f"ranked (net_arch={self.policy.net_arch}); it trains as PPO with L2"
            )
        if self.er_aggregate == "sum":
            for names in (layers.policy, layers.value):
                widths = {name: layers.widths[name] for name in names}
                if len(set(widths.values())) > 1:
                    raise must_be("er_aggregate", f"'mean' for hidden layers of different widths {widths}", "sum")

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

    @property
    def _trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    @property
    def _l2_parameters(self) -> list[nn.Parameter]:
        log_std, others = bool(self.l2_log_std), self.l2_log_std != "only"
        return [
            parameter
            for name, parameter in self.policy.named_parameters()
            if parameter.requires_grad and (log_std if name == "log_std" else others)
        ]

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
        try:
            ranks = self._rollout_ranks()
            self.policy.set_training_mode(True)
            self._update_learning_rate(self.policy.optimizer)
            progress = self._current_progress_remaining
            er_coef, l2_coef = self.er_coef(progress), self.l2_coef(progress)  # type: ignore[operator]
            if not self._rank_reward.layers.names:
                er_coef = 0.0
            coefficients = PPOCoefficients.of(self)
            history: dict[str, list[Any]] = defaultdict(list)
            compiled = self.compile and self._prepare_compiled(coefficients, er_coef, l2_coef)
            for epoch in range(self.n_epochs):
                if self.er_mode == "step" and er_coef > 0:
                    history["er_loss"].append(self._rank_ascent(er_coef, compiled))
                history["approx_kl"].clear()  # SB3 logs the last epoch's
                train_epoch = self._train_epoch_compiled if compiled else self._train_epoch
                continue_training = train_epoch(epoch, coefficients, er_coef, l2_coef, history)
                self._n_updates += 1
                if not continue_training:
                    break
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{type(self).__name__} stopped at {self.num_timesteps} timesteps, update {self._n_updates}: {error}. "
                "The parameters are those before this minibatch"
            ) from error
        self._record_training(history, coefficients, ranks)

    def _train_epoch(
        self,
        epoch: int,
        coefficients: PPOCoefficients,
        er_coef: float,
        l2_coef: float,
        history: dict[str, list[Any]],
    ) -> bool:
        """Take a pass over the rollout; return False when ``target_kl`` ended it."""
        l2_parameters = self._l2_parameters
        for minibatch in self.rollout_buffer.get(self.batch_size):
            minibatch_er_coef = self._next_er_coef(er_coef)
            terms = l2er_terms(
                self._rank_reward,
                minibatch,
                coefficients,
                er_coef=minibatch_er_coef,
                er_batch=None if minibatch_er_coef is None else self._draw_er_batch(),
                l2_coef=l2_coef or None,
                l2_parameters=l2_parameters,
            )
            for name in ("policy_loss", "value_loss", "entropy_loss", "clip_fraction"):
                history[name].append(getattr(terms.ppo, name).item())
            for name in ("loss", "er_loss", "l2_loss"):
                if (term := getattr(terms, name)) is not None:
                    history[name].append(term.item())
            approx_kl = terms.ppo.approx_kl.cpu().numpy()
            history["approx_kl"].append(approx_kl)
            if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                if self.verbose >= 1:
                    print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                return False
            gradient_step(self.policy, terms, self.max_grad_norm)
        return True

    def _prepare_compiled(self, coefficients: PPOCoefficients, er_coef: float, l2_coef: float) -> bool:
        """Make the compiled update ready for this rollout; False, after a warning, where it cannot be had."""
        if self._uncompilable is None and self._compiled is None:
            self._uncompilable = why_not(self.policy)
            if self._uncompilable is None:
                names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
                self._compiled = CompiledUpdate(self._rank_reward, [names[id(p)] for p in self._l2_parameters])
            else:
                self._warn_uncompiled()
        if self._compiled is None:
            return False
        hyperparameters = Hyperparameters(
            learning_rate=self.policy.optimizer.param_groups[0]["lr"],
            clip_range=coefficients.clip_range,
            clip_range_vf=coefficients.clip_range_vf or 0.0,
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            kl_limit=float("inf") if self.target_kl is None else 1.5 * self.target_kl,
            er_coef=self.er_interval * er_coef,
            l2_coef=l2_coef,
        )
        try:
            self._compiled.begin(hyperparameters)
        except CompilationError as error:
            self._give_up_compiling(error)
            return False
        return True

    def _give_up_compiling(self, error: CompilationError) -> None:
        self._uncompilable, self._compiled = str(error), None
        self._warn_uncompiled()

    def _warn_uncompiled(self) -> None:
        name = type(self.policy).__name__
        warnings.warn(f"compile=True: the update of this {name} runs uncompiled, because {self._uncompilable}")

    def _train_epoch_compiled(
        self,
        epoch: int,
        coefficients: PPOCoefficients,
        er_coef: float,
        l2_coef: float,
        history: dict[str, list[Any]],
    ) -> bool:
        """As :meth:`_train_epoch`, on the same minibatches in the same order."""
        first = self._n_minibatches

        def variants() -> Iterator[tuple[Variant, Samples | None]]:
            while True:
                has_rank = self._next_er_coef(er_coef) is not None
                variant = Variant(
                    effective_rank=has_rank,
                    l2=l2_coef != 0,
                    clip_range_vf=coefficients.clip_range_vf is not None,
                    normalize_advantage=self.normalize_advantage,
                )
                yield variant, self._draw_er_batch() if has_rank else None

        if self._compiled is None:  # an earlier epoch of this rollout found out
            return self._train_epoch(epoch, coefficients, er_coef, l2_coef, history)
        random_state = np.random.get_state(), th.get_rng_state()  # noqa: NPY002
        order = np.random.permutation(rollout_size(self.rollout_buffer))  # noqa: NPY002  (as RolloutBuffer.get)
        if epoch == 0:
            self._rollout = rollout_samples(self.rollout_buffer)
        try:
            rows = self._compiled.epoch(self._rollout, order, self.batch_size, variants())
        except CompilationError as error:
            self._give_up_compiling(error)
            self._n_minibatches = first
            np.random.set_state(random_state[0])  # noqa: NPY002
            th.set_rng_state(random_state[1])
            return self._train_epoch(epoch, coefficients, er_coef, l2_coef, history)
        self._compiled.end()
        columns = dict(zip(STATISTICS, rows.T, strict=True))
        used = len(rows) if columns["applied"].all() else int(columns["applied"].argmin()) + 1
        with_rank = [(first + index) % self.er_interval == 0 for index in range(used)]
        self._n_minibatches = first + used
        if not columns["finite"][:used].all():
            last = {name: column[used - 1] for name, column in columns.items()}
            if np.isnan(last["er_loss"]):  # the eager update stops here, too, before it looks at PPO's terms
                raise FloatingPointError(NONFINITE_FEATURES)
            terms = ("policy_loss", "value_loss", "entropy_loss", "l2_loss")
            culprits = [f"{name} is {last[name]}" for name in terms if not np.isfinite(last[name])]
            raise FloatingPointError(culprits[0] if culprits else "the gradient is not finite")
        for name in ("loss", "policy_loss", "value_loss", "entropy_loss", "clip_fraction", "approx_kl"):
            history[name].extend(columns[name][:used])
        if self.er_mode == "loss" and er_coef != 0:
            history["er_loss"].extend(columns["er_loss"][:used][with_rank])
        if l2_coef != 0:
            history["l2_loss"].extend(columns["l2_loss"][:used])
        if not columns["applied"][used - 1]:
            if self.verbose >= 1:
                print(f"Early stopping at step {epoch} due to reaching max kl: {columns['approx_kl'][used - 1]:.2f}")
            return False
        return True

    def _record_training(
        self, history: dict[str, list[Any]], coefficients: PPOCoefficients, ranks: dict[str, float]
    ) -> None:
        """Log what SB3 logs, under the same keys and in the same order, then what is ours."""
        record = self.logger.record
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
        record("train/clip_range", coefficients.clip_range)
        if coefficients.clip_range_vf is not None:
            record("train/clip_range_vf", coefficients.clip_range_vf)
        for name in ("er_loss", "l2_loss"):
            if history[name]:
                record(f"train/{name}", np.mean(history[name]))
        for network, rank in ranks.items():
            record(f"train/erank_{network}", rank)

    def _next_er_coef(self, er_coef: float) -> float | None:
        """Strength of the effective rank in the next minibatch; None if it carries none."""
        carries_it = self._n_minibatches % self.er_interval == 0
        self._n_minibatches += 1
        return self.er_interval * er_coef if carries_it and self.er_mode == "loss" and er_coef != 0 else None

    def _draw_er_batch(self) -> Samples | None:
        if self.er_batch_size is None:
            return None
        rows = th.randperm(rollout_size(self.rollout_buffer))[: self.er_batch_size]
        return rollout_samples(self.rollout_buffer, rows.numpy())

    def _rank_ascent(self, step_size: float, compiled: bool = False) -> float:
        """Take one step on the whole rollout's features and return the loss before it."""
        rollout = rollout_samples(self.rollout_buffer)
        if compiled and self._compiled is not None:
            try:
                er_loss, finite = self._compiled.ascend(rollout, step_size)
            except CompilationError as error:
                self._give_up_compiling(error)
            else:
                if not finite:
                    raise FloatingPointError(NONFINITE_FEATURES if np.isnan(er_loss) else NONFINITE_RANK_GRADIENT)
                return er_loss
        loss = self._rank_reward.loss(self._rank_reward.features(rollout.observations, rollout.actions))
        rank_ascent_step(self._trainable_parameters, loss, step_size)
        return loss.item()

    def _rollout_ranks(self) -> dict[str, float]:
        """Effective ranks on the rollout's features, under the weights that collected it."""
        size = rollout_size(self.rollout_buffer)
        rows = np.linspace(0, size - 1, LOGGED_ROWS).astype(int) if size > LOGGED_ROWS else None
        rollout = rollout_samples(self.rollout_buffer, rows)
        with th.no_grad():
            features = self._rank_reward.features(rollout.observations, rollout.actions)
            return {network: rank.item() for network, rank in self._rank_reward.ranks(features).items()}

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callbacks: list[Any] = callback if isinstance(callback, list) else [] if callback is None else [callback]
        callbacks = [c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in callbacks]
        if not any(isinstance(c, TaskSyncCallback) for root in callbacks for c in _tree(root)):
            # First, so that evaluations of the same step already see the right task.
            callbacks = [TaskSyncCallback(), *callbacks]
        return super()._init_callback(callbacks, progress_bar)

    def learn(
        self: SelfPPO_L2ER,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
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
            log_interval=log_interval,
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
        return [*super()._excluded_save_params(), "_rank_reward", "_compiled", "_uncompilable", "_rollout"]
