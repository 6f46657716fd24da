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
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sb3_plasticity.zoo import checkpoints
from sb3_plasticity.zoo.description import ARGS, CONFIG, read_zoo_file, write_description
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.folder import RunFolder, State, file_name
from sb3_plasticity.zoo.spec import RunSpec

METRICS = "train_eval_metrics.zip"
CLIP = "replay.mp4"
STATISTICS = "vec_normalize.pkl"
# Options that name places on the machine of whoever trained.
PRIVATE = ("tensorboard_log", "trained_agent", "log_folder", "folder", "optimization_log_path", "conf_file", "storage")
GIT_ATTRIBUTES = "".join(f"{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("*.mp4", "*.zip", "*.pkl"))


@dataclass(frozen=True)
class Score:
    """
    What an agent returns in one task.

    :param task: name of the task; empty in a world without tasks
    :param mean: of the returns
    :param deviation: standard deviation of the returns
    :param episodes: number of returns
    """

    task: str
    mean: float
    deviation: float
    episodes: int


def repository_name(spec: RunSpec) -> str:
    """
    Name a repository as rl-zoo does.

    :param spec: of the run
    :return: such as ``"ppo_l2er-SlipperyAnt-v0"``
    """
    return f"{spec.algo}-{file_name(spec.env_id)}"


def write_repository(
    target: Path, model_path: Path, spec: RunSpec, class_name: str, scores: Sequence[Score], deterministic: bool
) -> None:
    """
    Write everything but the clip.

    :param target: empty folder
    :param model_path: the model
    :param spec: of its run
    :param class_name: of the algorithm
    :param scores: a return for each task, at least one
    :param deterministic: whether they were reached with the policy's mode
    """
    folder = RunFolder(model_path.parent)
    name = repository_name(spec)
    shutil.copyfile(model_path, target / f"{name}.zip")
    if (statistics := checkpoints.statistics_path(model_path)).is_file():
        shutil.copyfile(statistics, target / STATISTICS)
    description = folder.description() or vars(spec)
    write_description(target, {key: "" if key in PRIVATE else value for key, value in description.items()})
    _write(target / "env_kwargs.yml", yaml.dump(dict(spec.hyperparams.get("env_kwargs") or {})))
    with zipfile.ZipFile(target / METRICS, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _records(folder.path):
            archive.write(path, path.relative_to(folder.path).as_posix())
    mean, deviation = overall(scores)
    results = {
        "mean_reward": mean,
        "std_reward": deviation,
        "is_deterministic": deterministic,
        "n_eval_episodes": sum(score.episodes for score in scores),
        "eval_datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tasks": [vars(score) for score in scores],
    }
    _write(target / "results.json", json.dumps(results, indent=1) + "\n")
    _write(target / ".gitattributes", GIT_ATTRIBUTES)
    steps = checkpoints.steps_in(model_path)
    _write(target / "README.md", model_card(spec, class_name, scores, steps, description, deterministic))


def model_card(
    spec: RunSpec,
    class_name: str,
    scores: Sequence[Score],
    steps: int | None,
    made_with: Mapping[str, Any],
    deterministic: bool,
) -> str:
    """
    Write a model card in the format of the Hub.

    :param spec: of the run
    :param class_name: of the algorithm
    :param scores: a return for each task, at least one
    :param steps: that the model was trained for; None if its file does not say
    :param made_with: versions and commit, as a run's description has them
    :param deterministic: whether the scores were reached with the policy's mode
    :return: Markdown, with the metadata in front
    """
    name, (mean, deviation) = repository_name(spec), overall(scores)
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
                metric_value=f"{mean:.2f} +/- {deviation:.2f}",
            )
        ],
    )
    env_kwargs = spec.hyperparams.get("env_kwargs") or {}
    hyperparams = {key: value for key, value in spec.hyperparams.items() if key != "env_kwargs"}
    run = f"logs/{spec.algo}/{file_name(spec.env_id)}_1"
    rows = "\n".join(
        f"| {score.task or spec.env_id} | {score.mean:,.1f} | {score.deviation:,.1f} | {score.episodes} |"
        for score in scores
    )
    actions = "the policy's most probable actions" if deterministic else "sampled actions"
    trained = f"{steps:,} environment steps" if steps is not None else "an unknown number of environment steps"
    versions = ", ".join(f"{key} {value}" for key, value in made_with.get("versions", {}).items() if value)
    sections = [
        f"# {class_name} on {spec.env_id}",
        f"An agent trained for {trained} with seed {spec.seed}, by [stable-baselines3]"
        "(https://github.com/DLR-RM/stable-baselines3) and `sb3_plasticity`.",
        f"## Returns\n\n| task | mean return | standard deviation | episodes |\n|---|---|---|---|\n{rows}\n\n"
        f"Each episode was run with {actions}.",
        "## Use\n\n```bash\n"
        'pip install "sb3-plasticity[zoo]"\n'
        f"hf download USER/{name} --local-dir {name}\n"
        f"sb3-plasticity card {name} --load\n"
        f"sb3-plasticity enjoy {run}\n"
        f"sb3-plasticity inspect {run}\n"
        "```\n\nA saved model holds pickles, which are programs: load only those that you trust.",
        f"## Hyper-parameters\n\n```python\n{pformat(hyperparams)}\n```",
        f"## Environment\n\n```python\n{pformat(env_kwargs)}\n```" if env_kwargs else "",
        f"## Versions\n\n{versions}" if versions else "",
    ]
    text = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def overall(scores: Sequence[Score]) -> tuple[float, float]:
    """
    Join the scores of several tasks.

    :param scores: at least one
    :return: mean and standard deviation of all episodes' returns
    """
    n = sum(score.episodes for score in scores)
    mean = sum(score.episodes * score.mean for score in scores) / n
    second = sum(score.episodes * (score.deviation**2 + (score.mean - mean) ** 2) for score in scores) / n
    return mean, second**0.5


def read_repository(source: Path, target: Path) -> None:
    """
    Turn a folder of the Hub into a folder of a run.

    :param source: as :func:`write_repository` or rl-zoo's ``push_to_hub`` writes it
    :param target: empty folder
    :raises UsageError: for a folder that is none of these
    """
    model, _, env_id = find_model(source)
    checkpoints.read_checkpoint(model)
    files = target / file_name(env_id)
    files.mkdir()
    for name in (CONFIG, ARGS):
        if (source / name).is_file():
            shutil.copyfile(source / name, files / name)
    folder = RunFolder(target)
    if "git_commit" in (description := folder.description()):  # none of rl-zoo's own
        steps = checkpoints.steps_in(model) or 0
        folder.write_state(State("finished" if steps >= description["n_timesteps"] else "pending", steps))
    if (source / METRICS).is_file():
        try:
            with zipfile.ZipFile(source / METRICS) as archive:
                archive.extractall(target)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{source / METRICS}: not a whole zip file: {error}") from error
    if (source / STATISTICS).is_file():
        shutil.copyfile(source / STATISTICS, files / "vecnormalize.pkl")
    shutil.copyfile(model, folder.model)


def find_model(source: Path) -> tuple[Path, str, str]:
    """
    Find the model in a folder of the Hub.

    :param source: the folder
    :return: its path, algorithm and environment id
    :raises UsageError: if it is no such folder
    """
    if not source.is_dir():
        raise UsageError(f"{source}: there is no such folder")
    if not (source / ARGS).is_file():
        raise UsageError(f"{source}: must be a model's folder from the Hub, but it has no args.yml")
    args = read_zoo_file(source / ARGS)
    algo, env_id = str(args.get("algo", "")), str(args.get("env", ""))
    path = source / f"{algo}-{file_name(env_id)}.zip"
    if not path.is_file():
        raise UsageError(f"{path}: there is no such model, and args.yml says that it is the folder's")
    return path, algo, env_id


def _records(folder: Path) -> Iterator[Path]:
    for pattern in ("*.csv", "*.npz", "attempt_*/*.csv", "attempt_*/*.npz"):
        yield from sorted(path for path in folder.glob(pattern) if not path.name.startswith(".partial"))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
