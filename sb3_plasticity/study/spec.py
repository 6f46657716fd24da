"""The study file: what it may say, and where the folders of its runs are."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sb3_plasticity.common.checks import must_be, nearest, one_of
from sb3_plasticity.zoo.config import merged
from sb3_plasticity.zoo.errors import UsageError

# Name of the copy of the study file in the folder of its runs.
STUDY_FILE = "study.yml"
# What the study decides for all methods alike.
DECIDED_BY_STUDY = ("env_kwargs", "eval_env_kwargs", "eval_tasks", "n_timesteps")
# Longest name of a folder; file systems take 255 bytes.
LONGEST = 100


def _number(value: object) -> object:
    """Read numbers as YAML 1.2 does, where 1e6 is one; true and false are none."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Seed = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReportSettings(_Section):
    """
    What the report shows, fixed before any run has been looked at.

    :param baseline: the method that the others are compared with
    :param epsilon: of the epsilon-rank, on absolute eigenvalues
    :param network: whose spectra figures 2 to 4 show, such as ``"policy"``, ``"value"`` or ``"critic_0"``
    :param kind: of these spectra
    :param tasks: whose starts figure 2 shows; None for the first, the middle and the last
    :param success_within: a task is a success if its final return is at most this far below the best that any run of
        the study reached in the same task (v of the poster's f(theta) >= sup f - v)
    :param rho: thresholds of the normalised epsilon-rank for tau-trainability
    :param final_share: last share of a task's steps whose episodes make up its final return
    :param recovered_share: a task has recovered when its return is at least this share of the way from its lowest to
        the final return of the task before
    :param panels: measures of figure 6, as ``PlasticityCallback`` logs them for each network
    """

    baseline: str
    epsilon: Positive = 1.0
    network: str = "policy"
    kind: Literal["ggn", "hessian", "kfac", "entk"] = "ggn"
    tasks: Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1)] | None = None
    success_within: Positive = 500.0
    rho: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.01, 0.02, 0.05, 0.1, 0.2)
    final_share: Share = 0.25
    recovered_share: Share = 0.9
    panels: Names = ("weight_norm", "effective_rank", "dormant_units")


class Resources(_Section):
    """
    What a run needs of the machine or the cluster.

    :param num_cpus: threads of a run
    :param num_gpus: share of GPUs, for Ray and Slurm to find a place
    :param retries: how often a run that lost its process (a worker that died, a node that went) is started again
    """

    num_cpus: Count = 1
    num_gpus: NotNegative = 0.0
    retries: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 2


class Study(_Section):
    """
    A matrix of runs: methods x seeds x environments.

    :param name: of the study
    :param env_ids: environments
    :param n_timesteps: of each run
    :param seeds: of the runs; a run's seed is that of its sequence of tasks, its environments and its agent
    :param methods: name -> rl-zoo entry with ``algo``, what is in ``hyperparams`` included
    :param report: what the report shows
    :param hyperparams: of all methods
    :param env_kwargs: keywords of the environments; a schedule that is drawn gets the run's seed
    :param control: keywords above these that make the environments stationary, such as a cyclic schedule of a single
        value: methods and seeds run there too, and the referee counts false alarms on it
    :param control_methods: methods that run on the control; empty for all
    :param gym_packages: modules to import that register environments
    :param save_freq: steps from one checkpoint to the next
    :param curvature: keywords of ``CurvatureCallback``; None for none
    :param plasticity: keywords of ``PlasticityCallback``; None for none
    :param resources: of a run
    """

    name: str
    env_ids: Annotated[Names, Field(min_length=1)]
    n_timesteps: Count
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    report: ReportSettings
    hyperparams: dict[str, Any] = {}
    env_kwargs: dict[str, Any] = {}
    control: dict[str, Any] | None = None
    control_methods: Names = ()
    gym_packages: Names = ()
    save_freq: Count = 100_000
    curvature: dict[str, Any] | None = {}
    plasticity: dict[str, Any] | None = {}
    resources: Resources = Resources()

    @field_validator("name")
    @classmethod
    def _is_a_folder(cls, name: str) -> str:
        if folder_name(name) != name.replace(" ", "_") or len(name) > LONGEST:
            raise must_be("name", "the name of a folder: letters, digits, - and _", name)
        return name

    @field_validator("env_ids", "seeds", "gym_packages")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"must be different from each other, got {list(values)!r}")
        return values

    @field_validator("methods", mode="before")
    @classmethod
    def _entries(cls, methods: object) -> object:
        return {str(name): entry or {} for name, entry in methods.items()} if isinstance(methods, Mapping) else methods

    @model_validator(mode="after")
    def _complete(self) -> "Study":
        folders = [folder_name(method).casefold() for method in self.methods]
        for method, folder in zip(self.methods, folders, strict=True):
            if not folder or len(folder) > LONGEST:
                raise must_be("methods", f"names with a letter or a digit, of at most {LONGEST} characters", method)
            if folders.count(folder) > 1:
                raise must_be("methods", "names that differ in more than blanks, signs and case", method)
            self.methods[method] = merged({"algo": "ppo_l2er", **self.hyperparams}, self.methods[method])
            for key in DECIDED_BY_STUDY:
                if key in self.methods[method]:
                    raise ValueError(f"`methods.{method}` must not have {key!r}: the study sets it for all methods")
        for key, named in (("report.baseline", (self.report.baseline,)), ("control_methods", self.control_methods)):
            for name in named:
                if name not in self.methods:
                    raise ValueError(f"{must_be(key, one_of(self.methods), name)}{nearest(name, self.methods)}")
        return self


@dataclass(frozen=True)
class PlannedRun:
    """
    One training of a study.

    :param env_id: environment
    :param method: name of the method
    :param seed: of tasks, environments and agent
    :param control: it is on the stationary twin of the environment
    """

    env_id: str
    method: str
    seed: int
    control: bool = False

    @property
    def label(self) -> str:
        """What the tables call the environment."""
        return f"{self.env_id} (control)" if self.control else self.env_id

    @property
    def name(self) -> str:
        """Where the run's folder is below the study's."""
        return f"{folder_name(self.label)}/{folder_name(self.method)}/seed_{self.seed}"


def planned_runs(study: Study) -> list[PlannedRun]:
    """
    List every run, the methods of a seed beside each other: an unfinished study is a balanced one.

    :param study: what is asked for
    :return: the runs
    """
    twins = (False,) if study.control is None else (False, True)
    return [
        PlannedRun(env_id, method, seed, control)
        for seed in study.seeds
        for env_id in study.env_ids
        for control in twins
        for method in study.methods
        if not control or method in (study.control_methods or study.methods)
    ]


def folder_name(name: str) -> str:
    """Turn a name such as ``PPO + L2`` into a folder's, ``PPO_L2``; empty without letters and digits."""
    return re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFKC", name)).strip("_.")


def read_study(path: Path) -> Study:
    """
    Read a study file. Algorithms, environments and callbacks are not looked at: see ``prepare``.

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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return parse_study(content, str(path))


def parse_study(content: object, where: str) -> Study:
    """
    Check the content of a study file.

    :param content: as read from YAML; keys that begin with a dot are left out
    :param where: the file, for messages
    :return: the study
    :raises UsageError: naming the place and what is accepted
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{where}: must be a mapping with {', '.join(Study.model_fields)}")
    try:
        return Study.model_validate({str(key): value for key, value in content.items() if str(key)[:1] != "."})
    except ValidationError as error:
        raise UsageError(f"{where}: {sentence(error)}") from None
    except RecursionError:
        raise UsageError(f"{where}: it refers to itself") from None


def sentence(error: ValidationError) -> str:
    """Word pydantic's first complaint about a study file as the house does: "`x` must be ..., got ..."."""
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    name, given = ".".join(place), repr(first["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    if first["type"] == "missing":
        return f"`{name}` must be given"
    if first["type"] == "too_short":
        return f"`{name}` must not be empty"
    if first["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {"report": ReportSettings, "resources": Resources}
        accepted = (sections[place[0]] if len(place) > 1 else Study).model_fields
        above = f"keys of `{place[0]}`" if len(place) > 1 else "keys"
        return f"{above} must be {one_of(accepted)}, got {place[-1]!r}{nearest(place[-1], accepted)}"
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        if not text.startswith("must be"):
            return text
        return f"`{name}` {text}" + ("" if ", got" in text else f", got {given}")
    words = {"Input should be": "must be", " valid ": " ", "integer": "whole number", "dictionary": "mapping"}
    text = first["msg"].partition(", got")[0].partition(", unable")[0]
    for old, new in words.items():
        text = text.replace(old, new)
    return f"`{name}` {text}, got {given}"
