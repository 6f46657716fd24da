"""
Spectra of the Hessian, the generalised Gauss-Newton matrix and its Kronecker-factored approximation.

They take any PyTorch model as a function of its parameters, here a small classifier:

>>> import torch as th
>>> from torch.nn import functional as F
>>> from sb3_plasticity.curvature import ggn_spectrum, hessian_spectrum, kfac_spectrum
>>> rng = th.Generator().manual_seed(0)
>>> net = th.nn.Linear(4, 3).double()
>>> params = {name: th.randn(value.shape, generator=rng).double() for name, value in net.named_parameters()}
>>> inputs, labels = th.randn(20, 4, generator=rng).double(), th.arange(20) % 3
>>> def output_fn(params, inputs):
...     return th.func.functional_call(net, params, (inputs,))
>>> def loss_fn(params, batch):
...     return F.cross_entropy(output_fn(params, batch[0]), batch[1])

The cross-entropy's Hessian in the logits is diag(p) - p p^T. A linear model has no other curvature, so that its Hessian
and GGN are one. The classes' logits can be shifted together without any effect, which makes 5 of the 15 eigenvalues 0:

>>> probs = F.softmax(output_fn(params, inputs), 1)
>>> output_hessian = th.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
>>> hessian = hessian_spectrum(loss_fn, params, (inputs, labels), steps=15)
>>> ggn = ggn_spectrum(output_fn, params, inputs, output_hessian)
>>> kfac = kfac_spectrum(output_fn, params, inputs, output_hessian)
>>> for spectrum in (hessian, ggn, kfac):
...     print(f"{spectrum.largest:.4f} {spectrum.epsilon_rank(1e-9, normalized=False):.0f} of {spectrum.dim}")
0.3664 10 of 15
0.3664 10 of 15
0.2600 10 of 15

The curvature of one layer is that of its parameters alone: pass those only, ``functional_call`` takes the others from
the module:

>>> ggn_spectrum(output_fn, {"bias": params["bias"]}, inputs, output_hessian).dim
3
"""

from sb3_plasticity.curvature.entk import entk_spectrum
from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.hessian import hessian_spectrum, hessian_vector_product
from sb3_plasticity.curvature.jacobian import ProblemTooLargeError
from sb3_plasticity.curvature.kfac import kfac_spectrum
from sb3_plasticity.curvature.records import load_spectra
from sb3_plasticity.curvature.spectrum import Measure, Spectrum, loggable

__all__ = [
    "Measure",
    "ProblemTooLargeError",
    "Spectrum",
    "entk_spectrum",
    "ggn_spectrum",
    "hessian_spectrum",
    "hessian_vector_product",
    "kfac_spectrum",
    "load_spectra",
    "loggable",
]
