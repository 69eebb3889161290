"""The namespace ``distgrad.special``: PyTorch's names of the special functions."""

from distgrad.ops.activation import log_softmax, softmax
from distgrad.ops.bessel import (
    bessel_j0,
    bessel_j1,
    bessel_y0,
    bessel_y1,
    i0,
    i0e,
    i1,
    i1e,
    modified_bessel_i0,
    modified_bessel_i1,
    modified_bessel_k0,
    modified_bessel_k1,
    scaled_modified_bessel_k0,
    scaled_modified_bessel_k1,
    spherical_bessel_j0,
)
from distgrad.ops.elementwise import exp2, expm1, log1p, round
from distgrad.ops.elementwise import sigmoid as expit
from distgrad.ops.probability import (
    entr,
    erfcx,
    gammainc,
    gammaincc,
    log_ndtr,
    ndtr,
    ndtri,
    xlog1py,
    zeta,
)
from distgrad.ops.probability import mvlgamma as multigammaln
from distgrad.ops.reduce import logsumexp
from distgrad.ops.special import digamma, erf, erfc, erfinv, logit, polygamma, sinc, xlogy
from distgrad.ops.special import digamma as psi
from distgrad.ops.special import lgamma as gammaln

__all__ = [
    "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "digamma", "entr", "erf", "erfc", "erfcx",
    "erfinv", "exp2", "expit", "expm1", "gammainc", "gammaincc", "gammaln", "i0", "i0e", "i1",
    "i1e", "log1p", "log_ndtr", "log_softmax", "logit", "logsumexp", "modified_bessel_i0",
    "modified_bessel_i1", "modified_bessel_k0", "modified_bessel_k1", "multigammaln", "ndtr",
    "ndtri", "polygamma", "psi", "round", "scaled_modified_bessel_k0",
    "scaled_modified_bessel_k1", "sinc", "softmax", "spherical_bessel_j0", "xlog1py", "xlogy",
    "zeta",
]  # fmt: skip
