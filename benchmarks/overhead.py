"""
Measure the cost of L2-ER and of the callbacks, as shares and ratios, side by side in one run.

    python benchmarks/overhead.py

This prints tables and writes ``results/overhead.json``. It compares the L2-ER penalties in both modes with training
without them; the step mode with the forward and backward pass over the rollout that it needs in any case, also as a
share of the time; the update of a minibatch with its size; and the callbacks with training on tasks of 200,000 steps,
including SAC and DQN.
"""

import argparse
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from measure import machine, median
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from training import OFF, ROLLOUT, SETTINGS, STEP, ours

from sb3_plasticity import PPO_L2ER, CurvatureCallback, PlasticityCallback
from sb3_plasticity.common.functional import functional_call
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


# As the penalties are switched on: the default, the authors' step on the default spectrum and on theirs.
MODES: dict[str, dict[str, Any]] = {
    "loss": {},
    "step": STEP,
    "step, features": STEP | dict(rank_of="features"),
}


def penalties(rounds: int) -> dict[str, Any]:
    """Whole iterations with the penalties on, over those with them off."""
    results = {}
    for setting in SETTINGS:
        for compiled in (False, True):
            models = {mode: ours(setting, compile=compiled, **extra) for mode, extra in ({"off": OFF} | MODES).items()}
            jobs: dict[str, Callable[[], Any]] = {
                mode: functools.partial(model.learn, ROLLOUT, reset_num_timesteps=False, log_interval=None)
                for mode, model in models.items()
            }
            times = alternate(jobs, rounds)
            name = f"{setting}, {'compiled' if compiled else 'eager'}"
            results[name] = {
                mode: median(a / b for a, b in zip(times[mode], times["off"], strict=True)) for mode in MODES
            }
            shown = ", ".join(f"{mode} {ratio:.3f}" for mode, ratio in results[name].items())
            print(f"{name:>24}: {shown} of the time without")
    return results


class Outputs(nn.Module):
    """What a forward pass cannot do without, in one number."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        values, log_prob, _ = self.policy.evaluate_actions(observations, actions)
        return values.sum() + log_prob.sum()


def bare_pass(model: PPO_L2ER) -> Callable[[], Any]:
    """A forward and a backward pass over the rollout, compiled as the model's updates are."""
    rollout = rollout_samples(model.rollout_buffer)
    outputs = Outputs(model.policy)
    if model._compiled is None:
        return lambda: th.autograd.grad(
            outputs(rollout.observations, rollout.actions), list(model.policy.parameters()), allow_unused=True
        )
    names, parameters = zip(*outputs.named_parameters(), strict=True)

    def gradients(*flat: th.Tensor) -> tuple[th.Tensor, ...]:
        def total(values: list[th.Tensor]) -> th.Tensor:
            value: th.Tensor = functional_call(outputs, dict(zip(names, values, strict=True)), flat[len(names) :])
            return value

        return tuple(th.func.grad(total)(list(flat[: len(names)])))

    inputs = [*(parameter.detach() for parameter in parameters), rollout.observations, rollout.actions]
    program = model._compiled._compile(gradients, inputs)
    return lambda: program(*inputs)


def step_mode(rounds: int) -> dict[str, dict[str, float]]:
    """An epoch's effective-rank step over a bare forward and backward pass, and its share of the time."""
    results = {}
    for setting in ("paper", "dohare"):
        for compiled in (False, True):
            for mode in ("step", "step, features"):
                model = ours(setting, compile=compiled, **MODES[mode])
                model.learn(ROLLOUT, log_interval=None)  # compiles

                def iteration(model: PPO_L2ER = model) -> None:
                    model.learn(ROLLOUT, reset_num_timesteps=False, log_interval=None)

                def step(model: PPO_L2ER = model, compiled: bool = compiled) -> None:
                    if compiled and model._compiled is not None:
                        model._compiled.ascent.take(model._rollout, 1e-6)
                    else:
                        model._rank_ascent()

                iterations = alternate({"iteration": iteration}, rounds)["iteration"]
                times = alternate({"step": step, "bare": bare_pass(model)}, 5 * rounds)
                name = f"{setting}, {'compiled' if compiled else 'eager'}, {mode}"
                results[name] = {
                    "of bare pass": median(a / b for a, b in zip(times["step"], times["bare"], strict=True)),
                    "share of time": model.n_epochs * median(times["step"]) / median(iterations),
                }
                print(
                    f"{name:>40}: {results[name]['of bare pass']:.2f} of a bare forward and backward pass, "
                    f"{results[name]['share of time']:.1%} of the time"
                )
    return results


def minibatches(rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of a compiled minibatch update, with L2 and without effective rank, against its size."""
    results: dict[str, dict[int, float]] = {}
    for layers in ([256], [256, 256]):
        jobs, counts = {}, {}
        for size in (16, 64, 256, 1024, 4096):
            n_steps = max(2048, size) // 8
            model = ours(
                "dohare",
                compile=True,
                n_steps=n_steps,
                batch_size=size,
                n_epochs=1,
                er_coef=0.0,
                policy_kwargs=dict(net_arch=layers, activation_fn=nn.ReLU),
            )
            model._rollout_ranks = dict  # type: ignore[method-assign]  # the log, once a rollout
            jobs[str(size)], counts[str(size)] = collected(model).train, n_steps * 8 // size
        times = alternate(jobs, 5 * rounds)
        results[str(layers)] = {int(size): 1e3 * median(times[size]) / counts[size] for size in jobs}
        shown = ", ".join(f"{size}: {value:.2f}" for size, value in results[str(layers)].items())
        print(f"{layers!s:>24}: ms per minibatch of {shown}")
    return results


class Timed:
    """Seconds of each rollout's end, which is where a callback does its work."""

    times: list[float]

    @property
    def spent(self) -> float:
        return sum(self.times)


class TimedCurvature(Timed, CurvatureCallback):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.times = []

    def _on_rollout_end(self) -> None:
        self.times.append(seconds(super()._on_rollout_end))


class TimedPlasticity(Timed, PlasticityCallback):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.times = []

    def _on_rollout_start(self) -> None:
        began = seconds(super()._on_rollout_start)
        if self.times:
            self.times[-1] += began

    def _on_rollout_end(self) -> None:
        self.times.append(seconds(super()._on_rollout_end))


def off_policy(rounds: int) -> dict[str, dict[str, float]]:
    """The callbacks' share of the training time of SAC and DQN on a task of 200,000 steps, with their defaults."""
    learners: dict[str, Callable[[], BaseAlgorithm]] = {
        "SAC": lambda: SAC("MlpPolicy", "SlipperyAnt-v0", learning_starts=100, buffer_size=10_000, seed=0),
        "DQN": lambda: DQN("MlpPolicy", "CartPole-v1", learning_starts=100, buffer_size=10_000, seed=0),
    }
    results = {}
    for name, make in learners.items():
        shares: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            timed: TimedCurvature | TimedPlasticity
            for timed in (TimedCurvature(save_dir=folder), TimedPlasticity()):
                model, steps = make(), 400 * rounds
                elapsed = seconds(functools.partial(model.learn, steps, callback=timed))
                times = sorted(timed.times)
                # A few rollout ends measure; what the others cost is paid at every one.
                n_large = 2 if isinstance(timed, TimedCurvature) else 1
                large, small = sum(times[-n_large:]), sum(times[:-n_large]) / max(len(times) - n_large, 1)
                per_task = TASK_STEPS / 20_000 if isinstance(timed, TimedPlasticity) else 1
                rollouts = TASK_STEPS * len(times) / model.num_timesteps
                training = (elapsed - timed.spent) / model.num_timesteps * TASK_STEPS
                # The curvature's start is measured here; a task's end costs as much again.
                measured = 2 * large if isinstance(timed, TimedCurvature) else per_task * large
                shares[type(timed).__name__.removeprefix("Timed") + "Callback"] = (
                    measured + small * rollouts
                ) / training
        results[name] = shares
        shown = ", ".join(f"{callback} {share:.2%}" for callback, share in shares.items())
        print(f"{name:>24}: {shown} of the training time")
    return results


def callbacks(rounds: int) -> dict[str, dict[str, float]]:
    """The callbacks' share of the training time of a task of 200,000 steps, with their defaults."""
    results = {}
    for setting in ("paper", "dohare"):
        shares: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for timed in (TimedCurvature(save_dir=folder), TimedPlasticity()):
                model = ours(setting)
                elapsed = seconds(functools.partial(model.learn, 5 * rounds * ROLLOUT, callback=timed))
                training = (elapsed - timed.spent) / model.num_timesteps * TASK_STEPS
                # The curvature was taken once, at the start of the only task here; its end costs as much again.
                is_curvature = isinstance(timed, TimedCurvature)
                spent = 2 * timed.spent if is_curvature else timed.spent / model.num_timesteps * TASK_STEPS
                shares[type(timed).__name__.removeprefix("Timed") + "Callback"] = spent / training
        results[setting] = shares
        shown = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
        print(f"{setting:>24}: {shown} of the training time (eager)")
    return results


PARTS: dict[str, Callable[[int], Any]] = {
    "penalties": penalties,
    "step_mode": step_mode,
    "minibatches": minibatches,
    "callbacks": callbacks,
    "off_policy": off_policy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    # Parts that are not measured anew stay.
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.parts:
        print(f"\n{PARTS[name].__doc__}")
        results[name] = {"machine": machine(), "rounds": args.rounds, "results": PARTS[name](args.rounds)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"Written to {args.out}")


if __name__ == "__main__":
    main()
