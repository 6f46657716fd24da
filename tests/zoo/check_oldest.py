"""Run the zoo's tests from the wheel with the oldest libraries it accepts: ``python tests/zoo/check_oldest.py``."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (wheel,) = Path(folder).glob("*.whl")
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        packages = [f"{wheel}[zoo]", "pytest>=8"]
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", HERE / "oldest.txt", *packages], check=True)
        # a copy, so that the installed package is tested and not the checkout
        tests = shutil.copytree(HERE, Path(folder) / "tests")
        options = ["-q", "-c", os.devnull, "--rootdir", str(tests), "-p", "no:cacheprovider", "-m", "not slow"]
        subprocess.run([python, "-m", "pytest", *options, str(tests)], check=True, cwd=tests)


if __name__ == "__main__":
    main()
