"""
Draw the pictures of the page on concepts: ``python docs/_scripts/draw_concepts.py``.

Every curve is computed, on networks small enough for exact eigenvalues; the pictures are kept in git as
``docs/_static/concepts/<name>.png``.
"""

from pathlib import Path

import numpy as np
import torch as th
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from sb3_plasticity import effective_rank, hessian_spectrum

PICTURES = Path(__file__).parent.parent / "_static" / "concepts"
EPSILON = 1e-2
Parameters = dict[str, th.Tensor]


def main() -> None:
    """Run from the command line."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    for draw in (epsilon_rank, ranks, lanczos, false_alarm):
        figure = draw()
        path = PICTURES / f"{draw.__name__}.png"
        figure.savefig(path, dpi=110)
        print(path)


def network(seed: int = 0) -> nn.Module:
    """
    Make a small network.

    :param seed: of its parameters
    :return: from 4 numbers to 1, with two hidden layers
    """
    th.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1, bias=False)
    ).double()


def data(task: int, rows: int = 128) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw a regression problem.

    :param task: its number
    :param rows: of the data
    :return: inputs (rows, 4) and targets (rows, 1)
    """
    generator = th.Generator().manual_seed(task)
    inputs = th.randn(rows, 4, generator=generator, dtype=th.float64)
    weights = th.randn(4, 8, generator=generator, dtype=th.float64)
    return inputs, (inputs @ weights).sin().mean(dim=1, keepdim=True)


def loss_of(net: nn.Module, parameters: Parameters, batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
    """
    Compute a mean squared error.

    :param net: the network
    :param parameters: of it
    :param batch: inputs and targets
    :return: scalar
    """
    outputs = th.func.functional_call(net, parameters, (batch[0],))
    return nn.functional.mse_loss(outputs, batch[1])


def parameters_of(net: nn.Module) -> Parameters:
    """Detach the parameters of a network."""
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def hessian_eigenvalues(net: nn.Module, batch: tuple[th.Tensor, th.Tensor]) -> np.ndarray:
    """
    Compute every eigenvalue of the Hessian.

    :param net: the network
    :param batch: inputs and targets
    :return: shape (parameters,), ascending
    """
    named = parameters_of(net)
    sizes = [parameter.numel() for parameter in named.values()]

    def loss(flat: th.Tensor) -> th.Tensor:
        pieces = zip(named, flat.split(sizes), strict=True)
        return loss_of(net, {name: piece.view_as(named[name]) for name, piece in pieces}, batch)

    flat = th.cat([parameter.flatten() for parameter in named.values()])
    eigenvalues: np.ndarray = th.linalg.eigvalsh(th.func.hessian(loss)(flat)).numpy()
    return eigenvalues


def kill(net: nn.Module, share: float) -> nn.Module:
    """
    Let units of the hidden layers die, as they do in networks that have lost plasticity.

    :param net: the network
    :param share: of the units of each hidden layer
    :return: the network
    """
    with th.no_grad():
        for layer in (net[0], net[2]):  # type: ignore[index]
            layer.bias[: round(share * len(layer.bias))] = -100.0
    return net


def epsilon_rank() -> Figure:
    """Draw the sizes of all eigenvalues of a fresh network and of one most of whose units are dead."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    batch = data(task=0)
    for net, label, color in (
        (network(), "fresh network", "C0"),
        (kill(network(), 0.75), "three of four units dead", "C3"),
    ):
        sizes = np.sort(np.abs(hessian_eigenvalues(net, batch)))[::-1].clip(1e-8)
        rank = float(np.mean(sizes > EPSILON))
        axes.plot(np.arange(len(sizes)) / len(sizes), sizes, color=color, label=f"{label}: $\\epsilon$-rank {rank:.2f}")
        axes.axvline(rank, ymax=0.78, color=color, lw=0.8, ls="--")
    axes.axhline(EPSILON, color="black", lw=0.8, ls=":")
    axes.annotate(
        f"$\\epsilon$ = {EPSILON:g}", (0.99, EPSILON), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    axes.set(
        yscale="log",
        xlim=(0, 1),
        ylim=(1e-8, 10),
        xlabel="share of the eigenvalues",
        ylabel="$|\\lambda|$ of the Hessian",
    )
    axes.legend(loc="upper right", frameon=False)
    return figure


def ranks() -> Figure:
    """Draw three spectra with the same number of directions and different effective ranks."""
    figure = Figure(figsize=(7, 2.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    directions = np.arange(8)
    for axes, decay, title in zip(panels, (5.0, 0.5, 0.0), ("one direction", "in between", "all alike"), strict=True):
        shares = np.exp(-decay * directions)
        shares /= shares.sum()
        # features whose covariance has these eigenvalues
        rank = effective_rank(th.diag(th.as_tensor(shares).sqrt()))
        axes.bar(directions + 1, shares, color="C0")
        axes.set(title=f"{title}: {float(rank):.2f}", xlabel="direction", xticks=range(1, 9))
    panels[0].set_ylabel("share $p_i$")
    return figure


def lanczos() -> Figure:
    """Draw the distribution of the eigenvalues, and what Lanczos quadrature says of it."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    net, batch = network(), data(task=0)
    exact = hessian_eigenvalues(net, batch)
    for axes, steps in ((left, 8), (right, 40)):
        spectrum = hessian_spectrum(lambda p, b: loss_of(net, p, b), parameters_of(net), batch, steps=steps)
        nodes, shares = spectrum.shares()
        order = np.argsort(nodes)
        stair(axes, exact, np.full(len(exact), 1 / len(exact)), "all eigenvalues", "black")
        stair(axes, nodes[order], shares[order], f"{len(nodes)} nodes", "C1")
        axes.plot(nodes, np.zeros_like(nodes), "|", color="C1", ms=12)
        axes.set_xscale("symlog", linthresh=1e-2)
        axes.set(title=f"{steps} products with the Hessian", xlabel="$\\lambda$", ylim=(-0.05, 1.05))
        axes.set_xticks([-0.1, -0.01, 0, 0.01, 0.1, 1])
        axes.set_xticklabels(["$-10^{-1}$", "", "0", "", "$10^{-1}$", "1"])
        axes.legend(loc="upper left", frameon=False)
    left.set_ylabel("share of eigenvalues below $\\lambda$")
    return figure


def stair(axes: Axes, values: np.ndarray, shares: np.ndarray, label: str, color: str) -> None:
    """
    Draw a distribution function.

    :param axes: where
    :param values: ascending
    :param shares: of each, with the sum 1
    :param label: for the legend
    :param color: of the line
    """
    edges = np.concatenate([[-1.0], values, [10.0]])
    axes.step(edges, np.concatenate([[0.0], shares.cumsum(), [1.0]]), where="post", label=label, color=color, lw=1.2)
    axes.set_xlim(-0.3, 5)


def false_alarm() -> Figure:
    """Draw the effective rank of features on one task that never changes, beside the loss."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    inputs, _ = data(task=0, rows=512)
    targets = 2 * inputs[:, :1].tanh()  # which one direction of the features is enough for
    net = network()
    features = net[:-1]  # type: ignore[index]
    fresh = float(effective_rank(features(inputs).detach()))
    optimizer = th.optim.Adam(net.parameters(), lr=3e-3)
    losses, found = [], []
    for _ in range(3_000):
        loss = nn.functional.mse_loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        found.append(float(effective_rank(features(inputs).detach())))
    upper.plot(losses, color="C0")
    upper.set(yscale="log", ylabel="loss")
    lower.plot(found, color="C1", label="while it learns")
    lower.axhline(fresh, color="grey", ls="--", label="fresh network")
    lower.set(xlabel="updates on one task that never changes", ylabel="effective rank", xlim=(0, 3_000), ylim=(0, None))
    lower.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
