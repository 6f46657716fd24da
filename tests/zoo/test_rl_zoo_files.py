"""A user's file of rl-zoo's trains unchanged: bit for bit what rl_zoo3's own manager makes of it."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.utils import set_random_seed

from sb3_plasticity.cli import main
from sb3_plasticity.zoo.algorithms import ALGOS

FILES = {
    "ppo": """
Pendulum-v1:
  n_timesteps: !!float 100
  policy: 'MlpPolicy'
  n_steps: 32
  batch_size: 32
  n_epochs: 1
  learning_rate: !!float 1e-3
  clip_range: 0.2
""",
    "ppo with everything": """
default:
  n_envs: 2
  n_timesteps: !!float 100
  policy: 'MlpPolicy'
  normalize: "dict(norm_obs=True, norm_reward=False)"
  env_wrapper:
    - gymnasium.wrappers.RescaleAction:
        min_action: -1.0
        max_action: 1.0
    - rl_zoo3.wrappers.HistoryWrapper
  callback:
    - rl_zoo3.callbacks.RawStatisticsCallback
    - stable_baselines3.common.callbacks.LogEveryNTimesteps: {n_steps: 64}
  n_steps: 32
  batch_size: 32
  n_epochs: 1
  learning_rate: lin_3e-4
  clip_range: lin_0.2
  use_sde: True
  policy_kwargs: "dict(log_std_init=-2, ortho_init=False, activation_fn=nn.ReLU, net_arch=dict(pi=[16], vf=[16]))"
  monitor_kwargs: {allow_early_resets: True}
""",
    "sac": """
Pendulum-v1:
  n_timesteps: 100
  policy: 'MlpPolicy'
  learning_starts: 50
""",
    "sac normalised": """
Pendulum-v1:
  n_timesteps: 100
  policy: 'MlpPolicy'
  normalize: "{'norm_obs': True, 'norm_reward': True}"
  gamma: 0.98
  learning_starts: 50
""",
    "sac with everything": """
Pendulum-v1:
  n_envs: 2
  n_timesteps: !!float 1e2
  policy: 'MlpPolicy'
  env_wrapper: rl_zoo3.wrappers.TimeFeatureWrapper
  callback: rl_zoo3.callbacks.RawStatisticsCallback
  learning_rate: lin_7.3e-4
  buffer_size: 300
  learning_starts: 50
  train_freq: [4, "step"]
  gradient_steps: 1
  ent_coef: 'auto_0.1'
  frame_stack: 2
  noise_type: 'ornstein-uhlenbeck'
  noise_std: 0.1
  policy_kwargs: "dict(net_arch=[16, 16], n_critics=1)"
""",
}


def train(name: str, *options: str) -> tuple[str, Path]:
    algo = name.split()[0]
    Path("mine.yml").write_text(FILES[name])
    common = ["--algo", algo, "--env", "Pendulum-v1", "--conf-file", "mine.yml", "--device", "cpu", "--verbose", "0"]
    assert main(["train", *common, *options]) == 0
    return algo, Path(f"logs/{algo}/Pendulum-v1_1")


@pytest.mark.parametrize("name", FILES)
def test_a_file_trains_as_in_rl_zoo(name: str) -> None:
    algo, run = train(name, "--seed", "3", "--eval-freq", "-1")
    ours = ALGOS[algo].load(run / "Pendulum-v1.zip", device="cpu")
    set_random_seed(3)
    options: dict[str, Any] = {"log_folder": "theirs", "tensorboard_log": "theirs", "config": "mine.yml", "verbose": 0}
    options |= {"eval_freq": -1, "log_interval": -1}
    manager = ExperimentManager(argparse.Namespace(), algo, "Pendulum-v1", seed=3, device="cpu", **options)
    made = manager.setup_experiment()
    assert made is not None
    theirs: Any = made[0]
    manager.learn(theirs)
    assert ours.num_timesteps == theirs.num_timesteps > 50 and ours._n_updates == theirs._n_updates > 0
    own, expected = ours.policy.state_dict(), theirs.policy.state_dict()
    assert own.keys() == expected.keys() and all(th.equal(own[key], expected[key]) for key in own)
    if (statistics := theirs.get_vec_normalize_env()) is not None:
        kept = pickle.loads((run / "Pendulum-v1" / "vecnormalize.pkl").read_bytes())
        np.testing.assert_array_equal(kept.obs_rms.mean, statistics.obs_rms.mean)
        assert kept.norm_reward == statistics.norm_reward and kept.gamma == statistics.gamma
    else:
        assert not list(run.glob("*/vecnormalize.pkl"))


@pytest.mark.parametrize("name", [name for name in FILES if "everything" in name])
def test_it_is_evaluated_goes_on_and_is_shown(name: str) -> None:
    algo, run = train(name, "--eval-freq", "60", "--eval-episodes", "1", "--save-freq", "40")
    assert (run / "best_model.zip").is_file() and (run / "Pendulum-v1.zip").is_file()
    assert main(["train", "-i", str(run / "Pendulum-v1.zip"), "-n", "150", "--verbose", "0"]) == 0
    model = ALGOS[algo].load(f"logs/{algo}/Pendulum-v1_2/Pendulum-v1.zip", device="cpu")
    assert model.num_timesteps >= 150 and type(model).__name__.lower() == algo
    assert main(["enjoy", "--algo", algo, "--env", "Pendulum-v1", "-n", "10", "--no-render", "--exp-id", "1"]) == 0
