"""The most memory of a GPU that was in use: counted from the first question on.

Note [An upper bound, and the truth]
    CuPy's pools know what they have given out, but add it up anew when asked, which takes a while,
    and keep no peak.  So each piece that is taken or given back is counted as it comes, by a hook.
    A hook belongs to one thread.  The allocator sees to it that each thread which takes memory has
    it; a thread that only frees goes unseen, and then the count is too large, never too small.
    Where the count exceeds the peak, the pools are asked, and their answer is the count from then
    on: so a peak is always a number that the pools gave, and none is missed.

Counting costs a call of Python's for each piece of memory; it begins with the first ``max_…``,
``memory_stats`` or ``reset_…`` and does not end.  Not yet run on a GPU.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from distgrad.cuda.graphs import private_pools


@dataclass
class Tally:
    """The counts of one GPU, since counting began or was reset."""

    bound: int = 0  # bytes in use, or more
    peak: int = 0
    reserved_peak: int = 0
    taken: int = 0  # bytes, all pieces together
    given_back: int = 0
    pieces: int = 0
    pieces_back: int = 0


@dataclass
class Counter:
    """Counts the memory of CuPy's pools.

    Args:
        cupy: whose.
    """

    cupy: Any
    tallies: dict[int, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin."""
        self._lock = threading.RLock()  # a hook may be called while the collector frees
        self._seen = threading.local()
        self._hook = _hook_for(self)
        self._take = self.cupy.get_default_memory_pool().malloc
        self.cupy.cuda.set_allocator(self._malloc)
        self._enter()

    def _malloc(self, size: int) -> Any:
        self._enter()
        return self._take(size)

    def _enter(self) -> None:
        """Let this thread's memory be counted."""
        if not hasattr(self._seen, "hook"):
            self._seen.hook = self._hook()
            self._seen.hook.__enter__()

    def tally(self, device: int) -> Tally:
        """Return the counts of a GPU, the current device, as its pools know them now."""
        with self._lock:
            self._enter()
            found = self.tallies.setdefault(device, Tally())
            self._ask(device, found)
            return found

    def reset_peaks(self, device: int) -> None:
        """Forget the peaks of a GPU, the current device."""
        with self._lock:
            tally = self.tally(device)
            tally.peak = tally.reserved_peak = 0
            self._ask(device, tally)

    def reset_sums(self, device: int) -> None:
        """Forget how much was taken and given back."""
        with self._lock:
            tally = self.tally(device)
            tally.taken = tally.given_back = tally.pieces = tally.pieces_back = 0

    def took(self, device: int, nbytes: int) -> None:
        """Count a piece."""
        with self._lock:
            tally = self.tallies.setdefault(device, Tally())
            tally.taken, tally.pieces = tally.taken + nbytes, tally.pieces + 1
            tally.bound += nbytes
            if tally.bound > tally.peak:
                self._ask(device, tally)

    def gave_back(self, device: int, nbytes: int) -> None:
        """Count a piece that is free."""
        with self._lock:
            tally = self.tallies.setdefault(device, Tally())
            tally.given_back += nbytes
            tally.pieces_back += 1
            tally.bound -= nbytes

    def _ask(self, device: int, tally: Tally) -> None:
        pools = pools_of(self.cupy, device)
        tally.bound = sum(int(pool.used_bytes()) for pool in pools)
        tally.peak = max(tally.peak, tally.bound)
        reserved = sum(int(pool.total_bytes()) for pool in pools)
        tally.reserved_peak = max(tally.reserved_peak, reserved)


def pools_of(cupy: Any, device: int) -> list[Any]:
    """Return the pools with memory of a GPU: the default one, and those of graphs."""
    return [cupy.get_default_memory_pool(), *private_pools(device)]


def _hook_for(counter: Counter) -> Any:
    base = counter.cupy.cuda.MemoryHook

    class Hook(base):  # type: ignore[misc,valid-type]
        """Tells the counter; CuPy wants a class of its own kind, which is not there before it."""

        name = "distgrad"

        def malloc_postprocess(self, **what: Any) -> None:
            """Count what was taken, unless that failed."""
            if what["mem_ptr"]:
                counter.took(what["device_id"], what["mem_size"])

        def alloc_postprocess(self, **what: Any) -> None:
            """Look what the pools hold: they have just got more."""
            if what["mem_ptr"]:
                counter.tally(what["device_id"])

        def free_preprocess(self, **what: Any) -> None:
            """Count what is given back: before the pool knows, or the count could be too small."""
            counter.gave_back(what["device_id"], what["mem_size"])

    return Hook


_counters: dict[int, Counter] = {}  # by module, which tests exchange
_lock = threading.Lock()


def counter_of(cupy: Any) -> Counter:
    """Return what counts CuPy's memory; it begins the first time."""
    with _lock:
        found = _counters.get(id(cupy))
        if found is None or found.cupy is not cupy:
            _counters.clear()
            found = _counters[id(cupy)] = Counter(cupy)
        return found
