"""What every benchmark needs: the machine it ran on, and medians."""

import statistics
from collections.abc import Iterable
from typing import Any

from sb3_plasticity.common import machine as installed


def median(values: Iterable[float]) -> float:
    """The middle one of some numbers."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the numbers were measured on, with and when."""
    return installed.machine(["sbx-rl", "jax"])
