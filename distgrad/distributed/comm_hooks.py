"""Communication hooks: the user says how a bucket is averaged over the ranks.

Note [Exact means with hooks]
    A hook gets gradients and returns their mean over the P ranks; it divides by P itself. So that
    the result is the gradient of the big batch, rank r brings its gradient times n_r P / N', where
    n_r is its count and N' the global count of the reduction before; afterwards everything is
    multiplied by N' / N. While ranks count alike and steps do not differ, both factors are 1 and a
    hook sees the plain gradients, in the same units at every step, as error feedback needs.
    The first reduction agrees on N' by one small all-reduce.

Note [Several shards on a rank]
    A hook gets what one rank brings: the sum over its shards, when the last one is there. What it
    loses by rounding or leaving out depends on who has which shard, so "world" has the same bits on
    any number of ranks only with a hook that is linear and does not round.

Note [What goes beside the hook]
    The flags of used parameters, the count and the number of the reduction are nobody's to
    compress: they go in a small all-reduce of their own at the end of backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from distgrad.backend.device import array_namespace
from distgrad.distributed.bucket import Bucket, Summed
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.waiting import watched
from distgrad.distributed.wire import LANES, Place, Wire
from distgrad.errors import ArgumentTypeError, describe
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.distributed.reducer import Reducer

T = TypeVar("T")

_PATIENCE_S = 0.25


class GradBucket:
    """The gradients of one bucket, as a communication hook gets them.

    ``all_reduce`` and ``all_gather`` are moved by the communication thread, beside backward, and
    matched by the bucket's number: buckets never wait for each other.
    """

    def __init__(self, bucket: Summed, last: bool, wire: Wire) -> None:
        self._bucket, self._last, self._wire = bucket, last, wire
        self._buffer = wrap(bucket.gradients)
        self._calls = 0

    def index(self) -> int:
        """Return the number of the bucket; it may hold other parameters after the first step."""
        return self._bucket.index

    def is_last(self) -> bool:
        """Return whether no bucket of this backward follows."""
        return self._last

    def buffer(self) -> Tensor:
        """Return the gradients in one row."""
        return self._buffer

    def set_buffer(self, tensor: Tensor) -> None:
        """Let ``buffer`` return ``tensor``, of as many elements."""
        self._buffer = tensor

    def room(self, dtype: Any) -> Array:
        """Return an array of as many elements for this step; on a GPU it is always the same one."""
        return self._wire.room(self._bucket.index, self._bucket.gradients, dtype)

    def gradients(self) -> list[Tensor]:
        """Return the gradient of each parameter, as a view of the buffer."""
        return self.pieces(self._buffer)

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the part of each parameter of a tensor that is laid out as the buffer."""
        pairs = zip(self._bucket.params, self._bucket.spans, strict=True)
        return [wrap(flat.array[span].reshape(param.array.shape)) for param, span in pairs]

    def parameters(self) -> list[Tensor]:
        """Return the parameters."""
        return list(self._bucket.params)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters."""
        return tuple(self._bucket.names)

    def group(self, other: ProcessGroup | None = None) -> ProcessGroup:
        """Return ``other``, or the group of the DistributedDataParallel."""
        return self._wire.group if other is None else other

    def all_reduce(self, tensor: Tensor, group: ProcessGroup | None = None) -> Future[Tensor]:
        """Start to replace ``tensor`` by its sum over the ranks; returns the future of it."""
        return self._wire.all_reduce(
            tensor, self._tag(), self.group(group), self._call(), self._place()
        )

    def all_gather(self, tensor: Tensor, group: ProcessGroup | None = None) -> Future[list[Tensor]]:
        """Start to collect ``tensor`` of all ranks, of one shape; returns the future of them."""
        return self._wire.all_gather(
            tensor, self._tag(), self.group(group), self._call(), self._place()
        )

    def _place(self) -> Place:
        return Place(self._bucket.gradients)

    def _tag(self) -> int:
        self._calls += 1
        return self._wire.tag(self._bucket.index, self._calls % LANES)

    def _call(self) -> str:
        return f"communication hook({self._bucket.describe()})"


Hook: TypeAlias = Callable[[Any, GradBucket], Future[Tensor]]


class HookedReduction:
    """Lets a hook average the buckets of a reducer; see Note [Exact means with hooks].

    Args:
        reducer: whose buckets.
        state: the first argument of the hook.
        hook: returns the future of a bucket's mean over the ranks.
    """

    def __init__(self, reducer: Reducer, state: Any, hook: Hook) -> None:
        self._reducer, self._state, self._hook = reducer, state, hook
        self._wire = Wire(reducer.group, reducer._progress, len(reducer.named) + 1)
        self._each: float | None = None  # N' / P

    def for_reducer(self, reducer: Reducer) -> HookedReduction:
        """Return the same for another reducer."""
        return HookedReduction(reducer, self._state, self._hook)

    def launch(self, bucket: Summed) -> None:
        """Weigh a bucket and give it to the hook; its job takes the result."""
        reducer = self._reducer
        self._weigh(bucket.gradients)
        beside = None
        if isinstance(bucket, Bucket) and bucket.tail:
            call = f"flags and counts of reduction {reducer.reductions}"
            beside = self._beside(wrap(bucket.end), call)
        bucket.filled_at = time.perf_counter()
        last = bucket.index == len(reducer.buckets) - 1
        future = self._hook(self._state, GradBucket(bucket, last, self._wire))
        bucket.job = bucket.work = _Hooked(bucket, reducer.channel, future, beside)

    def _weigh(self, gradients: Any) -> None:
        """Multiply gradients of means by n_r P / N', and sums of gradients by P / N'."""
        reducer = self._reducer
        mean = not reducer.only_sums
        if mean and reducer.group.size == 1:
            return
        if self._each is None:
            self._each = self._agree()
        if mean and not reducer.count:
            gradients[...] = 0  # the mean of no samples is not a number
            return
        weight = (reducer.count if mean else 1) / self._each
        if weight != 1:
            gradients *= weight

    def divisor(self, total: int) -> float:
        """Return N / N', and take N for the next reduction."""
        assert self._each is not None
        each = total / self._reducer.group.size
        divisor, self._each = each / self._each, each
        return divisor

    def _agree(self) -> float:
        """Return the mean count of the ranks; a transfer of its own, in the first reduction."""
        count = wrap(np.array([float(self._reducer.samples)]))
        call = "counts of the first reduction"
        future = self._beside(count, call)
        total = float(_awaited(self._reducer.channel, future, call).array[0])
        return (total or 1.0) / self._reducer.group.size

    def _beside(self, tensor: Tensor, call: str) -> Future[Tensor]:
        tag = self._wire.tag(len(self._reducer.buckets), 0)
        return self._wire.all_reduce(tensor, tag, self._reducer.group, call, Place(tensor.array))


class _Hooked:
    """The job of a bucket whose gradients a hook has."""

    def __init__(
        self, bucket: Summed, channel: ProcessGroup, future: Any, beside: Future[Tensor] | None
    ) -> None:
        self._bucket, self._channel, self._beside = bucket, channel, beside
        self._call = f"communication hook({bucket.describe()})"
        self.started, self.done = bucket.filled_at, 0.0
        if not isinstance(future, Future):
            raise ArgumentTypeError(
                f"{self._call}: returned {describe(future)}, and not a Future; return what "
                "bucket.all_reduce(...) returns, or its then(...)"
            )
        self._future: Future[Tensor] = future
        future.add_done_callback(self._note)

    def _note(self, _: Future[Tensor]) -> None:
        self.done = time.perf_counter()

    def wait(self) -> None:
        """Take the result into the bucket."""
        gradients = self._bucket.gradients
        result = _awaited(self._channel, self._future, self._call)
        if not isinstance(result, Tensor) or result.array.size != gradients.size:
            raise ArgumentTypeError(
                f"{self._call}: its future has {describe(result)}, and not a tensor of "
                f"{gradients.size} elements; return the mean of the buffer"
            )
        if result.array is not gradients:
            gradients[...] = result.array.reshape(-1)
        if self._beside is not None:
            _awaited(self._channel, self._beside, "flags and counts")


def _awaited(channel: ProcessGroup, future: Future[T], call: str) -> T:
    """Return the value of ``future``, looking after the other ranks meanwhile."""
    started = time.monotonic()
    with watched(channel, call, started) as check:
        while not future.wait_some(_PATIENCE_S):
            check()
            if time.monotonic() - started > channel.timeout_s:
                return future.wait(0.0)
    return future.value()


def divided(tensor: Tensor, by: int) -> Tensor:
    """Return ``tensor`` after it was divided in place."""
    array = tensor.array
    array_namespace(array).divide(array, array.dtype.type(by), out=array)
    return tensor
