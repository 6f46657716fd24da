"""A run's folder: what an earlier training left, for those who go on from it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import yaml

from sb3_plasticity.zoo.checkpoints import step_of
from sb3_plasticity.zoo.errors import UsageError

# Options of ``train`` that a resumed run takes over from its predecessor unless they are given anew.
INHERITED = (
    "device",
    "env_kwargs",
    "eval_env_kwargs",
    "eval_episodes",
    "eval_freq",
    "eval_tasks",
    "gym_packages",
    "log_interval",
    "n_eval_envs",
    "n_timesteps",
    "num_threads",
    "save_freq",
    "save_replay_buffer",
    "tensorboard_log",
    "vec_env",
)


class _RunLoader(yaml.FullLoader):
    """Reads what rl_zoo3 writes: an OrderedDict, tuples and names of classes, but no code."""


_RunLoader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(loader.construct_sequence(node, deep=True)[0]),  # type: ignore[arg-type]
)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read a file that rl_zoo3 wrote.

    :param path: ``args.yml`` or ``config.yml``
    :return: its content
    :raises UsageError: if it is no such file
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_RunLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not as rl_zoo3 wrote it: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not as rl_zoo3 wrote it")
    return dict(content)


class Run:
    """
    The folder that a saved model lies in.

    :param model_path: the zip file
    """

    def __init__(self, model_path: Path) -> None:
        self.folder = model_path.parent
        self.step = step_of(model_path)
        found = sorted(self.folder.glob("*/args.yml"))
        self._files = found[0].parent if len(found) == 1 else None

    @property
    def args(self) -> dict[str, Any]:
        """Options that the run was started with; empty if this is no run's folder."""
        return {} if self._files is None else read_yaml(self._files / "args.yml")

    @property
    def config(self) -> Path | None:
        """Hyper-parameters that the run was started with, if this is a run's folder."""
        path = None if self._files is None else self._files / "config.yml"
        return path if path is not None and path.is_file() else None
