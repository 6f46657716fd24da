"""``sb3-plasticity inspect``: tables, pictures and one line for every mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from algorithms import ALGORITHMS, make_agent
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_plasticity import Spectrum
from sb3_plasticity.cli import main
from sb3_plasticity.inspect_agent import algorithm_of
from sb3_plasticity.zoo.checkpoints import read_checkpoint


def tiny() -> dict[str, Any]:
    return dict(seed=0, device="cpu", policy_kwargs=dict(net_arch=[6]))


@pytest.fixture(scope="module")
def sac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "sac.zip"
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=100, learning_starts=10, **tiny()).learn(30).save(path)
    return path


def test_a_saved_agent(sac: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(sac), "--env", "Pendulum-v1", "--steps", "24", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "SAC, 30 steps" in printed and "learns new targets" in printed and "critic_1:" in printed
    table = pd.read_csv(tmp_path / "out" / "measures.csv")
    assert set(table.network) == {"actor", "critic_0", "critic_1"}
    assert {"effective_rank", "trainability", "ggn_largest", "entropy"} <= set(table.measure)
    assert set(table.verdict) <= {"lower", "higher", "no difference"}
    assert (table.fresh_low <= table.fresh_high).all() and np.isfinite(table.own).all()
    spectrum = Spectrum.load(tmp_path / "out" / "actor_ggn.npz")
    assert spectrum.info["n_samples"] == 24
    assert (tmp_path / "out" / "inspect.png").stat().st_size > 1000


def test_an_agent_whose_units_are_dead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=100, **tiny())
    for parameter in map(model.policy.get_parameter, ("q_net.q_net.0.bias", "q_net.q_net.0.weight")):
        parameter.data.fill_(-1.0 if parameter.ndim == 1 else 0.0)
    model.save(tmp_path / "dead.zip")
    assert main(["inspect", str(tmp_path / "dead.zip"), "--env", "CartPole-v1", "--steps", "40"]) == 0
    table = pd.read_csv(tmp_path / "dead_inspect" / "measures.csv").set_index("measure")
    assert table.own["dead_units"] == 1 and table.verdict["dead_units"] == "higher"
    assert table.own["gradient_norm"] > 0  # the output's bias
    assert "dead_units is higher" in capsys.readouterr().out


def test_statistics_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = PPO("MlpPolicy", env, n_steps=16, n_epochs=1, batch_size=16, **tiny()).learn(16)
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    arguments = ["inspect", str(tmp_path / "model.zip"), "--env", "Pendulum-v1", "--steps", "32"]
    assert main(arguments) == 0
    (tmp_path / "vecnormalize.pkl").unlink()
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "acts on normalised observations, and vecnormalize.pkl is missing" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_algorithm_is_told_by_the_file(name: str, tmp_path: Path) -> None:
    model = make_agent(name)
    model.save(tmp_path / "model.zip")
    found = algorithm_of(read_checkpoint(tmp_path / "model.zip"), tmp_path / "model.zip")
    assert found is type(model) or {found, type(model)} == {TD3, DDPG}  # which have the same networks and losses


def test_a_recurrent_agent(tmp_path: Path) -> None:
    model = RecurrentPPO(
        "MlpLstmPolicy", "Pendulum-v1", n_steps=16, seed=0, policy_kwargs=dict(net_arch=[6], lstm_hidden_size=5)
    )
    model.save(tmp_path / "model.zip")
    assert main(["inspect", str(tmp_path / "model.zip"), "--env", "Pendulum-v1", "--steps", "32"]) == 0
    table = pd.read_csv(tmp_path / "model_inspect" / "measures.csv")
    assert set(table.network) == {"policy", "value"} and np.isfinite(table.own).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--env says which environment it acts in"),
        (["--env", "CartPole-v1"], "in CartPole-v1: Observation spaces do not match"),
        (["--env", "Pendulum-v11"], "no environment of this id (did you mean 'Pendulum-v1'?)"),
        (["--env", "Pendulum-v1", "--task", "2"], "Pendulum-v1 has no tasks"),
        (["--env", "Pendulum-v1", "--steps", "1"], "must be a whole number >= 2, got '1'"),
    ],
)
def test_mistakes(sac: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["inspect", str(sac), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_files_that_are_no_models(sac: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.zip").write_bytes(sac.read_bytes()[:2000])
    (tmp_path / "foreign.zip").write_text("nothing of the kind")
    for name in ("cut.zip", "foreign.zip", "none.zip"):
        assert main(["inspect", str(tmp_path / name), "--env", "Pendulum-v1"]) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
