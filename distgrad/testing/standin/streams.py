"""The stand-in's devices, streams, events and memory: who may use what, and when.

Note [Clocks]
    Work is done at once, but that proves no order.  So each stream counts its work and knows how
    far it has waited for the others (a vector clock).  Work on memory that another stream used
    later than this one knows of is a hazard, whatever the numbers in it are.  Each use counts as
    a change: two streams that only read are told apart from two that write by nobody here.

Note [Copies to the host]
    They arrive when the host sees their event done, or waits; until then the host's memory holds
    rubbish.  An event is done at the third look.  Copies from the host are made at once, and that
    memory must be the same when they are seen done.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from distgrad.testing.standin.ledger import ledger

Clock = dict[int, int]
_Pending = tuple[int, int, Callable[[], None]]  # what to do when that work of a stream is done
LOCK = threading.RLock()


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of the driver."""


class _Here(threading.local):
    """The current device of a thread, and its current stream on each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}


class _Machine:
    """All streams, and what the host knows to be done."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.nulls: dict[int, Stream] = {}
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.host: Clock = {}
        self.pending: list[_Pending] = []  # copies to the host
        self.checks: list[_Pending] = []  # of copies from the host
        self.pinned: dict[int, int] = {}  # end of each region by its begin
        self.memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.numbered = 0

    def number(self) -> int:
        self.numbered += 1
        return self.numbered


here = _Here()
machine = _Machine()


@contextmanager
def started(devices: int) -> Iterator[None]:
    """Have another machine in the block, with so many devices."""
    before = dict(vars(machine)), dict(vars(here))
    vars(machine).update(vars(_Machine(devices)))
    vars(here).update(device=0, streams={})
    try:
        yield
    finally:
        vars(machine).update(before[0])
        vars(here).update(before[1])


# ---------------------------------------------------------------------- devices
class Device:
    """A device by its number, and a context in which it is the current one."""

    __slots__ = ("_before", "id")

    def __init__(self, device: Device | int | None = None) -> None:
        self.id = here.device if device is None else int(device)
        if not 0 <= self.id < max(machine.devices, 1):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._before, here.device = here.device, self.id
        return self

    def __exit__(self, *error: object) -> None:
        here.device = self._before

    def use(self) -> None:
        """Make this the current device of the thread."""
        here.device = self.id

    @property
    def pci_bus_id(self) -> str:
        """Where the device is plugged in."""
        return f"0000:{self.id + 1:02X}:00.0"

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        ledger.sync("Device.synchronize()")
        for stream in [s for s in machine.streams if s.device_id == self.id]:
            host_knows(stream.clock())


# ---------------------------------------------------------------------- streams and events
class Stream:
    """A queue of work of one device."""

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        self.device_id = here.device
        self.number, self.sequence, self.known = machine.number(), 0, Clock()
        self.ptr = 0 if null else self.number << 8
        self.is_non_blocking = bool(non_blocking)
        self.priority = priority or 0
        machine.streams.add(self)

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} (device {self.device_id})>"

    def __enter__(self) -> Stream:
        self._before = current_stream()
        return self.use()

    def __exit__(self, *error: object) -> None:
        here.streams[self.device_id] = self._before

    def use(self) -> Stream:
        """Let the thread's work on this device go here."""
        if self.device_id != here.device:
            raise RuntimeError(
                f"This stream was not created on device {here.device}, but device {self.device_id}"
            )
        here.streams[self.device_id] = self
        return self

    def clock(self) -> Clock:
        """Return what is done when all work so far is."""
        return {**self.known, self.number: self.sequence}

    @property
    def done(self) -> bool:
        """Whether the host knows that all work is done."""
        return covers(machine.host, self.clock())

    def record(self, event: Event | None = None) -> Event:
        """Put an event behind the work so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work wait for the event."""
        with LOCK:
            ledger.contexts.add(here.device)
            merge(self.known, event.clock)

    def synchronize(self) -> None:
        """Wait for all work so far."""
        ledger.sync("Stream.synchronize()")
        host_knows(self.clock())

    def work(self) -> None:
        """Note a piece of work; the null stream and blocking streams wait for each other."""
        ledger.contexts.add(here.device)
        if not self.is_non_blocking:
            null = null_stream(self.device_id)
            others = [null] if self is not null else [
                s for s in list(machine.streams)
                if s.device_id == self.device_id and not s.is_non_blocking and s is not self
            ]  # fmt: skip
            for other in others:
                merge(self.known, other.clock())
        self.sequence += 1


class Event:
    """A point in a stream's work."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess and not disable_timing:
            raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")
        self.clock, self._looks = Clock(), 0
        self.device_id = here.device

    def record(self, stream: Stream | None = None) -> None:
        """Come after all work of a stream so far."""
        with LOCK:
            stream = stream or current_stream()
            if stream.device_id != self.device_id:
                raise CUDARuntimeError(
                    "cudaErrorInvalidResourceHandle: invalid resource handle"
                )  # an event belongs to the device it was made on
            self.clock, self._looks = stream.clock(), 0

    @property
    def done(self) -> bool:
        """Whether the work before it is done; after some looks it is."""
        ledger.contexts.add(here.device)
        self._looks += 1
        if not covers(machine.host, self.clock) and self._looks <= ledger.latency:
            return False
        host_knows(self.clock)
        return True

    def synchronize(self) -> None:
        """Wait for the work before it."""
        ledger.sync("Event.synchronize()")
        host_knows(self.clock)


def null_stream(device: int) -> Stream:
    """Return the default stream of a device."""
    with LOCK:
        if device not in machine.nulls:
            with Device(device):
                machine.nulls[device] = Stream(null=True)
        return machine.nulls[device]


def current_stream(device_id: int = -1) -> Stream:
    """Return the stream that the thread's work on a device goes to."""
    device = here.device if device_id < 0 else device_id
    return here.streams.get(device) or null_stream(device)


def merge(into: Clock, other: Clock) -> None:
    """Let ``into`` know what ``other`` knows."""
    for number, sequence in other.items():
        if into.get(number, 0) < sequence:
            into[number] = sequence


def covers(known: Clock, asked: Clock) -> bool:
    """Return whether all of ``asked`` is known."""
    return all(known.get(number, 0) >= sequence for number, sequence in asked.items())


def host_knows(clock: Clock) -> None:
    """Note that the host has seen this done; what was copied to it arrives."""
    with LOCK:
        merge(machine.host, clock)
        _settle(machine.pending, machine.host)
        _settle(machine.checks, machine.host)


def _settle(pending: list[_Pending], known: Clock) -> None:
    """Do what is pending for work that is known to be done."""
    over = [p for p in pending if known.get(p[0], 0) >= p[1]]
    pending[:] = [p for p in pending if known.get(p[0], 0) < p[1]]
    for _, _, act in over:
        act()


# ---------------------------------------------------------------------- memory of the device
class Memory:
    """A piece of a device's memory, and which work used it last."""

    __slots__ = ("__weakref__", "begin", "device", "nbytes", "owner", "used")

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.begin, self.nbytes, self.device = host.ctypes.data, host.nbytes, here.device
        self.owner = current_stream()
        self.used: tuple[int, int] | None = None
        machine.memories.add(self)

    def use(self, stream: Stream | None = None) -> None:
        """Note that a piece of work of a stream, by default the current one, uses it.

        Raises:
            StreamHazard: another stream may still be using it.
        """
        with LOCK:
            stream = current_stream() if stream is None else stream
            stream.work()
            if not self._ordered(stream):
                ledger.hazard(
                    f"{stream} uses {self.nbytes} bytes that stream {self.used} is using; wait for "
                    "its event"
                )
            self.used = stream.number, stream.sequence

    def _ordered(self, stream: Stream) -> bool:
        if self.used is None or self.used[0] == stream.number:
            return True
        number, sequence = self.used
        return max(stream.known.get(number, 0), machine.host.get(number, 0)) >= sequence

    def __del__(self) -> None:
        if not self._ordered(self.owner):
            ledger.hazards.append(
                f"{self.nbytes} bytes of {self.owner} were freed while stream {self.used} used them"
            )


def use_all(memories: Iterable[Memory], stream: Stream | None = None) -> None:
    """Note one piece of work on several pieces of memory."""
    for memory in set(memories):
        memory.use(stream)


def memory_at(address: int, nbytes: int) -> Memory:
    """Return the memory of the device that holds these bytes.

    Raises:
        CUDARuntimeError: there is none, as for an address of the host.
    """
    for memory in list(machine.memories):
        if memory.begin <= address and address + nbytes <= memory.begin + memory.nbytes:
            return memory
    raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")


class MemoryPointer:
    """An address in a device's memory."""

    __slots__ = ("mem", "ptr")

    def __init__(self, mem: Memory, ptr: int) -> None:
        self.mem, self.ptr = mem, ptr

    @property
    def device_id(self) -> int:
        """The device."""
        return self.mem.device

    def copy_to_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        """Start to copy to the host's memory at an address."""
        _check_size(self, size)
        stream = stream or current_stream()
        into, source = _bytes(_address(mem), size), _bytes(self.ptr, size)
        _pageable("copy_to_host_async()", _address(mem), size)
        with LOCK:
            self.mem.use(stream)
            _settle(machine.checks, stream.clock())  # copies of these bytes may be over before
            ledger.trace.append(f"to host {size} on {stream.ptr}")
            numbers = source.copy()
            into[...] = 0xA5  # until it arrives
            arrive = _arrival(into, numbers)
            machine.pending.append((stream.number, stream.sequence, arrive))

    def copy_from_host_async(self, mem: Any, size: int, stream: Stream | None = None) -> None:
        """Start to copy from the host's memory at an address."""
        _check_size(self, size)
        stream = stream or current_stream()
        source = _bytes(_address(mem), size)
        _pageable("copy_from_host_async()", _address(mem), size)
        with LOCK:
            self.mem.use(stream)
            ledger.trace.append(f"from host {size} on {stream.ptr}")
            _bytes(self.ptr, size)[...] = source
            unchanged = _sameness(source, source.copy())
            machine.checks.append((stream.number, stream.sequence, unchanged))


PUBLIC = (Device, Stream, Event, MemoryPointer)
PRIVATE = ("clock", "work")  # of the stand-in alone


def _check_size(pointer: MemoryPointer, size: int) -> None:
    if pointer.ptr + size > pointer.mem.begin + pointer.mem.nbytes:
        raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")


def _address(mem: Any) -> int:
    return int(getattr(mem, "value", mem))  # ctypes.c_void_p, or a number


def _bytes(address: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Return the memory of this process at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _arrival(into: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> Callable[[], None]:
    def arrive() -> None:
        into[...] = numbers

    return arrive


def _sameness(memory: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> Callable[[], None]:
    def check() -> None:
        if not np.array_equal(memory, before):
            ledger.hazards.append("the host changed memory while it was copied to the device")

    return check


# ---------------------------------------------------------------------- pinned memory of the host
def empty_pinned(shape: Any, dtype: Any = float, order: Any = "C") -> np.ndarray[Any, Any]:
    """Return a new array of the host that a device can copy from and to beside other work."""
    made = np.empty(shape, dtype, order)
    _pin(made.ctypes.data, made.nbytes)
    weakref.finalize(made, machine.pinned.pop, made.ctypes.data, None)
    return made


def zeros_pinned(shape: Any, dtype: Any = float, order: Any = "C") -> np.ndarray[Any, Any]:
    """Return a new array as `empty_pinned` does, of zeros."""
    made = empty_pinned(shape, dtype, order)
    made[...] = 0
    return made


def host_register(ptr: int, size: int, flags: int) -> None:
    """Pin memory of the host that is there already."""
    if any(begin < ptr + size and ptr < end for begin, end in machine.pinned.items()):
        raise CUDARuntimeError(
            "cudaErrorHostMemoryAlreadyRegistered: part or all of the requested memory range is "
            "already mapped"
        )
    _pin(ptr, size)


def host_unregister(ptr: int) -> None:
    """Undo `host_register`."""
    if machine.pinned.pop(ptr, None) is None:
        raise CUDARuntimeError(
            "cudaErrorHostMemoryNotRegistered: pointer does not correspond to a registered memory "
            "region"
        )


def _pin(begin: int, nbytes: int) -> None:
    if nbytes:
        machine.pinned[begin] = begin + nbytes


def _pageable(name: str, address: int, nbytes: int) -> None:
    """Note that the host waits where its memory is not pinned."""
    whole = any(b <= address and address + nbytes <= e for b, e in machine.pinned.items())
    if not whole:
        ledger.sync(f"{name} of memory that is not pinned")
