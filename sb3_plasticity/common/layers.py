"""Layers of any torch module: what counts as one, hooks on them, and the features they read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch as th
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

# The modules whose outputs are units: what a mitigation or an instrument calls a layer.
LAYER_TYPES = (nn.Linear, _ConvNd, nn.RNNBase)
# The modules of torch that act differently in training: their results depend on chance, or on the rest of the batch.
DROPOUT_TYPES = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
BATCH_NORM_TYPES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def weight_and_bias(layer: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """
    Find the weight that reads a layer's input and the bias that is added to it.

    :param layer: a linear, convolutional or recurrent layer
    :return: the two, None for what is no parameter
    """
    suffix = "_ih_l0" if isinstance(layer, nn.RNNBase) else ""
    own = layer._parameters
    return own.get("weight" + suffix), own.get("bias" + suffix)


def as_feature_matrix(layer: nn.Module, activations: th.Tensor) -> th.Tensor:
    """
    Bring activations into the form of a matrix with one feature a column.

    :param layer: the layer that reads them
    :param activations: (N, d), (N, ..., d), or (N, C, H, W) for a convolution
    :return: (rows, features); every position of a convolution's input is a row: (N * H * W, C)
    """
    if isinstance(layer, _ConvNd):
        activations = activations.movedim(1, -1)
    return activations.reshape(-1, activations.shape[-1])


def hook_layers(
    layers: Mapping[str, nn.Module],
    before: Callable[[str, nn.Module, tuple[Any, ...]], Any] | None = None,
    after: Callable[[str, nn.Module, tuple[Any, ...], Any], Any] | None = None,
) -> list[RemovableHandle]:
    """
    Have functions called whenever modules run.

    :param layers: the modules by name
    :param before: called with name, module and arguments before a module runs; what it returns, if not None, takes the
        arguments' place
    :param after: called with name, module, arguments and result after a module has run; what it returns, if not None,
        takes the result's place
    :return: handles that remove the hooks
    """
    handles = []
    for name, layer in layers.items():
        if before is not None:
            handles.append(layer.register_forward_pre_hook(partial(before, name)))
        if after is not None:
            handles.append(layer.register_forward_hook(partial(after, name)))
    return handles


@contextmanager
def hooked_layers(
    layers: Mapping[str, nn.Module],
    before: Callable[[str, nn.Module, tuple[Any, ...]], Any] | None = None,
    after: Callable[[str, nn.Module, tuple[Any, ...], Any], Any] | None = None,
) -> Iterator[None]:
    """
    Have functions called whenever modules run inside the context.

    :param layers: see :func:`hook_layers`
    :param before: see :func:`hook_layers`
    :param after: see :func:`hook_layers`
    """
    handles = hook_layers(layers, before, after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_features(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, th.Tensor]]:
    """
    Record what linear and convolutional layers read while a module runs.

    :param module: the module that will be called inside the context
    :param names: names in it of the layers, such as ``Network.features``
    :yields: a dictionary of layer name to feature matrix (rows, features), graph attached, filled as the layers run;
        of a layer that is called several times, the latest
    """
    features: dict[str, th.Tensor] = {}

    def record(name: str, layer: nn.Module, inputs: tuple[th.Tensor, ...]) -> None:
        features[name] = as_feature_matrix(layer, inputs[0])

    with hooked_layers({name: module.get_submodule(name) for name in names}, before=record):
        yield features
