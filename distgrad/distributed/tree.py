"""The order of additions: a binary tree over virtual shards, the same for every number of ranks.

Note [The tree]
    Addition of floating-point numbers is not associative, so the bits of a sum depend on its order.
    Here the order belongs to V virtual shards of the data and not to ranks: shards 0 and 1 are
    added, 2 and 3, then both sums, and so on: ``((0+1)+(2+3))+((4+5)+(6+7))``. A rank has
    consecutive shards and adds what it can: it ends with the sums of its largest aligned subtrees,
    mostly one of them. The rest of the tree is added across ranks. Whoever adds which part, the sum
    has the same bits, and ``a + b`` and ``b + a`` are the same bits too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from distgrad.errors import ArgumentError


class Subtree(NamedTuple):
    """The shards ``start`` to ``start + length``; length is a power of two that divides start."""

    start: int
    length: int


def shard_bounds(shards: int, ranks: int) -> list[int]:
    """Return where each rank's shards begin, and the end: rank r has ``[bounds[r], bounds[r+1])``.

    Example:
        >>> shard_bounds(8, 3)
        [0, 3, 6, 8]
    """
    each, more = divmod(shards, ranks)
    return [rank * each + min(rank, more) for rank in range(ranks + 1)]


def subtrees(start: int, stop: int) -> list[Subtree]:
    """Return the largest aligned subtrees of the shards ``start`` to ``stop``, in order.

    Example:
        >>> subtrees(2, 5)
        [Subtree(start=2, length=2), Subtree(start=4, length=1)]
    """
    found = []
    while start < stop:
        length = 1
        while start % (2 * length) == 0 and start + 2 * length <= stop:
            length *= 2
        found.append(Subtree(start, length))
        start += length
    return found


@dataclass(frozen=True)
class Tree:
    """Which shards each rank has.

    Args:
        shards: V, at least one for each rank.
        ranks: P.
    """

    shards: int
    ranks: int

    def __post_init__(self) -> None:
        """Refuse ranks without a shard."""
        if self.shards < self.ranks:
            raise ArgumentError(
                f"Tree(shards={self.shards}, ranks={self.ranks}): a rank would have no shard; "
                "use at least as many shards as ranks"
            )

    @cached_property
    def bounds(self) -> list[int]:
        """The shards where each rank begins, and their number."""
        return shard_bounds(self.shards, self.ranks)

    @cached_property
    def parts(self) -> list[list[Subtree]]:
        """The subtrees that each rank brings, in order."""
        ends = self.bounds
        return [subtrees(ends[r], ends[r + 1]) for r in range(self.ranks)]

    @cached_property
    def waiting(self) -> int:
        """How many sums wait at most on a rank before its last shard."""
        begun = (len(subtrees(a, k)) for a, b in pairwise(self.bounds) for k in range(a + 1, b))
        return max(begun, default=0)

    @cached_property
    def balanced(self) -> bool:
        """True where every rank brings one sum and neighbours are neighbours in the tree."""
        power = self.ranks & (self.ranks - 1) == 0
        return power and all(len(part) == 1 for part in self.parts)


class Sum:
    """Sums of subtrees, added as soon as both halves of a larger one are there.

    Arrays are given in the order of their shards; a sum overwrites its left operand.

    Args:
        combine: a ufunc, such as `numpy.add`.

    Example:
        >>> import numpy as np
        >>> total = Sum(np.add)
        >>> for shard in range(4):
        ...     total.push(Subtree(shard, 1), np.array([2.0**shard]))
        >>> [int(array[0]) for _, array in total.stack]
        [15]
    """

    __slots__ = ("combine", "stack")

    def __init__(self, combine: Any) -> None:
        self.combine = combine
        self.stack: list[tuple[Subtree, Any]] = []

    def push(self, part: Subtree, array: Any) -> None:
        """Add ``array``, the sum of ``part``."""
        while self.stack and _halves(self.stack[-1][0], part):
            left, mine = self.stack.pop()
            self.combine(mine, array, out=mine)
            part, array = Subtree(left.start, 2 * left.length), mine
        self.stack.append((part, array))

    def push_into(self, part: Subtree, array: Any) -> None:
        """Add ``array`` as `push` does, but leave the sum in it."""
        while self.stack and _halves(self.stack[-1][0], part):
            left, other = self.stack.pop()
            self.combine(other, array, out=array)
            part = Subtree(left.start, 2 * left.length)
        self.stack.append((part, array))

    def total(self) -> Any:
        """Return the sum of everything: what is no whole tree is added from the right."""
        _, array = self.stack.pop()
        while self.stack:
            _, mine = self.stack.pop()
            self.combine(mine, array, out=mine)
            array = mine
        return array


def _halves(left: Subtree, right: Subtree) -> bool:
    return left.length == right.length and left.start % (2 * left.length) == 0


Order: TypeAlias = "int | tuple[Order, Order]"
"""Numbers of arrays in nested pairs: what is added to what."""


@cache
def order_of(parts: tuple[Subtree, ...]) -> Order:
    """Return in which order the sums of ``parts`` are added; the same as by `sum_in_order`.

    Example:
        >>> order_of((Subtree(0, 1), Subtree(1, 1), Subtree(2, 2), Subtree(4, 1)))
        (((0, 1), 2), 3)
    """
    stack: list[tuple[Subtree, Order]] = []
    for number, part in enumerate(parts):
        order: Order = number
        while stack and _halves(stack[-1][0], part):
            left, other = stack.pop()
            part, order = Subtree(left.start, 2 * left.length), (other, order)
        stack.append((part, order))
    _, total = stack.pop()
    while stack:
        total = stack.pop()[1], total
    return total


def sum_in_order(combine: Any, parts: Iterable[Subtree], arrays: Sequence[Any]) -> Any:
    """Return the sum of ``arrays``, those of all ``parts`` in order; overwrites some of them."""
    total = Sum(combine)
    for part, array in zip(parts, arrays, strict=True):
        total.push(part, array)
    return total.total()
