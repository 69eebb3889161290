"""Parameters that lie in parts on the ranks: which elements of which parameter a rank has.

Here a parameter is the leaf tensor that an optimizer gets: flat, with the elements of this rank,
none where all of them are elsewhere. Its ``grad`` is as long. `spread_of` tells norms, optimizers
and checkpoints that there is more of it on other ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from weakref import WeakValueDictionary

from distgrad.distributed.bucket import owned_slices
from distgrad.distributed.group import ProcessGroup
from distgrad.tensor import Tensor


class Spread:
    """Parameters one after the other in a row of elements that is cut into one part for each rank.

    Args:
        params: of one dtype on one device; they become this rank's parts of themselves.
        names: theirs, for messages.
        group: the ranks.
        shapes: of the whole parameters; default is that they are whole now.
    """

    __slots__ = (
        "__weakref__", "group", "mine", "names", "owned", "params", "shapes", "size", "spans",
    )  # fmt: skip

    def __init__(
        self,
        params: Sequence[Tensor],
        names: Sequence[str],
        group: ProcessGroup,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        """Cut the row; see Note [Owners] in `distgrad.distributed.bucket`."""
        self.params, self.names, self.group = list(params), list(names), group
        self.shapes = [p._shape for p in params] if shapes is None else list(shapes)
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + math.prod(shape))
        self.size = ends[-1]
        self.spans = [slice(a, b) for a, b in pairwise(ends)]
        self.owned = owned_slices(self.spans, group.size)
        self.mine = self.owned[group.rank]

    def enter(self) -> None:
        """Be what `spread_of` finds for these parameters from now on."""
        for p in self.params:
            _spreads[id(p)] = self

    def over(self, group: ProcessGroup) -> Spread:
        """Return the same row cut for other ranks; nobody finds it before `enter`."""
        return Spread(self.params, self.names, group, self.shapes)

    def within(self, place: int, rank: int) -> slice:
        """Return which elements of parameter ``place`` a rank has; an empty slice for none."""
        span, owned = self.spans[place], self.owned[rank]
        start = min(max(owned.start, span.start), span.stop)
        stop = min(max(owned.stop, start), span.stop)
        return slice(start - span.start, stop - span.start)

    def local(self, place: int) -> slice:
        """Return where this rank's part of parameter ``place`` lies among all that it has."""
        within, span = self.within(place, self.group.rank), self.spans[place]
        start = min(max(span.start + within.start - self.mine.start, 0), self._length)
        return slice(start, start + within.stop - within.start)

    def place_of(self, param: Tensor) -> int:
        """Return the place of a parameter among the others."""
        return next(place for place, p in enumerate(self.params) if p is param)

    @property
    def _length(self) -> int:
        length: int = self.mine.stop - self.mine.start
        return length


_spreads: WeakValueDictionary[int, Spread] = WeakValueDictionary()  # a spread keeps its parameters


def spread_of(param: Tensor) -> Spread | None:
    """Return where the parts of ``param`` are; None for a whole one."""
    return _spreads.get(id(param))


def whole_size(param: Tensor) -> int:
    """Return how many elements ``param`` has on all ranks together."""
    spread = spread_of(param)
    if spread is None:
        return int(param.array.size)
    return math.prod(spread.shapes[spread.place_of(param)])


def parts_of(params: Sequence[Tensor]) -> dict[int, tuple[Spread, int]]:
    """Return for the number of each parameter that is spread over ranks where its parts are."""
    places: dict[int, tuple[Spread, int]] = {}
    for spread in {id(s): s for p in params if (s := spread_of(p)) is not None}.values():
        places |= {id(p): (spread, place) for place, p in enumerate(spread.params)}
    return {number: places[id(p)] for number, p in enumerate(params) if id(p) in places}


__all__: list[Any] = ["Spread", "parts_of", "spread_of", "whole_size"]
