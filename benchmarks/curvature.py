"""
Compare curvature spectra of this package, curvlinops, hessian-eigenthings and PyHessian, interleaved in one run.

    python benchmarks/curvature.py [--repeats 5] [--threads 2]

The network is a Gaussian policy with [256, 256] ReLU units on 27 observations and 8 actions. The benchmark takes 100
Lanczos steps with PPO's clipped loss on 2,048 samples. It also compares the exact GGN of 256 samples x 8 outputs with
100 GGN Lanczos steps on 256 and on 2,048 samples. All results are compared before anything is timed. It prints a table
of medians and ratios and writes benchmarks/results/curvature.json.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_plasticity.curvature import ggn_spectrum, hessian_spectrum, kfac_spectrum
from sb3_plasticity.curvature.hessian import hessian_vector_product

OBSERVATIONS, ACTIONS, SAMPLES, GGN_SAMPLES, STEPS = 27, 8, 2048, 256, 100
Job = Callable[[], Any]


class Policy(nn.Module):
    """Action means beside the log standard deviation, the same for every observation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(OBSERVATIONS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, ACTIONS)
        )
        self.log_std = nn.Parameter(th.zeros(ACTIONS))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        mean = self.net(observations)
        return th.cat([mean, self.log_std.expand_as(mean)], 1)


class PPOLoss(nn.Module):
    """PPO's clipped objective with an entropy bonus; targets hold actions, advantages and old log-probabilities."""

    reduction = "mean"

    def forward(self, outputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
        mean, log_std = outputs[:, :ACTIONS], outputs[:, ACTIONS:]
        actions, advantages, old = targets[:, :ACTIONS], targets[:, ACTIONS], targets[:, ACTIONS + 1]
        log_prob = (-0.5 * ((actions - mean) * (-log_std).exp()) ** 2 - log_std).sum(1)
        ratio = (log_prob - old).exp()
        objective = th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
        return -objective.mean() - 0.01 * log_std.sum(1).mean()


def problem() -> tuple[Policy, th.Tensor, th.Tensor]:
    """A policy after a few steps of training, so that the ratio is not 1 everywhere."""
    th.manual_seed(0)
    policy, loss = Policy(), PPOLoss()
    observations = th.randn(SAMPLES, OBSERVATIONS)
    with th.no_grad():
        mean = policy(observations)[:, :ACTIONS]
        actions = mean + th.randn(SAMPLES, ACTIONS)
        old = (-0.5 * (actions - mean) ** 2).sum(1, keepdim=True)
    advantages = actions[:, :1] * observations[:, :1] + th.randn(SAMPLES, 1)
    targets = th.cat([actions, advantages, old], 1)
    optimiser = th.optim.Adam(policy.parameters(), lr=3e-4)
    for _ in range(10):
        optimiser.zero_grad()
        loss(policy(observations), targets).backward()
        optimiser.step()
    return policy, observations, targets


def hessian_jobs(policy: Policy, observations: th.Tensor, targets: th.Tensor) -> tuple[dict[str, Job], dict[str, Any]]:
    """100 Lanczos steps in every library, and how far their answers are apart."""
    loss = PPOLoss()
    params = {name: value.detach() for name, value in policy.named_parameters()}
    batch = (observations, targets)

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        value: th.Tensor = loss(th.func.functional_call(policy, params, (batch[0],)), batch[1])
        return value

    jobs: dict[str, Job] = {"sb3_plasticity": lambda: hessian_spectrum(loss_fn, params, batch, steps=STEPS)}
    answers: dict[str, Any] = {"dim": sum(value.numel() for value in params.values())}
    vector = {name: th.randn_like(value) for name, value in params.items()}
    flat = th.cat([value.reshape(-1) for value in vector.values()])
    product = hessian_vector_product(loss_fn, params, batch, vector)
    reference = th.cat([value.reshape(-1) for value in product.values()])
    ours = jobs["sb3_plasticity"]()
    # The same start vector as ours, for equal nodes.
    start = th.randn(len(flat), generator=th.Generator().manual_seed(0), dtype=th.float64).float()

    import hessian_eigenthings as he
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    theirs = he.HessianOperator(policy, [batch], lambda model, data: loss(model(data[0]), data[1]))
    jobs["hessian-eigenthings"] = lambda: he.lanczos_tridiagonal(theirs, start, STEPS, reorthogonalize=True)
    tridiagonal = jobs["hessian-eigenthings"]()
    nodes = np.linalg.eigvalsh(
        np.diag(tridiagonal.alphas.double().numpy())
        + np.diag(tridiagonal.betas.double().numpy(), 1)
        + np.diag(tridiagonal.betas.double().numpy(), -1)
    )
    scale = np.abs(nodes).max()
    answers["hessian-eigenthings: product, relative difference"] = _difference(theirs.matvec(flat), reference)
    answers["hessian-eigenthings: 100 nodes, largest difference / largest"] = float(
        np.abs(np.sort(ours.nodes[0]) - nodes).max() / scale
    )

    operator = HessianLinearOperator(policy, loss, list(policy.parameters()), [batch], check_deterministic=False)
    # Its own Lanczos has no reorthogonalisation: less work than ours, and ghost eigenvalues.
    jobs["curvlinops (no reorthogonalisation)"] = lambda: fast_lanczos(operator, STEPS)
    answers["curvlinops: product, relative difference"] = _difference(operator @ flat, reference)
    values, _ = jobs["curvlinops (no reorthogonalisation)"]()
    answers["curvlinops: largest eigenvalue, relative difference"] = abs(float(values.max()) / ours.largest - 1)

    jobs["PyHessian"] = _pyhessian(policy, loss, batch)
    return jobs, answers


def _pyhessian(policy: Policy, loss: nn.Module, batch: tuple[th.Tensor, th.Tensor]) -> Job:
    from pyhessian import hessian

    return lambda: hessian(policy, loss, data=batch, cuda=False).density(iter=STEPS, n_v=1)


def ggn_jobs(policy: Policy, observations: th.Tensor) -> tuple[dict[str, Job], dict[str, Any]]:
    """The exact GGN of 256 x 8 beside 100 GGN Lanczos steps; mean squared error, so that any library can have it."""
    import hessian_eigenthings as he
    from curvlinops import GGNLinearOperator
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    net, loss = policy.net, nn.MSELoss()
    params = {name: value.detach() for name, value in net.named_parameters()}
    weights = th.full((GGN_SAMPLES, ACTIONS), 2.0 / ACTIONS)

    def output_fn(params: dict[str, th.Tensor], inputs: th.Tensor) -> th.Tensor:
        outputs: th.Tensor = th.func.functional_call(net, params, (inputs,))
        return outputs

    few = observations[:GGN_SAMPLES]
    jobs: dict[str, Job] = {
        "sb3_plasticity exact GGN, 256 x 8": lambda: ggn_spectrum(output_fn, params, few, weights),
        "sb3_plasticity KFAC, 256 x 8": lambda: kfac_spectrum(output_fn, params, few, weights),
    }
    ours = jobs["sb3_plasticity exact GGN, 256 x 8"]()
    answers: dict[str, Any] = {}
    for n_samples in (GGN_SAMPLES, SAMPLES):
        batch = (observations[:n_samples], th.zeros(n_samples, ACTIONS))
        theirs = he.GGNOperator(net, [batch], lambda model, data: model(data[0]), lambda out, data: loss(out, data[1]))
        operator = GGNLinearOperator(net, loss, list(net.parameters()), [batch], check_deterministic=False)
        start = th.randn(theirs.size, generator=th.Generator().manual_seed(0))
        lanczos = partial(he.lanczos_tridiagonal, theirs, start, STEPS, reorthogonalize=True)
        jobs[f"hessian-eigenthings, 100 GGN Lanczos steps, {n_samples}"] = lanczos
        jobs[f"curvlinops, 100 GGN Lanczos steps, {n_samples}"] = partial(fast_lanczos, operator, STEPS)
        if n_samples == GGN_SAMPLES:
            largest = float(fast_lanczos(operator, STEPS)[0].max())
            answers["curvlinops: largest GGN eigenvalue, relative difference"] = abs(largest / ours.largest - 1)
            tridiagonal = lanczos()
            matrix = th.diag(tridiagonal.alphas) + th.diag(tridiagonal.betas, 1) + th.diag(tridiagonal.betas, -1)
            answers["hessian-eigenthings: largest GGN eigenvalue, relative difference"] = abs(
                float(th.linalg.eigvalsh(matrix.double()).max()) / ours.largest - 1
            )
    return jobs, answers


def _difference(value: th.Tensor, reference: th.Tensor) -> float:
    return float((value.detach() - reference).norm() / reference.norm())


def interleaved(jobs: dict[str, Job], repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time all jobs in turn, again and again, so that noise disturbs them alike; and say which cannot run."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    failed: dict[str, str] = {}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            if name in failed:
                continue
            begin = time.perf_counter()
            try:
                job()
            except (RuntimeError, AttributeError) as error:
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            if repeat:  # the first round warms up
                times[name].append(time.perf_counter() - begin)
    return {name: values for name, values in times.items() if values}, failed


def main() -> None:
    """Run both comparisons, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "curvature.json")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    policy, observations, targets = problem()
    report: dict[str, Any] = {
        "torch": th.__version__,
        "machine": platform.machine(),
        "threads": args.threads,
        "repeats": args.repeats,
    }
    for title, (jobs, answers) in {
        "Hessian, 2,048 samples, 100 Lanczos steps": hessian_jobs(policy, observations, targets),
        "GGN": ggn_jobs(policy, observations),
    }.items():
        times, failed = interleaved(jobs, args.repeats)
        medians = {name: statistics.median(values) for name, values in times.items()}
        base = next(iter(medians.values()))
        print(f"\n{title}\n{'':58}  median s   to ours")
        for name, median in medians.items():
            print(f"{name:58}{median:10.3f}{median / base:10.2f}")
        for name, reason in failed.items():
            print(f"{name:58}cannot run: {reason}")
        for name, value in answers.items():
            print(f"    {name}: {value:g}")
        report[title] = {
            "seconds": times,
            "median": medians,
            "ratio_to_ours": {name: median / base for name, median in medians.items()},
            "cannot_run": failed,
            "answers": answers,
        }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{args.output}")


if __name__ == "__main__":
    main()
