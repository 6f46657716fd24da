"""Pictures of spectra, drawn on axes that the caller owns."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_plasticity.curvature.spectrum import Spectrum


def symlog(values: np.ndarray, linear: float) -> np.ndarray:
    """
    Map eigenvalues to a symmetric logarithmic axis: decades beyond ``linear`` are about one unit apart.

    :param values: of any sign
    :param linear: where the axis turns from linear to logarithmic, > 0
    :return: asinh(values / (2 linear)) / ln 10, of the same shape
    """
    array: np.ndarray = np.arcsinh(values / (2 * linear)) / np.log(10)
    return array


def plot_density(axes: Axes, spectrum: Spectrum, *, linear: float = 1e-6, bandwidth: float = 0.1, **line: Any) -> None:
    """
    Draw a spectrum's density per decade over a symmetric logarithmic axis, both axes logarithmic.

    The smoothing happens on the logarithmic axis, so a zero eigenvalue and one of 1e-4 stay apart. The picture is for
    the eye; every measure comes from the nodes and weights themselves.

    :param axes: matplotlib axes
    :param spectrum: what to draw
    :param linear: eigenvalues this small look like 0
    :param bandwidth: standard deviation of the smoothing, in decades
    :param line: passed to ``axes.plot``
    """
    eigenvalues, weights = spectrum.shares()
    nodes = symlog(eigenvalues, linear)
    # One bin a tenth of the bandwidth: an exact spectrum of thousands of nodes becomes a short convolution.
    step = bandwidth / 10
    edges = np.arange(nodes.min() - 6 * bandwidth, nodes.max() + 6 * bandwidth + step, step)
    counts, _ = np.histogram(nodes, bins=edges, weights=weights)
    offsets = np.arange(-60, 61) * step
    kernel = np.exp(-0.5 * (offsets / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    density = np.convolve(counts, kernel, mode="same")
    axes.plot((edges[:-1] + edges[1:]) / 2, density, **line)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.1 / spectrum.dim)
    decorate_symlog(axes, linear)


def spectrum_figure(
    spectrum: Spectrum,
    epsilon: Iterable[float] = (),
    *,
    linear: float = 1e-6,
    limits: tuple[float, float] = (-1e4, 1e6),
) -> Figure:
    """
    Draw a record on axes that do not depend on it, so that the pictures of a run can be compared step by step.

    :param spectrum: its ``info`` makes the title: network, kind, phase, task with its value, step and samples
    :param epsilon: thresholds, drawn on both sides of 0
    :param linear: eigenvalues this small look like 0
    :param limits: smallest and largest eigenvalue on the axis; the title names those outside
    :return: the picture
    """
    info = spectrum.info
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    plot_density(axes, spectrum, linear=linear, lw=1.2)
    for eps in epsilon:
        for side in (-eps, eps):
            axes.axvline(float(symlog(np.array(side), linear)), color="0.5", lw=0.7, ls=":")
        rank = spectrum.epsilon_rank(eps)
        text = f"{rank:.2g}" if rank.resolved else f"{rank.low:.2g} to {rank.high:.2g}"
        axes.plot([], [], ls=":", lw=0.7, color="0.5", label=f"beyond {eps:g}: {text}")
    if "rank_ceiling" in info:
        axes.plot([], [], " ", label=f"at most {info['rank_ceiling']:.2g} with {info.get('n_samples')} samples")
    axes.set_xlim(*(float(symlog(np.array(limit), linear)) for limit in limits))
    axes.set_ylim(0.1 / spectrum.dim, 1e3)  # a density is below 10: the rest is room for the legend
    decorate_symlog(axes, linear)
    axes.grid(alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=7, edgecolor="none", title="share of eigenvalues", title_fontsize=7)
    named = " ".join(str(info[name]) for name in ("network", "kind") if name in info)
    task = f"{info.get('phase', 'of')} of task {info['task_index']}" if "task_index" in info else ""
    if np.isfinite(value := info.get("task_value", np.nan)):
        task += f" ({value:.3g})"
    step = f"step {info['step']:,}" if "step" in info else ""
    title = ", ".join(part for part in (named, task, step) if part)
    beyond = [f"{x:.3g}" for x in (spectrum.smallest, spectrum.largest) if not limits[0] <= x <= limits[1]]
    axes.set_title(title + (f"\noutside of the axis: {', '.join(beyond)}" if beyond else ""), fontsize=9)
    return figure


def decorate_symlog(axes: Axes, linear: float) -> None:
    """
    Label the axis of :func:`plot_density` with eigenvalues.

    :param axes: matplotlib axes whose data reach as far as they will
    :param linear: as given to :func:`plot_density`
    """
    low, high = axes.get_xlim()
    exponent = round(np.log10(linear))
    furthest = max(1, int(np.ceil(max(abs(low), abs(high)))))
    stride = max(1, -(-furthest // 3))
    decades = [exponent + k for k in range(stride, furthest + 1, stride)]
    ticks = [(-(10.0**d), f"$-10^{{{d}}}$") for d in reversed(decades)] + [(0.0, "0")]
    ticks += [(10.0**d, f"$10^{{{d}}}$") for d in decades]
    positions = [(float(symlog(np.array(value), linear)), label) for value, label in ticks]
    visible = [(position, label) for position, label in positions if low <= position <= high]
    axes.set_xticks([position for position, _ in visible], [label for _, label in visible])
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("density per decade")
