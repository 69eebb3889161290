"""Looks at transfers of GPUs under way, so that a late or failed one is known and ended."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from distgrad.distributed.staging import cupy
from distgrad.errors import DistributedError, RankLost

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

_LOOK_S = 0.02  # between two looks at a transfer


class Lateness:
    """Looks at transfers under way, in a thread that lives while there are any.

    It keeps their arrays, so that nothing is freed while other ranks, or NCCL, use it.

    Args:
        comm: the communicator, with ``check_async_error``, ``abort`` and ``destroy``.
        index: the GPU.
        kind: what ``check_async_error`` raises.
        who: by what and on which rank, for messages.
    """

    def __init__(self, comm: Any, index: int, kind: type[Exception], who: str) -> None:
        self._comm, self._index, self._kind, self._who = comm, index, kind, who
        self._open: deque[tuple[Any, str, float, Sequence[Any]]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.error: DistributedError | None = None
        self._closed = False

    def add(self, done: Any, call: str, timeout_s: float, arrays: Sequence[Any]) -> None:
        """Look after a transfer until the event ``done``."""
        with self._lock:
            self._open.append((done, call, time.monotonic() + timeout_s, arrays))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="distgrad-gpu-transfers", daemon=True
                )
                self._thread.start()

    def fail(self, call: str, reason: str) -> DistributedError:
        """Abort everything and return the error that says why; later calls raise it too."""
        self.error = DistributedError(
            f"{call}: {self._who}: {reason}; what it was to bring is wrong, so the ranks "
            "must start again from a checkpoint"
        )
        self._comm.abort()
        return self.error

    def lose(self, error: RankLost) -> None:
        """Abort everything; later calls raise the error, after which others may go on."""
        self.error = error
        self._comm.abort()

    def close(self) -> None:
        """Release the communicator; what is under way is given up."""
        with self._lock:
            self._closed = True
            kept = [*self._open]  # until nobody uses it
            self._open.clear()
        if self.error is None:
            self._comm.destroy()
        kept.clear()

    def _serve(self) -> None:
        cupy().cuda.Device(self._index).use()  # a thread begins with GPU 0
        while self._look():
            time.sleep(_LOOK_S)

    def _look(self) -> bool:
        """Drop transfers that are complete; return whether any is left."""
        with self._lock:
            while self._open and self._open[0][0].done:
                self._open.popleft()
            if not self._open or self._closed or self.error is not None:
                self._open.clear()
                self._thread = None
                return False
            _, call, deadline, _ = min(self._open, key=lambda one: one[2])
        try:
            self._comm.check_async_error()
        except self._kind as error:
            self.fail(call, str(error))
        if time.monotonic() > deadline:
            self.fail(call, "not complete in time, as another rank is late, stuck or has ended")
        return True


class Watched:
    """What connects the GPUs of ranks: a communicator, its stream, and who looks after both.

    Args:
        channel: whose ranks are connected.
        index: the GPU of this rank.
        comm: as for `Lateness`.
        kind: what its ``check_async_error`` raises.
    """

    way: ClassVar[str]  # in words

    def __init__(self, channel: ProcessGroup, index: int, comm: Any, kind: type[Exception]) -> None:
        self.group, self.index, self.comm = channel, index, comm
        with cupy().cuda.Device(index):
            self.stream = cupy().cuda.Stream(non_blocking=True)
        self._watch = Lateness(comm, index, kind, f"{self.way} on rank {channel.rank}")
        self._end = weakref.finalize(self, self._watch.close)

    def close(self) -> None:
        """Release the communicator, and windows."""
        self._end()

    def check(self) -> None:
        """Raise what went wrong since the last call.

        Raises:
            DistributedError: a transfer failed or was late; its result, and all since, are wrong.
        """
        if self._watch.error is not None:
            raise self._watch.error
