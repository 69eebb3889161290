"""Deadlines of a rank for what happens inside of MPI, where no other Python thread may run."""

from __future__ import annotations

import atexit
import faulthandler
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

_LATER_S = 1.0  # than the supervisor, which speaks first
_TOGETHER_S = 3.0  # in which all ranks that wait say so, before the first of them ends
# MPI's start lets no other Python thread run, so another process speaks; it ends with this one
_WATCH = """
import os, select, sys
if not select.select([0], [], [], float(sys.argv[1]))[0]:
    os.write(2, sys.argv[2].encode())
"""


@contextmanager
def starting(limit_s: float, who: str = "") -> Iterator[None]:
    """Return a block that ends this process with its stack if it takes longer than ``limit_s``.

    0 is for ever. The ranks of a supervised job have the same limit, and more to say.

    Args:
        who: this rank in words, for a sentence before that; none where a supervisor has one.
    """
    if not limit_s:
        yield
        return
    until = limit_s + (_TOGETHER_S if who else _LATER_S)
    faulthandler.dump_traceback_later(until, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        with _watched(limit_s, late(who, limit_s)) if who else nullcontext():
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def late(who: str, limit_s: float) -> str:
    """Return what to say of a rank that waits in MPI's start for too long, and what to do."""
    return (
        f"distgrad.launch: {who} has waited {limit_s:g} s (--start-timeout) in MPI's start for the "
        f"other ranks, so the job ends; ranks that do not say this have not come so far: look at "
        f"their hosts and at what runs before. If all say it, look for a firewall, or for several "
        f"networks between the hosts (python -m distgrad.doctor --hosts H1,H2)"
    )


@contextmanager
def _watched(limit_s: float, text: str) -> Iterator[None]:
    """Return a block in which another process says ``text`` after ``limit_s``."""
    words = [sys.executable, "-I", "-S", "-c", _WATCH, str(limit_s), f"{text}\n"]
    try:
        watch = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    except OSError:  # no room for one more process: the stack says enough
        yield
        return
    with watch:  # leaving closes its input, which ends it
        yield


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
