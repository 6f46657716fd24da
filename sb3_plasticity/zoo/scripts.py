"""rl_zoo3's scripts, run with our algorithm, parser, manager and statistics."""

import argparse
import importlib
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import rl_zoo3
import rl_zoo3.exp_manager
import rl_zoo3.utils
from stable_baselines3.common.vec_env import VecEnv

from sb3_plasticity.zoo.checkpoints import CHECKPOINT, read_checkpoint, statistics_path
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.manager import SETUP_ERRORS, PlasticityExperimentManager
from sb3_plasticity.zoo.parser import ScriptParser
from sb3_plasticity.zoo.registration import register

SCRIPTS = ("train", "enjoy", "record_video", "benchmark")
PLOTS = ("all_plots", "plot_from_file", "plot_train")


def run(script: str, arguments: Sequence[str]) -> None:
    """
    Run a script of rl_zoo3.

    :param script: one of ``SCRIPTS`` or ``PLOTS``
    :param arguments: of its command line
    :raises UsageError: for a mistake of the user's
    """
    register()
    with ExitStack() as stack:
        for target, name, value in (
            (sys, "argv", [f"sb3-plasticity {script}", *arguments]),
            (rl_zoo3.exp_manager, "ExperimentManager", PlasticityExperimentManager),
            (rl_zoo3.utils, "get_model_path", get_model_path),
            # bound in both places
            (rl_zoo3.utils, "create_test_env", create_test_env),
            (rl_zoo3, "create_test_env", create_test_env),
            (subprocess, "call", call),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        stack.enter_context(_argparse_for(script))
        if script == "train":
            runpy.run_module("rl_zoo3.train", run_name="__main__")
            return
        try:
            if script in PLOTS:
                getattr(importlib.import_module("rl_zoo3.plots"), script)()
            else:
                runpy.run_module(f"rl_zoo3.{script}", run_name="__main__")
        except SETUP_ERRORS as error:
            raise UsageError(str(error)) from error


@contextmanager
def _argparse_for(script: str) -> Iterator[None]:
    """Let scripts import an argparse with our parser; the module itself, which others hold, stays as it is."""
    module = ModuleType("argparse")
    vars(module).update(vars(argparse), ArgumentParser=type("Parser", (ScriptParser,), {"script": script}))
    sys.modules["argparse"] = module
    try:
        yield
    finally:
        sys.modules["argparse"] = argparse


_get_model_path = rl_zoo3.utils.get_model_path
_create_test_env = rl_zoo3.utils.create_test_env
_call = subprocess.call
# The model that the running script shows.
_shown: list[Path] = []


def get_model_path(*arguments: Any, **keywords: Any) -> tuple[str, str, str]:
    """
    Find the model to show, and check that it is whole.

    :param arguments: of rl_zoo3's ``get_model_path``
    :param keywords: of rl_zoo3's ``get_model_path``
    :return: name, path of the model, path of its run
    """
    try:
        result = _get_model_path(*arguments, **keywords)
    except ValueError as error:
        saved = Path(str(error).rpartition("path: ")[2]).parent.glob("rl_model_*_steps.zip")
        steps = sorted(int(match[2]) for path in saved if (match := CHECKPOINT.fullmatch(path.stem)))
        there = (
            f"; there are checkpoints, for --load-checkpoint, of steps {', '.join(map(str, steps))}" if steps else ""
        )
        raise UsageError(f"{error}{there}") from error
    path = Path(result[1])
    read_checkpoint(path)
    _shown[:] = [path]
    return result


def create_test_env(env_id: str, stats_path: str | None = None, **keywords: Any) -> VecEnv:
    """
    Make the environment that a model is shown in, with the statistics of that very model.

    :param env_id: of the environment
    :param stats_path: folder of the final model's statistics
    :param keywords: further arguments of rl_zoo3's ``create_test_env``
    :return: the environment
    """
    statistics = statistics_path(_shown[0]) if _shown else None
    with tempfile.TemporaryDirectory() as folder:
        if stats_path is not None and (keywords.get("hyperparams") or {}).get("normalize") and statistics is not None:
            if not statistics.is_file():
                raise UsageError(f"{statistics}: the normalisation statistics of {_shown[0]} are missing")
            shutil.copy(statistics, Path(folder) / "vecnormalize.pkl")
            stats_path = folder
        env = _create_test_env(env_id, stats_path=stats_path, **keywords)
    try:
        task, parameter = env.get_attr("task")[0], env.get_attr("parameter")[0]
    except AttributeError:
        pass  # an environment without tasks
    else:
        print(f"Task {task.index}: {parameter.name} {task.value:.4g}")
    return env


def call(command: Any, *arguments: Any, **keywords: Any) -> int:
    """
    Run a command, ours where rl_zoo3's benchmark means its own.

    :param command: ``["python", "enjoy.py", ...]`` would need a checkout of rl_zoo3
    :param arguments: of ``subprocess.call``
    :param keywords: of ``subprocess.call``
    :return: its exit status
    """
    if isinstance(command, list) and command[:2] == ["python", "enjoy.py"]:
        command = [sys.executable, "-m", "sb3_plasticity.zoo", "enjoy", *command[2:]]
    return _call(command, *arguments, **keywords)
