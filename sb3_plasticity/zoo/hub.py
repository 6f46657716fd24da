"""
A run as a folder for the Hugging Face Hub, in the layout of rl-zoo, and back.

::

    README.md                    the model card
    <algo>-<env id>.zip          the model
    vec_normalize.pkl            statistics of a run that normalises
    config.yml, args.yml         hyper-parameters and options, env_kwargs.yml those of the environment
    results.json                 returns of the evaluation
    train_eval_metrics.zip       what was recorded during training
    replay.mp4                   a clip
"""

import datetime
import itertools
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rl_zoo3.utils import ModelName

from sb3_plasticity.common.files import make_new
from sb3_plasticity.zoo import checkpoints
from sb3_plasticity.zoo.description import ARGS, CONFIG, read_zoo_file, write_description
from sb3_plasticity.zoo.errors import UsageError, mistakes_in
from sb3_plasticity.zoo.folder import RunFolder, State, file_name
from sb3_plasticity.zoo.trained_agent import TrainedAgent

METRICS = "train_eval_metrics.zip"
CLIP = "replay.mp4"
STATISTICS = "vec_normalize.pkl"
TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "sb3-plasticity")
# Options that name places on the machine on which the run was trained.
PRIVATE = ("tensorboard_log", "trained_agent", "log_folder", "folder", "optimization_log_path", "conf_file", "storage")
GIT_ATTRIBUTES = "".join(f"{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("*.mp4", "*.zip", "*.pkl"))


def write_repository(target: Path, agent: TrainedAgent, returns: Mapping[str, Sequence[float]]) -> None:
    """
    Write everything but the clip.

    :param target: empty folder
    :param agent: to share
    :param returns: of each task's episodes, at least one; the name of the only task of a world without tasks is empty
    """
    spec, folder = agent.spec, RunFolder(agent.path.parent)
    name = ModelName(spec.algo, file_name(spec.env_id))
    shutil.copyfile(agent.path, target / name.filename)
    if (statistics := checkpoints.statistics_path(agent.path)).is_file():
        shutil.copyfile(statistics, target / STATISTICS)
    description = folder.description() or vars(spec)
    write_description(target, {key: "" if key in PRIVATE else value for key, value in description.items()})
    hyperparams = dict(spec.hyperparams)
    env_kwargs = hyperparams.pop("env_kwargs", None) or {}
    with zipfile.ZipFile(target / METRICS, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in ("*.csv", "*.npz", "attempt_*/*.csv", "attempt_*/*.npz"):
            for path in sorted(folder.path.glob(pattern)):
                if not path.name.startswith(".partial"):
                    archive.write(path, path.relative_to(folder.path).as_posix())
    every = np.concatenate(list(returns.values()))
    results = {
        "mean_reward": every.mean(),
        "std_reward": every.std(),
        "is_deterministic": agent.deterministic,
        "n_eval_episodes": len(every),
        "eval_datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tasks": [
            {"task": task, "mean": np.mean(of), "deviation": np.std(of), "episodes": len(of)}
            for task, of in returns.items()
        ],
    }
    class_name = type(agent.model).__name__
    data = ModelCardData(
        library_name="stable-baselines3",
        model_name=class_name,
        pipeline_tag="reinforcement-learning",
        tags=[
            spec.env_id,
            "deep-reinforcement-learning",
            "reinforcement-learning",
            "stable-baselines3",
            "sb3-plasticity",
        ],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                task_name="reinforcement-learning",
                dataset_type=spec.env_id,
                dataset_name=spec.env_id,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=f"{every.mean():.2f} +/- {every.std():.2f}",
            )
        ],
    )
    card = ModelCard.from_template(
        data,
        str(Path(__file__).with_name("card.md.jinja")),
        **results,
        class_name=class_name,
        env_id=spec.env_id,
        name=name,
        run=f"logs/{spec.algo}/{file_name(spec.env_id)}_1",
        steps=checkpoints.steps_in(agent.path),
        seed=spec.seed,
        deterministic=agent.deterministic,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        versions=", ".join(f"{key} {value}" for key, value in description.get("versions", {}).items() if value),
    )
    for file, text in (
        ("env_kwargs.yml", yaml.dump(dict(env_kwargs))),
        ("results.json", json.dumps(results, indent=1) + "\n"),
        (".gitattributes", GIT_ATTRIBUTES),
        ("README.md", str(card)),
    ):
        (target / file).write_text(text, encoding="utf-8")


def read_repository(source: Path, log_folder: Path) -> Path:
    """
    Turn a folder of the Hub into a run.

    :param source: as :func:`write_repository` or rl-zoo's ``push_to_hub`` writes it
    :param log_folder: that gets the run
    :return: the run's folder, which did not exist before
    :raises UsageError: for a folder that is none of these
    """
    if not source.is_dir():
        raise UsageError(f"{source}: there is no such folder")
    args = read_zoo_file(source / ARGS)
    if not args:
        raise UsageError(f"{source}: must be a model's folder from the Hub, but it has no args.yml")
    algo, env_name = str(args.get("algo", "")), file_name(str(args.get("env", "")))
    model = source / ModelName(algo, env_name).filename
    checkpoints.read_checkpoint(model)
    folder = RunFolder(make_new(log_folder / algo / f"{env_name}_{number}" for number in itertools.count(1)))
    try:
        files = folder.path / env_name
        files.mkdir()
        for name, copy in ((CONFIG, CONFIG), (ARGS, ARGS), (STATISTICS, "vecnormalize.pkl")):
            if (source / name).is_file():
                shutil.copyfile(source / name, files / copy)
        if "git_commit" in (description := folder.description()):  # none of rl-zoo's own
            steps = checkpoints.steps_in(model) or 0
            folder.write_state(State("finished" if steps >= description["n_timesteps"] else "pending", steps))
        if (source / METRICS).is_file():
            with (
                mistakes_in(f"{source / METRICS}: not a whole zip file", zipfile.BadZipFile),
                zipfile.ZipFile(source / METRICS) as archive,
            ):
                archive.extractall(folder.path)
        shutil.copyfile(model, folder.model)
    except BaseException:
        shutil.rmtree(folder.path)
        raise
    return folder.path
