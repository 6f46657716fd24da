"""A study's folder with made-up runs: what training would leave, for tests and for a look at the report."""

import math
from pathlib import Path

import numpy as np
import yaml

from sb3_plasticity.curvature.spectrum import Spectrum
from sb3_plasticity.study.folder import RunFolder, State
from sb3_plasticity.study.spec import Study, read_study
from sb3_plasticity.study.train import describe

# How good a method is, how fast it gets worse, how long it takes to recover (share of a task).
CHARACTERS = ((2600, -350, 0.25), (2700, -60, 0.15), (2500, -150, 0.2), (2400, -330, 0.25))


def write_study(
    root: Path, methods=("PPO", "PPO_L2ER"), seeds=(0, 1), n_tasks=3, period=20_000, env_ids=None, **report
):
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
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_study(root / "study.yml")


def write_monitor(folder: Path, rows) -> None:
    """Write rows of r, l, step, task_index, task_value as SB3's ``Monitor`` does."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['#{"t_start": 0.0, "env_id": "SlipperyAnt-v0"}', "r,l,t,step,task_index,task_value"]
    lines += [f"{r},{length},0.1,{step},{task},{value}" for r, length, step, task, value in rows]
    (folder / "monitor.csv").write_text("\n".join(lines) + "\n")


def write_run(root: Path, study: Study, run, state="finished", curvature=True, spectra_per_start=("ggn",)) -> RunFolder:
    """Write a run that begins its tasks badly, recovers, and fares worse from task to task, as its method has it."""
    folder = RunFolder(root / run.name)
    records = folder.new_attempt(0)
    rng = np.random.default_rng([run.seed, list(study.methods).index(run.method)])
    frictions = np.exp(np.random.default_rng(run.seed).uniform(np.log(0.02), np.log(2), study.n_tasks))
    good, decay, slow = CHARACTERS[list(study.methods).index(run.method) % len(CHARACTERS)]
    luck = np.random.default_rng([run.seed, 99]).normal(scale=500)
    stop = study.n_timesteps if state == "finished" else study.n_timesteps // 2
    levels = []
    for task in range(study.n_tasks):
        level = good + decay * task + luck + 300 * np.log10(frictions[task]) + rng.normal(scale=300)
        levels.append(max(level, 300 + rng.normal(scale=100)))
    write_monitor(records, list(_episodes(study, levels, frictions, slow, stop, rng)))
    _write_progress(records, study, run, rng, stop)
    if curvature:
        for task in range(math.ceil(stop / study.period)):
            for network in ("policy", "value"):
                for kind in spectra_per_start:
                    _write_spectrum(records, study, task, frictions[task], levels[task], network, kind, rng)
    folder.write_description(
        {
            **describe(study, run),
            "versions": {"torch": "2.13.0", "stable-baselines3": "2.9.0"},
            "git_commit": "0123456789abcdef",
            "cpu": "AMD EPYC",
            "cpus": 2,
            "python": "3.11.2",
            "date": "2026-11-22",
        }
    )
    error = "RuntimeError: <b>out of memory</b>" if state == "crashed" else None
    seconds = 700.0 + 100 * list(study.methods).index(run.method) + rng.normal(scale=20)
    folder.write_state(State(state, stop, seconds, error))
    return folder


def _episodes(study, levels, frictions, slow, stop, rng):
    length = min(1000, study.period // 20)
    low = 500.0
    for step in range(8 * length, stop + 8 * length, 8 * length):
        task = min(max(step - 1, 0) // study.period, study.n_tasks - 1)
        since = (step - task * study.period) / study.period
        start = low if task == 0 else 0.35 * levels[task]
        level = levels[task] - (levels[task] - start) * np.exp(-since / slow * (1 if task else 0.6))
        for _ in range(8):
            yield level + rng.normal(scale=150), length, min(step, stop), task, frictions[task]


def _write_progress(records: Path, study, run, rng, stop) -> None:
    names = [
        "time/total_timesteps",
        "train/std",
        "train/erank_policy",
        "train/erank_value",
        *(
            f"plasticity/{network}/{name}"
            for network in ("policy", "value")
            for name in ("dormant_units", "weight_norm")
        ),
        "task/value",
    ]
    place = list(study.methods).index(run.method)
    lines = [",".join(names)]
    for i, step in enumerate(range(2048, stop + 1, 2048)):
        at = step / study.n_timesteps
        row = [step, 0.37 * np.exp(-(1.5 - 0.4 * place) * at), 90 - 20 * at * (3 - place), 60 - 15 * at * (3 - place)]
        row = [row[0], *(value * (1 + 0.03 * rng.normal()) for value in row[1:])]
        row += [0.1 + 0.3 * at, 12 + 20 * at, 0.2 + 0.3 * at, 11 + 25 * at] if i % 10 == 0 else [""] * 4
        lines.append(",".join(map(str, [*row, 0.3])))
    (records / "progress.csv").write_text("\n".join(lines) + "\n")


def _write_spectrum(records, study, task, friction, level, network, kind, rng) -> None:
    dim, count = 20_000, 1024
    rank = np.clip(0.012 + 1.5e-5 * level + rng.normal(scale=0.006), 0.003, 0.05)
    above = int(rank * dim)
    values = np.concatenate(
        [np.exp(rng.uniform(0, 6, size=above)), np.exp(rng.uniform(-12, 0, size=max(count - above, 10)))]
    )
    info = {
        "step": max(task * study.period, 1),
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
