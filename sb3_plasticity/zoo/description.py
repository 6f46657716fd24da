"""
What a run is, in the two files that rl-zoo's own scripts read: ``args.yml`` has the options, ``config.yml`` the entry.

Both are YAML, with tags for what YAML has no word for: tuples, and the classes and functions that Python files and
``-params`` may name.
"""

import pkgutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml

from sb3_plasticity.common.files import replacing
from sb3_plasticity.zoo.errors import UsageError, mistakes_in

ARGS, CONFIG = "args.yml", "config.yml"
NAME = "tag:yaml.org,2002:python/name:"


class _Loader(yaml.FullLoader):
    """Reads what rl_zoo3 and we write: an OrderedDict, tuples and names, whose modules are imported; no calls."""


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice, as a person would."""
        return True


def _named(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    if "<" in value.__qualname__:
        raise yaml.representer.RepresenterError("cannot represent an object", value)
    return dumper.represent_scalar(f"{NAME}{value.__module__}.{value.__qualname__}", "")


_Loader.add_constructor(
    "tag:yaml.org,2002:python/object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(loader.construct_sequence(node, deep=True)[0]),  # type: ignore[arg-type]
)
_Loader.add_multi_constructor(NAME, lambda loader, name, node: pkgutil.resolve_name(name))
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:python/tuple", value))
_Dumper.add_multi_representer(dict, lambda dumper, value: dumper.represent_dict(dict(value)))
for _kind in (type, FunctionType):
    _Dumper.add_multi_representer(_kind, _named)


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """
    Write what a run is.

    :param folder: for the two files
    :param description: fields of a :class:`~sb3_plasticity.zoo.spec.RunSpec`, and whatever else is to be kept
    :raises UsageError: for hyper-parameters that cannot be written
    """
    options = {key: value for key, value in description.items() if key not in ("env_id", "hyperparams")}
    entry = description.get("hyperparams", {})
    options |= {"env": description["env_id"], "env_kwargs": entry.get("env_kwargs"), "log_folder": ""}
    # the options come last: where there are some, the description is complete
    for name, content in (
        (CONFIG, {**entry, "n_timesteps": description.get("n_timesteps")}),
        (ARGS, options),
    ):
        try:
            text = yaml.dump(content, Dumper=_Dumper)
        except yaml.representer.RepresenterError as error:
            raise UsageError(
                f"hyper-parameters must be numbers, texts, lists, mappings or named classes, got {error.args[-1]!r}"
            ) from error
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """
    Read what :func:`write_description` or rl_zoo3 wrote.

    :param folder: with the two files
    :return: as it was written; empty if there are no options
    :raises UsageError: for a damaged file
    """
    options, entry = read_zoo_file(folder / ARGS), read_zoo_file(folder / CONFIG)
    if not options:
        return {}
    entry.pop("n_timesteps", None)
    if options.get("env_kwargs"):
        entry["env_kwargs"] = options["env_kwargs"]
    return {**options, "env_id": options.get("env"), "hyperparams": entry}


def read_zoo_file(path: Path) -> dict[str, Any]:
    """
    Read a file that rl_zoo3 writes beside a model.

    :param path: ``args.yml`` or ``config.yml``
    :return: its content; empty if there is no such file
    :raises UsageError: if it is not as rl_zoo3 writes it
    """
    if not path.is_file():
        return {}
    with mistakes_in(f"{path}: not as rl_zoo3 writes it"):
        return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {})
