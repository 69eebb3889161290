"""How a rank waits: first it gives way to other processes on its core, then it naps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from distgrad.errors import DistributedError

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup
    from distgrad.distributed.work import Work

# A wait gives way to other ranks on its core for 2 ms before it naps: 21 us instead of 140 for a
# small all-reduce of two ranks, 70 instead of 600 for four ranks on two cores.
SPIN_S = 2e-3
Check: TypeAlias = Callable[[], None]
give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0.0))


def nap_s(waited_s: float) -> float:
    """Return how long to sleep before the next test after ``waited_s`` without progress.

    A test moves 64 KB at a time through a socket, and a long transfer shows no progress until it is
    complete: with naps of 1 ms, 4 MB at 400 Mbit/s took 200 ms instead of 160.

    Example:
        >>> nap_s(0.0), nap_s(0.005), nap_s(10.0)
        (5e-05, 0.0002, 0.001)
    """
    return 5e-5 if waited_s < 1e-3 else 2e-4 if waited_s < 5.0 else 1e-3


def wait_for(work: Work, group: ProcessGroup, limit_s: float) -> None:
    """Return when ``work`` is complete.

    Raises:
        DistributedError: it was not within ``limit_s``, or the watch says that it never will be.
    """
    started = time.monotonic()
    if _spin(work, started):
        return
    with watched(group, f"{work.call}, call {work.sequence} on {group.name}", started) as check:
        while not work.test():
            waited = time.monotonic() - started
            if waited > limit_s:
                raise _late(work, group, limit_s)
            check()
            time.sleep(nap_s(waited))


@contextmanager
def watched(group: ProcessGroup, call: str, since: float, detail: str = "") -> Iterator[Check]:
    """Tell the group's watch that this thread waits; yields what raises if that is of no use.

    Args:
        call: in words that are the same on all ranks which wait for the same.
        since: of ``time.monotonic``.
        detail: what may differ between ranks.
    """
    watch = group.watch
    if watch is None:
        yield lambda: None
        return
    first = watch.enter(call, detail, since)
    try:
        yield watch.check
    finally:
        if first:
            watch.leave()


def _spin(work: Work, started: float) -> bool:
    """Test ``work`` without a nap for a while; return whether it is complete."""
    while not work.test():
        if time.monotonic() - started > SPIN_S:
            return False
        give_way()
    return True


def _late(work: Work, group: ProcessGroup, limit_s: float) -> DistributedError:
    return DistributedError(
        f"{work.call} on channel {group.name!r}: rank {group.rank} of {group.size} waited "
        f"{limit_s} s for the other ranks; look where those are, or allow more time"
    )
