"""The report as a whole: one page that stands alone, honest about what it lacks."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import Markup
from synthetic import write_run, write_study

from sb3_plasticity.study.diagnostics import trainability
from sb3_plasticity.study.report import by_key, new_folder, write_report
from sb3_plasticity.study.spec import planned_runs
from sb3_plasticity.study.statistics import Estimate
from sb3_plasticity.study.tasks import summarize
from sb3_plasticity.study.wording import templates, written
from sb3_plasticity.zoo.errors import UsageError

FIGURES = ("figure1_return", "figure2_spectra", "figure3_rank", "figure4_trainability", "figure5_tasks",
           "figure6_mechanisms", "figure7_referee", "cost")  # fmt: skip
HOSTILE = "L2 <b>x</b> $y_1$"


class Page(HTMLParser):
    """What a browser would fetch, jump to and show."""

    def __init__(self, text: str | Markup) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.add(tag)
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "img":
            self.images.append(given)
        if tag == "a":
            self.links.append(given["href"])

    def handle_data(self, data: str | Markup) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """Two methods, three seeds, one of the runs crashed."""
    root = tmp_path_factory.mktemp("study")
    study = write_study(root, ["PPO", HOSTILE], [0, 1, 2], 3, 20_000, rho=[0.02, 0.03])
    for run in planned_runs(study):
        write_run(root, study, run, "crashed" if (run.method, run.seed) == (HOSTILE, 2) else "finished")
    path = write_report(root)
    return path, Page(path.read_text(encoding="utf-8"))


def test_the_page_stands_alone(whole: tuple[Path, Page]) -> None:
    path, page = whole
    assert path.name == "report.html" and path.parent.name == "report"
    assert len(page.images) == len(FIGURES)
    assert all(image["src"].startswith("data:image/png;base64,") and len(image["alt"]) > 20 for image in page.images)
    assert not page.tags & {"script", "link", "iframe"}
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", path.read_text(encoding="utf-8"))


def test_every_link_leads_somewhere(whole: tuple[Path, Page]) -> None:
    path, page = whole
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (path.parent / link).is_file(), link


def test_figures_and_numbers_lie_beside_it(whole: tuple[Path, Page]) -> None:
    path, _ = whole
    for name in FIGURES:
        for ending, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
            assert (path.parent / (name + ending)).read_bytes().startswith(magic)
    tasks = pd.read_csv(path.parent / "tasks.csv")
    assert list(tasks.columns) == [
        "env_id", "method", "seed", "task_index", "task_value", "begin", "end", "final_return", "auc",
        "steps_to_recover", "success", "epsilon_rank_policy_ggn", "epsilon_rank_value_ggn",
    ]  # fmt: skip
    assert len(tasks) == 5 * 3
    summary = pd.read_csv(path.parent / "summary.csv").set_index(["measure", "method"])
    assert list(summary.n["last_return"]) == [3, 2]
    finals = tasks[tasks.task_index == 2].set_index(["method", "seed"]).final_return
    by_task = pd.read_csv(path.parent / "by_task.csv")
    assert by_task.task_index.is_monotonic_increasing and list(by_task.method.unique()) == ["PPO", HOSTILE]
    differences = finals[HOSTILE] - finals["PPO"]  # seed 2 has no partner
    assert summary.value["last_return_difference", HOSTILE] == pytest.approx(differences.mean())
    assert summary.value["last_return", "PPO"] == pytest.approx(finals["PPO"].mean())
    assert summary.low["last_return", "PPO"] == pytest.approx(finals["PPO"].min())


def test_names_and_errors_cannot_write_html(whole: tuple[Path, Page]) -> None:
    path, page = whole
    text = path.read_text(encoding="utf-8")
    assert "b" not in page.tags
    assert "L2 &lt;b&gt;x&lt;/b&gt; $y_1$" in text and HOSTILE in page.text
    assert "RuntimeError: <b>out of memory</b>" in page.text


def test_it_begins_with_what_was_found_and_what_is_missing(whole: tuple[Path, Page]) -> None:
    _, page = whole
    start = page.text[: page.text.index("Return over steps")]
    assert re.search(r"2 seeds; the interval (excludes|contains) 0", start)
    assert "but over 2 seeds such an interval misses the truth in 50% of studies" in start
    assert "between 2 and 3 seeds" in start and "about 50% of studies" in start
    assert "5 of 6 runs are in this report" in start and f"{HOSTILE}, seed 2, on SlipperyAnt-v0, crashed" in start


def test_it_ends_with_what_it_was_made_with(whole: tuple[Path, Page]) -> None:
    _, page = whole
    for fact in ("0123456789abcdef", "AMD EPYC", "2.13.0", "0, 1, 2", "n_timesteps: 60000"):
        assert fact in page.text[page.text.rindex("What this was made with") :]


def test_a_single_run_without_spectra(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["PPO"], [0], 2)
    (run,) = planned_runs(study)
    folder = write_run(tmp_path, study, run, curvature=False)
    (folder.path / "progress.csv").unlink()
    path = write_report(tmp_path, tmp_path / "elsewhere")
    page = Page(path.read_text(encoding="utf-8"))
    assert "1 seed has no interval" in page.text or "One seed has no interval" in page.text
    assert "there is no finished run to compare it with" in page.text
    assert page.text.count("Left out: no finished run has a spectrum of the policy GGN") == 3
    assert "Left out: the logs of the finished runs have none of these measures" in page.text
    assert [image["alt"][:6] for image in page.images] == ["Return", "Final ", "Wall t"]
    assert path.parent == tmp_path / "elsewhere" and not (path.parent / "fits.csv").exists()
    assert pd.read_csv(path.parent / "summary.csv").low.isna().all()

    with pytest.raises(UsageError, match="it is not empty: must be"):
        write_report(tmp_path, path.parent)
    with pytest.raises(UsageError, match="must be a folder"):
        write_report(tmp_path, tmp_path / "study.yml" / "deeper")


def test_an_older_report_stays(tmp_path: Path) -> None:
    assert [new_folder(tmp_path, None).name for _ in range(3)] == ["report", "report_2", "report_3"]


def test_several_environments_have_a_section_each(tmp_path: Path) -> None:
    env_ids = ["SlipperyAnt-v0", "SlipperyHopper-v0"]
    study = write_study(tmp_path, ["PPO", "L2"], [0, 1], 2, env_ids=env_ids)
    for run in planned_runs(study):
        folder = write_run(tmp_path, study, run, curvature=run.env_id == env_ids[0])
        (folder.path / "progress.csv").unlink()
    path = write_report(tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert {*env_ids, "across"} <= page.ids
    for env_id in env_ids:
        assert f"On {env_id}: " in page.text
        assert (path.parent / f"figure1_return_{env_id}.png").is_file()
    assert not (path.parent / "figure2_spectra_SlipperyHopper-v0.png").exists()
    summary = pd.read_csv(path.parent / "summary.csv")
    assert len(summary[summary.measure == "last_return"]) == 4


@pytest.mark.parametrize(
    ("writer", "given", "text"),
    [
        ("number", -1234.5, "−1,234"),
        ("number", 0.123, "0.12"),
        ("number", -0.0, "0"),
        ("number", float("nan"), "–"),
        ("number", None, "–"),
        ("number", Estimate(812, 101, 1510, 5), "812 [101, 1,510]"),
        ("signed", Estimate(812, -101, 1510, 5), "+812 [−101, +1,510]"),
        ("percent", Estimate(0.25, 0.1, 0.4, 5), "25% [10, 40]"),
        ("correlation", Estimate(-0.206, -0.4, 0.02, 5), "−0.21 [−0.40, 0.02]"),
        ("duration", 7500, "2 h 05 min"),
        ("duration", Estimate(59.4), "59 s"),
        ("text", 3, 3),
    ],
)
def test_how_numbers_are_written(writer: str, given: float | Estimate | None, text: str | int) -> None:
    assert written(given, writer) == text


def say(macro: str, *arguments: Any) -> str:
    """What a sentence of the page is, without its tags."""
    return Page(getattr(templates().get_template("sentences.jinja").module, macro)(*arguments)).text


def one_task(**finals: Any) -> dict[str, dict[str, Estimate]]:
    rows = [
        {"env_id": "e", "method": method, "seed": seed, "task_index": 0, "final_return": value, "auc": value}
        for method, values in finals.items()
        for seed, value in enumerate(values)
    ]
    tasks = pd.DataFrame(rows).assign(steps_to_recover=float("nan"), success=1.0)
    return by_key(summarize(tasks, tasks[["env_id", "method", "seed"]].assign(seconds=1.0), "PPO"), "method")


def test_the_first_sentence_says_when_nothing_can_be_told() -> None:
    same, better = [100, 300, 500, 700, 900], [200, 400, 600, 800, 1000]
    line = say("headlines", one_task(PPO=same, L2=[120, 280, 510, 690, 900]), "PPO")
    assert line.startswith("No difference between L2 and PPO can be told on the last task: ") and "contains 0" in line
    line = say("headlines", one_task(PPO=same, L2=better), "PPO")
    assert line.startswith("L2 returns 100 more than PPO on the last task: ") and "excludes 0" in line
    many = {f"m{i}": [value + (0, 0, -1)[i % 3] * (i % 2) for value in same] for i in range(4)}
    line = say("headlines", one_task(PPO=same, L2=better, **many), "PPO")
    assert line.startswith("Of 5 methods, on the last task: of 4 no difference to PPO can be told; 1 returns more")
    assert "(L2)" in line


def test_success_from_low_ranks_is_pointed_out() -> None:
    tasks = pd.DataFrame({"method": "PPO", "seed": [0, 0, 1, 1], "epsilon_rank": [0.1, 0.3, 0.1, 0.3]})
    for success, expected in (
        ([1, 0, 1, 0], "(100% [100, 100] against 0% [0, 0]): the opposite of"),
        ([0, 1, 0, 1], ""),
    ):
        rows = trainability(tasks.assign(success=success), [0.2]).to_dict("records")[:1]
        text = say("backwards", rows)
        assert expected in text and bool(expected) == bool(text)


def test_a_league_of_many_methods_is_ranked(tmp_path: Path) -> None:
    """The best first; a panel for each; the referee beside a control that has no section of its own."""
    methods = ["PPO", *(f"method {i}" for i in range(1, 6))]
    study = write_study(tmp_path, methods, [0, 1, 2], 3, control=True)
    for run in planned_runs(study):
        write_run(tmp_path, study, run)
    path = write_report(tmp_path)
    page = Page(path.read_text(encoding="utf-8"))
    assert "SlipperyAnt-v0_control" not in page.ids and page.text.count("P(better than PPO)") == 1
    summary = pd.read_csv(path.parent / "summary.csv").set_index(["measure", "method"]).value["mean_return"]
    league = re.findall(r"<td>([^<]+)</td>", path.read_text(encoding="utf-8").partition("</thead>")[2])
    ranked = [cell for cell in league if cell in methods][: len(methods)]
    assert ranked == list(summary.sort_values(ascending=False).index)
    referee = pd.read_csv(path.parent / "referee.csv").set_index("measure")
    assert (referee.control_n > 0).all() and referee.false_alarms.between(0, 1).all()
    assert referee.between["plasticity/policy/effective_rank"] > 0.5
    assert abs(referee.between["plasticity/value/effective_rank"]) < 0.4
    # what it judged is there for others to judge: the same correlation by hand
    starts, tasks = (pd.read_csv(path.parent / f"{name}.csv") for name in ("starts", "tasks"))
    both = starts.merge(tasks, on=["env_id", "method", "seed", "task_index"], validate="1:1")
    both = both[both.env_id == "SlipperyAnt-v0"]
    assert len(both) == len(methods) * 3 * 3 and len(starts) == len(tasks)
    columns = ["plasticity/policy/effective_rank", "final_return"]
    both[columns] -= both.groupby(["seed", "task_index"])[columns].transform("mean")
    seeds = [each[columns].corr("spearman").to_numpy()[0, 1] for _, each in both.groupby("seed")]
    mean = math.tanh(sum(math.atanh(float(correlation)) for correlation in seeds) / len(seeds))  # Fisher's
    assert referee.between[columns[0]] == pytest.approx(mean, abs=1e-12)
