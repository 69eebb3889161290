"""How elements lie in memory: the names of PyTorch, and what they mean for an array."""

from __future__ import annotations

from typing import Any

from distgrad.backend import dtype as _dtype
from distgrad.errors import ShapeError


class _Named:
    """A constant of the package; it is unpickled as the constant itself."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"{_dtype.MODULE_PREFIX}.{self._name}"

    def __reduce__(self) -> str:
        return self._name


class memory_format(_Named):
    """An order of dimensions in memory."""

    __slots__ = ()


class layout(_Named):
    """A way to hold elements; tensors of this package have one, ``strided``."""

    __slots__ = ()


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")
strided = layout("strided")

_CHANNELS_LAST = {channels_last: 4, channels_last_3d: 5}


def order_of(form: Any, ndim: int) -> tuple[int, ...] | None:
    """Return the dimensions from the outermost in memory to the innermost; None to preserve."""
    if form is None or form is preserve_format:
        return None
    if form not in _CHANNELS_LAST:
        return tuple(range(ndim))
    if ndim != _CHANNELS_LAST[form]:
        raise ShapeError(
            f"required rank {_CHANNELS_LAST[form]} tensor to use {form._name} format, got {ndim}"
        )
    return (0, *range(2, ndim), 1)


def lies_in(array: Any, form: memory_format) -> bool:
    """Return True when ``array`` has the dimensions of ``form``, in its order, without gaps."""
    if _CHANNELS_LAST.get(form, array.ndim) != array.ndim:
        return False
    return bool(array.transpose(order_of(form, array.ndim)).flags.c_contiguous)


def laid_out(array: Any, order: tuple[int, ...]) -> Any:
    """Return a copy whose elements lie in memory in this order."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return array.transpose(order).copy("C").transpose(inverse)


def is_dense(array: Any) -> bool:
    """Return True when elements lie in memory without gaps, in whatever order of dimensions."""
    if array.flags.c_contiguous:
        return True
    order = sorted(range(array.ndim), key=lambda dim: -array.strides[dim])
    return bool(array.transpose(order).flags.c_contiguous)


def lie_alike(a: Any, b: Any) -> bool:
    """Return True for two arrays of one shape whose elements lie in memory in the same order."""
    return bool(a.strides == b.strides or (a.flags.c_contiguous and b.flags.c_contiguous))
