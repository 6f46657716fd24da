"""
Logger formats for MLflow and Weights and Biases: scalars, histograms and figures, as SB3 gives them to any format.

SB3's loggers take formats of one's own::

    import mlflow
    from stable_baselines3.common.logger import Logger
    from sb3_plasticity.callbacks.trackers import MLflowOutputFormat

    with mlflow.start_run():
        model.set_logger(Logger("runs/ant", [MLflowOutputFormat()]))
        model.learn(100_000, callback=CurvatureCallback())
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    Figure,
    HumanOutputFormat,
    JSONOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

# Those that take no pictures, and the one that callbacks write to by themselves.
OWN_FORMATS = (HumanOutputFormat, CSVOutputFormat, JSONOutputFormat, TensorBoardOutputFormat)
STEP = "time/total_timesteps"


class TrackerOutputFormat(KVWriter):
    """A format that tells scalars from pictures; the run that it logs to belongs to the code that started it."""

    name: ClassVar[str]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Log values.

        :param key_values: by name, as ``logger.record`` takes them
        :param key_excluded: formats that a name is excluded from; this one is called ``"mlflow"`` or ``"wandb"``
        :param step: number of environment steps
        """
        self._log(*sort_values(key_values, key_excluded, self.name), step)

    def _log(self, scalars: dict[str, float], pictures: dict[str, Any], step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Do nothing: the run continues."""


class MLflowOutputFormat(TrackerOutputFormat):
    """
    Log to the active run of MLflow: scalars as metrics, figures and histograms as pictures among the artifacts.

    :param run_id: of another run; None for the active one
    """

    name = "mlflow"

    def __init__(self, run_id: str | None = None) -> None:
        import mlflow

        self._mlflow = mlflow
        self._run_id = run_id

    def _log(self, scalars: dict[str, float], pictures: dict[str, Any], step: int) -> None:
        self._mlflow.log_metrics(scalars, step=step, run_id=self._run_id)
        client = self._mlflow.MlflowClient()
        run_id = self._run_id or self._mlflow.active_run().info.run_id
        for key, value in pictures.items():
            picture = draw_histogram(value, key) if isinstance(value, np.ndarray) else value
            client.log_figure(run_id, picture, f"{key}/{step:010d}.png")


class WandbOutputFormat(TrackerOutputFormat):
    """
    Log to a run of Weights and Biases: scalars, histograms and images over the number of environment steps.

    :param run: as ``wandb.init()`` returns it; None for the active one
    :raises ValueError: if it is None and there is no active one
    """

    name = "wandb"

    def __init__(self, run: Any = None) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.run if run is None else run
        if self._run is None:
            raise ValueError("`run` must be a run of Weights and Biases, or wandb.init() must come first, got None")
        # A measurement may be logged under a step that lies before the last: W&B's own counter only grows.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def _log(self, scalars: dict[str, float], pictures: dict[str, Any], step: int) -> None:
        shown = {
            key: self._wandb.Histogram(value) if isinstance(value, np.ndarray) else self._wandb.Image(pixels(value))
            for key, value in pictures.items()
        }
        self._run.log({**scalars, **shown, STEP: step})


def further_formats(logger: Logger) -> list[KVWriter]:
    """
    Find the formats that users have added, for what has a step of its own.

    :param logger: SB3's logger
    :return: every format that is none of SB3's
    """
    return [output for output in logger.output_formats if not isinstance(output, OWN_FORMATS)]


def sort_values(
    key_values: Mapping[str, Any], key_excluded: Mapping[str, Any], name: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """
    Tell scalars from pictures.

    :param key_values: by name, as ``logger.record`` takes them
    :param key_excluded: formats that a name is excluded from
    :param name: of the format
    :return: scalars; and figures of matplotlib and, for histograms, arrays that are not empty
    """
    scalars: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for key, value in key_values.items():
        if name in (key_excluded.get(key) or ()):
            continue
        if isinstance(value, Figure):
            pictures[key] = value.figure
        elif isinstance(value, th.Tensor | np.ndarray):
            array = np.asarray(value.detach().cpu() if isinstance(value, th.Tensor) else value).ravel()
            pictures |= {key: array} if array.size else {}
        elif isinstance(value, bool | int | float | np.number):
            scalars[key] = float(value)
    return scalars, pictures


def pixels(picture: Picture) -> np.ndarray:
    """
    Draw a figure without pyplot, which would choose a window system.

    :param picture: of matplotlib
    :return: shape (height, width, 4), bytes
    """
    canvas: Any = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def draw_histogram(values: np.ndarray, title: str) -> Picture:
    """
    Draw a histogram.

    :param values: shape (n,)
    :param title: of the picture
    :return: the picture
    """
    picture = Picture(figsize=(5, 3), layout="constrained")
    axes = picture.subplots()
    axes.hist(values, bins=50)
    axes.set(title=title, ylabel="count")
    return picture
