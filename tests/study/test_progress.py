"""What a study shows of itself while it runs."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from sb3_plasticity.study import progress
from sb3_plasticity.zoo.folder import RunFolder, State


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, RunFolder]:
    return {name: RunFolder(tmp_path / name) for name in ("ant/PPO/seed_0", "ant/PPO_L2/seed_0")}


def test_a_terminal_shows_a_bar_for_what_runs(runs: dict[str, RunFolder]) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120, color_system=None)
    ppo, l2 = runs.values()
    l2.write_state(State("crashed", 300, 2.0, "ValueError: no"))
    with ppo.lock():
        ppo.write_state(State("running", 500, 4.0))
        with progress.StudyProgress(runs, 1000, console) as shown:
            shown.look()
    text = written.getvalue()
    assert "ant/PPO/seed_0" in text and "50%" in text and "ant/PPO_L2/seed_0" not in text
    assert "2 runs: 1 running (50%), 1 crashed" in text


def test_time_left_counts_what_was_done_since_the_start(
    runs: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    shown = progress.StudyProgress(runs, 100_000, Console(file=io.StringIO()))
    shown._bars.get_time = lambda: now[0]
    ppo, l2 = runs.values()
    with ppo.lock():
        ppo.write_state(State("running", 40_000, 1.0))
        shown.look()
        now[0] += 600.0
        ppo.write_state(State("running", 60_000, 601.0))
        shown.look()
        # 20,000 steps in ten minutes; 140,000 to go
        states = [run.state() for run in runs.values()]
        assert shown.summary(states) == "2 runs: 1 running (60%), 1 pending; about 1 h 10 min left"
        l2.write_state(State("crashed", 0, 0.0, "error"))  # nobody waits for that one
        for step in (70_000, 80_000):
            shown.look()
            now[0] += 300.0
            ppo.write_state(State("running", step, 601.0))
        shown.look()
        states = [run.state() for run in runs.values()]
        assert shown.summary(states) == "2 runs: 1 running (80%), 1 crashed; about 0 h 10 min left"


def test_without_a_terminal_a_line_a_minute(runs: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    written = io.StringIO()
    shown = progress.StudyProgress(runs, 1000, Console(file=written, width=120))
    for now[0] in (0.0, 30.0, 59.0, 61.0):
        shown.look()
    assert written.getvalue().splitlines() == ["2 runs: 2 pending"] * 2
