"""What a run keeps while it is trained: its episodes, its checkpoints and how far it is."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import ResultsWriter

from sb3_plasticity.envs import has_clock
from sb3_plasticity.zoo.checkpoints import save
from sb3_plasticity.zoo.folder import MONITOR, RunFolder, State

# Seconds between two notes of how far a run is.
NOTE_EVERY = 2.0


class EpisodeLog(BaseCallback):
    """
    Write finished episodes to a ``monitor.csv`` as SB3's ``Monitor`` does, with the step and the task of each.

    :param path: of the attempt's records
    :param env_id: for the header
    :param keywords: further keys of ``info["episode"]``
    """

    def __init__(self, path: Path, env_id: str, keywords: Iterable[str] = ()) -> None:
        super().__init__()
        self._path = path / MONITOR
        self._env_id = env_id
        self._keywords = tuple(keywords)
        self._writer: ResultsWriter | None = None

    def _on_training_start(self) -> None:
        tasks = ("task_index", "task_value") if has_clock(self.training_env) else ()
        header: dict[str, float | str] = {"t_start": time.time(), "env_id": self._env_id}
        self._keys = ("r", "l", "t", *self._keywords, "step", *tasks)
        self._writer = ResultsWriter(str(self._path), header, self._keys[3:])

    def _on_step(self) -> bool:
        assert self._writer is not None
        for info in self.locals.get("infos", ()):  # ARS has none
            if "episode" in info:
                row = {**info, **info["episode"], "step": self.num_timesteps}
                self._writer.write_row({key: row[key] for key in self._keys if key in row})
        return True

    def _on_training_end(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Keeper(BaseCallback):
    """
    Between two rollouts, save the model when it is time, note how far the run is, and stop if that is wanted.

    Between rollouts every step that was taken has also been learned from, so a run resumed at step N has lost nothing
    of its first N steps. It must be the first of all callbacks: what others do when a rollout starts, they do again
    when the run is resumed.

    :param folder: of the run
    :param save_freq: least number of steps from one checkpoint to the next; none if negative
    :param seconds: that earlier attempts took
    :param verbose: 2 prints every checkpoint
    """

    def __init__(self, folder: RunFolder, save_freq: int, seconds: float = 0.0, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.folder = folder
        self.save_freq = save_freq
        self.rollouts = 0
        self.stop = False
        self._before = seconds
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the run has taken."""
        return self._before + time.monotonic() - self._began

    @contextlib.contextmanager
    def stopping_between_rollouts(self) -> Iterator[None]:
        """
        Let an interrupt (Ctrl-C, or a cluster's SIGTERM) end training after the present rollout and its update.

        A second one ends it at once.

        :return: a context
        """

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            print("\nStopping after this rollout; interrupt again to stop at once", flush=True)

        in_main_thread = threading.current_thread() is threading.main_thread()  # signals are nobody else's
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_training_start(self) -> None:
        self._saved = self.num_timesteps

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        new = self.num_timesteps - self._saved
        if new and (self.stop or 0 < self.save_freq <= new):
            self._saved = self.num_timesteps
            path = self.folder.checkpoint(self.num_timesteps)
            save(self.model, path)
            if self.verbose >= 2:
                print(f"Saving model checkpoint to {path}")
        if self.stop:
            save(self.model, self.folder.model)  # for those who look at what there is
            raise KeyboardInterrupt
        if time.monotonic() - self._noted >= NOTE_EVERY:
            self._noted = time.monotonic()
            self.folder.write_state(State("running", self.num_timesteps, self.seconds))

    def _on_step(self) -> bool:
        return True
