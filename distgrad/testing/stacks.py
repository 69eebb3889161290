"""Writes down now and then where all threads of a process are.

Note [Stacks under the lock]
    ``faulthandler.dump_traceback_later`` reads frames without the interpreter's lock, and crashes
    when a thread changes its frames meanwhile, as the communication thread does all the time: under
    load, where tests take long enough, one run of a test in some sixty ended in a segmentation
    fault. So a thread that holds the lock does it. It cannot if another one keeps the lock; then
    faulthandler speaks once, shortly before the process is killed anyway.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from types import FrameType
from typing import IO

HEADER = "Timeout ("  # what faulthandler begins with, too
_LAST = 0.9  # of the limit


class Stacks:
    """The file of this process.

    Args:
        file: where to write.
        every_s: seconds between two looks.
        limit_s: when the process may be killed, after `start`.
    """

    def __init__(self, file: IO[str], every_s: float, limit_s: float) -> None:
        self._file, self._every_s, self._limit_s = file, every_s, limit_s
        self._over = threading.Event()

    def start(self) -> None:
        """Begin anew with the time."""
        self.stop()
        self._over = over = threading.Event()
        threading.Thread(target=self._serve, args=(over,), name="stacks", daemon=True).start()
        faulthandler.dump_traceback_later(_LAST * self._limit_s, file=self._file)

    def stop(self) -> None:
        """Write no more."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def _serve(self, over: threading.Event) -> None:
        while not over.wait(self._every_s):
            self._file.write(report())
            self._file.flush()


def report() -> str:
    """Return where all threads but the calling one are, innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = [f"{HEADER}where all threads are)"]
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            lines.append(f"Thread {names.get(ident, ident)} (most recent call first):")
            lines += _lines(frame)
    return "\n".join(lines) + "\n\n"


def _lines(frame: FrameType | None) -> list[str]:
    lines = []
    while frame is not None:
        code = frame.f_code
        lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
        frame = frame.f_back
    return lines
