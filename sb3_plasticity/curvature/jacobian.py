"""
The loss-weighted Jacobian of a network's outputs, layer by layer, without forming it.

A linear layer's Jacobian of one output is the outer product of the layer's input and of the output's gradient at the
layer's result, so these two say all. Convolutions go by their patches. The Jacobian of parameters used in any other way
is computed row by row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_plasticity.common.checks import must_be
from sb3_plasticity.curvature.parameters import cast_floating, check_params
from sb3_plasticity.curvature.watch import Call, OutputFn, watched_forward

# Bounds that keep memory below about 500 MB: the Gram matrix is rows x rows, in float64, and LAPACK wants a copy.
MAX_ROWS = 4096
_MAX_BYTES = 160_000_000
_CHUNK_NUMBERS = 4_000_000


class ProblemTooLargeError(ValueError):
    """
    The exact computation would need too much memory: take fewer samples.

    :param message: what is too large
    :param max_samples: a number of samples that fits; 0 if none does
    """

    def __init__(self, message: str, max_samples: int) -> None:
        super().__init__(f"{message}: pass at most {max_samples} samples")
        self.max_samples = max_samples


@dataclass(frozen=True)
class Layer:
    """
    A weight, its bias, or both, and what their calls saw. T counts positions (of a convolution) and calls.

    :param names: of the parameters
    :param inputs: (N, T, d_in), with a final 1 if a bias comes with the weight; just that 1 for a bias alone
    :param grads: (N, K, T, d_out): gradient of each loss-weighted output at the layer's result
    """

    names: tuple[str, ...]
    inputs: th.Tensor
    grads: th.Tensor

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.inputs.shape[-1] * self.grads.shape[-1]

    def dense(self, columns: list[int]) -> Iterator[th.Tensor]:
        """
        Return the Jacobian of the given outputs, in pieces.

        :param columns: outputs
        :yields: blocks (N * len(columns), b) of columns, ``size`` in all
        """
        grads = self.grads[:, columns]
        rows = grads.shape[0] * grads.shape[1]
        step = max(1, _CHUNK_NUMBERS // (rows * self.inputs.shape[-1]))
        for piece in th.split(grads, step, dim=-1):
            yield th.einsum("nkto,nti->nkoi", piece, self.inputs).reshape(rows, -1)


@dataclass(frozen=True)
class Jacobian:
    """
    The matrix R^T d outputs / d params, where R R^T is a sample's output Hessian / N: N * K rows, K <= C.

    J J^T has the nonzero eigenvalues of the generalised Gauss-Newton matrix J^T J.

    :param layers: linear and convolutional layers
    :param others: name -> size of every other parameter that the outputs depend on
    :param active: name of each layer's first parameter, or of an ``other`` -> the outputs k that depend on it
    :param n_samples: N
    :param n_outputs: K
    :param dim: number of parameters
    :param explicit: (names, columns) -> the Jacobian (N * len(columns), sum of sizes) of ``others``
    """

    layers: list[Layer]
    others: dict[str, int]
    active: dict[str, frozenset[int]]
    n_samples: int
    n_outputs: int
    dim: int
    explicit: Callable[[list[str], list[int]], th.Tensor]


def check_size(n_samples: int, n_outputs: int) -> None:
    """
    Refuse more than ``MAX_ROWS`` rows, whose Gram matrix would not fit.

    :param n_samples: N
    :param n_outputs: C
    :raises ProblemTooLargeError: with the number of samples that fits
    """
    if n_samples * n_outputs > MAX_ROWS:
        raise ProblemTooLargeError(
            f"{n_samples} samples x {n_outputs} outputs = {n_samples * n_outputs} rows, more than {MAX_ROWS}",
            MAX_ROWS // n_outputs,
        )


def weighted_jacobian(
    output_fn: OutputFn,
    params: dict[str, th.Tensor],
    inputs: Any,
    output_hessian: th.Tensor,
    dtype: th.dtype | None,
) -> Jacobian:
    """
    Run the network once, and backward once per output.

    :param output_fn: ``output_fn(params, inputs)`` -> (N, C)
    :param params: name -> tensor
    :param inputs: passed to ``output_fn``
    :param output_hessian: (N, C, C) or (N, C)
    :param dtype: cast parameters and inputs to it
    :return: the Jacobian
    :raises ValueError: for parameters, outputs or Hessians of the wrong kind
    :raises FloatingPointError: for a NaN or infinity in the outputs or their Hessian
    :raises ProblemTooLargeError: with the number of samples that fits
    """
    check_params(params)
    leaves = {name: cast_floating(value.detach(), dtype).clone().requires_grad_() for name, value in params.items()}
    inputs = cast_floating(inputs, dtype)
    roots = _hessian_roots(output_hessian)
    check_size(roots.shape[0], roots.shape[2])
    with th.enable_grad():
        outputs, calls = watched_forward(output_fn, leaves, inputs, output_hessian)
    roots = roots.to(outputs)
    layers, active = _layers(outputs, roots, calls)
    watched = {name for layer in layers for name in layer.names}
    others, others_active = _others(
        outputs, roots, {name: leaf for name, leaf in leaves.items() if name not in watched}
    )

    def explicit(names: list[str], columns: list[int]) -> th.Tensor:
        return _jacobian_rows(outputs, [leaves[name] for name in names], roots[:, :, columns])

    return Jacobian(
        layers,
        others,
        active | others_active,
        roots.shape[0],
        roots.shape[2],
        sum(leaf.numel() for leaf in leaves.values()),
        explicit,
    )


def _layers(outputs: th.Tensor, roots: th.Tensor, calls: list[Call]) -> tuple[list[Layer], dict[str, frozenset[int]]]:
    """Group the calls by parameter and take the gradients at their results, one backward pass per output."""
    if not calls:
        return [], {}
    n_samples, _, n_outputs = roots.shape
    _check_bytes(calls, n_samples, n_outputs)
    probes = [call.probe for call in calls]
    # Filled in place: these are the largest tensors of all.
    grads = [outputs.new_empty(_shape(call, n_outputs)) for call in calls]
    for output in range(n_outputs):
        found = th.autograd.grad(outputs, probes, roots[:, :, output], retain_graph=True, materialize_grads=True)
        for call, grad, store in zip(calls, found, grads, strict=True):
            store[:, output] = call.positions(grad)
    layers, active = [], {}
    for names, members in _groups(calls).items():
        layer = Layer(names, _cat([_inputs(calls[i], names) for i in members], 1), _cat([grads[i] for i in members], 2))
        layers.append(layer)
        heard = layer.grads.ne(0).any(-1).any(-1).any(0)
        active[names[0]] = frozenset(th.nonzero(heard).flatten().tolist())
    return layers, active


def _shape(call: Call, n_outputs: int) -> tuple[int, int, int, int]:
    n_samples, positions, width = call.positions(call.probe).shape
    return n_samples, n_outputs, positions, width


def _inputs(call: Call, names: tuple[str, ...]) -> th.Tensor:
    """Return the inputs (N, T, d_in) that go with the named parameters: those of the weight, and 1 for the bias."""
    if call.weight in names and call.bias not in names:
        return call.inputs
    one = call.inputs.new_ones((*call.inputs.shape[:2], 1))
    return th.cat([call.inputs, one], -1) if call.weight in names else one


def _cat(tensors: list[th.Tensor], dim: int) -> th.Tensor:
    """Concatenate as th.cat does, without copying a single tensor."""
    return tensors[0] if len(tensors) == 1 else th.cat(tensors, dim)


def _groups(calls: list[Call]) -> dict[tuple[str, ...], list[int]]:
    """Return parameters -> their calls: a weight and a bias go together if they always do."""
    by_name: dict[str, list[int]] = {}
    for index, call in enumerate(calls):
        for name in call.names:
            by_name.setdefault(name, []).append(index)
    groups: dict[tuple[str, ...], list[int]] = {}
    grouped: set[str] = set()
    for name, members in by_name.items():
        if name in grouped:
            continue
        call = calls[members[0]]
        partner = call.bias if name == call.weight else None
        together = partner is not None and all((calls[i].weight, calls[i].bias) == (name, partner) for i in members)
        names = (name, partner) if partner is not None and together and by_name[partner] == members else (name,)
        groups[names] = members
        grouped |= set(names)
    return groups


def _others(
    outputs: th.Tensor, roots: th.Tensor, leaves: dict[str, th.Tensor]
) -> tuple[dict[str, int], dict[str, frozenset[int]]]:
    """Return the sizes of the parameters that are no layers, and the outputs that depend on each."""
    if not leaves:
        return {}, {}
    weights = th.rand(len(outputs), generator=th.Generator().manual_seed(0), dtype=th.float64).to(outputs) + 0.5
    active: dict[str, set[int]] = {}
    for output in range(roots.shape[2]):
        grads = th.autograd.grad(
            outputs,
            list(leaves.values()),
            roots[:, :, output] * weights[:, None],
            retain_graph=True,
            allow_unused=True,
        )
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None and bool(grad.count_nonzero()):
                active.setdefault(name, set()).add(output)
    for name, columns in active.items():
        rows = len(outputs) * len(columns)
        row_bytes = leaves[name].numel() * leaves[name].element_size()
        if rows * row_bytes > _MAX_BYTES:
            raise ProblemTooLargeError(
                f"the Jacobian of {name} is explicit (it is no linear or convolutional layer) and takes "
                f"{rows} x {row_bytes} bytes, more than {_MAX_BYTES}",
                _MAX_BYTES // (row_bytes * len(columns)),
            )
    return {name: leaves[name].numel() for name in active}, {name: frozenset(found) for name, found in active.items()}


def _jacobian_rows(outputs: th.Tensor, leaves: list[th.Tensor], roots: th.Tensor) -> th.Tensor:
    """Return the Jacobian (N * K, sum of sizes) of roots^T outputs, several rows per backward pass where vmap can."""
    n_samples, n_outputs, n_columns = roots.shape
    size = sum(leaf.numel() for leaf in leaves)
    jacobian = outputs.new_empty((n_samples * n_columns, size))
    rows_per_pass = max(1, min(256, _CHUNK_NUMBERS // max(size, n_samples * n_outputs)))
    for start in range(0, len(jacobian), rows_per_pass):
        rows = th.arange(start, min(start + rows_per_pass, len(jacobian)), device=outputs.device)
        samples, columns = rows // n_columns, rows % n_columns
        cotangents = outputs.new_zeros((len(rows), n_samples, n_outputs))
        cotangents[th.arange(len(rows)), samples] = roots[samples, :, columns]
        jacobian[start : start + len(rows)] = _batched_grad(outputs, leaves, cotangents)
    return jacobian


def _batched_grad(outputs: th.Tensor, leaves: list[th.Tensor], cotangents: th.Tensor) -> th.Tensor:
    """Return the gradients (rows, sum of sizes) for a batch of cotangents (rows, N, C)."""
    try:
        grads = th.autograd.grad(
            outputs, leaves, cotangents, retain_graph=True, materialize_grads=True, is_grads_batched=True
        )
    except RuntimeError:
        # Some backward passes (recurrent layers) cannot be vmapped.
        rows = [
            th.autograd.grad(outputs, leaves, cotangent, retain_graph=True, materialize_grads=True)
            for cotangent in cotangents
        ]
        grads = tuple(th.stack(column) for column in zip(*rows, strict=True))
    return th.cat([grad.reshape(len(cotangents), -1) for grad in grads], 1)


def _hessian_roots(output_hessian: th.Tensor) -> th.Tensor:
    """Return R (N, C, K) in float64 with R R^T = output_hessian / N; columns that are zero throughout are left out."""
    if not isinstance(output_hessian, th.Tensor) or output_hessian.ndim not in (2, 3) or 0 in output_hessian.shape:
        shape = getattr(output_hessian, "shape", None)
        found = type(output_hessian).__name__ if shape is None else tuple(shape)
        raise ValueError(f"`output_hessian` must be a tensor of shape (N, C, C) or (N, C), got {found}")
    hessian = output_hessian.detach().to(th.float64)
    if hessian.ndim == 3 and hessian.shape[1] != hessian.shape[2]:
        raise must_be("output_hessian", "of shape (N, C, C) or (N, C)", tuple(hessian.shape))
    if not bool(th.isfinite(hessian).all()):
        raise FloatingPointError("NaN or infinity in output_hessian")
    if hessian.ndim == 3 and not bool((hessian - th.diag_embed(hessian.diagonal(dim1=1, dim2=2))).count_nonzero()):
        hessian = hessian.diagonal(dim1=1, dim2=2)
    if hessian.ndim == 2:
        values, vectors = hessian, th.eye(hessian.shape[1], dtype=th.float64, device=hessian.device)
    else:
        values, vectors = th.linalg.eigh((hessian + hessian.mT) / 2)
    largest = float(values.abs().max())
    if (smallest := float(values.min())) < -1e-5 * largest:
        raise ValueError(f"`output_hessian` must be positive semi-definite, got an eigenvalue of {smallest:g}")
    # Rounding of a singular one, such as a softmax's.
    values = th.where(values > 1e-12 * values.amax(1, keepdim=True), values, 0.0)
    roots = vectors * (values / len(hessian)).sqrt()[:, None, :]
    kept = values.ne(0).any(0)
    return roots[:, :, kept] if bool(kept.any()) else roots[:, :, :1]


def _check_bytes(calls: list[Call], n_samples: int, n_outputs: int) -> None:
    per_sample = sum(call.inputs[0].numel() + n_outputs * call.probe[0].numel() for call in calls)
    sample_bytes = per_sample * calls[0].inputs.element_size()
    if sample_bytes * n_samples > _MAX_BYTES:
        raise ProblemTooLargeError(
            f"the layers' inputs and gradients take {sample_bytes} bytes a sample, {sample_bytes * n_samples} in all, "
            f"more than {_MAX_BYTES}",
            _MAX_BYTES // sample_bytes,
        )
