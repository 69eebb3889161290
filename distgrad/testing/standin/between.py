"""The stand-in's memory and events that ranks of one host share: threads, or processes.

Note [Between processes]
    Memory from the driver lies in a file of the folder in which the processes meet, and an event
    that has a handle writes its clock to one. Streams have numbers of their own in all processes,
    and a piece of memory has in its file which work wrote it last, which streams have read it
    since, and how many have it open. So what no event orders is noticed between processes as
    between threads, and so is memory that is freed while others have it open.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import (
    LOCK,
    NO_POOL,
    CUDARuntimeError,
    Event,
    Memory,
    MemoryPointer,
    Stream,
    current_stream,
    machine,
    memory_at,
)

_HEAD = 8192  # bytes before the memory in a file
_OPEN, _WRITER, _READERS = 0, 1, 3  # places of numbers therein; streams are pairs
_PAIRS = (_HEAD // 8 - _READERS) // 2


class SharedMemory(Memory):
    """Memory that other ranks may read at the same time.

    Args:
        whole: bytes, with the numbers of Note [Between processes] before the memory itself.
        handle: of the file, if it lies in one.
    """

    def __init__(self, whole: np.ndarray[Any, Any], handle: int = -1) -> None:
        self._numbers, self._handle = whole[:_HEAD].view(np.int64), handle
        if handle >= 0:
            weakref.finalize(self, os.close, handle)
        writer = self.used
        super().__init__(whole[_HEAD:])
        self.pool, self.number = NO_POOL, machine.number()
        self.used = writer

    ptr = property(lambda self: self.begin)
    size = property(lambda self: self.nbytes)

    @property
    def used(self) -> tuple[int, int] | None:
        """The work that wrote it last, of any process."""
        stream, sequence = self._numbers[_WRITER : _WRITER + 2].tolist()
        return (stream, sequence) if stream else None

    @used.setter
    def used(self, work: tuple[int, int] | None) -> None:
        self._numbers[_WRITER : _WRITER + 2] = work or (0, 0)

    @property
    def readers(self) -> dict[int, int]:
        """The last work of each stream that read it."""
        pairs = self._numbers[_READERS : _READERS + 2 * _PAIRS].reshape(-1, 2).tolist()
        return {stream: sequence for stream, sequence in pairs if stream}

    def use(self, stream: Stream | None = None) -> None:
        """Note that a piece of work writes it.

        Raises:
            StreamHazard: another stream may still be using it.
        """
        with self._alone():
            super().use(stream)

    def read(self, stream: Stream, nbytes: int) -> None:
        """Note that a piece of work reads so many bytes."""
        with self._alone():
            stream.work()
            if not stream.knows(self.used):
                ledger.hazard(
                    f"{stream} reads {nbytes} bytes that stream {self.used} is writing; wait for "
                    "its event"
                )
            pairs = self._numbers[_READERS : _READERS + 2 * _PAIRS].reshape(-1, 2)
            place = int(np.argmax((pairs[:, 0] == stream.number) | (pairs[:, 0] == 0)))
            pairs[place] = stream.number, stream.sequence

    def opened(self, more: int) -> None:
        """Note that another process has it open, or no longer."""
        with self._alone():
            self._numbers[_OPEN] += more

    def _ordered(self, stream: Stream) -> bool:
        return super()._ordered(stream) and all(map(stream.knows, self.readers.items()))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with LOCK:
            if self._handle >= 0:
                fcntl.flock(self._handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                if self._handle >= 0:
                    fcntl.flock(self._handle, fcntl.LOCK_UN)


class RawMemory(SharedMemory):
    """What ``cupy.cuda.Memory`` takes from the driver."""

    def __init__(self, size: int) -> None:
        if machine.folder is None:
            super().__init__(np.empty(_HEAD + size, np.uint8))
        else:
            path = machine.folder / f"memory-{machine.number()}"
            path.write_bytes(bytes(_HEAD + size))
            super().__init__(*_mapped(path))
            self.path = path
        self._numbers[:] = 0
        self.host[...] = 0xA5
        with LOCK:
            _own[self.number] = self

    def __del__(self, place: int = _OPEN, ledger: Any = ledger) -> None:  # also as Python ends
        if self._numbers.item(place):
            ledger.hazards.append(f"{self.nbytes} bytes were freed while another process has them")


class UnownedMemory:
    """Memory of the device at an address; of shared memory it is only read."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        found = memory_at(ptr, size)
        self.begin, self.nbytes = ptr, size
        self.raw = found if isinstance(found, SharedMemory) else None
        self.memory = self if self.raw is not None else found
        self.device = found.device if device_id < 0 else device_id

    def use(self, stream: Stream | None = None) -> None:
        """Note that a piece of work reads it."""
        assert self.raw is not None
        self.raw.read(current_stream() if stream is None else stream, self.nbytes)


def pointer(mem: Any, offset: int) -> MemoryPointer:
    """Return ``MemoryPointer(mem, offset)`` as CuPy makes it."""
    return MemoryPointer(getattr(mem, "memory", mem), mem.begin + offset)


def _mapped(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    """Return the bytes of a file, and its handle."""
    handle = os.open(path, os.O_RDWR)
    return np.frombuffer(mmap.mmap(handle, 0), np.uint8), handle


# ---------------------------------------------------------------------- handles
_own: weakref.WeakValueDictionary[int, RawMemory] = weakref.WeakValueDictionary()
_foreign: dict[int, SharedMemory | Event] = {}  # opened, by address or number


def _handle(number: int) -> bytes:
    """Return a handle of memory or of an event; it says whose it is."""
    return number.to_bytes(56, "little") + os.getpid().to_bytes(8, "little")


def _read(handle: bytes) -> tuple[int, bool]:
    """Return the number in a handle, and whether it is of this process: threads stand for others.

    Raises:
        CUDARuntimeError: it is of another process, and there is no folder to meet in.
    """
    here = int.from_bytes(handle[56:], "little") == os.getpid()
    if not here and machine.folder is None:
        raise CUDARuntimeError("cudaErrorMapBufferObjectFailed: mapping of buffer object failed")
    return int.from_bytes(handle[:56], "little"), here


def ipc_get_mem_handle(devPtr: int) -> bytes:
    """Return what another process opens."""
    found = [m for m in list(_own.values()) if m.begin == devPtr]
    if not found:
        raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
    path = getattr(found[0], "path", None)
    return _handle(found[0].number if path is None else int(path.name.partition("-")[2]))


def ipc_open_mem_handle(handle: bytes, flags: int = 1) -> int:
    """Return the address of memory that another process has."""
    number, here = _read(handle)
    if here:
        owners = [m for m in list(_own.values()) if ipc_get_mem_handle(m.begin) == handle]
        return int(owners[0].begin)
    assert machine.folder is not None
    memory = SharedMemory(*_mapped(machine.folder / f"memory-{number}"))
    memory.opened(1)
    _foreign[memory.begin] = memory
    return memory.begin


def ipc_close_mem_handle(devPtr: int) -> None:
    """Give back what was opened."""
    memory = _foreign.pop(devPtr, None)
    if isinstance(memory, SharedMemory):
        memory.opened(-1)
    elif not any(m.begin == devPtr for m in list(_own.values())):
        raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")


class _Writer:
    """Writes the clock of an event where other processes read it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, clock: dict[int, int]) -> None:
        fresh = self.path.with_suffix(f".{threading.get_ident()}")
        fresh.write_bytes(pickle.dumps(clock))
        fresh.rename(self.path)


def ipc_get_event_handle(event: int) -> bytes:
    """Return what another process opens."""
    found = machine.events[event]
    if not found.interprocess:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    if machine.folder is not None:
        found.told = _Writer(machine.folder / f"event-{event}")
        found.told(found.clock)
    return _handle(event)


def ipc_open_event_handle(handle: bytes) -> int:
    """Return an event that another process records."""
    number, here = _read(handle)
    if here:
        return number
    assert machine.folder is not None
    event = Event(disable_timing=True, interprocess=True)
    event.source = machine.folder / f"event-{number}"
    _foreign[event.ptr] = event
    return event.ptr


def event_destroy(event: int) -> None:
    """Give back an event."""
    _foreign.pop(event, None)


def stream_wait_event(stream: int, event: int, flags: int = 0) -> None:
    """Let later work of a stream wait for an event."""
    with LOCK:
        waiting = next(s for s in list(machine.streams) if s.ptr == stream)
        found = machine.events[event]
        if found.source is not None:
            found.clock = pickle.loads(found.source.read_bytes())
        waiting.wait_event(found)
