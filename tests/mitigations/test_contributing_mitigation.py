"""The mitigation of CONTRIBUTING.md, as a stranger would write it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch as th
from algorithms import make_agent

from sb3_plasticity.mitigations import Mitigation, MitigationCallback


@pytest.fixture(scope="module")
def slow_anchor() -> type[Mitigation]:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"## Add a mitigation\n.*?```python\n(.*?)```", text, flags=re.S)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    result: type[Mitigation] = namespace["SlowAnchor"]
    return result


@pytest.mark.parametrize("name", ["PPO", "SAC", "PPO_L2ER"])
def test_a_strangers_mitigation_acts_by_its_name_in_yaml(slow_anchor: type[Mitigation], name: str) -> None:
    plain = make_agent(name).learn(32).policy.state_dict()
    model = make_agent(name)
    callback = MitigationCallback([{"slow_anchor": {"coef": 1.0, "tau": 0.5}}])
    found = model.learn(32, callback=callback).policy.state_dict()
    assert isinstance(callback.mitigations[0], slow_anchor)
    assert not all(th.equal(value, found[key]) for key, value in plain.items())
