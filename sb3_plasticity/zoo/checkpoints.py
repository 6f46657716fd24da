"""Models on disk: written so that a kill cannot spoil them, found again, and looked at before they are trusted."""

import json
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.errors import UsageError, mistakes_in
from sb3_plasticity.zoo.folder import CHECKPOINT, RunFolder, step_of


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
    if match := CHECKPOINT.fullmatch(model_path.stem):
        return model_path.with_name(f"{match[1]}_vecnormalize_{match[2]}_steps.pkl")
    if model_path.stem == "best_model":
        return model_path.with_name("best_model_vecnormalize.pkl")
    return model_path.with_suffix("") / "vecnormalize.pkl"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """
    Read what a saved model says of itself.

    :param path: of the zip file
    :return: its attributes
    :raises UsageError: if the file is missing or damaged
    """
    if not path.is_file() or path.suffix != ".zip":
        near = sorted(other.name for other in path.parent.glob("*.zip"))
        raise UsageError(f"{path}: there is no such zip file" + f"; there are {', '.join(near)}" * bool(near))
    with mistakes_in(f"{path}: not a whole model (an older checkpoint may be whole)"):
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
        if damaged is not None:
            raise UsageError(f"{path}: damaged in {damaged}; an older checkpoint may be whole")
        data, _, _ = load_from_zip_file(path, device="cpu")
        if not data or "policy_class" not in data or "policy.pth" not in names:
            raise ValueError("it was not saved by stable-baselines3")
    return data


def steps_in(path: Path) -> int | None:
    """Say how many environment steps a saved model was trained for; None if its file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return int(json.loads(archive.read("data"))["num_timesteps"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return None


def newest_model(folder: RunFolder) -> Path | None:
    """
    Find the model that a run resumes from.

    :param folder: of the run
    :return: the one with the most steps among its checkpoints and its final model; damaged ones are passed over, with a
        warning; None if there is none
    """
    found = [(step_of(path) or 0, path) for path in folder.checkpoints()]
    if folder.model.is_file():
        steps = steps_in(folder.model)
        found.append((sys.maxsize if steps is None else steps, folder.model))
    for _, path in sorted(found, reverse=True):
        try:
            read_checkpoint(path)
            return path
        except UsageError as error:
            warnings.warn(str(error), stacklevel=2)
    return None
