"""MLflow's local store and W&B's offline mode receive scalars, histograms and figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from matplotlib.figure import Figure as Picture
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Figure, KVWriter, Logger

from sb3_plasticity import CurvatureCallback, PlasticityCallback, Spectrum, load_spectra
from sb3_plasticity.callbacks.spectrum_log import log_eigenvalues
from sb3_plasticity.callbacks.trackers import MLflowOutputFormat, WandbOutputFormat


def train(folder: Path, output: KVWriter) -> pd.DataFrame:
    """64 steps of CartPole, whose curvature and plasticity are measured."""
    kwargs: dict[str, Any] = dict(
        n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu", policy_kwargs=dict(net_arch=[4])
    )
    model = PPO("MlpPolicy", "CartPole-v1", **kwargs)
    model.set_logger(Logger(str(folder), [output]))
    callbacks = [
        CurvatureCallback(every=1, kinds=("ggn",), networks=("policy",), n_samples=16),
        PlasticityCallback(every=1, n_samples=16),
    ]
    model.learn(64, callback=callbacks)
    return load_spectra(folder / "curvature")


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.create_experiment("plasticity", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("plasticity")
    with mlflow.start_run() as run:
        table = train(tmp_path, MLflowOutputFormat())
    client = mlflow.MlflowClient()
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "time/iterations")]
    assert steps == [32, 64]
    metrics = client.get_run(run.info.run_id).data.metrics
    largest = table[table.step == table.step.max()].iloc[0].spectrum.largest
    assert metrics["curvature/policy/ggn/largest"] == pytest.approx(largest, rel=1e-6)
    assert "plasticity/policy/effective_rank" in metrics
    for name in ("density", "log10_abs_eigenvalue"):
        pictures = client.list_artifacts(run.info.run_id, f"curvature/policy/ggn/{name}")
        assert [Path(picture.path).name for picture in pictures] == [f"{step:010d}.png" for step in sorted(table.step)]
        assert all(picture.file_size > 1000 for picture in pictures)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="plasticity") as run:
        table = train(tmp_path, WandbOutputFormat())
        summary = dict(run.summary)
        media = sorted(Path(run.dir).glob("media/images/curvature/policy/ggn/density*.png"))
    assert summary["time/iterations"] == 2 and summary["time/total_timesteps"] == 64
    largest = table[table.step == table.step.max()].iloc[0].spectrum.largest
    assert summary["curvature/policy/ggn/largest"] == pytest.approx(largest, rel=1e-6)
    histogram = summary["curvature/policy/ggn/log10_abs_eigenvalue"]
    spectrum = table[table.step == table.step.max()].iloc[0].spectrum
    assert sum(histogram["values"]) == len(log_eigenvalues(spectrum))
    assert len(media) == len(table)


def test_a_tracker_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match=r"`run` must be a run of Weights and Biases"):
        WandbOutputFormat()


def test_eigenvalues_are_counted() -> None:
    """Weights 0.5, 0.25 and 0.25 of four eigenvalues: 100 twice, 0.1 once, and one zero."""
    spectrum = Spectrum(nodes=np.array([[100.0, -0.1, 0.0]]), weights=np.array([[0.5, 0.25, 0.25]]), dim=4)
    assert sorted(log_eigenvalues(spectrum)) == pytest.approx([-1, 2, 2])


def test_what_is_excluded_is_not_logged(tmp_path: Path) -> None:
    class Written:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: self.__dict__.setdefault("seen", []).append((name, args, kwargs))

    output = WandbOutputFormat.__new__(WandbOutputFormat)
    output._run = run = Written()
    output._wandb = type("", (), {"Histogram": staticmethod(np.size), "Image": staticmethod(np.shape)})
    values = {"a": 1, "b": 2.5, "c": th.ones(3), "d": Figure(Picture(figsize=(2, 1), dpi=10), close=True), "e": "words"}
    output.write(values, {"b": ("wandb",)}, step=7)
    ((_, (logged,), _),) = run.seen
    assert logged == {"a": 1.0, "c": 3, "d": (10, 20, 4), "time/total_timesteps": 7}
