"""The live table of a study."""

import io

import pytest
from rich.console import Console

from sb3_plasticity.study import table
from sb3_plasticity.study.folder import RunFolder, State
from sb3_plasticity.study.spec import Run


@pytest.fixture
def runs(tmp_path):
    runs = [Run("SlipperyAnt-v0", method, 0, {}) for method in ("PPO", "PPO + L2")]
    return [(run, RunFolder(tmp_path / run.name)) for run in runs]


def test_a_terminal_shows_what_runs_and_what_crashed(runs):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    (_, ppo), (_, l2) = runs
    l2.write_state(State("crashed", 300, 2.0, "ValueError: no"))
    with ppo.lock():
        ppo.write_state(State("running", 500, 4.0))
        with table.StudyTable(runs, 1000, console) as shown:
            shown.look()
    text = console.file.getvalue()
    assert "SlipperyAnt-v0/PPO/seed_0" in text and "125" in text  # steps a second
    assert "SlipperyAnt-v0/PPO_L2/seed_0" in text and "ValueError: no" in text
    assert "2 runs: 1 running, 1 crashed" in text


def test_time_left_counts_what_was_done_since_the_start(runs, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    shown = table.StudyTable(runs, 100_000, Console(file=io.StringIO()))
    states = [State("running", 40_000, 1.0), State("pending")]
    assert shown._summary(states) == "2 runs: 1 running, 1 pending"
    now[0] += 600.0
    states[0] = State("running", 60_000, 601.0)
    # 20,000 steps in ten minutes; 140,000 to go
    assert shown._summary(states) == "2 runs: 1 running, 1 pending; about 1 h 10 min left"
    states[1] = State("crashed", 0, 0.0, "error")  # nobody waits for that one
    assert shown._summary(states) == "2 runs: 1 running, 1 crashed; about 20 min left"


def test_without_a_terminal_a_line_a_minute(runs, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120)
    shown = table.StudyTable(runs, 1000, console)
    for now[0] in (0.0, 30.0, 59.0, 61.0):
        shown.look()
    assert console.file.getvalue().splitlines() == ["2 runs: 2 pending"] * 2
