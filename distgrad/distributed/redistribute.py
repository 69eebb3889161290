"""Moves arrays that belong to parameters and are spread over ranks from one layout to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from distgrad.distributed.bucket import Flat
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray, Work

Ranges: TypeAlias = Mapping[int, slice]
"""For each parameter of which a rank has something, by number: which of its elements."""

Entries: TypeAlias = Mapping[int, Mapping[str, HostArray]]
"""For each parameter, arrays by name: as long as the range, or one number without a dimension."""

_CALL = "redistribute(state of the optimizer)"


def owned_ranges(flats: Iterable[Flat], numbers: Mapping[int, int], rank: int) -> Ranges:
    """Return which elements of which parameter ``rank`` owns.

    Args:
        flats: where the parameters lie.
        numbers: the number of a parameter by its ``id``; others are left out.
        rank: the owner.
    """
    found = {}
    for flat in flats:
        for place, (p, span) in enumerate(zip(flat.params, flat.spans, strict=True)):
            where = flat.overlap(place, flat.owned[rank])
            if where is not None and id(p) in numbers:
                found[numbers[id(p)]] = slice(where.start - span.start, where.stop - span.start)
    return found


def redistribute(
    group: ProcessGroup, have: Sequence[Ranges], want: Sequence[Ranges], entries: Entries
) -> dict[int, dict[str, HostArray]]:
    """Return the entries of the ranges that this rank wants.

    Args:
        group: the ranks.
        have: for each rank its ranges, on all ranks alike; together they cover what is wanted.
        want: for each rank the ranges that it shall get.
        entries: what this rank has. A parameter may have none.

    Ranks: a collective.
    Cost: each element travels at most once.
    """
    return collect(group, list(enumerate(have)), want, {group.rank: entries})


def collect(
    group: ProcessGroup,
    sources: Sequence[tuple[int, Ranges]],
    want: Sequence[Ranges],
    held: Mapping[int, Entries],
) -> dict[int, dict[str, HostArray]]:
    """Return the entries of the ranges that this rank wants, where ranks hold several sets.

    Args:
        group: the ranks.
        sources: for each set, which rank holds it, and its ranges; on all ranks alike.
        want: for each rank the ranges that it shall get; no two sets have the same of it.
        held: the sets that this rank holds, by their place in ``sources``.

    Ranks, Cost: as for `redistribute`.
    """
    known, me = _known_to_all(group, held.values()), group.rank
    result = {
        number: {name: _room(kind, where) for name, kind in known.get(number, {}).items()}
        for number, where in want[me].items()
    }
    works: list[Work] = []
    arriving, leaving = [], []
    for tag, (holder, have) in enumerate(sources):
        if holder != me:
            coming = list(_places(known, have, want[me], result, want[me]))
            if coming:
                arriving.append((_start_box(works, group, coming, holder, tag), coming))
            continue
        for step in range(1, group.size):
            to = (me + step) % group.size
            going = list(_places(known, have, want[to], held[tag], have))
            if going:
                box = np.concatenate([part.view(np.uint8) for part in going])
                works.append(group.start_send(box, to, tag, _CALL))
                leaving.append(box)  # lives until it is sent
        here = _places(known, have, want[me], held[tag], have)
        there = _places(known, have, want[me], result, want[me])
        for source, target in zip(here, there, strict=True):
            np.copyto(target, source)
    for work in works:
        wait_for(work, group, group.timeout_s)
    for box, coming in arriving:
        _unpack(box, coming)
    return result


def _known_to_all(group: ProcessGroup, held: Iterable[Entries]) -> dict[int, dict[str, Any]]:
    """Return the dtypes, and the numbers, of what all ranks have together."""
    known: dict[int, dict[str, Any]] = {}
    mine = [_manifest(entries) for entries in held]
    for manifest in (m for each in group.all_gather_object(mine) for m in each):
        for number, row in manifest.items():
            known.setdefault(number, {}).update(row)
    return known


def _start_box(
    works: list[Work], group: ProcessGroup, coming: Sequence[HostArray], source: int, tag: int
) -> HostArray:
    """Start to receive as many bytes as there are in ``coming``, and return where."""
    box = np.empty(sum(part.nbytes for part in coming), np.uint8)
    works.append(group.start_recv(box, source, tag, _CALL))
    return box


def _unpack(box: HostArray, parts: Sequence[HostArray]) -> None:
    at = 0
    for part in parts:
        part.view(np.uint8)[...] = box[at : at + part.nbytes]
        at += part.nbytes


def _manifest(entries: Entries) -> dict[int, dict[str, Any]]:
    """Return the dtype of each array, and numbers themselves."""
    return {
        number: {name: a.dtype if a.ndim else a for name, a in row.items()}
        for number, row in entries.items()
    }


def _room(kind: Any, where: slice) -> HostArray:
    if isinstance(kind, np.ndarray):
        return kind.copy()
    return np.empty(where.stop - where.start, kind)


def _places(
    known: Mapping[int, Mapping[str, Any]],
    have: Ranges,
    want: Ranges,
    arrays: Entries,
    ranges: Ranges,
) -> Iterator[HostArray]:
    """Yield the parts of ``arrays``, which lie by ``ranges``, that are had and wanted."""
    for number in sorted(have.keys() & want.keys()):
        start = max(have[number].start, want[number].start)
        stop = min(have[number].stop, want[number].stop)
        if start >= stop:
            continue
        first = ranges[number].start
        for name, kind in known.get(number, {}).items():
            if not isinstance(kind, np.ndarray):
                yield arrays[number][name][start - first : stop - first]
