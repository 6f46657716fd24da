"""What CurvatureCallback still has to measure, in a form that a checkpoint can keep."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.utils import _pytree as pytree

from sb3_plasticity.agents.samples import SampleSource


@dataclass
class Measurement:
    """
    A measurement that is due: the weights and the transitions it is of.

    :param phase: ``"start"`` or ``"end"`` of a task, or ``"periodic"``
    :param step: ``num_timesteps`` of the weights
    :param task: (index, value) of the task the transitions are of
    :param state: the policy's ``state_dict``, kept aside; None for the present weights
    :param parts: transitions, as a :class:`~sb3_plasticity.agents.samples.SampleSource` hands them out
    :param share: fraction of its rollout that the task's transitions made up when they were first seen
    :param full: whether no more transitions are needed
    """

    phase: str
    step: int
    task: tuple[int, float]
    state: dict[str, th.Tensor] | None
    parts: list[Any]
    share: float
    full: bool = False


@dataclass
class Progress:
    """
    How far a run's measurements are.

    Saved with the model, transitions of a replay buffer are read out of it: a checkpoint need not hold the buffer.

    :param run_id: tells this run's records from others in the same folder
    :param task: the latest one that has been noticed, (index, value)
    :param recent: its latest transitions, in parts
    :param same_steps: steps of all environments after these that were of the same task
    :param waiting: measurements that wait for transitions or time
    :param rollouts: since the run began
    :param began_at: ``num_timesteps`` where the run was picked up without knowing what went before
    :param n_samples: transitions of a measurement
    :param source: where transitions come from; not saved
    """

    run_id: str = field(default_factory=lambda: os.urandom(8).hex())
    task: tuple[int, float] | None = None
    recent: list[Any] = field(default_factory=list)
    same_steps: int = 0
    waiting: list[Measurement] = field(default_factory=list)
    rollouts: int = 0
    began_at: int = 0
    n_samples: int = 0
    source: SampleSource | None = None

    def settle(self, ago: int = 0) -> None:
        """
        Say where the latest transitions are that were only counted.

        :param ago: how many steps ago the last of them was
        """
        if not self.same_steps:
            return
        assert self.source is not None
        eligible = np.ones((min(self.same_steps, self.n_samples), self.source.n_envs), dtype=bool)
        same = self.source.take(eligible, eligible.size, ago=ago)
        self.recent = [self.source.last([*self.recent, same], self.n_samples)]
        self.same_steps = 0

    def __getstate__(self) -> dict[str, Any]:
        source = self.source

        def read(parts: list[Any]) -> list[Any]:
            if not parts or source is None:
                return parts
            return [pytree.tree_map(lambda tensor: tensor.cpu(), source.read(parts))]

        self.settle()
        state = dict(vars(self), source=None, recent=read(self.recent))
        state["waiting"] = [
            Measurement(
                **dict(
                    vars(waiting),
                    parts=read(waiting.parts),
                    state=waiting.state and {name: value.cpu() for name, value in waiting.state.items()},
                )
            )
            for waiting in self.waiting
        ]
        return state


def records_after(folder: Path, run_id: str) -> Iterator[tuple[dict[str, Any], Path]]:
    """
    Find a run's records.

    :param folder: with npz files
    :param run_id: of the run
    :yields: what each record is of, and its file; what is no whole record is passed over
    """
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as file:
                info = json.loads(str(file["info"]))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError):
            continue
        if info.get("run_id") == run_id:
            yield info, path
