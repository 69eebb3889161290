"""Gradients in 16 bits for the way between ranks, one kernel there and one back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.backend.cuda.module import kernel, over_elements, type_name
from distgrad.typing import Array

__all__ = ["KERNELS"]

_FILE = "compress.cu"


def _type(wide: Array, narrow: Array) -> str | None:
    """Return what CUDA C++ calls the narrow type; None for arrays that kernels here do not take."""
    dense = wide.flags.c_contiguous and narrow.flags.c_contiguous and wide.size == narrow.size
    fits = dense and wide.dtype.name == "float32" and narrow.itemsize == 2
    return type_name(narrow.dtype) if fits else None


def compress(source: Array, out: Array, by: int) -> Any:
    """Leave ``source`` in ``out``, divided by the number ``by`` after it was rounded."""
    kind = _type(source, out)
    if kind is None:
        return NotImplemented
    if out.size:
        arguments = (source, out, out.size, float(by))
        kernel(_FILE, "compress", T=kind)(*over_elements(out), arguments)
    return None


def decompress(source: Array, out: Array) -> Any:
    """Leave ``source`` in ``out``."""
    kind = _type(out, source)
    if kind is None:
        return NotImplemented
    if out.size:
        kernel(_FILE, "decompress", T=kind)(*over_elements(source), (source, out, out.size))
    return None


KERNELS: dict[str, Callable[..., Any]] = {"compress": compress, "decompress": decompress}
