"""Reductions of neighbouring runs of elements, and hashes."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import booleans, case, distinct, integers, real
from distgrad.autograd.traced import innermost
from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import from_numpy
from distgrad.errors import DistgradError, DtypeNotImplemented, IndexOutOfRange, ShapeError
from distgrad.ops.compare import where
from distgrad.ops.create import full
from distgrad.ops.elementwise import div
from distgrad.ops.reduce import axes
from distgrad.ops.scatter import scatter_reduce
from distgrad.ops.shape import narrow, wrap_dim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Dim, Namespace, Number

__all__ = ["hash_tensor", "segment_reduce"]

_EMPTY = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}
_SCATTERED = {"sum": "sum", "mean": "sum", "prod": "prod", "max": "amax", "min": "amin"}


@takes_out
def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Number | None = None,
) -> Tensor:
    """Return the reductions of consecutive segments along ``axis``.

    Args:
        data: a floating point tensor.
        reduce: "sum", "mean", "max", "min" or "prod".
        lengths: of the segments along its last dimension; the ones before are those of ``data``.
        indices: is not supported, as in PyTorch.
        offsets: where the segments begin and the last one ends, instead of ``lengths``.
        axis: the last dimension of ``lengths``.
        unsafe: do not check that the lengths add up.
        initial: what every segment begins with.
    """
    try:
        place = wrap_dim(axis, data.array.ndim)
        sizes = _lengths(data, reduce, lengths, offsets, place, unsafe)
    except DistgradError as error:
        recover("segment_reduce", error, {"data": data}, {"reduce": reduce, "axis": axis})
    xp, shape = array_namespace(sizes), data.array.shape
    ends = xp.cumsum(sizes, -1)
    places = xp.arange(shape[place]).reshape(-1, 1)
    segment = xp.add.reduce(xp.expand_dims(ends, -2) <= places, -1, xp.int64)
    segment = segment.reshape(*segment.shape, *[1] * (len(shape) - place - 1))
    index = wrap(xp.broadcast_to(segment, shape).copy())
    count = sizes.shape[-1]
    start = _EMPTY[reduce] if initial is None else initial
    first = full(  # one more, for what lies behind the last segment
        (*shape[:place], count + 1, *shape[place + 1 :]),
        start,
        dtype=data.dtype,
        device=data.device,
    )
    out = scatter_reduce(first, place, index, data, _SCATTERED[reduce])
    out = narrow(out, place, 0, count)
    if reduce != "mean":
        return out
    rows = sizes.reshape(*sizes.shape, *[1] * (len(shape) - place - 1)).astype(data.array.dtype)
    if initial is None:
        return div(out, wrap(rows))
    return where(wrap(rows == 0), out, div(out, wrap(xp.maximum(rows, 1))))


def _lengths(
    data: Tensor, reduce: str, lengths: Tensor | None, offsets: Tensor | None, axis: int,
    unsafe: bool,
) -> Array:  # fmt: skip
    """Return the lengths of the segments, after checks of all arguments."""
    if reduce not in _EMPTY:
        raise ShapeError(f"reduce argument must be sum, prod, mean, max or min, got {reduce}")
    if lengths is None and offsets is None:
        raise ShapeError("Either lengths or offsets must be defined.")
    if data.array.dtype.kind not in "fV":
        raise DtypeNotImplemented(f"not implemented for {data.array.dtype}; use .float()")
    given: Any = innermost((offsets if lengths is None else lengths).array)  # type: ignore[union-attr]
    xp = array_namespace(given)
    if given.dtype.kind not in "iu":
        raise DtypeNotImplemented(f"lengths and offsets are integers, not {given.dtype}")
    sizes = xp.diff(given, axis=-1) if lengths is None else given
    if sizes.ndim - 1 != axis:
        raise ShapeError(f"Expected axis to be the last dimension of lengths but got {axis}.")
    if not unsafe:
        if bool((sizes < 0).any()):
            raise ShapeError("lengths contains negative value!")
        if not bool((xp.add.reduce(sizes, -1) == data.array.shape[axis]).all()):
            raise ShapeError(
                "Expected all rows of lengths along axis to sum to data.size(lengths.dim()-1) "
                "when !unsafe."
            )
    return sizes


@op(samples=[case(distinct(3, 4)), case(real(2, 3, 4), dim=(0, 2)), case(real()),
             case(integers(9, 5), dim=0, keepdim=True), case(booleans(3, 2), dim=1)],
    widens=False)  # fmt: skip
def hash_tensor(
    xp: Namespace, input: Tensor, dim: Dim = (), *, keepdim: bool = False, mode: int = 0
) -> Array:
    """Return the exclusive or of the bits of all elements over ``dim``, as uint64.

    Elements are taken as float64 or int64.
    """
    x: Any = input
    if mode != 0:
        raise ShapeError(f"Unknown hash_tensor mode: {mode}")
    if x.dtype.kind == "c":
        raise DtypeNotImplemented(f"not implemented for {x.dtype}; hash .real and .imag")
    dims = axes(dim, x.ndim) or tuple(range(x.ndim))
    if not x.size and len(dims) == x.ndim and (dim is None or dim == ()):
        raise ShapeError("Expected reduction dim to be specified for input.numel() == 0.")
    for d in dims:
        if not x.shape[d]:
            raise IndexOutOfRange(f"Expected reduction dim {d} to have non-zero size.")
    whole = "int64" if from_numpy(x.dtype).name == "bool" or x.dtype.kind in "iu" else "float64"
    rest = [d for d in range(x.ndim) if d not in dims]
    rows = xp.ascontiguousarray(x.transpose(*rest, *dims).astype(whole)).view("uint64")
    rows = rows.reshape(*(x.shape[d] for d in rest), -1)
    while rows.shape[-1] > 1:  # halves of the row meet
        half = rows.shape[-1] // 2
        met = rows[..., :half] ^ rows[..., half : 2 * half]
        rows = xp.concatenate([met, rows[..., 2 * half :]], -1)
    shape = [1 if d in dims else n for d, n in enumerate(x.shape)] if keepdim else rows.shape[:-1]
    return rows.reshape(shape)
