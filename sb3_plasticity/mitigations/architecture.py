"""
Activations that help to keep plasticity, for ``policy_kwargs`` of any algorithm of SB3 and sb3-contrib.

All of them keep the width, take no arguments and add no parameters, so SB3's own ``activation_fn`` takes them: in
Python by the class, in YAML by its path, ``activation_fn: sb3_plasticity.mitigations.LayerNormReLU``.
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
    Layer norm, then ReLU: the layer norm stands before the nonlinearity, as in Lyle et al. (2024) and Prakash et al.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450; for plasticity Lyle et al. 2023,
    https://arxiv.org/abs/2303.01486. Without gain and offset: nothing is left that decay could pull on.
    """

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width)
        :return: of the same shape
        """
        return F.relu(normalize_units(units))


class LayerNormTanh(nn.Module):
    """Layer norm, then tanh; see :class:`LayerNormReLU`."""

    def forward(self, units: th.Tensor) -> th.Tensor:
        """
        Apply it.

        :param units: (N, units) or (N, channels, height, width)
        :return: of the same shape
        """
        return th.tanh(normalize_units(units))


class CReLU(nn.Module):
    """
    Concatenated ReLU of half the units: (relu(z), relu(-z)) for the first half z, so that no direction is ever dead.

    Source: Abbas et al. 2023, https://arxiv.org/abs/2303.07507. They double the width; here it is kept, because the
    layer that reads the units is already made. Of an even number of units the first half is used: exactly the network
    whose linear layer has half the outputs. The second half's weights have no effect and no gradient.
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
    Deep Fourier features: (sin z, cos z) for the first half z of the units.

    Source: Lewandowski et al. 2024, https://arxiv.org/abs/2410.20634. They double the width; here it is kept, see
    :class:`CReLU`. Dormant and dead units mean nothing for these features.
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
