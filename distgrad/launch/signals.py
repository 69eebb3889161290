"""Ask a program to stop: SIGTERM, SIGINT and SIGUSR1 set a flag that its loop reads.

The first signal only sets the flag, so that the loop can finish its step and save.  A second one
ends the process at once.

Note [One request, several signals]: Slurm warns by USR1 and sends CONT and TERM when the time is
over; mpirun makes a TERM of the INT that a terminal has sent to the ranks as well.  So signals
within `SAME_S` are one request, and so is the first TERM or INT behind USR1.
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
SAME_S = 1.0


class Requests:
    """What signals have asked a process for; see Note [One request, several signals]."""

    def __init__(self) -> None:
        self.first: int | None = None
        self._only_warned = True
        self._second_from = 0.0  # what comes from then on is a second request

    def ends(self, number: int, now: float) -> bool:
        """Take note of a signal; return whether the process is to end without saving.

        Args:
            now: in seconds, of a clock that is not set.
        """
        behind_a_warning = self._only_warned and number != signal.SIGUSR1
        if self.first is None or behind_a_warning:
            self.first = self.first or number
            self._only_warned = not behind_a_warning
            self._second_from = now + SAME_S
        return now >= self._second_from


_requests = Requests()
_installed = False


def told(number: int, what: str) -> str:
    """Return what to say of a first signal: its name, ``what`` happens, what ends at once.

    Example:
        >>> told(signal.SIGTERM, "stops after this step")
        'SIGTERM: stops after this step; once more ends at once'
    """
    return f"{signal.Signals(number).name}: {what}; once more ends at once"


def _handle(number: int, frame: FrameType | None) -> None:
    known = _requests.first is not None
    if _requests.ends(number, time.monotonic()):
        os._exit(128 + number)  # not sys.exit: the program may hang in a collective
    if not known:
        os.write(2, f"{told(number, 'stops after this step')}\n".encode())


@contextmanager
def handling() -> Iterator[None]:
    """Return a context in which the signals set the flag; the handlers before are put back."""
    global _requests, _installed
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    _requests, _installed = Requests(), True
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
    return _requests.first is not None


def stop_signal() -> int | None:
    """Return the number of the signal that asked this rank to stop, or None."""
    return _requests.first
