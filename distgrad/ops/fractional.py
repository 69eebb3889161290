"""Fractional max pooling: windows of one size at random distances.

Source: Graham, "Fractional Max-Pooling" (2014), with the pseudo-random sequences of PyTorch: of n
elements, k windows of size w begin at ⌊(i + u)·a⌋ - ⌊u·a⌋ with a = (n - w) / (k - 1), u drawn once
for each image, channel and dimension; the last window ends with the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import between, case, distinct
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError, explain
from distgrad.ops.checks import demand_floating
from distgrad.ops.pool import Ints, each_size
from distgrad.ops.random import rand
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "fractional_max_pool2d", "fractional_max_pool2d_with_indices", "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
]  # fmt: skip


def _starts(xp: Namespace, u: Array, n: int, window: int, count: int) -> Array:
    """Return where the windows begin, (N, C, count), in the arithmetic of the samples' dtype."""
    last = xp.full((*u.shape, 1), n - window, xp.int64)
    if count < 2:
        return last[..., :count]
    kind = u.dtype
    alpha = xp.asarray(n - window, kind) / xp.asarray(count - 1, kind)
    number = xp.arange(count - 1).astype(kind)
    begun = ((number + u[..., None]) * alpha).astype(xp.int64)
    return xp.concatenate([begun - (u * alpha).astype(xp.int64)[..., None], last], axis=-1)


def _fractional(
    xp: Namespace, x: Array, samples: Array, kernel: Shape, out: Shape
) -> tuple[Array, Array]:
    dims = len(kernel)
    space = x.shape[-dims:]
    order = (1, 0) if dims == 2 else (0, 1, 2)  # the samples of an image are for (x, y)
    numbers: Any = 0
    for axis, (n, window, count) in enumerate(zip(space, kernel, out, strict=True)):
        start = _starts(xp, samples[: len(x), :, order[axis]], n, window, count)
        shape = (*start.shape[:2], *(count if a == axis else 1 for a in range(dims)))
        numbers = numbers + start.reshape(shape) * math.prod(space[axis + 1 :])
    first = xp.broadcast_to(numbers, (*x.shape[:2], *out)).reshape(*x.shape[:2], math.prod(out))
    rows = x.reshape(*x.shape[:2], math.prod(space))
    best, place = xp.take_along_axis(rows, first, 2), xp.array(first)
    for offset in itertools.product(*map(range, kernel)):
        step = sum(o * math.prod(space[a + 1 :]) for a, o in enumerate(offset))
        value = xp.take_along_axis(rows, first + step, 2)
        higher = (value > best) | xp.isnan(value)
        best, place = xp.where(higher, value, best), xp.where(higher, first + step, place)
    return best.reshape(*x.shape[:2], *out), place.reshape(*x.shape[:2], *out)


def _torch_fractional(
    torch: Any, x: Any, samples: Any, *, kernel_size: Any, output_size: Any
) -> Any:
    function = getattr(torch.nn.functional, f"fractional_max_pool{len(kernel_size)}d")
    return function(x, kernel_size, output_size, None, True, samples)


@op(
    samples=[
        case(distinct(2, 2, 6, 7), between(0.1, 0.9, 2, 2, 2), kernel_size=(2, 3),
             output_size=(3, 4)),
        case(distinct(1, 2, 5, 4, 4), between(0.1, 0.9, 1, 2, 3), kernel_size=(2, 1, 2),
             output_size=(3, 1, 2)),
    ],
    outputs=("out", "indices!"),
    method=False,
    reference=_torch_fractional,
    d_input=lambda F, g, input_shape, indices, output_size: F.unpool_sum(
        g, indices, input_shape[len(input_shape) - len(output_size) :]
    ),
)  # fmt: skip
def fractional_max_pool(
    xp: Namespace, input: Tensor, samples: Tensor, kernel_size: Shape, output_size: Shape
) -> Any:
    """Return the maxima of windows at random distances, and their places.

    Shape:
        input: ``(N, C, *)``, samples: ``(N, C, number of sizes)``, in [0, 1).
    """
    return _fractional(xp, input, samples, kernel_size, output_size)


# ---------------------------------------------------------------------- public
def _wanted(dims: int, input: Tensor, output_size: Any, output_ratio: Any) -> Shape:
    name = f"fractional_max_pool{dims}d"
    if output_size is not None:
        return each_size("output_size", output_size, dims)
    if output_ratio is None:
        raise ArgumentError(f"{name} requires specifying either an output_size or an output_ratio")
    ratios = (output_ratio,) * dims if isinstance(output_ratio, float) else tuple(output_ratio)
    if len(ratios) != dims:
        raise ArgumentError(f"{name} requires output_ratio to be a single number or {dims} numbers")
    space = input.array.shape[-dims:]
    return tuple(int(n * ratio) for n, ratio in zip(space, ratios, strict=True))


def _check(dims: int, input: Tensor, samples: Tensor | None, kernel: Shape, out: Shape) -> None:
    if input.ndim not in (dims + 1, dims + 2) or 0 in input.array.shape[1:]:
        raise ShapeError(
            f"Expected {dims + 1}D or {dims + 2}D tensor with non-zero size for non-batch "
            f"dimensions, but got input of size {list(input.shape)}"
        )
    demand_floating(input.array)
    for n, window, count in zip(input.array.shape[-dims:], kernel, out, strict=True):
        if count + window - 1 > n:
            raise ShapeError(
                f"pool size {window} too large relative to input size {n} and output size {count}"
            )
    if samples is None:
        return
    if samples.array.dtype != input.array.dtype:
        raise DtypeError("Expect _random_samples to have the same dtype as input")
    batch = input.array.shape[0] if input.ndim == dims + 2 else 1
    want, shape = (batch, input.array.shape[-dims - 1], dims), samples.array.shape
    if len(shape) != 3 or shape[0] < batch or shape[1:] != want[1:]:
        raise ShapeError(f"Expect _random_samples of size {list(want)}, but got {list(shape)}")


def _pool(
    dims: int, input: Tensor, kernel_size: Ints, output_size: Any, output_ratio: Any,
    samples: Tensor | None,
) -> Any:  # fmt: skip
    try:
        kernel = each_size("kernel_size", kernel_size, dims)
        out = _wanted(dims, input, output_size, output_ratio)
        _check(dims, input, samples, kernel, out)
    except (DistgradError, TypeError) as error:
        options = {"kernel_size": kernel_size, "output_size": output_size}
        raise explain(f"fractional_max_pool{dims}d", error, {"input": input}, options) from None
    shape = input.array.shape
    single = len(shape) == dims + 1
    if samples is None:
        sizes = (1 if single else shape[0], shape[-dims - 1], dims)
        samples = rand(sizes, dtype=input.dtype, device=input.device)
    pooled, indices = fractional_max_pool(input[None] if single else input, samples, kernel, out)
    return (pooled[0], indices[0]) if single else (pooled, indices)


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Return the maxima of windows at random distances, and with ``return_indices`` their places.

    Shape:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
    Args:
        output_size: the number of windows along each dimension.
        output_ratio: this number as a part of the input's size; one of the two is needed.
    """
    found = _pool(2, input, kernel_size, output_size, output_ratio, _random_samples)
    return found if return_indices else found[0]


def fractional_max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Return what ``fractional_max_pool2d`` returns with ``return_indices=True``."""
    return _pool(2, input, kernel_size, output_size, output_ratio, _random_samples)


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Return the maxima of windows at random distances, and with ``return_indices`` their places.

    Shape:
        input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``.
    Args:
        output_size: the number of windows along each dimension.
        output_ratio: this number as a part of the input's size; one of the two is needed.
    """
    found = _pool(3, input, kernel_size, output_size, output_ratio, _random_samples)
    return found if return_indices else found[0]


def fractional_max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Return what ``fractional_max_pool3d`` returns with ``return_indices=True``."""
    return _pool(3, input, kernel_size, output_size, output_ratio, _random_samples)
