"""``python -m sb3_plasticity.study run | report``."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

MISSING = [name for name in ("rl_zoo3", "scipy", "jinja2") if importlib.util.find_spec(name) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: of the command line; None for those of this process
    :return: exit status: 0, 1 if a run crashed, 2 for a mistake in what was given, 130 after an interrupt
    """
    options = _parser().parse_args(arguments)
    if MISSING:
        print(f"error: {', '.join(MISSING)} not installed: pip install 'sb3-plasticity[study]'", file=sys.stderr)
        return 2
    from sb3_plasticity.zoo.errors import UsageError

    # A cluster's way to end a job is an interrupt, too: what was started has to be ended.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    except UsageError as error:
        if options.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: argparse.Namespace) -> int:
    from sb3_plasticity.study.matrix import run_study

    jobs = options.jobs if options.ray or options.jobs else os.cpu_count()
    return run_study(Path(options.study), options.out and Path(options.out), jobs, options.ray)


def _train(options: argparse.Namespace) -> int:
    from sb3_plasticity.study.matrix import train_run

    return train_run(Path(options.runs), options.name)


def _report(options: argparse.Namespace) -> int:
    from sb3_plasticity.study.report import write_report

    print(write_report(Path(options.runs), options.out and Path(options.out)))
    return 0


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: accepted are whole numbers >= 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sb3-plasticity study", description="A matrix of runs and its report.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train methods x seeds x environments; what is finished is skipped, what was killed goes on",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("study", help="study file (YAML)")
    run.add_argument("-f", "--out", help="folder of the runs (default: runs/<name of the study>)")
    run.add_argument("--jobs", type=_positive, help="runs at a time (default: one for each CPU)")
    run.add_argument("--ray", metavar="ADDRESS", help="train on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    run.set_defaults(run=_run)

    report = commands.add_parser("report", help="write the page, the figures and the tables of a study")
    report.add_argument("runs", help="folder of the runs")
    report.add_argument("--out", help="folder of the report (default: a new one in the folder of the runs)")
    report.set_defaults(run=_report)

    train = commands.add_parser("train", help="train one run of a study that was set up by run")
    train.add_argument("runs", help="folder of the runs")
    train.add_argument("name", help="the run's folder in it: <env id>/<method>/seed_<n>")
    train.set_defaults(run=_train)
    return parser


if __name__ == "__main__":
    sys.exit(main())
