"""The empirical neural tangent kernel's spectrum against explicit Jacobians."""

import numpy as np
import pytest
import torch as th
from curvature_dense import assert_same_spectrum, dense_jacobian, eigenvalues, mlp, named, randn
from torch import nn

from sb3_plasticity import entk_spectrum

CONVOLUTION = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()


@pytest.mark.parametrize(
    "net, shape",
    [(mlp(4, 6, 3), (5, 4)), (mlp(4, 6, 3, activation=nn.ReLU), (40, 4)), (CONVOLUTION, (4, 1, 3, 3))],
)
def test_against_an_explicit_jacobian(net: nn.Sequential, shape: tuple[int, ...]) -> None:
    inputs = randn(*shape, seed=1)

    def output_fn(params: dict[str, th.Tensor], inputs: th.Tensor) -> th.Tensor:
        result: th.Tensor = th.func.functional_call(net, params, (inputs,))
        return result

    jacobian = dense_jacobian(output_fn, named(net), inputs).flatten(0, 1)
    spectrum = entk_spectrum(output_fn, named(net), inputs)
    assert_same_spectrum(spectrum, jacobian.T @ jacobian / len(inputs))
    kernel = eigenvalues(jacobian @ jacobian.T / len(inputs))
    largest = np.sort(spectrum.nodes[0])[::-1][: min(len(kernel), 10)]
    np.testing.assert_allclose(largest, kernel[::-1][: len(largest)], atol=1e-12 * kernel[-1])
    float32 = {name: value.float() for name, value in named(net).items()}
    again = entk_spectrum(output_fn, float32, inputs.float(), dtype=th.float64)
    assert again.largest == pytest.approx(float(spectrum.largest), rel=1e-6)


def test_a_linear_model_has_the_gram_matrix_of_its_inputs() -> None:
    inputs = randn(3, 5)
    spectrum = entk_spectrum(lambda p, x: x @ p["w"], {"w": randn(5, 2, seed=1)}, inputs)
    # Each of the two outputs has the same kernel.
    expected = np.repeat(eigenvalues(inputs @ inputs.T / 3), 2)
    np.testing.assert_allclose(np.sort(spectrum.nodes[0])[-6:], expected, rtol=1e-12)


def test_bad_outputs() -> None:
    with pytest.raises(ValueError, match=r"`output_fn` must return a tensor of shape \(N, C\), got \(3,\)"):
        entk_spectrum(lambda p, x: x @ p["w"], {"w": randn(5)}, randn(3, 5))
