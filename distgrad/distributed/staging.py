"""Gradients on a GPU by way of the host: out to pinned memory, added there, and back.

Note [Staging]
    A bucket that is full is copied to the host by a stream of its own, behind an event that says
    when its gradients are complete; backward goes on. The communication thread looks at the event
    of the copy, adds over the ranks as for gradients of the CPU, in the same order and so with the
    same bits, and starts the copy back on another stream. At the end of backward the stream that
    computes waits for that copy; the host waits for the sums, never for the GPU.

Note [Shards stay on the GPU]
    Sums of several shards of one rank are made where the gradients are. An addition has the same
    bits there: no product is fused into it, and by `exact_add` small numbers are not flushed to
    zero, as they are by CuPy's own.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from distgrad.backend.device import cupy_module
from distgrad.distributed.shared import Slab
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray, Work
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

Pairs = Sequence[tuple[Array, HostArray]]
_ASKED = "communication of tensors on a GPU"


def cupy() -> Any:
    """Return CuPy, which is there, as there are tensors on a GPU."""
    return cupy_module(_ASKED)


class Stage:
    """Copies between one GPU and the host, on streams beside the one that computes.

    Args:
        index: the number of the GPU.
    """

    __slots__ = ("back", "index", "out")

    def __init__(self, index: int) -> None:
        cuda = cupy().cuda
        self.index = index
        with cuda.Device(index):
            self.out = cuda.Stream(non_blocking=True)
            self.back = cuda.Stream(non_blocking=True)

    def event(self) -> Any:
        """Return a new event."""
        cuda = cupy().cuda
        with cuda.Device(self.index):
            return cuda.Event(disable_timing=True)

    def current(self) -> Any:
        """Return the stream on which the calling thread computes."""
        return cupy().cuda.get_current_stream(self.index)

    def settle(self) -> None:
        """Wait until no copy is under way."""
        self.out.synchronize()
        self.back.synchronize()


class Passage:
    """The way of some arrays to the host and back, used again and again.

    Args:
        stage: whose streams copy.
    """

    __slots__ = ("arrived", "fetched", "ready", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.ready, self.fetched, self.arrived = stage.event(), stage.event(), stage.event()

    def fetch(self, pairs: Pairs) -> None:
        """Start to copy arrays of the GPU, as the current stream leaves them, to the host."""
        out = self.stage.out
        self.ready.record(self.stage.current())
        out.wait_event(self.ready)
        for here, there in (pair for pair in pairs if pair[0].size):
            here.data.copy_to_host_async(there.ctypes.data, here.nbytes, out)
        self.fetched.record(out)

    def is_fetched(self) -> bool:
        """Return whether all is on the host; does not wait."""
        with cupy().cuda.Device(self.stage.index):  # a thread begins with GPU 0
            return bool(self.fetched.done)

    def bring(self, pairs: Pairs) -> None:
        """Start to copy arrays of the host back; they were fetched before."""
        back = self.stage.back
        with cupy().cuda.Device(self.stage.index):
            back.wait_event(self.fetched)
            for here, there in (pair for pair in pairs if pair[0].size):
                here.data.copy_from_host_async(there.ctypes.data, here.nbytes, back)
            self.arrived.record(back)

    def has_arrived(self) -> bool:
        """Return whether what was brought is there; does not wait."""
        with cupy().cuda.Device(self.stage.index):
            return bool(self.arrived.done)

    def arrive(self) -> None:
        """Let the current stream wait for what was brought; the host goes on."""
        self.stage.current().wait_event(self.arrived)


class Staged(Work):
    """A transfer of host arrays, behind a copy from the GPU and before one to it.

    Args:
        passage: which has begun to fetch.
        begin: starts the transfer.
        brings: what to copy back after it.
        group: the ranks.
        call: in words.
    """

    __slots__ = ("_begin", "_brings", "_group", "_inner", "_over", "_passage")

    def __init__(
        self,
        passage: Passage,
        begin: Callable[[], Work],
        brings: Pairs,
        group: ProcessGroup,
        call: str,
    ) -> None:
        super().__init__(call, -1)
        self._group = group
        self._passage, self._begin, self._brings = passage, begin, brings
        self._inner: Work | None = None
        self._over = False

    def test(self) -> bool:
        """Return whether the copy back has begun; never waits for the GPU."""
        if self._over:
            return True
        if self._inner is None:
            if not self._passage.is_fetched():
                return False
            self._inner = self._begin()
            self.sequence = self._inner.sequence
        if self._inner.test():
            self._passage.bring(self._brings)
            self._over = True
        return self._over

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the copy back has begun."""
        wait_for(self, self._group, self._group.timeout_s if timeout_s is None else timeout_s)

    def is_completed(self) -> bool:
        """Return whether a test has started the copy back."""
        return self._over


# ---------------------------------------------------------------------- pinned memory
def pinned_zeros(count: int, dtype: Any) -> HostArray:
    """Return an array of the host that a GPU can copy to and from beside other work."""
    import cupyx  # comes with CuPy, which is optional

    made: HostArray = cupyx.zeros_pinned(count, dtype)
    return made


def pin(slab: Slab) -> bool:
    """Pin this rank's part of common memory, as long as ``slab`` lives; return whether it is.

    Where the driver refuses, copies are right all the same, but the host waits for them.
    """
    runtime, memory = cupy().cuda.runtime, slab.memory[slab.place]
    address = memory.ctypes.data
    try:
        runtime.hostRegister(address, memory.nbytes, 0)
    except runtime.CUDARuntimeError:
        return False
    weakref.finalize(slab, _unpin, runtime, address, memory)
    return True


def _unpin(runtime: Any, address: int, memory: HostArray) -> None:
    """Undo `pin`; ``memory`` is only kept until then."""
    with contextlib.suppress(runtime.CUDARuntimeError):  # the driver may have ended before
        runtime.hostUnregister(address)
