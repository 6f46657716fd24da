"""
A command line of several commands, each a module of its own.

A command's module has ``add_arguments(parser)``, which adds its options (and sub-commands, if it has any) to a parser,
and ``run(options)``, which does what they say and returns the exit status. It is imported when it is asked for.
"""

import argparse
import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from sb3_plasticity.common.checks import nearest
from sb3_plasticity.zoo.errors import RunError, UsageError


class Command(NamedTuple):
    """
    One command.

    :param module: where it is
    :param help: what it does, in a line
    :param extra: of the installation, which brings what it needs
    """

    module: str
    help: str
    extra: str = "zoo"


ZOO = {
    "train": Command("sb3_plasticity.zoo.train", "train an agent, resume a run, search hyper-parameters"),
    "enjoy": Command("sb3_plasticity.zoo.enjoy", "run a trained agent (--task N: in that task)"),
    "record_video": Command("sb3_plasticity.zoo.record_video", "film a trained agent"),
    "card": Command("sb3_plasticity.zoo.card", "write a trained agent's folder for the Hugging Face Hub, or load one"),
    "benchmark": Command("sb3_plasticity.zoo.benchmark", "evaluate every trained agent of a log folder"),
    "plots": Command("sb3_plasticity.zoo.plots", "draw returns: plot_train, all_plots, plot_from_file"),
}


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, with the nearest option or choice that exists."""

    def error(self, message: str) -> NoReturn:
        """Raise a ``UsageError`` that says what is wrong, with the nearest option or choice."""
        hint = ""
        if match := re.search(r"argument ([^:]+): invalid choice: '?([^' ]+)'?", message):
            accepted = {"/".join(a.option_strings) or a.metavar or a.dest: a.choices for a in self._actions}
            hint = nearest(match[2], map(str, accepted.get(match[1]) or ()))
        elif match := re.search(r"unrecognized arguments: (--?[\w-]+)", message):
            hint = nearest(match[1], self._option_string_actions)
        raise UsageError(f"{message}{hint}")


def whole(at_least: int, also: Iterable[int] = ()) -> Callable[[str], int]:
    """
    Make the type of an option that is a whole number.

    :param at_least: smallest accepted number
    :param also: further accepted numbers
    :return: for ``type=``
    """
    further = list(also)

    def parse(text: str) -> int:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not number.is_integer() or not (number >= at_least or number in further):
            accepted = f"a whole number >= {at_least}" + "".join(f" or {other}" for other in further)
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}")
        return int(number)

    return parse


def main(commands: Mapping[str, Command], prog: str, arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param commands: by name
    :param prog: name of the program, for its help
    :param arguments: of the command line; None for those of this process
    :return: exit status: 0, 1 for what could not be brought to its end, 2 for a mistake in what was given, 130 after an
        interrupt
    :raises RunError: with ``--debug``, instead of a status; likewise ``UsageError``, ``OSError``, ``KeyboardInterrupt``
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(commands, prog, [argument for argument in given if argument != "--debug"])
    except (KeyboardInterrupt, UsageError, RunError, OSError) as error:
        if "--debug" in given:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted{': ' * bool(text)}{text}", file=sys.stderr)
            return 130
        print(f"error: {text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _run(commands: Mapping[str, Command], prog: str, given: Sequence[str]) -> int:
    parser = Parser(
        prog, epilog=f"{prog} COMMAND --help lists a command's options; --debug shows an error's traceback."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    chosen = next((argument for argument in given if not argument.startswith("-")), "")
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            with _installed(command):
                module = importlib.import_module(command.module)
            module.add_arguments(subparser)
    options, unknown = parser.parse_known_args(given)
    if unknown:
        subparsers.choices.get(chosen, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if not chosen:
        parser.print_help()
        return 0
    with _installed(commands[chosen]):
        return int(module.run(options) or 0)


@contextlib.contextmanager
def _installed(command: Command) -> Iterator[None]:
    """Say what to install for a command whose libraries are missing; some are imported when it runs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("sb3_plasticity"):
            raise
        raise UsageError(f"{error.name} is not installed: pip install 'sb3-plasticity[{command.extra}]'") from error
