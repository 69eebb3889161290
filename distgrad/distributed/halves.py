"""The halves of an all-reduce: sums that only their owner gets, and parts that all get.

Algorithms as in `reduction`, with the same order of additions, on slices that ranks own. Together
they move what one all-reduce does; between them the owner of a slice works on it.

Note [Which algorithm, owners]
    scatter         every rank sends to every other what that one owns, and adds.
    scatter_common  in memory that the ranks of a host see, each adds what it owns; with several
                    hosts, sums of a host go to the owners on the others.
    scatter_pieces  what each rank brings is added to what the owner has from before, one subtree
                    after the other; read from common memory where there is such.
    gather          every rank sends what it owns to every other.
    doubling        neighbours exchange what they own, then pairs of them, and so on: log2 P
                    messages instead of P-1; for a power of two of many ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distgrad.distributed.reduction import (
    MANY_RANKS,
    PHASES,
    Common,
    Exchange,
    Rounds,
    chunks_of,
    parts_of_hosts,
)
from distgrad.distributed.tree import Sum

_PARTS = PHASES - 2  # the tag of what is gathered


def scatter_sums(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Leave the sum of what all ranks bring in this rank's slice of ``x.out``."""
    return scatter(x, owned) if x.common is None else scatter_common(x, owned)


def scatter(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Send to each owner its slice of all that this rank brings, and add."""
    mine = owned[x.me]
    got, works = x.gather(mine.stop - mine.start)
    works += [x.send(a[owned[p]], p, k) for p in x.others for k, a in enumerate(x.arrays)]
    yield works
    got[x.me] = [a[mine] for a in x.arrays]
    total = x.add(got)
    if total is not got[x.me][-1]:
        np.copyto(x.out[mine], total)


def scatter_common(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Add this rank's slice of what all ranks of the host have in common memory."""
    c = x.common
    assert c is not None
    c.repetition += 1
    slab, slot, now = c.slab, c.slot, 2 * c.repetition
    slab.say(slot, now - 1)
    yield [slab.heard(slot, now - 1, x.call)]
    if len(c.hosts) == 1:
        for chunk in chunks_of(owned[x.me], x.out.itemsize):
            total = x.add([[a[chunk] for a in arrays] for arrays in c.arrays])
            np.copyto(x.out[chunk], total)
    else:
        yield from _across_hosts(x, c, owned)
    slab.say(slot, now)
    yield [slab.heard(slot, now, x.call)]


def _across_hosts(x: Exchange, c: Common, owned: Sequence[slice]) -> Rounds:
    """Add for the rank in this place on each host what it owns, and send it there."""
    here = next(ranks for ranks in c.hosts if x.group.rank in ranks)
    places = [ranks[c.slab.place] for ranks in c.hosts]
    sums = []
    for owner in places:
        local = Sum(x.combine)
        for rank, arrays in zip(here, c.arrays, strict=True):
            for part, array in zip(x.parts[rank], arrays, strict=True):
                local.push(part, array[owned[owner]])
        sums.append([array for _, array in local.stack])
    me = places.index(x.group.rank)
    across = Exchange(x.group, sums[me], parts_of_hosts(x, c), x.combine, x.tag, x.call, places)
    got, works = across.gather(across.out.size)
    works += [across.send(a, p, k) for p in across.others for k, a in enumerate(sums[p])]
    yield works
    got[me] = sums[me]
    np.copyto(x.out[owned[x.me]], across.add(got))


def scatter_pieces(x: Exchange, owned: Sequence[slice], total: Sum) -> Rounds:
    """Add this rank's slice of what all ranks bring, in order, to ``total``.

    A rank brings the first arrays of ``x.arrays``, as many as it has parts, perhaps none.
    """
    mine, c = owned[x.me], x.common
    here = [x.me] if c is None else next(ranks for ranks in c.hosts if x.group.rank in ranks)
    away = [p for p in x.others if p not in here]
    if c is not None:
        c.repetition += 1
        c.slab.say(c.slot, 2 * c.repetition - 1)
    got = [[np.empty(mine.stop - mine.start, x.out.dtype) for _ in part] for part in x.parts]
    works = [x.recv(a, p, k) for p in away for k, a in enumerate(got[p])]
    brought = x.arrays[: len(x.parts[x.me])]
    works += [x.send(a[owned[p]], p, k) for p in away for k, a in enumerate(brought)]
    if c is not None:
        works.append(c.slab.heard(c.slot, 2 * c.repetition - 1, x.call))
    yield works
    for place, rank in enumerate(here):
        for copy, array in zip(got[rank], x.arrays if c is None else c.arrays[place], strict=False):
            np.copyto(copy, array[mine])
    for parts, arrays in zip(x.parts, got, strict=True):
        for part, array in zip(parts, arrays, strict=True):
            total.push(part, array)
    if c is not None:
        c.slab.say(c.slot, 2 * c.repetition)
        yield [c.slab.heard(c.slot, 2 * c.repetition, x.call)]


def gather_parts(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Bring the slices of ``x.out`` that other ranks own here, and this rank's to them."""
    size = len(x.ranks)
    many = size > MANY_RANKS and size & (size - 1) == 0
    return doubling(x, owned) if many else gather(x, owned)


def gather(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Send this rank's slice to all."""
    works = [x.recv(x.out[owned[p]], p, _PARTS) for p in x.others]
    works += [x.send(x.out[owned[x.me]], p, _PARTS) for p in x.others]
    yield works


def doubling(x: Exchange, owned: Sequence[slice]) -> Rounds:
    """Exchange slices with the nearest neighbour, those of both with the next, and so on."""
    distance = 1
    while distance < len(x.ranks):
        first = x.me & -distance  # of the ranks whose slices are here
        peer = first ^ distance
        mine = slice(owned[first].start, owned[first + distance - 1].stop)
        theirs = slice(owned[peer].start, owned[peer + distance - 1].stop)
        partner = x.me ^ distance
        yield [
            x.recv(x.out[theirs], partner, _PARTS),
            x.send(x.out[mine], partner, _PARTS),
        ]
        distance *= 2
