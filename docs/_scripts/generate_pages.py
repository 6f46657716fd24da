"""Write one page for each registered environment and for each registered mitigation, from their docstrings."""

import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn
from torch.optim import Optimizer

from sb3_plasticity import Mitigation, mitigations
from sb3_plasticity.agents import networks_of
from sb3_plasticity.mitigations import Agent, Attachment
from sb3_plasticity.zoo.algorithms import ALGOS

DOCS = Path(__file__).parent.parent
COSTS = DOCS.parent / "benchmarks" / "results" / "mitigations.json"


@dataclasses.dataclass(frozen=True)
class Page:
    """
    A page about one class or function.

    :param name: of the page, which is also the name of its file
    :param text: of the page, in Markdown
    :param documented: the class or function
    :param group: name of the module or package whose heading the index lists the page under
    """

    name: str
    text: str
    documented: Any
    group: str


def generate_pages(docs: Path) -> None:
    """
    Write the pages whose content the code holds.

    :param docs: folder of the documentation
    """
    write(docs / "environments", "Environments", environment_pages())
    write(docs / "mitigations", "Mitigations", mitigation_pages())


def write(folder: Path, title: str, pages: Iterator[Page]) -> None:
    """
    Write pages and the index that describes them.

    :param folder: of the pages
    :param title: of the index
    :param pages: any number of them
    """
    folder.mkdir(exist_ok=True)
    written = sorted(pages, key=lambda page: (summary(importlib.import_module(page.group)), page.name.lower()))
    for page in written:
        _update(folder / f"{page.name}.md", page.text)
    frame = (folder.parent / "_scripts" / f"{folder.name}.md").read_text(encoding="utf-8")
    _update(folder / "index.md", f"# {title}\n\n{frame.replace('% index', index(written))}")
    for path in folder.glob("*.md"):
        if path.stem not in ("index", *(page.name for page in written)):
            path.unlink()


def index(pages: Sequence[Page]) -> str:
    """
    Describe each page in one sentence, under the heading of its group.

    The docstring of a group begins with its heading and a colon.

    :param pages: sorted by group
    :return: Markdown with a hidden table of contents
    """
    text = []
    for group, members in itertools.groupby(pages, key=lambda page: page.group):
        heading, _, description = summary(importlib.import_module(group)).partition(": ")
        text += [f"## {heading}", "", "```{eval-rst}", description[:1].upper() + description[1:], ""]
        for page in members:
            text += [f":doc:`{page.name}`", f"    {summary(page.documented)}", ""]
        text += ["```", ""]
    return "\n".join([*text, "```{toctree}", ":hidden:", "", *(page.name for page in pages), "```", ""])


def summary(documented: Any) -> str:
    """
    Give the first paragraph of a docstring in one line.

    :param documented: a module, a class or a function
    :return: reStructuredText
    """
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _update(path: Path, text: str) -> None:
    # Sphinx reads anew what has a new time stamp.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def environment_pages() -> Iterator[Page]:
    """
    Describe every environment that this package registers.

    :return: pages, grouped by package
    """
    for env_id, spec in sorted(gym.registry.items()):
        if not str(spec.entry_point).startswith("sb3_plasticity"):
            continue
        clip = DOCS / "_static" / "clips" / f"{env_id}.gif"
        text = [f"# {env_id}", ""]
        if clip.is_file():
            text += [f"![Clip of {env_id}](../_static/clips/{clip.name})", ""]
        rows = [("created by", f"gymnasium.make({env_id!r})")]
        try:
            env = gym.make(env_id)
        except gym.error.DependencyNotInstalled as error:
            text += [f"Not installed where this page was built: {' '.join(str(error).split())}.", ""]
        else:
            schedule = " ".join(str(env.get_wrapper_attr("schedule")).split())
            spaces = [" ".join(str(space).split()) for space in (env.observation_space, env.action_space)]
            rows += [("default schedule", schedule), ("observations", spaces[0]), ("actions", spaces[1])]
            env.close()
        limit = f"{spec.max_episode_steps} steps" if spec.max_episode_steps else "that of the environment inside it"
        text += [
            "| | |",
            "|---|---|",
            *(f"| {name} | `{value}` |" for name, value in rows),
            f"| time limit | {limit} |",
        ]
        made_by = entry_point(spec)
        if inspect.isclass(made_by):
            common = "[those of every robot](index.md#keywords-of-every-robot)"
            text += [f"| keywords | those below, {common} and those of its parent class |"]
        yield Page(env_id, "\n".join([*text, "", *_autodoc(made_by)]), made_by, made_by.__module__.rpartition(".")[0])


def entry_point(spec: EnvSpec) -> Any:
    """
    Import what an environment is made by.

    :param spec: of a registered environment
    :return: a class or a function
    """
    if not isinstance(spec.entry_point, str):
        return spec.entry_point
    module, _, name = spec.entry_point.partition(":")
    return getattr(importlib.import_module(module), name)


def mitigation_pages() -> Iterator[Page]:
    """
    Describe every mitigation of this package: those that are attached, activations, and optimizers.

    :return: pages, grouped by module
    """
    agents = small_agents()
    for name in sorted(mitigations.__all__):
        cls = getattr(mitigations, name)
        if not inspect.isclass(cls) or cls is Mitigation:
            continue
        if issubclass(cls, Mitigation):
            use = [f"YAML files and logs call it `{cls.name}`. {served(cls, agents)}", "", *cost(cls.name)]
        elif issubclass(cls, nn.Module):
            use = [f'Any algorithm accepts this activation: `policy_kwargs={{"activation_fn": mitigations.{name}}}`.']
        elif issubclass(cls, Optimizer):
            use = [f'Any algorithm accepts this optimizer: `policy_kwargs={{"optimizer_class": mitigations.{name}}}`.']
        else:
            continue
        yield Page(name, "\n".join([f"# {name}", "", *_autodoc(cls), *use, ""]), cls, cls.__module__)


def cost(name: str) -> list[str]:
    """
    Say what a mitigation costs, where that has been measured.

    :param name: of the mitigation
    :return: lines of a table; none without results of ``benchmarks/mitigations.py``
    """
    if not COSTS.is_file():
        return []
    measured = json.loads(COSTS.read_text(encoding="utf-8"))
    rows = [
        "| {} | {} | {ratio:.2f} | {low:.2f} to {high:.2f} |".format(setting, updates, **found[name])
        for setting, kinds in measured.items()
        for updates, found in kinds.items()
        if name in found
    ]
    if not rows:
        return []
    title = "CPU time of an iteration with it, divided by that of one without (`benchmarks/mitigations.py`):"
    return [title, "", "| setting | updates | ratio | 90% interval |", "|---|---|---|---|", *rows]


def small_agents() -> dict[str, BaseAlgorithm]:
    """
    Make an agent of every algorithm that has networks.

    :return: agents by the name of their class
    """
    agents = {}
    algorithms: dict[str, Any] = ALGOS
    for cls in algorithms.values():
        for env_id in ("Pendulum-v1", "CartPole-v1"):
            policy = next(name for name in cls.policy_aliases if name.startswith("Mlp"))
            with contextlib.suppress(AssertionError):  # it has no use for such actions
                agent = cls(policy, env_id, device="cpu", policy_kwargs={"activation_fn": nn.ReLU})
                with contextlib.suppress(TypeError, NotImplementedError):  # ARS has no gradients
                    networks_of(agent)
                    agents[cls.__name__] = agent
                break
    return agents


def served(cls: type[Mitigation], agents: dict[str, BaseAlgorithm]) -> str:
    """
    Say which algorithms a mitigation attaches to, by attaching it.

    :param cls: the mitigation
    :param agents: by the name of their algorithm
    :return: a sentence
    """
    refused = {}
    for algorithm, agent in agents.items():
        try:
            Attachment(Agent(networks_of(agent), agent), [cls()])
        except ValueError as error:
            refused[algorithm] = str(error)
    names = [name for name in agents if name not in refused]
    if not refused:
        return f"It attaches to every algorithm: {', '.join(names)}."
    why = next(iter(refused.values()))
    return f"It attaches to {', '.join(names)}. It refuses {', '.join(refused)}; the error of the first is “{why}”."


def _autodoc(documented: Any) -> list[str]:
    # The reference of the API indexes classes; several environments may share one.
    directive = "autoclass" if inspect.isclass(documented) else "autofunction"
    name = f"{documented.__module__}.{documented.__qualname__}"
    return ["```{eval-rst}", f".. {directive}:: {name}", "   :no-index:", "```", ""]
