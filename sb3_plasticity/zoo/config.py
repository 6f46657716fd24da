"""Hyper-parameters from YAML: where they are, which keys they may have, and what their values mean."""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.policies import BasePolicy

from sb3_plasticity.envs import ENV_IDS
from sb3_plasticity.ppo_l2er.presets import RUN_KEYS, parse_policy_kwargs, parse_schedule
from sb3_plasticity.zoo.errors import UsageError, nearest

# Keys of an entry that rl_zoo3 reads itself.
ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "noise_std",
    "noise_type",
    "normalize",
    "vec_env_wrapper",
)
# Arguments of an algorithm that rl_zoo3 passes itself, or that have no meaning in a file.
NOT_IN_YAML = ("self", "env", "tensorboard_log", "seed", "verbose", "device", "preset", "_init_setup_model")
# rl_zoo3 turns these into schedules itself.
ZOO_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")


def packaged_config(algo: str) -> Path | None:
    """
    Find our hyper-parameters of an algorithm.

    :param algo: rl_zoo3's name of it
    :return: the file, or None where only rl_zoo3 has one
    """
    path = Path(str(files("sb3_plasticity.zoo_configs") / f"{algo}.yml"))
    return path if path.is_file() else None


def default_config(algo: str, env_id: str, preset: str | None) -> str:
    """
    Choose the file that is read without ``--conf-file``.

    :param algo: rl_zoo3's name of the algorithm
    :param env_id: of the environment
    :param preset: name given with ``--preset``
    :return: our file if it has an entry for the environment or a preset is asked for, else rl_zoo3's, if there is one
    """
    ours = packaged_config(algo)
    theirs = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{algo}.yml"
    if ours is not None and (preset or not theirs.is_file() or env_id in read_file(str(ours))):
        return str(ours)
    if preset:
        raise UsageError(f"--preset {preset}: there are presets for {', '.join(algorithms_with_presets())}, not {algo}")
    return str(theirs)


def algorithms_with_presets() -> list[str]:
    """
    List the algorithms that have packaged presets.

    :return: rl_zoo3's names of them
    """
    return sorted(path.stem for path in Path(str(files("sb3_plasticity.zoo_configs"))).glob("*.yml"))


def read_file(path: str) -> dict[str, Any]:
    """
    Read a file of hyper-parameters, in any of rl_zoo3's formats.

    :param path: YAML file, Python file or name of a Python module, the latter two with a dictionary ``hyperparams``
    :return: an entry for each environment id or preset
    :raises UsageError: if it cannot be read or is not a mapping
    """
    try:
        if path.endswith((".yml", ".yaml")):
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        elif path.endswith(".py"):
            variables: dict[str, Any] = {}
            exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), variables)
            content = variables["hyperparams"]
        else:
            content = importlib.import_module(path).hyperparams
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except KeyError:
        raise UsageError(f"{path}: it defines no 'hyperparams'") from None
    except (OSError, ImportError, AttributeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: accepted is a mapping from environment ids to hyper-parameters")
    return content


def find_entry(content: Mapping[str, Any], path: str, env_id: str, preset: str | None) -> tuple[str, dict[str, Any]]:
    """
    Choose an entry: the preset's, else the environment's own, else ``atari`` or ``default`` as rl_zoo3 does.

    :param content: of a file
    :param path: of that file
    :param env_id: of the environment
    :param preset: name given with ``--preset``
    :return: the entry's key and a copy of it
    :raises UsageError: if there is none
    """
    names = [str(name) for name in content if not str(name).startswith(".")]
    if preset is not None:
        presets = [name for name in names if name != "default" and name not in gym.registry]
        if preset not in presets:
            accepted = ", ".join(presets) or "none"
            raise UsageError(f"{path}: no preset {preset!r}{nearest(preset, presets)}: there are {accepted}")
        key = preset
    elif env_id in names:
        key = env_id
    elif "atari" in names and "AtariEnv" in str(gym.registry[env_id].entry_point):
        key = "atari"
    elif "default" in names:
        key = "default"
    else:
        raise UsageError(f"{path}: no entry for {env_id!r}{nearest(env_id, names)}, and none called 'default'")
    entry = content[key]
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: {key}: accepted is a mapping of hyper-parameters, this is {entry!r}")
    return key, dict(entry)


def check_entry(entry: Mapping[str, Any], where: str, algo: str, env_id: str) -> None:
    """
    Refuse keys that would not do what their writer meant.

    :param entry: hyper-parameters
    :param where: file and entry, for the message
    :param algo: rl_zoo3's name of the algorithm
    :param env_id: of the environment
    :raises UsageError: for an unknown key, with the nearest one that is known
    """
    algorithm = ALGOS[algo]
    accepted = {*ZOO_KEYS, *RUN_KEYS, *_parameters(algorithm)} - {*NOT_IN_YAML}
    check_names(entry, accepted, where)
    if isinstance(entry.get("policy_kwargs"), Mapping):
        known = policy_arguments(algorithm, entry.get("policy"))
        check_names(entry["policy_kwargs"], known, f"{where}: policy_kwargs")
    for key in ("env_kwargs", "eval_env_kwargs"):
        if entry.get(key) is not None:
            check_env_kwargs(entry[key], env_id, f"{where}: {key}")


def check_env_kwargs(env_kwargs: Any, env_id: str, where: str) -> None:
    """
    Refuse keywords that our environments do not have.

    :param env_kwargs: keywords
    :param env_id: of the environment; those of others are left to themselves
    :param where: for the message
    :raises UsageError: for an unknown keyword
    """
    if not isinstance(env_kwargs, Mapping):
        raise UsageError(f"{where}: accepted is a mapping of keywords, this is {env_kwargs!r}")
    if env_id in ENV_IDS:
        creator = load_env_creator(str(gym.spec(env_id).entry_point))
        check_names(env_kwargs, _parameters(creator), where)  # type: ignore[arg-type]


def check_names(given: Iterable[str], accepted: Iterable[str], where: str) -> None:
    """
    Refuse unknown names.

    :param given: names
    :param accepted: names
    :param where: for the message
    :raises UsageError: for the first unknown one, with the nearest that is known
    """
    accepted = sorted(accepted)
    for name in given:
        if name not in accepted:
            hint = nearest(name, accepted) or f": accepted are {', '.join(accepted)}"
            raise UsageError(f"{where}: unknown key {name!r}{hint}")


def policy_arguments(algorithm: type, policy: Any) -> set[str]:
    """
    List what ``policy_kwargs`` may hold.

    :param algorithm: the class
    :param policy: as in the entry: an alias, a dotted path, or nothing
    :return: names of arguments
    """
    aliases: dict[str, type[BasePolicy]] = algorithm.policy_aliases  # type: ignore[attr-defined]
    cls = aliases.get(str(policy), next(iter(aliases.values())))
    return _parameters(cls) - {"self", "observation_space", "action_space", "lr_schedule"}


def parse_entry(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Give the values of an entry the types that the algorithm takes, beyond what rl_zoo3 does itself.

    ``lin_X`` becomes a linear schedule for any key, a ``policy_kwargs`` that is a mapping may name its
    ``activation_fn`` and ``optimizer_class``, and a number that YAML reads as text (``3e-4``) becomes a number.

    :param entry: hyper-parameters
    :param where: file and entry, for messages
    :return: a new mapping
    :raises UsageError: for a schedule, activation function or optimizer that does not exist
    """
    parsed = {}
    for key, value in entry.items():
        try:
            if key == "policy_kwargs" and isinstance(value, Mapping):
                value = parse_policy_kwargs(value)
            elif isinstance(value, str):
                # YAML 1.1, PyYAML's dialect, takes 3e-4 for text: numbers need a dot there.
                value = _number(value)
                if key not in ZOO_SCHEDULES:
                    value = parse_schedule(value)
                elif isinstance(value, str):
                    parse_schedule(value)
        except ValueError as error:
            raise UsageError(f"{where}: {key}: {error}") from error
        parsed[key] = value
    return parsed


def _number(text: str) -> Any:
    try:
        return float(text) if text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


def _parameters(cls: type) -> set[str]:
    """Names of the arguments of a class, those that it passes on to its bases included."""
    names: set[str] = set()
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}
