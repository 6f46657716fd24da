"""Saved spectra of a run as one table."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from sb3_plasticity.curvature.spectrum import ForeignFileError, Spectrum

_FIRST_COLUMNS = ("run", "step", "task_index", "network", "kind")


def load_spectra(directory: str | os.PathLike[str], epsilon: Iterable[float] = (1e-3, 1e-2, 1e-1)) -> pd.DataFrame:
    """
    Read every spectrum saved under a directory: a row per measurement, run by run and by step.

    Columns: ``run`` (the folder, relative to ``directory``, whose ``curvature`` folder holds the file), ``step``,
    ``task_index``, ``network``, ``kind`` and whatever else the files' ``info`` holds, ``dim``, the measures of
    :meth:`Spectrum.measures` each followed by its standard error (``<measure>_se``) and the ends of its 98% interval
    (``<measure>_low``, ``<measure>_high``), then ``spectrum`` (the :class:`Spectrum` itself) and ``path``. Other whole
    npz files are passed over, and so are damaged ones, with one warning that names them all.

    :param directory: searched with its subfolders
    :param epsilon: thresholds of the ``epsilon_rank_<eps>`` columns: they need not be those of the run
    :return: the table; empty, with the first columns only, if there is no spectrum
    :raises FileNotFoundError: if there is no such directory
    """
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"directory={os.fspath(directory)!r} does not exist")
    thresholds = tuple(epsilon)
    rows, damaged = [], []
    for path in sorted(root.rglob("*.npz")):
        try:
            spectrum = Spectrum.load(path)
        except ForeignFileError:
            continue
        except (OSError, ValueError) as error:
            damaged.append(f"{path} ({str(error).removeprefix(f'{path} ')})")
            continue
        rows.append({"run": _run(path.relative_to(root))} | _row(spectrum, thresholds) | {"path": str(path)})
    if damaged:
        warnings.warn(f"load_spectra passed over damaged files: {'; '.join(damaged)}")
    if not rows:
        return pd.DataFrame(columns=[*_FIRST_COLUMNS, "dim", "spectrum", "path"])
    table = pd.DataFrame(rows)
    first = [name for name in _FIRST_COLUMNS if name in table.columns]
    table = table[[*first, *(name for name in table.columns if name not in first)]]
    return table.sort_values(first, kind="stable", ignore_index=True)


def _run(path: Path) -> str:
    folder = path.parent
    return (folder.parent if folder.name == "curvature" else folder).as_posix()


def _row(spectrum: Spectrum, epsilon: tuple[float, ...]) -> dict[str, object]:
    row: dict[str, object] = {**spectrum.info, "dim": spectrum.dim}
    for name, value in spectrum.measures(epsilon).items():
        row |= {name: float(value), f"{name}_se": value.standard_error}
        row |= {f"{name}_low": value.low, f"{name}_high": value.high}
    return row | {"spectrum": spectrum}
