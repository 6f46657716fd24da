"""
Every code block of the README and of the documentation runs, in smaller sizes; what does not run is listed here.

The tutorials' cells are executed by ``make docs``, the guide's interactive session by ``test_readme.py``.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from sb3_plasticity.cli import main
from sb3_plasticity.study.matrix import prepare
from sb3_plasticity.study.spec import read_study
from sb3_plasticity.zoo.config import check_entry

ROOT = Path(__file__).parent.parent
GENERATED = ("_build", "environments", "mitigations", "jupyter_execute")

# Blocks of Python that do not run, by a part of them, and why.
BLOCKS_NOT_RUN = {
    "class SlipperyPendulumEnv": "tests/envs/test_registration.py runs it",
    "register_nonstationary(": "tests/envs/test_registration.py runs it",
    "SlowAnchor": "tests/mitigations/test_contributing_mitigation.py runs it",
    "class Reinforce": "tests/test_contributing_instruments.py runs it",
    'Metric("sparsity"': "tests/test_contributing_instruments.py runs it",
    "callback=CurvatureCallback(), progress_bar=True": "tests/test_readme.py runs it",
    ">>>": "tests/test_readme.py runs it",
    "import mlflow": "needs the extra trackers; tests/callbacks/test_trackers.py does the same",
    '"batch_size":': "what `card` wrote: no program",
    '{"schedule":': "what `card` wrote: no program",
}
# Lines of a shell that do not run, by how they begin, and why.
LINES_NOT_RUN = {
    "pip install": "tests/check_wheel.py installs the wheel",
    "hf download": "needs the Hugging Face Hub",
    "sb3-plasticity card ppo_l2er-SlipperyAnt-v0 --load": "needs what was downloaded",
    "sb3-plasticity inspect model.zip": "the model is the reader's",
    "sb3-plasticity doctor": "half a minute; tests/check_wheel.py runs it",
    "sb3-plasticity study report": "needs a study's runs; tests/study runs a small one",
    "sb3-plasticity study run": "hours; its file is checked, and tests/study runs a small one",
    "tensorboard": "a server",
    "OMP_NUM_THREADS=1 python benchmarks/": "minutes to hours",
    "python benchmarks/": "minutes to hours",
    "python -W ignore benchmarks/": "minutes",
    "python examples/": "hours; the examples' tests run them for few steps",
    "make": "minutes; its target is looked up",
}
# (what stands on the page, what runs instead)
SHORTER = [
    ('PPO_L2ER("SlipperyAnt-v0", ', 'PPO_L2ER("SlipperyAnt-v0", compile=False, n_steps=16, n_epochs=1, '),
    ("10_000_000", "128"),
    ('"period": 200_000', '"period": 64'),
    ('"period": 2_048', '"period": 32'),
    ("n_steps=256", "n_steps=16, n_epochs=1"),
    ('PPO("MlpPolicy", env, tensorboard', 'PPO("MlpPolicy", env, n_steps=32, n_epochs=1, tensorboard'),
    ("learn(6_144", "learn(96"),
    ("learn(1_000_000", "learn(128"),
    ("learn(2_048", "learn(64"),
    ('"CartPole-v1", er_coef', '"CartPole-v1", n_steps=64, er_coef'),
]
TRAINING = ["n_envs:1", "n_steps:32", "n_epochs:1", "callback:null", "compile:False"]
SHORTER_COMMANDS = {
    "train": ["-n", "64", "--eval-freq", "-1", "--verbose", "0", "--device", "cpu", "-params", *TRAINING],
    "enjoy": ["-n", "5", "--no-render", "--device", "cpu"],
    "inspect": ["--steps", "64", "--device", "cpu"],
    "card": ["-n", "12", "--n-episodes", "1", "--device", "cpu"],
}


def pages() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parts[len(ROOT.parts) + 1] not in GENERATED)
    return [path for path in found if fences(path)]


def fences(path: Path) -> list[tuple[str, str]]:
    """Language and text of a page's code blocks, in their order."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


def shell_lines(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def shorter(code: str) -> str:
    for stands, runs in SHORTER:
        code = code.replace(stands, runs)
    return code


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that the pages speak of."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--algo", "ppo_l2er", "--env", "SlipperyAnt-v0", "-f", str(folder / "logs")]
    assert main(["train", *options, *SHORTER_COMMANDS["train"]]) == 0
    return folder / "logs"


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_page(path: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = fences(path)
    shutil.copytree(finished_run, tmp_path / "logs")
    for name in ("docs", "studies"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for language, code in blocks:
        if any(part in code for part in BLOCKS_NOT_RUN):
            continue
        if language == "python":
            exec(compile(shorter(code), str(path), "exec"), namespace)
        elif language == "bash":
            for line in shell_lines(code):
                run(line)
        elif language == "yaml":
            check_yaml(code)
        else:
            assert language == "bibtex" or language.startswith("{"), f"{path}: who checks {language!r}?"


def run(line: str) -> None:
    command, *arguments = shlex.split(line)
    if command == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif arguments[:2] == ["study", "run"]:
        if Path(arguments[2]).is_file():  # one of ours; else the page shows it, and it is checked there
            assert prepare(read_study(Path(arguments[2])), arguments[2])
    elif not line.startswith(tuple(LINES_NOT_RUN)):
        assert command == "sb3-plasticity"
        resumed_or_loaded = {"-i", "--load"} & set(arguments)
        assert main([*arguments, *([] if resumed_or_loaded else SHORTER_COMMANDS[arguments[0]])]) == 0


def check_yaml(text: str) -> None:
    content = yaml.safe_load(text)
    if "methods" in content:
        Path("page.yml").write_text(text)
        assert prepare(read_study(Path("page.yml")), "page.yml")
    else:
        for env_id, entry in content.items():
            check_entry(entry, env_id, "ppo", env_id)


def test_nothing_that_is_left_out_has_become_stale() -> None:
    blocks = [block for path in pages() for block in fences(path)]
    code = "\n".join(text for _, text in blocks)
    lines = [line for language, text in blocks if language == "bash" for line in shell_lines(text)]
    assert [part for part in BLOCKS_NOT_RUN if part not in code] == []
    assert [start for start in LINES_NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    assert [stands for stands, _ in SHORTER if stands not in code] == []
    reasons = "\n".join((*BLOCKS_NOT_RUN.values(), *LINES_NOT_RUN.values()))
    assert [name for name in re.findall(r"tests/[\w/]+\.py", reasons) if not (ROOT / name).is_file()] == []
