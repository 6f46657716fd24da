"""
Measure how often the intervals of a Hessian's measures contain the true value, by comparison with dense Hessians.

    python benchmarks/certified_spectra.py [--trials 200] [--problems tanh relu cnn policy value] [--steps 100]

For each network, dtype and threshold, this prints the true number of eigenvalues, the share of start vectors whose
interval contains it, the mean width of the interval and the root mean squared error of the estimate. ``plain`` is the
same without the additions of this package: the sum of weights, extended by the weights of the neighbouring nodes.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.curvature import Spectrum, hessian_spectrum

EPSILON = (1e-3, 1e-2, 0.1, 1.0)
LossFn = Callable[[dict[str, th.Tensor], Any], th.Tensor]
Problem = tuple[LossFn, dict[str, th.Tensor], Any]


class Evaluate(nn.Module):
    """An SB3 policy's values, or log-probabilities of actions, behind a ``forward`` that keeps float64."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: th.Tensor, actions: th.Tensor | None = None) -> Any:
        if actions is None:
            return self.policy.value_net(self.policy.mlp_extractor.forward_critic(observations)).flatten()
        latent = self.policy.mlp_extractor.forward_actor(observations)
        return self.policy._get_action_dist_from_latent(latent).log_prob(actions)


def network(name: str) -> Problem:
    """A small network after 200 steps of Adam, in float64."""
    th.manual_seed(0)
    if name in ("policy", "value"):
        return _sb3(name)
    if name == "cnn":
        net: nn.Sequential = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)),
        )
        batch = (th.randn(64, 1, 8, 8).double(), th.randn(64, 3).double())
    else:
        unit = nn.Tanh if name == "tanh" else nn.ReLU
        first, second = nn.Linear(8, 24), nn.Linear(24, 24)
        net = nn.Sequential(first, unit(), second, unit(), nn.Linear(24, 1))
        batch = (th.randn(128, 8).double(), th.randn(128, 1).double())
        if name == "relu":
            with th.no_grad():
                first.bias[:8] = -100.0  # dead units
                second.bias[:5] = -100.0
    net.double()

    def loss_fn(params: dict[str, th.Tensor], batch: Any) -> th.Tensor:
        return F.mse_loss(th.func.functional_call(net, params, (batch[0],)), batch[1])

    return _fitted(loss_fn, dict(net.named_parameters()), batch)


def _sb3(name: str) -> Problem:
    """PPO's surrogate in the policy network's parameters, or the value network's squared error."""
    import gymnasium as gym
    from stable_baselines3.common.policies import ActorCriticPolicy

    spaces = gym.spaces.Box(-1, 1, (6,)), gym.spaces.Box(-1, 1, (2,))
    module = Evaluate(ActorCriticPolicy(*spaces, lambda _: 3e-4, net_arch=[20, 20])).double()
    observations, actions, advantages = th.randn(128, 6).double(), th.randn(128, 2).double(), th.randn(128).double()
    with th.no_grad():
        old = module(observations, actions)

    def loss_fn(params: dict[str, th.Tensor], batch: Any) -> th.Tensor:
        observations, actions, advantages, old = batch
        if name == "value":
            return F.mse_loss(th.func.functional_call(module, params, (observations,)), advantages)
        ratio = th.exp(th.func.functional_call(module, params, (observations, actions)) - old)
        surrogate: th.Tensor = th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
        return -surrogate

    mine = ("value_net",) if name == "value" else ("policy_net", "action_net", "log_std")
    params: dict[str, th.Tensor] = {
        key: value for key, value in module.named_parameters() if any(part in key for part in mine)
    }
    return _fitted(loss_fn, params, (observations, actions, advantages, old), steps=50)


def _fitted(loss_fn: LossFn, params: dict[str, th.Tensor], batch: Any, steps: int = 200) -> Problem:
    optimizer = th.optim.Adam(list(params.values()), lr=1e-2 if steps > 100 else 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(params, batch).backward()
        optimizer.step()
    return loss_fn, {name: value.detach() for name, value in params.items()}, batch


def dense_eigenvalues(problem: Problem) -> np.ndarray:
    """All eigenvalues, row by row by double backward."""
    loss_fn, params, batch = problem
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    values = list(leaves.values())
    grads = th.autograd.grad(loss_fn(leaves, batch), values, create_graph=True)
    flat = th.cat([grad.reshape(-1) for grad in grads])
    rows = [th.autograd.grad(entry, values, retain_graph=True, materialize_grads=True) for entry in flat]
    matrix = th.stack([th.cat([part.reshape(-1) for part in row]) for row in rows])
    return np.linalg.eigvalsh(((matrix + matrix.T) / 2).numpy())


def plain(spectrum: Spectrum, below: float, above: float) -> tuple[float, float, float]:
    """Sum of the weights outside an interval, less and more the weights of the nodes beside its ends."""
    order = np.argsort(spectrum.nodes[0], kind="stable")
    nodes, weights = spectrum.nodes[0][order], spectrum.weights[0][order] * spectrum.dim
    rank = weights[(nodes < below) | (nodes > above)].sum()
    first, stop = np.searchsorted(nodes, below, "left"), np.searchsorted(nodes, above, "right")
    outer = weights[[index for index in (first - 1, stop) if 0 <= index < len(nodes)]].sum()
    inner = weights[sorted({first, stop - 1})].sum() if first < stop else 0.0
    return rank, max(0.0, rank - outer), min(spectrum.dim, rank + inner)


def coverage(name: str, dtype: th.dtype, trials: int, steps: int = 100) -> list[dict[str, Any]]:
    """
    Measure one network with many start vectors.

    :param name: of the problem
    :param dtype: of the Lanczos run
    :param trials: start vectors
    :param steps: Lanczos steps
    :return: a row per quantity
    """
    problem = network(name)
    truth = dense_eigenvalues(problem)
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(trials):
        spectrum = hessian_spectrum(*problem, steps=steps, seed=seed, dtype=dtype)
        ends = {f"epsilon {eps:g}": (-eps, eps) for eps in EPSILON} | {"negative": (-spectrum.rounding, math.inf)}
        for quantity, (below, above) in ends.items():
            number = float(((truth < below) | (truth > above)).sum())
            measure = spectrum.negative_fraction if quantity == "negative" else spectrum.epsilon_rank(above)
            low, value, high = (spectrum.dim * x for x in (measure.low, float(measure), measure.high))
            rank, least, most = plain(spectrum, below, above)
            row = (number, low - 1e-6 <= number <= high + 1e-6, high - low, (value - number) ** 2)
            found.setdefault(quantity, []).append(
                (*row, least - 1e-6 <= number <= most + 1e-6, most - least, (rank - number) ** 2)
            )
    names = ("truth", "inside", "width", "rmse", "plain_inside", "plain_width", "plain_rmse")
    rows = []
    for quantity, values in found.items():
        means = dict(zip(names, np.mean(values, axis=0), strict=True))
        means |= {key: math.sqrt(means[key]) for key in ("rmse", "plain_rmse")}
        rows.append({"network": name, "dtype": str(dtype)[6:], "dim": len(truth), "quantity": quantity, **means})
    return rows


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--problems", nargs="+", default=["tanh", "relu", "cnn", "policy", "value"])
    args = parser.parse_args()
    print(
        "| network | dtype | of | eigenvalues | true | inside | width | rms error | plain: inside | width | rms error |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in args.problems:
        for dtype in (th.float64, th.float32):
            for row in coverage(name, dtype, args.trials, args.steps):
                print(
                    f"| {row['network']} | {row['dtype']} | {row['dim']} | {row['quantity']} | {row['truth']:.0f} | "
                    f"{row['inside']:.1%} | {row['width']:.1f} | {row['rmse']:.1f} | {row['plain_inside']:.1%} | "
                    f"{row['plain_width']:.1f} | {row['plain_rmse']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
