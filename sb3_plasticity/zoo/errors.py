"""Errors that end a command with a single line."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """A mistake in what the user gave; the message names where it is and what is accepted. Exit status 2."""


class SetupError(UsageError):
    """A mistake in hyper-parameters that shows when environments, the agent or the first update are made of them."""


class RunError(Exception):
    """What was begun could not be brought to its end. Exit status 1."""


@contextlib.contextmanager
def mistakes_in(where: object, *kinds: type[Exception]) -> Iterator[None]:
    """
    Turn errors into a user's mistake that says where it is.

    :param where: for the message: a file, an option, a key
    :param kinds: of errors; without any, all of them
    :return: a context
    :raises UsageError: for such an error; one that is a ``UsageError`` already says so itself
    """
    kinds = kinds or (Exception,)
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        raise UsageError(f"{where}: {error}") from error
