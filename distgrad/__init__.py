"""Automatic differentiation and data-parallel training on NumPy, CuPy and MPI."""
# ruff: noqa: F403  (the chapters of operations say in __all__ what is public)

from distgrad import collector  # first: it pauses while all this is imported

# isort: split
from math import e, inf, nan, pi
from typing import TYPE_CHECKING

from distgrad import accelerator, amp, autograd, cuda, distributed, futures, nn, ops, optim
from distgrad.amp import GradScaler, autocast
from distgrad.amp.state import *
from distgrad.as_torch import as_torch
from distgrad.autograd.anomaly import (
    is_anomaly_check_nan_enabled,
    is_anomaly_enabled,
    set_anomaly_enabled,
)
from distgrad.autograd.gradients import grad
from distgrad.autograd.inference import inference_mode
from distgrad.autograd.mode import (
    enable_grad,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from distgrad.backend import promises, threads
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
from distgrad.backend.layout import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    layout,
    memory_format,
    preserve_format,
    strided,
)
from distgrad.backend.promises import *
from distgrad.backend.threads import *
from distgrad.errors import AcceleratorError, OutOfMemoryError
from distgrad.later import later
from distgrad.ops import fft, random
from distgrad.ops import linalg_names as linalg
from distgrad.ops import special_names as special
from distgrad.ops.activation import *
from distgrad.ops.adaptive import *
from distgrad.ops.arrange import *
from distgrad.ops.attention import *
from distgrad.ops.bessel import i0
from distgrad.ops.compare import *
from distgrad.ops.complex import *
from distgrad.ops.conv import *
from distgrad.ops.copies import *
from distgrad.ops.create import *
from distgrad.ops.ctc import ctc_loss
from distgrad.ops.cumulate import *
from distgrad.ops.details import *
from distgrad.ops.dropout import *
from distgrad.ops.eigen import lobpcg
from distgrad.ops.einsum import *
from distgrad.ops.elementwise import *
from distgrad.ops.embed import *
from distgrad.ops.extremes import *
from distgrad.ops.factor import lu_unpack
from distgrad.ops.gamma import *
from distgrad.ops.gamma import (  # noqa: F401  distributions are made of them
    _dirichlet_grad,
    _sample_dirichlet,
    _standard_gamma,
    _standard_gamma_grad,
)
from distgrad.ops.index import *
from distgrad.ops.inplace_names import *
from distgrad.ops.internals import *
from distgrad.ops.join import *
from distgrad.ops.least import pca_lowrank, pinverse, svd_lowrank
from distgrad.ops.linalg import logdet
from distgrad.ops.linalg_old import *
from distgrad.ops.loss import *
from distgrad.ops.margin import *
from distgrad.ops.masks import *
from distgrad.ops.matmul import *
from distgrad.ops.methods import *
from distgrad.ops.norm import *
from distgrad.ops.norms import frobenius_norm, nuclear_norm
from distgrad.ops.pool import *
from distgrad.ops.probability import igamma, igammac, mvlgamma
from distgrad.ops.random import *
from distgrad.ops.ranges import *
from distgrad.ops.recurrent_layers import *
from distgrad.ops.reduce import *
from distgrad.ops.reflect import geqrf, ormqr
from distgrad.ops.reflect import householder_product as orgqr
from distgrad.ops.replace import *
from distgrad.ops.rounding import *
from distgrad.ops.sampling import grid_sampler, grid_sampler_2d, grid_sampler_3d
from distgrad.ops.scatter import *
from distgrad.ops.segments import *
from distgrad.ops.segments import segment_reduce as _segment_reduce  # noqa: F401  PyTorch has both
from distgrad.ops.shape import *
from distgrad.ops.sharing import frombuffer
from distgrad.ops.signal import *
from distgrad.ops.sort import *
from distgrad.ops.special import *
from distgrad.ops.statistics import (
    cdist,
    corrcoef,
    cov,
    dist,
    histogram,
    histogramdd,
    mode,
    norm,
    pdist,
    renorm,
)
from distgrad.ops.storage import *
from distgrad.ops.triangular import cholesky_inverse, cholesky_solve
from distgrad.ops.typed import *
from distgrad.ops.windows import (
    channel_shuffle,
    native_channel_shuffle,
    pixel_shuffle,
    pixel_unshuffle,
)
from distgrad.tensor import Size, Tensor
from distgrad.version import __version__

if TYPE_CHECKING:
    from distgrad import backends, distributions, func, masked, serialization, signal, utils
    from distgrad.func.vmap import vmap
    from distgrad.serialization import load, save

__all__ = [
    "AcceleratorError",
    "GradScaler",
    "OutOfMemoryError",
    "Size",
    "Tensor",
    "__version__",
    "accelerator",
    "amp",
    "as_torch",
    "autocast",
    "autograd",
    "backends",
    "bfloat16",
    "bool",
    "can_cast",
    "cdist",
    "cdouble",
    "cfloat",
    "channel_shuffle",
    "channels_last",
    "channels_last_3d",
    "cholesky_inverse",
    "cholesky_solve",
    "complex64",
    "complex128",
    "contiguous_format",
    "corrcoef",
    "cov",
    "ctc_loss",
    "cuda",
    "device",
    "dist",
    "distributed",
    "distributions",
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
    "frobenius_norm",
    "frombuffer",
    "func",
    "futures",
    "geqrf",
    "get_default_device",
    "get_default_dtype",
    "get_printoptions",
    "grad",
    "grid_sampler",
    "grid_sampler_2d",
    "grid_sampler_3d",
    "half",
    "histogram",
    "histogramdd",
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
    "is_anomaly_check_nan_enabled",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "layout",
    "linalg",
    "load",
    "lobpcg",
    "logdet",
    "long",
    "lu_unpack",
    "masked",
    "memory_format",
    "mode",
    "mvlgamma",
    "nan",
    "native_channel_shuffle",
    "nn",
    "no_grad",
    "norm",
    "nuclear_norm",
    "ops",
    "optim",
    "orgqr",
    "ormqr",
    "pca_lowrank",
    "pdist",
    "pi",
    "pinverse",
    "pixel_shuffle",
    "pixel_unshuffle",
    "preserve_format",
    "printoptions",
    "promote_types",
    "random",
    "renorm",
    "result_type",
    "save",
    "serialization",
    "set_anomaly_enabled",
    "set_default_device",
    "set_default_dtype",
    "set_grad_enabled",
    "set_printoptions",
    "short",
    "signal",
    "special",
    "strided",
    "svd_lowrank",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "utils",
    "vmap",
]
__all__ += amp.state.__all__
__all__ += promises.__all__
__all__ += threads.__all__
__all__ += ops.activation.__all__
__all__ += ops.adaptive.__all__
__all__ += ops.arrange.__all__
__all__ += ops.attention.__all__
__all__ += ops.compare.__all__
__all__ += ops.complex.__all__
__all__ += ops.conv.__all__
__all__ += ops.copies.__all__
__all__ += ops.create.__all__
__all__ += ops.cumulate.__all__
__all__ += ops.details.__all__
__all__ += ops.dropout.__all__
__all__ += ops.einsum.__all__
__all__ += ops.elementwise.__all__
__all__ += ops.embed.__all__
__all__ += ops.extremes.__all__
__all__ += ops.gamma.__all__
__all__ += ops.index.__all__
__all__ += ops.inplace_names.__all__
__all__ += ops.join.__all__
__all__ += ops.linalg_old.__all__
__all__ += ops.loss.__all__
__all__ += ops.margin.__all__
__all__ += ops.matmul.__all__
__all__ += ops.methods.__all__
__all__ += ops.norm.__all__
__all__ += ops.pool.__all__
__all__ += ops.random.__all__
__all__ += ops.ranges.__all__
__all__ += ops.recurrent_layers.__all__
__all__ += ops.reduce.__all__
__all__ += ops.replace.__all__
__all__ += ops.rounding.__all__
__all__ += ops.scatter.__all__
__all__ += ops.segments.__all__
__all__ += ops.shape.__all__
__all__ += ops.sort.__all__
__all__ += ops.signal.__all__
__all__ += ops.special.__all__
__all__ += ops.storage.__all__
__all__ += ops.typed.__all__

_LATER = ("backends", "distributions", "func", "masked", "serialization", "signal", "utils")
__getattr__ = later(
    __name__,
    {name: f"distgrad.{name}" for name in _LATER}
    | {name: "distgrad.serialization:" for name in ("load", "save")}
    | {"vmap": "distgrad.func.vmap:"},
)
collector.resume()
