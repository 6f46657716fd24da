"""Errors that a command ends with in one line."""


class UsageError(Exception):
    """A mistake in what the user gave; the message names where it is and what is accepted. Exit status 2."""


class SetupError(UsageError):
    """A mistake in hyper-parameters that shows when environments, agent or the first update are made of them."""


class RunError(Exception):
    """What was begun could not be brought to its end. Exit status 1."""
