"""The live table of a study: what runs, how far it is and how long it will take."""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sb3_plasticity.study.folder import RunFolder, State
from sb3_plasticity.study.spec import Run

STYLES = {"running": "cyan", "finished": "green", "crashed": "red", "pending": "dim"}
# Seconds between two lines where there is no terminal to draw a table on.
LINE_EVERY = 60.0


class StudyTable:
    """
    A table on a terminal, a line a minute elsewhere.

    :param runs: of the study, with their folders
    :param n_timesteps: of each run
    :param console: to write to
    """

    def __init__(self, runs: Sequence[tuple[Run, RunFolder]], n_timesteps: int, console: Console | None = None) -> None:
        self.runs = runs
        self.n_timesteps = n_timesteps
        self.console = console or Console()
        self._began = time.monotonic()
        self._done_before: int | None = None
        self._next_line = 0.0
        self._live = Live(console=self.console, auto_refresh=False, transient=False)

    def __enter__(self) -> "StudyTable":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.look()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self.console.print(self._summary([folder.state() for _, folder in self.runs]))

    def look(self) -> None:
        """Look at the runs and show what is to be seen."""
        states = [folder.state() for _, folder in self.runs]
        if self.console.is_terminal:
            self._live.update(self.render(states), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            self.console.print(self._summary(states))

    def render(self, states: Sequence[State]) -> RenderableType:
        """
        Draw the table: what runs or crashed by itself, the rest as numbers of each method.

        :param states: of the runs, in their order
        :return: for rich
        """
        table = Table(box=None, pad_edge=False)
        for column in ("run", "state", "steps", "", "steps/s"):
            table.add_column(column, justify="right" if column.startswith("steps") else "left")
        for (run, _), state in zip(self.runs, states, strict=True):
            if state.state in ("running", "crashed"):
                speed = f"{state.step / state.seconds:,.0f}" if state.seconds else ""
                table.add_row(
                    run.name,
                    Text(state.state, STYLES[state.state]),
                    f"{state.step:,}",
                    ProgressBar(self.n_timesteps, min(state.step, self.n_timesteps), width=24)
                    if state.state == "running"
                    else Text(state.error or "", "red"),
                    speed,
                )
        return Group(table, Text(self._summary(states)))

    def _summary(self, states: Sequence[State]) -> str:
        counts = Counter(state.state for state in states)
        parts = [f"{counts[name]} {name}" for name in STYLES if counts[name]]
        left = self._time_left(states)
        return f"{len(states)} runs: {', '.join(parts)}" + (f"; about {left} left" if left else "")

    def _time_left(self, states: Sequence[State]) -> str:
        steps = [min(state.step, self.n_timesteps) for state in states]
        done = sum(steps)
        if self._done_before is None:
            self._done_before = done
        lacking = sum(
            self.n_timesteps - step for step, state in zip(steps, states, strict=True) if state.state != "crashed"
        )
        gained = done - self._done_before
        if gained <= 0 or lacking <= 0:
            return ""
        seconds = lacking * (time.monotonic() - self._began) / gained
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min" if hours else f"{max(minutes, 1)} min"
