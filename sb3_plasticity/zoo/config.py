"""Hyper-parameters from YAML: where they are, which keys they may have, and what their values mean."""

import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.exp_manager import ExperimentManager

from sb3_plasticity.common.checks import must_be, nearest
from sb3_plasticity.mitigations.registry import make_mitigations
from sb3_plasticity.ppo_l2er.presets import RUN_KEYS, parse_policy_kwargs, parse_schedule
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.errors import UsageError, mistakes_in

# Keys of an entry that rl_zoo3 reads itself.
ZOO_KEYS = {"callback", "env_kwargs", "env_wrapper", "frame_stack", "mitigations", "monitor_kwargs", "n_envs"}
ZOO_KEYS |= {"n_timesteps", "noise_std", "noise_type", "normalize", "vec_env_wrapper"}
COUNTS = ("frame_stack", "n_envs", "n_timesteps")
# Arguments of an algorithm that rl_zoo3 passes itself, or that have no meaning in a file.
NOT_IN_YAML = {"env", "tensorboard_log", "seed", "verbose", "device", "preset", "_init_setup_model"}
# rl_zoo3 turns these into schedules itself.
ZOO_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
PLAIN = {bool, int, float, str, types.NoneType}

# -- files -------------------------------------------------------------------------------------------------------------


def packaged_config(algo: str) -> Path | None:
    """Find our file of an algorithm's hyper-parameters; None where only rl_zoo3 has one."""
    path = Path(str(files("sb3_plasticity.zoo_configs") / f"{algo}.yml"))
    return path if path.is_file() else None


def default_config(algo: str, env_id: str, preset: str | None) -> str:
    """
    Choose the file that is read without ``--conf-file``.

    :param algo: rl_zoo3's name of the algorithm
    :param env_id: of the environment
    :param preset: name given with ``--preset``
    :return: the first that has an entry for the environment: ours, rl_zoo3's, and for ``ppo_l2er`` rl_zoo3's of PPO, so
        that both are compared with the same tuned hyper-parameters; else the first that there is
    :raises UsageError: for a preset of an algorithm that has none
    """
    ours = packaged_config(algo)
    if preset:
        if ours is None:
            there = sorted(path.stem for path in Path(str(files("sb3_plasticity.zoo_configs"))).glob("*.yml"))
            raise UsageError(f"--preset {preset}: there are presets for {', '.join(there)}, not {algo}")
        return str(ours)
    tuned = Path(rl_zoo3.__file__).parent / "hyperparams"
    names = ("ppo_l2er", "ppo") if algo == "ppo_l2er" else (algo,)
    candidates = [path for path in (ours, *(tuned / f"{name}.yml" for name in names)) if path and path.is_file()]
    its_own = (str(path) for path in candidates if _own_key(read_file(str(path)), env_id))
    return next(its_own, str(candidates[0] if candidates else tuned / f"{algo}.yml"))


def read_file(path: str) -> dict[str, Any]:
    """
    Read a file of hyper-parameters, in any of rl_zoo3's formats.

    :param path: YAML file, Python file or name of a Python module, the latter two with a dictionary ``hyperparams``
    :return: an entry for each environment id or preset
    :raises UsageError: if it cannot be read or is not a mapping
    """
    if path.endswith((".yml", ".yaml", ".py")) and not Path(path).is_file():
        raise UsageError(f"{path}: there is no such file")
    with mistakes_in(path):  # whatever a Python file does
        if path.endswith((".yml", ".yaml")):
            with mistakes_in(f"{path}: not YAML", yaml.YAMLError):
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        elif path.endswith(".py"):
            content = {}
            exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), content)
            content = content.get("hyperparams")
        else:
            content = importlib.import_module(path).hyperparams
    if not isinstance(content, dict):
        raise UsageError(
            f"{path}: must be a mapping (in Python: 'hyperparams') from environment ids to hyper-parameters"
        )
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
    if preset is None:
        key = _own_key(content, env_id) or "default"
        if key not in content:
            raise UsageError(f"{path}: no entry for {env_id!r}{nearest(env_id, names)}, and none called 'default'")
    else:
        presets = [name for name in names if name != "default" and name not in gym.registry]
        if preset not in presets:
            accepted = ", ".join(presets) or "none"
            raise UsageError(f"{path}: no preset {preset!r}{nearest(preset, presets)}: there are {accepted}")
        key = preset
    entry = content[key]
    if not isinstance(entry, dict):
        raise UsageError(f"{path}: {key}: must be a mapping of hyper-parameters, got {entry!r}")
    return key, dict(entry)


def _own_key(content: Mapping[str, Any], env_id: str) -> str | None:
    """Name the entry that is meant for an environment, if there is one."""
    if env_id in content:
        return env_id
    return "atari" if "atari" in content and ExperimentManager.is_atari(env_id) else None


# -- what may be written -----------------------------------------------------------------------------------------------


def check_entry(entry: Mapping[str, Any], where: str, algo: str, env_id: str) -> None:
    """
    Refuse keys and values that would not do what their writer meant.

    :param entry: hyper-parameters
    :param where: file and entry, for the message
    :param algo: rl_zoo3's name of the algorithm
    :param env_id: of the environment
    :raises UsageError: for an unknown key, with the nearest one that is known, or a value of the wrong kind
    """
    arguments = arguments_of(ALGOS[algo])
    _check_keys(entry, {*ZOO_KEYS, *RUN_KEYS, *arguments} - NOT_IN_YAML, where)
    with mistakes_in(where, ValueError):
        for key, value in entry.items():
            _check_value(key, value, int if key in COUNTS else arguments.get(key, Any))
        make_mitigations(entry.get("mitigations") or [])
    if isinstance(entry.get("policy_kwargs"), Mapping):
        aliases: dict[str, type] = ALGOS[algo].policy_aliases
        policy = aliases.get(str(entry.get("policy")), next(iter(aliases.values())))
        accepted = set(arguments_of(policy)) - {"observation_space", "action_space", "lr_schedule", "kwargs"}
        _check_keys(entry["policy_kwargs"], accepted, f"{where}: policy_kwargs")
    for key in ("env_kwargs", "eval_env_kwargs"):
        if entry.get(key) is not None:
            check_env_kwargs(entry[key], env_id, f"{where}: {key}")


def check_env_kwargs(env_kwargs: Any, env_id: str, where: str) -> None:
    """
    Refuse keywords that an environment does not have.

    :param env_kwargs: keywords
    :param env_id: of the environment; one that takes any keyword is left to itself
    :param where: for the message
    :raises UsageError: for an unknown keyword
    """
    if not isinstance(env_kwargs, Mapping):
        raise UsageError(f"{where}: must be a mapping of keywords, got {env_kwargs!r}")
    if env_kwargs and (accepted := environment_arguments(env_id)):
        _check_keys(env_kwargs, accepted, where)


def environment_arguments(env_id: str) -> set[str]:
    """
    List the keywords of an environment.

    :param env_id: of the environment
    :return: their names; empty if it takes any, or cannot be asked
    """
    entry_point = gym.spec(env_id).entry_point
    try:
        creator: Any = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        names = set(arguments_of(creator)) if isinstance(creator, type) else {"kwargs"}
    except (ImportError, AttributeError, TypeError, ValueError):
        return set()
    return set() if "kwargs" in names else names | {"render_mode", "max_episode_steps", "disable_env_checker"}


def _check_keys(given: Iterable[Any], accepted: Iterable[str], where: str) -> None:
    accepted = sorted(accepted)
    for name in given:
        if name not in accepted:
            hint = nearest(name, accepted) or f": accepted are {', '.join(accepted)}"
            raise UsageError(f"{where}: unknown key {name!r}{hint}")


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Refuse what is not of the kinds that an annotation lists, where it lists plain kinds (and schedules) only."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(hint)) if union else {hint}
    schedule = any(typing.get_origin(kind) is Callable for kind in kinds)
    kinds = {kind for kind in kinds if typing.get_origin(kind) is not Callable}
    if not kinds <= PLAIN or str in kinds or (value is None and types.NoneType in kinds):
        return
    value = _number(value) if isinstance(value, str) else value
    if isinstance(value, str) and value.startswith("lin_") and schedule:
        return
    number = isinstance(value, int | float) and not math.isnan(value) and (bool in kinds or not isinstance(value, bool))
    if kinds == {bool}:
        accepted, fits = "True or False", isinstance(value, bool)
    elif name in COUNTS:
        accepted, fits = "a whole number >= 1", number and value >= 1 and float(value).is_integer()
    elif float in kinds:
        accepted, fits = "a number", number
    else:
        accepted, fits = "a whole number", number and isinstance(value, int)
    if not fits:
        raise must_be(name, accepted + " or a schedule such as lin_1e-3" * schedule, value)


def arguments_of(cls: type) -> dict[str, Any]:
    """
    List the arguments of a class, those that it passes on to its bases included.

    :param cls: any class
    :return: annotations by name; ``kwargs`` is among them if it takes any name
    """
    found: dict[str, Any] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        init: Callable[..., None] = vars(base)["__init__"]
        try:
            parameters = inspect.signature(init, eval_str=True).parameters.values()
        except Exception:  # a name that only a type checker imports: no annotation can be told
            parameters = inspect.signature(init).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.annotation)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    else:
        found["kwargs"] = Any
    found.pop("self", None)
    return found


# -- what it means -----------------------------------------------------------------------------------------------------


def parse_entry(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """
    Give the values of an entry the types that the algorithm takes, beyond what rl_zoo3 does itself.

    ``lin_X`` becomes a linear schedule for any key, a ``policy_kwargs`` that is a mapping may name its
    ``activation_fn`` and ``optimizer_class``, a number that YAML reads as text (``3e-4``) becomes a number, and
    ``clip_range_vf: null`` is what it says.

    :param entry: hyper-parameters
    :param where: file and entry, for messages
    :return: a new mapping
    :raises UsageError: for a schedule, activation function or optimizer that does not exist
    """
    parsed = {}
    for key, value in entry.items():
        if key == "clip_range_vf" and value is None:  # rl_zoo3 refuses it, and it is the default
            continue
        with mistakes_in(f"{where}: {key}", ValueError):
            if key == "policy_kwargs" and isinstance(value, Mapping):
                value = parse_policy_kwargs(value)
            elif isinstance(value, str):
                value = _number(value)
                schedule = parse_schedule(value)
                value = value if key in ZOO_SCHEDULES else schedule
        parsed[key] = value
    return parsed


def merged(entry: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """
    Put hyper-parameters above an entry's; mappings of keywords are joined.

    :param entry: the lower ones
    :param above: the upper ones
    :return: a new mapping
    """
    joined = {
        key: {**entry[key], **above[key]}
        for key in ("policy_kwargs", "env_kwargs", "eval_env_kwargs")
        if isinstance(entry.get(key), Mapping) and isinstance(above.get(key), Mapping)
    }
    return {**entry, **above, **joined}


def _number(text: str) -> Any:
    # YAML 1.1, PyYAML's dialect, takes 3e-4 for text: numbers need a dot there.
    try:
        return float(text) if text[:1] in tuple("+-.0123456789") else text
    except ValueError:
        return text
