"""
Film every environment of this package while it changes: ``python docs/_scripts/generate_clips.py [ID ...]``.

A clip shows the environment before and after a change, or one period of it if it drifts. The clips are kept in git as
``docs/_static/clips/<id>.gif``, because drawing them needs OpenGL and some of the extras. The trained agent of
``docs/agent`` controls the ants, the other robots swing their motors, and all other environments receive random
actions.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import sb3_plasticity
from sb3_plasticity import PPO_L2ER
from sb3_plasticity.envs.schedules import Sinusoid

DOCS = Path(__file__).parent.parent
CLIPS = DOCS / "_static" / "clips"
AGENT = DOCS / "agent" / "ppo_l2er-SlipperyAnt-v0.zip"
FRAMES, COLOURS, WIDTH, MILLISECONDS = 42, 24, 216, 90
EVERY = 3  # steps of a robot from one picture to the next
# Two values, far apart, of what changes on a robot.
VALUES = {"friction": (1.0, 0.05), "viscosity": (0.1, 3.0)}
# How far (of what the motors can), how fast (steps per radian) and how long after each other (radians) motors swing.
GAITS = {"SlipperyHalfCheetah-v0": (1.0, 2, -1.0), "SlipperySwimmer-v0": (1.0, 4, 1.0)}
SWAY = (0.15, 2, 1.0)
# The share of the picture, in the middle of its lower edge, that is kept of robots which the camera sees from afar.
CLOSER = {"SlipperyHopper-v0": 0.75, "SlipperyHumanoid-v0": 0.62, "SlipperyWalker2d-v0": 0.75}

Act = Callable[[Any, int], Any]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="environments; all of this package if none")
    gym.register_envs(sb3_plasticity)
    ours = sorted(env_id for env_id, spec in gym.registry.items() if "sb3_plasticity" in str(spec.entry_point))
    CLIPS.mkdir(parents=True, exist_ok=True)
    for env_id in parser.parse_args().ids or ours:
        try:
            drift = gym.make(env_id).get_wrapper_attr("schedule")
            frames = list(film_drift(env_id, drift) if isinstance(drift, Sinusoid) else film(env_id))
        except gym.error.DependencyNotInstalled as error:
            print(f"{env_id}: left out: {error}")
            continue
        path = CLIPS / f"{env_id}.gif"
        first, *rest = [frame.quantize(COLOURS, dither=Image.Dither.NONE) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=MILLISECONDS, loop=0, optimize=True)
        print(f"{path.relative_to(DOCS.parent)}: {len(frames)} frames, {path.stat().st_size / 1000:.0f} kB", flush=True)


def film(env_id: str) -> Iterator[Image.Image]:
    """
    Film an environment, half of the time before a change and half after it.

    The ants walk through the change; everything else starts anew, so that both halves show the same motion.

    :param env_id: of the environment
    :return: pictures with the task written below
    """
    schedule = {"kind": "cyclic", "period": 1_000_000}
    env, act, every = robot(env_id, schedule) or world(env_id)
    parameter, share = changing(env), CLOSER.get(env_id, 1.0)
    for task in (0, 1):
        env.get_wrapper_attr("set_task")(task)
        if task == 0 or not walks(env_id):
            observation, _ = env.reset(seed=0)
        for step in range(FRAMES // 2 * every):
            observation, _, terminated, truncated, info = env.step(act(observation, step))
            if terminated or truncated:
                observation, _ = env.reset()
            if step % every == every - 1:
                what = f"{parameter} {info['task_value']:.3g}" if parameter else named(info, observation)
                yield labelled(env.render(), f"{('before', 'after')[task]}: {what}", share)
    env.close()


def film_drift(env_id: str, drift: Sinusoid) -> Iterator[Image.Image]:
    """
    Film a robot over one period of its drift, which is shortened to the length of the clip.

    :param env_id: of the environment
    :param drift: its schedule
    :return: pictures with the phase and the value written below
    """
    steps = FRAMES * EVERY
    made = robot(env_id, dataclasses.replace(drift, period=steps))
    assert made is not None
    env, act, every = made
    observation, _ = env.reset(seed=0)
    for step in range(steps):
        observation, _, terminated, truncated, info = env.step(act(observation, step))
        if terminated or truncated:
            observation, _ = env.reset()
        if step % every == every - 1:
            caption = f"{(step + 1) / steps:.0%} of a period: {changing(env)} {info['task_value']:.2f}"
            yield labelled(env.render(), caption, CLOSER.get(env_id, 1.0))
    env.close()


def robot(env_id: str, schedule: Mapping[str, Any] | Sinusoid) -> tuple[gym.Env[Any, Any], Act, int] | None:
    """
    Make a robot of MuJoCo.

    :param env_id: of the environment
    :param schedule: of what changes; a mapping without values gets two that are far apart
    :return: the environment, what acts, and the steps from one picture to the next; None if it is no such robot
    """
    parameter = getattr(gym.make(env_id).unwrapped, "parameter", None)
    if parameter is None:
        return None
    if isinstance(schedule, Mapping):
        schedule = {"values": list(VALUES[parameter.name]), **schedule}
    width = round(2 * WIDTH / CLOSER.get(env_id, 1.0))
    size: dict[str, Any] = {"width": width, "height": width * 3 // 4, "camera_name": "track"}
    env = gym.make(env_id, render_mode="rgb_array", schedule=schedule, switch="immediate", **size)
    return env, trained() if walks(env_id) else swinging(env.action_space, *GAITS.get(env_id, SWAY)), EVERY


def world(env_id: str) -> tuple[gym.Env[Any, Any], Act, int]:
    """
    Make any other world, and let it act at random.

    :param env_id: of the environment
    :return: the environment, what acts, and the steps from one picture to the next
    """
    env = gym.make(env_id, render_mode="rgb_array")
    env.action_space.seed(0)
    return env, lambda observation, step: env.action_space.sample(), 1


def walks(env_id: str) -> bool:
    """Whether there is a trained agent."""
    return "Ant-" in env_id


def changing(env: gym.Env[Any, Any]) -> str:
    """Name what changes, or nothing if tasks have no value that means something."""
    parameter = env.get_wrapper_attr("parameter") if env.has_wrapper_attr("parameter") else ""
    return getattr(parameter, "name", parameter)


def named(info: dict[str, Any], observation: Any) -> str:
    """Name a task, or show what is observed where nothing else changes."""
    return info.get("task_name") or "sees " + " ".join(f"{number:.1f}" for number in np.ravel(observation))


def trained() -> Act:
    """Load the agent of ``docs/agent``, whose actions are its most probable ones."""
    model = PPO_L2ER.load(AGENT, device="cpu")
    return lambda observation, step: model.predict(observation, deterministic=True)[0]


def swinging(space: gym.Space[Any], amplitude: float, pace: float, lag: float) -> Act:
    """
    Swing the motors, each a little later than the one before.

    :param space: of actions, a Box
    :param amplitude: share of the Box that is used
    :param pace: steps per radian
    :param lag: radians from one motor to the next
    :return: gives an action
    """
    assert isinstance(space, gym.spaces.Box)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    phases = lag * np.arange(len(middle))
    return lambda observation, step: (middle + amplitude * half * np.sin(step / pace - phases)).astype(np.float32)


def labelled(pixels: Any, caption: str, share: float) -> Image.Image:
    """
    Make a picture small and write below it.

    :param pixels: as rendered
    :param caption: a few words
    :param share: of the picture that is kept, around the middle of its lower edge
    :return: a picture of the clips' width
    """
    picture = Image.fromarray(np.asarray(pixels).astype(np.uint8))
    left = (1 - share) / 2 * picture.width
    box = (left, (1 - share) * picture.height, picture.width - left, picture.height)
    height = round(WIDTH * picture.height / picture.width)
    small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS, box=box)
    whole = Image.new("RGB", (WIDTH, height + 22), "white")
    whole.paste(small)
    ImageDraw.Draw(whole).text((6, height + 3), caption, fill="black", font=ImageFont.load_default(13))
    return whole


if __name__ == "__main__":
    main()
