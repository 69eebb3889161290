"""The reducer whose gradients are kept by their owners only (ZeRO-2).

A gradient lives as the engine made it until its bucket is full. The bucket is then packed into one
of a few regions of memory that all buckets share, its gradients are dropped, and its sum goes to
the owners: each rank keeps the mean of what it owns, 1/P of all, in the ``shard`` of each bucket.

Note [Regions]
    Bucket k uses region k mod R, after the bucket before it there has been summed. All ranks launch
    buckets in the order of their numbers; so the wait for a region always ends.

Note [Accumulation]
    Inside no_sync() gradients stay whole, in ``p.grad``. With "world" and several shards of the
    batch on a rank, sums of shards that wait for their neighbours are whole as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, array_namespace, device_of, to_device
from distgrad.distributed.bucket import Summed, Tail
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.halves import scatter_sums
from distgrad.distributed.reducer import Reducer
from distgrad.distributed.reduction import PHASES, Common, Exchange, Reduction
from distgrad.distributed.shared import ALIGNMENT
from distgrad.distributed.tree import Subtree, Tree
from distgrad.distributed.work import HostArray, Work
from distgrad.errors import GradError
from distgrad.tensor import Tensor
from distgrad.typing import Array

REGIONS = 2  # one is filled while the other travels


class Region:
    """Memory of a rank, and that of the others of its host, for one bucket at a time."""

    __slots__ = ("arrays", "mine", "user")

    def __init__(self, arrays: list[HostArray], mine: int) -> None:
        self.arrays, self.mine = arrays, mine  # bytes
        self.user: ShardedBucket | None = None


class ShardedBucket(Summed):
    """Parameters of one dtype and device; their gradients pass through ``wire`` to ``shard``."""

    __slots__ = ("mine", "region", "shard")

    def __init__(
        self, index: int, params: Sequence[Tensor], names: Sequence[str], rank: int, ranks: int
    ) -> None:
        """Lay out the values of ``params``; memory comes by `attach`."""
        super().__init__(index, params, names, ranks)
        self.mine = self.owned[rank]
        self.shard: Array = array_namespace(self.values).zeros(
            self.mine.stop - self.mine.start, self.values.dtype
        )
        for param in params:
            param._grad_buffer = None

    def attach(self, region: Region, sums: list[HostArray], common: Common | None) -> None:
        """Take the memory in which gradients are summed."""
        self.region, self.sums, self.common = region, sums, common
        self.wire = self.cut(region.arrays[region.mine])

    def cut(self, memory: HostArray) -> HostArray:
        """Return what this bucket uses of a region."""
        return np.frombuffer(memory.data, self.values.dtype, self.values.size)

    def pack(self) -> list[Tensor]:
        """Move the gradients to ``wire``, with zeros for none; return whose there were."""
        used = []
        for param, span in zip(self.params, self.spans, strict=True):
            grad = param.grad
            if grad is None:
                self.wire[span] = 0
                continue
            self.wire[span] = to_device(grad.array, CPU).reshape(-1)
            used.append(param)
            param.grad = None
        return used

    def stage_in(self) -> None:
        """Keep what this rank owns; the region is free."""
        self.shard[...] = to_device(self.wire[self.mine], device_of(self.shard))

    def piece(self, place: int) -> Array | None:
        """Return the gradient of what this rank owns of parameter ``place``, if anything."""
        where = self.overlap(place, self.mine)
        if where is None:
            return None
        return self.shard[where.start - self.mine.start : where.stop - self.mine.start]


class ShardedReducer(Reducer):
    """A reducer that leaves to each rank the means of the gradients which that rank owns.

    Ranks, Args: as for `Reducer`.
    Cost: (P-1)/P of the gradients from each rank and to it, half of an all-reduce.
    """

    def _lay_out(self) -> None:
        """Make the buckets of the plan."""
        group, place = self.channel, dict(enumerate(self.named))
        self.tail = Tail(np.dtype(np.float64), group.size, len(self.named))
        self._end = np.zeros(self.tail.length)
        self.buckets = []
        for index, places in enumerate(self.plan):
            names, params = zip(*(place[i] for i in places), strict=True)
            self.buckets.append(ShardedBucket(index, params, names, group.rank, group.size))
        _attach(self.buckets, group, self.tree)
        self.pending = False  # the shards hold means that no zero_grad has dropped
        self.used = [False] * len(self.named)  # anywhere, in what the shards hold
        self._register(self.buckets)

    def _learn_order(self) -> None:
        """Keep the plan: shards of gradients and of optimizers lie by it."""

    def drop(self) -> None:
        """Forget the gradients."""
        self.pending = False
        self.used = [False] * len(self.named)

    def piece(self, param: Tensor) -> Array | None:
        """Return the gradient of what this rank owns of ``param``; None for nothing."""
        bucket, place = self._place[id(param)]
        assert isinstance(bucket, ShardedBucket)
        return bucket.piece(place) if self.has_gradient(param) else None

    def has_gradient(self, param: Tensor) -> bool:
        """Return whether any rank used ``param``."""
        return self.used[self._index[id(param)]]

    def begin(self) -> None:
        """Get ready for a forward that trains.

        Raises:
            GradError: the gradients of the last step are still there.
        """
        super().begin()
        if self.pending and self.enabled:
            raise GradError(
                "forward(): the gradients of the last backward are means already, kept by their "
                "owners; call zero_grad() of the optimizer or of DistributedDataParallel first, or "
                "accumulate in no_sync()"
            )

    def shadow(self) -> None:
        """Take part in a reduction without a backward, instead of the gradients there were."""
        self.drop()
        super().shadow()

    def reset(self) -> None:
        """Forget the backward that is running."""
        super().reset()
        for bucket in self.buckets:
            bucket.region.user = None

    # ------------------------------------------------------------------ during backward
    def _adopt(self, param: Tensor) -> None:
        """Refuse a gradient with a history."""
        if param.grad is not None and param.grad.requires_grad:
            self._refuse_history(param)

    def _launch_what_may(self, bucket: Summed) -> None:
        """Launch full buckets in the order of their numbers; see Note [Regions]."""
        for following in self.buckets:
            if not following.launched:
                if not following.full:
                    return
                self._launch(following)

    def _launch(self, bucket: Any) -> None:
        """Pack a bucket that is full, and go on as with any."""
        region = bucket.region
        if region.user is not None:
            began = time.perf_counter()
            self._wait(region.user)
            self.waited_s += time.perf_counter() - began
        region.user = bucket
        for param in bucket.pack():
            self._used[self._index[id(param)]] = True
        super()._launch(bucket)
        if self._progress is None and self._last_shard:
            bucket.stage_in()

    def _exchange(self, bucket: Any, arrays: list[HostArray]) -> Work:
        """Return the started sum of a bucket, for its owners."""
        call = f"reduce_scatter({bucket.describe()})"
        exchange = Exchange(
            self.channel, arrays, self.tree.parts, np.add, bucket.index * PHASES, call,
            common=bucket.common,
        )  # fmt: skip
        return Reduction(exchange, scatter_sums(exchange, bucket.owned))

    def _fill(self, bucket: Summed) -> None:
        """Leave it to `ShardedBucket.pack`."""

    def _complete(self) -> None:
        """Agree on counts and flags, and wait for all."""
        self.tail.write(self._end, self._used, self._total, self.reductions, True)
        if self._progress is None:
            super()._complete()
            return
        channel, tag = self.channel, len(self.buckets) * PHASES
        alone = [[Subtree(rank, 1)] for rank in range(channel.size)]
        job = self._progress.submit(
            lambda: Reduction(
                Exchange(channel, [self._end], alone, np.add, tag, "all_reduce(sample counts)")
            )
        )
        job.wait()
        super()._complete()

    def _wait(self, bucket: Any) -> None:
        super()._wait(bucket)
        bucket.job = None
        bucket.region.user = None

    def _divide(self) -> None:
        """Turn sums into means."""
        self.used, total = self._agreed(self._end)
        self.pending = True
        for bucket in self.buckets:
            if total is not None:
                bucket.shard /= total


def _attach(buckets: Sequence[ShardedBucket], group: ProcessGroup, tree: Tree) -> None:
    """Give buckets the memory in which gradients are summed."""
    waiting, regions = tree.waiting, min(REGIONS, len(buckets))
    largest = max(bucket.values.nbytes for bucket in buckets)
    total = sum(bucket.values.nbytes for bucket in buckets)
    room = regions * (largest + ALIGNMENT) + waiting * (total + len(buckets) * ALIGNMENT)
    slab = group.shared_memory(room, len(buckets))
    if slab is None:
        ring = [Region([np.empty(largest, np.uint8)], 0) for _ in range(regions)]
    else:
        ring = [Region(slab.take(largest, np.uint8), slab.place) for _ in range(regions)]
    here = next(ranks for ranks in group.hosts if group.rank in ranks)
    for bucket in buckets:
        region, dtype, size = ring[bucket.index % regions], bucket.values.dtype, bucket.values.size
        if slab is None:
            bucket.attach(region, [np.empty(size, dtype) for _ in range(waiting)], None)
            continue
        sums = [slab.take(size, dtype) for _ in range(waiting)]
        brought = [
            [each[place] for each in sums[: len(tree.parts[rank]) - 1]]
            + [bucket.cut(region.arrays[place])]
            for place, rank in enumerate(here)
        ]
        common = Common(slab, group.hosts, brought)
        bucket.attach(region, [each[slab.place] for each in sums], common)
