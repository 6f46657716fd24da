"""CurvatureCallback: when to measure curvature, what to log, what to keep."""

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils.tensorboard import SummaryWriter

from sb3_plasticity.callbacks.tensorboard import Layout, add_charts, summary_writer
from sb3_plasticity.common.rank import check_epsilon
from sb3_plasticity.common.rollout import (
    Samples,
    concatenate_samples,
    is_recurrent,
    last_samples,
    rollout_samples,
    rollout_size,
    spread_rows,
)
from sb3_plasticity.curvature.agents import NETWORKS, CurvatureProblem, curvature_problem, loss_of
from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.hessian import hessian_spectrum
from sb3_plasticity.curvature.jacobian import ProblemTooLargeError
from sb3_plasticity.curvature.kfac import kfac_spectrum
from sb3_plasticity.curvature.plots import plot_density
from sb3_plasticity.curvature.spectrum import Spectrum

KINDS = ("ggn", "hessian", "kfac")
# Steps of one environment that a recurrent network is unrolled over.
SEQUENCE_LENGTH = 16


@dataclass
class Measurement:
    """
    A measurement that is due: the weights and the transitions it is of.

    :param phase: ``"start"`` or ``"end"`` of a task, or ``"periodic"``
    :param step: ``num_timesteps`` of the weights
    :param task: (index, value) of the task the transitions are of
    :param state: the policy's ``state_dict``, kept aside; None for the present weights
    :param parts: transitions, rollout by rollout
    :param share: fraction of its rollout that the task's transitions made up when they were first seen
    """

    phase: str
    step: int
    task: tuple[int, float]
    state: dict[str, th.Tensor] | None
    parts: list[Samples]
    share: float

    @property
    def n_samples(self) -> int:
        """Transitions gathered so far."""
        return sum(len(part.advantages) for part in self.parts)


class CurvatureCallback(BaseCallback):
    """
    Record the curvature spectra of an on-policy agent's policy and value network while it trains.

    With ``every="task"`` it takes, at the end of the first rollout that holds transitions of a new task and before the
    update, the spectra on that task's transitions: H_tau^(0) of Prakash, He, Guo et al. (arXiv 2509.22335), the
    curvature under the weights that the last task left (``phase="start"``), and on the last transitions of the old
    task the curvature it ended with (``phase="end"``). Every spectrum is taken on ``n_samples`` transitions, spread
    evenly over those at hand, because ranks can only be compared at equal numbers; if a rollout holds fewer of the new
    task, its weights are kept aside until enough have come. The very first rollout counts as the start of its task,
    unless training is resumed. An environment that reports no ``task_index`` has a single task.

    TensorBoard gets the scalars ``curvature/<network>/<kind>/<measure>`` (``curvature_end/...`` for the ends of
    tasks), a histogram of log10 |eigenvalue| and a picture of the density; ``save_dir`` gets one npz file for each
    spectrum, which
    :func:`~sb3_plasticity.curvature.records.load_spectra` turns into a table. Training is bit-identical with and
    without this callback.

    :param every: ``"task"``, a number of rollouts, or both as in ``("task", 50)``
    :param networks: some of ``"policy"``, ``"value"``, ``"joint"``
    :param kinds: some of ``"ggn"`` (exact; the policy's is its Fisher information matrix), ``"hessian"`` (of the
        algorithm's own loss without L2-ER's terms, by stochastic Lanczos) and ``"kfac"``
    :param epsilon: thresholds of the epsilon-ranks that are logged, on absolute eigenvalues
    :param n_samples: transitions that each spectrum is taken on, at least 2
    :param lanczos_steps: nodes of a draw of the Hessian's spectrum
    :param draws: start vectors of the Hessian's spectrum; two or more give its measures standard errors
    :param save_dir: folder for the spectra; by default ``curvature`` in the run's log folder
    :param time_budget: share of the wall time since training began that measurements may take, such as 0.03; None for
        no limit. Periodic measurements over it are left out; those of tasks wait, with their weights, until they fit
    :param verbose: 1 prints every measurement
    :raises ValueError: for arguments outside what is accepted
    """

    model: OnPolicyAlgorithm

    def __init__(
        self,
        every: str | int | tuple[str | int, ...] = "task",
        networks: Sequence[str] = ("policy", "value"),
        kinds: Sequence[str] = ("ggn", "hessian"),
        epsilon: Sequence[float] = (1e-3, 1e-2, 1e-1),
        n_samples: int = 128,
        lanczos_steps: int = 100,
        draws: int = 1,
        save_dir: str | Path | None = None,
        time_budget: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for part in every if isinstance(every, tuple) and every else (every,):
            if part != "task" and (isinstance(part, bool) or not isinstance(part, int) or part < 1):
                raise ValueError(f"every={every!r}: accepted are 'task', a number of rollouts >= 1, or a tuple of both")
        _check_choices("networks", networks, NETWORKS)
        _check_choices("kinds", kinds, KINDS)
        for eps in epsilon:
            check_epsilon(eps)
        for name, value, least in (
            ("n_samples", n_samples, 2),
            ("lanczos_steps", lanczos_steps, 1),
            ("draws", draws, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: accepted are whole numbers >= {least}")
        if time_budget is not None and not 0 < time_budget <= 1:
            raise ValueError(f"time_budget={time_budget!r}: accepted are None and shares of the wall time in (0, 1]")
        parts = every if isinstance(every, tuple) else (every,)
        self._per_task = "task" in parts
        self._per_rollouts = [part for part in parts if isinstance(part, int)]
        self.every = every
        self.networks = tuple(networks)
        self.kinds = tuple(kinds)
        self.epsilon = tuple(epsilon)
        self.n_samples = n_samples
        self.lanczos_steps = lanczos_steps
        self.draws = draws
        self.save_dir = save_dir
        self.time_budget = time_budget
        self._task: tuple[int, float] | None = None
        self._recent: Samples | None = None
        self._waiting: deque[Measurement] = deque()
        self._rollouts = 0
        self._step_tasks: list[list[tuple[int, float]]] = []
        self._seconds_spent = 0.0
        self._seconds_each = 0.0
        self._began = 0.0
        self._left_out = 0

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                f"CurvatureCallback: {type(self.model).__name__} has no rollout buffer; accepted are on-policy "
                "algorithms (PPO_L2ER, PPO, A2C, and sb3-contrib's TRPO, RecurrentPPO and MaskablePPO)"
            )
        loss_of(self.model)
        size = self.model.n_steps * self.model.n_envs
        if not self._per_task and self.n_samples > size:
            raise ValueError(f"n_samples={self.n_samples}: accepted are at most n_steps * n_envs = {size}")

    def _on_training_start(self) -> None:
        self._began, self._seconds_spent = time.monotonic(), 0.0
        self._step_tasks.clear()
        if self.num_timesteps == 0:
            self._task, self._recent, self._rollouts = None, None, 0
            self._waiting.clear()
        if (writer := summary_writer(self.logger)) is not None:
            add_charts(writer, self._layout())

    def _on_rollout_start(self) -> None:
        self._step_tasks.clear()

    def _on_step(self) -> bool:
        self._step_tasks.append(
            [(info.get("task_index", 0), info.get("task_value", float("nan"))) for info in self.locals["infos"]]
        )
        return True

    def _on_rollout_end(self) -> None:
        self._rollouts += 1
        started = time.monotonic()
        if self._per_task:
            self._follow_tasks()
        if any(self._rollouts % number == 0 for number in self._per_rollouts):
            self._add_periodic()
        self._seconds_spent += time.monotonic() - started
        self._work_off()

    def _on_training_end(self) -> None:
        if self._left_out:
            warnings.warn(f"CurvatureCallback: time_budget={self.time_budget} left out {self._left_out} measurements")
            self._left_out = 0
        late = [measurement for measurement in self._waiting if self._is_complete(measurement)]
        if late:
            names = ", ".join(f"{measurement.phase} of task {measurement.task[0]}" for measurement in late)
            warnings.warn(f"CurvatureCallback: time_budget={self.time_budget} left no time for: {names}")

    # -- what is due ---------------------------------------------------------------------------------------------------

    def _follow_tasks(self) -> None:
        """Notice new tasks in this rollout; gather their transitions, and the last ones of the task before."""
        indices = np.array([[index for index, _ in tasks] for tasks in self._step_tasks])
        values = dict(task for tasks in self._step_tasks for task in tasks)
        if self._task is None and self.num_timesteps > rollout_size(self.model.rollout_buffer):
            # A resumed run that this callback did not see before: where its task began is in the past.
            self._task = min(values.items())
        for index in sorted(values):
            rows = self._rows(indices == index)
            if self._task is None or index > self._task[0]:
                if self._task is not None and self._recent is not None:
                    self._add("end", self._task, self._recent, share=float((indices == self._task[0]).mean()))
                self._task, self._recent = (index, values[index]), None
                # A task that ended before it showed enough transitions cannot be compared with others.
                self._waiting = deque(m for m in self._waiting if m.phase != "start" or self._is_complete(m))
                self._add("start", self._task, None, share=float((indices == index).mean()))
            if index == self._task[0] and rows.size:  # not: an environment still in an episode of an older task
                samples = rollout_samples(self.model.rollout_buffer, rows)
                for measurement in self._waiting:
                    if measurement.phase == "start" and measurement.task[0] == index:
                        self._extend(measurement, samples)
                parts = [samples] if self._recent is None else [self._recent, samples]
                self._recent = last_samples(concatenate_samples(parts), self._wanted)

    def _add(self, phase: str, task: tuple[int, float], samples: Samples | None, share: float) -> None:
        measurement = Measurement(phase, self.num_timesteps, task, None, [], share)
        if samples is not None:
            self._extend(measurement, samples)
        self._waiting.append(measurement)

    def _extend(self, measurement: Measurement, samples: Samples) -> None:
        missing = self._wanted - measurement.n_samples
        if missing > 0:
            measurement.parts.append(last_samples(samples, missing))

    def _is_complete(self, measurement: Measurement) -> bool:
        return measurement.n_samples >= self._wanted or (measurement.phase != "start" and measurement.n_samples > 1)

    @property
    def _wanted(self) -> int:
        """Transitions of a measurement: whole sequences for a recurrent policy."""
        if is_recurrent(self.model.rollout_buffer):
            return max(1, self.n_samples // SEQUENCE_LENGTH) * SEQUENCE_LENGTH
        return self.n_samples

    def _rows(self, eligible: np.ndarray) -> np.ndarray:
        recurrent = is_recurrent(self.model.rollout_buffer)
        return spread_rows(eligible, self._wanted, SEQUENCE_LENGTH if recurrent else None)

    def _add_periodic(self) -> None:
        buffer = self.model.rollout_buffer
        rows = self._rows(np.ones((buffer.buffer_size, buffer.n_envs), dtype=bool))
        self._add("periodic", self._step_tasks[-1][0], rollout_samples(buffer, rows), share=1.0)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _work_off(self) -> None:
        """Measure what is complete and affordable; keep the weights of what must wait."""
        waiting, self._waiting = self._waiting, deque()
        for measurement in waiting:
            if self._is_complete(measurement) and self._is_affordable():
                started = time.monotonic()
                self._measure(measurement)
                self._seconds_each = time.monotonic() - started
                self._seconds_spent += self._seconds_each
            elif measurement.phase == "periodic":
                self._left_out += 1
            else:
                if measurement.state is None:
                    state = self.model.policy.state_dict()
                    measurement.state = {name: value.detach().clone() for name, value in state.items()}
                self._waiting.append(measurement)

    def _is_affordable(self) -> bool:
        if self.time_budget is None:
            return True
        spent, elapsed = self._seconds_spent + self._seconds_each, time.monotonic() - self._began + self._seconds_each
        return spent <= self.time_budget * elapsed

    def _measure(self, measurement: Measurement) -> None:
        samples = concatenate_samples(measurement.parts)
        for network in self.networks:
            problem = curvature_problem(self.model, samples, network, measurement.state)
            for kind in self.kinds:
                started = time.monotonic()
                try:
                    spectrum, n_samples = self._spectrum(problem, kind)
                except FloatingPointError as error:
                    raise FloatingPointError(
                        f"CurvatureCallback at {measurement.step} timesteps, {kind} of {network}: {error}"
                    ) from error
                info = dict(
                    step=measurement.step,
                    task_index=int(measurement.task[0]),
                    task_value=float(measurement.task[1]),
                    phase=measurement.phase,
                    network=network,
                    kind=kind,
                    algorithm=type(self.model).__name__,
                    n_samples=n_samples,
                    share=measurement.share,
                    seconds=time.monotonic() - started,
                )
                self._keep(dataclasses.replace(spectrum, info=info))

    def _spectrum(self, problem: CurvatureProblem, kind: str) -> tuple[Spectrum, int]:
        """Return a spectrum and the number of transitions it is of: fewer where memory sets a bound."""
        samples, hessian = problem.samples, problem.output_hessian
        if kind == "hessian":
            spectrum = hessian_spectrum(
                problem.loss_fn, problem.params, samples, steps=self.lanczos_steps, draws=self.draws
            )
            return spectrum, len(samples.advantages)
        compute = {"ggn": ggn_spectrum, "kfac": kfac_spectrum}[kind]
        try:
            return compute(problem.output_fn, problem.params, samples, hessian), len(hessian)
        except ProblemTooLargeError as error:
            fewer = last_samples(samples, error.max_samples)
            count = len(fewer.advantages)
            if count < 2:
                raise
            warnings.warn(f"CurvatureCallback: {kind} on {count} instead of {len(hessian)} transitions: {error}")
            return compute(problem.output_fn, problem.params, fewer, hessian[-count:]), count

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _keep(self, spectrum: Spectrum) -> None:
        info = spectrum.info
        path = self._path(info)
        spectrum.save(path)
        measures = spectrum.measures(self.epsilon)
        section = {"start": "curvature", "end": "curvature_end", "periodic": "curvature"}[info["phase"]]
        prefix = f"{section}/{info['network']}/{info['kind']}"
        writer = summary_writer(self.logger)
        for name, value in measures.items():
            # For the CSV and JSON logs; the terminal's table truncates names this long.
            self.logger.record(f"{prefix}/{name}", float(value), exclude=("stdout", "log", "tensorboard"))
            if writer is not None:
                writer.add_scalar(f"{prefix}/{name}", float(value), info["step"])
        if writer is not None:
            add_spectrum_histogram(writer, f"{prefix}/log10_abs_eigenvalue", spectrum, info["step"])
            figure = Figure(figsize=(6, 3.5), layout="constrained")
            axes = figure.subplots()
            plot_density(axes, spectrum)
            axes.set_title(f"{info['network']} {info['kind']}, {info['phase']} of task {info['task_index']}")
            writer.add_figure(f"{prefix}/density", figure, info["step"])
        if self.verbose >= 1:
            shown = ", ".join(f"{name} {value:.3g}" for name, value in measures.items())
            print(f"Curvature at {info['step']} ({info['phase']}), {info['network']} {info['kind']}: {shown} -> {path}")

    def _path(self, info: Mapping[str, Any]) -> Path:
        """Return a file name that is not taken: a resumed run may measure at a step twice."""
        folder = Path(self.save_dir) if self.save_dir is not None else Path(self.logger.get_dir() or ".") / "curvature"
        stem = f"{info['step']:010d}_task{info['task_index']}_{info['phase']}_{info['network']}_{info['kind']}"
        path, number = folder / f"{stem}.npz", 1
        while path.exists():
            number += 1
            path = folder / f"{stem}_{number}.npz"
        return path

    def _layout(self) -> Layout:
        """Return TensorBoard's custom scalars: one chart for each network and kind, its epsilon-ranks together."""
        charts = {}
        for network in self.networks:
            for kind in self.kinds:
                names = "|".join(f"epsilon_rank_{eps:g}" for eps in self.epsilon)
                charts[f"{network} {kind}: epsilon-rank"] = ["Multiline", [f"curvature/{network}/{kind}/({names})"]]
        return {"curvature": charts}


def add_spectrum_histogram(writer: SummaryWriter, tag: str, spectrum: Spectrum, step: int) -> None:
    """
    Write a spectrum's log10 |eigenvalue| as a TensorBoard histogram, each eigenvalue counted once.

    :param writer: of the run
    :param tag: name
    :param spectrum: its zeros, and what is below 1e-12, are counted at -12
    :param step: of the measurement
    """
    values = np.log10(np.maximum(np.abs(spectrum.nodes.ravel()), 1e-12))
    counts = spectrum.weights.ravel() / spectrum.draws * spectrum.dim
    edges = np.linspace(-12, max(2.0, np.ceil(values.max())), 57)
    binned, _ = np.histogram(values, bins=edges, weights=counts)
    writer.add_histogram_raw(
        tag,
        min=float(values.min()),
        max=float(values.max()),
        num=float(spectrum.dim),
        sum=float((counts * values).sum()),
        sum_squares=float((counts * values**2).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=binned.tolist(),
        global_step=step,
    )


def _check_choices(name: str, values: Sequence[str], accepted: tuple[str, ...]) -> None:
    if isinstance(values, str) or not values or not set(values) <= set(accepted):
        raise ValueError(f"{name}={values!r}: accepted are one or more of {', '.join(map(repr, accepted))}, in a tuple")
