import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_L2ER
from stable_baselines3 import PPO

from sb3_plasticity import PPO_L2ER
from sb3_plasticity.common.files import make_new, numbered, replacing
from sb3_plasticity.zoo.experiment import seed_at
from sb3_plasticity.zoo.train import make_folder, make_spec

RUN = Path("logs/ppo_l2er/SlipperyAnt-v0_1")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_checkpoints_stand_between_rollouts_with_their_statistics(trained: Path) -> None:
    steps = sorted(int(path.stem.split("_")[2]) for path in RUN.glob("rl_model_*_steps.zip"))
    assert steps == [128, 256, 384]
    for step in steps:
        model = PPO_L2ER.load(RUN / f"rl_model_{step}_steps.zip", device="cpu")
        assert (model.num_timesteps, model._n_updates) == (step, step // 64)
        statistics = pickle.loads((RUN / f"rl_model_vecnormalize_{step}_steps.pkl").read_bytes())
        # one observation of each of the two environments before the first step
        assert statistics.obs_rms.count == pytest.approx(step + 2, abs=1e-3)
    assert not list(RUN.rglob(".partial*"))


def test_resuming_goes_on_at_the_checkpoint_in_a_folder_of_its_own(trained: Path, train: Callable[..., Any]) -> None:
    before = contents(RUN)
    status, error = train("--trained-agent", str(RUN / "rl_model_256_steps.zip"), "--verbose", "0", "-n", "500")
    assert (status, error) == (0, "")
    assert contents(RUN) == before
    resumed = RUN.with_name("SlipperyAnt-v0_2")
    model = PPO_L2ER.load(resumed / "SlipperyAnt-v0.zip", device="cpu")
    # 256 + 4 rollouts of 64 is the first multiple from 500 on; n_epochs came from the run's own hyper-parameters
    assert (model.num_timesteps, model._n_updates, model._total_timesteps) == (512, 8, 500)
    log = pd.read_csv(resumed / "progress.csv")
    assert log["time/total_timesteps"][log["time/iterations"] == 1].iloc[0] == 320
    # the task of step 256 to 320 and not of step 0 to 64
    assert log["task/index"].dropna().iloc[0] >= 2
    statistics = pickle.loads((resumed / "SlipperyAnt-v0" / "vecnormalize.pkl").read_bytes())
    assert statistics.obs_rms.count == pytest.approx(512 + 2 + 2, abs=1e-3)
    # TensorBoard's curves are kept apart as well
    assert sorted(path.name for path in Path("runs/ppo_l2er").iterdir()) == ["SlipperyAnt-v0_1", "SlipperyAnt-v0_2"]


def test_a_finished_run_has_nothing_to_resume(trained: Path, train: Callable[..., Any]) -> None:
    status, error = train("--trained-agent", str(RUN / "rl_model_384_steps.zip"), "-n", "300")
    assert status == 2
    assert "it has 384 of 300 steps" in error


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / RUN, tmp_path / RUN)
    return tmp_path / RUN


def test_missing_statistics_are_an_error(copy: Path, train: Callable[..., Any]) -> None:
    (copy / "rl_model_vecnormalize_256_steps.pkl").unlink()
    status, error = train("--trained-agent", str(copy / "rl_model_256_steps.zip"))
    assert status == 2
    assert "rl_model_vecnormalize_256_steps.pkl: the normalisation statistics of" in error


def test_damaged_and_foreign_checkpoints_are_refused(copy: Path, train: Callable[..., Any]) -> None:
    path = copy / "rl_model_256_steps.zip"
    status, error = train("--trained-agent", str(path), "--algo", "sac")
    assert (status, "a checkpoint of ppo_l2er, not of sac" in error) == (2, True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    status, error = train("--trained-agent", str(path))
    assert (status, error.count("\n")) == (2, 1)
    assert "rl_model_256_steps.zip: not a whole" in error
    damaged = bytearray(whole)
    middle = whole.index(b"policy.pth") + 2000
    damaged[middle : middle + 100] = bytes(100)
    path.write_bytes(damaged)
    status, error = train("--trained-agent", str(path))
    assert (status, "damaged in" in error) == (2, True)
    assert error.count("\n") == 1


def test_a_stock_ppo_agent_may_go_on_as_ppo_l2er(train: Callable[..., Any]) -> None:
    PPO("MlpPolicy", "SlipperyAnt-v0", n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(32).save("stock.zip")
    status, error = train(
        "--algo", "ppo_l2er", "--trained-agent", "stock.zip", *TINY_L2ER, "-n", "96", "--eval-freq", "-1"
    )
    assert (status, error) == (0, "")
    assert PPO_L2ER.load(RUN / "SlipperyAnt-v0.zip", device="cpu").num_timesteps == 96


def test_a_failed_write_leaves_the_old_file() -> None:
    path = Path("model.zip")
    path.write_text("good")
    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "good"
    assert [file.name for file in Path().iterdir()] == ["model.zip"]


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        spec, _ = make_spec({"algo": "ppo", "env": "CartPole-v1"})
        made = list(pool.map(lambda _: make_folder(spec, {"log_folder": tmp_path})[0].path.name, range(8)))
        events = list(pool.map(lambda _: make_new(numbered(tmp_path / "events")).name, range(8)))
    assert sorted(made) == [f"CartPole-v1_{number}" for number in range(1, 9)]
    assert sorted(events) == ["events", *(f"events-{number}" for number in range(2, 9))]


def test_the_seed_of_a_run_that_goes_on_is_another_one() -> None:
    seeds = [seed_at(3, step) for step in (0, 64, 128)]
    assert seeds[0] == 3 and len(set(seeds)) == 3 and seeds[1] == seed_at(3, 64) != seed_at(4, 64)


def test_a_killed_run_is_resumed_to_its_end(command: Callable[..., Any]) -> None:
    options = ["--algo", "ppo_l2er", *TINY_L2ER, "-n", "100000", "--save-freq", "64", "--eval-freq", "-1"]
    log = open("out.txt", "w")
    process = subprocess.Popen([sys.executable, "-m", "sb3_plasticity.zoo", "train", *options], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while len(list(RUN.glob("rl_model_*.zip"))) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        log.close()
    last = max(RUN.glob("rl_model_*_steps.zip"), key=lambda path: int(path.stem.split("_")[2]))
    step = int(last.stem.split("_")[2])
    assert step >= 64, Path("out.txt").read_text()
    assert "there are checkpoints" in command(
        "enjoy", "--algo", "ppo_l2er", "--env", "SlipperyAnt-v0", "-n", "5", status=2
    )
    output = command("train", "--trained-agent", str(last), "-n", str(step + 100))
    assert f"Continuing at step {step} of {step + 100}" in output
    model = PPO_L2ER.load(RUN.with_name("SlipperyAnt-v0_2") / "SlipperyAnt-v0.zip", device="cpu")
    assert model.num_timesteps == step + 128
    assert model._n_updates == model.num_timesteps // 64
