"""The report of a study: a page that stands alone, its figures as PNG and PDF, its numbers as CSV."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sb3_plasticity.study import figures
from sb3_plasticity.study.results import Results, read_results
from sb3_plasticity.study.spec import Study, folder_name
from sb3_plasticity.study.statistics import Estimate, Fit, centred, fit, trainability
from sb3_plasticity.study.summary import (
    MethodSummary,
    TaskSummary,
    across_environments,
    as_frame,
    flat_estimate,
    method_summaries,
    task_summaries,
)
from sb3_plasticity.study.wording import (
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
MATRICES = {"ggn": "GGN", "hessian": "Hessian", "kfac": "KFAC"}
# Tables with more rows than this are folded.
LONG = 40


@dataclass(frozen=True)
class Picture:
    """
    A figure as the page shows it.

    :param name: of its files, without ending
    :param png: base64
    :param alt: what it shows, for those who do not see it
    """

    name: str
    png: str
    alt: str


@dataclass(frozen=True)
class Table:
    """
    A table as the page shows it.

    :param head: of the columns
    :param rows: of cells; those of the first column name the row
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def is_long(self) -> bool:
        """Whether it is folded."""
        return len(self.rows) > LONG


@dataclass
class Section:
    """
    What the page says about an environment.

    :param env_id: environment
    :param pictures: by what they are
    :param tables: by what they are
    :param notes: sentences, by what they are about
    """

    env_id: str
    pictures: dict[str, Picture] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def anchor(self) -> str:
        """Name of its place on the page."""
        return folder_name(self.env_id)


def write_report(runs: Path, out: Path | None = None) -> Path:
    """
    Write the report of a study: ``report.html``, the figures as PNG and PDF, ``tasks.csv``, ``summary.csv``,
    ``by_task.csv``, ``trainability.csv`` and ``fits.csv``.

    :param runs: folder of the study
    :param out: folder for the report, not there yet or empty; None for ``report`` in the study's folder, or
        ``report_2``, ... if that exists
    :return: the page
    :raises UsageError: if there is no study, none of its runs is finished, or the folder has something in it
    """
    runs = Path(runs)
    results = read_results(runs)
    folder = new_folder(runs, out)
    page = Report(results, folder).render()
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def new_folder(runs: Path, out: Path | None) -> Path:
    """
    Make the folder of a report.

    :param runs: folder of the study
    :param out: see :func:`write_report`
    :return: an empty folder
    :raises UsageError: if it has something in it, or cannot be made
    """
    try:
        if out is not None:
            out = Path(out)
            if out.is_dir() and any(out.iterdir()):
                raise UsageError(f"{out}: it is not empty: accepted is a folder that is, or that does not exist")
            out.mkdir(parents=True, exist_ok=True)
            return out
        number = 1
        while True:
            folder = runs / ("report" if number == 1 else f"report_{number}")
            if not folder.exists():
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}: accepted is a folder that can be written to") from error


class Report:
    """
    A report in the making.

    :param results: of the study
    :param folder: for figures and numbers
    """

    def __init__(self, results: Results, folder: Path) -> None:
        self.results = results
        self.study: Study = results.study
        self.spec = results.study.report
        self.folder = folder
        self.looks = figures.looks(list(self.study.methods), self.spec.baseline)
        self.used = results.runs[results.runs.used]
        self.env_ids = [env_id for env_id in self.study.env_ids if (self.used.env_id == env_id).any()]
        self.methods = method_summaries(self.study, results.tasks, self.used)
        self.tasks = task_summaries(self.study, results.tasks)
        self.rank_column = f"epsilon_rank_{self.spec.network}_{self.spec.kind}"
        self.matrix = f"{self.spec.network} {MATRICES[self.spec.kind]}"
        self._trainability: list[dict[str, Any]] = []
        self._fits: list[dict[str, Any]] = []

    def render(self) -> str:
        """
        Write figures and numbers.

        :return: the page
        """
        sections = [self._section(env_id) for env_id in self.env_ids]
        self._write_numbers()
        template = resources.files("sb3_plasticity.study").joinpath(TEMPLATE).read_text(encoding="utf-8")
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.from_string(template).render(
            study=self.study,
            spec=self.spec,
            matrix=self.matrix,
            looks=self.looks,
            headlines=headlines(self.methods, self.spec.baseline, len(self.env_ids) > 1),
            problems=self.results.problems,
            n_used=len(self.used),
            n_runs=len(self.results.runs),
            certainty=certainty([len(row.seeds) for row in self.methods]),
            sections=sections,
            across=self._across(),
            files=sorted(path.name for path in self.folder.iterdir()),
            settings=self._settings(),
            versions=self._versions(),
            text=self.results.text,
        )

    # -- sections ------------------------------------------------------------------------------------------------------

    def _section(self, env_id: str) -> Section:
        section = Section(env_id)
        tables = self.results
        tasks = tables.tasks[tables.tasks.env_id == env_id]
        methods = [row for row in self.methods if row.env_id == env_id]
        by_task = [row for row in self.tasks if row.env_id == env_id]
        episodes = tables.episodes[tables.episodes.env_id == env_id]
        section.tables["methods"] = _methods_table(methods)
        if len(methods) > 1:
            section.tables["differences"] = _differences_table(methods, self.spec.baseline)
        section.tables["more"] = _more_table(methods)
        section.pictures["returns"] = self._picture(
            "figure1_return",
            env_id,
            figures.returns_figure(episodes, self.study, self.looks),
            "Return over environment steps with task boundaries, interquartile mean and 95% band over seeds. "
            + " ".join(f"{row.method} ends at {number(row.last_return.value)}." for row in methods),
        )
        self._spectra(section)
        self._ranks(section, tasks)
        self._by_task(section, by_task)
        self._mechanisms(section)
        used = self.used[self.used.env_id == env_id]
        section.pictures["cost"] = self._picture(
            "cost", env_id, figures.cost_figure(used, self.looks), f"Wall time of runs. {_cost_sentence(methods)}"
        )
        section.tables["cost"] = _cost_table(methods, self.study.n_timesteps)
        return section

    def _spectra(self, section: Section) -> None:
        spectra, spec = self.results.spectra, self.spec
        chosen = (spectra.env_id == section.env_id) & (spectra.network == spec.network) & (spectra.kind == spec.kind)
        starts = spectra[chosen & (spectra.phase == "start")]
        tasks = [task for task in _shown_tasks(self.study) if (starts.task_index == task).any()]
        if not tasks:
            section.notes["spectra"] = (
                f"Left out: no finished run has a spectrum of the {self.matrix} at the start of the tasks to show."
            )
            return
        shown = starts[starts.task_index.isin(tasks)]
        ranks = shown.groupby(["method", "task_index"], sort=False).epsilon_rank.mean()
        said = "; ".join(
            f"{method}, task {task + 1}: {rank:.3g}"
            for method, task, rank in ranks.reset_index().itertuples(index=False)
        )
        section.pictures["spectra"] = self._picture(
            "figure2_spectra",
            section.env_id,
            figures.spectra_figure(starts, spec, tasks, self.looks),
            f"Eigenvalue densities of the {self.matrix} at task starts, a row per method. Mean epsilon-rank: {said}.",
        )
        if all(spectrum.exact for spectrum in starts.spectrum):
            ceiling = max((spectrum.nodes.size - 1) / spectrum.dim for spectrum in starts.spectrum)
            section.notes["ceiling"] = (
                f"A {MATRICES[spec.kind]} of few samples has few non-zero eigenvalues: the rank could not be above "
                f"{ceiling:.3g} here."
            )
        else:
            width = (starts.epsilon_rank_high - starts.epsilon_rank_low).astype(float).median()
            section.notes["ceiling"] = (
                "These ranks are estimates: the quadrature leaves a median of "
                f"{width:.2g} between the bounds of a spectrum's rank."
            )

    def _ranks(self, section: Section, tasks: pd.DataFrame) -> None:
        if self.rank_column not in tasks or tasks[self.rank_column].notna().sum() == 0:
            section.notes["ranks"] = (
                f"Left out: no finished run has a spectrum of the {self.matrix} at the start of a task."
            )
            return
        fits = _fits(tasks, self.rank_column)
        self._fits += [{"env_id": section.env_id, "starts": name, **_flat_fit(line)} for name, line in fits.items()]
        everything = fits["all task starts"]
        section.pictures["ranks"] = self._picture(
            "figure3_rank",
            section.env_id,
            figures.rank_figure(tasks, self.rank_column, self.spec, everything, self.matrix, self.looks),
            f"Final return of tasks against the epsilon-rank of the {self.matrix} at their start. "
            + ("No line can be fitted." if everything is None else f"R² = {correlation(everything.r_squared)}."),
        )
        section.tables["fits"] = _fits_table(fits)
        self._tau_trainability(section, tasks)

    def _tau_trainability(self, section: Section, tasks: pd.DataFrame) -> None:
        def rows(part: pd.DataFrame) -> list[dict[str, Any]]:
            rank = part[self.rank_column].to_numpy(dtype=float)
            return trainability(rank, part.success.to_numpy(dtype=float), part.seed.to_numpy(), self.spec.rho)

        together = rows(tasks)
        by_method = {str(method): rows(part) for method, part in tasks.groupby("method", sort=False)}
        for name, found in {"all": together, **by_method}.items():
            self._trainability += [
                {"env_id": section.env_id, "method": name, **{key: row[key] for key in list(row)[:4]}}
                | {**flat_estimate("success_reached", row["success_reached"])}
                | {**flat_estimate("success_below", row["success_below"])}
                for row in found
            ]
        section.pictures["trainability"] = self._picture(
            "figure4_trainability",
            section.env_id,
            figures.trainability_figure(by_method, together, self.looks),
            "Share of task starts that reach a rank, by method, and success rates of those that do and do not.",
        )
        section.tables["trainability"] = Table(
            ["ρ", "task starts with rank ≥ ρ", "of which succeed", "succeed of the others", *by_method],
            [
                [
                    f"{row['rho']:g}",
                    f"{percent(row['share_reached'])} ({row['n_reached']} of {row['n']})",
                    percents(row["success_reached"]),
                    percents(row["success_below"]),
                    *(percent(found[i]["share_reached"]) for found in by_method.values()),
                ]
                for i, row in enumerate(together)
            ],
        )

    def _by_task(self, section: Section, by_task: Sequence[TaskSummary]) -> None:
        finals: dict[str, list[Estimate]] = {}
        differences: dict[str, list[Estimate]] = {}
        for row in by_task:
            finals.setdefault(row.method, []).append(row.final_return)
            if row.method != self.spec.baseline:
                differences.setdefault(row.method, []).append(row.difference)
        if all(math.isnan(difference.value) for row in differences.values() for difference in row):
            differences = {}
        section.pictures["tasks"] = self._picture(
            "figure5_tasks",
            section.env_id,
            figures.tasks_figure(finals, differences, self.looks),
            "Final return of every task, and the difference to the baseline. All numbers are in the table below.",
        )
        baseline, took = self.spec.baseline, "steps to recover"
        section.tables["tasks"] = Table(
            ["task", "method", "final return", "area under the curve", f"difference to {baseline}", "recovered", took],
            [
                [
                    str(row.task_index + 1),
                    row.method,
                    numbers(row.final_return),
                    numbers(row.auc),
                    numbers(row.difference, sign=True),
                    percent(row.recovered),
                    recovery(row.recovery_steps, self.study.period),
                ]
                for row in by_task
            ],
        )

    def _mechanisms(self, section: Section) -> None:
        progress = self.results.progress
        figure = figures.mechanisms_figure(progress[progress.env_id == section.env_id], self.study, self.looks)
        if figure is None:
            section.notes["mechanisms"] = "Left out: the logs of the finished runs have none of these measures."
            return
        section.pictures["mechanisms"] = self._picture(
            "figure6_mechanisms",
            section.env_id,
            figure,
            "Standard deviation of the policy, squared norm of the parameters, effective ranks and dormant units over "
            "steps, as far as they were logged.",
        )

    def _picture(self, name: str, env_id: str, figure: Figure, alt: str) -> Picture:
        if len(self.env_ids) > 1:
            name = f"{name}_{folder_name(env_id)}"
        buffer = io.BytesIO()
        with mpl.rc_context(figures.STYLE):
            figure.savefig(buffer, format="png", dpi=DPI)
            figure.set_layout_engine("none")  # it has found its layout
            figure.savefig(self.folder / f"{name}.pdf")
        (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        return Picture(name, base64.b64encode(buffer.getvalue()).decode("ascii"), alt)

    # -- the whole study -----------------------------------------------------------------------------------------------

    def _across(self) -> Table | None:
        if len(self.env_ids) < 2:
            return None
        rows = across_environments(self.study, self.results.tasks)
        return Table(
            ["method", f"tasks better than {self.spec.baseline}", "tasks that succeed"],
            [[row.method, percents(row.better), percents(row.success)] for row in rows],
        )

    def _write_numbers(self) -> None:
        tasks = self.results.tasks.drop(columns="best_known")
        tasks.to_csv(self.folder / "tasks.csv", index=False)
        as_frame(self.methods).to_csv(self.folder / "summary.csv", index=False)
        as_frame(self.tasks).to_csv(self.folder / "by_task.csv", index=False)
        if self._fits:
            pd.DataFrame(self._fits).to_csv(self.folder / "fits.csv", index=False)
            pd.DataFrame(self._trainability).to_csv(self.folder / "trainability.csv", index=False)

    def _settings(self) -> Table:
        study = self.study
        return Table(
            ["", ""],
            [
                ["environments", ", ".join(self.env_ids)],
                ["seeds", ", ".join(map(str, study.seeds))],
                ["steps of a run", f"{study.n_timesteps:,}"],
                ["tasks", f"{study.n_tasks}, a new one every {study.period:,} steps"],
                ["keywords of the environments", str(dict(study.env_kwargs))],
            ],
        )

    def _versions(self) -> Table:
        """Say with what the runs were made: every value that occurs, so that a mixture shows."""
        found: dict[str, dict[str, None]] = {}
        made_with = [part for whole in self.used.description for part in (whole, *whole.get("resumed", []))]
        for part in made_with:
            facts = {name: part.get(name) for name in ("git_commit", "cpu", "cpus", "python", "date")}
            for name, value in {**facts, **(part.get("versions") or {})}.items():
                if value is not None:
                    found.setdefault(name, {})[str(value)] = None
        words = {"git_commit": "commit", "cpus": "CPUs", "cpu": "CPU", "python": "Python"}
        return Table(["", ""], [[words.get(name, name), ", ".join(values)] for name, values in found.items()])


def _shown_tasks(study: Study) -> list[int]:
    if study.report.tasks is not None:
        return sorted(set(study.report.tasks))
    return sorted({0, study.n_tasks // 2, study.n_tasks - 1})


def _cost_sentence(methods: Iterable[MethodSummary]) -> str:
    return " ".join(f"{row.method}: median {duration(row.seconds)}." for row in methods)


# -- tables ------------------------------------------------------------------------------------------------------------


def _methods_table(methods: Sequence[MethodSummary]) -> Table:
    return Table(
        ["method", "seeds", "last task", "all tasks", "last task − first task", "area under the curve"],
        [
            [
                row.method,
                str(len(row.seeds)),
                numbers(row.last_return),
                numbers(row.mean_return),
                numbers(row.change, sign=True),
                numbers(row.auc),
            ]
            for row in methods
        ],
    )


def _differences_table(methods: Sequence[MethodSummary], baseline: str) -> Table:
    return Table(
        [
            f"difference to {baseline}",
            "last task",
            "all tasks",
            "last task − first task",
            "area under the curve",
            "better in",
        ],
        [
            [
                row.method,
                numbers(row.last_return_difference, sign=True),
                numbers(row.mean_return_difference, sign=True),
                numbers(row.change_difference, sign=True),
                numbers(row.auc_difference, sign=True),
                percents(row.better),
            ]
            for row in methods
            if row.method != baseline
        ],
    )


def _more_table(methods: Sequence[MethodSummary]) -> Table:
    return Table(
        ["method", "tasks that succeed", "tasks that recover", "ε-rank at task starts"],
        [[row.method, percents(row.success), percent(row.recovered), rank(row.epsilon_rank)] for row in methods],
    )


def _cost_table(methods: Sequence[MethodSummary], n_timesteps: int) -> Table:
    return Table(
        ["method", "median time of a run", "steps per second", "times the baseline's"],
        [
            [
                row.method,
                duration(row.seconds),
                number(n_timesteps / row.seconds) if row.seconds > 0 else "–",
                "–" if math.isnan(row.seconds_ratio) else f"{row.seconds_ratio:.2f}",
            ]
            for row in methods
        ],
    )


def _fits(tasks: pd.DataFrame, column: str) -> dict[str, Fit | None]:
    rank, final = tasks[column].to_numpy(dtype=float), tasks.final_return.to_numpy(dtype=float)
    seeds, later = tasks.seed.to_numpy(), tasks.task_index.to_numpy() > 0
    same = tasks.groupby(["seed", "task_index"]).ngroup().to_numpy()
    both = np.isfinite(rank) & np.isfinite(final)
    inside = [centred(np.where(both, values, math.nan), same) for values in (rank, final)]
    found = {
        "all task starts": fit(rank, final, seeds),
        "without the first task": fit(rank[later], final[later], seeds[later]),
        "methods in the same task of the same seed": fit(inside[0], inside[1], seeds),
        "the same, without the first task": fit(inside[0][later], inside[1][later], seeds[later]),
    }
    for method in tasks.method.unique() if tasks.method.nunique() > 1 else ():
        own = (tasks.method == method).to_numpy()
        found[f"{method} alone"] = fit(rank[own], final[own], seeds[own])
    return found


def _fits_table(fits: Mapping[str, Fit | None]) -> Table:
    rows = []
    for name, line in fits.items():
        cells = ["–"] * 4
        if line is not None:
            slope = number(0.01 * line.slope, sign=True)
            cells = [str(line.n), correlation(line.r_squared), correlation(line.spearman), slope]
        rows.append([name, *cells])
    return Table(["", "n", "R²", "Spearman's ρ", "return per 0.01 of rank"], rows)


def _flat_fit(line: Fit | None) -> dict[str, Any]:
    if line is None:
        return {"n": 0}
    return {
        "n": line.n,
        **flat_estimate("r_squared", line.r_squared),
        **flat_estimate("spearman", line.spearman),
        "slope": line.slope,
        "intercept": line.intercept,
    }
