"""
Errors of arguments, in one form of sentence: "`x` must be ..., got ...".

Standard library only, so that every room may use it, the environments included.
"""

import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def must_be(name: str, accepted: str, value: object) -> ValueError:
    """
    Word the error of an argument.

    :param name: of the argument
    :param accepted: what it must be, such as ``"a number >= 0"``
    :param value: what was given
    :return: the error, to be raised by the caller
    """
    return ValueError(f"`{name}` must be {accepted}, got {value!r}")


def nearest(name: object, names: Iterable[str]) -> str:
    """
    Suggest the name that was meant.

    :param name: as given
    :param names: that are accepted
    :return: `` (did you mean 'x'?)``, or nothing if no name is close
    """
    close = difflib.get_close_matches(str(name), [str(accepted) for accepted in names], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(names: Iterable[object]) -> str:
    """
    List the accepted values.

    :param names: at least one
    :return: such as ``one of 'a', 'b'``, or the value itself if there is only one
    """
    listed = [repr(name) for name in names]
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"


def check_choice(name: str, value: object, accepted: Iterable[object]) -> None:
    """
    Check that a value is one of a few.

    :param name: of the argument
    :param value: as given
    :param accepted: values
    :raises ValueError: if it is none of them, with the nearest one
    """
    accepted = list(accepted)
    if not any(type(value) is type(choice) and value == choice for choice in accepted):
        raise ValueError(f"{must_be(name, one_of(accepted), value)}{nearest(value, map(str, accepted))}")


def check_count(name: str, value: object, at_least: int = 0) -> None:
    """
    Check that a value is a whole number.

    :param name: of the argument
    :param value: as given
    :param at_least: smallest accepted number
    :raises ValueError: if it is not
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < at_least:
        raise must_be(name, f"a whole number >= {at_least}", value)


def check_number(
    name: str,
    value: object,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """
    Check that a value is a finite number in a range.

    :param name: of the argument
    :param value: as given
    :param at_least: smallest accepted number
    :param at_most: largest accepted number
    :param above: accepted numbers are larger than this one
    :param below: accepted numbers are smaller than this one
    :raises ValueError: if it is not
    """
    bounds = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (at_least <= value <= at_most and above < value < below):  # type: ignore[operator]
        raise must_be(name, f"a finite number{' ' * bool(wanted)}{wanted}", value)


def check_strength(name: str, value: object) -> None:
    """
    Check that a value is a strength: a constant, or one that follows the training's progress.

    :param name: of the argument
    :param value: as given; what a function returns is not looked at
    :raises ValueError: if it is neither a finite number >= 0 nor callable
    """
    if callable(value):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise must_be(name, "a finite number >= 0 or a function of the remaining progress", value)


def check_names(what: str, given: Iterable[object], accepted: Iterable[str]) -> None:
    """
    Check that names are known.

    :param what: the names are, such as ``"keyword of SlipperyAnt-v0"``
    :param given: names
    :param accepted: names
    :raises ValueError: for the first that is not, with the nearest one
    """
    accepted = list(accepted)
    for name in given:
        if name not in accepted:
            hint = nearest(name, accepted)
            raise ValueError(f"`{what}` must be {one_of(accepted)}, got {name!r}{hint}")


def check_keywords(
    function: Callable[..., Any],
    keywords: Mapping[str, Any],
    owner: str | None = None,
    rest: Callable[..., Any] | None = None,
) -> None:
    """
    Check that a function or class takes these keyword arguments.

    :param function: that will be called with them
    :param keywords: as given
    :param owner: how the function is called in the message; its name if None
    :param rest: what the function hands its ``**kwargs`` on to
    :raises TypeError: for the first it does not take, with the nearest one
    """
    accepted: list[str] = []
    for taker in (function, rest):
        parameters = inspect.signature(taker).parameters.values() if taker else ()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters) and (taker is rest or rest is None):
            return
        accepted += [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    for name in keywords:
        if name not in accepted:
            owner = owner or getattr(function, "__name__", repr(function))
            raise TypeError(f"{owner} got an unexpected keyword argument {name!r}{nearest(name, accepted)}")


def suggests_names(
    rest: Callable[..., Any] | None = None, owner: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Let a function answer a keyword that it does not take with the nearest one, as Python does from 3.13 on.

    :param rest: what the function hands its ``**kwargs`` on to
    :param owner: how the function is called in the message; None for its name, or its class's if it is a constructor
    :return: a decorator that leaves the signature as it is
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = owner or function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check_keywords(function, kwargs, name, rest)
            return function(*args, **kwargs)

        return checked

    return decorate
