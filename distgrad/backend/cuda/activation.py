"""Activation functions, forward and backward, each in one kernel that reads its operands once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda.module import contiguous, kernel, over_elements, type_name
from distgrad.backend.cuda.ordered import lies_last, returned, turned
from distgrad.backend.forms import may_overwrite
from distgrad.typing import Array

__all__ = ["KERNELS", "positive", "where_positive"]

_FILE = "activation.cu"


def _mapped(name: str, x: Array, *others: Array) -> Any:
    """Return a kernel's function of numbers of one type, in the order in memory of ``x``."""
    kind = type_name(x.dtype)
    if kind is None or any(o.dtype != x.dtype or o.shape != x.shape for o in others):
        return NotImplemented
    operands, last = (x, *others), lies_last(x)
    given = [contiguous(turned(a, a.ndim) if last else a) for a in operands]
    copies = [c for c, a in zip(given, operands, strict=True) if c.data.ptr != a.data.ptr]
    in_place = not copies and may_overwrite(x)
    spare = given[0] if in_place else copies[0] if copies else None
    out = cupy.empty(given[0].shape, x.dtype) if spare is None else spare
    if x.size:
        kernel(_FILE, name, T=kind)(*over_elements(x), (*given, out, x.size))
    if in_place:
        return x
    return returned(out) if last else out


def gelu(x: Array, approximate: str) -> Any:
    """Return x·Φ(x), or its approximation by a hyperbolic tangent."""
    return _mapped("gelu_tanh" if approximate == "tanh" else "gelu", x)


def d_gelu(g: Array, input: Array, approximate: str) -> Any:
    """Return ``g`` times the derivative of `gelu`."""
    return _mapped("d_gelu_tanh" if approximate == "tanh" else "d_gelu", input, g)


def silu(x: Array) -> Any:
    """Return x·sigmoid(x)."""
    return _mapped("silu", x)


def d_silu(g: Array, input: Array) -> Any:
    """Return ``g`` times the derivative of `silu`."""
    return _mapped("d_silu", input, g)


def mish(x: Array) -> Any:
    """Return x·tanh(softplus(x))."""
    return _mapped("mish", x)


def d_mish(g: Array, input: Array) -> Any:
    """Return ``g`` times the derivative of `mish`."""
    return _mapped("d_mish", input, g)


def positive(x: Array) -> Any:
    """Return ``x`` where it is positive or nan, else 0."""
    return _mapped("relu", x)


def where_positive(condition: Array, x: Array) -> Any:
    """Return ``x`` where ``condition`` is positive, else 0."""
    return _mapped("d_relu", condition, x)


KERNELS: dict[str, Callable[..., Any]] = {
    "gelu": gelu,
    "d_gelu": d_gelu,
    "silu": silu,
    "d_silu": d_silu,
    "mish": mish,
    "d_mish": d_mish,
    "at_least_0": positive,
    "where_positive": where_positive,
}
