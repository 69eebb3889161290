"""Clipping of gradients, in place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy

from distgrad.backend import numpy_backend
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

Tensors = Tensor | Iterable[Tensor]

_BLOCK = 4096  # elements that one float32 dot product sums; sums of blocks are in float64


def _list(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _flat(array: Array) -> Array:
    """Return the elements in a row, in the order of memory where that needs no copy."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel("K")
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    return flat if flat.dtype.kind == "f" and flat.itemsize > 2 else flat.astype("float32")


def _sum_of_squares(xp: Namespace, flat: Array) -> Any:
    """Return the sum of squares, in one pass and without an array of the squares."""
    if xp is not numpy_backend:
        return xp.vdot(flat, flat).astype("float64")
    whole = flat.size - flat.size % _BLOCK
    rest = flat[whole:]
    total = float(numpy.dot(rest, rest))
    if whole:
        blocks = flat[:whole].reshape(-1, _BLOCK)
        total += float(numpy.vecdot(blocks, blocks).sum(dtype=numpy.float64))
    return total


def _power_sum(xp: Namespace, flat: Array, norm_type: float) -> Any:
    """Return what the norms of several arrays add up: the sum of powers of the sizes."""
    if norm_type == 2.0:
        return _sum_of_squares(xp, flat)
    if norm_type == 0.0:
        return xp.count_nonzero(flat)
    sizes = xp.abs(flat)
    if norm_type != 1.0:
        xp.power(sizes, norm_type, out=sizes)
    return sizes.sum(dtype="float64")


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Return the norm of all ``tensors`` taken as one vector.

    Args:
        tensors: the tensors.
        norm_type: the exponent; ``math.inf`` for the largest size.
        error_if_nonfinite: raise when the norm is not a finite number.
        foreach: accepted.

    Raises:
        GradError: with ``error_if_nonfinite``.

    Example:
        >>> import distgrad as dg
        >>> get_total_norm([dg.tensor([3.0]), dg.tensor([4.0])])
        tensor(5.)
    """
    arrays = [t.array for t in _list(tensors)]
    norm_type = float(norm_type)
    if not arrays:
        return wrap(numpy.zeros((), "float32"))
    xp = array_namespace(arrays[0])
    flats = [_flat(a) for a in arrays]
    if math.isinf(norm_type):
        sizes = [xp.max(xp.abs(f)) if f.size else f.dtype.type(0) for f in flats]
        total: Any = sizes[0]
        for size in sizes[1:]:
            total = xp.maximum(total, size)
    else:
        total = sum(_power_sum(xp, f, norm_type) for f in flats)
        total = total ** (1.0 / norm_type) if norm_type else total
    dtype = arrays[0].dtype
    for a in arrays[1:]:
        dtype = dtype if a.dtype == dtype else numpy.promote_types(dtype, a.dtype)
    norm = xp.asarray(total, dtype=numpy.empty(0, dtype).real.dtype)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise GradError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return wrap(norm)


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scale all gradients by ``max_norm / total_norm`` where that is below 1.

    Args:
        parameters: tensors whose ``grad`` is scaled.
        max_norm: the norm that is allowed.
        total_norm: the norm of all gradients.
        foreach: accepted.
    """
    grads = [p.grad for p in _list(parameters) if p.grad is not None]
    norm = total_norm.array
    factor = float(max_norm) / (norm + norm.dtype.type(1e-6))
    xp = array_namespace(norm)
    if xp is numpy_backend:
        if factor >= 1.0:  # false for NaN, which is handed on
            return
    else:
        factor = xp.minimum(factor, 1.0)  # without waiting for the device
    for grad in grads:
        grad.array *= factor.astype(grad.array.dtype)
        if grad._shared is not None:
            grad._shared.bump()


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their norm is at most ``max_norm``; return the norm before.

    Args:
        parameters: tensors whose ``grad`` is clipped.
        max_norm: the norm that is allowed.
        norm_type: the exponent; ``math.inf`` for the largest size.
        error_if_nonfinite: raise when the norm is not a finite number.
        foreach: accepted.

    Raises:
        GradError: with ``error_if_nonfinite``.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([3.0, 4.0], requires_grad=True)
        >>> (p * p / 2).sum().backward()
        >>> clip_grad_norm_(p, max_norm=1.0)
        tensor(5.)
        >>> p.grad
        tensor([0.6000, 0.8000])
    """
    members = _list(parameters)
    if not members and not isinstance(parameters, list | tuple):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    grads = [p.grad for p in members if p.grad is not None]
    total_norm = get_total_norm(grads, norm_type, error_if_nonfinite)
    clip_grads_with_norm_(members, max_norm, total_norm)
    return total_norm


def clip_grad_norm(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Do what ``clip_grad_norm_`` does, under its older name."""
    warnings.warn(
        "`nn.utils.clip_grad_norm` is now deprecated in favor of `nn.utils.clip_grad_norm_`.",
        FutureWarning,
        stacklevel=2,
    )
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Hold every element of every gradient between ``-clip_value`` and ``clip_value``."""
    for p in _list(parameters):
        if p.grad is not None:
            array = p.grad.array
            array_namespace(array).clip(array, -float(clip_value), float(clip_value), out=array)
            if p.grad._shared is not None:
                p.grad._shared.bump()
