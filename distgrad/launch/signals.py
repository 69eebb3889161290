"""Ask a program to stop: SIGTERM, SIGINT and SIGUSR1 set a flag that its loop reads.

The first signal only sets the flag, so that the loop can finish its step and save; the second
one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_SAME_S = 1.0  # a terminal, Slurm and mpirun may each pass on one and the same signal

_received: int | None = None
_when = 0.0
_installed = False


def _handle(number: int, frame: FrameType | None) -> None:
    global _received, _when
    if _received is not None:
        if number == _received and time.monotonic() - _when < _SAME_S:
            return
        os._exit(128 + number)  # not sys.exit: the program may hang in a collective
    _received, _when = number, time.monotonic()
    text = f"{signal.Signals(number).name}: stops after this step; once more ends at once\n"
    os.write(2, text.encode())


@contextmanager
def handling() -> Iterator[None]:
    """Return a context in which the signals set the flag; the handlers before are put back."""
    global _received, _installed
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _received, _installed = None, True
    try:
        yield
    finally:
        _installed = False
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Return whether a signal asked this rank to stop.

    The first call installs the handlers, so a script that never asks keeps Python's own.  Ranks
    learn of it at different steps: reduce the answer with MAX before acting on it.
    """
    global _installed
    if not _installed and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _handle)
        _installed = True
    return _received is not None


def stop_signal() -> int | None:
    """Return the number of the signal that asked this rank to stop, or None."""
    return _received
