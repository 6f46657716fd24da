"""
Pictures without a display, and the task written into them.

Left to itself, Gymnasium tries GLFW first, which on a machine without a display yields no OpenGL context and then an
error that says nothing, or an abort. Here EGL or OSMesa is chosen when the first picture is asked for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from typing import Any

import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

__all__ = ["headless_backend", "render"]

# what mujoco.egl and mujoco.osmesa load
LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}

ADVICE = (
    "install EGL (Debian and Ubuntu: libegl1 libgl1-mesa-dri) or OSMesa (libosmesa6), or set the environment variable "
    "MUJOCO_GL to 'egl', 'osmesa' or, where there is a display, 'glfw'"
)


def has_display() -> bool:
    """Whether a window could be opened; only on Linux can one tell from the environment."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def headless_backend() -> str | None:
    """
    Choose how to draw off screen.

    :return: ``"egl"`` or ``"osmesa"``, or None to leave the choice to Gymnasium: someone has set ``MUJOCO_GL``, or
        there is a display
    :raises RuntimeError: if there is no display and neither library
    """
    if os.environ.get("MUJOCO_GL") or has_display():
        return None
    for backend, library in LIBRARIES.items():
        if find_library(library) is not None:
            return backend
    raise RuntimeError(f"Rendering without a display needs EGL or OSMesa, and neither is installed: {ADVICE}.")


def render(renderer: MujocoRenderer, render_mode: str | None, overlay: dict[str, str] | None = None) -> Any:
    """
    Draw a simulation.

    :param renderer: that of the environment
    :param render_mode: as of the environment
    :param overlay: names and values to write into the upper left corner
    :return: what the render mode promises
    :raises RuntimeError: if no OpenGL context can be made
    """
    if render_mode is None:
        return renderer.render(render_mode)  # says what is wrong
    viewer = _viewer(renderer, render_mode)
    if render_mode != "human":
        # each environment has a context of its own, and the one made last would be drawn into
        viewer.make_context_current()
    if overlay:
        viewer._overlays.clear()
        for name, value in overlay.items():
            viewer.add_overlay(mujoco.mjtGridPos.mjGRID_TOPLEFT, name, value)
    return renderer.render(render_mode)


def _viewer(renderer: MujocoRenderer, render_mode: str | None) -> Any:
    if render_mode in renderer._viewers:
        return renderer._get_viewer(render_mode)
    if render_mode == "human":
        if not has_display():
            raise RuntimeError("`render_mode` must be 'rgb_array' where there is no display, got 'human'")
        return renderer._get_viewer(render_mode)
    with _environment(MUJOCO_GL=headless_backend()):
        try:
            return renderer._get_viewer(render_mode)
        # the libraries fail in as many ways as there are drivers
        except Exception as error:
            backend = os.environ.get("MUJOCO_GL", "glfw")
            raise RuntimeError(f"No OpenGL context with {backend!r} ({error}): {ADVICE}.") from error


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables for a while; those that are None stay as they are."""
    before = {name: os.environ.get(name) for name, value in variables.items() if value is not None}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
