"""Functions that every benchmark needs: a description of the machine, and medians."""

import statistics
from collections.abc import Iterable
from typing import Any

from sb3_plasticity.common import machine as installed


def median(values: Iterable[float]) -> float:
    """The middle one of some numbers."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """Describe the machine, the versions and the time of a measurement."""
    return installed.machine(["sbx-rl", "jax"])
