"""Failures: a rank that cannot go on ends the job, where MPI would let the others wait for ever.

An uncaught exception, or ``sys.exit`` with a status other than 0, prints one traceback with the
rank before each line and aborts the group.

Note [Who speaks first]: a mistake that all ranks make is raised by all of them at once. Rank r
therefore waits r tenths of a second, 0.4 s at most, before it prints and aborts; rank 0 has ended
the job by then and one traceback is shown.

Note [Caught exits]: Python runs no hook for SystemExit. ``sys.exit`` is wrapped to remember its
status, and at exit the status counts unless the group has communicated since, which shows that
somebody caught it. ``raise SystemExit(3)`` is seen by `abort_on_failure` only.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from distgrad.distributed.group import ProcessGroup

_DELAY_S = 0.3
_MAX_DELAY_S = 0.6


def exit_status(error: BaseException) -> int:
    """Return the status with which a process ends that ``error`` leaves.

    Example:
        >>> exit_status(SystemExit(3)), exit_status(SystemExit("bad")), exit_status(ValueError())
        (3, 1, 1)
    """
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


@contextmanager
def abort_on_failure(group: ProcessGroup) -> Iterator[None]:
    """Run the block; an exception in it, or an exit with a status other than 0, ends the job.

    On a group of one process the exception goes on as usual.
    """
    try:
        yield
    except BaseException as error:
        status = exit_status(error)
        if group.backend != "mpi" or status == 0:
            raise
        _end(group, status, error)


class FailureHooks:
    """The hooks of one process. They stay to its end, past `destroy_process_group`.

    A script that destroys its group in a ``finally`` block fails only after that.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.status = 0
        self._sequence = 0
        self._exit = sys.exit

    def install(self) -> None:
        """Take the places of sys.excepthook, threading.excepthook and sys.exit."""
        sys.excepthook = self._on_exception
        threading.excepthook = self._on_thread_exception
        sys.exit = self._on_exit
        atexit.register(self._at_exit)

    def _on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _end(self.group, exit_status(error), error)

    def _on_thread_exception(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            _end(self.group, 1, args.exc_value)

    def _on_exit(self, status: object = None, /) -> NoReturn:
        self.status = exit_status(SystemExit(status))
        self._sequence = self._communicated()
        self._exit(status)  # type: ignore[arg-type]  # sys.exit takes anything

    def _at_exit(self) -> None:
        if self.status and self._sequence == self._communicated():
            self.group.abort(self.status, f"sys.exit({self.status})")

    def _communicated(self) -> int:
        return sum(sibling.sequence for sibling in self.group.siblings.values())


_hooks: list[FailureHooks] = []


def install_failure_hooks(group: ProcessGroup) -> None:
    """Let uncaught failures of this process end the job of ``group``."""
    if _hooks:
        _hooks[0].group = group
    else:
        _hooks.append(FailureHooks(group))
        _hooks[0].install()


def leaving_status() -> int:
    """Return the status that ``sys.exit`` was called with, 0 without a call."""
    return _hooks[0].status if _hooks else 0


def _end(group: ProcessGroup, status: int, error: BaseException) -> NoReturn:
    """Print what happened, after the lower ranks have had their turn, and end the job."""
    time.sleep(min(group.rank * _DELAY_S, _MAX_DELAY_S))
    if not isinstance(error, SystemExit):
        text = "".join(traceback.format_exception(error))
        prefix = f"[rank {group.rank}] "
        print("".join(prefix + line for line in text.splitlines(True)), file=sys.stderr, flush=True)
        group.abort(status, f"{type(error).__name__} was not caught")
    if isinstance(error.code, str):
        print(error.code, file=sys.stderr, flush=True)
    group.abort(status, f"exit with status {status}")
