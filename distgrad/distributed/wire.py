"""Transfers of communication hooks: by tag, with a future that the communication thread sets.

Note [Hooks and GPUs]
    A tensor on a GPU goes by pinned memory, as in Note [Staging], and the host waits for no GPU.
    When the copy back has arrived, what hooks do then runs in the communication thread, but on the
    stream on which the transfer was asked for: so memory that they take or free belongs to the
    stream of all other work, and no two streams meet in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeAlias, TypeVar

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend import pinned
from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.progress import InlineProgress, Progress
from distgrad.distributed.reduction import PHASES, Exchange, Reduction, Rounds
from distgrad.distributed.staging import Passage, Stage, Staged, cupy
from distgrad.distributed.tree import Tree
from distgrad.distributed.work import HostArray, Work
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

T = TypeVar("T")

LANES = 8  # transfers of one bucket that may be under way at a time


# ---------------------------------------------------------------------- to the host and back
class HostWay:
    """The way of a tensor that is on the host.

    Args:
        tensor: its numbers are in ``host``, one after the other.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.array
        self.host: HostArray = np.ascontiguousarray(tensor.array).reshape(-1)

    def behind(self, begin: Callable[[], Work], back: bool, group: ProcessGroup) -> Work:
        """Return the work of ``begin``, behind which the sum is on its way ``back``, if asked."""
        return begin()

    def is_back(self) -> bool:
        """Return whether it has arrived."""
        return True

    def store(self) -> None:
        """Put what ``host`` has now into the tensor."""
        if not np.shares_memory(self.host, self._array):
            self._array[...] = self.host.reshape(self._array.shape)

    def tensor(self, row: HostArray) -> Tensor:
        """Return numbers of the host as a tensor like this one."""
        return wrap(row.reshape(self._array.shape))

    def leave(self) -> None:
        """Forget the tensor."""


class DeviceWay:
    """The way of tensors that are on a GPU; of one size, one after the other.

    Args:
        stage: whose streams copy.
        size, dtype: of the tensors.
    """

    def __init__(self, stage: Stage, size: int, dtype: Any) -> None:
        self._stage, self._passage = stage, Passage(stage)
        self.host: HostArray = pinned.empty((size,), dtype, "communication hooks")
        self._array: Any = None  # of the tensor that is under way
        self._flat: Any = None  # the same, or a copy

    def take(self, tensor: Tensor, call: str) -> None:
        """Start to copy a tensor to the host, as the current stream leaves it."""
        captures.refuse(call, "its bytes go by way of the host", "leave out the hook")
        self._call, self._array = call, tensor.array
        self._flat = array_namespace(tensor.array).ascontiguousarray(tensor.array).reshape(-1)
        self._passage.fetch([(self._flat, self.host)])

    def behind(self, begin: Callable[[], Work], back: bool, group: ProcessGroup) -> Work:
        """Return ``begin`` behind the copy to the host, and before the one ``back``, if asked."""
        brings = [(self._flat, self.host)] if back else []
        return Staged(self._passage, begin, brings, group, self._call)

    def is_back(self) -> bool:
        """Return whether the copy back is over."""
        return self._passage.has_arrived()

    def store(self) -> None:
        """Put the numbers that came back into the tensor."""
        if self._flat.data.ptr != self._array.data.ptr:
            self._array[...] = self._flat.reshape(self._array.shape)

    def tensor(self, row: HostArray) -> Tensor:
        """Return numbers of the host as a tensor like the one that was taken."""
        return wrap(to_device(row.reshape(self._array.shape), device_of(self._array)))

    def leave(self) -> None:
        """Forget the tensor, whose memory the hook may want."""
        self._array = self._flat = None


Way: TypeAlias = HostWay | DeviceWay


class Place:
    """Where the thread that asks for a transfer works with an array: a GPU, and a stream of it.

    Args:
        array: of the bucket.
    """

    __slots__ = ("_index", "_stream")

    def __init__(self, array: Array) -> None:
        self._index: int | None = None
        if not isinstance(array, np.ndarray):
            self._index = int(array.device.id)
            self._stream = cupy().cuda.get_current_stream(self._index)

    def working(self) -> AbstractContextManager[object]:
        """Return a block in which the calling thread works there too."""
        if self._index is None:
            return nullcontext()
        block = ExitStack()
        block.enter_context(cupy().cuda.Device(self._index))
        block.enter_context(self._stream)
        return block


# ---------------------------------------------------------------------- transfers
class Wire:
    """Transfers by tag, moved by the communication thread.

    Args:
        group: the ranks.
        progress: what moves the transfers; None on one rank.
        taken: how many flat arrays may have transfers of their own on the same channel.
    """

    def __init__(self, group: ProcessGroup, progress: Progress | None, taken: int) -> None:
        self.group, self._progress, self._taken = group, progress, taken
        self._rooms: dict[int, Any] = {}
        self._stages: dict[int, Stage] = {}
        self._ways: dict[int, DeviceWay] = {}

    def tag(self, index: int, lane: int) -> int:
        """Return the tag of one of the transfers of a bucket, beyond those that are taken."""
        return (self._taken + index * LANES + lane) * PHASES

    def room(self, index: int, like: Array, dtype: Any) -> Array:
        """Return an array of a bucket for one step; on a GPU it is always the same one."""
        kept = self._rooms.get(index)
        if kept is None or kept.dtype != dtype or kept.size != like.size:
            kept = array_namespace(like).empty(like.shape, dtype)
            if not isinstance(like, np.ndarray):
                self._rooms[index] = kept
        return kept

    def all_reduce(
        self, tensor: Tensor, tag: int, group: ProcessGroup, call: str, place: Place
    ) -> Future[Tensor]:
        """Return the future of ``tensor`` after it was replaced by its sum over the ranks.

        Args:
            place: where callbacks of the future work.
        """
        if group.size == 1:
            return _done(tensor)
        way = self._way(tensor, tag, call)
        parts = Tree(group.size, group.size).parts
        channel = group.channel("buckets")

        def begin() -> Work:
            return Reduction(Exchange(channel, [way.host], parts, np.add, tag, call))

        def finish() -> Tensor:
            way.store()
            return tensor

        return self._future(lambda: way.behind(begin, True, group), way, finish, place)

    def all_gather(
        self, tensor: Tensor, tag: int, group: ProcessGroup, call: str, place: Place
    ) -> Future[list[Tensor]]:
        """Return the future of the tensors of all ranks."""
        if group.size == 1:
            return _done([tensor])
        way = self._way(tensor, tag, call)
        host = way.host
        rows = [host if rank == group.rank else np.empty_like(host) for rank in range(group.size)]
        parts = Tree(group.size, group.size).parts
        channel = group.channel("buckets")

        def begin() -> Work:
            exchange = Exchange(channel, [host], parts, np.add, tag, call)
            return Reduction(exchange, _collect(exchange, rows))

        def finish() -> list[Tensor]:
            return [way.tensor(row) for row in rows]

        return self._future(lambda: way.behind(begin, False, group), way, finish, place)

    def _way(self, tensor: Tensor, tag: int, call: str) -> Way:
        """Return the way of a tensor to the host and back, on which it has begun to go."""
        array = tensor.array
        if isinstance(array, np.ndarray):
            return HostWay(tensor)
        way = self._ways.get(tag)
        if way is None or way.host.size != array.size or way.host.dtype != array.dtype:
            index = int(array.device.id)
            if index not in self._stages:
                self._stages[index] = Stage(index)
            way = self._ways[tag] = DeviceWay(self._stages[index], array.size, array.dtype)
        way.take(tensor, call)
        return way

    def _future(
        self, start: Callable[[], Work], way: Way, finish: Callable[[], T], place: Place
    ) -> Future[T]:
        progress = self._progress
        assert progress is not None
        push = progress.poll if isinstance(progress, InlineProgress) else None
        future: Future[T] = Future(push=push)
        progress.submit(lambda: _Resolving(start, future, way, finish, place))
        return future


class _Resolving(Work):
    """A transfer that sets a future when it is complete, or has failed."""

    __slots__ = ("_finish", "_future", "_inner", "_place", "_way")

    def __init__(
        self,
        start: Callable[[], Work],
        future: Future[T],
        way: Way,
        finish: Callable[[], T],
        place: Place,
    ) -> None:
        self._future, self._way, self._finish, self._place = future, way, finish, place
        try:
            self._inner = start()
        except BaseException as error:
            future.set_exception(error)
            raise
        super().__init__(self._inner.call, self._inner.sequence)

    def test(self) -> bool:
        """Return whether the transfer is complete and the future set."""
        future = self._future
        if future.done():
            return True
        try:
            if not self._inner.test() or not self._way.is_back():
                return False
            with self._place.working():
                result = self._finish()
                self._way.leave()
                future.set_result(result)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
            raise
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete."""
        self._inner.wait(timeout_s)
        self.test()

    def is_completed(self) -> bool:
        """Return whether the future is set."""
        return self._future.done()


def _collect(x: Exchange, rows: Sequence[HostArray]) -> Rounds:
    """Send one array to everyone and receive that of each."""
    works = [x.recv(rows[place], place, 0) for place in x.others]
    works += [x.send(x.out, place, 0) for place in x.others]
    yield works


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
