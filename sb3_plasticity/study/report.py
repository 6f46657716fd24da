"""The report of runs: a page that stands alone, its figures as PNG and PDF, its numbers as CSV."""

import base64
import io
import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from sb3_plasticity.common.files import make_new
from sb3_plasticity.study import figures
from sb3_plasticity.study.diagnostics import fit_ranks, judge, start_measures, trainability
from sb3_plasticity.study.results import Results, read_results
from sb3_plasticity.study.spec import folder_name
from sb3_plasticity.study.statistics import Estimate
from sb3_plasticity.study.tasks import TASK, across_environments, summarize, summarize_tasks
from sb3_plasticity.study.wording import templates
from sb3_plasticity.zoo.errors import UsageError

PAGE = "report.html"
DPI = 130
MATRICES = {"ggn": "GGN", "hessian": "Hessian", "kfac": "KFAC", "entk": "eNTK"}


def write_report(runs: Path, out: Path | None = None, baseline: str | None = None) -> Path:
    """
    Write the report of a study, or of any runs: ``report.html``, the figures as PNG and PDF, and numbers as CSV.

    ``tasks.csv`` has a row per run and task, ``summary.csv``, ``by_task.csv`` one per estimate, ``fits.csv`` and
    ``trainability.csv`` the numbers of figures 3 and 4, ``referee.csv`` the verdicts on every measure, ``starts.csv``
    the measures at task starts that these are about.

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
    if out is None:
        return make_new(runs / f"report{f'_{number}' * (number > 1)}" for number in itertools.count(1))
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out}: it is not empty: must be an empty folder, or one that does not exist")
    out.mkdir(parents=True, exist_ok=True)
    return out


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
        self.looks = figures.looks(results.methods, self.settings.baseline)
        self.matrix = f"{self.settings.network} {MATRICES[self.settings.kind]}"
        self.used = results.runs[results.runs.used]
        moving = [env_id for env_id in results.timelines if env_id not in results.controls]
        self.env_ids = moving or list(results.timelines)
        tasks = results.tasks[results.tasks.env_id.isin(self.env_ids)]
        # what becomes a CSV file, by its name
        self.numbers = {
            "tasks": [results.tasks.drop(columns=["best_known", "epsilon_rank"])],
            "summary": [summarize(tasks, self.used, self.settings.baseline)],
            "by_task": [summarize_tasks(tasks, self.settings.baseline)],
        }

    def render(self) -> str:
        """
        Write figures and numbers.

        :return: the page
        """
        results = self.results
        tasks = results.tasks[results.tasks.env_id.isin(self.env_ids)]
        sections = [self._section(env_id) for env_id in self.env_ids]
        for name, tables in self.numbers.items():
            pd.concat(tables, ignore_index=True).to_csv(self.folder / f"{name}.csv", index=False)
        across = across_environments(tasks, self.settings.baseline) if len(sections) > 1 else pd.DataFrame()
        return (
            templates()
            .get_template(f"{PAGE}.jinja")
            .render(
                results=results,
                settings=self.settings,
                matrix=self.matrix,
                sections=sections,
                used=self.used,
                counts=list(self.used.groupby(["env_id", "method"]).size()),
                across=[{"method": method, **of} for method, of in by_key(across, "method").items()],
                env_kwargs=self.used.description.iloc[0].get("hyperparams", {}).get("env_kwargs"),
                made_with=self._made_with(),
                files=sorted(path.name for path in self.folder.iterdir()),
            )
        )

    def _section(self, env_id: str) -> dict[str, Any]:
        """Draw the figures of an environment, and gather what the template says about it."""
        results, settings, looks, time = self.results, self.settings, self.looks, self.results.timelines[env_id]
        tasks, episodes, spectra, progress, used, summary, by_task = (
            table[table.env_id == env_id]
            for table in (results.tasks, results.episodes, results.spectra, results.progress, self.used)
            + (self.numbers["summary"][0], self.numbers["by_task"][0])
        )
        methods = by_key(summary, "method")
        league = [
            {
                "method": method,
                "seeds": of["seconds"].n,
                "steps_per_second": time.n_timesteps / (of["seconds"].value or math.nan),
                **of,
            }
            for method, of in methods.items()
        ]
        section: dict[str, Any] = {"env_id": env_id, "anchor": folder_name(env_id), "time": time, "methods": methods}
        nothing = Estimate(-math.inf)
        section["league"] = sorted(league, key=lambda row: row.get("mean_return", nothing).value, reverse=True)
        section["by_task"] = [
            {"task": task + 1, "method": method, "recovery": _censored(of, time.period), **of}
            for (task, method), of in by_key(by_task, "task_index", "method").items()
        ]
        pictures = {
            "figure1_return": figures.returns_figure(episodes, time, looks, settings.baseline, results.parameter),
            "figure5_tasks": figures.tasks_figure(by_task, looks),
            "figure6_mechanisms": figures.panels_figure(progress, settings.panels, time, looks),
            "cost": figures.cost_figure(used, looks),
        }
        chosen = (spectra.network == settings.network) & (spectra.kind == settings.kind) & (spectra.phase == "start")
        starts = spectra[chosen]
        wanted = sorted(set(settings.tasks or (0, time.n_tasks // 2, time.n_tasks - 1)))
        if shown := [task for task in wanted if (starts.task_index == task).any()]:
            pictures["figure2_spectra"] = figures.spectra_figure(starts, settings.epsilon, shown, looks)
            exact = all(spectrum.exact for spectrum in starts.spectrum)
            section["ceiling"] = max((s.nodes.size - 1) / s.dim for s in starts.spectrum) if exact else None
            section["open"] = (starts.epsilon_rank_high - starts.epsilon_rank_low).astype(float).median()
        if tasks.epsilon_rank.notna().any():
            fits, table = fit_ranks(tasks), trainability(tasks, settings.rho)
            label = f"ε-rank of the {self.matrix} at the start of the task, ε = {settings.epsilon:g}"
            ends = starts[[*TASK, "epsilon_rank_low", "epsilon_rank_high"]].drop_duplicates(TASK)
            pictures["figure3_rank"] = figures.rank_figure(tasks.merge(ends, on=TASK), fits, label, looks)
            pictures["figure4_trainability"] = figures.trainability_figure(table, looks)
            section["fits"] = [
                {**row, "per_hundredth": row["slope"] / 100} for row in self._noted("fits", env_id, fits)
            ]
            section["trainability"] = self._noted("trainability", env_id, table)
        verdicts = self._verdicts(env_id)
        if len(verdicts):
            pictures["figure7_referee"] = figures.referee_figure(verdicts)
        section["referee"] = self._noted("referee", env_id, verdicts)
        section["pictures"] = {
            name: self._save(f"{name}_{section['anchor']}" if len(self.env_ids) > 1 else name, figure)
            for name, figure in pictures.items()
            if figure is not None
        }
        return section

    def _verdicts(self, env_id: str) -> pd.DataFrame:
        twin = f"{env_id} (control)"
        tasks = self.results.tasks[self.results.tasks.env_id.isin([env_id, twin])].reset_index(drop=True)
        ranks = [name for name in tasks if str(name).startswith("epsilon_rank_")]
        measures = start_measures(self.results.progress, tasks).join(tasks[ranks])
        self.numbers.setdefault("starts", []).append(tasks[TASK].join(measures))
        return judge(tasks, measures, tasks.env_id == twin)

    def _noted(self, name: str, env_id: str, table: pd.DataFrame) -> list[dict[str, Any]]:
        """Keep a table for its CSV file, with a column for each end of an interval, and return its rows."""
        rows = [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]
        if rows:
            wide = [{key + end: of for key, cell in row.items() for end, of in _ends(cell).items()} for row in rows]
            self.numbers.setdefault(name, []).append(pd.DataFrame(wide).assign(env_id=env_id))
        return rows

    def _save(self, name: str, figure: Figure) -> dict[str, str]:
        buffer = io.BytesIO()
        with mpl.rc_context(figures.STYLE):
            figure.savefig(buffer, format="png", dpi=DPI)
            figure.set_layout_engine("none")  # it has found its layout
            figure.savefig(self.folder / f"{name}.pdf")
        (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        return {"name": name, "png": base64.b64encode(buffer.getvalue()).decode("ascii")}

    def _made_with(self) -> dict[str, str]:
        """Say with what the runs were made: every value that occurs, so that a mixture shows."""
        parts = [part for whole in self.used.description for part in (whole, *whole.get("resumed", []))]
        names = {"git_commit": "commit", "cpu": "CPU", "cpus": "CPUs", "python": "Python", "date": "date"}
        facts = [{names[key]: part.get(key) for key in names} | (part.get("versions") or {}) for part in parts]
        return {
            str(name): ", ".join(column.dropna().astype(str).unique()) for name, column in pd.DataFrame(facts).items()
        }


def _ends(cell: Any) -> dict[str, Any]:
    return {"": cell.value, "_low": cell.low, "_high": cell.high} if isinstance(cell, Estimate) else {"": cell}


def _censored(of: dict[str, Estimate], period: int) -> object:
    steps = of.get("recovery_steps")
    return f"> {period:,}" if steps is not None and math.isinf(steps.value) else steps


def by_key(table: pd.DataFrame, *keys: str) -> dict[Any, dict[str, Estimate]]:
    """
    Find the estimates of a tidy table by what they are of.

    :param table: with ``keys``, ``measure``, and the fields of an :class:`Estimate`
    :param keys: columns
    :return: by the value of the key (the tuple of several), measures with their estimates; those that are NaN left out
    """
    found: dict[Any, dict[str, Estimate]] = {}
    for row in table.to_dict("records"):
        of = found.setdefault(row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys), {})
        if row["value"] == row["value"]:
            of[str(row["measure"])] = Estimate(row["value"], row["low"], row["high"], int(row["n"]))
    return found
