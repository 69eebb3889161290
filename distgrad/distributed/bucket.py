"""Buckets: flat arrays whose slices are the ``grad`` of parameters, and the plan that fills them.

Note [Two flat arrays]
    A bucket holds the gradients of its parameters in one array and their values in another, in the
    same order.  So an all-reduce, the first broadcast and an optimizer step each work on one long
    array, and nothing is packed or unpacked.

Note [The tail]
    The last bucket ends in a few more elements: one flag per parameter that has a gradient, and
    the digits of the sample count and of the number of the reduction, in a base so small that sums
    over all ranks are exact in the bucket's dtype.  Agreement on them costs no collective.

Note [Owners]
    Where each rank updates a part of the parameters, rank r has the r-th of P about equal slices of
    each flat array. A slice begins at a multiple of 64 elements of a parameter, or at its end, so
    that sums over such blocks, as of a gradient's norm, are of one rank each, and have the same
    bits for every number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace, device, device_of
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.nccl import AnyLink, Turn
from distgrad.distributed.reduction import Common
from distgrad.distributed.shared import ALIGNMENT, Slab
from distgrad.distributed.staging import Passage, Stage, Staged, cupy, pin, pinned_zeros
from distgrad.distributed.tree import Subtree, Sum, Tree
from distgrad.distributed.work import HostArray, Work
from distgrad.tensor import Tensor, wrap

FIRST_CAP_MB = 1.0  # the first bucket is ready early, so it should be small
CAP_MB = 25.0
OWNED_BLOCK = 64  # elements
_COUNT_BITS = 53


class Flat:
    """Parameters of one dtype and device, whose values lie in one array.

    ``owned`` says for each rank which elements of it that rank updates where ranks share the work
    of the optimizer; see Note [Owners].
    """

    __slots__ = ("index", "names", "owned", "params", "spans", "values")

    def __init__(
        self, index: int, params: Sequence[Tensor], names: Sequence[str], ranks: int
    ) -> None:
        """Move the values of ``params`` into one array.

        Args:
            index: number among the flat arrays, alike on all ranks.
            params: leaves of one dtype on one device.
            names: their names, for messages.
            ranks: how many own a part.
        """
        self.index, self.params, self.names = index, list(params), list(names)
        starts = np.cumsum([0, *(p.array.size for p in params)]).tolist()
        self.spans = [slice(a, b) for a, b in pairwise(starts)]
        self.owned = owned_slices(self.spans, ranks)
        array = params[0].array
        self.values = array_namespace(array).empty(starts[-1], array.dtype)
        for param, span in zip(params, self.spans, strict=True):
            value = self.values[span].reshape(param.array.shape)
            value[...] = param.array
            param.array = value

    def overlap(self, place: int, owned: slice) -> slice | None:
        """Return which elements of parameter ``place`` lie in ``owned``, None for none.

        An empty parameter is its first owner's.
        """
        span = self.spans[place]
        start, stop = max(span.start, owned.start), min(span.stop, owned.stop)
        if start < stop:
            return slice(start, stop)
        empty = span.start == span.stop and owned is self.owned[0]
        return span if empty else None

    def describe(self) -> str:
        """Return the array for messages: number, size, first and last parameter."""
        return (
            f"bucket {self.index} ({self.values.nbytes / 2**20:.2f} MiB {self.values.dtype}, "
            f"{self.names[0]} … {self.names[-1]})"
        )


class Ways:
    """How gradients on GPUs get to the other ranks.

    Args:
        group: the ranks.
        link: NCCL or windows between them; None goes by way of the host.
        slab: common memory of the ranks of a host, which copies go to and from.
        tree: which shards the ranks have.
    """

    def __init__(
        self, group: ProcessGroup, link: AnyLink | None, slab: Slab | None, tree: Tree
    ) -> None:
        self.group, self.link, self._slab = group, link, slab
        self._parts = [part[0] for part in tree.parts]
        self._stages: dict[device, Stage] = {}

    def turn(self, place: device) -> Turn | None:
        """Return a turn at the link for arrays on a GPU, if it connects that one."""
        if self.link is None or self.link.index != place.index:
            return None
        return Turn(self.link, self._parts)

    def passage(self, place: device) -> Passage:
        """Return the way of arrays on a GPU to the host, whose memory is pinned from then on."""
        if place not in self._stages:
            if self._slab is not None and not self._stages:
                pin(self._slab)
            self._stages[place] = Stage(place.index or 0)
        return Passage(self._stages[place])

    @property
    def used(self) -> bool:
        """Whether arrays go to the host."""
        return bool(self._stages)

    def settle(self) -> None:
        """Wait for all copies: their memory is about to be used anew."""
        for stage in self._stages.values():
            stage.settle()


class Summed(Flat):
    """A flat array whose gradients are summed, over shards of the batch and over ranks.

    ``flat`` holds the gradients where the parameters are; ``wire`` is what is added over the ranks:
    the same array, or for a GPU one of the host, where it is needed. ``rooms`` and ``sums`` hold
    the sums of shards that wait for their neighbours, beside ``flat`` and ``wire``.
    """

    __slots__ = (
        "_group", "_passage", "common", "filled_at", "flat", "job", "launched", "ready", "rooms",
        "sums", "tail", "total", "turn", "wire", "work",
    )  # fmt: skip
    flat: Any
    rooms: list[Any]
    wire: HostArray
    sums: list[HostArray]
    common: Common | None

    def __init__(
        self, index: int, params: Sequence[Tensor], names: Sequence[str], ranks: int
    ) -> None:
        """Move the values of ``params`` into one array; see `Flat`."""
        super().__init__(index, params, names, ranks)
        self.tail = 0  # elements of ``wire`` beyond the gradients
        self.total = Sum(array_namespace(self.values).exact_add)  # of the shards before this one
        self.turn: Turn | None = None  # at NCCL, if that adds up
        self._passage: Passage | None = None  # to the host and back, if that does
        self.job: Any = None  # at the communication thread
        self.work: Any = None  # the transfer itself, once started
        self.filled_at = 0.0
        self.launched = False  # in this backward
        self.ready: set[int] = set()

    @property
    def dtype(self) -> Any:
        """The dtype of the gradients."""
        return self.values.dtype

    @property
    def on_host(self) -> bool:
        """Whether the parameters are."""
        return isinstance(self.values, np.ndarray)

    @property
    def full(self) -> bool:
        """True when every parameter has reported its gradient."""
        return len(self.ready) == len(self.params)

    @property
    def gradients(self) -> Any:
        """The flat gradients of this rank, without the tail."""
        return self.flat[: self.values.size]

    @property
    def under_way(self) -> bool:
        """Whether a sum over the ranks has begun that nobody has waited for."""
        return self.job is not None or (self.turn is not None and self.turn.launched)

    def connect(self, ways: Ways, ranks: int, waiting: int) -> bool:
        """Take memory of a GPU for sums of shards; return whether wire and sums are needed too.

        Args:
            ways: to the other ranks.
            ranks: how many there are.
            waiting: how many sums of shards may wait.
        """
        xp, place = array_namespace(self.values), device_of(self.values)
        self.rooms = [xp.empty(self.values.size, self.dtype) for _ in range(waiting)]
        self._group, self.turn = ways.group, ways.turn(place)
        if ranks == 1 or self.turn is not None:
            self.wire, self.sums, self.common = np.zeros(self.tail, self.dtype), [], None
            return False
        self._passage = ways.passage(place)
        return True

    def keep(self, part: Subtree) -> None:
        """Add the gradients of a shard to those before it; there is room for the next one's."""
        flat, stack = self.flat, self.total.stack
        self.total.push(part, flat)
        if stack[-1][1] is flat:
            place = self.rooms[len(stack) - 1]
            array_namespace(place).copyto(place, flat)
            stack[-1] = (stack[-1][0], place)

    def settle(self, part: Subtree) -> list[Any]:
        """Add the gradients of the last shard and return what this rank brings, ``flat`` last."""
        self.total.push_into(part, self.flat)
        arrays = [array for _, array in self.total.stack]
        self.total.stack.clear()
        return arrays

    def reduce_alone(self, part: Subtree) -> None:
        """Add all shards, where one rank has them all."""
        *others, flat = self.settle(part)
        for array in reversed(others):
            self.total.combine(array, flat, out=flat)

    def leave(self, arrays: list[Any]) -> list[HostArray]:
        """Start what brings ``arrays`` to other ranks or to the host; return what is added there.

        That is nothing but the tail where NCCL adds.
        """
        if self.turn is not None:
            self.turn.take()
            self._cross(self.turn)
            return [self.wire] if self.tail else []
        if self._passage is None:
            return arrays
        captures.refuse(
            f"all_reduce({self.describe()})",
            "these ranks bring their gradients to each other by way of the host",
            'give each rank a GPU of its own, and take determinism "run" or "off"',
        )
        hosts = [*self.sums[: len(arrays) - 1], self.wire]
        for host in hosts[:-1]:
            host[self.values.size :] = 0
        self._passage.fetch(list(zip(arrays, hosts, strict=True)))
        return hosts

    def behind(self, begin: Callable[[], Work]) -> Callable[[], Work]:
        """Return what calls ``begin`` when that is on the host which `leave` has sent there."""
        passage = self._passage
        if passage is None:
            return begin
        call, mine = f"sum of {self.describe()}", self._wanted
        brings = [(self.flat[mine], self.wire[mine])]
        return lambda: Staged(passage, begin, brings, self._group, call)

    def stage_in(self) -> None:
        """Let the stream that computes wait for the sums."""
        if self.turn is not None:
            self.turn.arrive()
        elif self._passage is not None:
            self._passage.arrive()

    @property
    def _wanted(self) -> slice:
        """What this rank needs of the sum."""
        return slice(0, self.values.size)

    def _cross(self, turn: Turn) -> None:
        """Let NCCL add."""
        turn.run("all_reduce", f"all_reduce({self.describe()})", self.flat, self.flat, "sum")


class Bucket(Summed):
    """Parameters of one dtype and device; the slices of ``flat`` are their gradients.

    ``wire`` ends in the tail, which is all there is of it where NCCL adds, or nobody else is there.
    """

    __slots__ = ()

    def __init__(
        self,
        index: int,
        params: Sequence[Tensor],
        names: Sequence[str],
        memory: Memory,
        tail: int = 0,
    ) -> None:
        """Move the values of ``params`` into one array and give each a slice for its gradient.

        Args:
            index: number of the bucket, alike on all ranks.
            params: leaves of one dtype on one device.
            names: their names, for messages.
            memory: where ``wire`` and ``sums`` come from.
            tail: elements beyond the gradients.
        """
        super().__init__(index, params, names, memory.tree.ranks)
        self.tail = tail
        if not self.on_host:
            self.flat = array_namespace(self.values).zeros(self.values.size, self.dtype)
        tree = memory.tree
        if self.on_host or self.connect(memory.ways, tree.ranks, tree.waiting):
            self.wire, self.sums, self.common = memory.take(self.values.size + tail, self.dtype)
        if self.on_host:
            self.flat, self.rooms = self.wire, self.sums
        for param, span in zip(params, self.spans, strict=True):
            view = wrap(self.flat[span].reshape(param.array.shape))
            if param.grad is not None:
                view.array[...] = param.grad.array
                param.grad = view
            param._grad_buffer = view

    @property
    def end(self) -> HostArray:
        """The tail, on the host."""
        return self.wire[self.wire.size - self.tail :]


class Memory:
    """Where buckets get their arrays: common memory of the ranks of a host, or their own.

    Args:
        group: the ranks.
        tree: which shards they have.
        nbytes: of all that will be taken, roundings aside.
        arrays: how many times `take` will be called.
        link: NCCL, for gradients that need no memory here.
    """

    def __init__(
        self, group: ProcessGroup, tree: Tree, nbytes: int, arrays: int, link: AnyLink | None = None
    ) -> None:
        self.tree, self.hosts = tree, group.hosts
        room = (1 + tree.waiting) * (nbytes + arrays * ALIGNMENT)
        self.slab = group.shared_memory(room, 2 * arrays)  # each plan has signals of its own
        self.here = next(ranks for ranks in group.hosts if group.rank in ranks)
        self.ways = Ways(group, link, self.slab, tree)

    def reuse(self) -> None:
        """Let the next arrays lie where the first ones do."""
        self.ways.settle()  # or the next arrays would be zeroed while they are copied
        if self.slab is not None:
            self.slab.reuse()

    def take(self, count: int, dtype: Any) -> tuple[HostArray, list[HostArray], Common | None]:
        """Return an array for the wire, arrays for sums, and both as others see them."""
        if self.slab is None:
            make = pinned_zeros if self.ways.used else np.zeros
            sums = [make(count, dtype) for _ in range(self.tree.waiting)]
            return make(count, dtype), sums, None
        waiting = [self.slab.take(count, dtype) for _ in range(self.tree.waiting)]
        wire = self.slab.take(count, dtype)
        brought = [
            [sums[place] for sums in waiting[: len(self.tree.parts[rank]) - 1]] + [wire[place]]
            for place, rank in enumerate(self.here)
        ]
        mine = self.slab.place
        return wire[mine], [sums[mine] for sums in waiting], Common(self.slab, self.hosts, brought)


def let_go(flats: Sequence[Flat]) -> None:
    """Wait until GPUs are through with arrays that nobody will use any more.

    Their memory belongs to the stream on which it was taken, mostly the default one, and is given
    out again there, though another one may compute with it now.
    """
    for place in {device_of(flat.values) for flat in flats}:
        if place.type == "cuda":
            cupy().cuda.get_current_stream(place.index or 0).synchronize()


def plan_buckets(
    named: Sequence[tuple[str, Tensor]],
    cap_mb: float | None = None,
    order: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return for each bucket the positions of its parameters in ``named``.

    They are taken in ``order``, by default from the end. A bucket closes when it has reached
    ``cap_mb`` (default 25 MiB, and 1 MiB for the first).
    """
    open_: dict[tuple[str, str], list[int]] = {}
    filled: dict[tuple[str, str], int] = {}
    buckets: list[list[int]] = []
    for place in reversed(range(len(named))) if order is None else order:
        array = named[place][1].array
        key = (str(array.dtype), str(device_of(array)))
        open_.setdefault(key, []).append(place)
        filled[key] = filled.get(key, 0) + array.nbytes
        cap = (FIRST_CAP_MB if not buckets else CAP_MB) if cap_mb is None else cap_mb
        if filled[key] >= cap * 2**20:
            buckets.append(open_.pop(key))
            del filled[key]
    return buckets + list(open_.values())


def owned_slices(spans: Sequence[slice], ranks: int) -> list[slice]:
    """Return for each rank the slice that it owns of an array cut into ``spans``.

    Example:
        >>> owned_slices([slice(0, 300), slice(300, 310)], 2)
        [slice(0, 128, None), slice(128, 310, None)]
    """
    size, cuts, place = spans[-1].stop, [0], 0
    for rank in range(1, ranks):
        ideal = rank * size // ranks
        while spans[place].stop <= ideal and place < len(spans) - 1:
            place += 1
        span = spans[place]
        blocks = (ideal - span.start + OWNED_BLOCK // 2) // OWNED_BLOCK
        cuts.append(min(span.start + blocks * OWNED_BLOCK, span.stop))
    return [slice(a, b) for a, b in pairwise([*cuts, size])]


class Tail:
    """Numbers that travel at the end of the last bucket, and are summed with it.

    Args:
        dtype: of the bucket.
        ranks: how many numbers a sum adds.
        params: how many flags there are.
    """

    def __init__(self, dtype: Any, ranks: int, params: int) -> None:
        self.ranks, self.params = ranks, params
        # Sums of as many digits of this base are exact in the dtype.
        exact = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}.get(str(dtype), 2**53)
        self.base = max(2, exact // ranks)
        self.digits = [_digits(self.base, bits) for bits in (_COUNT_BITS, 16, 32)]
        self.length = params + sum(self.digits)

    def write(
        self, tail: Any, used: Sequence[bool], count: int, number: int, last_shard: bool
    ) -> None:
        """Write flags, the sample count, and the number of this reduction with its square.

        Nothing but zeros before the last shard: one tail for each rank.
        """
        if not last_shard:
            tail[...] = 0
            return
        number %= 2**16
        values = list(map(float, used))
        for value, digits in zip((count, number, number**2), self.digits, strict=True):
            rest = value
            for _ in range(digits):
                rest, digit = divmod(rest, self.base)
                values.append(float(digit))
        tail[...] = array_namespace(tail).asarray(values, dtype=tail.dtype)

    def read(self, tail: Any) -> tuple[list[bool], int, bool]:
        """Return which parameters any rank used, the count, and whether all numbers are alike."""
        values = tail.tolist()
        numbers, at = [], self.params
        for digits in self.digits:
            part = values[at : at + digits]
            numbers.append(sum(int(digit) * self.base**i for i, digit in enumerate(part)))
            at += digits
        count, first, squares = numbers
        return [v > 0 for v in values[: self.params]], count, squares * self.ranks == first**2


def _digits(base: int, bits: int) -> int:
    digits, reach = 0, 1
    while reach < 2**bits:
        reach *= base
        digits += 1
    return digits
