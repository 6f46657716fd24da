"""Writing to the run's TensorBoard event file from a callback."""

from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter


def summary_writer(logger: Logger) -> SummaryWriter | None:
    """
    The writer of a run's TensorBoard log.

    What ``logger.record`` takes is written when SB3 next dumps its log, under that step, and lost when recorded again
    before; what is measured at a step of its own goes to the writer.

    :param logger: SB3's logger
    :return: the writer, or None for a run without TensorBoard
    """
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return output.writer
    return None
