"""Checks and conversions of dtypes that several chapters share."""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.autograd.declare import recover
from distgrad.errors import DtypeNotImplemented
from distgrad.ops.shape import to_dtype
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__: list[str] = []


def is_floating(array: Array) -> bool:
    """Return whether the numbers are of a floating point type, bfloat16 among them."""
    return array.dtype.kind == "f" or str(array.dtype) == "bfloat16"


def sortable(xp: Namespace, array: Array) -> Array:
    """Return numbers that NumPy puts in order: it does not know nan among those of bfloat16."""
    return array.astype(xp.float32) if array.dtype.kind == "V" else array


def demand_floating(array: Array, *others: str) -> None:
    """Refuse what is neither of a floating point type nor of one of the ``others``."""
    if not is_floating(array) and str(array.dtype) not in others:
        raise DtypeNotImplemented(
            f"not implemented for {array.dtype}, but for floating point numbers; convert with "
            ".float()"
        )


def demand_full_precision(array: Array, *others: str) -> None:
    """Refuse the same, and floats of 16 bits in host memory, where PyTorch's CPU has no kernel."""
    demand_floating(array, *others)
    if array.dtype.itemsize == 2 and type(array) is numpy.ndarray:
        raise DtypeNotImplemented(f"not implemented for {array.dtype}; convert with .float()")


def no_narrow(*operands: Tensor) -> None:
    """Refuse floats of 16 bits in host memory, where PyTorch's CPU has no kernel."""
    refuse_kinds("", "n", *operands)


def refuse_kinds(name: str, kinds: str, *operands: Tensor) -> None:
    """Raise for an operand whose dtype is of one of the ``kinds``.

    Args:
        name: the operation, for the message; "" where its wrapper puts it there.
        kinds: letters of NumPy's dtype.kind, and "n" for floats of 16 bits in host memory.
    """
    for x in operands:
        array = x.array
        narrow = array.dtype.itemsize == 2 and is_floating(array) and type(array) is numpy.ndarray
        if array.dtype.kind in kinds or (narrow and "n" in kinds):
            error = DtypeNotImplemented(f"not implemented for {array.dtype}; convert with .to()")
            if not name:
                raise error
            recover(name, error, {"input": x}, {})


def as_dtype(x: Tensor, dtype: Any) -> Tensor:
    """Return ``x`` in another dtype; itself where that is its own."""
    return x if x.array.dtype == dtype else to_dtype(x, numpy.dtype(dtype))


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in float32 where its floats are narrower."""
    return as_dtype(x, "float32") if is_floating(x.array) and x.array.dtype.itemsize == 2 else x
