"""What the README, and the guide's interactive session, show runs as written."""

import doctest
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import sb3_plasticity
from sb3_plasticity import PPO_L2ER

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_doctests() -> None:
    failed, attempted = doctest.testfile(str(ROOT / "docs" / "guide" / "instruments.md"), module_relative=False)
    assert attempted >= 6 and not failed


def test_the_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps, and tasks of 1,500, so that the callback sees several."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "10_000_000" in block)
    monkeypatch.chdir(tmp_path)
    kwargs = gym.registry["SlipperyAnt-v0"].kwargs
    monkeypatch.setitem(kwargs, "schedule", {"kind": "cyclic", "values": [0.3, 1], "period": 1500})
    monkeypatch.setitem(kwargs, "switch", "immediate")
    namespace: dict[str, Any] = {}
    exec(code.replace("10_000_000", "4_000").replace("verbose=1", "compile=False"), namespace)
    model = namespace["model"]
    assert isinstance(model, PPO_L2ER) and model.num_timesteps == 4096 and model.n_envs == 8
    table = sb3_plasticity.load_spectra(tmp_path / "runs")
    assert {0, 1, 2} == set(table.task_index[table.phase == "start"])
    assert {"policy", "value"} == set(table.network) and {"ggn", "hessian"} == set(table.kind)


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 800


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
