"""A board in common memory, where the ranks of one host meet: collectives in one round.

Note [The board]
    Every rank has two halves that only it writes. It writes what it brings into one of them, then
    says its turn, a number that grows; when all have said the turn, it reads what the others wrote.
    The next turn takes the other half. Nobody writes a half again before all others have said a
    later turn, and so have read it: one round is enough.

    With the turn a rank says a digest of its call, in one number: ranks which make different calls
    see it without a message. That number stays for four turns, so a rank that is late finds it.

    Up to two ranks each adds everything. More ranks share the work of long arrays: each adds one
    slice and leaves the sum on the board, and after a second turn all copy the sums.

Note [Waiting or not]
    What takes several turns is a generator that yields a work whenever the others are not there.
    A blocking call waits for it, a call with ``async_op`` leaves it to the agenda. The short
    all-reduce, the most frequent of all, has no generator: `Board.reduce_now`.
"""

from __future__ import annotations

import contextvars
import hashlib
import os
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from distgrad.distributed.reduce_op import UFUNCS
from distgrad.distributed.shared import FENCES, Slab, fence
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray, Work

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

HALF_BYTES = 1 << 19  # longer arrays go in pieces, which stay in the cache
SMALL_HALF_BYTES = 1 << 14  # of the channels that carry little
SIGNALS = 4
_TURN = 0xFFFF  # the bits of what a rank says that tell its turn
_SHARED_BYTES = 1 << 14  # from here on more than two ranks share the additions
_LOOKS = 200  # at a signal before other processes get the core: some 10 us
_PLANS = 256  # kept; a program has few shapes
Views: TypeAlias = list[list[HostArray]]  # of each half, of each rank
Turns: TypeAlias = Generator[Work, None, bool]  # returns whether all ranks made the same call


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
        count, dtype, step = array.size, array.dtype, board.half_bytes // array.itemsize
        self.whole: Views | None = None  # of the board, shaped as the array, if it is one piece
        self.pieces: list[tuple[slice, Views]] = []
        if count <= step:
            self.whole = [[v.reshape(array.shape) for v in h] for h in board.views(dtype, count)]
            return
        views = {n: board.views(dtype, n) for n in {step, count % step or step}}
        spans = spans_of(count, step)
        self.pieces = [(span, views[span.stop - span.start]) for span in spans]


class Board:
    """The board of one channel, seen from one rank.

    Args:
        group: the channel; all its ranks are on one host.
        slab: with room for two halves and `SIGNALS`.
        half_bytes: of a half.
    """

    def __init__(self, group: ProcessGroup, slab: Slab, half_bytes: int = HALF_BYTES) -> None:
        self.group, self.slab, self.me, self.half_bytes = group, slab, slab.place, half_bytes
        self.halves = [slab.take(half_bytes, np.uint8) for _ in range(2)]
        self.slots = tuple(slab.take_slot() for _ in range(SIGNALS))
        self.mine = slab.signals[self.me]
        self.others = [row for place, row in enumerate(slab.signals) if place != self.me]
        self.turn = 0
        self.plans: dict[tuple[Any, ...], Plan] = {}
        self._looks = _LOOKS if len(slab.signals) <= _cores() else 1
        with np.errstate(all="ignore"):  # inf and nan are results here
            self.quietly = contextvars.copy_context().run

    def views(self, dtype: Any, count: int) -> Views:
        """Return for each half the first ``count`` elements of every rank."""
        return [[part[: count * dtype.itemsize].view(dtype) for part in h] for h in self.halves]

    def part(self, place: int, dtype: Any, shape: Sequence[int]) -> HostArray:
        """Return the beginning of a rank's half of the present turn, as an array."""
        count = int(np.prod(shape))
        half: HostArray = self.halves[self.turn & 1][place]
        part: HostArray = half[: count * dtype.itemsize].view(dtype)
        return part.reshape(shape)

    def plan(self, key: tuple[Any, ...], call: str, op: str, array: HostArray) -> Plan:
        """Return a new plan of the operation ``op``, kept under ``key``."""
        if len(self.plans) >= _PLANS:
            self.plans.clear()
        divisor = len(self.slab.signals) if op == "avg" else 0
        plan = self.plans[key] = Plan(self, call, UFUNCS[op], array, divisor)
        return plan

    def takes(self, dtype: np.dtype[Any]) -> bool:
        """Return whether NumPy adds this dtype as it is; narrow floats are added in float32."""
        return dtype.kind in "biufc" and dtype.isnative and dtype != np.float16

    # One turn

    def say(self, digest: int) -> int:
        """Say that this rank has written what it brings to this turn; return what was said."""
        turn = self.turn
        said = digest | (turn & _TURN)
        if FENCES:
            fence()
        self.mine[self.slots[turn & 3]] = said
        return said

    def meeting(self, digest: int, call: str) -> Turns:
        """Say this rank's turn, and yield a work if the others have not come."""
        said = self.say(digest)
        meeting = Meeting(self, said, call)
        if not meeting.test():
            yield meeting
        return all(row[meeting.slot] == said for row in self.others)

    def meet(self, digest: int, call: str) -> bool:
        """Return, when all ranks have come to a turn of its own, if they have the same digest."""
        self.turn += 1
        return self.meet_now(digest, call)

    def meet_now(self, digest: int, call: str) -> bool:
        """Return, when all ranks have come to the present turn, if they have the same digest."""
        said = self.say(digest)
        slot = self.slots[self.turn & 3]
        for row in self.others:
            if row[slot] != said:
                return self._met(slot, said, call)
        if FENCES:
            fence()
        return True

    def _met(self, slot: int, said: int, call: str) -> bool:
        meeting = Meeting(self, said, call)
        for _ in range(self._looks):
            if meeting.there():
                break
        else:
            wait_for(meeting, self.group, self.group.timeout_s)
        return all(row[slot] == said for row in self.others)

    # All-reduce

    def reduce_now(self, plan: Plan, array: HostArray) -> bool:
        """Replace ``array`` by the reduction; return False if the ranks made different calls."""
        whole = plan.whole
        if whole is None or (len(self.others) > 1 and array.nbytes >= _SHARED_BYTES):
            return self.finish(self.reducing(plan, array))
        turn = self.turn = self.turn + 1
        there, me = whole[turn & 1], self.me
        there[me][...] = array
        if not self.meet_now(plan.digest, plan.call):
            return False
        self._add(plan, there, array)
        if plan.divisor:
            self.quietly(np.divide, array, plan.divisor, array)
        return True

    def reducing(self, plan: Plan, array: HostArray) -> Turns:
        """Replace ``array`` by the reduction, as `reduce_now` does, without waiting."""
        pieces = plan.pieces
        if plan.whole is not None:
            pieces, flat = [(slice(None), plan.whole)], array
        else:
            flat = array.reshape(-1)
        for span, views in pieces:
            self.turn += 1
            there, out = views[self.turn & 1], flat[span] if flat.ndim else flat
            there[self.me][...] = out
            if not (yield from self.meeting(plan.digest, plan.call)):
                return False
            if len(there) > 2 and out.nbytes >= _SHARED_BYTES:
                yield from self._share(plan, [part.reshape(-1) for part in there], out.reshape(-1))
            else:
                self._add(plan, there, out)
        if plan.divisor:
            self.quietly(np.divide, array, plan.divisor, array)
        return True

    def _add(self, plan: Plan, there: list[HostArray], out: HostArray) -> None:
        if len(there) == 2:  # this rank's own half is not read, which leaves more of the cache
            first, second = (out, there[1]) if self.me == 0 else (there[0], out)
            self.quietly(plan.combine, first, second, out=out)
        else:
            self.quietly(reduce_into, plan.combine, there, out)

    def _share(self, plan: Plan, there: Sequence[HostArray], out: HostArray) -> Turns:
        """Add one slice, and take the others' sums."""
        size, ranks = out.size, len(there)
        slices = [slice(p * size // ranks, (p + 1) * size // ranks) for p in range(ranks)]
        mine = slices[self.me]
        parts = [part[mine] for part in there]
        self.quietly(reduce_into, plan.combine, parts, there[self.me][mine])
        self.turn += 1
        same = yield from self.meeting(plan.digest, plan.call)
        for part, where in zip(there, slices, strict=True):
            out[where] = part[where]
        self.turn += 1  # nobody comes to this one: the next takes the half that is not read now
        return same

    def finish(self, turns: Turns) -> bool:
        """Wait for all turns; return what they return."""
        while True:
            try:
                work = next(turns)
            except StopIteration as end:
                return bool(end.value)
            assert isinstance(work, Meeting)
            for _ in range(self._looks):
                if work.there():
                    break
            else:
                wait_for(work, self.group, self.group.timeout_s)


class Meeting(Work):
    """Waits until all ranks have come to a turn."""

    __slots__ = ("_board", "_over", "_turn", "slot")

    def __init__(self, board: Board, said: int, call: str) -> None:
        super().__init__(call, board.group.collectives)
        self._board, self._turn, self._over = board, said & _TURN, False
        self.slot = board.slots[board.turn & 3]

    def there(self) -> bool:
        """Return whether all have come, without giving anything a push."""
        slot, turn = self.slot, self._turn
        for row in self._board.others:
            if row[slot] & _TURN != turn:
                return False
        if FENCES:
            fence()
        self._over = True
        return True

    def test(self) -> bool:
        """Return whether all have come."""
        if self._over or self.there():
            return True
        self._board.slab.poll()
        return False

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when all have come."""
        group = self._board.group
        wait_for(self, group, group.timeout_s if timeout_s is None else timeout_s)

    def is_completed(self) -> bool:
        """Return whether a test has seen all."""
        return self._over


def digest_of(call: str, content: bytes = b"") -> int:
    """Return a number that stands for a call and what comes with it; its last 16 bits are 0."""
    whole = hashlib.blake2b(call.encode() + b"\0" + content, digest_size=6).digest()
    return int.from_bytes(whole, "little", signed=True) << 16


def spans_of(count: int, step: int) -> list[slice]:
    """Return the pieces of ``count`` elements, ``step`` each; one empty piece of none."""
    return [slice(a, min(a + step, count)) for a in range(0, count, step)] or [slice(0, 0)]


def reduce_into(combine: Any, arrays: Sequence[HostArray], out: HostArray) -> None:
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
