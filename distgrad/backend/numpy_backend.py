"""NumPy as the array namespace of operations, with what it lacks or does slowly.

Operations get this module or `cupy_backend` as ``xp``. Both define the same functions below.
Floating point types narrower than float32 are computed in float32.
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.fft

from distgrad.backend.operands import refuse_product
from distgrad.typing import Array, Shape

# Operations write xp.multiply, xp.exp, xp.float32 ...: the namespace is NumPy's own, and more.
# (`from numpy import *` would load all of its packages, numpy.f2py among them: 50 ms.)
# It holds max, min, sum, bool ... too, so this file writes builtins.max where it means Python's.
globals().update({name: value for name, value in vars(numpy).items() if name[0] != "_"})

# Forms of functions of arrays (see `forms`): NumPy has none of its own.
kernels: dict[str, Callable[..., Any]] = {}

# --- types ------------------------------------------------------------------------------------


def _float_type(x: Array) -> np.dtype[Any]:
    """The floating point type of a function's result for ``x``."""
    return x.dtype if x.dtype.kind not in "biu" else np.dtype(np.float32)


def _sum_type(x: Array) -> np.dtype[Any]:
    """The type in which numbers of ``x`` are added up: float32 for narrower floats."""
    narrow = x.dtype.itemsize == 2 and x.dtype.kind not in "iu"
    return np.dtype(np.float32) if narrow else x.dtype


def _work_type(x: Array) -> np.dtype[Any]:
    """The type in which a function of ``x`` is computed: float32 at least."""
    return np.dtype(np.float32) if x.dtype.kind in "biu" else _sum_type(x)


def widened(x: Array) -> Array:
    """``x`` in the type in which its numbers are added up; itself where that is its own."""
    return x.astype(_sum_type(x), copy=False)


# --- errors -----------------------------------------------------------------------------------


def solved(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` of ``linalg``; what cannot be solved is a ``linalg.LinAlgError``."""
    return function(*args)


# --- matrix products --------------------------------------------------------------------------


def gemm(
    a: Array, b: Array, bias: Array | None = None, out: Array | None = None, add: bool = False
) -> Array:
    """The matrix product of ``a`` and ``b``, plus ``bias``.

    BLAS is slow on small products and NumPy calls it once for each matrix of a stack, so a stack
    times one matrix is one product of all its rows.  NumPy also leaves BLAS altogether for operands
    whose rows and columns both have gaps (and for expanded ones), so those are copied first.

    Args:
        a, b: of one dtype; leading dimensions broadcast, and vectors count as a row or a column.
        bias: one number for each column, or one for all.
        out: where the product goes.
        add: add it to what is there.

    Raises:
        DtypeError: the dtypes differ.
        DtypeNotImplemented: they are bool.
    """
    if (a.dtype is not b.dtype and a.dtype != b.dtype) or a.dtype.char == "?":
        refuse_product(a, b)
    if a.dtype.itemsize < 4 and a.dtype.kind in "fV":  # half precision adds up in float32
        result = gemm(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    elif b.ndim == 2 and a.ndim > 2 and a.shape[-1] == b.shape[0]:
        flat = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        rows = np.matmul(_ready(flat), _ready(b))
        result = rows.reshape(*a.shape[:-1], b.shape[1])
    else:
        result = np.matmul(_ready(a), _ready(b), out=None if add else out)
    if bias is not None:
        result += bias
    if out is None or result is out:
        return result
    if add:
        out += result
    else:
        out[...] = result
    return out


def _ready(a: Array) -> Array:
    """``a`` itself when BLAS can read it, else a copy."""
    if a.flags.c_contiguous or a.ndim < 2:
        return a
    row, column = a.strides[-2:]
    item, height, width = a.itemsize, a.shape[-2], a.shape[-1]
    if (column == item and row >= item * width) or (row == item and column >= item * height):
        return a
    return np.ascontiguousarray(a)


# --- arrays -----------------------------------------------------------------------------------


def check(a: Array) -> None:
    """Nothing: what is wrong on the host is said at once."""


def to_numpy(a: Array) -> np.ndarray[Any, Any]:
    """``a`` as a NumPy array in host memory; itself when it is one."""
    return np.asarray(a)


def asarray(a: Any, dtype: Any = None) -> Array:
    """``a``, an array or a number, as an array of the host."""
    return np.asarray(a, dtype)


def copied(a: Array) -> Array:
    """A copy of ``a``."""
    return a.copy()


def cast(x: Array, dtype: Any) -> Array:
    """A copy of ``x`` in ``dtype``; what is too large for it becomes inf."""
    if np.dtype(dtype).itemsize >= x.dtype.itemsize:
        return x.astype(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype)


def sum_to_shape(g: Array, shape: Shape) -> Array:
    """``g`` summed over the axes along which ``shape`` was broadcast to the shape of ``g``.

    Example:
        >>> sum_to_shape(np.ones((2, 3)), (3,))
        array([2., 2., 2.])
    """
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    if g.dtype.char in "fd" and extra and g.shape[extra:] == shape and g.flags.c_contiguous:
        width = math.prod(shape)
        if width >= 8 and g.size >= 4096:
            # A row vector times a matrix is the sum of its rows, at the speed of BLAS.
            rows = g.reshape(-1, width)
            return np.matmul(np.ones(len(rows), g.dtype), rows).reshape(shape)
    axes = [i for i in range(g.ndim) if i < extra or (shape[i - extra] == 1 and g.shape[i] != 1)]
    total = g.sum(axis=tuple(axes), dtype=_sum_type(g))
    return total.astype(g.dtype, copy=False).reshape(shape)


def pad_zeros(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """``x`` with zeros before and after its last axes; negative numbers cut away.

    Args:
        pads: (before, after) for each of the last ``len(pads)`` axes, in their order.
    """
    pads = [(0, 0)] * (x.ndim - len(pads)) + list(pads)
    sizes = [n + before + after for n, (before, after) in zip(x.shape, pads, strict=True)]
    out = np.zeros(sizes, x.dtype)
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
    """A view of every window of size ``kernel`` over the last ``k`` axes of ``x``.

    Shape:
        x: ``(*, L1 … Lk)``; result: ``(*, O1 … Ok, K1 … Kk)`` with
        ``O = (L - dilation * (K - 1) - 1) // stride + 1``. It shares the memory of ``x``.

    Example:
        >>> windows(np.arange(5), [3], [2], [1])
        array([[0, 1, 2],
               [2, 3, 4]])
    """
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
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def strided(x: Array, shape: Shape, strides: Shape, shift: int) -> Array:
    """A view of the memory that ``x`` lies in, by explicit strides; the caller keeps inside it.

    Args:
        strides: in elements.
        shift: from the first element of ``x`` to that of the result, in elements.
    """
    if not math.prod(shape):
        return x.reshape(-1)[:0].reshape(shape)
    whole = x
    while shift < 0:  # begins before x: in what x is a view of
        below = whole.base
        while not isinstance(below, np.ndarray):
            below = below.base  # a view by strides holds its base so
        shift += (whole.ctypes.data - below.ctypes.data) // x.itemsize
        whole = below
    if whole is not x:
        x = np.lib.stride_tricks.as_strided(whole, (1,), (0,)).view(x.dtype)
    first = np.lib.stride_tricks.as_strided(x, (shift + 1,), (x.itemsize,))[shift:]
    out = np.lib.stride_tricks.as_strided(first, shape, [s * x.itemsize for s in strides])
    if builtins.any(s == 0 and n > 1 for s, n in zip(strides, shape, strict=True)):
        out.flags.writeable = False  # like every array whose elements share memory
    return out


# Elements per block of rows: what a few such blocks need stays in the level-2 cache.
BLOCK = 1 << 15


def row_blocks(rows: int, width: int) -> list[slice]:
    """Slices that cover ``rows`` rows of ``width`` elements, each small enough for the cache.

    Example:
        >>> row_blocks(3, 1 << 14)
        [slice(0, 2, None), slice(2, 3, None)]
    """
    step = builtins.max(BLOCK // builtins.max(width, 1), 1)
    return [slice(start, builtins.min(start + step, rows)) for start in range(0, rows, step)]


def row_dots(a: Array, b: Array) -> Array:
    """The sums of ``a * b`` over the last axis."""
    return np.vecdot(a, b)


def broadcast_to(x: Array, shape: Shape) -> Array:
    """A read-only view of ``x`` in ``shape``; NumPy's own takes four times as long."""
    lead = len(shape) - x.ndim
    if lead < 0 or not x.size or not x.flags.c_contiguous:
        return np.broadcast_to(x, shape)
    steps = [0] * lead
    for have, want, step in zip(x.shape, shape[lead:], x.strides, strict=True):
        if have != want and have != 1:
            return np.broadcast_to(x, shape)  # it says what is wrong
        steps.append(0 if have == 1 else step)
    out = np.ndarray(shape, x.dtype, x, 0, steps)
    out.flags.writeable = False
    return out


def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """A view of a diagonal of ``x`` as its last axis, writeable as ``x`` is."""
    out = np.diagonal(x, offset, axis1, axis2)  # read-only by NumPy's own choice
    out.flags.writeable = x.flags.writeable
    return out


_BITS = {"f": np.int32, "d": np.int64}


def restrided(x: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """A view of ``x`` in another shape with other strides, in bytes, from its first element on."""
    return np.lib.stride_tricks.as_strided(x, shape, strides)


def where(condition: Array, x: Any, y: Any) -> Array:
    """``x`` where ``condition`` (a bool array) is true, else ``y``.

    NumPy's own mispredicts a branch per element; on bits the choice is up to 20 times faster.
    """
    if type(y) is float:
        y = _number_for(x, y)
    elif type(x) is float:
        x = _number_for(y, x)
    if condition.size < 256:
        return np.where(condition, x, y)
    kind = np.result_type(x, y)
    whole = _BITS.get(kind.char)
    if whole is None:
        return np.where(condition, x, y)
    x, y = np.asarray(x, kind).view(whole), np.asarray(y, kind).view(whole)
    ones = np.negative(condition.view(np.int8), dtype=whole)  # all bits of the true elements
    if not y.ndim and not y:
        bits = np.bitwise_and(x, ones)
    elif not x.ndim and not x:
        bits = np.bitwise_and(y, np.invert(ones, out=ones))
    else:
        bits = np.bitwise_xor(x, y)
        bits = np.bitwise_and(bits, ones)
        bits = np.bitwise_xor(bits, y)
    return bits.view(kind)


# --- comparisons with one number -----------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _row_of(value: float, dtype: np.dtype[Any]) -> Array:
    row = np.full(BLOCK, value, dtype)
    row.flags.writeable = False
    return row


def _with_number(ufunc: np.ufunc, x: Array, value: float, out: Array | None) -> Array:
    """``ufunc(x, value)`` where NumPy is four times faster with an array than with a number."""
    if x.size < 1024 or x.dtype.char not in "fd" or not x.flags.c_contiguous:
        return np.asarray(ufunc(x, x.dtype.type(value), out=out))
    out = np.empty_like(x) if out is None else out
    row, flat, target = _row_of(value, x.dtype), x.reshape(-1), out.reshape(-1)
    for start in range(0, x.size, BLOCK):
        part = flat[start : start + BLOCK]
        ufunc(part, row[: part.size], out=target[start : start + BLOCK])
    return out


def at_least(x: Array, low: float, out: Array | None = None) -> Array:
    """The larger of each element and the number ``low``; ``out``, if given, is contiguous."""
    return _with_number(np.maximum, x, low, out)


def at_most(x: Array, high: float, out: Array | None = None) -> Array:
    """The smaller of each element and the number ``high``; ``out``, if given, is contiguous."""
    return _with_number(np.minimum, x, high, out)


def _number_for(array: Any, number: float) -> Any:
    """Return ``number`` in bfloat16 beside an array of that type: NumPy would go to float64."""
    kind = getattr(array, "dtype", None)
    return kind.type(number) if kind is not None and kind.kind == "V" else number


def where_positive(condition: Array, x: Array) -> Array:
    """``x`` where the number in ``condition``, of the same dtype and shape, is positive, else 0."""
    whole = _BITS.get(x.dtype.char)
    if whole is None:
        return np.where(condition > 0, x, x.dtype.type(0))
    bits = np.asarray(condition + 0).view(whole)  # -0 becomes 0
    np.negative(bits, out=bits)  # the sign bit is set where the number was positive
    np.right_shift(bits, 8 * bits.itemsize - 1, out=bits)
    np.bitwise_and(bits, x.view(whole), out=bits)
    return bits.view(x.dtype)


# --- adding ---------------------------------------------------------------------------------------


def exact_add(a: Array, b: Array, out: Array) -> Array:
    """The sum of two flat arrays, in ``out``, with the same bits wherever it is made."""
    return np.add(a, b, out=out)


def add_at(out: Array, index: Array, values: Array) -> None:
    """Adds ``values`` to the rows ``out[index]`` in place; rows named twice get both.

    Shape:
        out: ``(V, *)``, index: any shape ``I`` with values in [0, V), values: ``(*I, *)``.
    """
    count = len(out)
    width = math.prod(out.shape[1:])
    if not index.size or not width:
        return
    flat = index.reshape(-1)
    rows = values.reshape(-1, width)
    target = out.reshape(count, width)
    if width > 1 and count <= 256 and count * width <= 1 << 14 and out.dtype.char in "fd":
        _add_by_product(target, flat, rows)
    elif width <= 32 and out.dtype.char in "fd":
        for column in range(width):
            target[:, column] += np.bincount(flat, rows[:, column], count)
    elif width <= 32:
        np.add.at(target, flat, rows)
    else:
        _add_in_rounds(target, flat, rows)
    if not np.may_share_memory(target, out):
        out[...] = target.reshape(out.shape)


def _add_by_product(target: Array, flat: Array, rows: Array) -> None:
    """One-hot matrix times rows: for few targets GEMM beats every loop."""
    chunk = 4096
    for start in range(0, len(flat), chunk):
        part = flat[start : start + chunk]
        one_hot = np.zeros((len(part), len(target)), target.dtype)
        one_hot[np.arange(len(part)), part] = 1
        target += one_hot.T @ rows[start : start + chunk]


def _add_in_rounds(target: Array, flat: Array, rows: Array) -> None:
    """The first row of every target at once, then the second ones …; at last the few often named.

    Measured: 2 to 6 times as fast as a loop over rows, and as ``np.add.at``.
    """
    order = np.argsort(flat, kind="stable")
    places, starts, counts = np.unique(flat[order], return_index=True, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    places, starts, counts = places[by_count], starts[by_count], counts[by_count]
    done, active = 0, len(places)
    while active > 16:
        target[places[:active]] += rows[order[starts[:active] + done]]
        done += 1
        active = int(np.searchsorted(-counts, -done))  # those with more than ``done`` rows
    for place, start, size in zip(places[:active], starts, counts, strict=False):
        target[place] += np.add.reduce(rows[order[start + done : start + size]], axis=0)


def scatter_add(out: Array, dim: int, index: Array, src: Array) -> None:
    """Adds ``src`` to ``out`` in place at ``index`` along axis ``dim``.

    Shape:
        index: at most the size of ``src`` in every axis and of ``out`` in every axis but ``dim``.
    """
    if not index.size:
        return
    if out.ndim == 0:
        out += src.reshape(())
        return
    places = [
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(index.ndim)])
        for axis, n in enumerate(index.shape)
    ]
    places[dim] = index
    source = src[tuple(slice(n) for n in index.shape)]
    linear = np.ravel_multi_index(np.broadcast_arrays(*places), out.shape).reshape(-1)
    flat = out.reshape(-1)
    # One axis on both sides is ufunc.at's fast path.
    np.add.at(flat, linear, source.reshape(-1))
    if not np.may_share_memory(flat, out):
        out[...] = flat.reshape(out.shape)


def combine_at(combine: np.ufunc, out: Array, places: tuple[Array, ...], values: Array) -> None:
    """Brings ``values`` into ``out[places]`` in place by an associative ``combine``.

    Shape:
        places: one array of indices for each axis of ``out``, which broadcast to that of
        ``values``; a place named more than once gets all of its values.
    """
    combine.at(out, places, values)


# --- accumulating -----------------------------------------------------------------------------


def scan(combine: np.ufunc, x: Array, axis: int) -> Array:
    """``x`` accumulated along ``axis`` by an associative ``combine``, such as ``maximum``."""
    return combine.accumulate(x, axis, x.dtype)


# --- softmax and its relatives ----------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow or loss of small values."""
    out = np.asarray(np.negative(x, dtype=_work_type(x)))
    with np.errstate(over="ignore"):  # exp gives inf, its reciprocal the right 0
        np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)
    return out.astype(_float_type(x), copy=False)


def _sum_last(x: Array) -> Array:
    """The sums over the last axis, kept as size 1: BLAS adds six times faster than ``sum``."""
    if x.dtype.char in "fd" and x.shape[-1] > 8:
        return np.matmul(x, np.ones(x.shape[-1], x.dtype))[..., None]
    return x.sum(axis=-1, keepdims=True, dtype=x.dtype)


def _shift_by_max(x: Array, axis: int, out: Array | None, near: float) -> Array:
    """``x`` less its maximum along ``axis``, or ``x`` itself where all of it is within ±``near``.

    The extremes of a whole array cost an eighth of those of its rows.
    """
    if x.size >= 1024 and x.dtype.char in "fd" and -near < x.min() and x.max() < near:
        return x if out is x else x.copy()
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.subtract(x, np.max(x, axis=axis, keepdims=True), out=out)


def softmax_(x: Array, axis: int) -> Array:
    """``x`` itself, replaced by its softmax along ``axis``; a row of ``-inf`` gives nan."""
    if not x.size:
        return x
    if _work_type(x) != x.dtype:
        x[...] = softmax_(x.astype(_work_type(x)), axis)
        return x
    _shift_by_max(x, axis, x, 60)
    np.exp(x, out=x)
    last = axis in (-1, x.ndim - 1) and x.ndim > 0
    total = _sum_last(x) if last else x.sum(axis=axis, keepdims=True, dtype=x.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        if last and x.dtype.char in "fd":
            x *= np.reciprocal(total)
        else:
            x /= total
    return x


def log_softmax(x: Array, axis: int) -> Array:
    """The logarithm of the softmax of ``x`` along ``axis``; a row of ``-inf`` gives nan."""
    kind = _float_type(x)
    if not x.size:
        return x.astype(kind)
    x = x.astype(_work_type(x), copy=False)
    shifted = _shift_by_max(x, axis, None, 8)  # what is not shifted loses bits
    exponentials = np.exp(shifted)
    if axis in (-1, x.ndim - 1) and x.ndim:
        total = _sum_last(exponentials)
    else:
        total = exponentials.sum(axis, keepdims=True, dtype=x.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted -= np.log(total)
    return shifted.astype(kind, copy=False)


def logsumexp(x: Array, axis: int | tuple[int, ...], keepdims: builtins.bool = False) -> Array:
    """The logarithm of the sum of exponentials over ``axis``; of no elements it is ``-inf``."""
    kind = _float_type(x)
    x = x.astype(_work_type(x), copy=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
        top = np.where(np.isinf(top), x.dtype.type(0), top)
        total = np.exp(x - top).sum(axis=axis, keepdims=True, dtype=x.dtype)
        result = (np.log(total) + top).astype(kind, copy=False)
    return result if keepdims else result.squeeze(axis)


# --- special functions ------------------------------------------------------------------------

# Elements per step: the intermediate arrays stay in the level-2 cache.
_STEP = 1 << 14


def _elementwise(
    x: Array,
    narrow: Callable[[Array], Array] | None,
    wide: Callable[[Array], Array],
) -> Array:
    """``x`` through ``wide`` in float64, or through ``narrow`` in float32 where there is one."""
    kind = _float_type(x)
    is_wide = kind == np.float64 or narrow is None
    work = np.float64 if is_wide else np.float32
    function = wide if is_wide or narrow is None else narrow
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty(flat.size, kind)
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _STEP):
            part = slice(start, start + _STEP)
            out[part] = function(flat[part].astype(work, copy=False))
    return out.reshape(x.shape)


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    """The polynomial with these coefficients, the highest power first."""
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += x.dtype.type(coefficient)
    return value


# fmt: off
# erf in float32: minimax rational of Eigen's generic implementation, within 3 units of the last
# place; |x| > 4 rounds to 1.
_ERF32_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)
_ERF32_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)
# erf in float64: W. J. Cody, "Rational Chebyshev approximations for the error function",
# Math. Comp. 23 (1969): up to 0.46875, up to 4, above.
_ERF_A = (
    1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
    3.20937758913846947e3,
)
_ERF_B = (
    1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
    2.84423683343917062e3,
)
_ERF_C = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
    2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
    1.23033935479799725e3,
)
_ERF_D = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
    1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3,
    1.23033935480374942e3,
)
_ERF_P = (
    1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
    1.60837851487422766e-2, 6.58749161529837803e-4,
)
_ERF_Q = (
    1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1,
    6.05183413124413191e-2, 2.33520497626869185e-3,
)
# fmt: on


def _erf32(x: Array) -> Array:
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    value = _horner(square, _ERF32_P)
    value *= x
    value /= _horner(square, _ERF32_Q)
    return value


def _erf_small(x: Array) -> Array:
    square = x * x
    return x * _horner(square, _ERF_A) / _horner(square, _ERF_B)


def _erfc_large(y: Array) -> Array:
    """erfc of numbers above 0.46875."""
    value = _horner(y, _ERF_C) / _horner(y, _ERF_D)
    far = y > 4
    if far.any():
        z = 1 / np.square(y[far])
        tail = z * _horner(z, _ERF_P) / _horner(z, _ERF_Q)
        value[far] = (1 / math.sqrt(math.pi) - tail) / y[far]
    # exp(-y²) from a short and a small factor, so that squaring loses no bits
    short = np.trunc(y * 16) / 16
    return value * np.exp(-short * short) * np.exp((short - y) * (short + y))


def _erf64(x: Array) -> Array:
    out = _erf_small(x)
    size = np.abs(x)
    big = size > 0.46875
    # Beyond 6 nothing of erfc is left in 1 - erfc.
    out[big] = np.copysign(1 - _erfc_large(np.minimum(size[big], 6)), x[big])
    return out


def _erfc64(x: Array) -> Array:
    out = 1 - _erf_small(x)
    size = np.abs(x)
    big = size > 0.46875
    tail = _erfc_large(np.minimum(size[big], 30))  # 0 from 27 on
    out[big] = np.where(x[big] < 0, 2 - tail, tail)
    return out


def erf(x: Array) -> Array:
    """The error function of ``x``."""
    return _elementwise(x, _erf32, _erf64)


def erfc(x: Array) -> Array:
    """``1 - erf(x)``, exact to the last bits where it is small."""
    return _elementwise(x, None, _erfc64)


# Starting values for erfinv: rationals for |y| <= 0.7 and above, good to 4 digits.
_ERFINV_A = (-0.140543331, 0.914624893, -1.645349621, 0.886226899)
_ERFINV_B = (0.012229801, -0.329097515, 1.442710462, -2.118377725, 1.0)
_ERFINV_C = (1.641345311, 3.429567803, -1.624906493, -1.970840454)
_ERFINV_D = (1.637067800, 3.543889200, 1.0)


def _erfinv64(y: Array) -> Array:
    size = np.abs(y)
    rest = 1 - size
    square = y * y
    x = size * _horner(square, _ERFINV_A) / _horner(square, _ERFINV_B)
    outer = size > 0.7
    z = np.sqrt(-np.log(rest[outer] / 2))
    x[outer] = _horner(z, _ERFINV_C) / _horner(z, _ERFINV_D)
    for _ in range(2):  # Halley's method, on erfc where erf is flat
        error = _erf64(x) - size
        error[outer] = rest[outer] - _erfc64(x[outer])
        step = error * (math.sqrt(math.pi) / 2) * np.exp(x * x)
        x -= step / (1 + x * step)
    x[size == 1] = np.inf
    return np.copysign(x, y)


# erfinv in float32: M. Giles, "Approximating the erfinv function" (2010), 4e-7 relative.
_ERFINV_NEAR = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_ERFINV_FAR = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
    0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def _erfinv32(y: Array) -> Array:
    w = -np.log((1 - y) * (1 + y))
    value = _horner(w - np.float32(2.5), _ERFINV_NEAR)
    far = w >= 5
    if far.any():
        value[far] = _horner(np.sqrt(w[far]) - np.float32(3), _ERFINV_FAR)
    value *= y
    edge = np.abs(y) == 1
    return np.where(edge, np.copysign(np.float32(np.inf), y), value) if edge.any() else value


def erfinv(x: Array) -> Array:
    """The number whose error function is ``x``: infinite at ±1, nan beyond."""
    return _elementwise(x, _erfinv32, _erfinv64)


# fmt: off
# lgamma: S. Moshier's Cephes: a rational on [2, 3), Stirling's series from 13 on.
_LGAMMA_A = (
    8.11614167470508450300e-4, -5.95061904284301438324e-4, 7.93650340457716943945e-4,
    -2.77777777730099687205e-3, 8.33333333333331927722e-2,
)
_LGAMMA_B = (
    -1.37825152569120859100e3, -3.88016315134637840924e4, -3.31612992738871184744e5,
    -1.16237097492762307383e6, -1.72173700820839662146e6, -8.53555664245765465627e5,
)
_LGAMMA_C = (
    1.0, -3.51815701436523470549e2, -1.70642106651881159223e4, -2.20528590553854454839e5,
    -1.13933444367982507207e6, -2.53252307177582951285e6, -2.01889141433532773231e6,
)
# fmt: on


def _lgamma_positive(x: Array) -> Array:
    stirling = (x - 0.5) * np.log(x) - x + math.log(2 * math.pi) / 2
    stirling += _horner(1 / (x * x), _LGAMMA_A) / x
    near = x < 13
    u = x[near]
    product = np.ones_like(u)
    for _ in range(2):
        low = u < 2
        product[low] /= u[low]
        u[low] += 1
    for _ in range(10):
        high = u >= 3
        u[high] -= 1
        product[high] *= u[high]
    u -= 2
    stirling[near] = np.log(product) + u * _horner(u, _LGAMMA_B) / _horner(u, _LGAMMA_C)
    return np.where(np.isinf(x), np.inf, stirling)


def _sin_pi(x: Array) -> Array:
    return np.sin(math.pi * (x - np.round(x)))


def _lgamma64(x: Array) -> Array:
    out = _lgamma_positive(np.maximum(x, 0.5))
    low = x < 0.5
    y = x[low]
    reflected = math.log(math.pi) - np.log(np.abs(_sin_pi(y))) - _lgamma_positive(1 - y)
    out[low] = np.where(np.isinf(y), np.inf, reflected)
    return np.where(np.isnan(x), np.nan, out)


def _shifted(x: Array) -> tuple[Array, Array, Array]:
    """float64 numbers y = x, or 1 - x below 1/2; and u = min(y, 8), and y + 8 below 8, else y."""
    y = x.astype(np.float64)
    np.copyto(y, 1 - y, where=y < 0.5)
    return y, np.minimum(y, 8), np.where(y < 8, y + 8, y)


def _lgamma32(x: Array) -> Array:
    """For float32: log gamma(y + 8) less the logarithm of y (y + 1) … (y + 7), without masks."""
    y, u, z = _shifted(x)
    product = u.copy()
    for _ in range(7):
        u += 1
        product *= u
    square = 1 / (z * z)
    out = (z - 0.5) * np.log(z) - z + math.log(2 * math.pi) / 2
    out += (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / z
    out -= np.where(y < 8, np.log(product), 0)
    out[(x == 1) | (x == 2)] = 0
    low = x < 0.5
    if low.any():
        out[low] = math.log(math.pi) - np.log(np.abs(_sin_pi(x[low].astype(np.float64)))) - out[low]
    out[np.isinf(x)] = np.inf
    return out


def lgamma(x: Array) -> Array:
    """The logarithm of the absolute value of the gamma function; infinite at its poles."""
    return _elementwise(x, _lgamma32, _lgamma64)


# Bernoulli numbers B(2k) / 2k, k = 7 … 1, of the asymptotic series of digamma.
_DIGAMMA = (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12)


def _digamma_positive(x: Array) -> Array:
    shift = np.zeros_like(x)
    x = x.copy()
    for _ in range(10):
        low = x < 10
        shift[low] -= 1 / x[low]
        x[low] += 1
    z = 1 / (x * x)
    return np.log(x) - 0.5 / x - z * _horner(z, _DIGAMMA) + shift


def _digamma64(x: Array) -> Array:
    out = _digamma_positive(np.maximum(x, 0.5))
    low = x < 0.5
    y = x[low]
    remainder = y - np.round(y)
    reflected = _digamma_positive(1 - y) - math.pi / np.tan(math.pi * remainder)
    reflected[remainder == 0] = np.nan
    out[low] = np.where(y == 0, -np.copysign(np.inf, y), reflected)
    return np.where(np.isnan(x), np.nan, out)


def _digamma32(x: Array) -> Array:
    """For float32: the derivative of the formula of `_lgamma32`."""
    y, u, z = _shifted(x)
    shift = 1 / u
    for _ in range(7):
        u += 1
        shift += 1 / u
    square = 1 / (z * z)
    out = np.log(z) - 0.5 / z - square * (1 / 12 - square * (1 / 120 - square / 252))
    out -= np.where(y < 8, shift, 0)
    low = x < 0.5
    if low.any():
        part = x[low].astype(np.float64)
        rest = part - np.round(part)
        out[low] -= math.pi / np.tan(math.pi * rest)
        pole = np.where(part == 0, -np.copysign(np.inf, part), np.nan)
        out[low] = np.where(rest == 0, pole, out[low])
    return out


def digamma(x: Array) -> Array:
    """The derivative of `lgamma`: nan at its poles, ∓inf at ±0."""
    return _elementwise(x, _digamma32, _digamma64)


# Bernoulli numbers B(2k), k = 5 … 1, of the asymptotic series of trigamma.
_TRIGAMMA = (5 / 66, -1 / 30, 1 / 42, -1 / 30, 1 / 6)


def _trigamma(x: Array) -> Array:
    """In the type of ``x``, so that it is large but finite at the poles, as PyTorch's is."""
    low = x < 0.5
    y = np.where(low, 1 - x, x)
    total = np.zeros_like(x)
    for _ in range(8):
        total += 1 / (y * y)
        y += 1
    square = 1 / (y * y)
    total += (1 + 0.5 / y + square * _horner(square, _TRIGAMMA)) / y
    if low.any():
        sine = np.sin(x.dtype.type(math.pi) * x)
        total = np.where(low, x.dtype.type(math.pi**2) / (sine * sine) - total, total)
    return total


# Bernoulli numbers B(2k) / (2k)!, k = 1 … 7, of Euler and Maclaurin's sum.
_BERNOULLI = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000,
    1 / 74724249600,
)  # fmt: skip


def _zeta64(s: int, q: Array) -> Array:
    """Hurwitz's zeta function, the sum of ``(q + k) ** -s``; nan below -10000."""
    total = np.where(q > -10000, 0.0, np.nan)
    q = q.astype(np.float64)
    while (low := (q < 12) & (q > -10000)).any():
        total[low] += q[low] ** -float(s)
        q[low] += 1
    total += q ** (1.0 - s) / (s - 1) + q ** -float(s) / 2
    factor, power = float(s), q ** (-1.0 - s)
    for k, coefficient in enumerate(_BERNOULLI):
        total += coefficient * factor * power
        factor *= (s + 2 * k + 1) * (s + 2 * k + 2)
        power /= q * q
    return total


def polygamma(n: int, x: Array) -> Array:
    """The derivative number ``n`` (at least 1) of `digamma`."""
    if n == 1:
        return _elementwise(x, _trigamma, _trigamma)
    scale = (-1.0) ** (n + 1) * math.factorial(n)
    return _elementwise(x, None, lambda y: scale * _zeta64(n + 1, y))
