"""
What L2-ER and the callbacks cost, as shares and ratios measured side by side in one run.

    python benchmarks/overhead.py

Prints tables and writes ``results/overhead.json``: the L2-ER penalties in both modes against none; the step mode
against the forward and backward pass over the rollout that it cannot do without; the update of a minibatch against its
size; the callbacks against training on tasks of 200,000 steps.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from measure import machine, median
from torch import nn
from training import OFF, ROLLOUT, SETTINGS, STEP, ours

from sb3_plasticity import PPO_L2ER, CurvatureCallback, PlasticityCallback
from sb3_plasticity.common.rollout import rollout_samples

TASK_STEPS = 200_000


def collected(model: PPO_L2ER) -> PPO_L2ER:
    """Fill the rollout buffer without training on it."""
    model.train = lambda: None  # type: ignore[method-assign]
    model.learn(ROLLOUT, reset_num_timesteps=False, log_interval=None)
    del model.train
    return model


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def alternate(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job, turn by turn, after a warm-up."""
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name in list(jobs)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(seconds(jobs[name]))
    return times


def penalties(rounds: int) -> dict[str, Any]:
    """Whole iterations with the penalties on, over those with them off."""
    results = {}
    for setting in SETTINGS:
        for compiled in (False, True):
            models = {
                mode: ours(setting, compile=compiled, **extra)
                for mode, extra in (("off", OFF), ("loss", {}), ("step", STEP))
            }
            jobs = {
                mode: lambda model=model: model.learn(ROLLOUT, reset_num_timesteps=False, log_interval=None)
                for mode, model in models.items()
            }
            times = alternate(jobs, rounds)
            name = f"{setting}, {'compiled' if compiled else 'eager'}"
            results[name] = {
                mode: median(a / b for a, b in zip(times[mode], times["off"], strict=True)) for mode in ("loss", "step")
            }
            print(f"{name:>24}: loss {results[name]['loss']:.3f}, step {results[name]['step']:.3f} of the time without")
    return results


def step_mode(rounds: int) -> dict[str, float]:
    """An epoch's effective-rank step over a plain forward and backward pass on the same rollout."""
    results = {}
    for setting in ("paper", "dohare"):
        model = collected(ours(setting, **STEP))
        rollout = rollout_samples(model.rollout_buffer)

        def floor(model: PPO_L2ER = model, rollout: Any = rollout) -> None:
            values, log_prob, _ = model.policy.evaluate_actions(rollout.observations, rollout.actions)
            parameters = list(model.policy.parameters())
            th.autograd.grad(values.sum() + log_prob.sum(), parameters, allow_unused=True)

        times = alternate({"step": lambda model=model: model._rank_ascent(1e-6), "floor": floor}, 5 * rounds)
        results[setting] = median(a / b for a, b in zip(times["step"], times["floor"], strict=True))
        print(f"{setting:>24}: a step takes {results[setting]:.2f} of its forward and backward pass")
    return results


def minibatches(rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of a compiled minibatch update against its size."""
    results: dict[str, dict[int, float]] = {}
    for layers in ([256], [256, 256]):
        jobs, counts = {}, {}
        for size in (16, 64, 256, 1024, 4096):
            n_steps = max(2048, size) // 8
            policy_kwargs = dict(net_arch=layers, activation_fn=nn.ReLU)
            model = ours(
                "dohare", compile=True, n_steps=n_steps, batch_size=size, n_epochs=1, policy_kwargs=policy_kwargs
            )
            collected(model)
            jobs[size], counts[size] = model, n_steps * 8 // size
        times = alternate({str(size): model.train for size, model in jobs.items()}, rounds)
        results[str(layers)] = {size: 1e3 * median(times[str(size)]) / counts[size] for size in jobs}
        shown = ", ".join(f"{size}: {value:.2f}" for size, value in results[str(layers)].items())
        print(f"{layers!s:>24}: ms per minibatch of {shown}")
    return results


class TimedCurvature(CurvatureCallback):
    spent = 0.0

    def _on_rollout_end(self) -> None:
        self.spent += seconds(super()._on_rollout_end)


class TimedPlasticity(PlasticityCallback):
    spent = 0.0

    def _on_rollout_end(self) -> None:
        self.spent += seconds(super()._on_rollout_end)


def callbacks(rounds: int) -> dict[str, dict[str, float]]:
    """The callbacks' share of the training time of a task of 200,000 steps, with their defaults."""
    results = {}
    for setting in ("paper", "dohare"):
        shares: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for timed in (TimedCurvature(save_dir=folder), TimedPlasticity()):
                model = ours(setting)
                elapsed = seconds(lambda model=model, timed=timed: model.learn(rounds * 10 * ROLLOUT, callback=timed))
                training = (elapsed - timed.spent) / model.num_timesteps * TASK_STEPS
                # The curvature was taken once, at the start of the only task here; its end costs as much again.
                is_curvature = isinstance(timed, TimedCurvature)
                spent = 2 * timed.spent if is_curvature else timed.spent / model.num_timesteps * TASK_STEPS
                shares[type(timed).__base__.__name__] = spent / training
        results[setting] = shares
        shown = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
        print(f"{setting:>24}: {shown} of the training time (eager)")
    return results


PARTS: dict[str, Callable[[int], Any]] = {
    "penalties": penalties,
    "step_mode": step_mode,
    "minibatches": minibatches,
    "callbacks": callbacks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    results: dict[str, Any] = {"machine": machine(), "rounds": args.rounds}
    for name in args.parts:
        print(f"\n{PARTS[name].__doc__}")
        results[name] = PARTS[name](args.rounds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
