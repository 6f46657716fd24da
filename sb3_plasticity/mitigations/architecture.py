"""
Architectures: activations that help to keep plasticity, for ``policy_kwargs`` of any algorithm of SB3 and sb3-contrib.

All of them keep the width of a layer, take no arguments and add no parameters, so they can be used as SB3's
``activation_fn``. In Python, pass the class; in YAML, its path: ``activation_fn:
sb3_plasticity.mitigations.LayerNormReLU``.
"""

import torch as th
from torch import nn
from torch.nn import functional as F


def normalize_units(units: th.Tensor) -> th.Tensor:
    """
    Normalise each sample's units to mean 0 and variance 1 (Ba et al. 2016), without gain or offset.

    :param units: (N, units), or (N, channels, height, width), where each position's channels are normalised
    :return: of the same shape
    """
    if units.ndim == 4:
        return F.layer_norm(units.movedim(1, -1), units.shape[1:2]).movedim(-1, 1)
    return F.layer_norm(units, units.shape[-1:])


class LayerNormReLU(nn.Module):
    """
    Apply layer norm and then ReLU, as in Lyle et al. (2024) and Prakash et al. (2026).

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450; for plasticity Lyle et al. 2023,
    https://arxiv.org/abs/2303.01486. The normalisation has no gain and no offset, so it has no parameters that decay
    could change.
    """

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width)
        :return: of the same shape
        """
        return F.relu(normalize_units(units))


class LayerNormTanh(nn.Module):
    """Apply layer norm and then tanh; see :class:`LayerNormReLU`."""

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width)
        :return: of the same shape
        """
        return th.tanh(normalize_units(units))


class CReLU(nn.Module):
    """
    Concatenate the ReLUs of half of the units and of their negatives, (relu(z), relu(-z)), so that no direction is ever
    dead.

    Source: Abbas et al. 2023, https://arxiv.org/abs/2303.07507. The published version doubles the width. Here the width
    is kept, because the layer that reads the units already exists. Of an even number of units, the first half is used,
    which is exactly the network whose linear layer has half as many outputs. The weights of the second half have no
    effect and no gradient.
    """

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width), an even number of units
        :return: of the same shape
        :raises ValueError: for an odd number of units
        """
        half = _first_half(units, "CReLU")
        return th.cat([F.relu(half), F.relu(-half)], dim=1)


class FourierFeatures(nn.Module):
    """
    Concatenate the sines and the cosines of half of the units, (sin z, cos z) (deep Fourier features).

    Source: Lewandowski et al. 2024, https://arxiv.org/abs/2410.20634. The published version doubles the width; here it
    is kept, see :class:`CReLU`. Dormant and dead units are not meaningful for these features.
    """

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width), an even number of units
        :return: of the same shape
        :raises ValueError: for an odd number of units
        """
        half = _first_half(units, "FourierFeatures")
        return th.cat([th.sin(half), th.cos(half)], dim=1)


def _first_half(units: th.Tensor, name: str) -> th.Tensor:
    count = units.shape[1]
    if count % 2:
        raise ValueError(f"`net_arch` must have layers of an even number of units for {name}, got {count}")
    return units[:, : count // 2]
