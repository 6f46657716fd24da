"""Run the tests of zoo and environments from the wheel with the oldest libraries accepted: ``make test-oldest``."""

import os
import shutil
import subprocess
from pathlib import Path

from clean_environment import clean_environment

HERE = Path(__file__).resolve().parent


def main() -> None:
    with clean_environment(HERE / "oldest.txt", "pytest>=8", extras="[zoo,metaworld]") as (folder, python):
        # a copy, so that the installed package is tested and not the checkout
        tests = folder / "tests"
        for room in ("envs", "zoo"):
            shutil.copytree(HERE / room, tests / room)
        options = ["-q", "-rs", "-c", os.devnull, "--rootdir", str(tests), "-p", "no:cacheprovider", "-m", "not slow"]
        helpers = os.environ | {"PYTHONPATH": str(HERE / "agents")}  # one small agent of each algorithm: algorithms.py
        subprocess.run([python, "-m", "pytest", *options, str(tests)], check=True, cwd=tests, env=helpers)


if __name__ == "__main__":
    main()
