"""The transplant example: exactly the chosen part comes from a new agent, and the command continues a zoo run."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_plasticity import PPO_L2ER

EXAMPLE = Path(__file__).parent.parent / "examples" / "transplant.py"


@pytest.fixture
def transplant() -> Callable[[PPO, str], list[str]]:
    function: Callable[[PPO, str], list[str]] = runpy.run_path(str(EXAMPLE))["transplant"]
    return function


@pytest.mark.parametrize(
    ("new", "of_log_std", "of_weights"),
    [("nothing", False, False), ("exploration", True, False), ("weights", False, True), ("everything", True, True)],
)
def test_only_the_chosen_part_is_new(
    transplant: Callable[[PPO, str], list[str]], new: str, of_log_std: bool, of_weights: bool
) -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, policy_kwargs={"log_std_init": 0.5, "net_arch": [8]}, seed=0)
    model.learn(64)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    moments = set(model.policy.optimizer.state)
    replaced = transplant(model, new)
    for name, parameter in model.policy.named_parameters():
        is_new = of_log_std if name == "log_std" else of_weights
        assert (name in replaced) == is_new == (not th.equal(parameter, before[name]))
        assert (parameter in model.policy.optimizer.state) == (not is_new and parameter in moments)
    # a new agent's biases are zero, and its standard deviation is the one that the policy was made with
    if of_log_std:
        assert model.policy.state_dict()["log_std"].tolist() == [0.5]
    if of_weights:
        assert model.policy.state_dict()["action_net.bias"].tolist() == [0.0]
    model.learn(64)


def test_the_command_continues_a_run_on_a_frozen_task(tmp_path: Path) -> None:
    def run(*command: object) -> None:
        subprocess.run([sys.executable, *map(str, command)], check=True, cwd=tmp_path, capture_output=True)

    kwargs = "schedule:dict(kind='cyclic',values=[0.2,0.7],period=1024)"
    overrides = "n_steps:256 n_envs:2 batch_size:512 n_epochs:1 policy:'MlpPolicy'".split()
    # without the entry's normalisation, whose statistics the example does not load
    entry = tmp_path / "entry.yml"
    entry.write_text("SlipperyAnt-v0: {n_timesteps: 1024, policy: MlpPolicy}\n")
    base = ["--algo", "ppo_l2er", "--env", "SlipperyAnt-v0", "-f", "logs", "--conf-file", entry, "--eval-freq", "-1"]
    run("-m", "sb3_plasticity", "train", *base, "-n", 1024, "--env-kwargs", kwargs, "-params", *overrides)
    checkpoint = "logs/ppo_l2er/SlipperyAnt-v0_1/SlipperyAnt-v0.zip"
    run(EXAMPLE, checkpoint, *"--task 1 --new nothing --steps 1024 --out new".split())
    log = pd.read_csv(tmp_path / "new" / "progress.csv")
    assert (log["task/index"] == 1).all() and (log["task/value"] == 0.7).all()
    assert log["train/std"].iloc[-1] == pytest.approx(1.0, abs=0.05)
    assert PPO_L2ER.load(tmp_path / "new" / "model.zip").num_timesteps == 1024


@pytest.mark.parametrize(("out", "message"), [("new", "in the folder of its run"), (".", "does not exist")])
def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, out: str, message: str) -> None:
    command = [sys.executable, EXAMPLE, "a.zip", *"--task 1 --new weights --out".split(), out]
    refused = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and message in refused.stderr
    assert not list(tmp_path.iterdir())
