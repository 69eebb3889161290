"""What an index means: the view it makes, and what it looks up in that view.

Note [Two steps of an index]
    As in PyTorch, an index is applied in two steps: what is basic (numbers, slices, None, ...)
    makes a view, then the tensors and masks in it look up elements of that view.  NumPy differs
    where numbers and arrays are mixed: it counts numbers among the arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.backend.device import working_on
from distgrad.errors import ArgumentError, IndexOutOfRange
from distgrad.tensor import Tensor
from distgrad.typing import Shape


def beyond(index: int, dim: int, size: int) -> str:
    """Return what is wrong with a number outside a dimension, and which numbers are inside."""
    return f"index {index} is out of bounds for dimension {dim} with size {size}; " + (
        f"use -{size} to {size - 1}" if size else "there is no element"
    )


class IndexReader:
    """What an index means for a tensor of a shape: a view, then a lookup in that view.

    Attributes:
        basic: the NumPy index of the view.
        arrays: the arrays of indices, and ``dims``: the dimensions of the view they look up.
        masks: the numbers of dimensions of the masks, of which some of the arrays were made.
    """

    __slots__ = ("arrays", "at", "basic", "dims", "masks", "out", "shape")

    def __init__(self, shape: Shape, index: Any) -> None:
        """Read ``index``; raise what PyTorch raises when it does not fit ``shape``."""
        self.shape, self.at, self.out = shape, 0, 0
        self.basic: list[Any] = []
        self.arrays: list[Any] = []
        self.dims: list[int] = []
        self.masks: list[int] = []
        items = [_item(i) for i in (index if isinstance(index, tuple) else _unpacked(index))]
        used = sum([_consumed(i) for i in items])
        if used > len(shape):
            raise IndexOutOfRange(
                f"too many indices for tensor of dimension {len(shape)}; got {used}"
            )
        for item in items:
            self._read(item, len(shape) - used)

    @property
    def whole(self) -> bool:
        """True when the view is the tensor itself."""
        return all([type(b) is slice and b == ALL for b in self.basic])

    @property
    def one_mask(self) -> bool:
        """True when one mask is all that looks up."""
        return self.masks == [len(self.arrays)]

    @property
    def found_ndim(self) -> int:
        """The number of dimensions of what the index finds."""
        kept = self.out + len(self.shape) - self.at - len(self.arrays)
        return kept + max([a.ndim for a in self.arrays], default=0)

    def _read(self, item: Any, left: int) -> None:
        kind = type(item)
        if kind is int:
            self._number(item)
        elif kind is slice:
            if item.step is not None and item.step <= 0:
                raise ArgumentError("step must be greater than zero; use flip() to go backwards")
            self._keep(1, item)
        elif item is None:
            self._insert()
        elif item is Ellipsis:
            self._keep(left)
        elif kind is bool:
            self._insert()
            self._look_up(self.out - 1, numpy.zeros(int(item), numpy.int64))
        elif item.dtype.kind == "b" or item.dtype == numpy.uint8:
            self._mask(item)
        else:
            self._keep(1)
            self._look_up(self.out - 1, item)

    def _number(self, item: int) -> None:
        size = self.shape[self.at]
        if not -size <= item < size:
            raise IndexOutOfRange(beyond(item, self.at, size))
        self.basic.append(item)
        self.at += 1

    def _keep(self, count: int, item: slice = slice(None)) -> None:
        self.basic += [item] * count
        self.at += count
        self.out += count

    def _insert(self) -> None:
        self.basic.append(None)
        self.out += 1

    def _mask(self, mask: Any) -> None:
        for i, n in enumerate(mask.shape):
            if n != self.shape[self.at + i]:
                raise IndexOutOfRange(
                    f"The shape of the mask {list(mask.shape)} at index {i} does not match the "
                    f"shape of the indexed tensor {list(self.shape)} at index {self.at + i}"
                )
        self._keep(mask.ndim)
        self.masks.append(mask.ndim)
        with working_on(mask):
            found = mask.nonzero()
        for i, places in enumerate(found):
            self._look_up(self.out - mask.ndim + i, places)

    def _look_up(self, dim: int, array: Any) -> None:
        self.arrays.append(array)
        self.dims.append(dim)


ALL = slice(None)
_WRONG = (
    "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid "
    "indices (got {})"
)


_NO_INDEX = (
    "tensors used as indices must be long, int, byte or bool tensors, not {}; convert with .long()"
)


def _unpacked(index: Any) -> Sequence[Any]:
    """Return a list that stands for a tuple, as old NumPy programs write it, item by item."""
    parts = (slice, list, tuple, Tensor, numpy.ndarray, type(None), type(Ellipsis))
    if isinstance(index, list) and len(index) < 32 and any([isinstance(i, parts) for i in index]):
        return index
    return (index,)


def _item(item: Any) -> Any:
    """Return one item of an index as int, slice, None, Ellipsis, bool or an array of indices."""
    kind = type(item)
    if kind is int or kind is bool or item is None or item is Ellipsis:
        return item
    if kind is slice:
        return item
    if isinstance(item, Tensor):
        item = item.array
        if item.ndim and item.dtype.itemsize < 4 and item.dtype.kind == "i":
            raise IndexOutOfRange(_NO_INDEX.format(item.dtype))
    elif isinstance(item, list | tuple | range):
        item = numpy.asarray(item, dtype=None if len(item) else numpy.int64)
    elif isinstance(item, numpy.generic):
        item = numpy.asarray(item)
    elif not hasattr(item, "dtype"):
        if hasattr(item, "__index__"):
            return operator.index(item)
        raise IndexOutOfRange(_WRONG.format(kind.__name__))
    return _array_item(item)


def _array_item(array: Any) -> Any:
    if array.dtype.kind not in "iub":
        raise IndexOutOfRange(_NO_INDEX.format(array.dtype))
    if not array.ndim:
        return array.item()
    return array


def _consumed(item: Any) -> int:
    if item is None or item is Ellipsis or type(item) is bool:
        return 0
    if type(item) is int or type(item) is slice:
        return 1
    return item.ndim if item.dtype.kind == "b" or item.dtype == numpy.uint8 else 1
