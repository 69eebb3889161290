"""Numbers at equal distances, the identity, and the places of triangles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy

from distgrad.backend import dtype as _dtype
from distgrad.backend.device import namespace_of
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DtypeError,
    DtypeNotImplemented,
    ShapeError,
)
from distgrad.ops.create import DeviceLike, factory, finish, numpy_dtype, placed, strided_only
from distgrad.tensor import Tensor

__all__ = ["arange", "eye", "linspace", "logspace", "range", "tril_indices", "triu_indices"]


# ---------------------------------------------------------------------- steps
@factory
def arange(
    start: Any = None,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the numbers from ``start`` (0) up to but without ``end`` in steps of ``step``.

    int64 when all three are integers, else the default float.

    Raises:
        ShapeError: the step is zero, or leads away from ``end``.

    Example:
        >>> import distgrad as dg
        >>> dg.arange(3), dg.arange(1, 2, 0.5)
        (tensor([0, 1, 2]), tensor([1.0000, 1.5000]))
    """
    if end is None:
        start, end = 0, start
    elif start is None:
        start = 0
    if end is None:
        raise ArgumentTypeError("arange(): missing 1 required positional argument: 'end'")
    first, last, by = (_number(n, "arange") for n in (start, end, step))
    whole = all(isinstance(n, int) for n in (first, last, by))
    if dtype is None:
        kind = numpy.dtype(numpy.int64) if whole else _dtype.default_float()
    else:
        kind = _countable("arange", numpy_dtype(dtype, "arange"))
    if kind == numpy.int64 and not whole:
        if not int(by):
            raise ArgumentError(f"arange(step={by}, dtype=int64): step must be nonzero")
        first, last, by, whole = int(first), int(last), int(by), True
    count = _steps(first, last, by)
    place = placed(device)
    xp = namespace_of(place)
    if whole:
        array = xp.arange(first, last, by, dtype=xp.int64).astype(kind, copy=False)
    elif kind.kind in "iu":
        array = (xp.arange(count, dtype=xp.int64) * int(by) + int(first)).astype(kind)
    else:
        array = (xp.arange(count, dtype=xp.float64) * by + first).astype(kind)
    return finish(array, place, requires_grad, "arange")


def _number(value: Any, name: str) -> Any:
    value = value.item() if isinstance(value, Tensor | numpy.generic) else value
    if isinstance(value, complex):
        raise DtypeError(f"{name}({value}): value cannot be converted to type double")
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name}(): must be real number, not {type(value).__name__}")
    return value


def _countable(name: str, kind: Any) -> Any:
    if kind.kind in "bc":
        raise DtypeNotImplemented(f'{name}(): "{name}_cpu" not implemented for {kind}')
    return kind


def _steps(first: Any, last: Any, by: Any) -> int:
    if not by:
        raise ShapeError("arange(step=0): step must be nonzero")
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ShapeError(f"arange({first}, {last}): unsupported range: {first} -> {last}")
    if (last - first) * by < 0:
        raise ShapeError(
            f"arange({first}, {last}, {by}): upper bound and lower bound inconsistent with step "
            "sign; swap the bounds or change the sign of the step"
        )
    if isinstance(first, int) and isinstance(last, int) and isinstance(by, int):
        return -((first - last) // by)
    count: int = math.ceil((last - first) / by)
    return count


@factory
def range(
    start: Any = 0,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the numbers from ``start`` to ``end``, which is included.  Use ``arange``.

    Warns: it is deprecated, as in PyTorch, because Python's range leaves out the end.
    """
    warnings.warn("range is deprecated: its end is included; use arange", stacklevel=3)
    first, last, by = (_number(n, "range") for n in ((0, start, step) if end is None else
                                                     (start, end, step)))  # fmt: skip
    if not by or (last - first) * by < 0:
        raise ShapeError(f"range({first}, {last}, {by}): the step does not lead to the end")
    count = math.floor((last - first) / by) + 1
    kind = numpy_dtype(dtype, "range")
    place = placed(device)
    xp = namespace_of(place)
    array = (xp.arange(count, dtype=xp.float64) * by + first).astype(kind)
    return finish(array, place, requires_grad, "range")


# ---------------------------------------------------------------------- parts of an interval
@factory
def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ``steps`` numbers at equal distances from ``start`` to ``end``, both included."""
    return _spaced("linspace", start, end, steps, None, dtype, device, requires_grad)


@factory
def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ``base`` to the power of ``steps`` equally distant numbers from start to end."""
    return _spaced("logspace", start, end, steps, base, dtype, device, requires_grad)


def _spaced(
    name: str, start: Any, end: Any, steps: int, base: float | None, dtype: Any,
    device: DeviceLike, requires_grad: bool,
) -> Tensor:  # fmt: skip
    first, last = _endpoint(name, start), _endpoint(name, end)
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise ArgumentTypeError(
            f"{name}(steps={steps!r}): argument 'steps' must be int, not {type(steps).__name__}"
        )
    if steps < 0:
        raise ShapeError(f"{name}(steps={steps}): number of steps must be non-negative")
    kind = _space_dtype(name, first + last, dtype)
    if kind.kind in "iu":
        first, last = int(first), int(last)
    place = placed(device)
    xp = namespace_of(place)
    if kind == numpy.float32:
        first, last, step = _single_step(first, last, steps)
    else:
        step = (last - first) / (steps - 1) if steps > 1 else 0
    place_of = xp.arange(steps, dtype=xp.float64)
    # counted from the nearer end, so that the last number is ``end`` itself
    array = xp.where(
        place_of < steps // 2, first + step * place_of, last - step * (steps - 1 - place_of)
    )
    if steps == 1:
        array = xp.full(1, first)
    if base is not None:
        array = xp.power(base, array)
    return finish(array.astype(kind), place, requires_grad, name)


def _single_step(first: Any, last: Any, steps: int) -> tuple[float, float, float]:
    """Return the ends and the step as float32 rounds them: with those the bits are PyTorch's."""
    with numpy.errstate(over="ignore"):
        a, b = numpy.float32(first), numpy.float32(last)
        step = (b - a) / numpy.float32(steps - 1) if steps > 1 else a * 0
    return float(a), float(b), float(step)


def _space_dtype(name: str, number: Any, dtype: Any) -> Any:
    kind = numpy_dtype(dtype, name)
    if isinstance(number, complex):
        if dtype is None:
            return _dtype.get_default_dtype().to_complex().numpy
        if kind.kind != "c":
            raise DtypeError(f"{name}(): inferred dtype complex can't be safely cast to {kind}")
    if kind.kind == "b":
        raise DtypeNotImplemented(f'{name}(): "{name}_cpu" not implemented for {kind}')
    return kind


def _endpoint(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.array.ndim:
        raise ShapeError(
            f"{name}({value._brief()}): only supports 0-dimensional start and end tensors, but got "
            f"{value.array.ndim} dimension(s)"
        )
    return value.item() if isinstance(value, Tensor | numpy.generic) else value


# ---------------------------------------------------------------------- matrices
@factory
def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the matrix of ``n`` rows and ``m`` (``n``) columns with ones on its diagonal."""
    for letter, value in (("n", n), ("m", n if m is None else m)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ArgumentTypeError(
                f"eye(n={n}, m={m}): argument '{letter}' must be int, not {type(value).__name__}"
            )
        if value < 0:
            raise ShapeError(
                f"eye(n={n}, m={m}): {letter} must be greater or equal to 0, got {value}"
            )
    place = placed(device)
    array = namespace_of(place).eye(n, m, dtype=numpy_dtype(dtype, "eye"))
    return finish(array, place, requires_grad, "eye")


def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: DeviceLike = None,
    layout: Any = None,
) -> Tensor:  # fmt: skip
    """Return the row and column numbers on and below diagonal ``offset``, as a 2 × N tensor."""
    strided_only("tril_indices", layout)
    return _triangle("tril_indices", numpy.tril_indices, row, col, offset, dtype, device)


def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: DeviceLike = None,
    layout: Any = None,
) -> Tensor:  # fmt: skip
    """Return the row and column numbers on and above diagonal ``offset``, as a 2 × N tensor."""
    strided_only("triu_indices", layout)
    return _triangle("triu_indices", numpy.triu_indices, row, col, offset, dtype, device)


def _triangle(
    name: str, function: Callable[..., Any], row: int, col: int, offset: int, dtype: Any,
    device: DeviceLike,
) -> Tensor:  # fmt: skip
    if row < 0 or col < 0:
        raise ShapeError(f"{name}({row}, {col}): sizes must be non-negative")
    kind = numpy.dtype(numpy.int64) if dtype is None else numpy_dtype(dtype, name)
    if kind.kind != "i" or kind.itemsize < 4:
        raise DtypeNotImplemented(f'{name}(): "{name}" not implemented for {kind}')
    array = numpy.stack(function(row, offset, col)).astype(kind, copy=False)
    return finish(array, placed(device), False, name)
