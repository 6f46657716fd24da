"""Training that is spoiled already is named where it began, before distributions and losses hide that."""

from collections.abc import Mapping
from typing import Any

import torch as th
from torch.utils import _pytree as pytree


def check_finite(where: str, samples: Any, policy: Mapping[str, th.Tensor]) -> None:
    """
    Refuse transitions and weights that hold a NaN or infinity.

    :param where: who found it and when, such as ``"CurvatureCallback at 64 timesteps"``
    :param samples: transitions, a NamedTuple of tensors
    :param policy: tensors of the policy by name
    :raises FloatingPointError: naming the first term that is not finite
    """
    terms = [(f"{getattr(p[0], 'name', p[0])} of the transitions", t) for p, t in pytree.tree_leaves_with_path(samples)]
    terms += [(f"{name} of the policy", tensor) for name, tensor in policy.items()]
    for term, tensor in terms:
        if tensor.is_floating_point() and not bool(th.isfinite(tensor).all()):
            raise FloatingPointError(f"{where}, {term}: NaN or infinity")
