"""``sb3-plasticity record_video``: film a trained agent."""

import argparse
from pathlib import Path

from rich.progress import track
from stable_baselines3.common.vec_env import VecVideoRecorder

from sb3_plasticity.zoo.checkpoints import steps_in
from sb3_plasticity.zoo.errors import UsageError
from sb3_plasticity.zoo.options import add_agent_options
from sb3_plasticity.zoo.shown import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    add_agent_options(parser)
    parser.add_argument("-o", "--output-folder", metavar="DIR", help="of the film (default: the run's videos)")


def run(options: argparse.Namespace) -> int:
    """
    Film an agent; the film's name says which one, at which step, in which task.

    :param options: of the command line
    :return: exit status
    :raises UsageError: if nothing can be drawn or filmed
    """
    shown = show(options, render_mode="rgb_array")
    if shown.task:
        print(shown.task)
    folder = Path(options.output_folder or shown.path.parent / "videos")
    task = "" if options.task is None else f"-task-{options.task}"
    path = free_path(folder / f"{shown.spec.algo}-{shown.path.stem}-at-{steps_in(shown.path)}{task}.mp4")
    n = options.n_timesteps
    try:
        recorder = VecVideoRecorder(shown.env, str(folder), lambda step: step == 0, n, name_prefix=path.stem)
        shown.env = recorder
        for _ in track(shown.steps(n), "Filming", total=n):
            pass
    except KeyboardInterrupt:
        pass
    except (ImportError, RuntimeError, ValueError, AttributeError) as error:
        raise UsageError(f"--env {shown.spec.env_id}: it cannot be filmed: {error}") from error
    finally:
        shown.env.close()
    Path(recorder.video_path).rename(path)
    print(f"Film: {path}")
    return 0


def free_path(path: Path) -> Path:
    """
    Find a name that is not taken.

    :param path: of a file
    :return: the path, or ``<name>-2``, ``<name>-3``, ...
    """
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
