"""Activation functions, forward and backward, each in one kernel that reads its operands once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from distgrad.backend.cuda.module import blocks, contiguous, kernel, type_name
from distgrad.backend.cuda.ordered import empty_last, lies_last, turned
from distgrad.typing import Array

__all__ = ["KERNELS", "positive", "where_positive"]

_FILE = "activation.cu"


def _mapped(name: str, x: Array, *others: Array) -> Any:
    """Return a kernel's function of numbers of one type, in the order in memory of ``x``."""
    kind = type_name(x.dtype)
    if kind is None or any(o.dtype != x.dtype or o.shape != x.shape for o in others):
        return NotImplemented
    last = lies_last(x)
    out = empty_last(x.shape, x.dtype) if last else cupy.empty(x.shape, x.dtype)
    if x.size:
        given = [contiguous(turned(a, a.ndim) if last else a) for a in (x, *others)]
        kernel(_FILE, name, T=kind)((blocks(x),), (256,), (*given, out, x.size))
    return out


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
