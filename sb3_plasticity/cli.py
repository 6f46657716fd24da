"""
The command ``sb3-plasticity``.

A command is a module, see :mod:`sb3_plasticity.zoo.commands`; to add one, name it here.
"""

import os
import sys
from collections.abc import Sequence

from sb3_plasticity.zoo.commands import ZOO, Command
from sb3_plasticity.zoo.commands import main as run

COMMANDS = ZOO | {
    "study": Command("sb3_plasticity.study.__main__", "a matrix of runs and its report", "study"),
    "inspect": Command("sb3_plasticity.inspect_agent", "what a saved agent has left of its ability to learn", "zoo"),
    "doctor": Command("sb3_plasticity.doctor", "what this installation can do, and what to install", "zoo"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: of the command line; None for those of this process
    :return: exit status: 0, 1 for what could not be brought to its end, 2 for a mistake in what was given, 130 after an
        interrupt
    """
    # as with `python -m`: a configuration may name classes of modules that lie here
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    return run(COMMANDS, "sb3-plasticity", arguments)
