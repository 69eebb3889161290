"""The default group: one for the process, or one for each thread that is a rank of its own."""

from __future__ import annotations

import threading

from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError, DistributedError


class DefaultGroupError(DistributedError, ArgumentError):
    """There is no default group, or one already; PyTorch raises ValueError."""


class _OfThread(threading.local):
    group: ProcessGroup | None = None


_of_thread = _OfThread()
_of_process: list[ProcessGroup] = []


def set_thread_group(group: ProcessGroup | None) -> None:
    """Make ``group`` the default group of the calling thread alone."""
    _of_thread.group = group


def set_process_group(group: ProcessGroup | None) -> None:
    """Make ``group`` the default group of every thread without its own."""
    _of_process[:] = [] if group is None else [group]


def default_group() -> ProcessGroup | None:
    """Return the default group here, or None."""
    if _of_thread.group is not None:
        return _of_thread.group
    return _of_process[0] if _of_process else None


def get_group() -> ProcessGroup:
    """Return the default group.

    Raises:
        DefaultGroupError: there is none.
    """
    group = default_group()
    if group is None:
        raise DefaultGroupError(
            "get_group(): there is no default process group; call init_process_group() first"
        )
    return group
