"""The wheel in an environment that holds nothing else."""

import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def clean_environment(constraints: Path, *further: str, extras: str = "") -> Iterator[tuple[Path, Path]]:
    """Build the wheel and install it, and further packages: yields a folder outside of the checkout, and Python."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", name, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), f"{wheel}{extras}", *further]
        subprocess.run(install, check=True)
        yield folder, python
