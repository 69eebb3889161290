"""Tensors as the wire takes them, and the way back.

These are C-contiguous arrays: of the host, or of the GPU if there is a turn for them, at NCCL or at
an MPI that takes memory of GPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from distgrad.backend.device import array_namespace, device_of
from distgrad.distributed.cuda_aware import Direct
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.nccl import Turn, meet
from distgrad.distributed.work import HostArray
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DtypeError,
    ShapeError,
    describe,
    signature,
)
from distgrad.tensor import Tensor, shared_of

AnyTurn: TypeAlias = Turn | Direct
_ON_GPU = re.compile(r" on cuda:\d+")


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


def turn_of(group: ProcessGroup, function: str, op: str, *tensors: Tensor) -> AnyTurn | None:
    """Return a turn at NCCL or MPI for these tensors; None where they go by way of the host.

    Args:
        op: the reduction; nothing where numbers only move.
    """
    if group.size == 1 or not any(tensor.is_cuda for tensor in tensors):
        return None
    indices = {device_of(tensor.array).index for tensor in tensors}
    if len(indices) > 1:
        raise DeviceError(
            f"{function}({describe(list(tensors))}): the tensors are on several devices; move them "
            "to one"
        )
    index = indices.pop() or 0
    link = meet(group, index, f"{function}() of tensors").link
    if link is None:
        return Direct(index) if not op and group.takes_gpu_memory() else None
    return None if op and not link.takes(tensors[0].array.dtype, op) else Turn(link)


def message_turn(group: ProcessGroup, tensor: Tensor) -> Direct | None:
    """Return a turn at MPI for a message; NCCL has none that match by tag, or from anybody."""
    if not tensor.is_cuda or not group.takes_gpu_memory():
        return None
    return Direct(device_of(tensor.array).index or 0)


def in_words(function: str, tensors: Mapping[str, Any], options: Mapping[str, object]) -> str:
    """Return the call in words that are the same on all ranks, whichever GPU their tensors are on.

    Example:
        >>> in_words("all_reduce", {"tensor": np.ones(2)}, {"op": "sum"})
        "all_reduce(tensor: float64[2], op='sum')"
    """
    return _ON_GPU.sub("", signature(function, tensors, options))


def empty(shape: Sequence[int], dtype: Any, turn: AnyTurn | None = None) -> Any:
    """Return a new array of the host, or of the GPU for a turn."""
    return np.empty(shape, dtype) if turn is None else turn.empty(shape, dtype)


def host_of(tensor: Tensor, turn: AnyTurn | None = None) -> Any:
    """Return what ``tensor`` holds: its own memory if that is contiguous and of the right kind."""
    if turn is not None:
        array = tensor.array
        return (
            array if array.flags.c_contiguous else array_namespace(array).ascontiguousarray(array)
        )
    host = array_namespace(tensor.array).to_numpy(tensor.array)
    return np.asarray(host, order="C")


def room_for(
    function: str, name: str, tensor: Tensor, keep: bool = False, turn: AnyTurn | None = None
) -> Any:
    """Return an array for what ``tensor`` shall hold: its own memory, if possible.

    Args:
        keep: the present content is needed too.

    Raises:
        ArgumentError: the tensor cannot be written to.
    """
    array = tensor.array
    here = isinstance(array, np.ndarray)
    frozen = here and not array.flags.writeable
    if frozen or (array.size and 0 in _steps(array)):
        raise ArgumentError(
            f"{function}({name}: {describe(tensor)}): is written to, and this tensor is "
            "read-only or has elements that share memory; pass a clone()"
        )
    if array.flags.c_contiguous and here is (turn is None):
        return array
    return host_of(tensor, turn) if keep else empty(array.shape, array.dtype, turn)


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


def flat_of(tensors: Sequence[Tensor], turn: AnyTurn | None = None) -> Any:
    """Return the elements of all tensors, one after the other."""
    hosts = [host_of(tensor, turn).reshape(-1) for tensor in tensors]
    return hosts[0] if len(hosts) == 1 else array_namespace(hosts[0]).concatenate(hosts)


def cut(flat: Any, tensors: Sequence[Tensor]) -> list[Any]:
    """Return the parts of ``flat``, one for each of ``tensors`` and in its shape."""
    ends = np.cumsum([0, *(tensor.array.size for tensor in tensors)]).tolist()
    parts = [flat[a:b] for a, b in pairwise(ends)]
    return [part.reshape(t.array.shape) for part, t in zip(parts, tensors, strict=True)]
