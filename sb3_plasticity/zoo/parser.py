"""The options of rl_zoo3's scripts, and ours beside them."""

import argparse
import ast
import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import gymnasium as gym
from rl_zoo3.utils import ALGOS, StoreDict
from torch import nn

from sb3_plasticity.envs import ENV_IDS
from sb3_plasticity.envs.rendering import has_display
from sb3_plasticity.zoo.errors import UsageError, nearest
from sb3_plasticity.zoo.runs import INHERITED, Run
from sb3_plasticity.zoo.vec_envs import VEC_ENVS

DEFAULT_FOLDER = "logs"
DEFAULT_SAVE_FREQ = 100_000


class ScriptParser(argparse.ArgumentParser):
    """
    A script's own parser with further options, defaults that fit this project, and errors of one line.

    rl_zoo3's scripts build ``argparse.ArgumentParser()`` and call ``parse_args()``: they get one of these instead.
    """

    script: ClassVar[str] = ""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """
        Add an option as the script asks for it, but for those whose meaning is wider here.

        :param names: of the option
        :param options: of ``argparse``
        :return: the option
        """
        if options.get("action") is StoreDict:
            options["action"] = StoreValues
        if self.script == "train":
            if "--vec-env" in names:
                options |= {
                    "choices": VEC_ENVS,
                    "default": None,
                    "help": "auto (default): batch, all simulations in one thread pool, where its results are equal, "
                    "else dummy; subproc: one process each",
                }
            elif "--save-freq" in names:
                options |= {
                    "default": DEFAULT_SAVE_FREQ,
                    "help": "Save the model when a rollout starts and n steps have passed since the last time "
                    f"(default: {DEFAULT_SAVE_FREQ}; if negative, no checkpoint)",
                }
            elif "--trained-agent" in names:
                options["help"] = (
                    "Continue the run of this checkpoint: same options and hyper-parameters unless given anew, in a "
                    "folder of its own, up to the same number of steps in all"
                )
            elif "--n-timesteps" in names:
                options["help"] = "Overwrite the number of timesteps (of a resumed run: in all)"
        if "--log-dir" in names or (self.script in ("enjoy", "record_video") and "--folder" in names):
            options["default"] = DEFAULT_FOLDER
        return super().add_argument(*names, **options)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """
        Parse the command line, with our options beside the script's.

        :param args: as of ``argparse``
        :param namespace: as of ``argparse``
        :return: the values
        :raises UsageError: for what cannot be meant
        """
        getattr(self, f"_extend_{self.script}", lambda: None)()
        values = super().parse_args(args, namespace)
        check = getattr(self, f"_complete_{self.script}", None)
        return values if check is None else check(values, args)

    def error(self, message: str) -> NoReturn:
        """
        Refuse the command line.

        :param message: what is wrong
        :raises UsageError: with the nearest option or choice that exists
        """
        hint = ""
        if match := re.search(r"argument ([^:]+): invalid choice: '?([^' ]+)'?", message):
            action = next((a for a in self._actions if match[1] == "/".join(a.option_strings)), None)
            hint = nearest(match[2], map(str, (action and action.choices) or ()))
        elif match := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            hint = nearest(match[1], self._option_string_actions)
        raise UsageError(f"{message}{hint}")

    # -- train ---------------------------------------------------------------------------------------------------------

    def _extend_train(self) -> None:
        self.add_argument(
            "--preset",
            default=None,
            help="Use this entry of the configuration file instead of the environment's own, such as paper-l2er, "
            "paper-plain, dohare-l2",
        )
        self.add_argument(
            "--eval-tasks",
            type=int,
            nargs="+",
            default=None,
            help="Indices of the tasks that best_model and trials are scored on (default: the first five)",
        )

    def _complete_train(self, values: Any, args: Sequence[str] | None) -> Any:
        if values.trained_agent:
            path = Path(values.trained_agent)
            run = Run(path)
            if previous := run.args:
                inherited = {key: previous[key] for key in INHERITED if previous.get(key) is not None}
                inherited |= {key: previous[key] for key in ("algo", "env") if key in previous}
                if run.folder.parent.name == previous.get("algo"):
                    inherited["log_folder"] = str(run.folder.parent.parent)
                if run.step is not None and previous.get("seed") is not None:
                    # not the seed itself: the stretch before the checkpoint would be drawn again
                    inherited["seed"] = (previous["seed"] + run.step) % 2**32
                self.set_defaults(**inherited)
                values = super().parse_args(args)
            if not path.is_file() or path.suffix != ".zip":
                near = sorted(str(other) for other in path.parent.glob("*.zip")) if path.parent.is_dir() else []
                raise UsageError(f"--trained-agent {path}: there is no such zip file{nearest(path, near)}")
        check_env(values)
        if values.log_interval == 0:
            raise UsageError("--log-interval 0: accepted is a number of rollouts, or -1 for the algorithm's own")
        if values.algo == "ppo_l2er" and values.save_replay_buffer:
            raise UsageError("--save-replay-buffer: ppo_l2er has no replay buffer")
        return values

    # -- enjoy, record_video -------------------------------------------------------------------------------------------

    def _extend_enjoy(self) -> None:
        self.add_argument(
            "--task", type=int, default=None, help="Index of the task to show (default: follow the clock)"
        )

    def _complete_enjoy(self, values: Any, args: Sequence[str] | None) -> Any:
        check_env(values)
        if self.script == "enjoy" and not values.no_render and not has_display():
            print("No display: nothing is drawn (record_video makes a film)")
            values.no_render = True
        env_kwargs = dict(values.env_kwargs or {})
        if str(getattr(values.env, "gym_id", values.env)) in ENV_IDS:
            if self.script == "record_video" or not values.no_render:
                env_kwargs.setdefault("show_task", True)
            if values.task is not None:
                env_kwargs["task"] = values.task
        elif values.task is not None:
            raise UsageError(f"--task {values.task}: only {', '.join(ENV_IDS)} have tasks")
        values.env_kwargs = env_kwargs or None
        return values

    _extend_record_video = _extend_enjoy
    _complete_record_video = _complete_enjoy

    # -- plots ---------------------------------------------------------------------------------------------------------

    def _extend_plot_train(self) -> None:
        self.add_argument("-o", "--output", default=None, help="Write the figure to this file instead of showing it")

    def _complete_plot_train(self, values: Any, args: Sequence[str] | None) -> Any:
        from matplotlib import pyplot as plt

        output = values.output or (None if has_display() else "plot_train.png")
        if output is not None:
            plt.show = functools.partial(_write_figure, plt, output)
        return values


class StoreValues(argparse.Action):
    """``key:value`` pairs, the values in Python's or YAML's notation, as text where they are neither."""

    def __init__(self, option_strings: Any, dest: str, nargs: Any = None, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=nargs, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Store a dictionary."""
        result = {}
        for pair in values:
            key, colon, value = pair.partition(":")
            if not colon or not key:
                parser.error(f"argument {option_string}: {pair!r}: accepted is key:value, as in er_coef:1e-3")
            result[key] = parse_value(value)
        setattr(namespace, self.dest, result)


def parse_value(text: str) -> Any:
    """
    Read a value from the command line.

    :param text: a literal of Python, ``dict(...)`` of such, ``nn.ReLU``, ``true``, ``null``, or anything else
    :return: the value; the text itself if it is nothing of these
    """
    words = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(keyword.arg): _evaluate(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return type(ast.literal_eval(ast.copy_location(type(node)([], ast.Load()), node)))(map(_evaluate, node.elts))
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nn", "th.nn", "torch.nn"):
        return getattr(nn, node.attr)
    return ast.literal_eval(node)


def check_env(values: Any) -> None:
    """
    Refuse environments that are not registered.

    :param values: with ``env`` and perhaps ``gym_packages``
    :raises UsageError: naming the nearest id
    """
    for package in getattr(values, "gym_packages", ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"--gym-packages {package}: {error}") from error
    env_id = str(getattr(values.env, "gym_id", values.env))
    if env_id not in gym.registry:
        hint = nearest(env_id, gym.registry) or f": ours are {', '.join(ENV_IDS)}"
        raise UsageError(f"--env {env_id}: no environment of this id{hint}")
    if values.algo not in ALGOS:
        raise UsageError(f"--algo {values.algo}: no algorithm of this name{nearest(values.algo, ALGOS)}")


def _write_figure(plt: Any, output: str) -> None:
    plt.savefig(output, dpi=130)
    print(f"Figure: {output}")
