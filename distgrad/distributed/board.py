"""A board in common memory, where the ranks of one host meet: blocking all-reduces in one round.

Note [The board]
    Every rank has two halves that only it writes. It writes what it brings into one of them, then
    its turn, a number that grows; when all have said the turn, it reads what the others wrote. The
    next call takes the other half. Nobody writes a half again before all others have said a later
    turn, and so have read it: one round is enough. With the turn goes a digest of the call, so
    that ranks which make different calls see it without a message.

    Up to two ranks each adds everything. More ranks share the work of long arrays: each adds one
    slice and leaves the sum on the board, and after a second turn all copy the sums.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from distgrad.distributed.shared import Slab
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

HALF_BYTES = 1 << 19  # longer arrays go in pieces, which stay in the cache
SIGNALS = 3
BYTES = 2 * HALF_BYTES
_SHARED_BYTES = 1 << 14  # from here on more than two ranks share the additions
_LOOKS = 200  # at a signal before other processes get the core: some 10 us
_PLANS = 256  # kept; a program has few shapes
Views: TypeAlias = list[list[HostArray]]  # of each half, of each rank


class Plan:
    """What an all-reduce of one operation, dtype and shape needs every time.

    Args:
        board: where it happens.
        call: in words.
        combine: the ufunc.
        array: one of the dtype and shape.
        divisor: of the result; 0 stands for none.
    """

    __slots__ = ("call", "combine", "digest", "divisor", "pieces", "whole")

    def __init__(
        self, board: Board, call: str, combine: Any, array: HostArray, divisor: int
    ) -> None:
        self.call, self.digest, self.combine, self.divisor = call, digest_of(call), combine, divisor
        count, dtype, step = array.size, array.dtype, HALF_BYTES // array.itemsize
        self.whole: Views | None = None  # of the board, shaped as the array, if it is one piece
        self.pieces: list[tuple[slice, Views]] = []
        if count <= step:
            self.whole = [[v.reshape(array.shape) for v in h] for h in board.views(dtype, count)]
            return
        views = {n: board.views(dtype, n) for n in {step, count % step or step}}
        ends = [(a, min(a + step, count)) for a in range(0, count, step)]
        self.pieces = [(slice(a, b), views[b - a]) for a, b in ends]


class Board:
    """The board of one channel, seen from one rank.

    Args:
        group: the channel; all its ranks are on one host.
        slab: with room for `BYTES` and `SIGNALS`.
    """

    def __init__(self, group: ProcessGroup, slab: Slab) -> None:
        self.group, self.slab, self.me = group, slab, slab.place
        self.halves = [slab.take(HALF_BYTES, np.uint8) for _ in range(2)]
        self.slot = slab.take_slot()
        self.marks = slab.take_slot(), slab.take_slot()
        self.mine = slab.signals[self.me]
        self.others = [row for place, row in enumerate(slab.signals) if place != self.me]
        self.turn = 0
        self.half = 0  # that the next call writes
        self.plans: dict[tuple[Any, ...], Plan] = {}
        self._looks = _LOOKS if len(slab.signals) <= _cores() else 1

    def views(self, dtype: Any, count: int) -> Views:
        """Return for each half the first ``count`` elements of every rank."""
        return [[part[: count * dtype.itemsize].view(dtype) for part in h] for h in self.halves]

    def plan(self, key: tuple[Any, ...], call: str, combine: Any, array: HostArray) -> Plan:
        """Return a new plan, kept under ``key``, whose first entry is the operation."""
        if len(self.plans) >= _PLANS:
            self.plans.clear()
        divisor = len(self.slab.signals) if key[0] == "avg" else 0
        plan = self.plans[key] = Plan(self, call, combine, array, divisor)
        return plan

    def takes(self, dtype: np.dtype[Any]) -> bool:
        """Return whether NumPy adds this dtype as it is; narrow floats are added in float32."""
        return dtype.kind in "biufc" and dtype.isnative and dtype != np.float16

    def meet(self, digest: int, call: str) -> bool:
        """Return, when all ranks have come, whether all came with the same digest."""
        turn = self.turn = self.turn + 1
        slot, mark, mine = self.slot, self.marks[turn & 1], self.mine
        mine[mark] = digest
        self.slab.fence()
        mine[slot] = turn
        for row in self.others:
            if row[slot] < turn:
                self._wait(row, turn, call)
        self.slab.fence()
        same = True
        for row in self.others:
            same &= row[mark] == digest
        return same

    def _wait(self, row: Any, turn: int, call: str) -> None:
        slot = self.slot
        for _ in range(self._looks):
            if row[slot] >= turn:
                return
        wait_for(self.slab.heard(slot, turn, call), self.group, self.group.timeout_s)

    @np.errstate(all="ignore")  # inf and nan are results here
    def all_reduce(self, plan: Plan, array: HostArray) -> bool:
        """Replace ``array`` by the reduction; return False if the ranks made different calls."""
        if plan.whole is not None:
            if not self._reduce_piece(plan, plan.whole, array):
                return False
        else:
            flat = array.reshape(-1)
            for span, views in plan.pieces:
                if not self._reduce_piece(plan, views, flat[span]):
                    return False
        if plan.divisor:
            np.divide(array, plan.divisor, out=array)
        return True

    def _reduce_piece(self, plan: Plan, views: Views, out: HostArray) -> bool:
        half = self.half
        self.half = 1 - half
        there = views[half]
        there[self.me][...] = out
        if not self.meet(plan.digest, plan.call):
            return False
        if len(there) == 2:  # this rank's own half is not read, which leaves more of the cache
            first, second = (out, there[1]) if self.me == 0 else (there[0], out)
            plan.combine(first, second, out=out)
        elif out.nbytes < _SHARED_BYTES:
            _reduce(plan.combine, there, out)
        else:
            self._share(plan, [part.reshape(-1) for part in there], out.reshape(-1))
        return True

    def _share(self, plan: Plan, there: Sequence[HostArray], out: HostArray) -> None:
        """Add one slice, and take the others' sums."""
        size, ranks = out.size, len(there)
        slices = [slice(p * size // ranks, (p + 1) * size // ranks) for p in range(ranks)]
        mine = slices[self.me]
        _reduce(plan.combine, [part[mine] for part in there], there[self.me][mine])
        self.meet(plan.digest, plan.call)
        for part, where in zip(there, slices, strict=True):
            out[where] = part[where]


def digest_of(call: str, content: bytes = b"") -> int:
    """Return a number that stands for a call and what comes with it."""
    whole = hashlib.blake2b(call.encode() + b"\0" + content, digest_size=8).digest()
    return int.from_bytes(whole, "little", signed=True)


def _reduce(combine: Any, arrays: Sequence[HostArray], out: HostArray) -> None:
    """Leave in ``out`` the reduction by the tree over the ranks; see `tree`."""
    level = list(arrays)
    while len(level) > 2:
        pairs = [combine(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    combine(level[0], level[1], out=out)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
