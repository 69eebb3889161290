"""Tensors as the wire takes them: C-contiguous arrays in host memory, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.backend.device import array_namespace
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError, ShapeError, describe
from distgrad.tensor import Tensor, shared_of


def checked(function: str, name: str, value: Any) -> Tensor:
    """Return ``value``, a tensor.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"{function}({name}={describe(value)}): {name} must be a Tensor, not "
            f"{type(value).__name__}; make one with distgrad.tensor(...)"
        )
    if hasattr(value.array, "below"):
        raise ArgumentTypeError(
            f"{function}({name}: {describe(value)}): ranks exchange numbers, and a tensor inside "
            "vmap or forward mode has none; call it outside"
        )
    return value


def checked_list(function: str, name: str, values: Any) -> list[Tensor]:
    """Return ``values``, a list or tuple of tensors of one dtype.

    Raises:
        ArgumentTypeError: they are something else.
        DtypeError: the dtypes differ.
    """
    if not isinstance(values, list | tuple):
        raise ArgumentTypeError(
            f"{function}({name}={describe(values)}): {name} must be a list of tensors, not "
            f"{type(values).__name__}"
        )
    tensors = [checked(function, f"{name}[{place}]", value) for place, value in enumerate(values)]
    dtypes = {str(tensor.array.dtype) for tensor in tensors}
    if len(dtypes) > 1:
        raise DtypeError(
            f"{function}({name}: {describe(tensors)}): has several dtypes; cast them to one"
        )
    return tensors


def one_for_each(
    function: str, name: str, values: Any, size: int, like: Tensor | None = None
) -> list[Tensor]:
    """Return ``values``, a tensor for each of ``size`` ranks, all of dtype and shape of ``like``.

    Raises:
        ArgumentError: another number of tensors.
        DtypeError, ShapeError: a tensor that is not like the other.
    """
    tensors = checked_list(function, name, values)
    if len(tensors) != size:
        raise ArgumentError(
            f"{function}({name}: {len(tensors)} tensors): the group has {size} ranks; pass a "
            "tensor for each of them"
        )
    for place, tensor in enumerate(tensors if like is not None else ()):
        same_dtype(function, f"{name}[{place}]", tensor, like)
        if tensor.array.shape != like.array.shape:  # type: ignore[union-attr]
            raise ShapeError(
                f"{function}({name}[{place}]: {describe(tensor)}): must have the shape of the "
                f"other tensor, {describe(like)}; allocate it with that shape"
            )
    return tensors


def same_dtype(function: str, name: str, tensor: Tensor, like: Tensor | None) -> None:
    """Raise DtypeError if the dtypes differ."""
    if like is not None and tensor.array.dtype != like.array.dtype:
        raise DtypeError(
            f"{function}({name}: {describe(tensor)}): must have the dtype of the other tensor, "
            f"{describe(like)}; cast one with .to(dtype)"
        )


def host_of(tensor: Tensor) -> HostArray:
    """Return what ``tensor`` holds: its own memory if that is contiguous and of the host."""
    host = array_namespace(tensor.array).to_numpy(tensor.array)
    return np.asarray(host, order="C")


def room_for(function: str, name: str, tensor: Tensor, keep: bool = False) -> HostArray:
    """Return an array for what ``tensor`` shall hold: its own memory, if possible.

    Args:
        keep: the present content is needed too.

    Raises:
        ArgumentError: the tensor cannot be written to.
    """
    array = tensor.array
    if isinstance(array, np.ndarray):
        if not array.flags.writeable or (array.size and 0 in _steps(array)):
            raise ArgumentError(
                f"{function}({name}: {describe(tensor)}): is written to, and this tensor is "
                "read-only or has elements that share memory; pass a clone()"
            )
        if array.flags.c_contiguous:
            return array
    return host_of(tensor) if keep else np.empty(array.shape, array.dtype)


def _steps(array: HostArray) -> list[int]:
    return [step for step, n in zip(array.strides, array.shape, strict=True) if n > 1]


def bring(tensor: Tensor, host: HostArray) -> None:
    """Let ``tensor`` hold ``host``, and tell autograd that it changed."""
    if host is not tensor.array:
        value = host.reshape(tensor.array.shape)
        tensor.array[...] = array_namespace(tensor.array).asarray(value)
    shared_of(tensor).bump()


def bring_all(tensors: Sequence[Tensor], hosts: Sequence[HostArray]) -> None:
    """Let each of ``tensors`` hold its array."""
    for tensor, host in zip(tensors, hosts, strict=True):
        bring(tensor, host)


def flat_of(tensors: Sequence[Tensor]) -> HostArray:
    """Return the elements of all tensors, one after the other."""
    hosts = [host_of(tensor).reshape(-1) for tensor in tensors]
    return hosts[0] if len(hosts) == 1 else np.concatenate(hosts)


def cut(flat: HostArray, tensors: Sequence[Tensor]) -> list[HostArray]:
    """Return the parts of ``flat``, one for each of ``tensors`` and in its shape."""
    ends = np.cumsum([tensor.array.size for tensor in tensors])
    parts = np.split(flat, ends[:-1])
    return [part.reshape(t.array.shape) for part, t in zip(parts, tensors, strict=True)]
