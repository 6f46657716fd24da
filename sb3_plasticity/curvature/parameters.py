"""Named parameters as one flat vector, and casting of nested batches."""

from typing import Any

import torch as th
from torch.utils import _pytree as pytree


class FlatView:
    """
    The shapes of named parameters, in order, and the way between them and one flat vector.

    :param params: name -> tensor
    """

    def __init__(self, params: dict[str, th.Tensor]) -> None:
        self.shapes = {name: value.shape for name, value in params.items()}
        self.sizes = [value.numel() for value in params.values()]
        self.size = sum(self.sizes)

    def split(self, vector: th.Tensor) -> list[th.Tensor]:
        """
        Split a flat vector into views of its pieces.

        :param vector: (size,)
        :return: a tensor of each parameter's shape
        """
        return [
            piece.view(shape) for piece, shape in zip(th.split(vector, self.sizes), self.shapes.values(), strict=True)
        ]

    def flatten(self, values: dict[str, th.Tensor]) -> th.Tensor:
        """
        Join all values into one vector.

        :param values: name -> tensor, in any order
        :return: (size,)
        """
        return th.cat([values[name].reshape(-1) for name in self.shapes])

    def unflatten(self, vector: th.Tensor) -> dict[str, th.Tensor]:
        """
        Name the pieces of a flat vector.

        :param vector: (size,)
        :return: name -> tensor
        """
        return dict(zip(self.shapes, self.split(vector), strict=True))


def check_params(params: dict[str, th.Tensor]) -> None:
    """
    Refuse what is not a set of floating point tensors with at least one number among them.

    :param params: name -> tensor
    :raises ValueError: naming the offender
    """
    for name, value in params.items():
        if not isinstance(value, th.Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, th.Tensor) else type(value).__name__
            raise ValueError(f"`params[{name!r}]` must be a floating point tensor, got {found}")
    if sum(value.numel() for value in params.values()) == 0:
        raise ValueError(f"`params` must hold one or more numbers, got {sorted(params)}: the network has none")


def cast_floating(tree: Any, dtype: th.dtype | None) -> Any:
    """
    Cast every floating point tensor in a nest of tuples, lists and dicts.

    :param tree: tensors and anything else, nested
    :param dtype: target; None leaves all as it is
    :return: the same nest
    """
    if dtype is None:
        return tree
    return pytree.tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, th.Tensor) and leaf.is_floating_point() else leaf, tree
    )
