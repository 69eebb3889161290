"""The capture under way in a thread: work for a GPU that is recorded into a graph, not done.

``distgrad.cuda.graphs`` begins and ends captures.  What must know of them asks here: what cannot
be recorded refuses, what must be ready before takes `outside`, and what changes from one replay to
the next asks to be called before each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.errors import CaptureError

__all__ = ["Capture", "current", "entered", "outside", "refuse"]

Action = Callable[[], None]


class Capture:
    """What a graph needs beside the work that CUDA records.

    Args:
        cupy: CuPy.
        since: the time when it began, by which what was recorded for backward before is told.
    """

    __slots__ = ("after", "before", "cupy", "kept", "since")

    def __init__(self, cupy: Any, since: int = 0) -> None:
        self.cupy, self.since = cupy, since
        self.before: list[Action] = []
        self.after: list[Action] = []
        self.kept: list[Any] = []

    def before_replay(self, action: Action) -> None:
        """Call ``action`` before each replay: it may write what the graph reads."""
        if action not in self.before:
            self.before.append(action)

    def after_replay(self, action: Action) -> None:
        """Call ``action`` after each replay was given to the GPU."""
        if action not in self.after:
            self.after.append(action)

    def keep(self, thing: Any) -> None:
        """Let ``thing`` live as long as the graph, which uses its memory."""
        self.kept.append(thing)


class _Here(threading.local):
    """The capture of a thread."""

    capture: Capture | None = None


_here = _Here()


def current() -> Capture | None:
    """Return the capture under way in this thread."""
    return _here.capture


def entered(capture: Capture | None) -> Capture | None:
    """Make ``capture`` the one under way; return the one before."""
    before, _here.capture = _here.capture, capture
    return before


@contextmanager
def outside() -> Iterator[None]:
    """Do work in the block at once, though the step around it is being captured.

    For what is made once and lasts: counts and rates on the device, plans, workspaces.  Its memory
    belongs to no pool, for a graph's own would give it out again.  The host waits for it.
    """
    capture = _here.capture
    if capture is None:
        yield
        return
    cuda = capture.cupy.cuda
    _here.capture = None
    try:
        with cuda.using_allocator(None), cuda.Stream(non_blocking=True) as stream:
            yield
            stream.synchronize()
    finally:
        _here.capture = capture


def refuse(what: str, why: str, instead: str) -> None:
    """Raise if a capture is under way.

    Args:
        what: cannot be captured.
        why: it cannot.
        instead: what to do.

    Raises:
        CaptureError: there is one.
    """
    if _here.capture is not None:
        raise CaptureError(f"{what}: {why}, which a CUDA graph cannot record; {instead}")
