"""Write one page for each registered environment and for each registered mitigation, from their docstrings."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym

import sb3_plasticity
from sb3_plasticity import mitigations


def generate_pages(docs: Path) -> None:
    """
    Write the pages whose content the code holds.

    :param docs: folder of the documentation
    """
    write(docs / "environments", "Environments", environment_pages())
    write(docs / "mitigations", "Mitigations", mitigation_pages())


def write(folder: Path, title: str, pages: Iterator[tuple[str, str]]) -> None:
    """
    Write pages and the index that lists them.

    :param folder: of the pages
    :param title: of the index
    :param pages: name and text of each page
    """
    folder.mkdir(exist_ok=True)
    introduction = (folder.parent / "_scripts" / f"{folder.name}.md").read_text(encoding="utf-8")
    names = []
    for name, text in pages:
        names.append(name)
        _update(folder / f"{name}.md", text)
    listed = "\n".join(names)
    _update(folder / "index.md", f"# {title}\n\n{introduction}\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n")
    for path in folder.glob("*.md"):
        if path.stem not in (*names, "index"):
            path.unlink()


def _update(path: Path, text: str) -> None:
    # Sphinx reads anew what has a new time stamp.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def environment_pages() -> Iterator[tuple[str, str]]:
    """
    Describe every environment that this package registers.

    :return: name and text of each page
    """
    for env_id, spec in sorted(gym.registry.items()):
        if not str(spec.entry_point).startswith("sb3_plasticity"):
            continue
        text = [f"# {env_id}", ""]
        try:
            env = gym.make(env_id)
        except (ImportError, gym.error.Error) as error:
            text += [f"Needs an extra: {' '.join(str(error).split())}.", ""]
        else:
            text += [
                f"| | |\n|---|---|\n| make | `gymnasium.make({env_id!r})` |",
                f"| observations | `{env.observation_space}` |",
                f"| actions | `{env.action_space}` |",
                f"| steps of an episode | {spec.max_episode_steps or 'unlimited'} |",
                "",
            ]
            documented = type(env.unwrapped)
            if documented.__module__.startswith("sb3_plasticity"):
                text += _autoclass(documented)
            env.close()
        clip = Path(__file__).parent.parent / "_static" / "clips" / f"{env_id}.gif"
        if clip.is_file():
            text += [f"![{env_id} before and after a change](../_static/clips/{clip.name})", ""]
        yield env_id, "\n".join(text)


def mitigation_pages() -> Iterator[tuple[str, str]]:
    """
    Describe every registered mitigation.

    :return: name and text of each page
    """
    for name in sorted(mitigations.__all__):
        cls = getattr(mitigations, name)
        if inspect.isclass(cls) and issubclass(cls, sb3_plasticity.Mitigation) and cls is not sb3_plasticity.Mitigation:
            yield name, "\n".join([f"# {name}", "", *_autoclass(cls)])


def _autoclass(cls: type) -> list[str]:
    # The reference of the API indexes the class; several environments may share one.
    return ["```{eval-rst}", f".. autoclass:: {cls.__module__}.{cls.__qualname__}", "   :no-index:", "```", ""]
