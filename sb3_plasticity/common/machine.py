"""What numbers were measured on, with and when."""

import datetime
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("sb3-plasticity", "torch", "stable-baselines3", "gymnasium", "mujoco", "numpy")


def machine(further_packages: Iterable[str] = ()) -> dict[str, Any]:
    """
    Describe this machine and what is installed on it.

    :param further_packages: whose versions count, besides those of every measurement
    :return: date, cpu, cpus, python, and versions by package
    """
    versions = {}
    for package in (*PACKAGES, *further_packages):
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
    """Return the processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
