"""Spectra of the Hessian, the generalised Gauss-Newton matrix and its Kronecker-factored approximation."""

from sb3_plasticity.curvature.ggn import ggn_spectrum
from sb3_plasticity.curvature.hessian import hessian_spectrum, hessian_vector_product
from sb3_plasticity.curvature.jacobian import ProblemTooLargeError
from sb3_plasticity.curvature.kfac import kfac_spectrum
from sb3_plasticity.curvature.records import load_spectra
from sb3_plasticity.curvature.spectrum import Measure, Spectrum

__all__ = [
    "Measure",
    "ProblemTooLargeError",
    "Spectrum",
    "ggn_spectrum",
    "hessian_spectrum",
    "hessian_vector_product",
    "kfac_spectrum",
    "load_spectra",
]
