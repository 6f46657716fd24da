"""PlasticityCallback: what of a network's ability to learn is left, beside a fresh network's."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sb3_plasticity.agents import networks_of, objectives_of, source_of
from sb3_plasticity.agents.fresh import fresh_policy
from sb3_plasticity.agents.samples import SampleSource
from sb3_plasticity.callbacks.finite import check_finite
from sb3_plasticity.callbacks.measuring import AgentMeasures, Measures
from sb3_plasticity.callbacks.metrics import DEFAULT_METRICS, Metric, dormant, find_metrics
from sb3_plasticity.callbacks.tasks import NO_TASK, tasks_of
from sb3_plasticity.callbacks.tensorboard import OVERVIEW, SERIES, Layout, add_charts, summary_writer
from sb3_plasticity.common.checks import check_count, check_names, check_number, must_be, suggests_names
from sb3_plasticity.common.plasticity import DORMANT_TAU

# Not one that people give to their runs, so that the control is not the very network that training began with.
CONTROL_SEED = 20_230_213
# Transitions from one measurement to the next, if the user does not say.
EVERY_TRANSITIONS = 20_000
# What an arithmetic that overflows ends in.
OVERFLOWS = (FloatingPointError, ValueError, LinAlgError)


class PlasticityCallback(BaseCallback):
    r"""
    Record how much of their ability to learn an agent's networks have left, each metric beside a fresh network's.

    It serves every algorithm whose objectives are known (:func:`~sb3_plasticity.agents.objectives_of`): PPO_L2ER, PPO,
    A2C, TRPO, RecurrentPPO, MaskablePPO, SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN. It measures at the end of a rollout,
    before the update, on the ``n_samples`` latest transitions (on-policy: spread evenly over the rollout, or gathered
    over the last ones where they are short; off-policy: the latest of the replay buffer). For each layer, where
    :math:`a` are
    its units after their nonlinearity, (n_samples, units), or for a convolution (n_samples * height * width, channels):

    * ``effective_rank``: :math:`\exp` of the entropy of the normalised eigenvalues of :math:`E[a a^\top]` (Roy and
      Vetterli 2007; of the covariance as in L2-ER): :func:`~sb3_plasticity.common.rank.effective_rank`. It grows with
      the number of samples: compare at equal ``n_samples``
    * ``stable_rank``: :math:`\lVert a \rVert_F^2 / \lVert a \rVert_2^2` (Rudelson and Vershynin 2007):
      :func:`~sb3_plasticity.common.plasticity.stable_rank`
    * ``dormant_units``: share of units with :math:`E|a_i| \le \tau \cdot \mathrm{mean}_k E|a_k|` (Sokar et al. 2023):
      :func:`~sb3_plasticity.common.plasticity.dormant_units`
    * ``dead_units``: share of units that are 0 on every sample; in its place for tanh ``saturated_units``, the share
      with :math:`|a_i| > 0.99` on every sample; neither for recurrent layers
    * ``activation_spread``: the standard deviation of a unit's activation over the samples, a mean over units
    * ``weight_norm``: Euclidean norm of the layer's parameters (weights and biases together; Dohare et al. 2024
      report that weights grow where plasticity is lost)
    * ``weight_change``, ``weight_change_from_start``, ``weight_change_from_task``: Euclidean distance of the parameters
      to those of the previous measurement, to those at initialisation (of a resumed run: to those it resumed with) and
      to those at the end of the first rollout of the present task
    * ``weight_cosine``: mean :math:`|\cos|` of the angles between rows of the weight matrix, and
      ``largest_singular_value`` of it, a network's the largest of its layers' (Chung et al. 2024)
    * ``gradient_norm``: Euclidean norm of the gradient of the network's own loss, without the penalties of
      mitigations, on all ``n_samples`` at once and before clipping (vanishing gradients: Abbas et al. 2023)
    * ``inactive_gradients``: share of units whose incoming weights hardly receive gradients (GraMa, Liu et al. 2025):
      :func:`~sb3_plasticity.common.plasticity.inactive_gradients`

    and for each network

    * ``entropy``, ``std``: of its action distribution, means over samples (of a squashed Gaussian: before squashing)
    * ``churn``: mean absolute change of its outputs on the measurement's transitions by the update that follows (Tang
      et al. 2025, *Mitigating plasticity loss in continual reinforcement learning by reducing churn*)
    * ``effective_learning_rate``: :math:`\lVert \Delta\theta \rVert / \lVert \theta \rVert` of that update over its
      number of optimizer steps (Lyle et al. 2024, *Normalization and effective learning rates in reinforcement
      learning*)
    * ``trainability``, if asked for: the error of a refit to random targets,
      :func:`~sb3_plasticity.callbacks.metrics.refit_loss`

    A network's own value, without a layer in the key, is the mean of its layers' ranks, the share among all its units,
    and the norm of all its parameters. Layers that several networks share count once, with the first of them; frozen
    ones do not count. Parameters outside any layer, such as ``log_std``, have norms under their own name. A network's
    last layers have no units.

    With ``control`` the same metrics are taken on the same data of a newly initialised network of the same class and
    arguments (always the same one). A measure that looks alarming and is no different in the control tells about the
    data or the architecture, not about lost plasticity. What compares two moments a fresh network cannot have; beside
    ``churn`` and ``effective_learning_rate`` stand those of the run's first update, which is a fresh network's.

    Logged as ``plasticity/<network>[/<layer>]/<metric>`` and ``plasticity_control/...``: to TensorBoard at the step of
    the measurement, with charts that show both under Custom Scalars, and to CSV and JSON logs. The latest are also in
    the attributes ``measures`` and ``control_measures``. Training is bit-identical with and without this callback. A
    measurement whose arithmetic overflows is left out with a warning.

    :param every: number of rollouts from one measurement to the next, the first rollout included; None for as many as
        hold 20,000 transitions: 10 of PPO's default size
    :param n_samples: transitions to measure on, at least 2; the first measurement waits until so many have come.
        Recurrent policies run over stretches of 16 steps
    :param tau: threshold of the default ``dormant_units``, >= 0; 0.025 and 0.1 are those of Sokar et al.
    :param control: measure a newly initialised network too, which doubles the cost
    :param metrics: what to measure: metrics, or names of those of :mod:`sb3_plasticity.callbacks.metrics`
    :param networks: names of networks, such as ``("actor", "critic_0")``; None for all
    :param verbose: 1 prints the networks' measures, with the control's in brackets
    :raises ValueError: for arguments outside what is accepted
    """

    model: BaseAlgorithm

    @suggests_names()
    def __init__(
        self,
        every: int | None = None,
        n_samples: int = 512,
        tau: float = DORMANT_TAU,
        control: bool = True,
        metrics: Sequence[Metric | str] = DEFAULT_METRICS,
        networks: Sequence[str] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if every is not None:
            check_count("every", every, at_least=1)
        check_count("n_samples", n_samples, at_least=2)
        check_number("tau", tau, at_least=0)
        if not isinstance(control, bool):
            raise must_be("control", "True or False", control)
        if networks is not None and (isinstance(networks, str) or not networks):
            raise must_be("networks", "None or one or more names, in a tuple", networks)
        default = next(metric for metric in DEFAULT_METRICS if metric.name == "dormant_units")
        self.metrics = tuple(dormant(tau) if metric is default else metric for metric in find_metrics(metrics))
        self.networks = None if networks is None else tuple(networks)
        self.every = every
        self.n_samples = n_samples
        self.tau = tau
        self.control = control
        self.measures: Measures = {}
        self.control_measures: Measures = {}
        self._rollouts = 0
        self._steps = 0
        self._due = False
        self._began_fresh = False
        self._task: int | None = None
        self._has_tasks: bool | None = None
        self._seen: BaseAlgorithm | None = None
        self._source: SampleSource | None = None
        self._own: AgentMeasures | None = None
        self._fresh: AgentMeasures | None = None
        self._first_update: Measures = {}
        self._charted = 0

    def _init_callback(self) -> None:
        known = networks_of(self.model)
        objectives_of(self.model)
        if self.networks is not None:
            check_names("networks", self.networks, known)

    def _on_training_start(self) -> None:
        self._source = source_of(self.model)
        if self.n_samples > self._source.capacity:
            raise must_be("n_samples", f"at most the {self._source.capacity:.0f} of the replay buffer", self.n_samples)
        if self.num_timesteps == 0 or self.model is not self._seen:
            self._seen = self.model
            self._rollouts, self._due, self._task, self._has_tasks = 0, False, None, None
            self._began_fresh = self.num_timesteps == 0
            self._first_update = {}
            root: nn.Module = self.model.policy
            self._own = AgentMeasures(self.model, root, self.metrics, self.networks)
            self._own.remember("start", "previous")
            self._fresh = None
            if self.control:
                self._fresh = AgentMeasures(
                    self.model, fresh_policy(self.model, CONTROL_SEED), self.metrics, self.networks
                )
        self._charted = 0

    def _on_rollout_start(self) -> None:
        self._steps = 0
        self._finish_update()

    def _on_step(self) -> bool:
        self._steps += 1
        tasks = tasks_of(self.training_env, self.locals["infos"])
        if self._has_tasks is None:
            self._has_tasks = any(task is not NO_TASK for task in tasks)
        if self._has_tasks and (self._task is None or max(tasks)[0] > self._task):
            self._new_task(max(tasks)[0])
        return True

    def _on_rollout_end(self) -> None:
        assert self._source is not None
        size = self._steps * self.training_env.num_envs
        every = -(-EVERY_TRANSITIONS // max(size, 1)) if self.every is None else self.every
        self._due |= self._rollouts % every == 0
        to_come = 0 if self._due else (every - self._rollouts % every) * size
        self._rollouts += 1
        self._source.rollout_ended(self._source.rounded(self.n_samples) if to_come <= self.n_samples else 0)
        if self._due:
            part = self._source.latest(self._source.rounded(self.n_samples))
            if part is not None and self._source.size(part) >= self._source.rounded(self.n_samples):
                self._due = False
                self._measure(self._source.read([part]))

    def _on_training_end(self) -> None:
        self._finish_update()
        if (writer := summary_writer(self.logger)) is not None:
            writer.flush()  # SB3 has dumped its log before the last update
        if self._due and not self.measures:
            warnings.warn(
                f"PlasticityCallback has measured nothing: fewer than n_samples={self.n_samples} transitions were there"
            )

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _new_task(self, index: int) -> None:
        """Note a new task: within a rollout the weights are those that the last update left."""
        assert self._own is not None
        self._task = index
        self._own.remember("task")

    def _measure(self, samples: Any) -> None:
        assert self._own is not None
        where = f"PlasticityCallback at {self.num_timesteps} timesteps"
        check_finite(where, samples, dict(self.model.policy.named_parameters()))
        try:
            measures = self._own.measure(samples)
            control = {} if self._fresh is None else self._fresh.measure(samples)
        except OVERFLOWS as error:
            self._own.pending = None
            warnings.warn(f"PlasticityCallback leaves out its measurement at {self.num_timesteps} timesteps: {error}")
            return
        self._own.remember("previous")
        self.measures, self.control_measures = measures, control
        self._log("plasticity", self.measures, self.num_timesteps)
        self._log("plasticity_control", self.control_measures, self.num_timesteps)
        if self.verbose >= 1:
            self._print()

    def _finish_update(self) -> None:
        """Measure what the update after the latest measurement has changed."""
        if self._own is None or (pending := self._own.pending) is None:
            return
        changes = self._own.changes()
        if not changes:
            return
        if self._began_fresh:
            self._first_update = changes | self._first_update
        self.measures = self.measures | changes
        self._log("plasticity", changes, pending.step)
        if self.control:
            control = {key: self._first_update[key] for key in changes if key in self._first_update}
            self.control_measures = self.control_measures | control
            self._log("plasticity_control", control, pending.step)

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _log(self, section: str, measures: Mapping[str, float], step: int) -> None:
        writer = summary_writer(self.logger)
        for key, value in measures.items():
            # For the CSV and JSON logs; the terminal's table truncates names this long.
            self.logger.record(f"{section}/{key}", value, exclude=("stdout", "log", "tensorboard"))
            if writer is not None:
                writer.add_scalar(f"{section}/{key}", value, step)
        if writer is not None and len(self.measures) > self._charted:
            self._charted = len(self.measures)
            add_charts(writer, self._charts())

    def _print(self) -> None:
        assert self._own is not None
        for network in self._own.layers:
            shown = []
            for metric in self.metrics:
                key = f"{network}/{metric.name}"
                if key in self.measures:
                    beside = f" [{self.control_measures[key]:.3g}]" if key in self.control_measures else ""
                    shown.append(f"{metric.name} {self.measures[key]:.3g}{beside}")
            if shown:
                print(f"Plasticity at {self.num_timesteps}, {network}: {', '.join(shown)}")

    def _charts(self) -> Layout:
        """
        Return TensorBoard's custom scalars: each network's measures beside the control's, and layer by layer.

        The overview has a chart for each metric, with all networks.
        """
        networks: dict[str, list[str]] = {}
        beside: dict[str, list[Any]] = {}
        by_layer: dict[str, list[str]] = {}
        for key in self.measures:
            network, *layer, name = key.split("/")
            title = f"{network}: {name.replace('_', ' ')}"
            if layer:
                by_layer.setdefault(title, []).append(f"plasticity/{key}$")
            else:
                beside[title] = ["Multiline", [f"plasticity(_control)?/{key}$"]]
                networks.setdefault(name, []).append(network)
        layers = {}
        for title, tags in by_layer.items():
            for start in range(0, len(tags), SERIES):
                part = f" ({start // SERIES + 1})" if len(tags) > SERIES else ""
                layers[f"{title}{part}"] = ["Multiline", tags[start : start + SERIES]]
        overview = {
            name.replace("_", " "): ["Multiline", [f"plasticity(_control)?/({'|'.join(found)})/{name}$"]]
            for name, found in networks.items()
        }
        return {OVERVIEW: overview, "plasticity": beside, "plasticity by layer": layers}
