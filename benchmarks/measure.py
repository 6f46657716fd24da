"""What every benchmark needs: the machine it ran on, and medians."""

import datetime
import os
import platform
import statistics
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("sb3-plasticity", "torch", "stable-baselines3", "gymnasium", "mujoco", "numpy", "sbx-rl", "jax")


def median(values: Iterable[float]) -> float:
    """The middle one of some numbers."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the numbers were measured on, with and when."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
