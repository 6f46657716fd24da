"""The digits example runs as written."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "curvature_digits.py"


def test_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    figure = tmp_path / "digits.png"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--epochs", "1", "--plot", str(figure)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("GGN of the last layer") == 2 and "8970" in printed
    assert figure.stat().st_size > 10_000
