"""Sampling images at points: ``grid_sample`` and the grids of affine maps.

An image at a point is a weighted sum over neighbours; weights are products over dimensions, so
one pair of rules, written on the weights of one dimension, serves all modes and numbers of
dimensions.  Sampling and its transpose are each other's derivative.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.autograd import engine
from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import Spec, case, real
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError
from distgrad.ops.checks import demand_floating
from distgrad.ops.matmul import matmul
from distgrad.ops.ranges import linspace
from distgrad.ops.resample import NoSuchMode, cubic
from distgrad.ops.shape import mT, reshape
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = ["affine_grid", "grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"]

_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


class _Neighbour(NamedTuple):
    """One neighbour of the points along one dimension."""

    place: Array
    weight: Any
    slope: Any  # derivative of the weight by the grid's number; None: 0


def _raw(x: Any) -> Any:
    return x.array if isinstance(x, Tensor) else x


def _like(array: Array, x: Any) -> Any:
    """Return the constant ``array`` in the world of ``x``."""
    return wrap(array) if isinstance(x, Tensor) else array


def _padded(xp: Namespace, at: Array, n: int, padding: str, align: bool) -> tuple[Array, Array]:
    """Return factor and summand that bring points into the image: ``factor * at + summand``."""
    kind = at.dtype
    factor, summand = xp.ones(at.shape, kind), xp.zeros(at.shape, kind)
    if padding == "zeros":
        return factor, summand
    if padding == "reflection":
        low, span = (0.0, float(n - 1)) if align else (-0.5, float(n))
        if span <= 0:
            return xp.zeros(at.shape, kind), summand
        turns = xp.floor((at - low) / span)
        odd = xp.mod(turns, 2) == 1
        factor = xp.astype(xp.where(odd, -1.0, 1.0), kind)
        summand = xp.astype(xp.where(odd, 2 * low + span * (turns + 1), -span * turns), kind)
        at = at * factor + summand
    outside = (at <= 0) | (at >= n - 1)
    factor = xp.where(outside, kind.type(0), factor)
    return factor, xp.where(outside, xp.astype(xp.clip(at, 0, n - 1), kind), summand)


def _along(F: Any, at: Any, n: int, mode: str, padding: str, align: bool) -> list[_Neighbour]:
    """Return the neighbours of the points ``at`` (from -1 to 1) along a dimension of ``n``."""
    xp = array_namespace(_raw(at))
    scale = (n - 1) / 2 if align else n / 2
    # In this order a point that is exactly on an element falls where PyTorch lets it fall.
    point = (at + 1) * scale if align else (at + 1) * scale - 0.5
    if mode == "bicubic":
        return _cubic(xp, point, scale, n, padding, align)
    factor, summand = _padded(xp, _raw(point), n, padding, align)
    if padding != "zeros":
        point = point * _like(factor, at) + _like(summand, at)
    if mode == "nearest":
        ones = xp.ones(point.shape, factor.dtype)
        return [_inside(xp, xp.rint(_raw(point)), _like(ones, at), None, n)]
    low = xp.floor(_raw(point))
    part, slope = point - _like(low, at), _like(factor * factor.dtype.type(scale), at)
    return [
        _inside(xp, low, 1 - part, -slope, n),
        _inside(xp, low + 1, part, slope, n),
    ]


def _cubic(
    xp: Namespace, point: Any, scale: float, n: int, padding: str, align: bool
) -> list[_Neighbour]:
    low = xp.floor(_raw(point))
    part = point - _like(low, point)
    found = []
    for step, weight, slope in zip(range(-1, 3), cubic(part), _cubic_slopes(part), strict=True):
        place = low + step
        if padding != "zeros":
            factor, summand = _padded(xp, place, n, padding, align)
            place = xp.rint(factor * place + summand)
        found.append(_inside(xp, place, weight, slope * scale, n))
    return found


def _cubic_slopes(x: Any, a: float = -0.75) -> list[Any]:
    def near(t: Any) -> Any:
        return (3 * (a + 2) * t - 2 * (a + 3)) * t

    def far(t: Any) -> Any:
        return (3 * a * t - 10 * a) * t + 8 * a

    return [far(x + 1), near(x), -near(1 - x), -far(2 - x)]


def _inside(xp: Namespace, place: Array, weight: Any, slope: Any, n: int) -> _Neighbour:
    """Return the neighbour with weight 0 where it lies outside of the image."""
    good = (place >= 0) & (place <= n - 1)
    if not bool(good.all()):
        mask = _like(xp.astype(good, place.dtype), weight)
        weight, slope = weight * mask, None if slope is None else slope * mask
        place = xp.where(good, place, place.dtype.type(0))
    return _Neighbour(xp.astype(place, xp.int64), weight, slope)


def _neighbours(
    F: Any, grid: Any, space: Shape, mode: str, padding: str, align: bool
) -> list[tuple[Any, tuple[_Neighbour, ...]]]:
    """Return for each neighbour its number in a row of the image, and its parts."""
    dims = len(space)
    points = F.reshape(grid, (grid.shape[0], math.prod(grid.shape[1:-1]), dims))
    each = [
        _along(F, F.select(points, -1, dims - 1 - d), n, mode, padding, align)
        for d, n in enumerate(space)
    ]
    steps = [math.prod(space[d + 1 :]) for d in range(dims)]
    return [
        (sum(part.place * step for part, step in zip(parts, steps, strict=True)), parts)
        for parts in itertools.product(*each)
    ]


def _index(number: Array, channels: int, like: Any) -> Any:
    xp = array_namespace(number)
    shape = (number.shape[0], channels, number.shape[1])
    return _like(xp.broadcast_to(number[:, None], shape), like)


def _weight(parts: Sequence[_Neighbour]) -> Any:
    weight = parts[0].weight
    for part in parts[1:]:
        weight = weight * part.weight
    return weight


def _rows(F: Any, x: Any, dims: int) -> Any:
    shape = x.shape
    return F.reshape(x, (*shape[:2], math.prod(shape[len(shape) - dims :])))


def _sampled(F: Any, input: Any, grid: Any, mode: str, padding: str, align: bool) -> Any:
    dims = grid.shape[-1]
    space, channels = input.shape[2:], input.shape[1]
    rows, total = _rows(F, input, dims), None
    for number, parts in _neighbours(F, grid, space, mode, padding, align):
        values = F.gather(rows, 2, _index(number, channels, input))
        values = values * F.unsqueeze(_weight(parts), 1)
        total = values if total is None else total + values
    return F.reshape(total, (*input.shape[:2], *grid.shape[1:-1]))


def _d_grid(F: Any, g: Any, input: Any, grid: Any, mode: str, padding: str, align: bool) -> Any:
    """Return the gradient of ``sum(g * sample(input, grid))`` by the grid."""
    dims = grid.shape[-1]
    space, channels = input.shape[2:], input.shape[1]
    rows, g = _rows(F, input, dims), _rows(F, g, dims)
    if mode == "nearest":
        return F.zero(grid)
    totals: list[Any] = [None] * dims
    for number, parts in _neighbours(F, grid, space, mode, padding, align):
        value = F.sum(F.gather(rows, 2, _index(number, channels, input)) * g, 1)
        for d in range(dims):
            slope = parts[d].slope
            for other in (*parts[:d], *parts[d + 1 :]):
                slope = slope * other.weight
            totals[d] = value * slope if totals[d] is None else totals[d] + value * slope
    return F.reshape(F.stack(totals[::-1], -1), grid.shape)


def _forms(*shapes: tuple[int, ...], **more: Any) -> list[Any]:
    samples = []
    for mode, padding, align in (
        ("bilinear", "zeros", False), ("bilinear", "border", True), ("nearest", "zeros", True),
        ("bilinear", "reflection", False), ("bicubic", "zeros", True), ("bicubic", "border", False),
        ("bicubic", "reflection", True), ("bilinear", "reflection", True),
    ):  # fmt: skip
        options = {"mode": mode, "padding_mode": padding, "align_corners": align, **more}
        if len(shapes[0]) == 4 or (mode != "bicubic" and not more):
            samples.append(case(real(*shapes[0]), Spec(shapes[1], -1.3, 1.3), **options))
    return samples


def _torch_sample(torch: Any, x: Any, grid: Any, mode: str, padding_mode: str,
                  align_corners: bool) -> Any:  # fmt: skip
    return torch.nn.functional.grid_sample(x, grid, mode, padding_mode, align_corners)


@op(
    samples=[*_forms((2, 2, 3, 4), (2, 3, 2, 2)), *_forms((1, 2, 3, 2, 4), (1, 2, 2, 1, 3))],
    method=False,
    node="GridSampler2DBackward0",
    reference=_torch_sample,
    d_input=lambda F, g, grid, input_shape, mode, padding_mode, align_corners: F.spread_to_grid(
        g, grid, tuple(input_shape[2:]), mode, padding_mode, align_corners
    ),
    d_grid=lambda F, g, input, grid, mode, padding_mode, align_corners: _d_grid(
        F, g, input, grid, mode, padding_mode, align_corners
    ),
)
def sample_grid(
    xp: Namespace, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Array:
    """Return the images at the points of the grid."""
    F = engine.array_functions(xp)
    return _sampled(F, input, grid, mode, padding_mode, align_corners)


@op(
    samples=_forms((2, 2, 3, 2), (2, 3, 2, 2), space=(3, 4))[:5],
    method=False,
    reference="none",
    d_input=lambda F, g, grid, mode, padding_mode, align_corners: F.sample_grid(
        g, grid, mode, padding_mode, align_corners
    ),
    d_grid=lambda F, g, input, grid, mode, padding_mode, align_corners: _d_grid(
        F, input, g, grid, mode, padding_mode, align_corners
    ),
)
def spread_to_grid(
    xp: Namespace, input: Tensor, grid: Tensor, space: Shape, mode: str, padding_mode: str,
    align_corners: bool,
) -> Array:  # fmt: skip
    """Return zeros of ``space`` with ``input`` spread over the neighbours of the grid's points."""
    F = engine.array_functions(xp)
    batch, channels = input.shape[:2]
    out = xp.zeros((batch, channels, math.prod(space)), input.dtype)
    rows = _rows(F, input, len(space))
    for number, parts in _neighbours(F, grid, space, mode, padding_mode, align_corners):
        xp.scatter_add(out, 2, _index(number, channels, input), rows * _weight(parts)[:, None])
    return xp.reshape(out, (batch, channels, *space))


# ---------------------------------------------------------------------- public
_CHANGED = (
    "Default {} behavior has changed to align_corners=False since 1.3.0. Please specify "
    "align_corners=True if the old behavior is desired. See the documentation for details."
)


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """Return ``input`` at the points of ``grid``, numbers from -1 to 1 across the image.

    Shape:
        input: ``(N, C, H, W)``, grid: ``(N, Ho, Wo, 2)`` of (x, y); result: ``(N, C, Ho, Wo)``.
        Or ``(N, C, D, H, W)`` and ``(N, Do, Ho, Wo, 3)`` of (x, y, z).
    Args:
        mode: "bilinear", "nearest", or "bicubic" (4-D only).
        padding_mode: what lies outside: "zeros", "border", "reflection".
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.
    """
    try:
        _check_grid(input, grid, mode, padding_mode)
    except DistgradError as error:
        options = {"mode": mode, "padding_mode": padding_mode}
        recover("grid_sample", error, {"input": input, "grid": grid}, options)
    if align_corners is None:
        warnings.warn(_CHANGED.format("grid_sample and affine_grid"), stacklevel=2)
    return sample_grid(input, grid, mode, padding_mode, bool(align_corners))


def _check_grid(input: Tensor, grid: Tensor, mode: str, padding_mode: str) -> None:
    if mode not in _MODES:
        raise ArgumentError(
            f"expected mode to be 'bilinear', 'nearest' or 'bicubic', but got: '{mode}'"
        )
    if padding_mode not in _PADDINGS:
        raise ArgumentError(
            "expected padding_mode to be 'zeros', 'border', or 'reflection', but got: "
            f"'{padding_mode}'"
        )
    x, points = input.array, grid.array
    demand_floating(x)
    if x.dtype != points.dtype:
        raise DtypeError(
            f"expected input and grid to have the same floating dtype, but got {x.dtype} and "
            f"{points.dtype}"
        )
    if x.ndim not in (4, 5) or x.ndim != points.ndim:
        raise ShapeError(
            "expected 4D or 5D input and grid with same number of dimensions, but got input with "
            f"sizes {list(x.shape)} and grid with sizes {list(points.shape)}"
        )
    if x.shape[0] != points.shape[0]:
        raise ShapeError(
            "expected grid and input to have same batch size, but got input with sizes "
            f"{list(x.shape)} and grid with sizes {list(points.shape)}"
        )
    if points.shape[-1] != x.ndim - 2:
        raise ShapeError(
            f"expected grid to have size {x.ndim - 2} in last dimension, but got grid with sizes "
            f"{list(points.shape)}"
        )
    if 0 in x.shape[2:]:
        raise ShapeError(
            "expected input to have non-empty spatial dimensions, but input has sizes "
            f"{list(x.shape)}"
        )
    if mode == "bicubic" and x.ndim == 5:
        raise ShapeError("bicubic interpolation only supports 4D input")


def grid_sampler(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Return ``grid_sample`` with its modes given as numbers, in the order of their names there."""
    if not (0 <= interpolation_mode < len(_MODES) and 0 <= padding_mode < len(_PADDINGS)):
        raise ShapeError(
            f"grid_sampler(interpolation_mode={interpolation_mode}, padding_mode={padding_mode}): "
            "there are the modes 0, 1 and 2 only"
        )
    modes = _MODES[interpolation_mode], _PADDINGS[padding_mode]
    return grid_sample(input, grid, *modes, align_corners)


def grid_sampler_2d(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Return ``grid_sampler`` of images."""
    return grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)


def grid_sampler_3d(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Tensor:
    """Return ``grid_sampler`` of volumes."""
    return grid_sampler(input, grid, interpolation_mode, padding_mode, align_corners)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """Return the grid for ``grid_sample`` that the affine maps ``theta`` make of each element.

    Shape:
        theta: ``(N, 2, 3)`` for ``size`` (N, C, H, W); ``(N, 3, 4)`` for (N, C, D, H, W).
    Args:
        align_corners: as in ``grid_sample``.
    """
    if align_corners is None:
        warnings.warn(_CHANGED.format("grid_sample and affine_grid"), stacklevel=2)
    dims = len(size) - 2
    try:
        _check_theta(theta, tuple(size), dims)
    except DistgradError as error:
        recover("affine_grid", error, {"theta": theta}, {"size": tuple(size)})
    xp, kind = array_namespace(theta.array), theta.array.dtype
    space = tuple(size[2:])
    base = xp.ones((*space, dims + 1), kind)
    for d, n in enumerate(space):
        line = linspace(-1, 1, n, dtype=theta.dtype, device=theta.device).array
        line = line if n > 1 else xp.zeros((1,), kind)
        if not align_corners:
            line = line * kind.type(n - 1) / kind.type(n)
        base[..., dims - 1 - d] = line.reshape((-1,) + (1,) * (dims - 1 - d))
    points = matmul(wrap(base.reshape(1, -1, dims + 1)), mT(theta))
    return reshape(points, (size[0], *space, dims))


def _check_theta(theta: Tensor, size: Shape, dims: int) -> None:
    if theta.array.dtype.kind != "f":
        raise ArgumentError(
            f"Expected theta to have floating point type, but got {theta.array.dtype}"
        )
    if dims not in (2, 3):
        raise NoSuchMode(
            "affine_grid only supports 4D and 5D sizes, for 2D and 3D affine transforms, "
            f"respectively. Got size {list(size)}"
        )
    if min(size) <= 0:
        raise ArgumentError(f"Expected non-zero, positive output size. Got {list(size)}")
    if theta.array.shape != (size[0], dims, dims + 1):
        raise ArgumentError(
            f"Expected a batch of {dims}D affine matrices of shape {size[0]}x{dims}x{dims + 1} for "
            f"size {list(size)}. Got {list(theta.array.shape)}."
        )
