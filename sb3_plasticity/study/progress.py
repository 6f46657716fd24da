"""How far a study is, on the terminal or as a line a minute elsewhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sb3_plasticity.zoo.folder import RunFolder, State

# Seconds between two lines where there is no terminal to draw bars on.
LINE_EVERY = 60.0


class StudyProgress:
    """
    A bar for every run in training and one for all of them.

    :param runs: folders by name
    :param n_timesteps: of each run
    :param console: to write to
    """

    def __init__(self, runs: Mapping[str, RunFolder], n_timesteps: int, console: Console | None = None) -> None:
        self.runs = runs
        self.n_timesteps = n_timesteps
        self.console = console or Console()
        self._next_line = 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        # the speed of the last hour says how long the rest will take
        self._bars = Progress(*columns, console=self.console, auto_refresh=False, speed_estimate_period=3600)
        self._all = self._bars.add_task("all runs", total=n_timesteps * len(runs))
        self._tasks = {name: self._bars.add_task(name, total=n_timesteps, visible=False) for name in runs}

    def __enter__(self) -> "StudyProgress":
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._next_line = 0.0
        self.look()
        if self.console.is_terminal:
            self._bars.stop()
            self.console.print(self.summary([run.state() for run in self.runs.values()]))

    def look(self) -> None:
        """Look at the runs and show what is to be seen."""
        states = {name: run.state() for name, run in self.runs.items()}
        for name, state in states.items():
            running = state.state == "running"
            self._bars.update(self._tasks[name], completed=min(state.step, self.n_timesteps), visible=running)
        # nobody waits for a run that crashed
        waited = [state for state in states.values() if state.state != "crashed"]
        done = sum(min(state.step, self.n_timesteps) for state in waited)
        self._bars.update(self._all, completed=done, total=self.n_timesteps * len(waited))
        if self.console.is_terminal:
            self._bars.refresh()
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            self.console.print(self.summary(list(states.values())), soft_wrap=True)

    def summary(self, states: Sequence[State]) -> str:
        """Say how far the runs are, such as ``10 runs: 2 running (37%, 52%), 8 pending; about 3 h 12 min left``."""
        counts = Counter(state.state for state in states)
        shares = [f"{100 * state.step // self.n_timesteps}%" for state in states if state.state == "running"]
        words = {"running": f" ({', '.join(shares)})"}
        parts = [
            f"{counts[name]} {name}{words.get(name, '')}"
            for name in ("running", "finished", "crashed", "pending")
            if counts[name]
        ]
        left = self._bars.tasks[0].time_remaining
        waiting = counts["running"] + counts["pending"]
        text = f"; about {int(left // 3600)} h {int(left % 3600 // 60)} min left" if left and waiting else ""
        return f"{len(states)} runs: {', '.join(parts)}{text}"
