"""CurvatureCallback: when to measure curvature, on which transitions, and what to keep."""

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from sb3_plasticity.agents import networks_of, objectives_of, source_of
from sb3_plasticity.agents.problems import CurvatureProblem, curvature_problem
from sb3_plasticity.agents.samples import SampleSource
from sb3_plasticity.callbacks.finite import check_finite
from sb3_plasticity.callbacks.progress import Measurement, Progress, records_after
from sb3_plasticity.callbacks.spectrum_log import log_spectrum, spectrum_charts
from sb3_plasticity.callbacks.tasks import tasks_of
from sb3_plasticity.callbacks.tensorboard import add_charts, summary_writer
from sb3_plasticity.common.checks import check_count, check_names, check_number, must_be, suggests_names
from sb3_plasticity.common.functional import evaluation_mode
from sb3_plasticity.common.rank import check_epsilon
from sb3_plasticity.common.rollout import last_samples
from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.hessian import hessian_spectrum
from sb3_plasticity.curvature.jacobian import ProblemTooLargeError
from sb3_plasticity.curvature.kfac import kfac_spectrum
from sb3_plasticity.curvature.spectrum import Spectrum

KINDS = ("ggn", "hessian", "kfac", "entk")
# What an arithmetic that overflows ends in.
OVERFLOWS = (FloatingPointError, LinAlgError)


class CurvatureCallback(BaseCallback):
    """
    Record the curvature spectra of an agent's networks while it trains.

    It serves every algorithm whose objectives are known (:func:`~sb3_plasticity.agents.objectives_of`): PPO_L2ER, PPO,
    A2C, TRPO, RecurrentPPO, MaskablePPO, SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN.

    With ``every="task"`` it takes, at the end of the first rollout that holds transitions of a new task and before the
    update, the spectra on that task's transitions: H_tau^(0) of Prakash, He, Guo et al. (arXiv 2509.22335), the
    curvature under the weights that the last task left (``phase="start"``), and on the last transitions of the old
    task the curvature it ended with (``phase="end"``). Every spectrum is taken on ``n_samples`` transitions, because
    ranks can only be compared at equal numbers: spread evenly over those at hand (on-policy), or the first of the task
    (off-policy). If a rollout holds fewer of the new task, its weights are kept aside until enough have come. The very
    first rollout counts as the start of its task. An environment that reports no ``task_index`` has a single task.

    What is still due is kept with the model (its attribute ``curvature_progress``), so that a run resumed from a
    checkpoint measures what the uninterrupted run would have: the start of a task that begins after the checkpoint, and
    none a second time. What an interrupted run had recorded in the same folder after that checkpoint is replaced.

    TensorBoard gets the scalars ``curvature/<network>/<kind>/<measure>`` (``curvature_end/...`` for the ends of
    tasks), a histogram of ``log10 |eigenvalue|`` and a picture of the density; a measure that the quadrature of a
    Hessian cannot resolve is logged as the ends of its interval, ``<measure>_low`` and ``<measure>_high``. ``save_dir``
    gets one npz file for each spectrum, which :func:`~sb3_plasticity.curvature.records.load_spectra` turns into a
    table. ``rank_ceiling`` is the largest epsilon-rank that the GGN or the neural tangent kernel of ``n_samples``
    transitions can have, n_samples * outputs / parameters. Training is bit-identical with and without this callback. A
    measurement whose arithmetic overflows is left out with a warning.

    :param every: ``"task"``, a number of rollouts, or both as in ``("task", 50)``. Off-policy algorithms have rollouts
        of ``train_freq`` steps. A periodic measurement is on the latest ``n_samples`` transitions, gathered over
        rollouts where they are short, and left out as long as there are fewer
    :param networks: names of networks, such as ``("policy", "value")`` or ``("actor", "critic_0")``, and ``"joint"``,
        the policy and the value network as one; None for all, without ``"joint"``
    :param kinds: some of ``"ggn"`` (exact; a policy's is its Fisher information matrix), ``"hessian"`` (of the
        network's own loss without the penalties of mitigations, by stochastic Lanczos), ``"kfac"`` (the GGN's
        Kronecker-factored approximation) and ``"entk"`` (the empirical neural tangent kernel, whose rank C-CHAIN, Tang
        et al. 2025, and others diagnose by)
    :param epsilon: threshold or thresholds of the epsilon-ranks that are logged, on absolute eigenvalues
    :param n_samples: transitions that each spectrum is taken on, at least 2
    :param lanczos_steps: nodes of a draw of the Hessian's spectrum
    :param draws: start vectors of the Hessian's spectrum; more of them make the intervals of its measures narrower
    :param save_dir: folder for the spectra; by default ``curvature`` in the run's log folder
    :param time_budget: share of the wall time since training began that measurements may take, such as 0.03; None for
        no limit. Periodic measurements over it are left out; those of tasks wait, with their weights, until they fit
    :param verbose: 1 prints every measurement
    :raises ValueError: for arguments outside what is accepted
    """

    model: BaseAlgorithm

    @suggests_names()
    def __init__(
        self,
        every: str | int | tuple[str | int, ...] = "task",
        networks: Sequence[str] | None = None,
        kinds: Sequence[str] = ("ggn", "hessian"),
        epsilon: float | Sequence[float] = (1e-3, 1e-2, 1e-1),
        n_samples: int = 128,
        lanczos_steps: int = 100,
        draws: int = 1,
        save_dir: str | Path | None = None,
        time_budget: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        parts = tuple(every) if isinstance(every, (tuple, list)) and every else (every,)
        for part in parts:
            if part != "task" and (isinstance(part, bool) or not isinstance(part, int) or part < 1):
                raise must_be("every", "'task', a number of rollouts >= 1, or a tuple of both", every)
        if networks is not None and (isinstance(networks, str) or not networks):
            raise must_be("networks", "None or one or more names, in a tuple", networks)
        if isinstance(kinds, str) or not kinds:
            raise must_be("kinds", f"one or more of {', '.join(map(repr, KINDS))}, in a tuple", kinds)
        check_names("kinds", kinds, KINDS)
        self.epsilon = tuple(epsilon) if isinstance(epsilon, Sequence) else (epsilon,)
        for eps in self.epsilon:
            check_epsilon(eps)
        check_count("n_samples", n_samples, at_least=2)
        check_count("lanczos_steps", lanczos_steps, at_least=1)
        check_count("draws", draws, at_least=1)
        if time_budget is not None:
            check_number("time_budget", time_budget, above=0, at_most=1)
        self._per_task = "task" in parts
        self._per_rollouts = [part for part in parts if isinstance(part, int)]
        self.every = every
        self.networks = None if networks is None else tuple(networks)
        self.kinds = tuple(kinds)
        self.n_samples = n_samples
        self.lanczos_steps = lanczos_steps
        self.draws = draws
        self.save_dir = save_dir
        self.time_budget = time_budget
        self._names: tuple[str, ...] = ()
        self._source: SampleSource | None = None
        self._progress = Progress()
        self._replaced: dict[tuple[Any, ...], list[Path]] = {}
        self._measured: set[tuple[str, int]] = set()
        self._step_tasks: list[list[tuple[int, float]]] = []
        self._seconds_spent = 0.0
        self._seconds_each = 0.0
        self._began = 0.0
        self._left_out = 0

    def _init_callback(self) -> None:
        known = networks_of(self.model)
        objectives = objectives_of(self.model)
        self._names = tuple(known) if self.networks is None else self.networks
        check_names("networks", self._names, objectives)

    def _on_training_start(self) -> None:
        self._began, self._seconds_spent = time.monotonic(), 0.0
        self._step_tasks.clear()
        self._source = source_of(self.model)
        if self.n_samples > self._source.capacity:
            raise must_be("n_samples", f"at most the {self._source.capacity:.0f} of the replay buffer", self.n_samples)
        self._adopt_progress(self._source)
        if (writer := summary_writer(self.logger)) is not None:
            add_charts(writer, spectrum_charts(self._names, self.kinds, self.epsilon))

    def _on_rollout_start(self) -> None:
        self._step_tasks.clear()

    def _on_step(self) -> bool:
        self._step_tasks.append(tasks_of(self.training_env, self.locals["infos"]))
        return True

    def _on_rollout_end(self) -> None:
        assert self._source is not None
        started = time.monotonic()
        progress = self._progress
        progress.rollouts += 1
        to_come = min((-progress.rollouts % number for number in self._per_rollouts), default=None)
        size = len(self._step_tasks) * self.training_env.num_envs
        gather = to_come is not None and to_come * size <= self._wanted
        self._source.rollout_ended(self._wanted if gather else 0)
        if self._per_task:
            self._follow_tasks()
        if to_come == 0:
            part = self._source.latest(self._wanted)
            if part is not None and self._source.size(part) >= self._wanted:
                self._add("periodic", self._step_tasks[-1][0], part, share=1.0)
        self._seconds_spent += time.monotonic() - started
        self._work_off()

    def _on_training_end(self) -> None:
        if self._left_out:
            warnings.warn(f"CurvatureCallback: time_budget={self.time_budget} left out {self._left_out} measurements")
            self._left_out = 0
        late = [measurement for measurement in self._progress.waiting if self._is_complete(measurement)]
        if late:
            names = ", ".join(f"{measurement.phase} of task {measurement.task[0]}" for measurement in late)
            warnings.warn(f"CurvatureCallback: time_budget={self.time_budget} left no time for: {names}")

    # -- resuming -----------------------------------------------------------------------------------------------------

    def _adopt_progress(self, source: SampleSource) -> None:
        """Begin anew, or continue where the run that the model comes from was when it was saved."""
        key = f"{self.every!r} {self._names!r} {self.kinds!r} {self.n_samples}"
        kept: dict[str, Progress] = getattr(self.model, "curvature_progress", {})
        self._replaced, self._measured = {}, set()
        if self.num_timesteps == 0:
            self._progress = Progress()
        elif key in kept:
            if kept[key] is not self._progress:
                self._progress = kept[key]
                self._find_records()
        else:
            self._progress = Progress(began_at=self.num_timesteps)
        self._progress.source, self._progress.n_samples = source, source.rounded(self.n_samples)
        self.model.curvature_progress = kept | {key: self._progress}  # type: ignore[attr-defined]

    def _find_records(self) -> None:
        """Find what the same run recorded after the checkpoint, and before it what the model does not know."""
        for info, path in records_after(self._folder, self._progress.run_id):
            if info["step"] > self.num_timesteps:
                self._replaced.setdefault(_place(info), []).append(path)
            else:
                self._measured.add((info["phase"], info["task_index"]))

    # -- what is due ---------------------------------------------------------------------------------------------------

    def _follow_tasks(self) -> None:
        """Notice new tasks in this rollout; gather their transitions, and the last ones of the task before."""
        assert self._source is not None
        progress, steps = self._progress, len(self._step_tasks)
        gathering = any(measurement.phase == "start" for measurement in progress.waiting if not measurement.full)
        if self._source.remembers and not gathering and all(t == progress.task for ts in self._step_tasks for t in ts):
            progress.same_steps += steps  # where they are can be said later
            return
        indices = np.array([[index for index, _ in tasks] for tasks in self._step_tasks])
        values = dict(task for tasks in self._step_tasks for task in tasks)
        progress.settle(ago=steps)
        if progress.task is None and progress.began_at:
            # A resumed run of which nothing is known: where its task began is in the past.
            progress.task = min(values.items())
        for index in sorted(values):
            eligible = indices == index
            part = self._source.take(eligible, self._wanted)
            if progress.task is None or index > progress.task[0]:
                if progress.task is not None and progress.recent:
                    ended = self._source.last(progress.recent, self._wanted)
                    self._add("end", progress.task, ended, share=float((indices == progress.task[0]).mean()))
                progress.task, progress.recent = (index, values[index]), []
                # A task that ended before it showed enough transitions cannot be compared with others.
                progress.waiting = [m for m in progress.waiting if m.phase != "start" or self._is_complete(m)]
                self._add("start", progress.task, None, share=float(eligible.mean()))
            if index == progress.task[0] and part is not None:  # not: an environment still in an older task's episode
                for measurement in progress.waiting:
                    if measurement.phase == "start" and measurement.task[0] == index:
                        self._extend(measurement, part)
                latest = self._source.take(eligible, self._wanted, last=True)
                progress.recent = [self._source.last([*progress.recent, latest], self._wanted)]

    def _add(self, phase: str, task: tuple[int, float], part: Any, share: float) -> None:
        if phase != "periodic" and (phase, task[0]) in self._measured:
            return
        measurement = Measurement(phase, self.num_timesteps, task, None, [], share)
        if part is not None:
            self._extend(measurement, part)
        self._progress.waiting.append(measurement)

    def _extend(self, measurement: Measurement, part: Any) -> None:
        assert self._source is not None
        missing = self._wanted - sum(map(self._source.size, measurement.parts))
        if missing > 0:
            measurement.parts.append(self._source.some(part, missing))
            measurement.full = missing <= self._source.size(part)

    def _is_complete(self, measurement: Measurement) -> bool:
        assert self._source is not None
        gathered = sum(map(self._source.size, measurement.parts))
        return gathered >= self._wanted or (measurement.phase != "start" and gathered > 1)

    @property
    def _wanted(self) -> int:
        """How many transitions a measurement takes: whole sequences for a recurrent policy."""
        assert self._source is not None
        return self._source.rounded(self.n_samples)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _work_off(self) -> None:
        """Measure what is complete and affordable; keep the weights of what must wait."""
        waiting, self._progress.waiting = self._progress.waiting, []
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
                self._progress.waiting.append(measurement)

    def _is_affordable(self) -> bool:
        if self.time_budget is None:
            return True
        spent, elapsed = self._seconds_spent + self._seconds_each, time.monotonic() - self._began + self._seconds_each
        return spent <= self.time_budget * elapsed

    def _measure(self, measurement: Measurement) -> None:
        assert self._source is not None
        samples = self._source.read(measurement.parts)
        weights = self.model.policy.state_dict() if measurement.state is None else measurement.state
        check_finite(f"CurvatureCallback at {measurement.step} timesteps", samples, weights)
        objectives = objectives_of(self.model)
        root: nn.Module = self.model.policy
        state = None
        if measurement.state is not None:  # a resumed run's comes from a file
            state = {name: value.to(self.model.device) for name, value in measurement.state.items()}
        for network in self._names:
            for kind in self.kinds:
                started = time.monotonic()
                try:
                    with evaluation_mode(root):
                        problem = curvature_problem(root, objectives[network], samples, state)
                        spectrum, n_samples = self._spectrum(problem, kind)
                except OVERFLOWS as error:
                    warnings.warn(
                        f"CurvatureCallback leaves out its measurement at {measurement.step} timesteps, "
                        f"{kind} of {network}: {error}"
                    )
                    continue
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
                    run_id=self._progress.run_id,
                )
                if kind in ("ggn", "entk"):
                    info["rank_ceiling"] = min(1.0, n_samples * problem.output_hessian.shape[1] / spectrum.dim)
                self._keep(dataclasses.replace(spectrum, info=info))

    def _spectrum(self, problem: CurvatureProblem, kind: str) -> tuple[Spectrum, int]:
        """Return a spectrum and the number of transitions it is of: fewer where memory sets a bound."""
        samples, hessian = problem.samples, problem.output_hessian
        if kind == "hessian":
            spectrum = hessian_spectrum(
                problem.loss_fn, problem.params, samples, steps=self.lanczos_steps, draws=self.draws
            )
            return spectrum, len(hessian)
        if kind == "entk":
            hessian = th.ones(hessian.shape[:2], dtype=hessian.dtype, device=hessian.device)
        compute = kfac_spectrum if kind == "kfac" else ggn_spectrum
        try:
            return compute(problem.output_fn, problem.params, samples, hessian), len(hessian)
        except ProblemTooLargeError as error:
            fewer = last_samples(samples, error.max_samples)
            count = len(fewer.actions)
            if count < 2:
                raise
            warnings.warn(f"CurvatureCallback: {kind} on {count} instead of {len(hessian)} transitions: {error}")
            return compute(problem.output_fn, problem.params, fewer, hessian[-count:]), count

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _keep(self, spectrum: Spectrum) -> None:
        info = spectrum.info
        superseded = self._replaced.pop(_place(info), [])
        path = self._path(info, superseded)
        spectrum.save(path, overwrite=path in superseded)
        for old in superseded:
            if old != path:
                old.unlink(missing_ok=True)
        measures = log_spectrum(self.logger, spectrum, self.epsilon)
        if self.verbose >= 1:
            shown = ", ".join(f"{name} {value:.3g}" for name, value in measures.items())
            print(f"Curvature at {info['step']} ({info['phase']}), {info['network']} {info['kind']}: {shown} -> {path}")

    @property
    def _folder(self) -> Path:
        return Path(self.save_dir) if self.save_dir is not None else Path(self.logger.get_dir() or ".") / "curvature"

    def _path(self, info: Mapping[str, Any], superseded: Sequence[Path]) -> Path:
        """Return a file name that is not taken, but by what this spectrum replaces."""
        stem = f"{info['step']:010d}_task{info['task_index']}_{info['phase']}_{info['network']}_{info['kind']}"
        path, number = self._folder / f"{stem}.npz", 1
        while path.exists() and path not in superseded:
            number += 1
            path = self._folder / f"{stem}_{number}.npz"
        return path


def _place(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """Say what a spectrum is of: one that a resumed run takes again has the same."""
    when = info["step"] if info["phase"] == "periodic" else None
    return info["phase"], info["task_index"], info["network"], info["kind"], when
