"""The study files of this project can be run; and no study file, however wrong, is a traceback (slow)."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_plasticity.study.matrix import prepare
from sb3_plasticity.study.spec import parse_study, planned_runs, read_study
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.yml"))
JUNK: list[Any] = [
    None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), 10**400, "", "x", "..", "метод", "a\x00b", "1e6",
    "lin_1", "nn.foo", "{}", [], [1, "a"], {}, {"a": 1}, {1: 2}, [[]], "SlipperyAnt-v0", "__import__('os')", "x" * 5000,
]  # fmt: skip
SMALL: dict[str, Any] = {
    "name": "fuzz",
    "env_ids": ["CartPole-v1"],
    "n_timesteps": 512,
    "seeds": [0, 1],
    "env_kwargs": {},
    "gym_packages": [],
    "save_freq": 100,
    "curvature": {"n_samples": 8},
    "plasticity": {"every": 10},
    "resources": {"num_cpus": 1, "num_gpus": 0},
    "hyperparams": {"policy": "MlpPolicy", "n_envs": 1, "policy_kwargs": {"net_arch": [8]}, "learning_rate": 0.001},
    "methods": {"PPO": {"algo": "ppo"}, "PPO_L2ER": {"er_coef": 0.01, "callback": ["sb3_plasticity.TaskSyncCallback"]}},
    "report": {"baseline": "PPO", "epsilon": 1.0, "rho": [0.1], "tasks": [0], "kind": "ggn"},
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_studies_here_can_be_run(path: Path) -> None:
    study = read_study(path)
    specs = prepare(study, str(path))
    assert len(specs) >= len(study.methods) * len(study.seeds)
    for run, spec in specs.items():
        schedule = spec.hyperparams["env_kwargs"]["schedule"]
        assert run.control or schedule["seed"] == run.seed
        assert spec.tags["period"] == schedule["period"] and spec.hyperparams["policy"]
    assert study.report.baseline in study.methods


def test_methods_of_the_control_may_be_chosen() -> None:
    content = copy.deepcopy(SMALL) | {"control": {}, "control_methods": ["PPO"]}
    runs = planned_runs(parse_study(content, "x"))
    assert [run.method for run in runs if run.control] == ["PPO", "PPO"] and len(runs) == 6
    with pytest.raises(UsageError, match=r"`control_methods` must be one of 'PPO', 'PPO_L2ER', got 'PPo'"):
        parse_study(content | {"control_methods": ["PPo"]}, "x")


def places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a nested mapping or list."""
    found = [above] if above else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found += places(value, (*above, key))
    return found


def mutate(content: Any, random_: random.Random) -> None:
    """Put junk at a place, take it away, misspell it, or exchange two."""
    place = random_.choice(places(content))
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    kind = random_.randrange(4)
    if kind == 0 and isinstance(parent, dict):
        del parent[place[-1]]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(place[-1])[:-1] + random_.choice("xé.")] = parent.pop(place[-1])
    else:
        parent[place[-1]] = copy.deepcopy(random_.choice(JUNK))


@pytest.mark.slow
def test_no_study_file_is_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """1,200 spoilt contents and 300 spoilt texts: either a study, or one line; and nothing is trained or written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunFolder, "write_description", lambda *_: pytest.fail("something was begun"))
    refused, tracebacks = 0, []
    text = yaml.safe_dump(SMALL, sort_keys=False)
    for seed in range(1500):
        random_ = random.Random(seed)
        if seed < 1200:
            content = copy.deepcopy(SMALL)
            for _ in range(random_.choice((1, 1, 2))):
                mutate(content, random_)
            spoilt = yaml.dump(content, allow_unicode=True, sort_keys=False)
        else:
            place = random_.randrange(len(text))
            cut = random_.randrange(12)
            spoilt = (
                text[:place]
                + random_.choice(("", "\t", ": ", "[", "&a ", "*a", "\x00", "é", "- "))
                + text[place + cut :]
            )
        path = Path("study.yml")
        path.write_text(spoilt, encoding="utf-8")
        try:
            study = read_study(path)
            prepare(study, str(path))
        except UsageError as error:
            refused += 1
            assert str(error).strip(), seed
        except Exception as error:
            tracebacks.append(f"{seed}: {type(error).__name__}: {error}")
    assert not tracebacks
    assert 500 < refused < 1500
    assert [path.name for path in tmp_path.iterdir()] == ["study.yml"]
