"""Memory that the ranks of one host see in common, and signals between them.

Every rank has bytes that the others of its host can read and write, and a row of numbers that only
it writes: its signals. A rank that sets a signal says how far it has come.

Note [Files without a name]: the memory is a file that every rank of the host maps. As soon as all
have it, its name is removed: the system takes the memory back when the last rank lets go of it,
however a rank ends, and nobody has to wait for the others to free it. Every rank reserves its own
part beforehand, near its own core: past the end of a full file system, which in containers has
64 MB by default, the first write would kill the process without a word.

Note [Order of writes]: a processor may let others see a signal before the data it speaks of.
``fence`` stands between them, on both sides. x86 keeps the order of writes and that of reads.
"""

from __future__ import annotations

import mmap
import os
import platform
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distgrad.distributed.work import HostArray, Work

_FOLDERS = ("/dev/shm", os.environ.get("TMPDIR", "/tmp"))
ALIGNMENT = 64  # bytes of a cache line; two ranks that write to one slow each other down
FENCES = platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686")
_lock = threading.Lock()


def fence() -> None:
    """Order this thread's memory accesses before and after; see Note [Order of writes]."""
    if not FENCES:
        return
    with _lock:
        pass
    with _lock:  # what comes before the first release stays before this acquire
        pass


class Slab:
    """The common memory of the ranks of one host.

    Args:
        memory: a flat array of bytes for each of these ranks, in order.
        signals: an array of int64 for each of them.
        place: which of them this rank is.
        poll: gives other transfers a push while somebody listens.
    """

    def __init__(
        self,
        memory: Sequence[HostArray],
        signals: Sequence[HostArray],
        place: int,
        poll: Callable[[], object] = lambda: None,
    ) -> None:
        self.memory, self.place, self.poll = list(memory), place, poll
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
        fence()
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
            fence()
            self._over = True
        return self._over

    def wait(self, timeout_s: float | None = None) -> None:
        """Not offered: the reduction that listens has the time limit."""
        raise NotImplementedError

    def is_completed(self) -> bool:
        """Return whether a test has heard all."""
        return self._over


# The file


def room_of(nbytes: int, signals: int) -> tuple[int, int]:
    """Return the bytes of a rank's part, whole pages of its own, and of its signals therein."""
    row = -(-8 * signals // ALIGNMENT) * ALIGNMENT
    return -(-(row + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE, row


def new_file(nbytes: int) -> str:
    """Return the path of a new file of ``nbytes`` for common memory; empty where there is none."""
    for folder in _FOLDERS:
        path = f"{folder}/distgrad-{os.getpid()}-{os.urandom(6).hex()}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        try:
            os.truncate(handle, nbytes)
        except OSError:
            os.unlink(path)
        else:
            return path
        finally:
            os.close(handle)
    return ""


def attached(path: str, part: int, place: int, ranks: int) -> mmap.mmap | None:
    """Return the file at ``path``, mapped, or None where that or its memory cannot be had.

    Args:
        part: bytes of a rank.
        place: of this rank, whose part is reserved.
        ranks: that have a part.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:  # ranks in different containers of one host do not see the same files
        return None
    try:
        if hasattr(os, "posix_fallocate"):  # not on every system
            os.posix_fallocate(handle, place * part, part)
        return mmap.mmap(handle, part * ranks)
    except OSError:
        return None
    finally:
        os.close(handle)


def slab_in(memory: mmap.mmap, part: int, row: int, place: int, poll: Callable[[], object]) -> Slab:
    """Return the common memory in a mapped file, each rank's part beginning with its signals."""
    whole = np.frombuffer(memory, np.uint8).reshape(-1, part)
    return Slab([m[row:] for m in whole], [m[:row].view(np.int64) for m in whole], place, poll)
