"""Errors a user can mend: one line, exit status 2."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A mistake in what the user gave; the message names where it is and what is accepted."""


def nearest(name: object, names: Iterable[str]) -> str:
    """
    Suggest the name that was meant.

    :param name: as given
    :param names: that are accepted
    :return: `` (did you mean 'x'?)``, or nothing if no name is close
    """
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
