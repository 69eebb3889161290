"""The reducer whose gradients are kept by their owners only (ZeRO-2).

A gradient lives as the engine made it until its bucket is full. The bucket is then packed into one
of a few regions of memory that all buckets share, its gradients are dropped, and its sum goes to
the owners: each rank keeps the mean of what it owns, 1/P of all, in the ``shard`` of each bucket.

Note [Regions]
    Bucket k uses region k mod R, after the bucket before it there has been summed. All ranks launch
    buckets in the order of their numbers; so the wait for a region always ends.

Note [Accumulation]
    Inside no_sync() gradients stay whole, in ``p.grad``: no bytes travel, and they take n bytes on
    each rank. Without it, means of several backwards are added by their owners: each backward
    sends, and n/P bytes more are taken, while the new means are not complete.

    With "world" and several shards of the batch on a rank, sums of shards that wait for their
    neighbours are whole too. To send each of them at once would save nothing: the owner of a slice
    would have to keep it for each of the P ranks until that rank's subtree is whole, for the order
    of additions is the tree's, and P slices of n/P bytes are n bytes.

Note [Learnt order]
    After the first backward the buckets follow the order in which gradients came. Means that their
    owners have then go to the new ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, array_namespace, device, device_of, to_device
from distgrad.distributed.bucket import CAP_MB, Summed, Tail, Ways, let_go
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.halves import scatter_sums
from distgrad.distributed.nccl import AnyLink, Turn, link_between
from distgrad.distributed.redistribute import Ranges, owned_ranges, redistribute
from distgrad.distributed.reducer import Reducer, Standing
from distgrad.distributed.reduction import PHASES, Common, Exchange, Reduction
from distgrad.distributed.shared import ALIGNMENT
from distgrad.distributed.staging import pinned_zeros
from distgrad.distributed.tree import Subtree, Tree
from distgrad.distributed.work import HostArray, Work
from distgrad.errors import GradError
from distgrad.tensor import Tensor
from distgrad.typing import Array

REGIONS = 2  # one is filled while the other travels


class Region:
    """Memory of a rank, and that of the others of its host, for one bucket at a time."""

    __slots__ = ("_gpus", "arrays", "mine", "nbytes", "user")

    def __init__(self, arrays: list[HostArray], mine: int, nbytes: int) -> None:
        self.arrays, self.mine, self.nbytes = arrays, mine, nbytes
        self._gpus: dict[device, Array] = {}
        self.user: ShardedBucket | None = None

    def on_gpu(self, like: Array) -> Array:
        """Return as many bytes where ``like`` is."""
        place = device_of(like)
        if place not in self._gpus:
            self._gpus[place] = array_namespace(like).empty(self.nbytes, np.uint8)
        return self._gpus[place]


class ShardedBucket(Summed):
    """Parameters of one dtype and device; their gradients pass through ``wire`` to ``shard``."""

    __slots__ = ("before", "mine", "region", "shard")

    def __init__(
        self, index: int, params: Sequence[Tensor], names: Sequence[str], rank: int, ranks: int
    ) -> None:
        """Lay out the values of ``params``; memory comes by `attach`."""
        super().__init__(index, params, names, ranks)
        self.mine = self.owned[rank]
        self.shard: Array = array_namespace(self.values).zeros(
            self.mine.stop - self.mine.start, self.values.dtype
        )
        self.before: Array | None = None  # means of earlier backwards
        for param in params:
            param._grad_buffer = None

    def attach(self, region: Region, sums: list[HostArray], common: Common | None) -> None:
        """Take the memory in which gradients are summed."""
        self.region, self.sums, self.common = region, sums, common
        self.wire = self.cut(region.arrays[region.mine])
        if self.on_host:
            self.flat, self.rooms = self.wire, sums

    def lie_on_gpu(self, region: Region, ways: Ways, ranks: int, waiting: int) -> bool:
        """Take memory of a GPU; return whether memory of the host is needed too."""
        self.region, memory = region, region.on_gpu(self.values)
        self.flat = memory[: self.values.nbytes].view(self.dtype)
        return self.connect(ways, ranks, waiting)

    def cut(self, memory: HostArray) -> HostArray:
        """Return what this bucket uses of a region."""
        return np.frombuffer(memory.data, self.values.dtype, self.values.size)

    def pack(self) -> list[Tensor]:
        """Move the gradients to ``flat``, with zeros for none; return whose there were."""
        used = []
        for param, span in zip(self.params, self.spans, strict=True):
            grad = param.grad
            if grad is None:
                self.flat[span] = 0
                continue
            self.flat[span] = grad.array.reshape(-1)
            used.append(param)
            param.grad = None
        return used

    def stage_in(self) -> None:
        """Keep what this rank owns; the region is free."""
        super().stage_in()
        self.keep_mine()

    def keep_mine(self) -> None:
        """Keep what this rank owns of ``flat``."""
        self.shard[...] = self.flat[self.mine]

    @property
    def _wanted(self) -> slice:
        """What this rank needs of the sum."""
        return self.mine

    def _cross(self, turn: Turn) -> None:
        """Let NCCL add, for the owners."""
        turn.reduce_slices(f"reduce_scatter({self.describe()})", self.flat, self.owned)

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
        if not self.version:
            leaves = [p for _, p in self.named]
            link = link_between(group, leaves, self.determinism, self.tree)
            self._memory = _Memory(group, self.tree, leaves, self._cap_mb, link)
            self.tail = Tail(np.dtype(np.float64), group.size, len(self.named))
            self._end = np.zeros(self.tail.length)
            self.drop()
        self.buckets = []
        for index, places in enumerate(self.plan):
            names, params = zip(*(place[i] for i in places), strict=True)
            self.buckets.append(ShardedBucket(index, params, names, group.rank, group.size))
        self._memory.attach(self.buckets)
        self._register(self.buckets)

    def _take_plan(self, plan: list[list[int]]) -> None:
        """Lay out the buckets anew, and bring the means to their new owners."""
        have = [self._ranges(rank) for rank in range(self.group.size)]
        entries = {
            number: {"mean": to_device(piece, CPU)}
            for number, (_, p) in enumerate(self.named)
            if (piece := self.piece(p)) is not None
        }
        before, self.plan, self.version = self.buckets, plan, self.version + 1
        self._lay_out()
        let_go(before)
        want = [self._ranges(rank) for rank in range(self.group.size)]
        got = redistribute(self.group.channel("control"), have, want, entries)
        for number, row in got.items():
            piece = self.piece(self.named[number][1])
            if row and piece is not None:
                piece[...] = to_device(row["mean"], device_of(piece))

    def _ranges(self, rank: int) -> Ranges:
        """Return which elements of which parameter ``rank`` owns."""
        return owned_ranges(self.buckets, self._index, rank)

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
            GradError: sums would be added to gradients that are means already.
        """
        super().begin()
        if self.pending and self.enabled and self.only_sums:
            raise GradError(
                "forward(): the gradients of the last backward are means already, kept by their "
                "owners, and sums cannot be added to them; call zero_grad() of the optimizer or of "
                "DistributedDataParallel first, or accumulate in no_sync()"
            )

    @property
    def stage(self) -> tuple[Any, ...]:
        """What a backward that begins now depends on; to be compared."""
        return *super().stage, self.pending, tuple(self.used)

    def standing(self) -> Standing:
        """Return how far the reducer has come."""
        before = [bucket.before for bucket in self.buckets]
        return super().standing()._replace(means=(self.pending, [*self.used], before))

    def stand(self, at: Standing) -> None:
        """Be where it was, or would be, between two backwards."""
        super().stand(at)
        self.pending, used, before = at.means
        self.used = [*used]
        for bucket, array in zip(self.buckets, before, strict=True):
            bucket.before = array

    def shadow(self) -> None:
        """Take part in a reduction without a backward; gradients of a step that was made go."""
        if self.spent:
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
        if self.pending and bucket.before is None:
            bucket.before = bucket.shard.copy()
        if region.user is not None:
            began = time.perf_counter()
            self._wait(region.user)
            self.waited_s += time.perf_counter() - began
        region.user = bucket
        for param in bucket.pack():
            self._used[self._index[id(param)]] = True
        super()._launch(bucket)
        if self._last_shard and not bucket.under_way:  # on one rank, without a hook
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
        self._write_tail(self._end)
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
        if not bucket.under_way:
            return
        super()._wait(bucket)
        if self.comm is not None:  # its result is there already
            bucket.keep_mine()
        bucket.job = None
        bucket.region.user = None

    def _divide(self) -> None:
        """Turn sums into means, and add those of earlier backwards."""
        used, divisor = self._agreed(self._end)
        for bucket in self.buckets:
            if divisor is not None:
                bucket.shard /= divisor
            if bucket.before is not None:
                bucket.shard += bucket.before
                bucket.before = None
        self.used = [a or b for a, b in zip(self.used, used, strict=True)]
        self.pending, self.spent = True, False


class _Memory:
    """Where the buckets of a plan, and of the plan after it, are summed.

    Args:
        group: the ranks.
        tree: which shards they have.
        params: all that will be in buckets.
        cap_mb: of a bucket, as for `plan_buckets`.
        link: NCCL between their GPUs.
    """

    def __init__(
        self,
        group: ProcessGroup,
        tree: Tree,
        params: Sequence[Tensor],
        cap_mb: float | None,
        link: AnyLink | None,
    ) -> None:
        self._group, self._tree = group, tree
        sizes = [p.array.nbytes for p in params]
        cap = int((CAP_MB if cap_mb is None else cap_mb) * 2**20)
        self._largest = min(sum(sizes), cap + max(sizes))
        regions, slots = min(REGIONS, len(params)), 2 * len(params)
        room = regions * (self._largest + ALIGNMENT)
        room += tree.waiting * (sum(sizes) + len(params) * ALIGNMENT)
        self._slab = group.shared_memory(room, slots)
        self._ways = Ways(group, link, self._slab, tree)

    def attach(self, buckets: Sequence[ShardedBucket]) -> None:
        """Give buckets their memory, and take it from those before them."""
        regions = min(REGIONS, len(buckets))
        largest = max(bucket.values.nbytes for bucket in buckets)
        slab = self._slab
        self._ways.settle()
        if slab is None:
            pins = self._ways.link is None and not all(bucket.on_host for bucket in buckets)
            make = pinned_zeros if pins else np.empty
            ring = [Region([make(largest, np.uint8)], 0, largest) for _ in range(regions)]
        else:
            slab.reuse()
            cuts = [slab.take(largest, np.uint8) for _ in range(regions)]
            ring = [Region(arrays, slab.place, largest) for arrays in cuts]
        for bucket in buckets:
            self._attach(bucket, ring[bucket.index % regions])

    def _attach(self, bucket: ShardedBucket, region: Region) -> None:
        slab, waiting = self._slab, self._tree.waiting
        dtype, size = bucket.values.dtype, bucket.values.size
        if not bucket.on_host and not bucket.lie_on_gpu(
            region, self._ways, self._tree.ranks, waiting
        ):
            return
        if slab is None:
            bucket.attach(region, [np.empty(size, dtype) for _ in range(waiting)], None)
            return
        sums = [slab.take(size, dtype) for _ in range(waiting)]
        common = Common(slab, self._group.hosts, self._brought(bucket, region, sums))
        bucket.attach(region, [each[slab.place] for each in sums], common)

    def _brought(
        self, bucket: ShardedBucket, region: Region, sums: Sequence[Sequence[HostArray]]
    ) -> list[list[HostArray]]:
        """Return what each rank of the host brings."""
        here = next(ranks for ranks in self._group.hosts if self._group.rank in ranks)
        return [
            [each[place] for each in sums[: len(self._tree.parts[rank]) - 1]]
            + [bucket.cut(region.arrays[place])]
            for place, rank in enumerate(here)
        ]
