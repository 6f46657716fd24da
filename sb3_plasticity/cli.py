"""The command ``sb3-plasticity``: rl_zoo3's scripts with our algorithms, and a look at the installation."""

import importlib.util
import sys
from collections.abc import Sequence

ZOO_COMMANDS = {
    "train": "train an agent, resume a run, search hyper-parameters",
    "enjoy": "run a trained agent (--task N: in that task)",
    "record_video": "film a trained agent",
    "benchmark": "evaluate every trained agent of a log folder",
    "plots": "draw returns: plots plot_train, plots all_plots, plots plot_from_file",
}
PLOTS = ("all_plots", "plot_from_file", "plot_train")
OWN_COMMANDS = {
    "doctor": "versions, threads, rendering and compiler of this installation, and what to install",
    "study": "a matrix of runs and its report",
}


def main(arguments: Sequence[str] | None = None, zoo_only: bool = False) -> int:
    """
    Run a command.

    :param arguments: of the command line; None for those of this process
    :param zoo_only: whether only rl_zoo3's scripts are meant
    :return: exit status: 0, 1 for a training that had to stop, 2 for a mistake in what was given
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    commands = ZOO_COMMANDS if zoo_only else ZOO_COMMANDS | OWN_COMMANDS
    if not zoo_only and importlib.util.find_spec("sb3_plasticity.study") is None:
        commands = {name: text for name, text in commands.items() if name != "study"}
    if not given or given[0] in ("-h", "--help"):
        print(_usage("python -m sb3_plasticity.zoo" if zoo_only else "sb3-plasticity", commands))
        return 0
    command, rest = given[0], given[1:]
    if command == "plots" and rest and rest[0] in PLOTS:
        command, rest = rest[0], rest[1:]
    elif command == "plots":
        return _refuse(f"plots: accepted are {', '.join(PLOTS)}")
    if command not in (*commands, *PLOTS):
        return _refuse(f"{command!r}: accepted are {', '.join(commands)}")
    if command == "doctor":
        from sb3_plasticity.doctor import main as doctor

        return doctor(rest)
    if command == "study":
        study = importlib.import_module("sb3_plasticity.study.__main__")
        return study.main(rest) or 0
    return _run_zoo(command, rest, debug)


def _run_zoo(command: str, arguments: list[str], debug: bool) -> int:
    if missing := [name for name in ("rl_zoo3", "seaborn", "requests") if importlib.util.find_spec(name) is None]:
        return _refuse(f"{', '.join(missing)} not installed: pip install 'sb3-plasticity[zoo]'")

    from sb3_plasticity.zoo.errors import UsageError
    from sb3_plasticity.zoo.scripts import run

    try:
        run(command, arguments)
    except UsageError as error:
        if debug:
            raise
        return _refuse(str(error))
    except FloatingPointError as error:
        if debug:
            raise
        print(f"error: {error}. The last checkpoint is as it was", file=sys.stderr)
        return 1
    return 0


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _usage(program: str, commands: dict[str, str]) -> str:
    lines = [f"usage: {program} COMMAND [OPTION ...]", "", "commands:"]
    lines += [f"  {name:<13} {text}" for name, text in commands.items()]
    lines += ["", f"{program} COMMAND --help lists a command's options; --debug shows the traceback of an error."]
    return "\n".join(lines)
