"""A study's folder with made-up runs: what training would leave, for tests and for a look at the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.random._generator import Generator

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.spec import PlannedRun, Study, read_study
from sb3_plasticity.zoo.folder import MONITOR, RunFolder, State

# How good a method is, how fast it gets worse, how long it takes to recover (share of a task).
CHARACTERS = ((2600, -350, 0.25), (2700, -60, 0.15), (2500, -150, 0.2), (2400, -330, 0.25))
MADE_WITH: dict[str, Any] = {
    "versions": {"torch": "2.13.0", "stable-baselines3": "2.9.0"},
    "git_commit": "0123456789abcdef",
    "cpu": "AMD EPYC",
    "cpus": 2,
    "python": "3.11.2",
    "date": "2026-11-22",
}


def write_study(
    root: Path,
    methods: Sequence[str] = ("PPO", "PPO_L2ER"),
    seeds: Sequence[int] = (0, 1),
    n_tasks: int = 3,
    period: int = 20_000,
    env_ids: list[str] | None = None,
    control: bool = False,
    **report: Any,
) -> Study:
    """Write ``study.yml`` and read it back."""
    content = {
        "name": "synthetic",
        "env_ids": list(env_ids or ["SlipperyAnt-v0"]),
        "n_timesteps": n_tasks * period,
        "seeds": list(seeds),
        "env_kwargs": {"schedule": {"kind": "log_uniform", "low": 0.02, "high": 2.0, "period": period}},
        "hyperparams": {"policy": "MlpPolicy", "n_envs": 8, "n_steps": 256},
        "methods": {method: {"er_coef": 0.001 * i} for i, method in enumerate(methods)},
        "report": {"baseline": methods[0], **report},
    }
    if control:
        content["control"] = {"schedule": {"kind": "cyclic", "values": [0.5], "period": period}}
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_study(root / "study.yml")


def describe(folder: RunFolder, study: Study, run: PlannedRun) -> None:
    """Write what the run is, as its preparation does."""
    kwargs = {**study.env_kwargs, **((study.control or {}) if run.control else {})}
    entry = {key: value for key, value in study.methods[run.method].items() if key != "algo"}
    tags = {"study": study.name, "method": run.method, "control": run.control, "period": kwargs["schedule"]["period"]}
    folder.write_description(
        {
            "algo": study.methods[run.method]["algo"],
            "env_id": run.env_id,
            "seed": run.seed,
            "n_timesteps": study.n_timesteps,
            "hyperparams": {**entry, "env_kwargs": kwargs},
            "tags": tags,
            **MADE_WITH,
        }
    )


def write_monitor(folder: Path, rows: list[tuple[float | str, ...]]) -> None:
    """Write rows of r, l, step, task_index, task_value as SB3's ``Monitor`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['#{"t_start": 0.0, "env_id": "SlipperyAnt-v0"}', "r,l,t,step,task_index,task_value"]
    lines += [f"{r},{length},0.1,{step},{task},{value}" for r, length, step, task, value in rows]
    (folder / MONITOR).write_text("\n".join(lines) + "\n")


def write_run(
    root: Path,
    study: Study,
    run: PlannedRun,
    state: str = "finished",
    curvature: bool = True,
    spectra_per_start: tuple[str, ...] = ("ggn",),
) -> RunFolder:
    """Write a run that begins its tasks badly, recovers, and fares worse from task to task, as its method has it."""
    folder = RunFolder(root / run.name)
    records = folder.new_attempt(0)
    place = list(study.methods).index(run.method)
    rng = np.random.default_rng([run.seed, place, run.control])
    period = study.env_kwargs["schedule"]["period"]
    n_tasks = study.n_timesteps // period
    frictions = np.exp(np.random.default_rng(run.seed).uniform(np.log(0.02), np.log(2), n_tasks))
    good, decay, slow = CHARACTERS[place % len(CHARACTERS)]
    if run.control:
        frictions, decay = np.full(n_tasks, 0.5), 50
    luck = np.random.default_rng([run.seed, 99]).normal(scale=500)
    stop = study.n_timesteps if state == "finished" else study.n_timesteps // 2
    levels = []
    for task in range(n_tasks):
        level = good + decay * task + luck + 300 * np.log10(frictions[task]) + rng.normal(scale=300)
        levels.append(max(level, 300 + rng.normal(scale=100)))
    write_monitor(records, list(_episodes(study, period, levels, frictions, slow, stop, rng)))
    _write_progress(records, study, place, rng, stop, levels, period)
    if curvature:
        for task in range(-(-stop // period)):
            for network in ("policy", "value"):
                for kind in spectra_per_start:
                    _write_spectrum(records, period, task, frictions[task], levels[task], network, kind, rng)
    describe(folder, study, run)
    error = "RuntimeError: <b>out of memory</b>" if state == "crashed" else None
    folder.write_state(State(state, stop, 700.0 + 100 * place + rng.normal(scale=20), error))
    return folder


def _episodes(
    study: Study, period: int, levels: list[float], frictions: np.ndarray, slow: float, stop: int, rng: Generator
) -> Iterator[tuple[float, ...]]:
    length = min(1000, period // 20)
    low = 500.0
    for step in range(8 * length, stop + 8 * length, 8 * length):
        task = min(max(step - 1, 0) // period, len(levels) - 1)
        since = (step - task * period) / period
        start = low if task == 0 else 0.35 * levels[task]
        level = levels[task] - (levels[task] - start) * np.exp(-since / slow * (1 if task else 0.6))
        for _ in range(8):
            yield level + rng.normal(scale=150), length, min(step, stop), task, frictions[task]


def _write_progress(
    records: Path, study: Study, place: int, rng: Generator, stop: int, levels: list[float], period: int
) -> None:
    names = ["time/total_timesteps", "train/std", "train/erank_policy", "train/erank_value"]
    for network in ("policy", "value"):
        names += [f"plasticity/{network}/{name}" for name in ("dormant_units", "weight_norm", "effective_rank")]
        names += [f"plasticity_control/{network}/effective_rank", f"plasticity/{network}/layer/effective_rank"]
    lines = [",".join(names)]
    for i, step in enumerate(range(2048, stop + 1, 2048)):
        at = step / study.n_timesteps
        level = levels[min(step // period, len(levels) - 1)]
        row = [0.37 * np.exp(-(1.5 - 0.4 * place) * at), 90 - 20 * at * (3 - place), 60 - 15 * at * (3 - place)]
        row = [step, *(value * (1 + 0.03 * rng.normal()) for value in row)]
        told = level / 50 + rng.normal(scale=3)
        row += [0.1 + 0.3 * at, 12 + 20 * at, told, 60.0, told] if i % 2 == 0 else [""] * 5
        row += [0.2 + 0.3 * at, 11 + 25 * at, rng.uniform(5, 9), 9.0, 1.0] if i % 2 == 0 else [""] * 5
        lines.append(",".join(map(str, row)))
    (records / "progress.csv").write_text("\n".join(lines) + "\n")


def _write_spectrum(
    records: Path, period: int, task: int, friction: float, level: float, network: str, kind: str, rng: Generator
) -> None:
    dim, count = 20_000, 1024
    rank = np.clip(0.012 + 1.5e-5 * level + rng.normal(scale=0.006), 0.003, 0.05)
    above = int(rank * dim)
    values = np.concatenate(
        [np.exp(rng.uniform(0, 6, size=above)), np.exp(rng.uniform(-12, 0, size=max(count - above, 10)))]
    )
    info = {
        "step": max(task * period, 1),
        "task_index": task,
        "task_value": float(friction),
        "phase": "start",
        "network": network,
        "kind": kind,
        "n_samples": 128,
    }
    if kind == "hessian":
        nodes = np.quantile(np.concatenate([values, -0.2 * values]), np.linspace(0, 1, 100))
        spectrum = Spectrum(nodes[None], np.full((1, 100), 0.01), dim, info=info)
    else:
        spectrum = Spectrum.from_eigenvalues(values, dim, info=info)
    spectrum.save(records / "curvature" / f"{task}_{network}_{kind}.npz")
