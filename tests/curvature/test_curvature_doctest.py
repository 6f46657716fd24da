"""The examples in docstrings say the truth."""

import doctest
from types import ModuleType

import pytest

import sb3_plasticity.curvature
import sb3_plasticity.curvature.spectrum


@pytest.mark.parametrize("module", [sb3_plasticity.curvature, sb3_plasticity.curvature.spectrum])
def test_docstrings(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
