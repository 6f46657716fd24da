"""Checkpoints that a kill cannot spoil, and where each one's normalisation statistics are."""

import re
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.errors import UsageError

CHECKPOINT = re.compile(r"(.+)_(\d+)_steps")


def save(model: BaseAlgorithm, path: Path) -> None:
    """
    Save a model and, beside it, the statistics of its ``VecNormalize``.

    The model comes last: where there is a model, its statistics are complete.

    :param model: to save
    :param path: of the zip file
    """
    statistics = model.get_vec_normalize_env()
    if statistics is not None:
        with replacing(statistics_path(path)) as temporary:
            statistics.save(str(temporary))
    with replacing(path) as temporary:
        model.save(temporary)


def statistics_path(model_path: Path) -> Path:
    """
    Say where the normalisation statistics of a saved model are.

    :param model_path: ``rl_model_N_steps.zip``, ``best_model.zip`` or the final ``<env id>.zip``
    :return: the file, whether it exists or not
    """
    match = CHECKPOINT.fullmatch(model_path.stem)
    if match:
        return model_path.with_name(f"{match[1]}_vecnormalize_{match[2]}_steps.pkl")
    if model_path.stem == "best_model":
        return model_path.with_name("best_model_vecnormalize.pkl")
    return model_path.with_suffix("") / "vecnormalize.pkl"


def step_of(model_path: Path) -> int | None:
    """
    Say at which step a checkpoint was taken.

    :param model_path: ``rl_model_N_steps.zip``, or another model
    :return: N; None for a model that is no checkpoint
    """
    match = CHECKPOINT.fullmatch(model_path.stem)
    return int(match[2]) if match else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """
    Read what a saved model says of itself.

    :param path: of the zip file
    :return: its attributes
    :raises UsageError: if the file is missing or damaged
    """
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*.zip")) if path.parent.is_dir() else []
        there = f"; there are {', '.join(near)}" if near else ""
        raise UsageError(f"{path}: there is no such file{there}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UsageError(f"{path}: damaged in {damaged}; an older checkpoint may be whole")
        data, _, _ = load_from_zip_file(path, device="cpu")
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path}: not a whole zip file ({error}); an older checkpoint may be whole") from error
    except (OSError, KeyError, ValueError, AssertionError, EOFError) as error:
        raise UsageError(f"{path}: not a whole model of stable-baselines3: {error}") from error
    if not data or "policy_class" not in data:  # the first half of a model ends in a whole zip file of its weights
        raise UsageError(f"{path}: not a whole model of stable-baselines3; an older checkpoint may be whole")
    return data


class AtomicCheckpointCallback(CheckpointCallback):
    """
    Save the model between two rollouts, when at least ``save_freq`` calls have passed since the last time.

    Between rollouts every step that was taken has also been learned from, so a run resumed at step N has lost nothing
    of its first N steps.

    :param save_freq: least number of calls from one checkpoint to the next
    :param save_path: folder
    :param name_prefix: of the files
    :param verbose: 2 prints every checkpoint
    """

    def __init__(self, save_freq: int, save_path: str, name_prefix: str = "rl_model", verbose: int = 0) -> None:
        super().__init__(save_freq, save_path, name_prefix, verbose=verbose)
        self._last_save = 0

    def _on_rollout_start(self) -> None:
        if self.n_calls - self._last_save >= self.save_freq:
            self._last_save = self.n_calls
            path = Path(self._checkpoint_path(extension="zip"))
            save(self.model, path)
            if self.verbose >= 2:
                print(f"Saving model checkpoint to {path}")

    def _on_step(self) -> bool:
        return True


class SaveBestModel(BaseCallback):
    """
    Keep the best model, whole at every moment, with the statistics it was scored with.

    :param path: of the zip file
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        save(self.model, self.path)
        return True
