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

import bisect
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.testing.standin.captures import (
    CAPTURED_EVENT,
    IMPLICIT,
    ISOLATION,
    UNSUPPORTED,
    Action,
    Capture,
    Graph,
)
from distgrad.testing.standin.captures import (
    CUDARuntimeError as CUDARuntimeError,
)
from distgrad.testing.standin.ledger import guards, ledger

Clock = dict[int, int]
_Pending = tuple[int, int, Callable[[], None]]  # what to do when that work of a stream is done
LOCK = threading.RLock()


class MemoryPool:
    """A pool of memory: what it counts, and by which memory is known to come from it."""

    def __init__(self, allocator: Any = None) -> None:
        self.private = True

    def malloc(self, size: int) -> Any:
        """Do nothing: `Memory` takes itself, and tells the allocator."""

    def used_bytes(self) -> int:
        """Return how much is in use on the current device."""
        with LOCK:
            mine = [m for m in machine.memories if m.pool is self and m.device == here.device]
            return sum(m.nbytes for m in mine)

    total_bytes = used_bytes

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        """Give back what is not in use, which here is nothing."""


class MemoryHook:
    """What CuPy calls for each piece of memory that a thread takes or gives back."""

    name = "MemoryHook"

    def __enter__(self) -> MemoryHook:
        here.hooks.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        here.hooks.remove(self)

    def malloc_postprocess(self, **what: Any) -> None:
        """Come after memory was taken from a pool."""

    def free_preprocess(self, **what: Any) -> None:
        """Come before memory is given back to a pool."""


def set_allocator(allocator: Any = None) -> None:
    """Let all threads' memory be taken by a function, which is to ask a pool."""
    machine.allocator = allocator


NO_POOL = MemoryPool()  # cudaMalloc and cudaFree, which waits for the device
NO_POOL.private = False


class _Here(threading.local):
    """The current device of a thread, and its current stream on each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}
        self.pool: MemoryPool | None = None  # that takes the place of the default one
        self.captures: list[Capture] = []  # that began in this thread
        self.hooks: list[MemoryHook] = []


class _Machine:
    """All streams, and what the host knows to be done."""

    def __init__(self, devices: int = 1, folder: Path | None = None) -> None:
        self.devices = devices
        self.nulls: dict[int, Stream] = {}
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.host: Clock = {}
        self.pending: list[_Pending] = []  # copies to the host
        self.checks: list[_Pending] = []  # of copies from the host
        self.pinned: dict[int, int] = {}  # end of each region by its begin
        self.copies: list[tuple[int, int, int]] = []  # address, and the work that copies there
        self.memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.allocator: Any = None  # in the place of the default pool's
        self.events: weakref.WeakValueDictionary[int, Event] = weakref.WeakValueDictionary()
        self.pool = MemoryPool()  # the default one
        self.pool.private = False
        self.pieces = 0  # of memory that were ever taken
        self.folder = folder  # where processes meet
        self.numbered = os.getpid() << 24 if folder else 0  # streams of all processes differ

    def number(self) -> int:
        self.numbered += 1
        return self.numbered


here = _Here()
machine = _Machine()


@contextmanager
def started(devices: int, folder: Path | None = None) -> Iterator[None]:
    """Have another machine in the block, with so many devices, and a folder to share memory in."""
    before = dict(vars(machine)), dict(vars(here))
    vars(machine).update(vars(_Machine(devices, folder)))
    vars(here).update(device=0, streams={}, pool=None, captures=[], hooks=[])
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
        self.capture: Capture | None = None
        self.freed: list[tuple[tuple[int, int] | None, int]] = []  # and their last use
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
            self._join(event)
            merge(self.known, event.clock)

    def knows(self, use: tuple[int, int] | None) -> bool:
        """Return whether a use of memory is over when later work here begins."""
        if use is None or use[0] == self.number:
            return True
        return max(self.known.get(use[0], 0), machine.host.get(use[0], 0)) >= use[1]

    def reuse(self) -> None:
        """Take memory that was freed, which must be in use by nobody."""
        freed, self.freed = self.freed, []
        for use, nbytes in freed:
            if not self.knows(use):
                ledger.hazards.append(
                    f"{nbytes} bytes of {self} were freed while stream {use} used them, and given "
                    "out again"
                )

    def _join(self, event: Event) -> None:
        """Be captured too behind an event of a capturing stream."""
        if event.capture is not None and not event.capture.active:
            raise CUDARuntimeError(CAPTURED_EVENT)
        if self.capture is not None and event.clock and event.capture is not self.capture:
            raise self.capture.fail(ISOLATION)
        if event.capture is not None:
            event.capture.enter(self)

    def begin_capture(self, mode: int | None = None) -> None:
        """Record work from here on, instead of doing it."""
        if self.ptr == 0 or self.capture is not None:
            raise CUDARuntimeError(UNSUPPORTED)
        here.captures.append(Capture(self, threading.get_ident()))

    def end_capture(self) -> Graph:
        """Return what was recorded."""
        capture = self.capture
        if capture is None or capture.origin is not self:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        here.captures.remove(capture)
        error = capture.end()
        if error:
            raise CUDARuntimeError(error)
        return Graph(capture, current_stream)

    def is_capturing(self) -> bool:
        """Whether work is recorded."""
        return self.capture is not None

    def synchronize(self) -> None:
        """Wait for all work so far."""
        if self.capture is not None:
            raise self.capture.fail(UNSUPPORTED)
        ledger.sync("Stream.synchronize()")
        host_knows(self.clock())

    def work(self) -> None:
        """Note a piece of work; the null stream and blocking streams wait for each other."""
        ledger.contexts.add(here.device)
        if here.captures and self.capture is None and not self.is_non_blocking:
            raise here.captures[-1].fail(IMPLICIT)
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
        self.capture: Capture | None = None
        self.device_id, self.interprocess = here.device, interprocess
        self.told: Callable[[Clock], None] | None = None  # for other processes: see `between`
        self.source: Path | None = None
        self.ptr = machine.number() << 8
        machine.events[self.ptr] = self

    def record(self, stream: Stream | None = None) -> None:
        """Come after all work of a stream so far."""
        with LOCK:
            stream = stream or current_stream()
            if stream.device_id != self.device_id:
                raise CUDARuntimeError(
                    "cudaErrorInvalidResourceHandle: invalid resource handle"
                )  # an event belongs to the device it was made on
            self.clock, self._looks, self.capture = stream.clock(), 0, stream.capture
            if self.told is not None:
                self.told(self.clock)

    @property
    def done(self) -> bool:
        """Whether the work before it is done; after some looks it is."""
        ledger.contexts.add(here.device)
        if self.capture is not None:
            raise CUDARuntimeError(CAPTURED_EVENT)
        self._looks += 1
        if not covers(machine.host, self.clock) and self._looks <= ledger.latency:
            return False
        host_knows(self.clock)
        return True

    def synchronize(self) -> None:
        """Wait for the work before it."""
        if self.capture is not None:
            raise CUDARuntimeError(CAPTURED_EVENT)
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


def capturing() -> Capture | None:
    """Return the capture that the thread's current stream belongs to."""
    stream = here.streams.get(here.device)
    return None if stream is None else stream.capture


def note(action: Action, stream: Stream | None = None) -> None:
    """Let a capture of a stream, by default the current one, repeat work at each launch.

    What has done some work calls it with a function that does the same again, on the same memory.
    """
    capture = capturing() if stream is None else stream.capture
    if capture is not None:
        capture.actions.append(action)


def refuse_in_capture(what: str) -> None:
    """Raise as CUDA does for what a capturing stream cannot record."""
    capture = capturing()
    if capture is not None:
        raise capture.fail(f"{UNSUPPORTED} ({what})")


guards[:] = [refuse_in_capture]


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

    __slots__ = ("__weakref__", "begin", "device", "host", "nbytes", "owner", "pool", "used")

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.begin, self.nbytes, self.device = host.ctypes.data, host.nbytes, here.device
        self.host = host  # nothing else comes to lie here while this is known
        self.owner = current_stream()
        self.owner.reuse()
        self.used: tuple[int, int] | None = None
        self.pool = here.pool or machine.pool
        capture = capturing()
        if capture is not None:
            if here.pool is None:
                ledger.hazard("memory of the default pool in a capture: others will get it too")
            capture.inside.add(self)
        with LOCK:
            machine.memories.add(self)
            machine.pieces += 1
        if machine.allocator is not None and here.pool is None:
            machine.allocator(self.nbytes)
        for hook in here.hooks if self.pool is not NO_POOL else ():
            hook.malloc_postprocess(
                device_id=self.device, size=self.nbytes, mem_size=self.nbytes,
                mem_ptr=self.begin, pmem_id=id(self),
            )  # fmt: skip

    def bytes(self) -> np.ndarray[Any, Any]:
        """Return what is in it."""
        return _bytes(self.begin, self.nbytes)

    def use(self, stream: Stream | None = None) -> None:
        """Note that a piece of work of a stream, by default the current one, uses it.

        Raises:
            StreamHazard: another stream may still be using it.
        """
        with LOCK:
            stream = current_stream() if stream is None else stream
            if stream.capture is not None:
                stream.capture.uses(self)
            stream.work()
            if not self._ordered(stream):
                ledger.hazard(
                    f"{stream} uses {self.nbytes} bytes that stream {self.used} is using; wait for "
                    "its event"
                )
            self.used = stream.number, stream.sequence

    def _ordered(self, stream: Stream) -> bool:
        return stream.knows(self.used)

    def __del__(self) -> None:
        if self.pool is NO_POOL:
            return
        if not self._ordered(self.owner):
            self.owner.freed.append((self.used, self.nbytes))
        for hook in here.hooks:
            hook.free_preprocess(
                device_id=self.device, mem_size=self.nbytes, mem_ptr=self.begin, pmem_id=id(self)
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
    memory = memory_or_none(address, nbytes)
    if memory is None:
        raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    return memory


def memory_or_none(address: int, nbytes: int = 1) -> Memory | None:
    """Return the memory of the device that holds these bytes, if any does."""
    with LOCK:
        memories = list(machine.memories)
    for memory in memories:
        if memory.begin <= address and address + nbytes <= memory.begin + memory.nbytes:
            return memory
    return None


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Let the thread's memory come from the pool whose ``malloc`` is given, from none for None."""
    before, here.pool = here.pool, NO_POOL if allocator is None else allocator.__self__
    try:
        yield
    finally:
        here.pool = before


def memories_at(addresses: Iterable[int]) -> list[Memory]:
    """Return the pieces of memory that any of these numbers is an address in."""
    with LOCK:
        memories = sorted((m for m in machine.memories if m.nbytes), key=lambda m: m.begin)
    begins = [memory.begin for memory in memories]
    found: dict[int, Memory] = {}
    for address in set(addresses):
        place = bisect.bisect_right(begins, address) - 1
        if place >= 0 and address < begins[place] + memories[place].nbytes:
            found[place] = memories[place]
    return list(found.values())


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
            _note_copy(_address(mem), stream)
            if stream.capture is not None:
                note(_copying(into, source), stream)
                return
            numbers = source.copy()
            into[...] = 0xA5  # until it arrives
            arrive = _Arrival(into, numbers)
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
            _note_copy(_address(mem), stream)
            _arrive_before(source, stream)
            _bytes(self.ptr, size)[...] = source
            if stream.capture is not None:
                note(_copying(_bytes(self.ptr, size), source), stream)
                return
            unchanged = _sameness(source, source.copy())
            machine.checks.append((stream.number, stream.sequence, unchanged))


PUBLIC = (Device, Stream, Event, MemoryPointer)  # their names are CuPy's
PRIVATE = ("clock", "work", "knows", "reuse")  # of the stand-in alone


def _check_size(pointer: MemoryPointer, size: int) -> None:
    if pointer.ptr + size > pointer.mem.begin + pointer.mem.nbytes:
        raise CUDARuntimeError("cudaErrorInvalidValue: invalid argument")


def _note_copy(address: int, stream: Stream) -> None:
    if stream.capture is None:
        known = machine.host
        machine.copies[:] = [c for c in machine.copies if known.get(c[1], 0) < c[2]]
        machine.copies.append((address, stream.number, stream.sequence))


def _address(mem: Any) -> int:
    return int(getattr(mem, "value", mem))  # ctypes.c_void_p, or a number


def _bytes(address: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Return the memory of this process at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def _copying(into: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> Action:
    def copy() -> None:
        into[...] = source

    return copy


class _Arrival:
    """What a copy to the host does when it is seen to be over."""

    __slots__ = ("into", "numbers")

    def __init__(self, into: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> None:
        self.into, self.numbers = into, numbers

    def __call__(self) -> None:
        self.into[...] = self.numbers


def _arrive_before(source: np.ndarray[Any, Any], stream: Stream) -> None:
    """Let copies to memory of the host arrive that a stream, which reads there, comes behind."""
    clock = stream.clock()
    for pending in list(machine.pending):
        number, sequence, arrive = pending
        into = arrive.into if isinstance(arrive, _Arrival) else source[:0]
        if clock.get(number, 0) >= sequence and np.may_share_memory(into, source):
            machine.pending.remove(pending)
            arrive()


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


class PinnedMemory(bytearray):
    """What ``cupy.cuda.alloc_pinned_memory`` returns."""


def alloc_pinned_memory(size: int) -> PinnedMemory:
    """Return pinned memory of the host; what is freed during a copy is reported."""
    made = PinnedMemory(size)
    ledger.contexts.add(here.device)
    address = np.frombuffer(made, np.uint8).ctypes.data
    _pin(address, size)
    weakref.finalize(made, _freed, address, size, machine.pinned)
    return made


def _freed(address: int, size: int, pinned: dict[int, int]) -> None:
    pinned.pop(address, None)
    copies = [*machine.copies]
    for begin, number, sequence in copies:
        done = machine.host.get(number, 0) >= sequence
        if not done and address <= begin < address + size:
            ledger.hazards.append(f"{size} bytes of pinned memory were freed during a copy")


def zeros_pinned(shape: Any, dtype: Any = float, order: Any = "C") -> np.ndarray[Any, Any]:
    """Return a new array as `empty_pinned` does, of zeros."""
    made = empty_pinned(shape, dtype, order)
    made[...] = 0
    return made


def host_register(ptr: int, size: int, flags: int) -> None:
    """Pin memory of the host that is there already."""
    if any(begin < ptr + size and ptr < end for begin, end in list(machine.pinned.items())):
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
    regions = list(machine.pinned.items())  # other threads pin memory meanwhile
    whole = any(begin <= address and address + nbytes <= end for begin, end in regions)
    if not whole:
        ledger.sync(f"{name} of memory that is not pinned")
