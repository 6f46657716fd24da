"""The report of runs: a page that stands alone, its figures as PNG and PDF, its numbers as CSV."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from sb3_plasticity.study import figures
from sb3_plasticity.study.ranks import fit_ranks, spread, trainability
from sb3_plasticity.study.referee import VIEWS, judge, start_measures
from sb3_plasticity.study.results import Results, Timeline, read_results
from sb3_plasticity.study.spec import folder_name
from sb3_plasticity.study.statistics import Estimate
from sb3_plasticity.study.summary import across_environments, estimate, summarize, summarize_tasks
from sb3_plasticity.study.wording import (
    backwards,
    certainty,
    correlation,
    duration,
    headlines,
    number,
    numbers,
    percent,
    percents,
    rank,
    recovery,
)
from sb3_plasticity.zoo.errors import UsageError

PAGE = "report.html"
TEMPLATE = "report.html.jinja"
DPI = 130
MATRICES = {"ggn": "GGN", "hessian": "Hessian", "kfac": "KFAC", "entk": "eNTK"}
# Tables with more rows than this are folded.
LONG = 40

Writer = Callable[[Estimate], str]


@dataclass
class Section:
    """
    What the page says about an environment.

    :param env_id: environment
    :param time: its tasks
    :param pictures: by what they are: name of the files, PNG in base64, text for those who do not see it
    :param tables: by what they are, as HTML
    :param notes: sentences, by what they are about
    """

    env_id: str
    time: Timeline
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Name of its place on the page."""
        return folder_name(self.env_id)


def write_report(runs: Path, out: Path | None = None, baseline: str | None = None) -> Path:
    """
    Write the report of a study, or of any runs: ``report.html``, the figures as PNG and PDF, and numbers as CSV.

    ``tasks.csv`` has a row per run and task, ``summary.csv``, ``by_task.csv`` one per estimate, ``fits.csv`` and
    ``trainability.csv`` the numbers of figures 3 and 4, ``referee.csv`` the verdicts on every measure.

    :param runs: folder of the study, or one with runs' folders below it
    :param out: folder for the report, not there yet or empty; None for ``report`` in the study's folder, or
        ``report_2``, ... if that exists
    :param baseline: method that the others are compared with; None for the study's, or the first one
    :return: the page
    :raises UsageError: if there is no study, none of its runs is finished, or the folder cannot be written to
    """
    results = read_results(Path(runs), baseline)
    try:
        folder = new_folder(Path(runs), out)
        (folder / PAGE).write_text(Report(results, folder).render(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}: must be a folder that can be written to") from error
    return folder / PAGE


def new_folder(runs: Path, out: Path | None) -> Path:
    """
    Make the folder of a report.

    :param runs: folder of the study
    :param out: see :func:`write_report`
    :return: an empty folder
    :raises UsageError: if it has something in it
    """
    if out is not None:
        out = Path(out)
        if out.is_dir() and any(out.iterdir()):
            raise UsageError(f"{out}: it is not empty: must be a folder that is, or that does not exist")
        out.mkdir(parents=True, exist_ok=True)
        return out
    number = 1
    while True:
        folder = runs / ("report" if number == 1 else f"report_{number}")
        if not folder.exists():
            folder.mkdir()
            return folder
        number += 1


class Report:
    """
    A report in the making.

    :param results: what was found
    :param folder: for figures and numbers
    """

    def __init__(self, results: Results, folder: Path) -> None:
        self.results = results
        self.settings = results.settings
        self.folder = folder
        self.baseline = results.settings.baseline
        self.looks = figures.looks(results.methods, self.baseline)
        self.matrix = f"{self.settings.network} {MATRICES[self.settings.kind]}"
        self.used = results.runs[results.runs.used]
        self.shown = [env_id for env_id in results.timelines if env_id not in results.controls]
        self.shown = self.shown or list(results.timelines)
        tasks = results.tasks[results.tasks.env_id.isin(self.shown)]
        self.summary = summarize(tasks, self.used, self.baseline)
        self.by_task = summarize_tasks(tasks, self.baseline)
        self.numbers: dict[str, list[pd.DataFrame]] = {}

    def render(self) -> str:
        """
        Write figures and numbers.

        :return: the page
        """
        sections = [self._section(env_id) for env_id in self.shown]
        self._write_numbers()
        template = resources.files("sb3_plasticity.study").joinpath(TEMPLATE).read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        counts = self.used.groupby(["env_id", "method"]).size()
        return environment.from_string(template).render(
            results=self.results,
            settings=self.settings,
            matrix=self.matrix,
            headlines=headlines(self.summary, self.baseline),
            n_used=len(self.used),
            certainty=certainty(list(counts)),
            sections=sections,
            across=self._across(),
            files=sorted(path.name for path in self.folder.iterdir()),
            facts=self._facts(),
            versions=self._versions(),
        )

    # -- an environment ------------------------------------------------------------------------------------------------

    def _section(self, env_id: str) -> Section:
        results = self.results
        section = Section(env_id, results.timelines[env_id])
        of = {name: table[table.env_id == env_id] for name, table in vars(results).items() if self._by_env(table)}
        used = self.used[self.used.env_id == env_id]
        summary = self.summary[self.summary.env_id == env_id]
        section.tables["league"] = self._league(summary, section.time)
        if (summary.measure == "last_return_difference").any():
            section.tables["differences"] = self._estimates(
                summary[summary.method != self.baseline],
                {
                    "last_return_difference": ("last task", _signed),
                    "mean_return_difference": ("all tasks", _signed),
                    "change_difference": ("last task − first task", _signed),
                    "auc_difference": ("area under the curve", _signed),
                    "better": ("better in", percents),
                },
            )
        section.tables["more"] = self._estimates(
            summary,
            {
                "change": ("last task − first task", _signed),
                "auc": ("area under the curve", numbers),
                "success": ("tasks that succeed", percents),
                "recovered": ("tasks that recover", percents),
                "epsilon_rank": ("ε-rank at task starts", rank),
            },
        )
        ends = "; ".join(
            f"{method} ends at {number(estimate(summary, method=method, measure='last_return').value)}"
            for method in dict.fromkeys(summary.method)
        )
        self._draw(
            section,
            "figure1_return",
            figures.returns_figure(of["episodes"], section.time, self.looks, self.baseline, results.parameter),
            f"Return over environment steps with task boundaries, interquartile mean and 95% band over seeds. {ends}.",
        )
        self._spectra(section, of["spectra"])
        self._ranks(section, of["tasks"])
        self._tasks(section)
        panels = figures.panels_figure(of["progress"], self.settings.panels, section.time, self.looks)
        self._draw(section, "figure6_mechanisms", panels, "Standard deviation and measures of the networks over steps.")
        self._referee(section)
        self._draw(section, "cost", figures.cost_figure(used, self.looks), "Wall time of every run, by method.")
        return section

    @staticmethod
    def _by_env(table: object) -> bool:
        return isinstance(table, pd.DataFrame) and "env_id" in table

    def _league(self, summary: pd.DataFrame, time: Timeline) -> str:
        rows = []
        for method in dict.fromkeys(summary.method):
            of = {name: estimate(summary, method=method, measure=name) for name in summary.measure.unique()}
            nothing = Estimate(math.nan)
            rows.append(
                {
                    "method": method,
                    "seeds": of["mean_return"].n,
                    "all tasks": numbers(of["mean_return"]),
                    "last task": numbers(of["last_return"]),
                    f"P(better than {self.baseline})": percents(of.get("improvement", nothing)),
                    "time of a run": duration(of["seconds"].value),
                    "steps per second": number(time.n_timesteps / (of["seconds"].value or math.nan)),
                    "times the baseline's": number(of.get("seconds_ratio", nothing).value),
                    "order": of["mean_return"].value,
                }
            )
        table = pd.DataFrame(rows).sort_values("order", ascending=False, kind="stable", na_position="last")
        return _html(table.drop(columns="order"))

    def _estimates(self, summary: pd.DataFrame, columns: Mapping[str, tuple[str, Writer]]) -> str:
        rows = [
            {
                "method": method,
                **{
                    title: write(estimate(summary, method=method, measure=name))
                    for name, (title, write) in columns.items()
                },
            }
            for method in dict.fromkeys(summary.method)
        ]
        return _html(pd.DataFrame(rows))

    def _spectra(self, section: Section, spectra: pd.DataFrame) -> None:
        chosen = (spectra.network == self.settings.network) & (spectra.kind == self.settings.kind)
        starts = spectra[chosen & (spectra.phase == "start")]
        n_tasks = section.time.n_tasks
        wanted = sorted(set(self.settings.tasks or (0, n_tasks // 2, n_tasks - 1)))
        tasks = [task for task in wanted if (starts.task_index == task).any()]
        if not tasks:
            return
        shown = starts[starts.task_index.isin(tasks)]
        means = shown.groupby(["method", "task_index"], sort=False).epsilon_rank.mean().reset_index()
        said = "; ".join(
            f"{row['method']}, task {row['task_index'] + 1:g}: {row['epsilon_rank']:.3g}"
            for row in means.to_dict("records")
        )
        self._draw(
            section,
            "figure2_spectra",
            figures.spectra_figure(starts, self.settings.epsilon, tasks, self.looks),
            f"Eigenvalue densities of the {self.matrix} at task starts, a row per method. Mean epsilon-rank: {said}.",
        )
        if all(spectrum.exact for spectrum in starts.spectrum):
            ceiling = max((spectrum.nodes.size - 1) / spectrum.dim for spectrum in starts.spectrum)
            section.notes["ceiling"] = (
                f"A {MATRICES[self.settings.kind]} of few samples has few non-zero eigenvalues: the rank could not be "
                f"above {ceiling:.3g} here."
            )
        else:
            width = (starts.epsilon_rank_high - starts.epsilon_rank_low).astype(float).median()
            section.notes["ceiling"] = (
                "These ranks are estimates: the quadrature leaves a median of "
                f"{width:.2g} between the bounds of a spectrum's rank."
            )

    def _ranks(self, section: Section, tasks: pd.DataFrame) -> None:
        if tasks.epsilon_rank.isna().all():
            return
        fits, table = fit_ranks(tasks), trainability(tasks, self.settings.rho)
        self._note(section, "fits", spread(fits))
        self._note(section, "trainability", spread(table))
        label = (
            rf"$\epsilon$-rank of the {self.matrix} at the start of the task, $\epsilon$ = {self.settings.epsilon:g}"
        )
        said = "No line can be fitted." if fits.empty else f"R² = {correlation(fits.r_squared[0])}."
        self._draw(
            section,
            "figure3_rank",
            figures.rank_figure(tasks, fits, label, self.looks),
            f"Final return of tasks against the epsilon-rank of the {self.matrix} at their start. {said}",
        )
        if not fits.empty:
            shown = pd.DataFrame(
                {
                    "": fits.starts,
                    "n": fits.n,
                    "R²": fits.r_squared.map(correlation),
                    "Spearman's ρ": fits.spearman.map(correlation),
                    "return per 0.01 of rank": (0.01 * fits.slope).map(_signed_number),
                }
            )
            section.tables["fits"] = _html(shown)
        self._draw(
            section,
            "figure4_trainability",
            figures.trainability_figure(table, self.looks),
            "Share of task starts that reach a rank, by method, and success rates of those that do and do not.",
        )
        together = table[table.method == "all"]
        reached = [
            f"{percent(row['share_reached'])} ({row['n_reached']} of {row['n']})" for row in together.to_dict("records")
        ]
        section.tables["trainability"] = _html(
            pd.DataFrame(
                {
                    "ρ": together.rho.map("{:g}".format),
                    "task starts with rank ≥ ρ": reached,
                    "of which succeed": together.success_reached.map(percents),
                    "succeed of the others": together.success_below.map(percents),
                }
            )
        )
        section.notes["backwards"] = backwards(table)

    def _tasks(self, section: Section) -> None:
        summary = self.by_task[self.by_task.env_id == section.env_id]
        self._draw(
            section,
            "figure5_tasks",
            figures.tasks_figure(summary, self.looks),
            "Final return of every task, and the difference to the baseline. All numbers are in the table below.",
        )
        rows = []
        for (_, method), part in summary.groupby(["task_index", "method"], sort=False):
            of = {name: estimate(part, measure=name) for name in part.measure}
            rows.append(
                {
                    "task": int(part.task_index.iloc[0]) + 1,
                    "method": method,
                    "final return": numbers(of["final_return"]),
                    "area under the curve": numbers(of["auc"]),
                    f"difference to {self.baseline}": _signed(of["difference"]),
                    "recovered": percents(of["recovered"]),
                    "steps to recover": recovery(of["recovery_steps"].value, section.time.period),
                }
            )
        section.tables["tasks"] = _html(pd.DataFrame(rows))

    def _referee(self, section: Section) -> None:
        results = self.results
        twin = f"{section.env_id} (control)"
        tasks = results.tasks[results.tasks.env_id.isin([section.env_id, twin])].reset_index(drop=True)
        measures = start_measures(results.progress, tasks)
        ranks = [name for name in tasks if str(name).startswith("epsilon_rank_")]
        verdicts = judge(tasks, measures.join(tasks[ranks]), tasks.env_id == twin)
        if verdicts.empty:
            return
        self._note(section, "referee", verdicts)
        self._draw(
            section,
            "figure7_referee",
            figures.referee_figure(verdicts),
            "Rank correlations, with intervals, of each measure at task starts with the final return of the task.",
        )
        shown: dict[str, object] = {"measure": verdicts.measure, "n": verdicts.n}
        for view, title in zip(VIEWS, ("all task starts", "within methods", "between methods"), strict=True):
            ends = zip(verdicts[view], verdicts[f"{view}_low"], verdicts[f"{view}_high"], strict=True)
            shown[f"ρ, {title}"] = [correlation(Estimate(*each)) for each in ends]
            shown[f"p, {title}"] = verdicts[f"{view}_p"].map(lambda p: "–" if math.isnan(p) else f"{p:.2g}")
        shown["alarms before failures"] = verdicts.hits.map(percent)
        shown["before successes"] = verdicts.alarms.map(percent)
        if twin in set(tasks.env_id):
            shown["false, on the control"] = verdicts.false_alarms.map(percent)
        section.tables["referee"] = _html(pd.DataFrame(shown))

    def _draw(self, section: Section, name: str, figure: Figure | None, alt: str) -> None:
        if figure is None:
            return
        file = f"{name}_{section.anchor}" if len(self.shown) > 1 else name
        buffer = io.BytesIO()
        with mpl.rc_context(figures.STYLE):
            figure.savefig(buffer, format="png", dpi=DPI)
            figure.set_layout_engine("none")  # it has found its layout
            figure.savefig(self.folder / f"{file}.pdf")
        (self.folder / f"{file}.png").write_bytes(buffer.getvalue())
        png = base64.b64encode(buffer.getvalue()).decode("ascii")
        section.pictures[name.partition("_")[2] or name] = {"name": file, "png": png, "alt": alt}

    # -- all of them ---------------------------------------------------------------------------------------------------

    def _note(self, section: Section, name: str, table: pd.DataFrame) -> None:
        self.numbers.setdefault(name, []).append(table.assign(env_id=section.env_id))

    def _write_numbers(self) -> None:
        self.results.tasks.drop(columns=["best_known", "epsilon_rank"]).to_csv(self.folder / "tasks.csv", index=False)
        self.summary.to_csv(self.folder / "summary.csv", index=False)
        self.by_task.to_csv(self.folder / "by_task.csv", index=False)
        for name, tables in self.numbers.items():
            pd.concat(tables, ignore_index=True).to_csv(self.folder / f"{name}.csv", index=False)

    def _across(self) -> str:
        if len(self.shown) < 2:
            return ""
        tasks = self.results.tasks[self.results.tasks.env_id.isin(self.shown)]
        columns = {
            "better": (f"tasks better than {self.baseline}", percents),
            "success": ("tasks that succeed", percents),
        }
        return self._estimates(across_environments(tasks, self.baseline), columns)

    def _facts(self) -> str:
        time = next(iter(self.results.timelines.values()))
        kwargs = self.used.description.iloc[0].get("hyperparams", {}).get("env_kwargs")
        facts = {
            "environments": ", ".join(self.results.timelines),
            "seeds": ", ".join(map(str, sorted(self.used.seed.unique()))),
            "steps of a run": f"{time.n_timesteps:,}",
            "tasks": f"{time.n_tasks}, a new one every {time.period:,} steps",
            "keywords of the environments": f"{kwargs} (of the first run)",
        }
        return _html(pd.DataFrame(facts.items()), header=False)

    def _versions(self) -> str:
        """Say with what the runs were made: every value that occurs, so that a mixture shows."""
        parts = [part for whole in self.used.description for part in (whole, *whole.get("resumed", []))]
        names = {"git_commit": "commit", "cpu": "CPU", "cpus": "CPUs", "python": "Python", "date": "date"}
        facts = [
            {title: part.get(key) for key, title in names.items()} | (part.get("versions") or {}) for part in parts
        ]
        values = {name: column.dropna().astype(str).unique() for name, column in pd.DataFrame(facts).items()}
        return _html(pd.DataFrame([(name, ", ".join(found)) for name, found in values.items()]), header=False)


def _signed(each: Estimate) -> str:
    return numbers(each, sign=True)


def _signed_number(value: float) -> str:
    return number(value, sign=True)


def _html(table: pd.DataFrame, header: bool = True) -> str:
    """Write a table for the page; a long one folded."""
    safe = table.map(lambda cell: html.escape(str(cell))).rename(columns=lambda name: html.escape(str(name)))
    with pd.option_context("display.max_colwidth", None):
        text = safe.to_html(
            index=False, header=header, border=0, classes="numbers" if header else "facts", escape=False
        )
    text = f'<div class="scroll" tabindex="0">{text}</div>'
    return text if len(table) <= LONG else f"<details><summary>{len(table)} rows</summary>{text}</details>"
