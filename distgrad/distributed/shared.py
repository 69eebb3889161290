"""Memory that the ranks of one host see in common, and signals between them.

Every rank has bytes that the others of its host can read and write, and a row of numbers that only
it writes: its signals. A rank that sets a signal says how far it has come.

Note [Order of writes]: a processor may let others see a signal before the data it speaks of.
``fence`` stands between them, on both sides.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distgrad.distributed.work import HostArray, Work

_FOLDERS = ("/dev/shm", tempfile.gettempdir())  # where MPI libraries keep common memory
ALIGNMENT = 64  # bytes of a cache line; two ranks that write to one slow each other down


class Slab:
    """The common memory of the ranks of one host.

    Args:
        memory: a flat array of bytes for each of these ranks, in order.
        signals: an array of int64 for each of them.
        place: which of them this rank is.
        fence: orders memory accesses around signals.
        owner: what must live as long as the memory.
        poll: gives other transfers a push while somebody listens.
    """

    def __init__(
        self,
        memory: Sequence[HostArray],
        signals: Sequence[HostArray],
        place: int,
        fence: Callable[[], None],
        owner: Any = None,
        poll: Callable[[], object] = lambda: None,
    ) -> None:
        self.poll = poll
        self.memory, self.place, self.fence, self.owner = list(memory), place, fence, owner
        self.signals = [memoryview(row.data).cast("B").cast("q") for row in signals]
        self._taken = 0
        self._slots = 0

    def take(self, count: int, dtype: Any) -> list[HostArray]:
        """Return zeroed arrays of ``count`` elements, one in each rank's memory.

        Ranks: all of the host, with the same arguments in the same order.
        """
        nbytes = count * np.dtype(dtype).itemsize
        begin = self._taken
        self._taken += -(-nbytes // ALIGNMENT) * ALIGNMENT
        # Made of the buffer and not of the bytes' array: it is the base of what is cut out of it.
        arrays = [np.frombuffer(m.data, dtype, count, begin) for m in self.memory]
        arrays[self.place][...] = 0
        return arrays

    def reuse(self) -> None:
        """Let the next arrays lie where the first ones do; signals are not used again."""
        self._taken = 0

    def take_slot(self) -> int:
        """Return the number of a signal that is not in use; alike on all ranks of the host."""
        self._slots += 1
        return self._slots - 1

    def say(self, slot: int, value: int) -> None:
        """Set this rank's signal."""
        self.fence()
        self.signals[self.place][slot] = value

    def heard(self, slot: int, value: int, call: str) -> Heard:
        """Return the work that is complete when all ranks have said ``value`` or more."""
        return Heard(self, slot, value, call)


class Heard(Work):
    """Waits for a signal of all ranks of the host."""

    __slots__ = ("_over", "_slab", "_slot", "_value")

    def __init__(self, slab: Slab, slot: int, value: int, call: str) -> None:
        super().__init__(call, value)
        self._slab, self._slot, self._value, self._over = slab, slot, value, False

    def test(self) -> bool:
        """Return whether all have said it."""
        if not self._over:
            slot, value = self._slot, self._value
            for row in self._slab.signals:
                if row[slot] < value:
                    self._slab.poll()
                    return False
            self._slab.fence()
            self._over = True
        return self._over

    def wait(self, timeout_s: float | None = None) -> None:
        """Not offered: the reduction that listens has the time limit."""
        raise NotImplementedError

    def is_completed(self) -> bool:
        """Return whether a test has heard all."""
        return self._over


def has_room(nbytes: int) -> bool:
    """Return whether common memory of ``nbytes`` can be had.

    It lies in a file system of its own, which is small in containers: 64 MB by default. Past its
    end, the first write would kill the process without a word.
    """
    for folder in _FOLDERS:
        try:
            state = os.statvfs(folder)
        except OSError:
            continue
        return state.f_bavail * state.f_frsize > nbytes
    return False
