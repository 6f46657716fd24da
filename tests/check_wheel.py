"""Build the wheel, install it with the extra zoo in a clean environment and use it there: ``make wheel``."""

import subprocess
from pathlib import Path

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
model = PPO_L2ER("SlipperyAnt-v0", device="cpu", compile=False)
assert model.n_envs == 8, "the packaged preset was not found"
model.learn(1)
print(f"sb3_plasticity {sb3_plasticity.__version__} works from its wheel: {model.num_timesteps} steps")
"""


def main() -> None:
    with clean_environment(ROOT / "constraints.txt", extras="[zoo]") as (folder, python):
        subprocess.run([python, "-c", USE], check=True, cwd=folder)
        subprocess.run([python.with_name("sb3-plasticity"), "doctor"], check=True, cwd=folder)
        (installed,) = (folder / "venv").glob("lib/*/site-packages/sb3_plasticity")
        expected = tracked("sb3_plasticity") | {Path("envs") / name for name in tracked("envs")}
        lacking = {str(name) for name in expected if not (installed / name).is_file()}
        assert not lacking, f"the wheel lacks {', '.join(sorted(lacking))}: see packages in setup.cfg"


def tracked(place: str) -> set[Path]:
    """What git has in a folder, relative to it."""
    names = subprocess.run(["git", "ls-files", place], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {Path(name).relative_to(place) for name in names.splitlines()}


if __name__ == "__main__":
    main()
