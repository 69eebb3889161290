"""Page-locked memory of the host, from and to which a GPU copies while the host goes on.

Note [Copies under way]
    A copy stands on the current stream of the GPU's array, and the host does not wait for it. So
    memory of both sides is kept until an event behind the copy is done, for a pool of pinned memory
    gives out at once what is freed. Done events are looked for at the next such copy. What the
    program writes to that memory meanwhile, or reads from it, is its own affair, as in PyTorch:
    a host that reads must wait for the stream first. Not yet run on a GPU.

Note [Memory that another stream uses]
    CuPy's pool gives freed memory to the stream that it was first given to, at once. What another
    stream still works on (`hold`) is kept here: when nobody else has it any more, all that will
    work on it is in that stream, so an event is put behind it, and memory goes when that is done.
    Both are looked for whenever something is held or copied.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace, cupy_module, device
from distgrad.typing import Array

_MOVED = "to(non_blocking=True)"
_OURS = 2  # references to memory that nobody else has: from `_held` and from the question
_lock = threading.Lock()
_under_way: list[tuple[Any, Any, Any]] = []  # event, and what the copy reads and writes
_held: dict[int, tuple[Any, int, list[Any]]] = {}  # memory, its GPU, streams that use it
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
    order = _order(array)
    made = empty(array.transpose(order).shape, array.dtype, what)
    out = made.transpose(np.argsort(order))
    out[...] = array
    return out


def _order(array: Array) -> list[int]:
    """Return the dimensions of an array from the one of the longest steps to the shortest."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def is_pinned(array: Any) -> bool:
    """Return whether an array lies in memory that `empty` made."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    return type(owner) in _kinds


def moved(array: Array, place: device) -> Array | None:
    """Return a copy on another device, under way; None where there is no way to go on meanwhile.

    That is from pinned memory to a GPU, and from a GPU to the host, where the copy is in pinned
    memory. The copy keeps the order of dimensions.
    """
    there = place.type != "cpu"
    if hasattr(array, "below") or (there and not is_pinned(array)):
        return None
    array = _without_gaps(array)
    order = _order(array)
    source = array.transpose(order)
    if there:
        cupy = cupy_module(_MOVED)
        with cupy.cuda.Device(place.index):
            out = cupy.empty(source.shape, array.dtype)
    else:
        out = empty(source.shape, array.dtype, _MOVED)
    return out.transpose(np.argsort(order)) if start(out, source) else None


def _without_gaps(array: Array) -> Array:
    """Return an array whose elements fill its memory, itself if it is one; pinned as it is."""
    if array.transpose(_order(array)).flags.c_contiguous:
        return array
    if isinstance(array, np.ndarray):
        return copied(array, _MOVED)
    with cupy_module(_MOVED).cuda.Device(array.data.device_id):
        return array_namespace(array).copied(array)


def start(target: Array, source: Array) -> bool:
    """Start to copy between pinned memory and a GPU; return whether that is possible."""
    down = isinstance(target, np.ndarray)
    host, there = (target, source) if down else (source, target)
    same = target.shape == source.shape and target.dtype == source.dtype
    if same and not target.flags.c_contiguous:
        order = _order(target)
        target, source = target.transpose(order), source.transpose(order)
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
    _let_go()
    with _lock:
        _under_way.append((_behind(stream, there.data.device_id), host, there))
    return True


def hold(array: Array, stream: Any) -> None:
    """Keep the memory of an array until what ``stream`` is going to do with it is done."""
    capture = captures.current()
    if capture is not None:
        capture.keep(array)
        return
    _let_go()
    memory, index = array.data.mem, array.data.device_id
    with _lock:
        _held.setdefault(id(memory), (memory, index, []))[2].append(stream)


def _let_go() -> None:
    """Forget what is done; see Note [Memory that another stream uses]."""
    with _lock:
        _under_way[:] = [one for one in _under_way if not one[0].done]
        for key in [k for k, entry in _held.items() if sys.getrefcount(entry[0]) <= _OURS]:
            memory, index, streams = _held.pop(key)
            for stream in streams:
                _under_way.append((_behind(stream, index), memory, None))


def _behind(stream: Any, index: int) -> Any:
    """Return an event behind all work of a stream so far; ``index`` is its GPU."""
    cuda = cupy_module("Event()").cuda
    with cuda.Device(index):
        event = cuda.Event(disable_timing=True)
        event.record(stream)
    return event
