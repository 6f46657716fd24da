"""What a run's logs show of a spectrum: its measures, a histogram and a picture of its density."""

from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.logger import Figure, Logger
from torch.utils.tensorboard import SummaryWriter

from sb3_plasticity.callbacks.tensorboard import OVERVIEW, SERIES, Layout, summary_writer
from sb3_plasticity.callbacks.trackers import further_formats
from sb3_plasticity.curvature.plots import spectrum_figure
from sb3_plasticity.curvature.spectrum import Spectrum, loggable

# By the phase of a measurement.
SECTIONS = {"start": "curvature", "end": "curvature_end", "periodic": "curvature"}


def log_spectrum(logger: Logger, spectrum: Spectrum, epsilon: Sequence[float]) -> dict[str, float]:
    """
    Log a spectrum under the step that it was taken at.

    :param logger: SB3's logger
    :param spectrum: its ``info`` says the step, phase, network and kind
    :param epsilon: thresholds of the epsilon-ranks
    :return: the measures that were logged
    """
    info = spectrum.info
    measures = loggable(spectrum.measures(epsilon))
    if "rank_ceiling" in info:
        measures["rank_ceiling"] = info["rank_ceiling"]
    prefix = f"{SECTIONS[info['phase']]}/{info['network']}/{info['kind']}"
    writer = summary_writer(logger)
    for name, value in measures.items():
        # For the CSV and JSON logs; the terminal's table truncates names this long.
        logger.record(f"{prefix}/{name}", float(value), exclude=("stdout", "log", "tensorboard"))
        if writer is not None:
            writer.add_scalar(f"{prefix}/{name}", float(value), info["step"])
    if writer is not None:
        add_spectrum_histogram(writer, f"{prefix}/log10_abs_eigenvalue", spectrum, info["step"])
        writer.add_figure(f"{prefix}/density", spectrum_figure(spectrum, epsilon), info["step"])
    for output in further_formats(logger):
        pictures = {
            f"{prefix}/log10_abs_eigenvalue": log_eigenvalues(spectrum),
            f"{prefix}/density": Figure(spectrum_figure(spectrum, epsilon), close=True),
        }
        output.write(pictures, dict.fromkeys(pictures, ()), info["step"])
    return measures


def add_spectrum_histogram(writer: SummaryWriter, tag: str, spectrum: Spectrum, step: int) -> None:
    """
    Write log10 |eigenvalue| of a spectrum's non-zero eigenvalues as a TensorBoard histogram, each counted once.

    :param writer: of the run
    :param tag: name
    :param spectrum: what of it is not above rounding is left out; nothing is written if that is all
    :param step: of the measurement
    """
    values, counts = _counted(spectrum)
    if not len(values):
        return
    # The same in every step, four to a decade, unless an eigenvalue lies outside.
    edges = np.arange(-12, max(6.0, np.ceil(values.max())) + 0.25, 0.25)
    binned, _ = np.histogram(values, bins=edges, weights=counts)
    writer.add_histogram_raw(
        tag,
        min=float(values.min()),
        max=float(values.max()),
        num=float(counts.sum()),
        sum=float((counts * values).sum()),
        sum_squares=float((counts * values**2).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=binned.tolist(),
        global_step=step,
    )


def log_eigenvalues(spectrum: Spectrum) -> np.ndarray:
    """
    List log10 |eigenvalue| of a spectrum's non-zero eigenvalues, as SB3 takes a histogram.

    :param spectrum: nodes with weights, which stand for (rounded) numbers of eigenvalues
    :return: shape (number of eigenvalues above rounding,)
    """
    values, counts = _counted(spectrum)
    return np.repeat(values, np.round(counts).astype(int))


def _counted(spectrum: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """Return log10 |eigenvalue| of what is above rounding, and of how many eigenvalues each stands for."""
    nodes, shares = spectrum.shares()
    nonzero = np.abs(nodes) > max(spectrum.rounding, 1e-12)
    return np.log10(np.abs(nodes[nonzero])), shares[nonzero] * spectrum.dim


def spectrum_charts(networks: Sequence[str], kinds: Sequence[str], epsilon: Sequence[float]) -> Layout:
    """
    Lay out each network's epsilon-ranks by kind, no more in a chart than can be read.

    The overview has all networks at the middle one of the thresholds, a chart for each kind.

    :param networks: their names
    :param kinds: of the spectra, such as ``"ggn"``
    :param epsilon: thresholds
    :return: charts for :func:`~sb3_plasticity.callbacks.tensorboard.add_charts`
    """
    ranks = [f"epsilon_rank_{eps:g}" for eps in epsilon]
    middle = len(ranks) // 2
    overview, charts = {}, {}
    for kind in kinds:
        # A Hessian's rank that is not resolved is logged as the two ends of its interval.
        room = SERIES // 3 if kind == "hessian" else SERIES
        first = "|".join(networks[:room])
        title = f"epsilon-rank at {epsilon[middle]:g} of the curvature"
        title += f" ({kind})" if len(kinds) > 1 else ""
        overview[title] = ["Multiline", [f"curvature/({first})/{kind}/{ranks[middle]}(_low|_high)?$"]]
        at_once = room - (kind in ("ggn", "entk"))  # beside their ceiling
        for network in networks:
            for start in range(0, len(ranks), at_once):
                part = f" ({start // at_once + 1})" if len(ranks) > at_once else ""
                shown = f"({'|'.join(ranks[start : start + at_once])})(_low|_high)?|rank_ceiling"
                tags = f"curvature/{network}/{kind}/({shown})$"
                charts[f"{network} {kind}: epsilon-rank{part}"] = ["Multiline", [tags]]
    return {OVERVIEW: overview, "curvature": charts}
