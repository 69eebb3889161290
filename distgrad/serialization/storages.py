"""The memory of tensors in files: which tensors share it, and the names that PyTorch gives it."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

import numpy

from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.backend.device import device as Device
from distgrad.backend.dtype import dtype as DType
from distgrad.backend.dtype import from_numpy
from distgrad.errors import ArgumentTypeError, CheckpointError
from distgrad.tensor import Tensor, wrap

# the classes by which PyTorch's files name the dtype of a storage; other dtypes stand beside
# an "UntypedStorage"
KINDS = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
NAMES = {kind: name for name, kind in KINDS.items()}
UNTYPED = "UntypedStorage"


@dataclass(frozen=True)
class StorageKind:
    """The class of a storage in a file: a dtype, or None for bytes."""

    dtype: DType | None

    @property
    def itemsize(self) -> int:
        """Return the bytes of one element."""
        return 1 if self.dtype is None else self.dtype.itemsize


# ---------------------------------------------------------------------- reading
class Storage:
    """The memory of tensors that come from a file, on its device."""

    __slots__ = ("data", "kind")

    def __init__(self, data: Any, kind: StorageKind) -> None:
        self.data = data  # bytes, as an array of one dimension
        self.kind = kind

    def tensor(
        self, kind: DType, offset: Any, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        """Return the tensor of a dtype that lies in this memory.

        Raises:
            CheckpointError: it would reach out of it.
        """
        numbers = (offset, *size, *stride)
        good = len(size) == len(stride) and all(type(n) is int and n >= 0 for n in numbers)
        if not good or len(size) > 64:
            raise CheckpointError(f"a tensor has size {size}, stride {stride}, offset {offset}")
        count = len(self.data) // kind.itemsize
        empty = not math.prod(size)
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if not empty and end > count:
            raise CheckpointError(
                f"a tensor of size {list(size)}, stride {list(stride)} and offset {offset} reaches "
                f"out of its storage of {count} elements of {kind.name}"
            )
        flat = self.data[: count * kind.itemsize].view(kind.numpy)
        xp = array_namespace(flat)
        if empty:
            return wrap(xp.empty(size, kind.numpy))
        out = wrap(xp.strided(flat, size, stride, offset))
        out.__dict__["_storage"] = flat  # its neighbours lie there too
        return out


# ---------------------------------------------------------------------- writing
@dataclass
class Span:
    """Memory that is written as one storage: the union of tensors that overlap."""

    kind: DType
    place: str  # the device
    low: int
    high: int
    first: Any  # the array that begins at ``low``, of any shape
    key: str = ""

    def host(self) -> Any:
        """Return the memory as a flat array of the host."""
        count = (self.high - self.low) // self.kind.itemsize
        flat = array_namespace(self.first).strided(self.first, (count,), (1,), 0)
        return to_device(flat, Device("cpu"))


@dataclass(frozen=True)
class Layout:
    """Where a tensor lies: its storage, and the place in it."""

    span: Span
    offset: int
    stride: tuple[int, ...]


class Storages:
    """The storages of a file that is written.

    First ``note`` sees every tensor, then ``settle`` joins those that overlap; ``layout`` says
    where each lies.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._kept: dict[tuple[int, int], Any] = {}  # copies; also keeps addresses in use
        self._index: dict[tuple[str, str], tuple[list[int], list[Span]]] = {}

    def note(self, tensor: Tensor) -> None:
        """Take up the memory of a tensor, with what lies between its elements."""
        array = self._dense(tensor)
        whole = tensor.__dict__.get("_storage")
        if array is tensor.array and whole is not None and whole.dtype == array.dtype:
            self._add(whole)
        elif array is tensor.array and tensor._base is not None:
            self.note(tensor._base)
        self._add(array)

    def _add(self, array: Any) -> None:
        low, high = _bounds(array)
        kind, place = from_numpy(array.dtype), str(device_of(array))
        self._kept[low, id(array)] = array
        self._spans.append(Span(kind, place, low, high, array))

    def _dense(self, tensor: Tensor) -> Any:
        """Return the array of a tensor, or a copy where PyTorch could not hold it."""
        array = tensor.array
        if hasattr(array, "below"):
            raise ArgumentTypeError(
                f"save({tensor._brief()}): a tensor inside vmap or with a tangent has no memory "
                "to write; save it outside"
            )
        awkward = any(step < 0 or step % array.itemsize for step in array.strides)
        if not awkward or not array.size:
            return array
        key = (-1, id(array))
        if key not in self._kept:
            self._kept[key] = array_namespace(array).ascontiguousarray(array)
            self._kept[-2, id(array)] = array
        return self._kept[key]

    def settle(self) -> list[Span]:
        """Return the storages, with tensors that overlap in one, and number them."""
        merged: list[Span] = []
        for span in sorted(self._spans, key=lambda s: (s.place, s.kind.name, s.low, -s.high)):
            last = merged[-1] if merged else None
            if last is not None and _overlap(last, span):
                last.high = max(last.high, span.high)
            else:
                merged.append(span)
        for number, span in enumerate(merged):
            span.key = str(number)
            lows, spans = self._index.setdefault((span.place, span.kind.name), ([], []))
            lows.append(span.low)
            spans.append(span)
        return merged

    def layout(self, tensor: Tensor) -> Layout | None:
        """Return where a tensor lies; None for one that was not noted."""
        array = self._dense(tensor)
        low, high = _bounds(array)
        where = (str(device_of(array)), from_numpy(array.dtype).name)
        lows, spans = self._index.get(where, ([], []))
        place = bisect.bisect_right(lows, low) - 1
        if place < 0 or high > spans[place].high:
            return None
        return Layout(spans[place], (low - lows[place]) // array.itemsize, _stride(array))


def _bounds(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte and of the one after the last."""
    start = array.ctypes.data if isinstance(array, numpy.ndarray) else array.data.ptr
    if not array.size:
        return start, start
    steps = zip(array.shape, array.strides, strict=True)
    return start, start + sum((n - 1) * step for n, step in steps) + array.itemsize


def _stride(array: Any) -> tuple[int, ...]:
    """Return steps in elements, of an empty array those that PyTorch gives it."""
    if array.size:
        return tuple(step // array.itemsize for step in array.strides)
    sizes = [max(n, 1) for n in array.shape]
    return tuple(math.prod(sizes[d + 1 :]) for d in range(len(sizes)))


def _overlap(a: Span, b: Span) -> bool:
    same = a.kind is b.kind and a.place == b.place
    aligned = (b.low - a.low) % a.kind.itemsize == 0
    return same and aligned and (b.low < a.high or b.low == a.low == b.high)
