"""``sb3-plasticity doctor``: what this installation can do, and what to install for what it cannot."""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.requirements import Requirement

from sb3_plasticity.common.checks import nearest
from sb3_plasticity.zoo.errors import UsageError

DISTRIBUTION = "sb3-plasticity"
# These run in processes of their own: a missing display or a broken compiler may abort one.
RENDER = """
import gymnasium as gym, sb3_plasticity
env = gym.make("SlipperyAnt-v0", render_mode="rgb_array")
env.reset(seed=0)
print(env.render().shape[1::-1])
"""
COMPILE = """
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
compiler = get_cpp_compiler()
x = torch.linspace(0, 1, 7)
assert torch.allclose(torch.compile(lambda x: x.sin() + x)(x), x.sin() + x)
print(compiler)
"""
SIMULATE = """
import mujoco, numpy as np
from sb3_plasticity import make_nonstationary_vec_env
env = make_nonstationary_vec_env("SlipperyAnt-v0", 2, seed=0)
env.reset()
env.step(np.zeros((2, 8)))
batched = type(env.unwrapped).__name__ == "MujocoBatchVecEnv"
print("MuJoCo", mujoco.__version__, "with batches of simulations" if batched else "without batches of simulations")
"""


# What users may install beside the package itself; the first that brings something is named.
EXTRAS = ("zoo", "study", "ray", "slurm", "minatar", "minigrid")


class Finding(NamedTuple):
    """
    One line of the report.

    :param state: ``"ok"``, ``"missing"`` (something is needed) or ``"without"`` (something optional is not there)
    :param name: what was looked at
    :param value: what was found
    :param advice: what to do about it, if anything
    """

    state: str
    name: str
    value: str
    advice: str = ""


def requirements() -> Iterator[Finding]:
    """Compare what the package declares with what is installed, the extras for users included."""
    try:
        declared = metadata.requires(DISTRIBUTION) or []
        yield Finding("ok", DISTRIBUTION, metadata.version(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        yield Finding("missing", DISTRIBUTION, "not installed", f"pip install {DISTRIBUTION}")
        return
    seen = set[str]()
    for requirement in map(Requirement, declared):
        marker = requirement.marker
        optional = marker is not None and not marker.evaluate({"extra": ""})
        extra = next((name for name in EXTRAS if optional and marker and marker.evaluate({"extra": name})), "")
        if (optional and not extra) or requirement.name == DISTRIBUTION or requirement.name in seen:
            continue
        seen.add(requirement.name)
        advice = f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install '{requirement}'"
        lack = "without" if optional else "missing"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(lack, requirement.name, "not installed", advice)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield (
            Finding("ok", requirement.name, version)
            if fits
            else Finding(lack, requirement.name, f"{version}, tested is {requirement.specifier}", advice)
        )


def threads() -> Iterator[Finding]:
    """Count processors and threads."""
    import torch as th

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "processors", str(available))
    limit = os.environ.get("OMP_NUM_THREADS")
    advice = "OMP_NUM_THREADS=1 is often faster for networks this small" if th.get_num_threads() > 1 else ""
    yield Finding("ok", "torch threads", f"{th.get_num_threads()} (OMP_NUM_THREADS={limit})", advice)
    yield Finding("ok", "GPU", th.cuda.get_device_name() if th.cuda.is_available() else "none (MlpPolicy needs none)")


def simulation() -> Iterator[Finding]:
    """Step our environments, in a batch where MuJoCo can."""
    done, text = run_code(SIMULATE)
    if done and "without" in text:
        advice = "they are stepped one by one; from MuJoCo 3.17 on all share a pool of threads: pip install -U mujoco"
        yield Finding("without", "simulation", text, advice)
    else:
        yield Finding("ok" if done else "missing", "simulation", text, "" if done else "pip install -U mujoco")


def rendering() -> Iterator[Finding]:
    """Draw a picture with each of MuJoCo's backends, and look for what makes films."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    yield Finding(
        "ok" if display else "without", "display", display or "none", "" if display else "enjoy draws nothing"
    )
    works = []
    for backend, library, advice in (
        ("egl", "EGL", "Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri"),
        ("osmesa", "OSMesa", "Debian, Ubuntu: apt install libosmesa6"),
        ("glfw", "", "needs a display"),
    ):
        if library and sys.platform == "linux" and find_library(library) is None:
            done, text = False, f"lib{library} not installed"
        elif backend == "glfw" and not display:
            done, text = False, "no display"
        else:
            done, text = run_code(RENDER, MUJOCO_GL=backend)
        works += [backend] * done
        yield Finding("ok" if done else "without", f"MUJOCO_GL={backend}", text, "" if done or works else advice)
    if not works:
        yield Finding("without", "pictures", "no backend works", "record_video needs one of the above")
    found = find_spec("pygame") is not None  # pygame or pygame-ce
    advice = "" if found else "CartPole and its like are drawn with it: pip install pygame-ce"
    yield Finding("ok" if found else "without", "pygame", "installed" if found else "not installed", advice)
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        yield Finding("ok", "ffmpeg", get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        yield Finding("without", "ffmpeg", str(error), f"record_video: pip install '{DISTRIBUTION}[zoo]'")


def compiler() -> Iterator[Finding]:
    """Compile a function as ``compile=True`` would."""
    done, text = run_code(COMPILE)
    advice = "PPO_L2ER(compile=True): Debian, Ubuntu: apt install g++ python3-dev"
    yield Finding("ok" if done else "without", "torch.compile", text, "" if done else advice)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "packages": requirements,
    "threads": threads,
    "simulation": simulation,
    "rendering": rendering,
    "compiler": compiler,
}


def run_code(code: str, **environment: str) -> tuple[bool, str]:
    """
    Run Python code in a process of its own.

    :param code: prints what it found
    :param environment: variables to set
    :return: whether it succeeded, and the last line that it wrote
    """
    try:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return False, "no answer within 300 seconds"
    lines = [
        line for line in (process.stdout if process.returncode == 0 else process.stderr).splitlines() if line.strip()
    ]
    return process.returncode == 0, lines[-1].strip() if lines else f"exit status {process.returncode}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the command's options.

    :param parser: of the command
    """
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"one or more of {', '.join(CHECKS)}; all if none")


def run(options: argparse.Namespace) -> int:
    """
    Report on the installation, as it is found.

    :param options: of the command line
    :return: exit status: 1 if something is missing that every use needs
    :raises UsageError: for a check that there is not
    """
    chosen = options.checks or list(CHECKS)
    for name in chosen:
        if name not in CHECKS:
            raise UsageError(f"doctor: must be of {', '.join(CHECKS)}, got {name!r}{nearest(name, CHECKS)}")
    print(f"Python {platform.python_version()}, {platform.platform()}", flush=True)
    status = 0
    for name in chosen:
        print(f"\n{name}", flush=True)
        try:
            for finding in CHECKS[name]():
                status |= finding.state == "missing"
                advice = f"  -> {finding.advice}" if finding.advice else ""
                print(f"  {finding.state:<8} {finding.name:<20} {finding.value}{advice}", flush=True)
        except ImportError as error:
            status = 1
            print(f"  missing  {name:<20} {error}")
    return int(status)
