"""All-reduce made of messages and common memory, added in the order of `tree`.

Each algorithm is a generator: it starts messages, yields them, and goes on when all are complete.
`Reduction` drives it, a push at a time, so that one thread keeps many of them moving. Messages of
different reductions are told apart by their tags, so ranks may start them in any order.

Note [Which algorithm]
    P ranks, n bytes each. All give the same bits.

    common     ranks of one host, their arrays in memory that all of them see: each adds one slice
               of all arrays and writes the sum back to all. With several hosts, slices are added
               across hosts in between, by one of the others.
    everyone   one round: each rank sends all it has to all others and adds for itself. Best where
               the time of a message counts more than its bytes.
    direct     two rounds: rank r gets slice r from all others, adds, and sends the sum to all.
               2 (P-1)/P n bytes for each rank where it brings one sum, which is the least possible.
    halving    2 log2 P rounds: neighbours exchange halves, then quarters, and back. The same bytes
               in fewer messages than ``direct``; for a power of two of ranks.
    grid       ``direct`` in blocks of about sqrt P neighbours, then between blocks, and back: about
               4 sqrt P messages and the same bytes, for other numbers of many ranks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.shared import Slab
from distgrad.distributed.tree import Subtree, Sum, subtrees, sum_in_order
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray, Work

Rounds: TypeAlias = Generator[list[Work], None, None]
Algorithm: TypeAlias = Callable[["Exchange"], Rounds]

SMALL_BYTES = 1 << 14  # up to here a message costs more than its bytes
MANY_RANKS = 16  # from here on ``halving`` saves more messages than it adds rounds
PHASES = 64  # tags of one reduction
_BACK = PHASES - 1
_CHUNK_BYTES = 1 << 18  # added while it is in the cache
_advance = np.errstate(all="ignore")(next)  # inf and nan are results here


class Common:
    """The arrays of one reduction, and of its repetitions, in common memory.

    Args:
        slab: the memory.
        hosts: the ranks of each host; consecutive, and as many on each.
        arrays: for each rank of this host what it brings, in the order of its shards.
    """

    __slots__ = ("arrays", "hosts", "repetition", "slab", "slot")

    def __init__(
        self, slab: Slab, hosts: Sequence[Sequence[int]], arrays: list[list[HostArray]]
    ) -> None:
        self.slab, self.hosts, self.arrays = slab, hosts, arrays
        self.slot = slab.take_slot()
        self.repetition = 0


class Exchange:
    """One reduction as its algorithm sees it.

    Args:
        group: the ranks that exchange messages.
        arrays: the sums this rank brings, flat and of one length, in the order of their shards; the
            result is left in the last one. The others are overwritten.
        parts: which subtrees each participant brings.
        combine: the ufunc that adds.
        tag: of the first message; the next `PHASES` belong to it.
        call: what to call it in messages to the user.
        ranks: the participants; default is all.
        common: the same arrays in common memory.
    """

    __slots__ = (
        "arrays",
        "call",
        "combine",
        "common",
        "group",
        "me",
        "out",
        "parts",
        "ranks",
        "tag",
    )

    def __init__(
        self,
        group: ProcessGroup,
        arrays: Sequence[HostArray],
        parts: Sequence[Sequence[Subtree]],
        combine: Any,
        tag: int,
        call: str,
        ranks: Sequence[int] | None = None,
        common: Common | None = None,
    ) -> None:
        self.group, self.arrays, self.parts, self.common = group, arrays, parts, common
        self.combine, self.tag, self.call = combine, tag, call
        self.ranks = range(group.size) if ranks is None else ranks
        self.me = self.ranks.index(group.rank)
        self.out = arrays[-1]

    def send(self, array: HostArray, place: int, phase: int) -> Work:
        """Start to send to a participant."""
        return self.group.start_send(array, self.ranks[place], self.tag + phase, self.call)

    def recv(self, array: HostArray, place: int, phase: int) -> Work:
        """Start to receive from a participant."""
        return self.group.start_recv(array, self.ranks[place], self.tag + phase, self.call)

    @property
    def others(self) -> list[int]:
        """The other participants, the next one first, so that not all send to the same at once."""
        size = len(self.ranks)
        return [(self.me + step) % size for step in range(1, size)]

    def gather(self, length: int, phase: int = 0) -> tuple[list[list[HostArray]], list[Work]]:
        """Start to receive ``length`` elements of all that the others bring.

        Returns the arrays of each participant, where this one's list is empty, and the works.
        """
        dtype = self.out.dtype
        got = [[np.empty(length, dtype) for _ in part] for part in self.parts]
        got[self.me] = []
        works = [self.recv(a, p, phase + k) for p in self.others for k, a in enumerate(got[p])]
        return got, works

    def add(self, pieces: Sequence[Sequence[HostArray]]) -> HostArray:
        """Return the sum of what the participants brought; overwrites some of it."""
        order = [part for parts in self.parts for part in parts]
        flat = [array for arrays in pieces for array in arrays]
        total: HostArray = sum_in_order(self.combine, order, flat)
        return total


def algorithm_for(x: Exchange) -> Algorithm:
    """Return the algorithm for a reduction; see Note [Which algorithm]."""
    if x.common is not None:
        return common
    size = len(x.ranks)
    if x.out.nbytes * len(x.parts[0]) <= SMALL_BYTES and size <= MANY_RANKS:
        return everyone
    if size <= MANY_RANKS:
        return direct
    if size & (size - 1) == 0 and all(len(part) == 1 for part in x.parts):
        return halving
    return grid if block_width(size) > 1 else direct


def everyone(x: Exchange) -> Rounds:
    """Send everything to everyone, and add."""
    got, works = x.gather(x.out.size)
    works += [x.send(a, p, k) for p in x.others for k, a in enumerate(x.arrays)]
    yield works
    got[x.me] = list(x.arrays)
    total = x.add(got)
    if total is not x.out:
        np.copyto(x.out, total)


def direct(x: Exchange) -> Rounds:
    """Add one slice for all, and send the sum to all."""
    slices = slices_of(x.out.size, len(x.ranks))
    mine = slices[x.me]
    got, works = x.gather(mine.stop - mine.start)
    works += [x.send(a[slices[p]], p, k) for p in x.others for k, a in enumerate(x.arrays)]
    yield works
    got[x.me] = [a[mine] for a in x.arrays]
    total = x.add(got)
    result = x.out[mine]
    if total is not got[x.me][-1]:
        np.copyto(result, total)
    works = [x.recv(x.out[slices[p]], p, _BACK) for p in x.others]
    works += [x.send(result, p, _BACK) for p in x.others]
    yield works


def halving(x: Exchange) -> Rounds:
    """Exchange halves with the nearest neighbour, quarters with the next, and back."""
    out = x.out
    scratch = np.empty((out.size + 1) // 2, out.dtype)
    low, high, distance, phase = 0, out.size, 1, 0
    back: list[tuple[slice, slice, int]] = []
    while distance < len(x.ranks):
        middle, peer = (low + high) // 2, x.me ^ distance
        halves = slice(low, middle), slice(middle, high)
        keep, give = halves[::-1] if x.me & distance else halves
        theirs = scratch[: keep.stop - keep.start]
        yield [x.recv(theirs, peer, phase), x.send(out[give], peer, phase)]
        x.combine(out[keep], theirs, out=out[keep])
        back.append((keep, give, peer))
        low, high = keep.start, keep.stop
        distance, phase = 2 * distance, phase + 1
    for keep, give, peer in reversed(back):
        yield [x.recv(out[give], peer, phase), x.send(out[keep], peer, phase)]
        phase += 1


def grid(x: Exchange) -> Rounds:
    """Add one slice for the block, then for all, and send the sum to the block."""
    width = block_width(len(x.ranks))
    blocks = [range(first, first + width) for first in range(0, len(x.ranks), width)]
    block = blocks[x.me // width]
    inner = Exchange(
        x.group, x.arrays, [x.parts[p] for p in block], x.combine, x.tag, x.call,
        [x.ranks[p] for p in block],
    )  # fmt: skip
    slices = slices_of(x.out.size, width)
    mine = slices[inner.me]
    got, works = inner.gather(mine.stop - mine.start)
    works += [inner.send(a[slices[p]], p, k) for p in inner.others for k, a in enumerate(x.arrays)]
    yield works
    got[inner.me] = [a[mine] for a in x.arrays]
    total = yield from _across(x, blocks, inner.parts, got, inner.me)
    result = x.out[mine]
    if total is not got[inner.me][-1]:
        np.copyto(result, total)
    works = [inner.recv(x.out[slices[p]], p, _BACK) for p in inner.others]
    works += [inner.send(result, p, _BACK) for p in inner.others]
    yield works


def block_width(ranks: int) -> int:
    """Return how many ranks are a block of `grid`: the greatest divisor up to the square root.

    Example:
        >>> block_width(10_000), block_width(24), block_width(23)
        (100, 4, 1)
    """
    return next(w for w in range(math.isqrt(ranks), 0, -1) if ranks % w == 0)


def common(x: Exchange) -> Rounds:
    """Add a slice of what all ranks of the host have in common memory, and write it to all."""
    c = x.common
    assert c is not None
    c.repetition += 1
    slab, slot, now = c.slab, c.slot, 2 * c.repetition
    slab.say(slot, now - 1)
    yield [slab.heard(slot, now - 1, x.call)]
    mine = slices_of(x.out.size, len(c.arrays))[slab.place]
    if len(c.hosts) == 1:
        for chunk in chunks_of(mine, x.out.itemsize):
            pieces = [[a[chunk] for a in arrays] for arrays in c.arrays]
            _write_to_all(pieces, x.add(pieces))
    else:
        here = next(ranks for ranks in c.hosts if x.group.rank in ranks)
        pieces = [[a[mine] for a in arrays] for arrays in c.arrays]
        total = yield from _across(x, c.hosts, [x.parts[r] for r in here], pieces, slab.place)
        _write_to_all(pieces, total)
    slab.say(slot, now)
    yield [slab.heard(slot, now, x.call)]


def _across(
    x: Exchange,
    blocks: Sequence[Sequence[int]],
    parts: Sequence[Sequence[Subtree]],
    pieces: Sequence[Sequence[HostArray]],
    place: int,
) -> Generator[list[Work], None, HostArray]:
    """Add a slice of this block, then with those in the same place of the other blocks.

    Args:
        x: the reduction.
        blocks: its participants next to each other, as many in each block.
        parts: what each one of this block brings.
        pieces: the slice of it.
        place: of this rank in its block.
    """
    local = Sum(x.combine)
    for brought, arrays in zip(parts, pieces, strict=True):
        for part, array in zip(brought, arrays, strict=True):
            local.push(part, array)
    across = Exchange(
        x.group, [array for _, array in local.stack], parts_of_blocks(x, blocks),
        x.combine, x.tag, x.call, [x.ranks[block[place]] for block in blocks],
    )  # fmt: skip
    yield from algorithm_for(across)(across)
    return across.out


def parts_of_hosts(x: Exchange, c: Common) -> list[list[Subtree]]:
    """Return the subtrees that each host brings."""
    return parts_of_blocks(x, c.hosts)


def parts_of_blocks(x: Exchange, blocks: Sequence[Sequence[int]]) -> list[list[Subtree]]:
    """Return the subtrees that neighbours bring together."""
    ends = [(x.parts[block[0]][0], x.parts[block[-1]][-1]) for block in blocks]
    return [subtrees(first.start, last.start + last.length) for first, last in ends]


def _write_to_all(pieces: Sequence[Sequence[HostArray]], total: HostArray) -> None:
    """Copy the sum, which is one of the pieces, to the last piece of every rank."""
    for arrays in pieces:
        if arrays[-1] is not total:
            arrays[-1][...] = total


def slices_of(count: int, ranks: int) -> list[slice]:
    """Return ``ranks`` slices that make up ``count`` elements."""
    ends = [r * count // ranks for r in range(ranks + 1)]
    return [slice(a, b) for a, b in pairwise(ends)]


def chunks_of(span: slice, itemsize: int) -> Iterator[slice]:
    """Yield the parts of ``span`` that are added at a time."""
    step = _CHUNK_BYTES // itemsize
    for begin in range(span.start, span.stop, step):
        yield slice(begin, min(begin + step, span.stop))


class Reduction(Work):
    """An all-reduce under way.

    Args:
        exchange: the reduction.
        rounds: the algorithm on it, not started; default is the one that fits.
    """

    __slots__ = ("_open", "_over", "_rounds", "exchange")

    def __init__(self, exchange: Exchange, rounds: Rounds | None = None) -> None:
        group = exchange.group
        group.sequence += 1
        super().__init__(exchange.call, group.sequence)
        self.exchange = exchange
        self._rounds = algorithm_for(exchange)(exchange) if rounds is None else rounds
        self._open: deque[Work] = deque()
        self._over = False
        self.test()

    def is_completed(self) -> bool:
        """Return whether a test has seen the last message complete."""
        return self._over

    def test(self) -> bool:
        """Return whether all is added; goes on as far as the messages that are complete allow."""
        while not self._over:
            while self._open:
                work = self._open.popleft()
                if not work.test():  # one test moves the messages of all
                    self._open.append(work)
                    return False
            batch = _advance(self._rounds, None)
            self._over = batch is None
            self._open.extend(batch or ())
        return True

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when all is added."""
        group = self.exchange.group
        wait_for(self, group, group.timeout_s if timeout_s is None else timeout_s)
