"""
Recycling of units: the row that makes a unit starts afresh, the columns that read it are cleared.

Plain torch. Everything is written into the existing tensors, so optimizers keep hold of them.
"""

from collections.abc import Callable, Iterable, Mapping

import torch as th
from torch import nn

from sb3_plasticity.common.units import HiddenLayer

# Running means of squared gradients; every other tensor of a parameter's shape is a first moment or the like.
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_inf"})
# Optimizers that do not start these at 0.
INITIAL_MOMENTS = {("RMSpropTFLike", "square_avg"): 1.0}


class FreshRows:
    """
    Rows of weights from a network's own initialiser, handed out one by one.

    A full matrix is drawn at a time, because an orthogonal one is not made row by row; when its rows are used up, the
    next one is drawn.

    :param fresh: ``fresh(seed)`` -> newly drawn parameters by name
    :param seed: of the first draw; the n-th has ``seed + n``
    """

    def __init__(self, fresh: Callable[[int], Mapping[str, th.Tensor]], seed: int = 0) -> None:
        self.fresh = fresh
        self.seed = seed
        self.taken: dict[str, int] = {}
        self._draws: dict[int, Mapping[str, th.Tensor]] = {}

    def take(self, layer: HiddenLayer, count: int) -> dict[str, th.Tensor]:
        """
        Take rows for some units of a layer.

        :param layer: whose rows
        :param count: number of units
        :return: ``layer.incoming`` -> (count, ...)
        """
        start = self.taken.get(layer.name, 0)
        self.taken[layer.name] = start + count
        rows: dict[str, list[th.Tensor]] = {name: [] for name in layer.incoming}
        for position in range(start, start + count):
            draw = self._draw(position // layer.n_units)
            for name in layer.incoming:
                rows[name].append(draw[name][position % layer.n_units])
        return {name: th.stack(each) for name, each in rows.items()}

    def _draw(self, number: int) -> Mapping[str, th.Tensor]:
        if number not in self._draws:
            if len(self._draws) > 1:  # layers advance at their own pace; an older draw can be made again
                self._draws.clear()
            self._draws[number] = {name: value.detach() for name, value in self.fresh(self.seed + number).items()}
        return self._draws[number]


@th.no_grad()
def recycle_units(
    root: nn.Module,
    layer: HiddenLayer,
    chosen: th.Tensor,
    rows: Mapping[str, th.Tensor],
    means: Mapping[str, th.Tensor] | None = None,
    optimizers: Iterable[th.optim.Optimizer] = (),
) -> None:
    """
    Start some units of a layer afresh.

    The weights that make a unit are replaced, its bias becomes 0, and what it contributed on average moves into the
    bias of every consumer whose column for it is then cleared; the optimizers' moments of just these slices restart.

    :param root: the module that the layer's names refer to
    :param layer: whose units
    :param chosen: (units,) bool, which of them
    :param rows: ``layer.incoming`` -> one row for each chosen unit
    :param means: of each consumer, the mean of its inputs, of its weight's shape without the first axis;
        None moves nothing
    :param optimizers: whose moments of the changed slices restart
    """
    if not bool(chosen.any()):
        return
    optimizers = list(optimizers)
    own = th.arange(layer.n_units, device=chosen.device)[:, None]
    for consumer in layer.consumers:
        weight = root.get_parameter(consumer.weight)
        columns = consumer.columns.to(weight.device)
        read = columns[chosen].flatten()
        if consumer.bias is not None and means is not None:
            moved = weight[:, read] * means[consumer.layer][read]
            root.get_parameter(consumer.bias).add_(moved.flatten(1).sum(1))
        weight[:, read] = 0
        for optimizer in optimizers:
            restart_moments(optimizer, weight, 1, columns, chosen)
    for name in layer.incoming:
        parameter = root.get_parameter(name)
        parameter[chosen] = 0.0 if name == layer.bias else rows[name].to(parameter)
        for optimizer in optimizers:
            restart_moments(optimizer, parameter, 0, own, chosen)


@th.no_grad()
def restart_moments(
    optimizer: th.optim.Optimizer, parameter: nn.Parameter, axis: int, slices: th.Tensor, chosen: th.Tensor
) -> None:
    """
    Restart an optimizer's moments of some units' slices of a parameter.

    First moments become 0. Second moments become the mean over the units that stay: at 0, Adam's first steps of the
    newborn would be 6.6 learning rates long (betas .9 and .999), and a ``step`` of 0 would change those of all others,
    so ``step`` is left alone.

    :param optimizer: any; those that do not hold the parameter are left alone
    :param parameter: whose moments
    :param axis: along which the slices lie
    :param slices: (units, k), indices of each unit's slices along the axis
    :param chosen: (units,) bool, which units restart
    """
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if not isinstance(value, th.Tensor) or value.shape != parameter.shape:
            continue
        moments = value.movedim(axis, 0)  # a view
        start: th.Tensor | float = INITIAL_MOMENTS.get((type(optimizer).__name__, key), 0.0)
        if key in SECOND_MOMENTS and start == 0.0 and not bool(chosen.all()):
            start = moments[slices[~chosen]].mean(0)  # (k, ...)
        moments[slices[chosen]] = start if isinstance(start, float) else start.expand(moments[slices[chosen]].shape)
