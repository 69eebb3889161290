"""Streams of work on a GPU, and events in them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from distgrad.backend.device import cupy_module
from distgrad.backend.device import device as Device
from distgrad.cuda.devices import DeviceLike, index_of


class Stream:
    """A queue of work on a GPU.

    Args:
        device: the GPU (default: the current one).
        priority: a negative number goes first.
    """

    def __init__(self, device: DeviceLike = None, priority: int = 0, *, raw: Any = None) -> None:
        self.device = Device("cuda", index_of("Stream", device))
        if raw is None:
            cupy = cupy_module("cuda.Stream()")
            with cupy.cuda.Device(self.device.index):
                raw = cupy.cuda.Stream(non_blocking=True, priority=priority)
        self.raw, self.priority = raw, priority

    @property
    def cuda_stream(self) -> int:
        """The handle that CUDA knows it by."""
        return int(self.raw.ptr)

    def synchronize(self) -> None:
        """Return when all of its work is done."""
        self.raw.synchronize()

    def query(self) -> bool:
        """Return whether all of its work is done."""
        return bool(self.raw.done)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work here wait for all work of ``stream`` so far."""
        self.raw.wait_event(stream.raw.record())

    def wait_event(self, event: Event) -> None:
        """Let later work here wait for ``event``."""
        self.raw.wait_event(event.raw)

    def record_event(self, event: Event | None = None) -> Event:
        """Return an event, a new one if none is given, that comes after all work so far."""
        event = event or Event()
        event.record(self)
        return event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    def __enter__(self) -> Stream:
        self.raw.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.raw.__exit__(*error)


class Event:
    """A point in a stream's work.

    Args:
        enable_timing: whether ``elapsed_time`` can be asked.
        blocking: whether ``synchronize`` sleeps while it waits.
        interprocess: PyTorch's; events belong to one process here.
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        cupy = cupy_module("cuda.Event()")
        self.raw = cupy.cuda.Event(block=blocking, disable_timing=not enable_timing)

    def record(self, stream: Stream | None = None) -> None:
        """Put this event behind the work of a stream so far (default: the current one)."""
        self.raw.record(None if stream is None else stream.raw)

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of a stream wait for this event."""
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        """Return whether the work before it is done."""
        return bool(self.raw.done)

    def synchronize(self) -> None:
        """Return when the work before it is done."""
        self.raw.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds from this event to ``end_event``."""
        cupy = cupy_module("cuda.Event.elapsed_time()")
        return float(cupy.cuda.get_elapsed_time(self.raw, end_event.raw))


def current_stream(device: DeviceLike = None) -> Stream:
    """Return the stream that work goes to."""
    return Stream(device, raw=cupy_module("cuda.current_stream()").cuda.get_current_stream())


def default_stream(device: DeviceLike = None) -> Stream:
    """Return the stream that work goes to unless told otherwise."""
    return Stream(device, raw=cupy_module("cuda.default_stream()").cuda.Stream.null)


def set_stream(stream: Stream) -> None:
    """Let work go to ``stream`` from here on."""
    stream.raw.use()


class stream(AbstractContextManager[None]):
    """Lets work go to a stream inside a ``with`` block; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.stream.__exit__(*error)
