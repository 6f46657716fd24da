"""From YAML to mitigations: an open set, in which every subclass of Mitigation is known by its name."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from sb3_plasticity.common.checks import check_keywords, must_be, nearest
from sb3_plasticity.mitigations.base import KNOWN, Mitigation


def names() -> list[str]:
    """Names of all mitigations that are defined, alphabetically."""
    return sorted(KNOWN)


def find_mitigation(name: str) -> type[Mitigation]:
    """
    Find a mitigation's class.

    :param name: snake-case name such as ``"l2_init"``, or a dotted path to a class such as ``"my_package.Mine"``
    :return: the class
    :raises ValueError: for an unknown one, with the nearest name
    """
    importlib.import_module("sb3_plasticity.mitigations")  # all of ours are defined there
    if name in KNOWN:
        return KNOWN[name]
    module, _, attribute = str(name).rpartition(".")
    if module:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise must_be(
                "mitigations", "names of mitigations or paths to classes that can be imported", name
            ) from error
        if isinstance(found, type) and issubclass(found, Mitigation):
            return found
        raise must_be("mitigations", "subclasses of Mitigation", name)
    raise ValueError(f"`mitigations` must be known names ({', '.join(names())}), got {name!r}{nearest(name, KNOWN)}")


def make_mitigations(entries: Any) -> list[Mitigation]:
    """
    Make mitigations from what stands under ``mitigations:`` in YAML.

    :param entries: a list; each entry a name, a mapping of one name to its arguments (``{"l2_init": {"coef": 1e-3}}``),
        or a :class:`~sb3_plasticity.Mitigation`, which is kept
    :return: one object an entry
    :raises ValueError: for anything else, or arguments that the class refuses
    """
    if isinstance(entries, (str, Mapping, Mitigation)):
        entries = [entries]
    if not isinstance(entries, Iterable):
        raise must_be("mitigations", "a list", entries)
    return [_make(entry) for entry in entries]


def _make(entry: Any) -> Mitigation:
    if isinstance(entry, Mitigation):
        return entry
    if isinstance(entry, str):
        name, arguments = entry, None
    elif isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
    else:
        raise must_be("mitigations", "a list of names, or of mappings of one name to its arguments", entry)
    if arguments is None:
        arguments = {}
    kind = find_mitigation(name)
    if not isinstance(arguments, Mapping):
        raise must_be(f"mitigations: {name}", "a mapping of arguments", arguments)
    try:
        check_keywords(kind.__init__, arguments, owner=name)
    except TypeError as error:
        raise ValueError(f"`mitigations` must fit their classes: {error}") from None
    return kind(**arguments)
