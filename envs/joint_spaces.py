"""Spaces of several environments in one: padded where that is possible, refused by name where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space, spaces

__all__ = ["cut", "join_actions", "join_observations", "pad"]


def join_observations(by_name: Mapping[str, Space[Any]]) -> Space[Any]:
    """
    Find a space that holds the observations of every environment.

    Equal spaces stay. Boxes of equally many dimensions are padded with zeros at the end of each dimension; of Discrete
    spaces the largest is taken.

    :param by_name: observation spaces by the name of the task
    :return: the space
    :raises ValueError: for spaces that cannot be joined, with their tasks
    """
    several = list(by_name.values())
    first = several[0]
    if all(space == first for space in several):
        return first
    if all(isinstance(space, spaces.Box) and len(space.shape) == len(first.shape or ()) for space in several):
        boxes = [space for space in several if isinstance(space, spaces.Box)]
        dtype = np.result_type(*(box.dtype for box in boxes))
        shape = tuple(np.max([box.shape for box in boxes], axis=0).tolist())
        low = np.min([pad(box.low, shape, dtype) for box in boxes], axis=0)
        high = np.max([pad(box.high, shape, dtype) for box in boxes], axis=0)
        return spaces.Box(low, high, shape, dtype.type)
    return _largest_discrete(
        by_name, "observation", "Boxes of equally many dimensions, or Discrete from the same number"
    )


def join_actions(by_name: Mapping[str, Space[Any]]) -> Space[Any]:
    """
    Find a space from which every environment can take its actions.

    Equal spaces stay. Of Discrete spaces the largest is taken, of flat Boxes the longest if the shorter ones have the
    bounds of its beginning.

    :param by_name: action spaces by the name of the task
    :return: the space
    :raises ValueError: for spaces that cannot be joined, with their tasks
    """
    several = list(by_name.values())
    if all(space == several[0] for space in several):
        return several[0]
    boxes = [space for space in several if isinstance(space, spaces.Box) and len(space.shape) == 1]
    if len(boxes) == len(several):
        longest = max(boxes, key=lambda box: box.shape[0])
        if all(
            np.array_equal(box.low, longest.low[: len(box.low)])
            and np.array_equal(box.high, longest.high[: len(box.high)])
            for box in boxes
        ):
            return longest
    return _largest_discrete(by_name, "action", "Discrete, or flat Boxes of the same bounds")


def _largest_discrete(by_name: Mapping[str, Space[Any]], what: str, accepted: str) -> Space[Any]:
    several = [space for space in by_name.values() if isinstance(space, spaces.Discrete)]
    if len(several) == len(by_name) and len({int(space.start) for space in several}) == 1:
        return max(several, key=lambda space: int(space.n))
    given = ", ".join(f"{name}: {space}" for name, space in by_name.items())
    raise ValueError(f"`tasks` must have {what} spaces that can be joined ({accepted}), got {given}")


def pad(array: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """
    Fill an array up with zeros.

    :param array: of as many dimensions as the shape
    :param shape: at least as large in each
    :param dtype: of the result
    :return: of the shape, with the array at the beginning of each dimension
    """
    array = np.asarray(array)
    if array.shape == tuple(shape):
        return array.astype(dtype, copy=False)
    padded = np.zeros(shape, dtype)
    padded[tuple(slice(0, length) for length in array.shape)] = array
    return padded


def cut(action: Any, space: Space[Any]) -> Any:
    """
    Turn an action of the joint space into one of an environment's own.

    :param action: of the joint space
    :param space: of the environment. A Discrete action that it lacks is its first one, surplus coordinates are dropped.
    :return: an action of ``space``
    """
    if isinstance(space, spaces.Discrete):
        return action if action < space.start + space.n else int(space.start)
    return action[: space.shape[0]] if isinstance(space, spaces.Box) and space.shape != np.shape(action) else action
