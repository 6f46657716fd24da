"""
Hessian, GGN and KFAC spectra of a plain PyTorch classifier on scikit-learn's digits: no reinforcement learning needed.

    python examples/curvature_digits.py [--plot digits.png]

Prints each spectrum's measures before and after training. Needs scikit-learn.
"""

import argparse

import torch as th
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.curvature import Spectrum, ggn_spectrum, hessian_spectrum, kfac_spectrum


def measure(net: nn.Module, images: th.Tensor, labels: th.Tensor) -> dict[str, Spectrum]:
    """The three views of the cross-entropy's curvature, on the given samples."""
    params = {name: value.detach() for name, value in net.named_parameters()}

    def output_fn(params: dict[str, th.Tensor], inputs: th.Tensor) -> th.Tensor:
        logits: th.Tensor = th.func.functional_call(net, params, (inputs,))
        return logits

    def loss_fn(params: dict[str, th.Tensor], batch: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        return F.cross_entropy(output_fn(params, batch[0]), batch[1])

    # The cross-entropy's Hessian in the logits is diag(p) - p p^T. It also is the Fisher information of the labels.
    probs = F.softmax(output_fn(params, images), 1)
    output_hessian = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    # The exact GGN has a row for every sample and class: 256 x 10 of them.
    few = slice(0, 256)
    return {
        "Hessian": hessian_spectrum(loss_fn, params, (images, labels), steps=60, draws=3),
        "GGN": ggn_spectrum(output_fn, params, images[few], output_hessian[few]),
        "KFAC": kfac_spectrum(output_fn, params, images[few], output_hessian[few]),
        # One layer: pass its parameters only, functional_call takes the others from the module.
        "GGN of the last layer": ggn_spectrum(
            output_fn, {k: v for k, v in params.items() if k.startswith("4.")}, images[few], output_hessian[few]
        ),
    }


def show(title: str, spectra: dict[str, Spectrum]) -> None:
    """Print a table of measures."""
    print(f"\n{title:22}{'dim':>7}{'rank > 1e-3':>18}{'effective rank':>18}{'largest':>10}{'smallest':>10}{'< 0':>7}")
    for name, spectrum in spectra.items():
        rank, effective = spectrum.epsilon_rank(1e-3, normalized=False), spectrum.effective_rank()
        print(
            f"{name:22}{spectrum.dim:7}"
            f"{rank:10.0f} +-{rank.standard_error:5.0f}{effective:10.1f} +-{effective.standard_error:5.1f}"
            f"{spectrum.largest:10.3f}{spectrum.smallest:10.3f}{spectrum.negative_fraction:7.2f}"
        )


def plot(path: str, before: dict[str, Spectrum], after: dict[str, Spectrum]) -> None:
    """Draw the share of eigenvalues above every threshold, which needs no smoothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    thresholds = th.logspace(-6, 2, 200).tolist()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for axis, title, spectra in zip(axes, ("fresh", "trained"), (before, after), strict=True):
        for name in ("Hessian", "GGN", "KFAC"):
            axis.plot(thresholds, [spectra[name].epsilon_rank(eps) for eps in thresholds], label=name)
        axis.set(xscale="log", yscale="log", title=f"{title} network", xlabel="epsilon")
    axes[0].set_ylabel("share of |eigenvalues| above epsilon")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\n{path}")


def main() -> None:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", metavar="FILE", help="save a figure")
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    th.manual_seed(0)
    digits = load_digits()
    images, labels = th.tensor(digits.data, dtype=th.float32) / 16, th.tensor(digits.target)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    before = measure(net, images, labels)
    show("fresh", before)
    optimiser = th.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(args.epochs):
        for rows in th.randperm(len(images)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimiser.step()
    accuracy = (net(images).argmax(1) == labels).float().mean()
    after = measure(net, images, labels)
    show(f"trained, {accuracy:.1%} right", after)
    if args.plot:
        plot(args.plot, before, after)


if __name__ == "__main__":
    main()
