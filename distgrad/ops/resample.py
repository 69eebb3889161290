"""Resampling: interpolation on grids and at points, windows as columns, channels as space.

Interpolation works along one dimension after the other with a table of neighbours and weights for
each new element, computed once on the host.  The gradient is the same with the table transposed.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import case, real
from distgrad.errors import ArgumentError, ArgumentTypeError, DistgradError, ShapeError
from distgrad.ops.adaptive import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from distgrad.ops.checks import demand_floating
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = ["interpolate", "upsample", "upsample_bilinear", "upsample_nearest"]

Table = tuple[Any, Any]  # neighbours and their weights, (length, most neighbours) both
Scales = tuple[float | None, ...]


# ---------------------------------------------------------------------- tables
def _positions(n: int, out: int, align: bool, scale: float | None, kind: Any) -> Any:
    """Return where the new elements lie among ``n`` old ones."""
    number = numpy.arange(out, dtype=kind)
    if align:
        return number * (kind(n - 1) / kind(out - 1) if out > 1 else kind(0))
    step = kind(1.0 / scale) if scale is not None and scale > 0 else kind(n) / kind(out)
    return (number + kind(0.5)) * step - kind(0.5)


def _nearest(n: int, out: int, exact: bool, scale: float | None, kind: Any) -> Table:
    if not exact and out in (n, 2 * n):  # whatever the scale says, as in PyTorch
        return (numpy.arange(out) // (out // n))[:, None], numpy.ones((out, 1), kind)
    if exact:
        at = numpy.maximum(_positions(n, out, False, scale, kind), 0) + kind(0.5)
    else:
        step = kind(1.0 / scale) if scale is not None and scale > 0 else kind(n) / kind(out)
        at = numpy.arange(out, dtype=kind) * step
    places = numpy.minimum(numpy.floor(at).astype(numpy.int64), n - 1)
    return places[:, None], numpy.ones((out, 1), kind)


def _linear(n: int, out: int, align: bool, scale: float | None, kind: Any) -> Table:
    if n == out:
        return numpy.arange(n)[:, None], numpy.ones((n, 1), kind)
    at = numpy.maximum(_positions(n, out, align, scale, kind), 0)
    low = numpy.minimum(at.astype(numpy.int64), n - 1)
    part = numpy.clip(at - low, 0, 1).astype(kind)
    return numpy.stack([low, numpy.minimum(low + 1, n - 1)], 1), numpy.stack([1 - part, part], 1)


def cubic(x: Any, a: float = -0.75) -> list[Any]:
    """Return the weights of the neighbours -1, 0, 1, 2 of a point at ``x`` in [0, 1]."""

    def near(t: Any) -> Any:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Any) -> Any:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    return [far(x + 1), near(x), near(1 - x), far(2 - x)]


def _cubic(n: int, out: int, align: bool, scale: float | None, kind: Any) -> Table:
    at = _positions(n, out, align, scale, kind)
    low = numpy.minimum(numpy.floor(at), n - 1)
    weights = numpy.stack(cubic(numpy.clip(at - low, 0, 1)), 1).astype(kind)
    places = low.astype(numpy.int64)[:, None] + numpy.arange(-1, 3)
    return numpy.clip(places, 0, n - 1), weights


def _triangle(x: Any) -> Any:
    return numpy.maximum(1 - numpy.abs(x), 0)


def _keys(x: Any) -> Any:
    """Return Keys' cubic with a = -1/2."""
    x = numpy.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return numpy.where(x < 1, near, numpy.where(x < 2, far, 0))


def _antialias(
    n: int, out: int, is_cubic: bool, align: bool, scale: float | None, kind: Any
) -> Table:
    """Return tables whose filter is as wide as the step between new elements."""
    if align:
        step = (n - 1) / (out - 1) if out > 1 else 0.0
    else:
        step = 1.0 / scale if scale is not None and scale > 0 else n / out
    support = (2.0 if is_cubic else 1.0) * max(step, 1.0)
    center = step * (numpy.arange(out) + 0.5)
    start = numpy.maximum((center - support + 0.5).astype(numpy.int64), 0)
    stop = numpy.minimum((center + support + 0.5).astype(numpy.int64), n)
    places = start[:, None] + numpy.arange(max(int((stop - start).max()), 1))
    offset = (places - center[:, None] + 0.5) / max(step, 1.0)
    weights = (_keys if is_cubic else _triangle)(offset) * (places < stop[:, None])
    total = weights.sum(1, keepdims=True)
    weights = weights / numpy.where(total == 0, 1, total)
    return numpy.minimum(places, n - 1), weights.astype(kind)


@functools.lru_cache(maxsize=512)
def _table(n: int, out: int, mode: str, align: bool, scale: float | None, wide: bool) -> Table:
    kind = numpy.float64 if wide else numpy.float32
    if mode.startswith("nearest"):
        return _nearest(n, out, mode == "nearest-exact", scale, kind)
    if mode.endswith("antialias"):
        return _antialias(n, out, "cubic" in mode, align, scale, kind)
    return (_cubic if mode == "bicubic" else _linear)(n, out, align, scale, kind)


@functools.lru_cache(maxsize=512)
def _transposed(n: int, out: int, mode: str, align: bool, scale: float | None, wide: bool) -> Table:
    """Return for each old element the new ones that it takes part in."""
    places, weights = _table(n, out, mode, align, scale, wide)
    rows = numpy.repeat(numpy.arange(out), places.shape[1])
    keep = weights.reshape(-1) != 0
    columns, rows, values = places.reshape(-1)[keep], rows[keep], weights.reshape(-1)[keep]
    order = numpy.argsort(columns, kind="stable")
    columns, rows, values = columns[order], rows[order], values[order]
    counts = numpy.bincount(columns, minlength=n)
    rank = numpy.arange(len(columns)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
    back = numpy.zeros((n, max(int(counts.max()), 1)), numpy.int64)
    factors = numpy.zeros(back.shape, weights.dtype)
    back[columns, rank], factors[columns, rank] = rows, values
    return back, factors


def _along(xp: Namespace, x: Array, axis: int, table: Table) -> Array:
    """Return the weighted sums of neighbours along one dimension."""
    places, weights = table
    shape = (-1,) + (1,) * (-1 - axis)
    total: Array = None
    for column in range(places.shape[1]):
        part = xp.take(x, xp.asarray(places[:, column]), axis=axis)
        if not (weights[:, column] == 1).all():
            part *= xp.asarray(weights[:, column]).reshape(shape)
        total = part if total is None else xp.add(total, part, out=total)
    return total


def _fixed_point(table: Table) -> tuple[Any, Any, int]:
    """Return a table with weights of 16 bits, and how many of these are behind the point."""
    places, weights = table[0], table[1].astype(numpy.float64)
    for column in range(places.shape[1] - 1, 0, -1):  # the border's neighbours are one element
        same = places[:, column] == places[:, column - 1]
        weights[:, column - 1] += numpy.where(same, weights[:, column], 0)
        weights[same, column] = 0
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    scaled = weights * (1 << bits)
    return places, numpy.trunc(scaled + numpy.copysign(0.5, scaled)).astype(numpy.int32), bits


def _resample_bytes(
    xp: Namespace, x: Array, lengths: Sequence[tuple[int, int]], mode: str, align: bool,
    scales: Scales,
) -> Array:  # fmt: skip
    """Return the same for uint8 in whole numbers, rounded after each dimension, the last first."""
    axes = [*zip(range(-len(lengths), 0), lengths, scales, strict=True)]
    for axis, (n, out), scale in reversed(axes):
        places, weights, bits = _fixed_point(_table(n, out, mode, align, scale, True))
        total = _along(xp, x.astype(xp.int32), axis, (places, weights))
        x = xp.clip((total + (1 << bits >> 1)) >> bits, 0, 255).astype(xp.uint8)
    return x


def _resample(
    xp: Namespace, x: Array, lengths: Sequence[tuple[int, int]], make: Any, mode: str, align: bool,
    scales: Scales,
) -> Array:  # fmt: skip
    kind = x.dtype
    if kind.itemsize == 2:
        x = xp.astype(x, xp.float32)
    dims = len(lengths)
    for axis, (n, out), scale in zip(range(-dims, 0), lengths, scales, strict=True):
        x = _along(xp, x, axis, make(n, out, mode, align, scale, kind == xp.float64))
    return xp.astype(x, kind) if x.dtype != kind else x


def _interpolated(
    torch: Any, x: Any, size: Shape, mode: str, align_corners: bool, scales: Scales
) -> Any:
    name, anti = mode.removesuffix("-antialias"), mode.endswith("-antialias")
    return torch.nn.functional.interpolate(
        x, None if scales[0] else size, scales if scales[0] else None, name,
        None if name.startswith("nearest") else align_corners, antialias=anti,
    )  # fmt: skip


def _form(size: Shape, mode: str, align: bool = False, scales: Any = None) -> dict[str, Any]:
    return {
        "size": size, "mode": mode, "align_corners": align,
        "scales": scales or (None,) * len(size),
    }  # fmt: skip


@op(
    "linear",
    samples=[
        case(real(2, 2, 5), **_form((8,), "nearest")),
        case(real(1, 2, 5, 4), **_form((3, 9), "nearest-exact")),
        case(real(1, 1, 2, 3, 2), **_form((4, 3, 5), "nearest")),
        case(real(2, 2, 5), **_form((7,), "linear")),
        case(real(2, 1, 4, 5), **_form((7, 3), "bilinear")),
        case(real(2, 1, 4, 5), **_form((7, 1), "bilinear", True)),
        case(real(1, 2, 4, 5), **_form((6, 8), "bilinear", scales=(1.7, 1.7))),
        case(real(1, 1, 3, 2, 4), **_form((2, 5, 4), "trilinear", True)),
        case(real(1, 1, 3, 2, 4), **_form((5, 3, 2), "trilinear")),
        case(real(1, 2, 4, 5), **_form((7, 3), "bicubic")),
        case(real(1, 2, 4, 5), **_form((7, 3), "bicubic", True)),
        case(real(1, 2, 9, 7), **_form((4, 9), "bilinear-antialias")),
        case(real(1, 1, 9, 7), **_form((4, 3), "bicubic-antialias")),
    ],
    method=False,
    reference=_interpolated,
    d_input=lambda F, g, input_shape, size, mode, align_corners, scales: F.resample_back(
        g, input_shape[len(input_shape) - len(size) :], mode, align_corners, scales
    ),
)
def resample(
    xp: Namespace, input: Tensor, size: Shape, mode: str, align_corners: bool, scales: Scales
) -> Array:
    """Return ``input`` interpolated to ``size`` in its last dimensions."""
    space = input.shape[input.ndim - len(size) :]
    lengths = list(zip(space, size, strict=True))
    if input.dtype == xp.uint8 and not mode.startswith("nearest"):
        return _resample_bytes(xp, input, lengths, mode, align_corners, scales)
    return _resample(xp, input, lengths, _table, mode, align_corners, scales)


@op(
    "linear",
    samples=[
        case(
            real(1, 2, 7, 3), space=(4, 5), mode="bicubic", align_corners=False, scales=(None,) * 2
        )
    ],
    method=False,
    reference="none",
    d_input=lambda F, g, input_shape, space, mode, align_corners, scales: F.resample(
        g, input_shape[len(input_shape) - len(space) :], mode, align_corners, scales
    ),
)
def resample_back(
    xp: Namespace, input: Tensor, space: Shape, mode: str, align_corners: bool, scales: Scales
) -> Array:
    """Return the transpose of ``resample`` from ``space``: what each old element gave."""
    size = input.shape[input.ndim - len(space) :]
    lengths = list(zip(space, size, strict=True))
    return _resample(xp, input, lengths, _transposed, mode, align_corners, scales)


# ---------------------------------------------------------------------- public
_NEEDS = {"linear": 3, "bilinear": 4, "bicubic": 4, "trilinear": 5}
_BYTES = ("nearest", "nearest-exact", "bilinear", "bicubic")
_AREA = {3: adaptive_avg_pool1d, 4: adaptive_avg_pool2d, 5: adaptive_avg_pool3d}


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Return ``input`` interpolated to ``size``, or to ``scale_factor`` times its size.

    Shape:
        input: ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
    Args:
        mode: "nearest", "nearest-exact", "area" (any), "linear" (3-D), "bilinear", "bicubic"
            (4-D), "trilinear" (5-D).
        align_corners: the corner elements keep their places.
        recompute_scale_factor: compute the step between elements from the rounded sizes.
        antialias: filter before making smaller (bilinear and bicubic).

    Example:
        >>> import distgrad as dg
        >>> dg.nn.functional.interpolate(dg.tensor([[[1.0, 3.0]]]), size=4, mode="linear")
        tensor([[[1.0000, 1.5000, 2.5000, 3.0000]]])
    """
    try:
        _check_mode(input, mode, align_corners, antialias)
        out, scales = _goal(input, size, scale_factor, bool(recompute_scale_factor), mode)
    except DistgradError as error:
        options = {"size": size, "scale_factor": scale_factor, "mode": mode}
        recover("interpolate", error, {"input": input}, options)
    if mode == "area":
        return _AREA[input.array.ndim](input, out)
    name = f"{mode}-antialias" if antialias else mode
    return resample(input, out, name, bool(align_corners), scales)


def _check_mode(input: Tensor, mode: str, align_corners: bool | None, antialias: bool) -> None:
    ndim = input.array.ndim
    if mode in ("nearest", "area", "nearest-exact"):
        if align_corners is not None:
            raise ArgumentError(
                "align_corners option can only be set with the interpolating modes: linear | "
                "bilinear | bicubic | trilinear"
            )
    elif mode not in _NEEDS or ndim not in (3, 4, 5):
        raise NoSuchMode(
            "Input Error: Only 3D, 4D and 5D input Tensors supported "
            f"(got {ndim}D) for the modes: nearest | linear | bilinear | bicubic | trilinear | "
            f"area | nearest-exact (got {mode})"
        )
    elif _NEEDS[mode] != ndim:
        raise NoSuchMode(f"Got {ndim}D input, but {mode} mode needs {_NEEDS[mode]}D input")
    if antialias and (mode not in ("bilinear", "bicubic") or ndim != 4):
        raise ArgumentError(
            "Anti-alias option is restricted to bilinear and bicubic modes and requires a 4-D "
            "tensor as input"
        )
    if ndim not in (3, 4, 5):
        raise NoSuchMode(f"Only 3D, 4D and 5D input Tensors supported (got {ndim}D)")
    demand_floating(input.array, *(("uint8",) if mode in _BYTES else ()))


class NoSuchMode(DistgradError, NotImplementedError):
    """A mode that does not exist for this number of dimensions."""


def _goal(
    input: Tensor, size: Any, scale_factor: Any, recompute: bool, mode: str
) -> tuple[Shape, Scales]:
    """Return the size of the output, and the scales that positions are computed with."""
    space = input.array.shape[2:]
    dims = len(space)
    none: Scales = (None,) * dims
    if (size is None) == (scale_factor is None):
        raise ArgumentError(
            "either size or scale_factor should be defined" if size is None
            else "only one of size or scale_factor should be defined"
        )  # fmt: skip
    if size is not None:
        if recompute:
            raise ArgumentError("recompute_scale_factor is not meaningful with an explicit size.")
        sizes = _spread("size", size, dims, space)
        if any(not isinstance(n, int | numpy.integer) for n in sizes):
            raise ArgumentTypeError(f"expected size to be integers, but got {size}")
        out, scales = tuple(int(n) for n in sizes), none
    else:
        factors = _spread("scale_factor", scale_factor, dims, space)
        out = tuple(math.floor(n * f) for n, f in zip(space, factors, strict=True))
        scales = none if recompute or mode == "area" else tuple(float(f) for f in factors)
    if min(out) <= 0 or 0 in input.array.shape[1:]:
        raise ShapeError(
            f"Input and output sizes should be greater than 0, but got input {list(space)} output "
            f"{list(out)}"
        )
    return out, scales


def _spread(name: str, value: Any, dims: int, space: Shape) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        return (value,) * dims
    if len(value) != dims:
        raise ArgumentError(
            f"Input and {name} must have the same number of spatial dimensions, but got input "
            f"with spatial dimensions of {list(space)} and {name} of {value}"
        )
    return tuple(value)


def upsample(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """Return ``interpolate`` of the same arguments: the older name."""
    _deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> Tensor:
    """Return ``interpolate`` by the nearest element: the older name."""
    _deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> Tensor:
    """Return ``interpolate`` by lines with the corners kept: the older name."""
    _deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, "bilinear", True)


def _deprecated(name: str) -> None:
    text = f"`nn.functional.{name}` is deprecated. Use `nn.functional.interpolate` instead."
    warnings.warn(text, stacklevel=3)
