"""``sb3-plasticity record_video``: film a trained agent."""

import argparse
from pathlib import Path

from rich.progress import track
from stable_baselines3.common.vec_env import VecVideoRecorder

from sb3_plasticity.common.files import numbered
from sb3_plasticity.zoo.checkpoints import steps_in
from sb3_plasticity.zoo.errors import mistakes_in
from sb3_plasticity.zoo.trained_agent import TrainedAgent, add_agent_options, load_agent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    add_agent_options(parser)
    parser.add_argument("-o", "--output-folder", metavar="DIR", help="of the film (default: the run's videos)")


def run(options: argparse.Namespace) -> int:
    """Film an agent; the film's name says which one, at which step, in which task."""
    agent = load_agent(options, render_mode="rgb_array")
    if agent.task:
        print(agent.task)
    folder = Path(options.output_folder or agent.path.parent / "videos")
    task = "" if options.task is None else f"-task-{options.task}"
    name = f"{agent.spec.algo}-{agent.path.stem}-at-{steps_in(agent.path)}{task}.mp4"
    path = next(path for path in numbered(folder / name) if not path.exists())
    film(agent, path, options.n_timesteps)
    print(f"Film: {path}")
    return 0


def film(agent: TrainedAgent, path: Path, n_steps: int) -> None:
    """
    Film an agent, and close its environments; an interrupt ends the film early.

    :param agent: with environments that draw pictures
    :param path: of the film
    :param n_steps: its length in environment steps
    :raises UsageError: if nothing can be drawn or filmed
    """
    kinds = (ImportError, RuntimeError, ValueError, AttributeError)
    try:
        with mistakes_in(f"--env {agent.spec.env_id}: it cannot be filmed", *kinds):
            recorder = VecVideoRecorder(
                agent.env, str(path.parent), lambda step: step == 0, n_steps, name_prefix=path.stem
            )
            agent.env = recorder
            for _ in track(agent.steps(n_steps), "Filming", total=n_steps):
                pass
    except KeyboardInterrupt:
        pass
    finally:
        agent.env.close()
    Path(recorder.video_path).rename(path)
