"""CuPy as the array namespace of operations, with the same additions as `numpy_backend`.

Only `device` imports this module, once it knows that CuPy is installed and has a GPU.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import Any

import cupy
import cupyx
import numpy as np

# The namespace is CuPy's own, and more; it holds max, min, sum … too: see numpy_backend.
from cupy import *  # noqa: F403
from cupyx.scipy import special

from distgrad.backend.cuda import faults
from distgrad.backend.cuda import gemm as products
from distgrad.backend.cuda.gemm import matmul as matmul
from distgrad.backend.cuda.joined import concatenate as concatenate
from distgrad.backend.cuda.joined import stack as stack
from distgrad.backend.cuda.lt import own_workspace as own_workspace
from distgrad.backend.cuda.ordered import keeps_order, ordered
from distgrad.backend.cuda.table import KERNELS as kernels
from distgrad.typing import Array, Shape

# The ufuncs, and functions of arrays below, keep channels last, which CuPy's do not.
_ufuncs = ordered(cupy)
globals().update(_ufuncs)

# --- types ------------------------------------------------------------------------------------


def _float_type(x: Array) -> np.dtype[Any]:
    """The floating point type of a function's result for ``x``."""
    kind: np.dtype[Any] = x.dtype
    return kind if kind.kind not in "biu" else np.dtype(np.float32)


def _sum_type(x: Array) -> np.dtype[Any]:
    """The type in which numbers of ``x`` are added up: float32 for narrower floats."""
    kind: np.dtype[Any] = x.dtype
    return np.dtype(np.float32) if kind.itemsize == 2 and kind.kind not in "iu" else kind


def _work_type(x: Array) -> np.dtype[Any]:
    """The type in which a function of ``x`` is computed: float32 at least."""
    return np.dtype(np.float32) if x.dtype.kind in "biu" else _sum_type(x)


def widened(x: Array) -> Array:
    """``x`` in the type in which its numbers are added up; itself where that is its own."""
    return x.astype(_sum_type(x), copy=False)


# --- errors -----------------------------------------------------------------------------------


class errstate:
    """A context that changes nothing: a device never warns of infinities and NaNs."""

    def __init__(
        self,
        all: str | None = None,
        divide: str | None = None,
        over: str | None = None,
        under: str | None = None,
        invalid: str | None = None,
    ) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def solved(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` of ``linalg``; what cannot be solved is a ``linalg.LinAlgError``.

    CuPy says nothing by default; asking the device for the outcome waits for it.
    """
    with cupyx.errstate(linalg="raise"):
        return function(*args)


# --- matrix products --------------------------------------------------------------------------


def gemm(
    a: Array, b: Array, bias: Array | None = None, out: Array | None = None, add: bool = False
) -> Array:
    """The matrix product of ``a`` and ``b``, plus ``bias``, in ``out`` or added to it.

    For 16-bit floats ``out`` may be float32.
    """
    return products.gemm(a, b, bias, out, add)


# --- arrays -----------------------------------------------------------------------------------


@keeps_order
def to_numpy(a: Array) -> np.ndarray[Any, Any]:
    """``a`` as a NumPy array in host memory; waits until the device has computed it."""
    host: np.ndarray[Any, Any] = cupy.asnumpy(a)
    check(a)
    return host


def check(a: Array) -> None:
    """Raises what kernels found wrong on the GPU of ``a``, whose numbers the host has read."""
    faults.check(a)


@keeps_order
def asarray(a: Any, dtype: Any = None) -> Array:
    """``a``, an array of the host or the device or a number, on the current device."""
    return cupy.asarray(a, dtype)


@keeps_order
def copied(a: Array) -> Array:
    """A copy of ``a``, which may be on another device, on the current one."""
    return a.copy()


def cast(x: Array, dtype: Any) -> Array:
    """A copy of ``x`` in ``dtype``; what is too large for it becomes inf."""
    return x.astype(dtype)


def sum_to_shape(g: Array, shape: Shape) -> Array:
    """``g`` summed over the axes along which ``shape`` was broadcast to the shape of ``g``."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = [i for i in range(g.ndim) if i < extra or (shape[i - extra] == 1 and g.shape[i] != 1)]
    total = g.sum(axis=tuple(axes), dtype=_sum_type(g))
    return total.astype(g.dtype, copy=False).reshape(shape)


def pad_zeros(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """``x`` with zeros before and after its last axes; negative numbers cut away."""
    pads = [(0, 0)] * (x.ndim - len(pads)) + list(pads)
    sizes = [n + before + after for n, (before, after) in zip(x.shape, pads, strict=True)]
    out = cupy.zeros(sizes, x.dtype)
    source, target = [], []
    for n, (before, after) in zip(x.shape, pads, strict=True):
        source.append(slice(builtins.max(-before, 0), n - builtins.max(-after, 0)))
        end = n + before + after - builtins.max(after, 0)
        target.append(slice(builtins.max(before, 0), end))
    out[tuple(target)] = x[tuple(source)]
    return out


def windows(
    x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Array:
    """A view of every window of size ``kernel`` over the last ``k`` axes of ``x``."""
    lead = x.ndim - len(kernel)
    steps = x.strides[lead:]
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[lead:], kernel, stride, dilation, strict=True)
    ]
    shape = (*x.shape[:lead], *counts, *kernel)
    strides = (
        *x.strides[:lead],
        *(step * s for step, s in zip(steps, stride, strict=True)),
        *(step * d for step, d in zip(steps, dilation, strict=True)),
    )
    # CuPy's strided arrays have no base, by which the engine knows views; a view of one has.
    return cupy.lib.stride_tricks.as_strided(x, shape, strides).view()


def strided(x: Array, shape: Shape, strides: Shape, shift: int) -> Array:
    """A view of the memory that ``x`` lies in, by explicit strides; the caller keeps inside it."""
    if not math.prod(shape):
        return x.reshape(-1)[:0].reshape(shape)
    if shift < 0:  # begins before x: in what x is a view of
        shift += (x.data.ptr - x.base.data.ptr) // x.itemsize
        x = x.base.reshape(-1).view(x.dtype)
    first = cupy.lib.stride_tricks.as_strided(x, (shift + 1,), (x.itemsize,))[shift:]
    steps = [s * x.itemsize for s in strides]
    return cupy.lib.stride_tricks.as_strided(first, shape, steps).view()


# Elements per block of rows: a device gains nothing from small ones.
BLOCK = 1 << 30


def broadcast_to(x: Array, shape: Shape) -> Array:
    """A view of ``x``, an array or a number, in ``shape``."""
    x = x if isinstance(x, cupy.ndarray) else cupy.full((), x)
    return cupy.broadcast_to(x, shape)


def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """A view of a diagonal of ``x`` as its last axis, writeable as ``x`` is."""
    return cupy.diagonal(x, offset, axis1, axis2)


def row_blocks(rows: int, width: int) -> list[slice]:
    """One slice of all ``rows`` rows: a device gains nothing from blocks of ``width`` elements."""
    return [slice(0, rows)] if rows and width else []


def row_dots(a: Array, b: Array) -> Array:
    """The sums of ``a * b`` over the last axis."""
    return (a * b).sum(-1)


def restrided(x: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """A view of ``x`` in another shape with other strides, in bytes, from its first element on."""
    return cupy.lib.stride_tricks.as_strided(x, shape, strides).view()


@keeps_order
def where(condition: Array, x: Any, y: Any) -> Array:
    """``x`` where ``condition`` (a bool array) is true, else ``y``."""
    return cupy.where(condition, _operand(x), _operand(y))


def _operand(x: Any) -> Any:
    """``x`` itself, or the NumPy scalar in an array of the host without dimensions."""
    return x[()] if isinstance(x, np.ndarray) else x


# --- comparisons with one number -----------------------------------------------------------------


def at_least(x: Array, low: float, out: Array | None = None) -> Array:
    """The larger of each element and the number ``low``; ``out``, if given, is contiguous."""
    found = _form("at_least_0", x) if low == 0 and out is None else NotImplemented
    if found is NotImplemented:
        found = _ufuncs["maximum"](x, x.dtype.type(low), out=out)
    return found


def _form(name: str, *operands: Array) -> Any:
    """A function by a kernel of its own; ``NotImplemented`` where there is none."""
    return kernels[name](*operands) if name in kernels else NotImplemented


def at_most(x: Array, high: float, out: Array | None = None) -> Array:
    """The smaller of each element and the number ``high``; ``out``, if given, is contiguous."""
    return _ufuncs["minimum"](x, x.dtype.type(high), out=out)


def where_positive(condition: Array, x: Array) -> Array:
    """``x`` where the number in ``condition``, of the same dtype and shape, is positive, else 0."""
    found = _form("where_positive", condition, x)
    if found is NotImplemented:
        found = where(condition > 0, x, x.dtype.type(0))
    return found


# --- adding ---------------------------------------------------------------------------------------


def exact_add(a: Array, b: Array, out: Array) -> Array:
    """The sum of two flat arrays, in ``out``, with the bits that the host gives it.

    CuPy's own takes float32 below 2**-126 for 0: it compiles with ``-ftz=true``.
    """
    if _form("reduce_windows", "sum", (0, 1), (a, b), out, True) is NotImplemented:
        _ufuncs["add"](a, b, out=out)
    return out


def add_at(out: Array, index: Array, values: Array) -> None:
    """Adds ``values`` to the rows ``out[index]`` in place; rows named twice get both.

    The device adds in no fixed order, so float results may differ in the last bits from run to run.
    """
    if index.size and values.size:
        _scatter(out, index, values)


def _scatter(out: Array, index: Any, values: Array) -> None:
    if out.dtype == np.int64:  # atomic addition knows unsigned 64-bit numbers: the same bits
        cupyx.scatter_add(out.view(np.uint64), index, values.astype(np.int64).view(np.uint64))
    elif out.dtype.kind == "c":
        cupyx.scatter_add(out.real, index, values.real)
        cupyx.scatter_add(out.imag, index, values.imag)
    elif out.dtype.itemsize < 4:
        wide = cupy.zeros(out.shape, np.float32 if out.dtype.kind not in "biu" else np.int32)
        cupyx.scatter_add(wide, index, values.astype(wide.dtype))
        out += wide.astype(out.dtype)
    else:
        cupyx.scatter_add(out, index, values)


def scatter_add(out: Array, dim: int, index: Array, src: Array) -> None:
    """Adds ``src`` to ``out`` in place at ``index`` along axis ``dim``."""
    if not index.size:
        return
    if out.ndim == 0:
        out += src.reshape(())
        return
    places = [
        cupy.arange(n).reshape([-1 if i == axis else 1 for i in range(index.ndim)])
        for axis, n in enumerate(index.shape)
    ]
    places[dim] = index
    _scatter(out, tuple(places), src[tuple(slice(n) for n in index.shape)])


def combine_at(
    combine: Callable[[Array, Array], Array], out: Array, places: tuple[Array, ...], values: Array
) -> None:
    """Brings ``values`` into ``out[places]`` in place by an associative ``combine``."""
    linear: Any = 0
    for place, size in zip(cupy.broadcast_arrays(*places), out.shape, strict=True):
        linear = linear * size + place
    order = cupy.argsort(linear.reshape(-1))
    at, run = linear.reshape(-1)[order], values.reshape(-1)[order]
    step = 1
    while step < at.size:  # what has one place stands in a row: combined by doubling
        joined = cupy.where(at[step:] == at[:-step], combine(run[:-step], run[step:]), run[step:])
        run[step:] = joined
        step *= 2
    last = cupy.concatenate([at[1:] != at[:-1], cupy.ones(1, bool)])
    at, run = at[last], run[last]
    flat = out.reshape(-1)
    flat[at] = combine(flat[at], run)
    if not cupy.may_share_memory(flat, out):
        out[...] = flat.reshape(out.shape)


# --- accumulating -----------------------------------------------------------------------------


def scan(combine: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    """``x`` accumulated along ``axis`` by an associative ``combine``, such as ``maximum``."""
    out = cupy.moveaxis(x, axis, -1).copy()
    step = 1
    while step < out.shape[-1]:  # by doubling: log2(n) kernels
        out[..., step:] = combine(out[..., :-step], out[..., step:])
        step *= 2
    return cupy.moveaxis(out, -1, axis)


# --- softmax and its relatives ----------------------------------------------------------------


@keeps_order
def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow or loss of small values."""
    return _special(special.expit, x)


def softmax_(x: Array, axis: int) -> Array:
    """``x`` itself, replaced by its softmax along ``axis``; a row of ``-inf`` gives nan."""
    if not x.size:
        return x
    if _work_type(x) != x.dtype:
        x[...] = softmax_(x.astype(_work_type(x)), axis)
        return x
    x -= x.max(axis=axis, keepdims=True)
    cupy.exp(x, out=x)
    x /= x.sum(axis=axis, keepdims=True, dtype=x.dtype)
    return x


def log_softmax(x: Array, axis: int) -> Array:
    """The logarithm of the softmax of ``x`` along ``axis``; a row of ``-inf`` gives nan."""
    kind = _float_type(x)
    if not x.size:
        return x.astype(kind)
    x = x.astype(_work_type(x), copy=False)
    shifted = x - x.max(axis=axis, keepdims=True)
    shifted -= cupy.log(cupy.exp(shifted).sum(axis=axis, keepdims=True, dtype=x.dtype))
    return shifted.astype(kind, copy=False)


def logsumexp(x: Array, axis: int | tuple[int, ...], keepdims: builtins.bool = False) -> Array:
    """The logarithm of the sum of exponentials over ``axis``; of no elements it is ``-inf``."""
    kind = _float_type(x)
    x = x.astype(_work_type(x), copy=False)
    if not x.size:
        return cupy.log(x.sum(axis=axis, keepdims=keepdims)).astype(kind)
    top = x.max(axis=axis, keepdims=True)
    top = cupy.where(cupy.isinf(top), x.dtype.type(0), top)
    total = cupy.exp(x - top).sum(axis=axis, keepdims=True, dtype=x.dtype)
    result = (cupy.log(total) + top).astype(kind, copy=False)
    return result if keepdims else result.squeeze(axis)


# --- special functions ------------------------------------------------------------------------


def _special(function: Callable[[Array], Array], x: Array) -> Array:
    """``function`` of ``x``, in float32 for narrower types, which CuPy's kernels do not take."""
    return function(x.astype(_work_type(x), copy=False)).astype(_float_type(x), copy=False)


@keeps_order
def erf(x: Array) -> Array:
    """The error function of ``x``."""
    return _special(special.erf, x)


def erfc(x: Array) -> Array:
    """``1 - erf(x)``, exact to the last bits where it is small."""
    return _special(special.erfc, x)


def erfinv(x: Array) -> Array:
    """The number whose error function is ``x``: infinite at ±1, nan beyond."""
    return _special(special.erfinv, x)


def lgamma(x: Array) -> Array:
    """The logarithm of the absolute value of the gamma function; infinite at its poles."""
    return _special(special.gammaln, x)


def digamma(x: Array) -> Array:
    """The derivative of `lgamma`: nan at its poles, ∓inf at ±0."""
    at_zero = cupy.where(x == 0, -cupy.copysign(math.inf, x), math.nan)
    pole = (x <= 0) & (x == cupy.floor(x))
    return cupy.where(pole, at_zero, _special(special.digamma, x)).astype(_float_type(x))


def polygamma(n: int, x: Array) -> Array:
    """The derivative number ``n`` (at least 1) of `digamma`."""
    return _special(lambda y: special.polygamma(n, y), x)
