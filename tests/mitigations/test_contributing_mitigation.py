"""The mitigation of CONTRIBUTING.md, as a stranger would write it: on PPO, SAC, the compiled update and in the zoo."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch as th
from algorithms import make_agent
from stable_baselines3 import PPO

from sb3_plasticity.cli import main
from sb3_plasticity.mitigations import MitigationCallback
from sb3_plasticity.zoo.folder import RunFolder

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SECTION = PAGE.split("## Add a mitigation\n")[1].split("\n## ")[0]
MITIGATION, USE = re.findall(r"```python\n(.*?)```", SECTION, flags=re.S)
(YAML,) = re.findall(r"```yaml\n(.*?)```", SECTION, flags=re.S)


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(MITIGATION, found)
    return found


@pytest.mark.parametrize("name", ["PPO", "SAC", "PPO_L2ER"])
def test_it_acts_by_its_name_in_yaml(namespace: dict[str, Any], name: str) -> None:
    plain = make_agent(name).learn(32).policy.state_dict()
    model = make_agent(name)
    callback = MitigationCallback([{"slow_anchor": {"coef": 1.0, "tau": 0.5}}])
    found = model.learn(32, callback=callback).policy.state_dict()
    assert isinstance(callback.mitigations[0], namespace["SlowAnchor"])
    assert not all(th.equal(value, found[key]) for key, value in plain.items())


def test_it_acts_as_shown_and_in_the_compiled_update(namespace: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True")
        exec(USE, namespace)
    for agent in namespace["agents"].values():
        state = agent.mitigation_state.state_dict()["mitigations"]["slow_anchor"]
        parameters = dict(agent.policy.named_parameters())
        assert max(state["updates"].values()) > 0
        assert any(not th.equal(value, parameters[name]) for name, value in state["average"].items())
    assert namespace["agents"]["compiled"]._compiled._programs


def test_it_acts_from_a_file_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("slow_anchor.py").write_text(MITIGATION)
    Path("anchored.yml").write_text(YAML)
    (command,) = re.findall(r"`sb3-plasticity (train .*?)`", SECTION)
    assert main([*command.split(), "--verbose", "0", "--device", "cpu", "--seed", "0"]) == 0
    (folder,) = Path("logs/ppo").glob("CartPole-v1_*")
    assert RunFolder(folder).state().state == "finished"
    model: Any = PPO.load(RunFolder(folder).model, device="cpu")
    state = model.mitigation_state
    assert state["mitigations"]["slow_anchor"]["updates"]["policy"] == 10
