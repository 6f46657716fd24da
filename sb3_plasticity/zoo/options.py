"""What the options of several commands have in common."""

import argparse
import ast
import importlib
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from torch import nn, optim

from sb3_plasticity.common.checks import nearest
from sb3_plasticity.zoo.algorithms import ALGOS
from sb3_plasticity.zoo.errors import UsageError, mistakes_in


class StoreValues(argparse.Action):
    """``key:value`` pairs, the values in Python's or YAML's notation, as text where they are neither."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store a dictionary."""
        for pair in values:
            if not pair.partition(":")[0] or ":" not in pair:
                parser.error(f"argument {option_string}: must be key:value, as in er_coef:1e-3, got {pair!r}")
        setattr(namespace, self.dest, {key: parse_value(value) for key, value in (one.split(":", 1) for one in values)})


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
    except (SyntaxError, ValueError, TypeError, LookupError, AttributeError, MemoryError, RecursionError):
        return text


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords) if all(one.arg for one in keywords):
            return {one.arg: _evaluate(one.value) for one in keywords}
        case ast.List(elts=elements):
            return [_evaluate(one) for one in elements]
        case ast.Tuple(elts=elements):
            return tuple(_evaluate(one) for one in elements)
        case ast.Attribute(value=owner, attr=name):
            modules = {"nn": nn, "th.nn": nn, "torch.nn": nn, "th.optim": optim, "torch.optim": optim}
            return getattr(modules[ast.unparse(owner)], name)
    return ast.literal_eval(node)


def check_known(algo: str, env_id: str, gym_packages: Iterable[str] = ()) -> None:
    """
    Refuse algorithms that rl-zoo does not know, and environments that are not registered.

    :param algo: name of the algorithm; empty for whichever
    :param env_id: of the environment
    :param gym_packages: that register further ones
    :raises UsageError: naming the nearest that is there
    """
    for package in gym_packages:
        with mistakes_in(f"--gym-packages {package}", ImportError):
            importlib.import_module(package)
    if env_id not in gym.registry:
        raise UsageError(f"--env {env_id}: no environment of this id{nearest(env_id, gym.registry)}")
    if algo and algo not in ALGOS:
        raise UsageError(f"--algo {algo}: no algorithm of this name{nearest(algo, ALGOS)}")
