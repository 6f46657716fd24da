"""The one-argument form, ``PPO_L2ER("SlipperyAnt-v0")``: tuned hyper-parameters from the packaged YAML."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import yaml
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm, maybe_make_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from torch import nn, optim

from sb3_plasticity.common.checks import check_choice, check_keywords, must_be, nearest
from sb3_plasticity.vec_env import make_nonstationary_vec_env

# Keys of an rl-zoo entry that describe the run, not the algorithm.
RUN_KEYS = ("callback", "env_kwargs", "eval_env_kwargs", "eval_tasks", "n_envs", "n_timesteps", "vec_env")


def read_presets(algorithm: str = "ppo_l2er") -> dict[str, dict[str, Any]]:
    """
    Read the packaged hyper-parameters of an algorithm.

    :param algorithm: name of a file in ``zoo_configs``, without ``.yml``
    :return: an rl-zoo entry for each environment id
    """
    text = (files("sb3_plasticity.zoo_configs") / f"{algorithm}.yml").read_text(encoding="utf-8")
    presets: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return presets


def preset_arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    """
    Turn an rl-zoo entry into arguments of the algorithm.

    ``lin_X`` becomes a linear schedule from X to 0; ``policy_kwargs`` may name its activation function and optimizer.

    :param entry: a mapping as read from YAML
    :return: keyword arguments, without the keys that describe the run
    """
    arguments = {key: parse_schedule(value) for key, value in entry.items() if key not in RUN_KEYS}
    if "policy_kwargs" in arguments:
        arguments["policy_kwargs"] = parse_policy_kwargs(arguments["policy_kwargs"])
    return arguments


def parse_policy_kwargs(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Turn the names of classes into classes.

    :param policy_kwargs: ``activation_fn`` may name a class of ``torch.nn``, ``optimizer_class`` one of
        ``torch.optim``; either may be the path of another class, such as
        ``"sb3_plasticity.mitigations.LayerNormReLU"``
    :return: arguments of a policy
    :raises ValueError: for a name that is not there
    """
    arguments = dict(policy_kwargs)
    for key, module, base in (("activation_fn", nn, nn.Module), ("optimizer_class", optim, optim.Optimizer)):
        name = arguments.get(key)
        if not isinstance(name, str):
            continue
        path, _, attribute = name.rpartition(".")
        try:
            home = importlib.import_module(path) if path else module
        except ImportError:
            home = module
        cls = getattr(home, attribute, None)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            hint = nearest(attribute, dir(home))
            accepted = f"the name of a class in {module.__name__}, or the path of a {base.__name__}"
            raise ValueError(f"{must_be(key, accepted, name)}{hint}")
        arguments[key] = cls
    return arguments


def parse_schedule(value: Any) -> Any:
    """
    Read rl-zoo's notation for a linear schedule.

    :param value: any value of an rl-zoo entry
    :return: for a string ``lin_X`` a schedule from X to 0, else the value
    :raises ValueError: if X is not a number
    """
    if isinstance(value, str) and value.startswith("lin_"):
        try:
            start = float(value.removeprefix("lin_"))
        except ValueError:
            raise must_be("schedule", "lin_ and a number, as in 'lin_1e-3'", value) from None
        return LinearSchedule(start=start, end=0.0, end_fraction=1.0)
    return value


def policy_for(observation_space: spaces.Space[Any]) -> str:
    """
    Choose SB3's policy for an observation space, as its documentation advises.

    :param observation_space: of the (wrapped) environment
    :return: ``"MultiInputPolicy"`` for dictionaries, ``"CnnPolicy"`` for images, ``"MlpPolicy"`` for the rest
    """
    if isinstance(observation_space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(observation_space) else "MlpPolicy"


def one_argument_form(init: Callable[..., None]) -> Callable[..., None]:
    """
    Let an algorithm be built from an environment alone.

    Decorates ``__init__(self, policy=None, env=None, ...)``. Only here can it be told what the caller left out, so this
    is where a preset fills the gaps.

    :param init: the ``__init__`` of an on-policy algorithm with the arguments ``policy``, ``env`` and ``preset``
    :return: an ``__init__`` with the same signature
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: BaseAlgorithm, *args: Any, **kwargs: Any) -> None:
        check_keywords(init, kwargs, type(self).__name__)
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        del arguments["self"]
        if arguments.get("_init_setup_model", True):
            arguments = complete_arguments(type(self), arguments)
        init(self, **arguments)

    return wrapper


def complete_arguments(algorithm: type[BaseAlgorithm], given: dict[str, Any]) -> dict[str, Any]:
    """
    Complete the arguments of an algorithm that was built from an environment alone.

    :param algorithm: the class, for its ``policy_aliases``
    :param given: what the caller passed, by name
    :return: the arguments with ``policy`` and ``env`` in them, and whatever a preset adds
    :raises ValueError: without an environment, or for an unknown ``preset``
    """
    preset = given.get("preset", "auto")
    check_choice("preset", preset, ("auto", None))
    policy, env = given.get("policy"), given.get("env")
    is_policy = isinstance(policy, type) or (isinstance(policy, str) and policy in algorithm.policy_aliases)
    if env is None and not is_policy:
        policy, env = None, policy
    if env is None:
        name = algorithm.__name__
        forms = f"as in {name}('SlipperyAnt-v0'), {name}(env) or {name}('MlpPolicy', env)"
        aliases = ", ".join(map(repr, algorithm.policy_aliases))
        raise must_be("env", f"an environment, {forms} (a single string is an id unless it is one of {aliases})", None)
    if policy is not None:
        return given

    given = {key: value for key, value in given.items() if key not in ("policy", "env")}
    verbose = given.get("verbose", 0)
    taken: dict[str, Any] = {}
    if isinstance(env, str):
        entry = read_presets().get(env) if preset == "auto" else None
        if entry is None:
            env = maybe_make_env(env, verbose)
        else:
            run = {key: entry[key] for key in ("n_envs", "env_kwargs") if key in entry}
            taken = {key: value for key, value in preset_arguments(entry).items() if key not in given}
            # Whatever verbose is: nothing in the call says where these values come from.
            print(f"{algorithm.__name__} preset {env}: " + ", ".join(f"{k}={v}" for k, v in (run | taken).items()))
            env = make_nonstationary_vec_env(env, seed=given.get("seed"), **run)
    env = algorithm._wrap_env(env, verbose)
    return {"policy": policy_for(env.observation_space), "env": env} | taken | given
