"""What the options of several commands have in common."""

import argparse
import ast
import importlib
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import ALGOS
from torch import nn, optim

from sb3_plasticity.common.checks import nearest
from sb3_plasticity.zoo.errors import UsageError


class StoreValues(argparse.Action):
    """``key:value`` pairs, the values in Python's or YAML's notation, as text where they are neither."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store a dictionary."""
        result = {}
        for pair in values:
            key, colon, value = pair.partition(":")
            if not colon or not key:
                parser.error(f"argument {option_string}: must be key:value, as in er_coef:1e-3, got {pair!r}")
            result[key] = parse_value(value)
        setattr(namespace, self.dest, result)


def parse_value(text: str) -> Any:
    """
    Read a value from the command line.

    :param text: a literal of Python, ``dict(...)`` of such, ``nn.ReLU``, ``th.optim.SGD``, ``true``, ``null``, or
        anything else
    :return: the value; the text itself if it is nothing of these
    """
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, AttributeError, MemoryError, RecursionError):
        return text


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): _evaluate(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return type(ast.literal_eval(ast.copy_location(type(node)([], ast.Load()), node)))(map(_evaluate, node.elts))
    if isinstance(node, ast.Attribute):
        module = {"nn": nn, "optim": optim}.get(ast.unparse(node.value).removeprefix("th.").removeprefix("torch."))
        return getattr(module, node.attr) if module is not None else ast.literal_eval(node)
    return ast.literal_eval(node)


def whole(at_least: int, also: Iterable[int] = ()) -> Any:
    """
    Make the type of an option that is a whole number.

    :param at_least: smallest accepted number
    :param also: further accepted numbers
    :return: for ``type=``
    """
    further = list(also)

    def parse(text: str) -> int:
        try:
            number = int(float(text)) if float(text) == int(float(text)) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not (number >= at_least or number in further):
            accepted = f"a whole number >= {at_least}" + "".join(f" or {other}" for other in further)
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}")
        return number

    return parse


def check_environment(env_id: str, gym_packages: Iterable[str] = ()) -> None:
    """
    Refuse environments that are not registered.

    :param env_id: of the environment
    :param gym_packages: that register further ones
    :raises UsageError: naming the nearest id
    """
    for package in gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"--gym-packages {package}: {error}") from error
    if env_id not in gym.registry:
        raise UsageError(f"--env {env_id}: no environment of this id{nearest(env_id, gym.registry)}")


def check_algorithm(algo: str) -> None:
    """
    Refuse algorithms that rl-zoo does not know.

    :param algo: name of the algorithm
    :raises UsageError: naming the nearest one
    """
    if algo not in ALGOS:
        raise UsageError(f"--algo {algo}: no algorithm of this name{nearest(algo, ALGOS)}")


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """
    Add the options that choose a trained agent and the world it is shown in.

    :param parser: of the command
    """
    add = parser.add_argument
    add("run", nargs="?", help="folder of a run, or a saved model in one, instead of --algo, --env, -f and --exp-id")
    add("--algo", default="ppo", help="algorithm (default: ppo)")
    add("--env", default="CartPole-v1", help="environment id (default: CartPole-v1)")
    add("-f", "--folder", default="logs", help="log folder (default: logs)")
    add("--exp-id", type=int, default=0, help="number of the run (default: 0, the latest; -1: no folder of its own)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", action="store_true", help="the best model instead of the last one")
    which.add_argument("--load-checkpoint", type=whole(0), metavar="STEP", help="the checkpoint of this step")
    which.add_argument("--load-last-checkpoint", action="store_true", help="the newest checkpoint")
    add("-n", "--n-timesteps", type=whole(1), default=1000, help="steps (default: 1000)")
    add("--n-envs", type=whole(1), default=1, help="environments (default: 1)")
    add("--task", type=whole(0), help="index of the task to show (default: follow the clock)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--deterministic", action="store_true", help="the policy's mode (default, but for Atari)")
    how.add_argument("--stochastic", action="store_true", help="actions as they are sampled")
    add("--seed", type=whole(0), default=0, help="of the environment (default: 0)")
    add("--device", default="auto", help="PyTorch's device (default: auto)")
    add("--num-threads", type=whole(1, [-1]), default=-1, help="threads of PyTorch (default: -1, its own choice)")
    add("--no-render", action="store_true", help="draw nothing")
    add("--norm-reward", action="store_true", help="show normalised rewards, of a run that normalises them")
    add("--verbose", type=int, default=1, help="0 prints no episodes (default: 1)")
    add("--gym-packages", nargs="+", default=[], help="packages that register further environments")
    add("--env-kwargs", nargs="+", action=StoreValues, help="keywords of the environment, as key:value")
    add("--custom-objects", action="store_true", help=argparse.SUPPRESS)  # rl-zoo's; always on
    add("-P", "--progress", action="store_true", help="show a progress bar")
