"""Collectives of several steps, each made when the one before is complete, without blocking.

Note [One after the other]: MPI matches collectives by the order in which a rank starts them, and a
collective here has several: the comparison of the calls, then the data. So a channel starts the
steps of a collective when all steps of the one before are over. The order is the same on all
ranks, whatever they do in between.

Note [Everybody pushes]: nothing moves by itself, and another rank may need a step of this one while
it waits for something else, in another group or in a message. Every test of any work of this rank
therefore pushes all collectives on its agenda.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from distgrad.distributed import moves
from distgrad.distributed.board import digest_of
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray, Transfer, Work

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup
    from distgrad.distributed.operands import AnyTurn

Steps: TypeAlias = Generator[Work, None, None]


class Collective(Work):
    """A collective on the agenda.

    Args:
        group: the channel it belongs to.
        call: in words that are the same on all ranks.
        steps: yields the work of each step, started; ends, or raises, when all is over.
    """

    __slots__ = ("_error", "_open", "_over", "_steps", "group")

    def __init__(self, group: ProcessGroup, call: str, steps: Steps) -> None:
        group.collectives += 1
        super().__init__(call, group.collectives)
        self.group, self._steps = group, steps
        self._open: Work | None = None
        self._over = False
        self._error: Exception | None = None

    def advance(self) -> bool:
        """Go on as far as possible without waiting; return whether it is over. Never raises."""
        try:
            while not self._over:
                if not self._step():
                    return False
        except StopIteration:
            self._open, self._over = None, True
        except Exception as error:
            self._error, self._open, self._over = error, None, True
        return True

    def _step(self) -> bool:
        """Start the next step if the last one is complete; return whether it is."""
        try:
            if self._open is not None and not self._open.test():
                return False
        except Exception as error:
            self._open = self._steps.throw(error)  # the steps may have more to say
        else:
            self._open = next(self._steps)
        return True

    def is_completed(self) -> bool:
        """Return whether it is over, well or badly."""
        return self._over

    def test(self) -> bool:
        """Return whether it is complete, after a push of all that is on the agenda."""
        self.group.agenda.push()
        if self._error is not None:
            raise self._error
        return self._over

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is complete."""
        wait_for(self, self.group, self.group.timeout_s if timeout_s is None else timeout_s)


class Agenda:
    """The collectives of one rank that are not over, on all its groups, in the order of calls."""

    def __init__(self) -> None:
        self.open: list[Collective] = []
        self._lock = threading.Lock()  # the communication thread pushes too

    def add(self, collective: Collective) -> None:
        """Append ``collective`` and let it begin, if nothing is before it."""
        with self._lock:
            self.open.append(collective)
        self.push()

    def push(self) -> None:
        """Let the first collective of each channel go on; return at once if somebody does so."""
        if not self.open or not self._lock.acquire(blocking=False):
            return
        try:
            waiting: set[int] = set()
            for collective in self.open:
                channel = id(collective.group)
                if channel not in waiting and not collective.advance():
                    waiting.add(channel)
            self.open = [c for c in self.open if not c.is_completed()]
        finally:
            self._lock.release()

    def settle(self, group: ProcessGroup) -> None:
        """Return when no collective of ``group`` is open; their errors are for who waits for them.

        Raises:
            DistributedError: the time of one is over.
        """
        while self.open:
            mine = [c for c in self.open if c.group is group]
            if not mine:
                return
            try:
                mine[-1].wait()
            except Exception:
                if not mine[-1].is_completed():
                    raise


# Steps that are parts of collectives.


def agreed(group: ProcessGroup, call: str) -> Steps:
    """Raise on every rank when the ranks do not all make the same ``call``.

    Raises:
        DistributedError: the same text on every rank.
    """
    if group.compares_calls:
        nothing = np.empty(0, np.uint8)
        yield group.launch("barrier", call, nothing, nothing)
        return
    if group.board is not None:
        group.board.turn += 1
        if (yield from group.board.meeting(digest_of(call), call)):
            return
    else:
        digest = hashlib.blake2b(call.encode() + b"\0", digest_size=16).digest()
        digests = np.empty((group.size, 16), np.uint8)
        yield group.launch("all_gather", call, np.frombuffer(digest, np.uint8), digests)
        if (digests == digests[0]).all():
            return
    yield from _told(group, call)


def _told(group: ProcessGroup, call: str) -> Steps:
    """Raise the error of ranks that make different calls."""
    said: list[Any] = []
    yield from exchanged(group, call, call, said)
    group.disagree(said)


def exchanged(group: ProcessGroup, call: str, value: object, into: list[Any]) -> Steps:
    """Append the values of all ranks to ``into``, in rank order."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = np.empty((group.size, 1), np.int64)
    yield group.launch("all_gather", call, np.array([data.size], np.int64), lengths)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: data.size] = data
    rows = np.empty((group.size, padded.size), np.uint8)
    yield group.launch("all_gather", call, padded, rows)
    into += [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, lengths[:, 0], strict=True)]


def transferred(
    group: ProcessGroup,
    collective: str,
    call: str,
    source: HostArray,
    target: HostArray,
    op: str = "",
    peer: int = -1,
    turn: AnyTurn | None = None,
) -> Steps:
    """Make one transfer, of whose call the ranks are to agree; on GPUs if it has a ``turn``."""
    if turn is not None:
        yield from agreed(group, f"{call} on GPUs")
        yield from turn.steps(group, collective, call, source, target, op, peer)
        return
    board = group.board
    if board is not None and moves.takes(collective):
        group.sequence += 1
        transfer = Transfer(collective, call, source, target, op, peer)
        if not (yield from moves.moving(board, transfer)):
            yield from _told(group, call)
        return
    if not group.compares_calls:
        yield from agreed(group, call)
    yield group.launch(collective, call, source, target, op, peer)


def refused(group: ProcessGroup, error: Exception) -> Steps:
    """Raise ``error`` here and, on ranks whose call was right, an error that quotes it."""
    try:
        yield from agreed(group, str(error))
    except Exception as others:
        raise error from others
    raise error


def split_among(
    group: ProcessGroup,
    call: str,
    source: HostArray,
    target: HostArray,
    sends: list[int],
    receives: list[int],
    turn: AnyTurn | None = None,
) -> Steps:
    """Send ``sends[p]`` elements of ``source`` to rank p, and fill ``target`` likewise.

    Raises:
        DistributedError: on every rank, when a rank takes what the other does not send.
    """
    told = np.empty(group.size, np.int64)
    ones = [1] * group.size
    if not group.compares_calls:
        yield from agreed(group, call)
    count = np.array(sends, np.int64)
    yield group.launch("all_to_all", call, count, told, sends=ones, receives=ones)
    wrong = [peer for peer in range(group.size) if told[peer] != receives[peer]]
    verdict = call
    if wrong:
        peer = wrong[0]
        verdict = (
            f"{call}: rank {group.rank} takes {receives[peer]} elements from rank {peer}, which "
            f"sends it {told[peer]}; make the split sizes of both agree"
        )
    yield from agreed(group, verdict)
    if turn is not None:
        yield from turn.steps(group, "all_to_all", call, source, target, "", -1, sends, receives)
        return
    yield group.launch("all_to_all", call, source, target, sends=sends, receives=receives)
