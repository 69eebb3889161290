"""Page-locked memory of the host, from and to which a GPU copies while the host goes on.

Note [Copies under way]
    A copy stands on the current stream of the GPU's array, and the host does not wait for it. So
    memory of both sides is kept until an event behind the copy is done, for a pool of pinned memory
    gives out at once what is freed. Done events are looked for at the next such copy. What the
    program writes to that memory meanwhile, or reads from it, is its own affair, as in PyTorch:
    a host that reads must wait for the stream first. Not yet run on a GPU.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend.device import cupy_module, device
from distgrad.typing import Array

_lock = threading.Lock()
_under_way: list[tuple[Any, Any, Any]] = []  # event, and what the copy reads and writes
_kinds: set[type] = set()  # of the objects that own pinned memory


def empty(shape: tuple[int, ...], dtype: Any, what: str) -> np.ndarray[Any, Any]:
    """Return uninitialised pinned memory as an array; ``what`` asks for it, for messages."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    memory = cupy_module(what).cuda.alloc_pinned_memory(max(1, count * kind.itemsize))
    _kinds.add(type(memory))
    # Of bytes first: a buffer knows no bfloat16.
    whole = np.frombuffer(memory, np.uint8, count * kind.itemsize)
    made: np.ndarray[Any, Any] = whole.view(kind).reshape(shape)
    return made


def copied(array: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """Return a copy of an array of the host in pinned memory, in its order of dimensions."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    made = empty(tuple(array.shape[axis] for axis in order), array.dtype, what)
    out = made.transpose(sorted(range(array.ndim), key=order.__getitem__))
    out[...] = array
    return out


def is_pinned(array: Any) -> bool:
    """Return whether an array lies in memory that `empty` made."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    return type(owner) in _kinds


def moved(array: Array, place: device) -> Array | None:
    """Return a copy on another device, under way; None where there is no way to go on meanwhile.

    That is for contiguous arrays: from pinned memory to a GPU, and from a GPU to the host, where
    the copy is in pinned memory.
    """
    if hasattr(array, "below") or not array.flags.c_contiguous:
        return None
    if place.type == "cpu":
        out = empty(array.shape, array.dtype, "to(non_blocking=True)")
        return out if start(out, array) else None
    if not is_pinned(array):
        return None
    cupy = cupy_module("to(non_blocking=True)")
    with cupy.cuda.Device(place.index):
        out = cupy.empty(array.shape, array.dtype)
    return out if start(out, array) else None


def start(target: Array, source: Array) -> bool:
    """Start to copy between pinned memory and a GPU; return whether that is possible."""
    down = isinstance(target, np.ndarray)
    host, there = (target, source) if down else (source, target)
    same = target.shape == source.shape and target.dtype == source.dtype
    dense = same and target.flags.c_contiguous and source.flags.c_contiguous
    if not dense or not isinstance(host, np.ndarray) or isinstance(there, np.ndarray):
        return False
    if hasattr(there, "below") or not is_pinned(host) or (down and not host.flags.writeable):
        return False
    if not host.nbytes:
        return True
    cuda = cupy_module("copy_(non_blocking=True)").cuda
    with cuda.Device(there.data.device_id):
        stream = cuda.get_current_stream()
        copy = there.data.copy_to_host_async if down else there.data.copy_from_host_async
        copy(host.ctypes.data, host.nbytes, stream)
        capture = captures.current()
        if capture is not None:
            capture.keep((host, there))
            return True
        event = cuda.Event(disable_timing=True)
        event.record(stream)
    with _lock:
        _under_way[:] = [one for one in _under_way if not one[0].done]
        _under_way.append((event, host, there))
    return True
