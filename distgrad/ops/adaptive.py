"""Pooling into an output of a given size: windows that share the input out evenly."""

from __future__ import annotations

import itertools
import math
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, distinct
from distgrad.backend.device import array_namespace, working_on
from distgrad.errors import ArgumentError, DistgradError, ShapeError, explain
from distgrad.ops.checks import as_dtype, demand_floating, widened
from distgrad.ops.matmul import matmul
from distgrad.ops.pool import avg_pool
from distgrad.ops.shape import movedim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d", "adaptive_max_pool3d_with_indices",
]  # fmt: skip


# ---------------------------------------------------------------------- sizes
def _check_space(dims: int, input: Tensor) -> None:
    if input.ndim not in (dims + 1, dims + 2):
        raise ShapeError(
            f"Expected {dims + 1}D or {dims + 2}D tensor, but got input of size: "
            f"{list(input.shape)}"
        )
    if 0 in input.array.shape[-dims:]:
        raise ShapeError(
            "Expected input to have non-zero size for non-batch dimensions, but got input of "
            f"size: {list(input.shape)}"
        )
    demand_floating(input.array)


def _goal(name: str, dims: int, input: Tensor, output_size: Any) -> Shape:
    """Return the wanted size; None keeps a dimension's length."""
    try:
        if not isinstance(output_size, int | None) and input.ndim <= len(output_size) > 1:
            raise ArgumentError(f"Input dimension should be at least {len(output_size) + 1}")
        _check_space(dims, input)
        space = input.array.shape[-dims:]
        many = (output_size,) * dims if isinstance(output_size, int | None) else tuple(output_size)
        if len(many) == 1:
            many *= dims
        if len(many) != dims:
            raise ShapeError(f"output_size must have {dims} entries, but has {len(many)}")
        goal = tuple(n if want is None else int(want) for n, want in zip(space, many, strict=True))
        if min(goal) < 0:
            raise ShapeError(f"elements of output_size must be non-negative, but got {list(goal)}")
        return goal
    except (DistgradError, TypeError) as error:
        raise explain(name, error, {"input": input}, {"output_size": output_size}) from None


def _edges(n: int, out: int) -> list[tuple[int, int]]:
    """Return start and end of each window: ⌊i·n/out⌋ and ⌈(i + 1)·n/out⌉."""
    return [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


def _adaptive_avg(dims: int, input: Tensor, output_size: Any) -> Tensor:
    goal = _goal(f"adaptive_avg_pool{dims}d", dims, input, output_size)
    space = input.array.shape[-dims:]
    if all(out and n % out == 0 for n, out in zip(space, goal, strict=True)):
        kernel = tuple(n // out for n, out in zip(space, goal, strict=True))
        return avg_pool(input, (kernel, kernel, (0,) * dims, goal), True, None)
    xp, kind = array_namespace(input.array), input.array.dtype
    input = widened(input)
    for axis, (n, out) in zip(range(-dims, 0), zip(space, goal, strict=True), strict=True):
        with working_on(input.array):
            means = xp.zeros((n, out), input.array.dtype)
            for place, (start, end) in enumerate(_edges(n, out)):
                means[start:end, place] = 1 / (end - start)
        input = movedim(matmul(movedim(input, axis, -1), wrap(means)), -1, axis)
    return as_dtype(input, kind)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the signal out evenly."""
    return _adaptive_avg(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the image out evenly.

    Args:
        output_size: a number, or a pair; None keeps a dimension.
    """
    return _adaptive_avg(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Return the means of ``output_size`` windows that share the volume out evenly."""
    return _adaptive_avg(3, input, output_size)


@op(
    samples=[case(distinct(2, 3, 7), output_size=(3,)),
             case(distinct(2, 2, 5, 4), output_size=(2, 3))],
    outputs=("out", "indices!"),
    method=False,
    reference=lambda torch, x, output_size: getattr(
        torch.nn.functional, f"adaptive_max_pool{len(output_size)}d"
    )(x, output_size, return_indices=True),
    d_input=lambda F, g, input_shape, indices, output_size: F.unpool_sum(
        g, indices, input_shape[len(input_shape) - len(output_size) :]
    ),
)  # fmt: skip
def adaptive_max_pool(xp: Namespace, input: Tensor, output_size: Shape) -> Any:
    """Return the maxima of windows that share the last dimensions out evenly, and their places."""
    return _adaptive_max_pool(xp, input, output_size)


def _adaptive_max_pool(xp: Namespace, x: Array, goal: Shape) -> tuple[Array, Array]:
    dims = len(goal)
    space, lead = x.shape[-dims:], x.shape[:-dims]
    out, places = xp.empty((*lead, *goal), x.dtype), xp.empty((*lead, *goal), xp.int64)
    numbers = xp.arange(math.prod(space)).reshape(space)
    cells = [list(enumerate(_edges(n, o))) for n, o in zip(space, goal, strict=True)]
    for cell in itertools.product(*cells):
        window = tuple(slice(*edges) for _, edges in cell)
        at = (..., *(place for place, _ in cell))
        block = x[(..., *window)].reshape(*lead, -1)
        best = xp.argmax(block, axis=-1)
        out[at] = xp.take_along_axis(block, best[..., None], -1)[..., 0]
        places[at] = xp.take(numbers[window].reshape(-1), best)
    return out, places


def _adaptive_max(dims: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    goal = _goal(f"adaptive_max_pool{dims}d", dims, input, output_size)
    out, indices = adaptive_max_pool(input, goal)
    return (out, indices) if return_indices else out


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the signal out evenly."""
    return _adaptive_max(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the image out evenly."""
    return _adaptive_max(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Return the maxima of ``output_size`` windows that share the volume out evenly."""
    return _adaptive_max(3, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    """Return what ``adaptive_max_pool1d`` returns with ``return_indices=True``."""
    return _adaptive_max(1, input, output_size, True)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    """Return what ``adaptive_max_pool2d`` returns with ``return_indices=True``."""
    return _adaptive_max(2, input, output_size, True)


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> Any:
    """Return what ``adaptive_max_pool3d`` returns with ``return_indices=True``."""
    return _adaptive_max(3, input, output_size, True)
