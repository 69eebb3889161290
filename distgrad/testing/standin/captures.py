"""The stand-in's CUDA graphs: work that a capturing stream records, and that a launch repeats.

Note [A capture computes nothing]
    The stand-in does work at once, also while a stream captures, for it needs the shapes and the
    dtypes of results.  So a capture keeps what its memory held before, and brings that back at the
    end; memory that was made meanwhile gets rubbish.  Only launches have an effect, as with CUDA.

Note [What a graph reads]
    It knows addresses, not tensors.  Memory of pools of graphs lives as long as they do; if other
    memory that a graph uses is freed, a launch is an error here, and rubbish on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from distgrad.testing.standin.ledger import ledger

if TYPE_CHECKING:
    from distgrad.testing.standin.streams import Clock, Memory, Stream

Action = Callable[[], Any]
Numbers = np.ndarray[Any, Any]
RUBBISH = 0xA5


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error of the driver."""


UNSUPPORTED = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
INVALIDATED = "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error"
IMPLICIT = (
    "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing "
    "blocking stream"
)
ISOLATION = (
    "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream"
)
UNJOINED = "cudaErrorStreamCaptureUnjoined: capturing stream has unjoined work"
CAPTURED_EVENT = (
    "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capturing "
    "stream"
)


class Capture:
    """What streams record from the begin of one's capture to its end."""

    def __init__(self, origin: Stream, thread: int) -> None:
        self.origin, self.thread = origin, thread
        self.actions: list[Action] = []
        self.clocks: dict[Stream, tuple[int, Clock]] = {}
        self.outside: dict[Memory, tuple[Numbers, Any]] = {}  # bytes and use before
        self.inside: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.used: list[weakref.ref[Memory]] = []
        self.active, self.valid = True, True
        self.enter(origin)

    def enter(self, stream: Stream) -> None:
        """Let the work of a stream be recorded too."""
        if stream not in self.clocks:
            self.clocks[stream] = stream.sequence, dict(stream.known)
            stream.capture = self

    def uses(self, memory: Memory) -> None:
        """Note that recorded work uses a piece of memory, before it does."""
        if memory not in self.outside and memory not in self.inside:
            self.outside[memory] = memory.bytes().copy(), memory.used

    def fail(self, error: str) -> CUDARuntimeError:
        """Make the capture worthless, and return the error that says why."""
        self.valid = False
        return CUDARuntimeError(error)

    def end(self) -> str:
        """Bring back what was before; return an error of CUDA, or nothing."""
        clock = self.origin.clock()
        joined = all(clock.get(s.number, 0) >= s.sequence for s in self.clocks)
        self.active = False
        for stream, (sequence, known) in self.clocks.items():
            stream.sequence, stream.known, stream.capture = sequence, known, None
        for memory, (numbers, used) in self.outside.items():
            memory.bytes()[...], memory.used = numbers, used
        for memory in self.inside:
            memory.bytes()[...], memory.used = RUBBISH, None
        self.used = [weakref.ref(memory) for memory in self.outside]
        self.outside.clear()  # numbers and memory live no longer for it
        if not self.valid:
            return INVALIDATED
        return "" if joined else UNJOINED


class Graph:
    """``cupy.cuda.Graph``: recorded work, which each launch does again on the same memory."""

    def __init__(self, capture: Capture, current: Callable[[], Stream]) -> None:
        self._actions, self._current = capture.actions, current
        used = {ref: memory for ref in capture.used if (memory := ref()) is not None}
        shared = [m for m in used.values() if m.pool.private]
        self._outside = [ref for ref, m in used.items() if not m.pool.private]
        self._inside = weakref.WeakSet([*capture.inside, *shared])
        self.graph, self.graphExec = id(capture), id(self)

    def launch(self, stream: Stream | None = None) -> None:
        """Do the work, on a stream (default: the current one)."""
        stream = stream or self._current()
        outside = [ref() for ref in self._outside]
        if None in outside:
            ledger.hazard("a launched graph uses memory that was freed since its capture")
        if stream.capture is not None:
            ledger.refuse("the stand-in captures no launch of a graph", NotImplementedError)
        for memory in (*outside, *self._inside):
            assert memory is not None
            memory.use(stream)
        ledger.replays += 1
        with np.errstate(all="ignore"):
            for action in self._actions:
                action()

    def upload(self, stream: Stream | None = None) -> None:
        """Bring the graph to the device, before its first launch."""

    def debug_dot_str(self, flags: int = 0) -> str:
        """Return the graph as text for Graphviz."""
        rows = [f'  n{i} [label="{_name(a)}"];' for i, a in enumerate(self._actions)]
        return "\n".join(["digraph {", *rows, "}"])


def _name(action: Action) -> str:
    return str(getattr(action, "__name__", type(action).__name__))


def repetition(compute: Action, placed: Any) -> Action:
    """Return what computes anew and stores that where ``placed`` lies, unless it writes there."""
    targets = _leaves(placed)

    def again() -> None:
        for target, fresh in zip(targets, _leaves(compute()), strict=True):
            if not np.may_share_memory(target, fresh):
                target[...] = fresh

    again.__name__ = getattr(compute, "__name__", "again")
    return again


def _leaves(values: Any) -> list[Numbers]:
    """Return the arrays of the host in nested tuples and lists."""
    if isinstance(values, tuple | list):
        return [leaf for value in values for leaf in _leaves(value)]
    host = getattr(values, "host", values)
    return [np.asarray(host)] if isinstance(host, np.ndarray | np.generic) else []
