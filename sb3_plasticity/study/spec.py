"""What a study is: the YAML file, its methods, seeds and environments, and the runs that follow from them."""

import copy
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_plasticity.callbacks.curvature import CurvatureCallback
from sb3_plasticity.callbacks.plasticity import PlasticityCallback
from sb3_plasticity.envs import ENV_IDS
from sb3_plasticity.zoo import config
from sb3_plasticity.zoo.errors import UsageError, nearest
from sb3_plasticity.zoo.registration import register

# A method's entry is an rl-zoo entry, less what the study decides for all methods alike.
DECIDED_BY_STUDY = ("env_kwargs", "eval_env_kwargs", "eval_tasks", "n_timesteps", "vec_env")
# rl-zoo keys that the study's runs have no use for.
NOT_SUPPORTED = ("env_wrapper", "frame_stack", "monitor_kwargs", "noise_std", "noise_type", "vec_env_wrapper")
# Name of the copy of the study file in the folder of its runs.
STUDY_FILE = "study.yml"


@dataclass(frozen=True)
class ReportSpec:
    """
    What the report shows, fixed before any run has been looked at.

    :param baseline: the method that the others are compared with
    :param epsilon: of the epsilon-rank, on absolute eigenvalues
    :param network: whose spectrum figures 2 and 3 show: ``"policy"`` or ``"value"``
    :param kind: ``"ggn"`` or ``"hessian"``
    :param tasks: whose starts figure 2 shows; None for the first, the middle and the last
    :param success_within: a task is a success if its final return is at most this far below the best that any run of
        the study reached in the same task (v of the poster's f(theta) >= sup f - v)
    :param rho: thresholds of the normalised epsilon-rank for tau-trainability
    :param final_share: last share of a task's steps whose episodes make up its final return
    :param recovered_share: a task has recovered when its return is at least this share of the way from its lowest to
        the final return of the task before
    """

    baseline: str
    epsilon: float = 1.0
    network: str = "policy"
    kind: str = "ggn"
    tasks: tuple[int, ...] | None = None
    success_within: float = 500.0
    rho: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    final_share: float = 0.25
    recovered_share: float = 0.9


@dataclass(frozen=True)
class Study:
    """
    A matrix of runs.

    :param name: of the study
    :param env_ids: environments
    :param n_timesteps: of each run
    :param seeds: of the runs; a run's seed is that of its friction sequence, its environments and its agent
    :param env_kwargs: keywords of the environments; the schedule gets the run's seed
    :param methods: name -> rl-zoo entry with ``algo``, complete
    :param report: what the report shows
    :param save_freq: steps from one checkpoint to the next
    :param curvature: keywords of ``CurvatureCallback``; None for none
    :param plasticity: keywords of ``PlasticityCallback``; None for none
    """

    name: str
    env_ids: tuple[str, ...]
    n_timesteps: int
    seeds: tuple[int, ...]
    env_kwargs: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    report: ReportSpec
    save_freq: int = 100_000
    curvature: Mapping[str, Any] | None = field(default_factory=dict)
    plasticity: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def period(self) -> int:
        """Steps from one task to the next."""
        return int(self.env_kwargs["schedule"]["period"])

    @property
    def n_tasks(self) -> int:
        """Tasks that a run goes through."""
        return math.ceil(self.n_timesteps / self.period)

    def runs(self) -> list["Run"]:
        """Every run, the methods of a seed beside each other: an unfinished study is a balanced one."""
        return [
            Run(env_id, method, seed, dict(self.methods[method]))
            for seed in self.seeds
            for env_id in self.env_ids
            for method in self.methods
        ]


@dataclass(frozen=True)
class Run:
    """
    One training.

    :param env_id: environment
    :param method: name of the method
    :param seed: of frictions, environments and agent
    :param entry: the method's rl-zoo entry
    """

    env_id: str
    method: str
    seed: int
    entry: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Where the run's folder is below the study's."""
        return f"{self.env_id}/{folder_name(self.method)}/seed_{self.seed}"


def folder_name(method: str) -> str:
    """
    Turn a method's name into a folder's.

    :param method: such as ``"PPO + L2"``
    :return: such as ``"PPO_L2"``
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", method).strip("_")


def read_study(path: Path) -> Study:
    """
    Read a study file and check everything in it that can be checked without training.

    :param path: YAML file
    :return: the study
    :raises UsageError: naming the place and what is accepted
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: accepted is a mapping with {', '.join(_keys(Study))}")
    return parse_study(content, str(path))


def parse_study(content: Mapping[str, Any], where: str) -> Study:
    """
    Check the content of a study file.

    :param content: as read from YAML
    :param where: the file, for messages
    :return: the study
    :raises UsageError: naming the place and what is accepted
    """
    register()
    given = {key: value for key, value in copy.deepcopy(dict(content)).items() if not str(key).startswith(".")}
    common = given.pop("hyperparams", None) or {}
    config.check_names(given, _keys(Study), where)
    for key in ("name", "env_ids", "n_timesteps", "seeds", "env_kwargs", "methods", "report"):
        if given.get(key) in (None, "", [], {}):
            raise UsageError(f"{where}: {key} is missing")
    if not isinstance(given["name"], str) or Path(given["name"]).name != given["name"]:
        raise UsageError(f"{where}: name: {given['name']!r}: accepted is the name of a folder")
    given["env_ids"] = tuple(_texts(given["env_ids"], f"{where}: env_ids"))
    given["seeds"] = tuple(_seeds(given["seeds"], f"{where}: seeds"))
    for key in ("n_timesteps", "save_freq"):
        if key in given:
            given[key] = _natural(given[key], f"{where}: {key}")
    for key in ("curvature", "plasticity", "env_kwargs"):
        if key in given and given[key] is not None:
            given[key] = _mapping(given[key], f"{where}: {key}")
    for key, callback in (("curvature", CurvatureCallback), ("plasticity", PlasticityCallback)):
        _check_callback(callback, given.get(key), f"{where}: {key}")
    if len({folder_name(str(method)) for method in _mapping(given["methods"], f"{where}: methods")}) < len(
        given["methods"]
    ):
        raise UsageError(f"{where}: methods: names must differ in more than blanks and signs")
    given["methods"] = {
        str(method): _entry(_mapping(common, f"{where}: hyperparams"), entry, f"{where}: methods: {method}")
        for method, entry in given["methods"].items()
    }
    for env_id in given["env_ids"]:
        _check_env(env_id, given["env_kwargs"], where)
        for method, entry in given["methods"].items():
            hyperparams = {key: value for key, value in entry.items() if key != "algo"}
            config.check_entry(hyperparams, f"{where}: methods: {method}", entry["algo"], env_id)
    given["report"] = _report(_mapping(given["report"], f"{where}: report"), list(given["methods"]), f"{where}: report")
    study = Study(**given)
    if study.n_timesteps < study.period:
        raise UsageError(f"{where}: n_timesteps={study.n_timesteps}: accepted are at least a period, {study.period}")
    for task in study.report.tasks or ():
        if type(task) is not int or not 0 <= task < study.n_tasks:
            raise UsageError(f"{where}: report: tasks: {task!r}: accepted are 0 to {study.n_tasks - 1}")
    return study


def _entry(common: Mapping[str, Any], above: Any, where: str) -> dict[str, Any]:
    """A method's entry: the study's hyper-parameters, those of the method above them."""
    above = _mapping(above or {}, where)
    entry = {"algo": "ppo_l2er", **common, **above}
    if isinstance(common.get("policy_kwargs"), Mapping) and isinstance(above.get("policy_kwargs"), Mapping):
        entry["policy_kwargs"] = {**common["policy_kwargs"], **above["policy_kwargs"]}
    for key in (*DECIDED_BY_STUDY, *NOT_SUPPORTED):
        if key in entry:
            hint = "the study sets it for all methods" if key in DECIDED_BY_STUDY else "not supported in a study"
            raise UsageError(f"{where}: {key}: {hint}")
    if entry["algo"] not in ALGOS or not issubclass(ALGOS[entry["algo"]], OnPolicyAlgorithm):
        accepted = sorted(name for name, algo in ALGOS.items() if issubclass(algo, OnPolicyAlgorithm))
        hint = nearest(entry["algo"], accepted)
        raise UsageError(f"{where}: algo: {entry['algo']!r}{hint}: accepted are {', '.join(accepted)}")
    if "policy" not in entry:
        raise UsageError(f"{where}: policy is missing")
    return entry


def _check_callback(callback: type[BaseCallback], keywords: Mapping[str, Any] | None, where: str) -> None:
    config.check_names(keywords or {}, inspect.signature(callback).parameters, where)
    try:
        callback(**(keywords or {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _check_env(env_id: str, env_kwargs: Mapping[str, Any], where: str) -> None:
    if env_id not in ENV_IDS:
        raise UsageError(f"{where}: env_ids: {env_id!r}{nearest(env_id, ENV_IDS)}: accepted are {', '.join(ENV_IDS)}")
    config.check_env_kwargs(env_kwargs, env_id, f"{where}: env_kwargs")
    schedule = env_kwargs.get("schedule")
    if not isinstance(schedule, Mapping) or "period" not in schedule or "seed" in schedule:
        raise UsageError(
            f"{where}: env_kwargs: schedule={schedule!r}: accepted is a mapping with a period and no seed, "
            "which is the run's"
        )
    try:
        load_env_creator(str(gym.spec(env_id).entry_point))(**seeded(env_kwargs, 0)).close()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: env_kwargs: {error}") from error


def seeded(env_kwargs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """
    Give an environment's schedule the run's seed, where its kind has one.

    :param env_kwargs: of the study
    :param seed: of the run
    :return: keywords of the environment
    """
    schedule = dict(env_kwargs["schedule"])
    if schedule.get("kind") in ("log_uniform", "uniform"):
        schedule["seed"] = seed
    return {**env_kwargs, "schedule": schedule}


def _report(given: Mapping[str, Any], methods: Sequence[str], where: str) -> ReportSpec:
    config.check_names(given, _keys(ReportSpec), where)
    given = dict(given)
    if given.get("baseline") not in methods:
        raise UsageError(f"{where}: baseline: {given.get('baseline')!r}: accepted are {', '.join(methods)}")
    for key, accepted in (("network", ("policy", "value")), ("kind", ("ggn", "hessian"))):
        if given.get(key, accepted[0]) not in accepted:
            raise UsageError(f"{where}: {key}: {given[key]!r}: accepted are {', '.join(accepted)}")
    for key in ("tasks", "rho"):
        if key in given and not (key == "tasks" and given[key] is None):
            if not isinstance(given[key], list) or not given[key]:
                raise UsageError(f"{where}: {key}: accepted is a list of numbers, this is {given[key]!r}")
            given[key] = tuple(given[key])
    for rho in given.get("rho", ()):
        if isinstance(rho, bool) or not isinstance(rho, (int, float)) or not 0 < rho <= 1:
            raise UsageError(f"{where}: rho: {rho!r}: accepted are numbers > 0 and <= 1")
    for key in ("epsilon", "success_within", "final_share", "recovered_share"):
        value = given.get(key, 0.5)
        upper = 1.0 if key.endswith("share") else math.inf
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= upper:
            raise UsageError(
                f"{where}: {key}: {value!r}: accepted are numbers > 0" + f" and <= {upper:g}" * (upper == 1)
            )
    return ReportSpec(**given)


def _keys(cls: type) -> list[str]:
    return [item.name for item in fields(cls)]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: accepted is a mapping, this is {value!r}")
    return dict(value)


def _texts(value: Any, where: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise UsageError(f"{where}: accepted are names, this is {value!r}")
    return values


def _seeds(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or not all(type(seed) is int and seed >= 0 for seed in value):
        raise UsageError(f"{where}: accepted is a list of whole numbers >= 0, this is {value!r}")
    if len(set(value)) < len(value):
        raise UsageError(f"{where}: {value!r}: a seed is given twice")
    return value


def _natural(value: Any, where: str) -> int:
    number = value
    if isinstance(value, str):  # YAML 1.1 reads 1e6 as text
        try:
            number = float(value)
        except ValueError:
            number = value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number < 1 or int(number) != number:
        raise UsageError(f"{where}: {value!r}: accepted are whole numbers >= 1")
    return int(number)
