"""Clipping of gradients, in place.

Note [Norms]
    Powers of the sizes are added over blocks of 64 elements, and these sums without rounding. So
    the norm of gradients that are spread over ranks has the same bits as that of whole ones.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy

from distgrad.backend import numpy_backend
from distgrad.backend.device import CPU, array_namespace, to_device, working_on
from distgrad.distributed.bucket import OWNED_BLOCK
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reducer import reducer_of
from distgrad.distributed.sharded import ShardedReducer
from distgrad.distributed.spread import spread_of
from distgrad.errors import GradError
from distgrad.nn.utils.exact import Exact, exact_sum, exact_total, rounded
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

Tensors = Tensor | Iterable[Tensor]


def _list(tensors: Tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _flat(array: Array) -> Array:
    """Return the elements in a row, in the order of memory where that needs no copy."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel("K")
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    return flat if flat.dtype.kind == "f" and flat.itemsize > 2 else flat.astype("float32")


def _sums(flat: Array, norm_type: float) -> list[Array]:
    """Return sums of powers of the sizes over blocks, without an array of the squares."""
    whole = flat.size - flat.size % OWNED_BLOCK
    parts = [p for p in (flat[:whole].reshape(-1, OWNED_BLOCK), flat[None, whole:]) if p.size]
    if norm_type == 2.0:
        return [numpy.vecdot(part, part) for part in parts]
    if norm_type == 0.0:
        return [numpy.count_nonzero(part, axis=1) for part in parts]
    sizes = [numpy.abs(part) for part in parts]
    if norm_type != 1.0:
        sizes = [numpy.power(part, norm_type, out=part) for part in sizes]
    return [part.sum(axis=1, dtype=numpy.float64) for part in sizes]


def _host_total(flats: list[Array], norm_type: float) -> Exact:
    """Return the largest size, or the sum of the powers of all, of arrays on the host."""
    if math.isinf(norm_type):
        return float(numpy.max([numpy.abs(f).max() for f in flats if f.size], initial=0.0))
    sums = [part for f in flats for part in _sums(f, norm_type)]
    return exact_sum(numpy.concatenate(sums).astype(numpy.float64)) if sums else 0


def _root(total: Any, norm_type: float) -> Any:
    return total if math.isinf(norm_type) or not norm_type else total ** (1.0 / norm_type)


def _device_norm(xp: Namespace, flats: list[Array], norm_type: float) -> Array:
    """Return the norm of arrays on a device, without waiting for it."""
    if math.isinf(norm_type):
        sizes = [xp.max(xp.abs(f)) if f.size else f.dtype.type(0) for f in flats]
        return functools.reduce(xp.maximum, sizes)
    if norm_type == 2.0:
        total = sum(xp.square(f).sum(dtype="float64") for f in flats)
    elif norm_type == 0.0:
        total = sum(xp.count_nonzero(f) for f in flats)
    else:
        total = sum(xp.power(xp.abs(f), norm_type).sum(dtype="float64") for f in flats)
    return _root(total, norm_type)


def _on_device(arrays: list[Array], norm_type: float, most: float = math.inf) -> Any:
    """Return the norm of arrays on a GPU and the factor that brings it to ``most``, by kernels.

    Both stay there. NotImplemented where the arrays are elsewhere, or of several dtypes.
    """
    if not arrays or type(arrays[0]) is numpy.ndarray:
        return NotImplemented
    xp = array_namespace(arrays[0])
    kernel = xp.kernels.get("gradient_norm")
    alike = all(type(a) is type(arrays[0]) and a.device == arrays[0].device for a in arrays)
    if not kernel or not alike:
        return NotImplemented
    with working_on(arrays[0]):
        return kernel(arrays, norm_type, most)


def _as_norm(total: Any, dtypes: list[Any], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """Return the norm in the dtype that fits those of the gradients."""
    dtype = functools.reduce(lambda a, b: a if a == b else numpy.promote_types(a, b), dtypes)
    xp = numpy if isinstance(total, float) else array_namespace(total)
    with working_on(None if xp is numpy else total):
        norm = xp.asarray(total, dtype=numpy.empty(0, dtype).real.dtype)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise GradError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return wrap(norm)


# ---------------------------------------------------------------------- gradients kept by owners
def _group_of(p: Tensor) -> ProcessGroup | None:
    """Return the ranks that have parts of the gradient of ``p``; None where this one has all."""
    spread = spread_of(p)
    if spread is not None:
        return spread.group
    reducer = reducer_of(p)
    return reducer.group if isinstance(reducer, ShardedReducer) and p.grad is None else None


def _sharded(members: list[Tensor]) -> dict[ProcessGroup, list[Tensor]]:
    """Return the parameters whose gradients other ranks have a part of, by their group."""
    found: dict[ProcessGroup, list[Tensor]] = {}
    for p in members:
        group = _group_of(p)
        if group is not None:
            found.setdefault(group, []).append(p)
    return found


def _piece(p: Tensor) -> tuple[bool, Array | None]:
    """Return whether any rank has a gradient of ``p``, and what this one has of it."""
    if p.grad is not None:
        return True, p.grad.array
    reducer = reducer_of(p)
    if isinstance(reducer, ShardedReducer):
        return reducer.has_gradient(p), reducer.piece(p)
    return False, None


def _pieces_elsewhere(members: list[Tensor]) -> list[Array]:
    """Return what this rank has of gradients that no ``grad`` shows."""
    pieces = [_piece(p)[1] for p in members if p.grad is None and _group_of(p) is not None]
    return [piece for piece in pieces if piece is not None]


def _norm_over_ranks(
    grads: list[Tensor],
    sharded: Mapping[ProcessGroup, list[Tensor]],
    norm_type: float,
    error_if_nonfinite: bool,
) -> Tensor:
    """Return the norm of gradients of which some are spread over ranks."""
    arrays, norm_type = [g.array for g in grads], float(norm_type)
    parts = [_host_total([_flat(to_device(a, CPU)) for a in arrays], norm_type)]
    dtypes = [a.dtype for a in arrays]
    for group, params in sharded.items():
        pieces = [_piece(p) for p in params]
        dtypes += [p.array.dtype for p, (there, _) in zip(params, pieces, strict=True) if there]
        mine = [_flat(to_device(a, CPU)) for _, a in pieces if a is not None]
        parts += group.channel("control").all_gather_object(_host_total(mine, norm_type))
    if not dtypes:
        return wrap(numpy.zeros((), "float32"))
    if math.isinf(norm_type):
        return _as_norm(float(numpy.max(parts)), dtypes, norm_type, error_if_nonfinite)
    total = _root(rounded(exact_total(parts)), norm_type)
    return _as_norm(total, dtypes, norm_type, error_if_nonfinite)


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
    found = _on_device(arrays, norm_type)
    if found is not NotImplemented:
        return _as_norm(found[0], [a.dtype for a in arrays], norm_type, error_if_nonfinite)
    xp = array_namespace(arrays[0])
    flats = [_flat(a) for a in arrays]
    if xp is not numpy_backend:
        total: Any = _device_norm(xp, flats, norm_type)
    elif math.isinf(norm_type):
        total = _host_total(flats, norm_type)
    else:
        total = _root(rounded(_host_total(flats, norm_type)), norm_type)
    return _as_norm(total, [a.dtype for a in arrays], norm_type, error_if_nonfinite)


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
    members = _list(parameters)
    norm = total_norm.array
    factor = float(max_norm) / (norm + norm.dtype.type(1e-6))
    xp = array_namespace(norm)
    if xp is numpy_backend:
        if factor >= 1.0:  # false for NaN, which is handed on
            return
    else:
        factor = xp.minimum(factor, 1.0)  # without waiting for the device
    for piece in _pieces_elsewhere(members):
        piece *= factor.astype(piece.dtype)
    for p in members:
        if p.grad is not None:
            p.grad.array *= factor.astype(p.grad.array.dtype)
            if p.grad._shared is not None:
                p.grad._shared.bump()


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

    Ranks: all, where gradients are kept by their owners.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([3.0, 4.0], requires_grad=True)
        >>> (p * p / 2).sum().backward()
        >>> clip_grad_norm_(p, max_norm=1.0)
        tensor(5.)
        >>> p.grad
        tensor([0.6000, 0.8000])
    """
    members, norm_type = _list(parameters), float(norm_type)
    if not members and not isinstance(parameters, list | tuple):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    sharded = _sharded(members)
    grads = [p.grad for p in members if p.grad is not None and _group_of(p) is None]
    arrays = [] if sharded else [g.array for g in grads]
    found = _on_device(arrays, norm_type, float(max_norm))
    if found is not NotImplemented:
        dtypes = [a.dtype for a in arrays]
        total_norm = _as_norm(found[0], dtypes, norm_type, error_if_nonfinite)
        with working_on(found[1]):
            array_namespace(found[1]).kernels["scale_arrays"](arrays, found[1])
        for grad in grads:
            if grad._shared is not None:
                grad._shared.bump()
        return total_norm
    if sharded:
        total_norm = _norm_over_ranks(grads, sharded, norm_type, error_if_nonfinite)
    else:
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
    members = _list(parameters)
    for piece in _pieces_elsewhere(members):
        array_namespace(piece).clip(piece, -float(clip_value), float(clip_value), out=piece)
    for p in members:
        if p.grad is not None:
            array = p.grad.array
            array_namespace(array).clip(array, -float(clip_value), float(clip_value), out=array)
            if p.grad._shared is not None:
                p.grad._shared.bump()
