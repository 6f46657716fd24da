"""Build the wheel, install it in a clean environment and use it from another folder: ``make wheel``."""

import subprocess

from clean_environment import ROOT, clean_environment

USE = """
import gymnasium as gym
import sb3_plasticity
from sb3_plasticity import PPO_L2ER
assert "site-packages" in sb3_plasticity.__file__, sb3_plasticity.__file__
assert sb3_plasticity.__version__ != "unknown"
for name in sb3_plasticity.__all__:
    getattr(sb3_plasticity, name)
gym.make("SlipperyAnt-v0").reset(seed=0)
model = PPO_L2ER("SlipperyAnt-v0", device="cpu")
assert model.n_envs == 8, "the packaged preset was not found"
model.learn(1)
print(f"sb3_plasticity {sb3_plasticity.__version__} works from its wheel: {model.num_timesteps} steps")
"""


def main() -> None:
    with clean_environment(ROOT / "constraints.txt") as (folder, python):
        subprocess.run([python, "-c", USE], check=True, cwd=folder)


if __name__ == "__main__":
    main()
