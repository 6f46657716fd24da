"""``sb3-plasticity card``: a folder for the Hugging Face Hub and back."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.cli import main
from sb3_plasticity.zoo.folder import RunFolder
from sb3_plasticity.zoo.spec import RunSpec

RUN = Path("logs/ppo_l2er/SlipperyAnt-v0_1")
SHORT = ["-n", "12", "--n-episodes", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def written(trained: Path) -> Path:
    """The folder that ``card`` wrote of the run."""
    assert main(["card", str(RUN), *SHORT, "--out", "shared_agent"]) == 0
    return trained / "shared_agent"


def test_the_folder_has_what_the_hub_and_rl_zoo_expect(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert names == {
        *(".gitattributes", "README.md", "args.yml", "config.yml", "env_kwargs.yml", "ppo_l2er-SlipperyAnt-v0.zip"),
        *("replay.mp4", "results.json", "train_eval_metrics.zip", "vec_normalize.pkl"),
    }
    assert (written / "replay.mp4").stat().st_size > 1000
    schedule = {"kind": "cyclic", "values": [0.2, 0.5, 1.0], "period": 100}
    assert yaml.safe_load((written / "env_kwargs.yml").read_text()) == {"schedule": schedule}
    assert yaml.safe_load((written / "config.yml").read_text())["env_kwargs"]["schedule"] == schedule
    with zipfile.ZipFile(written / "train_eval_metrics.zip") as archive:
        assert {"0.monitor.csv", "progress.csv", "evaluations.npz"} <= set(archive.namelist())
        assert archive.read("progress.csv") == (written.parent / RUN / "progress.csv").read_bytes()
    assert yaml.safe_load((written / "args.yml").read_text())["tensorboard_log"] == ""


def test_the_model_card_reads_as_the_hub_reads_it(written: Path) -> None:
    card = ModelCard.load(written / "README.md")
    results = json.loads((written / "results.json").read_text())
    assert [task["task"] for task in results["tasks"]] == ["friction_0.2", "friction_0.5", "friction_1"]
    means, deviations = (np.array([task[key] for task in results["tasks"]]) for key in ("mean", "deviation"))
    assert [task["episodes"] for task in results["tasks"]] == [2, 2, 2] and results["n_eval_episodes"] == 6
    # the law of total variance: that within tasks and that between them
    assert results["mean_reward"] == pytest.approx(means.mean())
    assert results["std_reward"] == pytest.approx(((deviations**2).mean() + means.var()) ** 0.5)
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type) == ("SlipperyAnt-v0", "mean_reward")
    assert result.metric_value == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
    assert card.data.library_name == "stable-baselines3" and "SlipperyAnt-v0" in card.data.tags
    assert f"| friction_0.5 | {means[1]:,.1f} | {deviations[1]:,.1f} | 2 |\n" in card.text
    assert "\n## Environment\n\n```python\n{'schedule': {'kind'" in card.text and "\n## Versions\n\n" in card.text
    assert "'er_coef'" not in card.text and "n_steps" in card.text


def test_what_is_loaded_is_the_run(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(written), "--load", "-f", str(tmp_path)]) == 0
    path = tmp_path / "ppo_l2er" / "SlipperyAnt-v0_1"
    assert f"Run: {path}" in capsys.readouterr().out
    before, after = RunFolder(written.parent / RUN), RunFolder(path)
    assert RunSpec.of(after).hyperparams == RunSpec.of(before).hyperparams
    assert after.episodes().equals(before.episodes())
    weights = [PPO_L2ER.load(folder.model, device="cpu").policy.state_dict() for folder in (before, after)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    returns = []
    for folder in (before, after):
        capsys.readouterr()
        assert main(["enjoy", str(folder.path), "--no-render", "-n", "60", "--task", "1", "--device", "cpu"]) == 0
        returns.append([line for line in capsys.readouterr().out.splitlines() if "Model:" not in line])
    assert returns[0] == returns[1]
    assert main(["card", str(written), "--load", "-f", str(tmp_path)]) == 0  # nothing is overwritten
    assert (tmp_path / "ppo_l2er" / "SlipperyAnt-v0_2").is_dir()


def test_what_rl_zoo_has_pushed_loads_too(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files do not say with what the run was made."""
    source = tmp_path / "hub"
    shutil.copytree(written, source)
    args = yaml.safe_load((source / "args.yml").read_text())
    kept = {key: args[key] for key in ("algo", "env", "env_kwargs", "seed", "n_timesteps")}
    (source / "args.yml").write_text(yaml.safe_dump(kept))
    assert main(["card", str(source), "--load", "-f", str(tmp_path / "logs")]) == 0
    run = tmp_path / "logs" / "ppo_l2er" / "SlipperyAnt-v0_1"
    assert main(["enjoy", str(run), "--no-render", "-n", "5", "--device", "cpu"]) == 0


def test_a_world_without_tasks(train: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-n", "8", "--eval-freq", "-1", "--verbose", "0", "--device", "cpu"]
    assert train("--algo", "ppo", "--env", "Pendulum-v1", *options, "-params", "n_envs:1", "n_steps:8")[0] == 0
    run = "logs/ppo/Pendulum-v1_1"
    assert main(["card", run, "--no-render", "--n-episodes", "2", "--device", "cpu"]) == 0
    folder = Path(run) / "hub" / "ppo-Pendulum-v1"
    assert str(folder) in capsys.readouterr().out and not (folder / "replay.mp4").exists()
    assert json.loads((folder / "results.json").read_text())["n_eval_episodes"] == 2
    assert main(["card", run, "--no-render", "--n-episodes", "1", "--device", "cpu"]) == 0
    assert folder.with_name("ppo-Pendulum-v1-2").is_dir()


def test_mistakes(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    shutil.copytree(written, damaged)
    (damaged / "train_eval_metrics.zip").write_bytes(b"PK")
    logs = tmp_path / "logs"
    for arguments, text in (
        ([str(RUN), "--out", str(empty)], "must be a folder that does not exist yet"),
        ([str(tmp_path / "nowhere")], "there is no such folder"),
        ([str(RUN), "--task", "-1"], "must be a whole number >= 0"),
        (["--load"], "RUN must be a folder from the Hub"),
        ([str(empty), "--load"], "it has no args.yml"),
        ([str(damaged), "--load", "-f", str(logs)], "train_eval_metrics.zip: not a whole zip file"),
    ):
        assert main(["card", *arguments]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1, error
    assert not list(logs.glob("*/*"))
