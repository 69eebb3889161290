"""The order of dimensions in memory: CuPy's elementwise kernels, made to keep channels last.

CuPy writes the results of ufuncs in row-major order, whatever the order of their operands; PyTorch
and NumPy keep it.  Here an operand of four or five dimensions that lies channels last is
given to CuPy by its dimensions in memory's order, and the result is turned back: no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import cupy
import numpy

from distgrad.typing import Array, Shape

__all__ = [
    "Ordered", "channels_last", "empty_in", "empty_last", "keeps_order", "lies_last", "order_of",
    "ordered", "returned", "turned",
]  # fmt: skip

_ARRAYS = (cupy.ndarray, numpy.ndarray)
F = TypeVar("F", bound=Callable[..., Any])

_ORDERS = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_INVERSES = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


def channels_last(ndim: int) -> Shape:
    """Return the dimensions from the outermost in memory to the innermost."""
    return _ORDERS[ndim]


def order_of(strides: Shape) -> Shape:
    """Return the dimensions by strides from the largest to the smallest."""
    return tuple(sorted(range(len(strides)), key=lambda dim: -strides[dim]))


def lies_last(x: Array) -> bool:
    """Return whether ``x`` lies channels last, and not row-major as well."""
    if not 4 <= x.ndim <= 5 or x.flags.c_contiguous:
        return False
    return bool(x.transpose(_ORDERS[x.ndim]).flags.c_contiguous)


def empty_in(
    shape: Sequence[int], order: Shape, dtype: Any, make: Callable[..., Array] = cupy.empty
) -> Array:
    """Return new memory whose dimensions lie in ``order``: no view, so it may be kept as it is."""
    made = make([shape[i] for i in order], dtype)
    strides = [made.strides[order.index(i)] for i in range(len(order))]
    return cupy.lib.stride_tricks.as_strided(made, shape, strides)


def empty_last(shape: Sequence[int], dtype: Any, make: Callable[..., Array] = cupy.empty) -> Array:
    """Return new memory that lies channels last."""
    return empty_in(shape, _ORDERS[len(shape)], dtype, make)


# ---------------------------------------------------------------------- elementwise functions
def _last_among(args: Sequence[Any]) -> int:
    """Return the number of dimensions of the first operand that lies channels last; 0 for none."""
    for x in args:
        if isinstance(x, _ARRAYS) and x.ndim > 3 and lies_last(x):
            return int(x.ndim)
    return 0


def turned(x: Any, ndim: int) -> Any:
    """Return an operand by its dimensions in memory's order; numbers as they are."""
    if not isinstance(x, _ARRAYS) or not x.ndim:
        return x
    if x.ndim < ndim:
        x = x.reshape((1,) * (ndim - x.ndim) + x.shape)
    return x.transpose(_ORDERS[ndim])


def returned(x: Array) -> Array:
    """Return what `turned` has turned as it was."""
    return x.transpose(_INVERSES[x.ndim])


def _in_memory_order(
    function: Callable[..., Any], ndim: int, args: Sequence[Any], options: dict[str, Any]
) -> Any:
    if any(isinstance(x, _ARRAYS) and x.ndim > ndim for x in args):
        return function(*args, **options)
    result = function(*(turned(x, ndim) for x in args), **options)
    if result is NotImplemented:
        return result
    if isinstance(result, tuple):
        return tuple(map(returned, result))
    return returned(result)


def keeps_order(function: F) -> F:
    """Return an elementwise function whose result lies channels last where an operand does."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        ndim = _last_among(args)
        if ndim:
            return _in_memory_order(function, ndim, args, options)
        return function(*args, **options)

    return call  # type: ignore[return-value]


class Ordered:
    """A ufunc of CuPy whose result lies channels last where an operand does."""

    __slots__ = ("__name__", "accumulate", "at", "nin", "nout", "outer", "reduce", "ufunc")

    def __init__(self, ufunc: Any) -> None:
        self.ufunc, self.__name__ = ufunc, ufunc.__name__
        self.nin, self.nout = ufunc.nin, ufunc.nout
        for name in ("accumulate", "at", "outer", "reduce"):
            if hasattr(ufunc, name):
                setattr(self, name, getattr(ufunc, name))

    def __repr__(self) -> str:
        return repr(self.ufunc)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the function of the operands, element by element."""
        out = options.get("out")
        if len(args) == self.nin and (out is None or lies_last(out)):
            ndim = _last_among(args)
            if ndim:
                there = options if out is None else options | {"out": turned(out, ndim)}
                made = _in_memory_order(self.ufunc, ndim, args, there)
                return made if out is None else out
        return self.ufunc(*args, **options)


def ordered(namespace: Any) -> dict[str, Ordered]:
    """Return the ufuncs of CuPy, by name, each as an `Ordered` one."""
    named = vars(namespace).items()
    return {n: Ordered(f) for n, f in named if isinstance(f, cupy.ufunc) and n != "matmul"}
