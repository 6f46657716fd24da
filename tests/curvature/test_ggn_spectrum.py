"""The exact GGN spectrum against dense matrices, for every way in which a parameter can be used."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from curvature_dense import (
    assert_same_spectrum,
    dense_ggn,
    dense_hessian,
    eigenvalues,
    mlp,
    named,
    psd,
    randn,
    randomise,
)
from torch import nn
from torch.nn import functional as F

from sb3_plasticity.curvature import ProblemTooLargeError, ggn_spectrum
from sb3_plasticity.curvature.jacobian import weighted_jacobian


def functional(net: nn.Module) -> Callable[..., Any]:
    return lambda params, inputs: th.func.functional_call(net, params, (inputs,))


@pytest.mark.parametrize("n_samples", [1, 4, 60])
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_mlp(n_samples: int, diagonal: bool, activation: type[nn.Module]) -> None:
    # 103 parameters: fewer and more of them than rows.
    net = mlp(5, 7, 5, 3, 1, 3, activation=activation)
    inputs, hessian = randn(n_samples, 5, seed=1), psd(n_samples, 3)
    hessian = hessian.diagonal(dim1=1, dim2=2) if diagonal else hessian
    spectrum = ggn_spectrum(functional(net), named(net), inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(functional(net), named(net), inputs, hessian))


def test_softmax_loss_of_a_linear_model_is_its_hessian() -> None:
    net = mlp(4, 3)
    inputs, labels = randn(9, 4, seed=1), th.arange(9) % 3
    probs = F.softmax(net(inputs), 1).detach()
    hessian = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    matrix = dense_hessian(lambda p, b: F.cross_entropy(functional(net)(p, b), labels), named(net), inputs)
    spectrum = ggn_spectrum(functional(net), named(net), inputs, hessian)
    assert_same_spectrum(spectrum, matrix)
    # A softmax's Hessian has rank C - 1, so has each sample's GGN.
    assert spectrum.epsilon_rank(1e-12, normalized=False) == pytest.approx(2 * 5, abs=1e-9)


class Patches(nn.Module):
    """Convolutions of all sorts: strided and padded, dilated, grouped and padded by name (these two are no layers)."""

    def __init__(self, groups: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=padding)
        self.second = nn.Conv2d(4, 4, 2, dilation=2, groups=groups, bias=groups == 1)
        self.third = nn.Conv2d(4, 2, 3, padding="same") if groups == 2 else nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = th.tanh(self.second(x))
        result: th.Tensor = self.head(self.third(x).flatten(1))
        return result


@pytest.mark.parametrize("groups, n_layers, n_others", [(1, 4, 0), (2, 2, 3)])
def test_convolutions(groups: int, n_layers: int, n_others: int) -> None:
    net = randomise(Patches(groups))
    inputs, hessian = randn(4, 2, 7, 7), psd(4, 3)
    spectrum = ggn_spectrum(functional(net), named(net), inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(functional(net), named(net), inputs, hessian))
    jacobian = weighted_jacobian(functional(net), named(net), inputs, hessian, None)
    assert (len(jacobian.layers), len(jacobian.others)) == (n_layers, n_others)


class Zoo(nn.Module):
    """Parameters used in ways of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 4)
        self.sequence = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.matrix = nn.Parameter(th.empty(3, 2))
        self.unused = nn.Parameter(th.empty(6))
        self.shift = nn.Parameter(th.empty(2))

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        x = self.embedding(tokens)  # (N, 3, 4)
        x = th.tanh(self.tied(x))
        x = self.tied(x)  # a second call
        x = self.norm(self.sequence(x)).sum(1)
        x = x @ self.matrix
        return F.linear(x, th.eye(2, dtype=x.dtype), self.shift)  # a bias without a weight


def test_parameters_used_in_any_way() -> None:
    net = randomise(Zoo())
    inputs, hessian = th.tensor([[0, 1, 2], [3, 3, 0], [1, 0, 4], [2, 2, 2]]), psd(4, 2)
    spectrum = ggn_spectrum(functional(net), named(net), inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(functional(net), named(net), inputs, hessian))
    jacobian = weighted_jacobian(functional(net), named(net), inputs, hessian, None)
    assert {layer.names for layer in jacobian.layers} == {
        ("tied.weight", "tied.bias"),
        ("sequence.weight", "sequence.bias"),
        ("shift",),
    }
    assert set(jacobian.others) == {"embedding.weight", "norm.weight", "norm.bias", "matrix"}


def test_weight_used_as_a_layer_and_otherwise() -> None:
    # Tied to its own transpose: half of the use is not seen as a layer, so none of it may be.
    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        hidden = th.tanh(F.linear(x, params["w"], params["b"]))
        return hidden @ params["w"] + F.linear(hidden, params["v"], params["b"][:2])

    params = {"w": randn(3, 2), "b": randn(3, seed=1), "v": randn(2, 3, seed=2)}
    inputs, hessian = randn(5, 2, seed=3), psd(5, 2)
    spectrum = ggn_spectrum(output_fn, params, inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(output_fn, params, inputs, hessian))
    jacobian = weighted_jacobian(output_fn, params, inputs, hessian, None)
    assert [layer.names for layer in jacobian.layers] == [("v",)]


def test_one_weight_with_two_biases() -> None:
    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        return F.linear(th.tanh(F.linear(x, params["w"], params["b"])), params["w"], params["c"])

    params = {"w": randn(3, 3), "b": randn(3, seed=1), "c": randn(3, seed=2)}
    inputs, hessian = randn(4, 3, seed=3), psd(4, 3)
    spectrum = ggn_spectrum(output_fn, params, inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(output_fn, params, inputs, hessian))


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalisation(training: bool) -> None:
    # In training mode a sample's outputs depend on the whole batch: the layer before is then no sum over samples.
    net = randomise(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))).train(training)
    inputs, hessian = randn(6, 3, seed=1), psd(6, 2)

    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        result: th.Tensor = th.func.functional_call(net, params, (x,))
        return result

    spectrum = ggn_spectrum(output_fn, named(net), inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(output_fn, named(net), inputs, hessian), 1e-10)
    jacobian = weighted_jacobian(output_fn, named(net), inputs, hessian, None)
    assert len(jacobian.layers) == (1 if training else 2)


def test_recurrent_network() -> None:
    lstm, head = randomise(nn.LSTM(3, 4)), mlp(4, 2)
    params = {"lstm." + k: v for k, v in named(lstm).items()} | {"head." + k: v for k, v in named(head).items()}

    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        hidden, _ = th.func.functional_call(lstm, {k[5:]: v for k, v in params.items() if k.startswith("lstm.")}, (x,))
        result: th.Tensor = functional(head)({k[5:]: v for k, v in params.items() if k.startswith("head.")}, hidden)
        return result

    # One sequence of five steps: the later outputs depend on the earlier inputs.
    inputs, hessian = randn(5, 3, seed=1), psd(5, 2)
    spectrum = ggn_spectrum(output_fn, params, inputs, hessian)
    assert_same_spectrum(spectrum, dense_ggn(output_fn, params, inputs, hessian))


def test_gaussian_policy_with_a_free_standard_deviation() -> None:
    net = mlp(4, 8, 3)

    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        mean = functional(net)({k: v for k, v in params.items() if k != "log_std"}, x)
        return th.cat([mean, params["log_std"].expand_as(mean)], 1)

    params = named(net) | {"log_std": randn(3, seed=1)}
    inputs = randn(10, 4, seed=2)
    precision = th.exp(-2 * params["log_std"]).expand(10, 3)
    fisher = th.cat([precision, th.full((10, 3), 2.0, dtype=th.float64)], 1)
    spectrum = ggn_spectrum(output_fn, params, inputs, fisher)
    assert_same_spectrum(spectrum, dense_ggn(output_fn, params, inputs, fisher))
    # The Fisher information of each log standard deviation is 2, whatever the network.
    assert np.isclose(spectrum.nodes[0], 2.0, rtol=1e-12).sum() == 3


def test_separate_networks_are_treated_apart() -> None:
    policy, value = mlp(3, 5, 2), mlp(3, 4, 1, seed=1)

    def output_fn(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        first = functional(policy)({k[2:]: v for k, v in params.items() if k.startswith("p.")}, x)
        second = functional(value)({k[2:]: v for k, v in params.items() if k.startswith("v.")}, x)
        return th.cat([first, second], 1)

    params = {"p." + k: v for k, v in named(policy).items()} | {"v." + k: v for k, v in named(value).items()}
    inputs, hessian = randn(7, 3, seed=2), th.rand(7, 3, generator=th.Generator().manual_seed(0), dtype=th.float64)
    joint = ggn_spectrum(output_fn, params, inputs, hessian)
    assert_same_spectrum(joint, dense_ggn(output_fn, params, inputs, hessian))
    apart = [
        ggn_spectrum(functional(policy), named(policy), inputs, hessian[:, :2]),
        ggn_spectrum(functional(value), named(value), inputs, hessian[:, 2:]),
    ]
    assert joint.trace == pytest.approx(sum(part.trace for part in apart), rel=1e-12)


def test_one_layer() -> None:
    net = mlp(5, 6, 4, 2)
    inputs, hessian = randn(8, 5, seed=1), psd(8, 2)
    for names in (("2.weight", "2.bias"), ("2.weight",), ("0.bias",), ("4.weight", "4.bias")):
        layer = {name: named(net)[name] for name in names}
        spectrum = ggn_spectrum(functional(net), layer, inputs, hessian)
        assert_same_spectrum(spectrum, dense_ggn(functional(net), layer, inputs, hessian))


@pytest.mark.parametrize("dtype, tolerance", [(None, 2e-6), (th.float64, 1e-12)])
def test_float32_model(dtype: th.dtype | None, tolerance: float) -> None:
    net = mlp(5, 20, 20, 3, dtype=th.float32)
    inputs, hessian = randn(12, 5, seed=1, dtype=th.float32), psd(12, 3).float()
    spectrum = ggn_spectrum(functional(net), named(net), inputs, hessian, dtype=dtype)
    params = {name: value.double() for name, value in named(net).items()}
    assert_same_spectrum(spectrum, dense_ggn(functional(net), params, inputs.double(), hessian.double()), tolerance)


def test_zero_curvature() -> None:
    net = mlp(3, 4, 2)
    spectrum = ggn_spectrum(functional(net), named(net), randn(5, 3), th.zeros(5, 2, dtype=th.float64))
    assert not spectrum.nodes.any() and spectrum.dim == 26
    dead = {name: th.zeros_like(value) for name, value in named(net).items()}
    spectrum = ggn_spectrum(functional(net), dead, randn(5, 3), th.ones(5, 2, dtype=th.float64))
    # Only the last bias matters: the GGN is the identity there.
    assert spectrum.epsilon_rank(1e-12, normalized=False) == pytest.approx(2)
    assert spectrum.largest == pytest.approx(1.0)


def test_leaves_no_trace() -> None:
    net = mlp(3, 4, 2)
    params: dict[str, th.Tensor] = dict(net.named_parameters())
    state = th.get_rng_state()
    inputs = randn(5, 3)
    with th.no_grad():
        first = ggn_spectrum(functional(net), params, inputs, psd(5, 2))
    second = ggn_spectrum(functional(net), params, inputs, psd(5, 2))
    np.testing.assert_array_equal(first.nodes, second.nodes)
    assert th.equal(state, th.get_rng_state())
    assert all(value.grad is None for value in params.values())


def test_bad_input() -> None:
    net = mlp(3, 4, 2)
    call = functional(net)
    ones = th.ones(5, 2, dtype=th.float64)
    with pytest.raises(ValueError, match="the network has none"):
        ggn_spectrum(call, {}, randn(5, 3), ones)
    with pytest.raises(ValueError, match="`output_hessian` must be a tensor of shape"):
        ggn_spectrum(call, named(net), randn(5, 3), th.ones(5))
    with pytest.raises(ValueError, match=r"`output_fn` must return \(N, C\).*\(4, 2\), got \(5, 2\)"):
        ggn_spectrum(call, named(net), randn(5, 3), ones[:4])
    with pytest.raises(ValueError, match="positive semi-definite, got an eigenvalue of -1"):
        ggn_spectrum(call, named(net), randn(5, 3), -ones)
    with pytest.raises(ValueError, match="`output_fn` must depend on `params`"):
        ggn_spectrum(lambda p, x: th.zeros(5, 2), named(net), randn(5, 3), ones)
    with pytest.raises(FloatingPointError, match="the outputs"):
        ggn_spectrum(call, named(net), randn(5, 3) * float("nan"), ones)
    with pytest.raises(FloatingPointError, match="output_hessian"):
        ggn_spectrum(call, named(net), randn(5, 3), ones * float("inf"))


def test_too_large_problems_say_how_many_samples_fit() -> None:
    net = mlp(3, 4, 2)
    with pytest.raises(ProblemTooLargeError, match="3000 samples x 2 outputs") as error:
        ggn_spectrum(functional(net), named(net), randn(3000, 3), th.ones(3000, 2))
    assert error.value.max_samples == 2048

    def embedded(params: dict[str, th.Tensor], x: th.Tensor) -> th.Tensor:
        return params["table"][x].sum(1, keepdim=True)

    # Explicit Jacobian of 100,000 columns: 400 samples fit.
    params = {"table": th.ones(50_000, 2)}
    with pytest.raises(ProblemTooLargeError, match="the Jacobian of table is explicit") as error:
        ggn_spectrum(embedded, params, th.arange(401), th.ones(401, 1))
    assert error.value.max_samples == 400


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory in kB is Linux's")
def test_peak_memory_of_256_samples_and_8_outputs() -> None:
    script = """
import resource, torch as th
from torch import nn
from sb3_plasticity.curvature import ggn_spectrum
net = nn.Sequential(nn.Linear(27, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ggn_spectrum(lambda p, x: th.func.functional_call(net, p, (x,)), dict(net.named_parameters()),
             th.randn(256, 27), th.ones(256, 8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 500_000


def test_eigenvalues_helper_agrees_with_numpy() -> None:
    # The oracle itself, once.
    matrix = randn(6, 6)
    matrix = matrix @ matrix.T
    np.testing.assert_allclose(eigenvalues(matrix), np.linalg.svd(matrix.numpy())[1][::-1], rtol=1e-10)
