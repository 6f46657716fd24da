from typing import Any

import numpy as np
import pytest

from sb3_plasticity.common.checks import check_choice, check_count, check_keywords, check_names, check_number, nearest


@pytest.mark.parametrize("value", [3, np.int64(3)])
def test_accepts_whole_numbers(value: int) -> None:
    check_count("n", value, at_least=3)


@pytest.mark.parametrize("value", [2, True, 3.0, "3", None])
def test_refuses_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^`n` must be a whole number >= 3, got "):
        check_count("n", value, at_least=3)


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float64(0.25)])
def test_accepts_numbers_in_range(value: float) -> None:
    check_number("x", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, "0.5"])
def test_refuses_numbers_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^`x` must be a finite number >= 0 and <= 1, got "):
        check_number("x", value, 0, 1)


def test_open_bounds_are_open() -> None:
    with pytest.raises(ValueError, match="`x` must be a finite number > 0, got 0"):
        check_number("x", 0, above=0)


def test_choices_name_the_nearest() -> None:
    check_choice("mode", "loss", ("loss", "step"))
    with pytest.raises(ValueError, match=r"`mode` must be one of 'loss', 'step', got 'los' \(did you mean 'loss'\?\)"):
        check_choice("mode", "los", ("loss", "step"))
    with pytest.raises(ValueError, match="got 1"):
        check_choice("flag", 1, (True, False))


def test_names_and_keywords() -> None:
    check_names("key", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"got 'friktion' .did you mean 'friction'"):
        check_names("key", ["friktion"], ["friction", "mass"])
    with pytest.raises(TypeError, match=r"f got an unexpected keyword argument 'alhpa' \(did you mean 'alpha'\?\)"):
        check_keywords(f, {"alhpa": 1})
    assert nearest("zzz", ["alpha"]) == ""


def f(alpha: Any) -> Any:
    return alpha
