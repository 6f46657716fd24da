"""What the README shows runs as written."""

import doctest
import re
from pathlib import Path

import gymnasium as gym

import sb3_plasticity
from sb3_plasticity import PPO_L2ER

README = Path(__file__).parent.parent / "README.md"


def test_doctests():
    failed, attempted = doctest.testfile(str(README), module_relative=False)
    assert attempted >= 6 and not failed


def test_the_three_lines(tmp_path, monkeypatch):
    """With fewer steps: a task of 3,000, so that the callback sees several."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "10_000_000" in block)
    monkeypatch.chdir(tmp_path)
    kwargs = gym.registry["SlipperyAnt-v0"].kwargs
    monkeypatch.setitem(kwargs, "schedule", {"kind": "cyclic", "values": [0.3, 1], "period": 3000})
    monkeypatch.setitem(kwargs, "switch", "immediate")
    namespace = {}
    exec(code.replace("10_000_000", "8_000").replace("verbose=1", "compile=False"), namespace)
    model = namespace["model"]
    assert isinstance(model, PPO_L2ER) and model.num_timesteps == 8192 and model.n_envs == 8
    table = sb3_plasticity.load_spectra(tmp_path / "runs")
    assert {0, 1, 2} == set(table.task_index[table.phase == "start"])
    assert {"policy", "value"} == set(table.network) and {"ggn", "hessian"} == set(table.kind)


def test_remedies_for_sac(tmp_path, monkeypatch):
    """With fewer steps: SAC learns from its hundredth."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "SAC" in block)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("1_000_000", "120"), namespace)
    model = namespace["model"]
    assert model.num_timesteps == 120
    assert set(model.mitigation_state.state_dict()["mitigations"]) == {"continual_backprop", "l2_init"}


def test_the_quickstarts_stock_ppo(tmp_path, monkeypatch):
    text = (README.parent / "docs" / "quickstart.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "TaskSyncCallback" in block)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code.replace("1_000_000", "4_096").replace("200_000", "2_000"), namespace)
    assert namespace["model"].num_timesteps == 4096
    assert len(sb3_plasticity.load_spectra(tmp_path / "runs"))


def test_pictures_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", README.read_text()):
        assert (README.parent / path).is_file(), path
