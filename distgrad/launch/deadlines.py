"""Deadlines of a rank for what happens inside of MPI, where no other Python thread may run."""

from __future__ import annotations

import atexit
import faulthandler
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LATER_S = 1.0  # than the supervisor, which speaks first


@contextmanager
def starting(limit_s: float) -> Iterator[None]:
    """Return a block that ends this process with its stack if it takes longer than ``limit_s``.

    0 is for ever. The ranks of a supervised job have the same limit, and more to say.
    """
    if not limit_s:
        yield
        return
    faulthandler.dump_traceback_later(
        limit_s + _LATER_S, exit=True, file=sys.__stderr__ or sys.stderr
    )
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def bound_exit(limit_s: float, tell: Callable[[], None]) -> None:
    """Let the system end this process if MPI has not ended ``limit_s`` after the program; 0: never.

    Registered before the program runs, this is the last of its functions to be called at exit.

    Args:
        tell: is called when only the end of MPI is left to do.
    """
    atexit.register(_last, limit_s, tell)


def _last(limit_s: float, tell: Callable[[], None]) -> None:
    tell()
    if limit_s and hasattr(signal, "alarm"):
        _set_alarm(max(1, math.ceil(limit_s)))


def _set_alarm(seconds: int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no Python runs while MPI ends
        signal.alarm(seconds)
