"""``sb3-plasticity study run | report``, or ``python -m sb3_plasticity.study run | report``."""

import argparse
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from sb3_plasticity.zoo.commands import Command, main, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands ``run`` and ``report``, and their options, to the parser."""
    commands = parser.add_subparsers(dest="study_command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="train methods x seeds x environments; finished runs are skipped, killed ones resumed"
    )
    run.add_argument("study", type=Path, help="study file (YAML)")
    run.add_argument("-f", "--out", type=Path, help="folder of the runs (default: runs/<name of the study>)")
    run.add_argument("--jobs", type=whole(1), help="runs at a time (default: as many as there is room for)")
    place = run.add_mutually_exclusive_group()
    place.add_argument("--ray", metavar="ADDRESS", help="train on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    place.add_argument(
        "--slurm",
        nargs="*",
        type=_pair,
        metavar="NAME=VALUE",
        help="train as a Slurm job array; options of sbatch, such as partition=gpu timeout_min=240 account=me "
        "(cluster=local tries it out on this machine)",
    )

    report = commands.add_parser("report", help="write the page, the figures and the tables of runs")
    report.add_argument("runs", type=Path, help="folder of a study, or any folder with runs below it, such as logs/")
    report.add_argument("--out", type=Path, help="folder of the report (default: a new one in the folder of the runs)")
    report.add_argument("--baseline", metavar="METHOD", help="compare with this method (default: the study's)")


def run(options: argparse.Namespace) -> int:
    """Run ``study run`` or ``study report``; the exit status is 1 if a run crashed."""
    return {"run": _run, "report": _report}[options.study_command](options)


def _run(options: argparse.Namespace) -> int:
    from sb3_plasticity.study.matrix import run_study

    # A cluster's way to end a job is an interrupt, too: what was started has to be ended.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        slurm = None if options.slurm is None else dict(options.slurm)
        return run_study(options.study, options.out, options.jobs, options.ray, slurm)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command resumes from the last checkpoints") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(options: argparse.Namespace) -> int:
    from sb3_plasticity.study.report import write_report

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        print(write_report(options.runs, options.out, options.baseline))
    return 0


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"must be name=value, got {text!r}")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    command = Command("sb3_plasticity.study.__main__", "a matrix of runs and its report", "study")
    sys.exit(main({"study": command}, "sb3-plasticity", ["study", *sys.argv[1:]]))
