"""Automatic differentiation and data-parallel training on NumPy, CuPy and MPI."""
# ruff: noqa: F403  (the chapters of operations say in __all__ what is public)

from math import e, inf, nan, pi

from distgrad import autograd, distributed, func, nn, ops, optim, utils
from distgrad.autograd.gradients import grad
from distgrad.autograd.mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from distgrad.backend.device import device, get_default_device, set_default_device
from distgrad.backend.dtype import (
    bfloat16,
    can_cast,
    complex64,
    complex128,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    result_type,
    set_default_dtype,
    uint8,
    uint16,
    uint32,
    uint64,
)
from distgrad.backend.dtype import bool_ as bool
from distgrad.backend.dtype import complex64 as cfloat
from distgrad.backend.dtype import complex128 as cdouble
from distgrad.backend.dtype import float16 as half
from distgrad.backend.dtype import float32 as float
from distgrad.backend.dtype import float64 as double
from distgrad.backend.dtype import int16 as short
from distgrad.backend.dtype import int32 as int
from distgrad.backend.dtype import int64 as long
from distgrad.backend.format import get_printoptions, printoptions, set_printoptions
from distgrad.func.vmap import vmap
from distgrad.ops import fft, random
from distgrad.ops import linalg_names as linalg
from distgrad.ops import special_names as special
from distgrad.ops.activation import *
from distgrad.ops.arrange import *
from distgrad.ops.attention import *
from distgrad.ops.bessel import i0
from distgrad.ops.compare import *
from distgrad.ops.complex import *
from distgrad.ops.conv import *
from distgrad.ops.create import *
from distgrad.ops.ctc import ctc_loss
from distgrad.ops.cumulate import *
from distgrad.ops.details import *
from distgrad.ops.einsum import *
from distgrad.ops.elementwise import *
from distgrad.ops.embed import *
from distgrad.ops.factor import (
    cholesky_inverse,
    cholesky_solve,
    lu_unpack,
    ormqr,
)
from distgrad.ops.factor import (
    householder_product as orgqr,
)
from distgrad.ops.index import *
from distgrad.ops.join import *
from distgrad.ops.linalg import cholesky, det, logdet, matrix_exp, matrix_power, slogdet, vander
from distgrad.ops.linalg import inv as inverse
from distgrad.ops.linalg import pinv as pinverse
from distgrad.ops.loss import *
from distgrad.ops.margin import *
from distgrad.ops.matmul import *
from distgrad.ops.methods import *
from distgrad.ops.norm import *
from distgrad.ops.pool import *
from distgrad.ops.probability import igamma, igammac, mvlgamma
from distgrad.ops.random import *
from distgrad.ops.reduce import *
from distgrad.ops.scatter import *
from distgrad.ops.shape import *
from distgrad.ops.sort import *
from distgrad.ops.special import *
from distgrad.ops.statistics import (
    cdist,
    corrcoef,
    cov,
    dist,
    histogram,
    mode,
    nuclear_norm,
    pdist,
    renorm,
)
from distgrad.ops.windows import channel_shuffle, pixel_shuffle, pixel_unshuffle
from distgrad.tensor import Size, Tensor
from distgrad.utils.serialization import load, save
from distgrad.version import __version__

__all__ = [
    "Size",
    "Tensor",
    "__version__",
    "autograd",
    "bfloat16",
    "bool",
    "can_cast",
    "cdist",
    "cdouble",
    "cfloat",
    "channel_shuffle",
    "cholesky",
    "cholesky_inverse",
    "cholesky_solve",
    "complex64",
    "complex128",
    "corrcoef",
    "cov",
    "ctc_loss",
    "det",
    "device",
    "dist",
    "distributed",
    "double",
    "dtype",
    "e",
    "enable_grad",
    "fft",
    "finfo",
    "float",
    "float16",
    "float32",
    "float64",
    "func",
    "get_default_device",
    "get_default_dtype",
    "get_printoptions",
    "grad",
    "half",
    "histogram",
    "i0",
    "igamma",
    "igammac",
    "iinfo",
    "inf",
    "inference_mode",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "inverse",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "linalg",
    "load",
    "logdet",
    "long",
    "lu_unpack",
    "matrix_exp",
    "matrix_power",
    "mode",
    "mvlgamma",
    "nan",
    "nn",
    "no_grad",
    "nuclear_norm",
    "ops",
    "optim",
    "orgqr",
    "ormqr",
    "pdist",
    "pi",
    "pinverse",
    "pixel_shuffle",
    "pixel_unshuffle",
    "printoptions",
    "promote_types",
    "random",
    "renorm",
    "result_type",
    "save",
    "set_default_device",
    "set_default_dtype",
    "set_grad_enabled",
    "set_printoptions",
    "short",
    "slogdet",
    "special",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "utils",
    "vander",
    "vmap",
]
__all__ += ops.activation.__all__
__all__ += ops.arrange.__all__
__all__ += ops.attention.__all__
__all__ += ops.compare.__all__
__all__ += ops.complex.__all__
__all__ += ops.conv.__all__
__all__ += ops.create.__all__
__all__ += ops.cumulate.__all__
__all__ += ops.details.__all__
__all__ += ops.einsum.__all__
__all__ += ops.elementwise.__all__
__all__ += ops.embed.__all__
__all__ += ops.index.__all__
__all__ += ops.join.__all__
__all__ += ops.loss.__all__
__all__ += ops.margin.__all__
__all__ += ops.matmul.__all__
__all__ += ops.methods.__all__
__all__ += ops.norm.__all__
__all__ += ops.pool.__all__
__all__ += ops.random.__all__
__all__ += ops.reduce.__all__
__all__ += ops.scatter.__all__
__all__ += ops.shape.__all__
__all__ += ops.sort.__all__
__all__ += ops.special.__all__
