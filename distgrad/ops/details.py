"""Questions about tensors, and small functions of memory and indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, recover
from distgrad.autograd.inplace import assign, in_place
from distgrad.autograd.outputs import takes_out
from distgrad.backend.device import CPU, array_namespace, to_device
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DtypeError,
    DtypeNotImplemented,
    IndexOutOfRange,
    ShapeError,
)
from distgrad.ops.index import check_numbers
from distgrad.ops.scatter import scatter_reduce
from distgrad.ops.shape import clone, expand, reshape, wrap_dim
from distgrad.tensor import Tensor, wrap

__all__ = [
    "index_reduce", "is_complex", "is_floating_point", "is_signed", "is_tensor", "numel",
    "unravel_index",
]  # fmt: skip


def is_tensor(obj: Any) -> bool:
    """Return True for a Tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Return True when the elements are floating point numbers."""
    return input.is_floating_point()


def is_complex(input: Tensor) -> bool:
    """Return True when the elements are complex numbers."""
    return input.is_complex()


def is_signed(input: Tensor) -> bool:
    """Return True when the dtype has negative numbers."""
    return input.dtype.is_signed


def numel(input: Tensor) -> int:
    """Return the number of elements."""
    return input.numel()


def unravel_index(indices: Tensor, shape: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Return the coordinates, in a tensor of ``shape``, of places counted in one row."""
    sizes = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    error: Exception | None = None
    if indices.array.dtype.kind not in "iu":
        error = ArgumentTypeError(f"expected integer indices, but got {indices.array.dtype}")
    elif min(sizes, default=1) < 0:
        error = ArgumentError(f"'shape' cannot have negative values, but got {sizes}")
    if error is not None:
        recover("unravel_index", error, {"indices": indices}, {"shape": sizes})
    xp = array_namespace(indices.array)
    rest, found = xp.astype(indices.array, xp.int64), []
    for size in reversed(sizes):
        found.append(wrap(xp.asarray(rest % size)))
        rest = rest // size
    return tuple(reversed(found))


@takes_out
def index_reduce(
    input: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *,
    include_self: bool = True,
) -> Tensor:  # fmt: skip
    """Return ``input`` combined with the entries of ``source`` at ``index`` along ``dim``.

    Args:
        reduce: "prod", "mean", "amax" or "amin".
        include_self: False leaves out the entries of ``input`` that ``source`` reaches.
    """
    if reduce not in ("prod", "mean", "amax", "amin"):
        error = ShapeError(f"index_reduce(): Expected reduce to be prod, mean, amax or amin, got "
                           f"{reduce}")  # fmt: skip
        recover("index_reduce", error, {"input": input, "source": source}, {"dim": dim})
    operands = {"input": input, "index": index, "source": source}
    try:
        place = wrap_dim(dim, input.array.ndim)
        if input.array.dtype.kind in "bc":
            raise DtypeNotImplemented(f"not implemented for {input.array.dtype}")
        if input.array.dtype != source.array.dtype:
            raise DtypeError("self and source must have the same scalar type")
        if index.array.ndim > 1:
            raise IndexOutOfRange("Index is supposed to be a vector; flatten it")
        check_numbers(index.array, input.array.shape[place] if input.array.ndim else 1)
    except Exception as error:
        recover("index_reduce", error, operands, {"dim": dim, "reduce": reduce})
    place, shape = wrap_dim(dim, source.array.ndim), source.array.shape
    line = tuple(-1 if d == place else 1 for d in range(len(shape)))
    places = expand(reshape(index, line), shape)
    return scatter_reduce(input, dim, clone(places), source, reduce, include_self=include_self)


# ---------------------------------------------------------------------- methods alone
def _on_host(tensor: Tensor, name: str) -> Any:
    if tensor.requires_grad:
        error = ShapeError(f"{name}() called on a tensor that requires grad; use detach()")
        recover(name, error, {"self": tensor}, {})
    return to_device(tensor.array, CPU)


def _apply(self: Tensor, callable: Callable[[Any], Any]) -> Tensor:
    """Replace each element by ``callable(element)``, one Python call each, and return this tensor.

    It is slow, and only for tensors without a gradient; operations on whole tensors are not.
    """
    values = numpy.frompyfunc(callable, 1, 1)(_on_host(self, "apply_"))
    return assign(self, wrap(numpy.asarray(values, self.array.dtype)), "apply_")


def _map(self: Tensor, tensor: Tensor, callable: Callable[[Any, Any], Any]) -> Tensor:
    """Replace each element a by ``callable(a, b)``, b from ``tensor``; as slow as ``apply_``."""
    pairs = (_on_host(self, "map_"), _on_host(tensor, "map_"))
    values = numpy.frompyfunc(callable, 2, 1)(*pairs)
    return assign(self, wrap(numpy.asarray(values, self.array.dtype)), "map_")


as_method(index_reduce)
as_method(in_place(index_reduce, "index_reduce_"))
as_method(_apply, "apply_")
as_method(_map, "map_")
