"""The conductor of the units of a model: what is gathered when, and how gradients are reduced.

Note [Prefetch]
    Forward gathers a unit when its module is called, and starts with the one that came next in the
    forward before. Backward gathers a unit when a gradient reaches the module's results, and starts
    with the one before it in forward. A unit is dropped when its module is done, in backward when
    its last gradient is there. At the end of backward all are dropped.

Note [Turns]
    A reduction is over V shards of the global batch, by default one for each rank. The ranks take
    turns: in turn k, rank r brings the gradients of shard k P + r, which are sent to the owners at
    once. An owner adds them in the order of the tree over shards (`distgrad.distributed.tree`), and
    has at most log2 V sums of what it owns. So the bits are those of DistributedDataParallel and of
    any other number of ranks. As ranks gather together, all have as many turns; in the last one, a
    rank for which there is no shard repeats its last one, and brings nothing.

Note [Launch in one order]
    Gradients of a unit are packed into one of a few regions of memory, and dropped. A region is
    free again when the reduction before has passed. All ranks launch in the same order, after the
    first reduction that of rank 0's gradients, so a wait for a region always ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from distgrad.autograd.engine import in_backward, queue_callback
from distgrad.autograd.node import post_hook
from distgrad.distributed.bucket import Tail
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.halves import scatter_pieces
from distgrad.distributed.reducer import Span, Timed
from distgrad.distributed.reduction import PHASES, Common, Exchange, Reduction
from distgrad.distributed.shared import ALIGNMENT
from distgrad.distributed.tree import Subtree
from distgrad.distributed.waiting import watched
from distgrad.distributed.work import HostArray, Work
from distgrad.errors import ArgumentError, GradError
from distgrad.nn.parallel.fsdp.unit import Unit, next_number

REDUCTIONS = ("mean", "sum")
_REGIONS = 2  # one is filled while the other travels


class Region:
    """Memory of this rank, and that of the others of its host, for one unit's gradients at a time.

    Args:
        arrays: bytes of each of these ranks.
        mine: which of them this one is.
    """

    __slots__ = ("arrays", "mine", "user")

    def __init__(self, arrays: Sequence[HostArray], mine: int) -> None:
        self.arrays, self.mine = list(arrays), mine
        self.user: Unit | None = None


class Conductor:
    """Conducts the units of a model on one rank.

    Args:
        units: in the order of the modules, the outermost first.
        group: the ranks.
        reduction: "mean" where the loss is a mean over the local samples, "sum" where it is a sum.
        shards: V; None for one for each rank.

    Ranks: all, with the same.
    """

    def __init__(
        self, units: Sequence[Unit], group: ProcessGroup, reduction: str, shards: int | None
    ) -> None:
        """Take memory and hook the gradients."""
        self.units, self.reduction = list(units), reduction
        self.shards = group.size if shards is None else shards
        self.enabled = True  # gradients are reduced
        self.count = 0  # samples of this turn
        self.explicit_count = False  # the user counts
        self._kept = 0  # of ``count``, those whose gradients are there, whole
        self.reductions = 0  # since the beginning
        self.waited_s = 0.0  # stood still for communication: exposed, in seconds
        self.timeline: list[Span] | None = None  # set to a list to record
        self.last_backward = True  # the next backward drops units and waits
        self._order = list(reversed(self.units))  # of launches
        self._came: list[int] = []  # whose gradients were complete, in the first reduction
        self._path: list[Unit] = []  # the forward before
        self._trail: list[Unit] = []  # this one, as far as it has come
        self._ended: list[Unit] = []  # units whose forward is over
        self._running = False
        self._turn = 0
        self._total = 0  # samples of the turns before
        firsts = accumulate([len(unit.wholes) for unit in units], initial=0)
        self._first = {id(unit): first for unit, first in zip(units, firsts, strict=False)}
        self._connect(group)
        for unit in units:
            for whole in unit.wholes:
                post_hook(whole, self._hook)

    def _connect(self, group: ProcessGroup) -> None:
        """Compare the units, and take memory that these ranks see."""
        units = self.units
        _check(group, self.reduction, self.shards, units)
        self.group, self.channel = group, group.channel("buckets")
        words = f"{self.reduction}, {self.shards} shards; {'; '.join(u.describe() for u in units)}"
        check_same(group, "groups of fully_shard", words)
        self._number = next_number(self.channel)
        self._tail = Tail(np.dtype(np.float64), group.size, sum(len(unit.wholes) for unit in units))
        self._end = np.zeros(self._tail.length)
        self._take_memory()
        self._next_step()

    def rebuild(self, group: ProcessGroup, reductions: int | None) -> None:
        """Conduct the units on other ranks, to which they have moved.

        Args:
            group: the ranks.
            reductions: how many count as done; default is the least number of all ranks.

        Ranks: all of ``group``.
        """
        done = np.array([self.reductions if reductions is None else reductions])
        group.all_reduce(done, "min")
        self.reductions = int(done[0])
        order = group.broadcast_object([self.units.index(unit) for unit in self._order])
        self._order, self._came = [self.units[i] for i in order], []
        self._path, self._trail, self._ended = [], [], []
        self._count_anew()
        self._reset()
        self._connect(group)

    # ------------------------------------------------------------------ memory
    def _take_memory(self) -> None:
        """Make the regions that gradients pass through."""
        largest = max(unit.wire_bytes for unit in self.units)
        count = min(_REGIONS, len(self.units))
        slab = self.channel.shared_memory(count * (largest + ALIGNMENT), len(self.units))
        if slab is None:
            self._regions = [Region([np.empty(largest, np.uint8)], 0) for _ in range(count)]
        else:
            self._regions = [Region(slab.take(largest, np.uint8), slab.place) for _ in range(count)]
            hosts = self.channel.hosts
            for unit in self.units:
                unit.common = Common(slab, hosts, [])
        self._attach()

    def _attach(self) -> None:
        """Give units that are launched one after the other different regions."""
        for place, unit in enumerate(self._order):
            region = unit.region = self._regions[place % len(self._regions)]
            cuts = [
                np.frombuffer(memory.data, unit.wire_dtype, unit.spread.size)
                for memory in region.arrays
            ]
            unit.wire = cuts[region.mine]
            if unit.common is not None:
                unit.common.arrays = [[cut] for cut in cuts]

    # ------------------------------------------------------------------ forward
    def begin(self, samples: int) -> None:
        """Get ready for a forward that trains, of ``samples``."""
        if self._running:  # an exception left the backward before
            for unit in self.units:
                self._wait(unit)
            self.forget()
            self._count_anew()
            self._reset()
            self._next_step()
        if not self.explicit_count:
            self.count += samples

    def forget(self) -> None:
        """Drop whole gradients, of backwards that were not reduced, and their samples."""
        self.count, self._kept = self.count - self._kept, 0
        for unit in self.units:
            for whole in unit.wholes:
                whole._grad = None

    def follow(self) -> None:
        """Note that forward begins anew."""
        if self._trail:
            self._path = self._trail
        self._trail, self._ended = [], []

    def enter(self, unit: Unit) -> None:
        """Gather a unit for its module, and start with the next one."""
        self._gather(unit)
        if in_backward():  # a checkpoint computes again
            return
        place = len(self._trail)
        self._trail.append(unit)
        for following in unit.prefetch_forward or self._path_after(unit, place):
            following.start()

    def _path_after(self, unit: Unit, place: int) -> list[Unit]:
        path = self._path
        known = place + 1 < len(path) and path[place] is unit
        return [path[place + 1]] if known else []

    def leave(self, unit: Unit, drop: bool) -> None:
        """Drop a unit whose module is done, unless backward comes at once."""
        if in_backward():
            return
        self._ended.append(unit)
        if drop:
            unit.drop()

    def _gather(self, unit: Unit) -> None:
        began = time.perf_counter()
        call = f"all_gather(parameters of {unit.describe()})"
        with watched(self.channel, call, time.monotonic()):
            unit.gather()
        self.waited_s += time.perf_counter() - began

    # ------------------------------------------------------------------ backward
    def before_backward(self, unit: Unit) -> None:
        """Gather a unit whose results got a gradient, and start with the next one."""
        self._run()
        if unit.drops_in_backward and len(unit.ready) == len(unit.trained):
            return  # what came late passed the module by
        self._gather(unit)
        for following in unit.prefetch_backward or self._before(unit):
            following.start()

    def _before(self, unit: Unit) -> list[Unit]:
        """Return the unit that was done before this one in forward."""
        for place in reversed(range(1, len(self._ended))):
            if self._ended[place] is unit:
                return [self._ended[place - 1]]
        return []

    def _run(self) -> None:
        if not self._running:
            self._running = True
            queue_callback(self._finish)

    def _hook(self, whole: Any) -> None:
        """Note that a gradient is complete; send those of its unit when it is the last one."""
        self._run()
        unit: Unit = whole.unit
        place = unit.numbers[id(whole)]
        if unit.launched:
            raise GradError(
                f"backward({unit.spread.names[place]}): its gradient came again after it was sent, "
                "as of a parameter in several checkpoints; use checkpoint(use_reentrant=False)"
            )
        if whole._grad.requires_grad:
            raise GradError(
                f"backward({unit.spread.names[place]}): create_graph=True makes gradients with a "
                "history, which are not reduced across ranks; use autograd.grad() on a model "
                "without fully_shard"
            )
        unit.ready.add(place)
        if len(unit.ready) == len(unit.trained):
            if not self.reductions:
                self._came.append(self.units.index(unit))
            if self.enabled:
                self._launch_full()
            if unit.drops_in_backward:
                unit.drop()
        if unit.progress is not None:
            unit.progress.poll()

    def _launch_full(self) -> None:
        """Launch the units that are complete, in their order."""
        for unit in self._order:
            if unit.launched:
                continue
            if len(unit.ready) < len(unit.trained):
                return
            self._launch(unit)

    def _launch(self, unit: Unit) -> None:
        """Send the gradients of a unit to their owners."""
        unit.launched = True
        if not unit.trained:
            return
        region = unit.region
        if region.user is not None:
            began = time.perf_counter()
            self._wait(region.user)
            self.waited_s += time.perf_counter() - began
        region.user = unit
        for place in unit.pack():
            self._used[self._first[id(unit)] + place] = True
        if self.reduction == "mean" and self.group.size * self.shards > 1:
            if self.count:
                unit.wire *= self.count
            else:
                unit.wire[...] = 0  # the mean of no samples is not a number
        if unit.progress is None:
            unit.total.push(Subtree(self.shard, 1), unit.wire.copy())
            region.user = None
            if self._last_turn:
                unit.collect()
        else:
            self._send(unit)

    def _send(self, unit: Unit) -> None:
        """Hand the gradients of a unit to the communication thread."""
        assert unit.progress is not None
        size, first, filled = self.group.size, self._turn * self.group.size, time.perf_counter()
        parts = [[Subtree(first + r, 1)] if first + r < self.shards else [] for r in range(size)]
        call = f"reduce_scatter(gradients of {unit.describe()})"

        def start() -> Work:
            began = time.perf_counter()
            x = Exchange(
                self.channel, [unit.wire], parts, np.add, unit.number * PHASES, call,
                common=unit.common,
            )  # fmt: skip
            timed = Timed(Reduction(x, scatter_pieces(x, unit.spread.owned, unit.total)), began)
            unit.sent = filled, timed
            return timed

        unit.reduction = unit.progress.submit(start)

    def _wait(self, unit: Unit) -> None:
        if unit.reduction is None:
            return
        with watched(
            self.channel, f"reduce_scatter(gradients of {unit.describe()})", time.monotonic()
        ):
            unit.reduction.wait()
        unit.reduction, unit.region.user = None, None
        if self._last_turn:
            unit.collect()
        if self.timeline is not None:
            filled, work = unit.sent
            number = self.units.index(unit)
            self.timeline.append(Span(number, unit.wire_bytes, filled, work.started, work.done))

    # ------------------------------------------------------------------ the end of backward
    def _finish(self) -> None:
        """Send what is left, drop all units, and with the last turn, make means."""
        if self.enabled:
            for unit in self._order:
                if not unit.launched:
                    self._launch(unit)
        for unit in self.units:
            if unit.drops_after_backward:
                unit.drop()
        if self.enabled:
            self._end_turn()
        else:
            self._kept = self.count
        self._reset()

    def _end_turn(self) -> None:
        began = time.perf_counter()
        for unit in self.units:
            self._wait(unit)
        if self.shard < self.shards:
            self._total += self.count
        self._count_anew()
        last, self._turn = self._last_turn, self._turn + 1
        if not last:
            return
        self._agree()
        self.waited_s += time.perf_counter() - began
        self._divide()
        if not self.reductions and self.group.size > 1:
            self._learn_order()
        self.reductions += 1
        self._next_step()

    def _agree(self) -> None:
        """Add up counts and flags of all ranks."""
        self._tail.write(self._end, self._used, self._total, self.reductions, True)
        if self.group.size == 1:
            return
        channel, tag = self.channel, self._number * PHASES
        alone = [[Subtree(rank, 1)] for rank in range(channel.size)]
        progress = self.units[0].progress
        assert progress is not None
        job = progress.submit(
            lambda: Reduction(
                Exchange(channel, [self._end], alone, np.add, tag, "all_reduce(sample counts)")
            )
        )
        job.wait()

    def _divide(self) -> None:
        """Turn sums into means, of the parameters that any rank used."""
        used, total, together = self._tail.read(self._end)
        if not together:
            check_same(self.group, "reductions before this backward", str(self.reductions))
        divisor: int | None = total
        if self.reduction == "mean" and self.group.size * self.shards == 1:
            divisor = None
        elif total < 1:
            raise GradError(
                "backward(): the global sample count is 0, so there is no mean; call the module "
                "that fully_shard returned, or its add_count(samples) before backward"
            )
        for unit in self.units:
            first = self._first[id(unit)]
            if unit.trained:
                unit.settle(divisor, used[first : first + len(unit.wholes)])

    def _learn_order(self) -> None:
        """Launch from now on in the order in which gradients were complete on rank 0."""
        missing = [i for i in reversed(range(len(self.units))) if i not in self._came]
        came = list(dict.fromkeys(self._came))
        order = self.group.channel("control").broadcast_object(came + missing)
        self._order = [self.units[i] for i in order]
        self._attach()

    def _count_anew(self) -> None:
        self.count, self.explicit_count, self._kept = 0, False, 0

    def _reset(self) -> None:
        """Forget the backward that is running."""
        self._running = False
        for unit in self.units:
            unit.ready.clear()
            unit.launched = False

    def _next_step(self) -> None:
        """Begin with the first turn."""
        self._turn = 0
        self._total = 0  # samples of the turns before
        self._used = [False] * self._tail.params
        for unit in self.units:
            unit.total.stack.clear()
            unit.collected = False

    # ------------------------------------------------------------------ shards
    @property
    def shard(self) -> int:
        """The shard of this turn; V or more where there is none for this rank."""
        return self._turn * self.group.size + self.group.rank

    @property
    def _last_turn(self) -> bool:
        return (self._turn + 1) * self.group.size >= self.shards

    @property
    def local_shards(self) -> list[int]:
        """The shard of each turn; a rank for which there is none repeats its last one."""
        rank, size = self.group.rank, self.group.size
        turns = -(-self.shards // size)
        mine = [turn * size + rank for turn in range(turns)]
        return [shard if shard < self.shards else shard - size for shard in mine]

    def add_count(self, samples: int) -> None:
        """Count ``samples`` towards this turn, instead of what forward gets."""
        if samples < 0:
            raise ArgumentError(f"add_count({samples}): a count of samples is 0 or more")
        self.count = samples + (self.count if self.explicit_count else 0)
        self.explicit_count = True


def _check(group: ProcessGroup, reduction: str, shards: int, units: Sequence[Unit]) -> None:
    if reduction not in REDUCTIONS:
        raise ArgumentError(f"fully_shard(reduction={reduction!r}): takes one of mean, sum")
    if shards < group.size:
        raise ArgumentError(
            f"fully_shard(shards={shards}): a group of {group.size} ranks needs at least as many "
            "shards as ranks; use more, or fewer ranks"
        )
    for unit in units:
        other = unit.spread.group
        if other is not group and (other.size > 1 or group.size > 1):
            raise ArgumentError(
                f"fully_shard(mesh): {unit.describe()} is on {other!r}, and the outermost module "
                f"on {group!r}; give all the same"
            )
