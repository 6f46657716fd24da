"""Writing to the run's TensorBoard event file from a callback."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

# The category of the charts that show a run at one glance.
OVERVIEW = "Overview"
# A chart with more lines than that cannot be read.
SERIES = 6

Layout = dict[str, dict[str, list[Any]]]

_LAYOUTS: WeakKeyDictionary[SummaryWriter, Layout] = WeakKeyDictionary()


def summary_writer(logger: Logger) -> SummaryWriter | None:
    """
    Find the writer of a run's TensorBoard log.

    What ``logger.record`` takes is written when SB3 next dumps its log, under that step, and lost when recorded again
    before; what is measured at a step of its own goes to the writer.

    :param logger: SB3's logger
    :return: the writer, or None for a run without TensorBoard
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return output.writer
    return None


def add_charts(writer: SummaryWriter, charts: Mapping[str, Mapping[str, list[Any]]]) -> None:
    """
    Add charts to a run's custom scalars, beside those that other callbacks have added.

    A run has one layout: TensorBoard shows the last that was written, so each call writes all charts so far.

    :param writer: of the run
    :param charts: category -> title -> ``["Multiline", [regular expressions of tags]]``, as
        ``SummaryWriter.add_custom_scalars`` takes; a chart of the same category and title is replaced
    """
    layout = _LAYOUTS.setdefault(writer, {})
    for category, titles in charts.items():
        layout.setdefault(category, {}).update(titles)
    writer.add_custom_scalars(layout)
