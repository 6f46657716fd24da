"""Measures of plasticity: pure functions of a layer's features and of its parameters."""

from collections.abc import Iterable

import torch as th

from sb3_plasticity.common.checks import check_number, must_be

# The threshold of Sokar et al. (2023) in their default setting.
DORMANT_TAU = 0.025
# The default threshold of Liu et al. (2025).
GRAMA_TAU = 0.01
# Above this, tanh's derivative 1 - h^2 is below 0.02.
SATURATION = 0.99


def stable_rank(features: th.Tensor) -> th.Tensor:
    r"""
    Compute the stable rank of a layer's features, uncentred.

    .. math:: \frac{\lVert A \rVert_F^2}{\lVert A \rVert_2^2} = \frac{\sum_i \sigma_i^2}{\max_i \sigma_i^2}

    (Rudelson and Vershynin 2007, *Sampling from large matrices*.) It lies between 1 and the rank, and small singular
    values hardly move it. Not to be confused with the count of singular values that make up 99% of their sum: Kumar et
    al. (2021) call that one srank, and some of the literature on plasticity calls it the stable rank.

    :param features: (N, d), a row per sample; any floating dtype
    :return: scalar, float64; 0 for all-zero features
    :raises ValueError: for another shape or dtype, an empty matrix, or a NaN or infinity
    """
    _check_matrix("features", features)
    values = features.detach()
    if values.dtype != th.float64:
        values = values.to(th.float32)
    largest = values.abs().amax()
    if not largest > 0:
        return th.zeros((), dtype=th.float64, device=features.device)
    values = values / largest  # squares of very small or large entries would leave float32's range
    # float64 for the eigenvalues: in float32 LAPACK returns NaN for some Gram matrices of ReLU features.
    gram = (values @ values.mT if len(values) < values.shape[1] else values.mT @ values).to(th.float64)
    value: th.Tensor = gram.trace() / th.linalg.eigvalsh(gram)[-1]
    return value


def dormant_units(features: th.Tensor, tau: float = DORMANT_TAU) -> th.Tensor:
    r"""
    Find the units of a layer that are tau-dormant.

    Unit i with activation :math:`h_i` is if its score, the mean activation relative to the layer's, is at most tau:

    .. math:: s_i = \frac{E|h_i|}{\frac{1}{d} \sum_k E|h_k|} \le \tau

    (Sokar et al. 2023, *The Dormant Neuron Phenomenon in Deep Reinforcement Learning*, definition 3.1; 0.025 is their
    tau for the default setting of DQN, 0.1 for their others.) All units of an all-zero layer are dormant. Activations
    whose magnitude has a floor, such as a sigmoid's around 0.5, never are.

    :param features: (N, d) activations, a row per sample (and position, of a convolution)
    :param tau: threshold on the score, >= 0
    :return: (d,) bool
    :raises ValueError: for a negative or non-finite ``tau``, another shape or dtype, or a NaN or infinity
    """
    check_number("tau", tau, at_least=0)
    _check_matrix("features", features)
    activity = features.detach().to(th.float64).abs().mean(0)
    return activity <= tau * activity.mean()


def dead_units(features: th.Tensor) -> th.Tensor:
    """
    Find the units of a layer that are exactly zero in every row: no gradient reaches a ReLU's incoming weights there.

    (Dormancy at tau = 0. Only activations with a flat zero, ReLU and its like, have such units; for tanh see
    :func:`saturated_units`.)

    :param features: (N, d) activations
    :return: (d,) bool
    :raises ValueError: for another shape or dtype, an empty matrix, or a NaN or infinity
    """
    _check_matrix("features", features)
    return (features.detach() == 0).all(0)


def saturated_units(features: th.Tensor, threshold: float = SATURATION) -> th.Tensor:
    """
    Find the units of a tanh layer that are saturated, which is what a dead unit is to ReLU.

    A unit is if |h| > ``threshold`` in every row: at 0.99 the derivative 1 - h^2 is below 0.02, so almost no gradient
    reaches its incoming weights. (This package's definition: there is no agreed one.)

    :param features: (N, d) activations of a tanh
    :param threshold: on |h|, in (0, 1)
    :return: (d,) bool
    :raises ValueError: for ``threshold`` outside (0, 1), another shape or dtype, or a NaN or infinity
    """
    check_number("threshold", threshold, above=0, below=1)
    _check_matrix("features", features)
    return (features.detach().abs() > threshold).all(0)


def inactive_gradients(weight_gradients: th.Tensor, tau: float = GRAMA_TAU) -> th.Tensor:
    r"""
    Find the units of a layer that hardly receive gradients: GraMa's counterpart of dormancy.

    Unit i with incoming weights :math:`W_i` is inactive if its gradients' mean magnitude, relative to the layer's, is
    at most tau:

    .. math:: s_i = \frac{\mathrm{mean}_j |\partial L / \partial W_{ij}|}
        {\frac{1}{d} \sum_k \mathrm{mean}_j |\partial L / \partial W_{kj}|} \le \tau

    (Liu et al. 2025, *Measure gradients, not activations!*, arXiv 2505.24061; in the form that resets by it, ReGraMa,
    use. 0.01 is their default.) It needs no particular activation. Without any gradient all units are inactive.

    :param weight_gradients: (d, inputs), a row per unit
    :param tau: threshold on the score, >= 0
    :return: (d,) bool
    :raises ValueError: for a negative or non-finite ``tau``, another shape or dtype, or a NaN or infinity
    """
    check_number("tau", tau, at_least=0)
    _check_matrix("weight_gradients", weight_gradients)
    magnitude = weight_gradients.detach().to(th.float64).abs().mean(1)
    return magnitude <= tau * magnitude.mean()


def row_cosine(weight: th.Tensor) -> th.Tensor:
    r"""
    Measure how parallel the rows of a weight matrix are: mean :math:`|\cos(W_i, W_j)|` over pairs of different rows.

    0 for orthogonal rows, 1 for parallel ones, which compute the same (Chung et al. 2024, *Parseval regularization for
    continual reinforcement learning*, who report the rows' cosine similarity). Rows of zeros are orthogonal to all.

    :param weight: (d_out, d_in)
    :return: scalar, float64; 0 for a single row
    :raises ValueError: for another shape or dtype, or a NaN or infinity
    """
    _check_matrix("weight", weight)
    rows = th.nn.functional.normalize(weight.detach().to(th.float64), dim=1, eps=1e-300)
    count = len(rows)
    if count < 2:
        return rows.new_zeros(())
    return ((rows @ rows.mT).abs().sum() - rows.square().sum()) / (count * (count - 1))


def largest_singular_value(weight: th.Tensor) -> th.Tensor:
    """
    Compute the spectral norm of a weight matrix, by which it can stretch its input at most.

    :param weight: (d_out, d_in)
    :return: scalar, float64
    :raises ValueError: for another shape or dtype, or a NaN or infinity
    """
    _check_matrix("weight", weight)
    matrix = weight.detach().to(th.float64)
    gram = matrix @ matrix.mT if len(matrix) < matrix.shape[1] else matrix.mT @ matrix
    value: th.Tensor = th.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt()
    return value


def euclidean_norm(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """
    Compute the Euclidean norm of all entries of some tensors together.

    :param tensors: of any shapes, of one device
    :return: scalar, float64; 0 for none
    """
    squares = [tensor.detach().to(th.float64).square().sum() for tensor in tensors]
    return th.stack(squares).sum().sqrt() if squares else th.zeros((), dtype=th.float64)


def _check_matrix(name: str, values: th.Tensor) -> None:
    if not isinstance(values, th.Tensor) or not values.is_floating_point():
        found = f"a tensor of {values.dtype}" if isinstance(values, th.Tensor) else type(values).__name__
        raise ValueError(f"`{name}` must be a tensor of floating-point numbers, got {found}")
    if values.ndim != 2 or 0 in values.shape:
        raise must_be(name, "of two axes, none of length 0", tuple(values.shape))
    if not bool(th.isfinite(values.detach()).all()):
        raise ValueError(f"{name} contain NaN or infinity")
