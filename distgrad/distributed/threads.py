"""n ranks as threads of one process: the whole distributed behaviour without MPI, for tests.

Every rank hands its transfer to the round of that number; the last one to arrive compares the calls
and moves the data for all, while the others wait or go on.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import numpy as np

from distgrad.distributed.default import set_thread_group
from distgrad.distributed.group import (
    ANY_RANK,
    CompletedWork,
    ProcessGroup,
    disagreement,
    link_channels,
    tree_reduce,
)
from distgrad.distributed.shared import Slab
from distgrad.distributed.work import HostArray, Transfer, Work
from distgrad.errors import ArgumentError, DistributedError, describe

T = TypeVar("T")


def run_ranks(
    n: int,
    fn: Callable[..., T],
    *args: object,
    timeout_s: float = 60.0,
    ranks_per_host: int | None = None,
) -> list[T]:
    """Return what ``fn(group, *args)`` returns on each of ``n`` ranks, run as threads.

    Args:
        n: number of ranks.
        fn: called once in each thread, with that rank's group, which is also its default group.
        timeout_s: seconds for all of it, and for each wait of a rank.
        ranks_per_host: how many of them share memory; default is all.

    Raises:
        Exception: what the first failing rank raised; the other ranks are stopped at their next
            collective.
        DistributedError: the time is over; names the ranks that still run and where.

    Example:
        >>> run_ranks(3, lambda group: group.all_gather_object(group.rank))
        [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """
    if n < 1:
        raise ArgumentError(f"run_ranks({n}): needs one rank or more")
    step = ranks_per_host or n
    world = ThreadWorld([list(range(n))[first : first + step] for first in range(0, n, step)])
    results: dict[int, T] = {}

    def body(rank: int) -> None:
        group = thread_group(world, rank, timeout_s)
        set_thread_group(group)
        try:
            results[rank] = fn(group, *args)
        except BaseException as error:
            world.fail(rank, error)
        finally:
            group.close()
            world.leave(rank)

    ranks = [
        threading.Thread(target=body, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(n)
    ]
    for thread in ranks:
        thread.start()
    _join(world, ranks, timeout_s)
    if world.error is not None:
        rank, error = world.error
        error.add_note(f"rank {rank} of {n}")
        raise error
    return [results[rank] for rank in range(n)]


class ThreadWorld:
    """What the ranks of a group share.

    ``changed`` guards all of it and is notified at every change; sub-groups have that of the whole,
    so that a rank that fails or returns is seen in each.

    Args:
        hosts: which ranks share memory.
        whole: the world of all ranks; None for that itself.
        ranks: the members' numbers there.
    """

    def __init__(
        self, hosts: list[list[int]], whole: ThreadWorld | None = None, ranks: Sequence[int] = ()
    ) -> None:
        self.size, self.hosts = sum(map(len, hosts)), hosts
        self.whole, self.ranks = whole or self, ranks or range(self.size)
        self.parts: dict[tuple[tuple[int, ...], int], ThreadWorld] = {}
        self.slabs: dict[tuple[str, int], dict[int, tuple[HostArray, HostArray]]] = {}
        self.changed: threading.Condition = whole.changed if whole else threading.Condition()
        self.rounds: dict[tuple[str, int], _Round] = {}
        self.mail: dict[tuple[str, int, int, int], deque[tuple[str, HostArray]]] = {}
        self.left: set[int] = set()
        self.error: tuple[int, BaseException] | None = None

    def fail(self, rank: int, error: BaseException) -> None:
        """Let every other rank raise at its next look; the first failure counts."""
        with self.changed:
            self.error = self.error or (rank, error)
            self.changed.notify_all()

    def leave(self, rank: int) -> None:
        with self.changed:
            self.left.add(rank)
            self.changed.notify_all()

    def part(self, places: tuple[int, ...], number: int) -> ThreadWorld:
        """Return the ``number``-th world of the ranks ``places``, the same one for all of them."""
        with self.changed:
            key = places, number
            if key not in self.parts:
                there = [[places.index(r) for r in host if r in places] for host in self.hosts]
                ranks = [self.ranks[place] for place in places]
                self.parts[key] = ThreadWorld([h for h in there if h], self.whole, ranks)
            return self.parts[key]

    def raise_if_hopeless(self, call: str, rank: int, awaited: Sequence[int]) -> None:
        """Raise if a rank has failed, or one of ``awaited`` has returned and will not come."""
        if self.whole.error is not None:
            failed, error = self.whole.error
            raise DistributedError(
                f"{call}: rank {rank} of {self.size} stops, because rank {failed} failed with "
                f"{type(error).__name__}: {error}"
            )
        gone = [peer for peer in awaited if self.ranks[peer] in self.whole.left]
        if gone:
            raise DistributedError(
                f"{call}: rank {rank} of {self.size} waits for rank {gone[0]}, which has returned; "
                "every rank must make the same calls"
            )


class _Round:
    """The same-numbered transfer of all ranks of one channel."""

    def __init__(self, channel: str, size: int) -> None:
        self.channel = channel
        self.transfers: list[Transfer | None] = [None] * size
        self.done = False
        self.wrong = ""

    def missing(self) -> list[int]:
        return [rank for rank, transfer in enumerate(self.transfers) if transfer is None]

    def complete(self) -> None:
        """Compare the calls and move the data; run by the last rank to arrive."""
        transfers = [transfer for transfer in self.transfers if transfer is not None]
        calls = [transfer.call for transfer in transfers]
        if len(set(calls)) > 1:
            self.wrong = disagreement(calls, self.channel)
            return
        try:
            _MOVES[transfers[0].collective](transfers)
        except Exception as error:  # or the others would wait for ever
            self.wrong = f"{calls[0]}: {type(error).__name__}: {error}"


class _ThreadWork(Work, ABC):
    """A transfer whose end is watched through the shared condition."""

    __slots__ = ("_group",)

    def __init__(self, call: str, sequence: int, group: ThreadGroup) -> None:
        super().__init__(call, sequence)
        self._group = group

    @abstractmethod
    def _ready(self) -> bool: ...

    @abstractmethod
    def _awaited(self) -> list[int]: ...

    def test(self) -> bool:
        """Return whether the transfer is complete."""
        group = self._group
        group.agenda.push()
        with group.world.changed:  # a rank may deliver and leave between the two looks
            if self._ready():
                return True
            group.world.raise_if_hopeless(self.call, group.rank, self._awaited())
        return False

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete."""
        group = self._group
        limit = group.timeout_s if timeout_s is None else timeout_s
        with group.world.changed:
            if group.world.changed.wait_for(self.test, limit):
                return
        raise DistributedError(
            f"{self.call} on channel {group.name!r}: rank {group.rank} of {group.size} waited "
            f"{limit} s for ranks {self._awaited()}; look where those are, or allow more time"
        )


class _RoundWork(_ThreadWork):
    __slots__ = ("_round",)

    def __init__(self, call: str, group: ThreadGroup, round_: _Round) -> None:
        super().__init__(call, group.sequence, group)
        self._round = round_

    def is_completed(self) -> bool:
        """Return whether the data has been moved, or refused."""
        return self._round.done

    def _ready(self) -> bool:
        if self._round.done and self._round.wrong:
            raise DistributedError(self._round.wrong)
        return self._round.done

    def _awaited(self) -> list[int]:
        return self._round.missing()


class _RecvWork(_ThreadWork):
    __slots__ = ("_boxes", "_over", "_transfer")

    def __init__(
        self, group: ThreadGroup, transfer: Transfer, boxes: dict[int, deque[tuple[str, HostArray]]]
    ) -> None:
        super().__init__(transfer.call, group.sequence, group)
        self._transfer, self._boxes, self._over = transfer, boxes, False

    def is_completed(self) -> bool:
        """Return whether the message has been taken."""
        return self._over

    def _ready(self) -> bool:
        full = [] if self._over else [peer for peer, box in self._boxes.items() if box]
        if full:
            self._over, sender = True, full[0]
            call, message = self._boxes[sender].popleft()
            target = self._transfer.target
            if self._transfer.senders is not None:
                self._transfer.senders.append(sender)
            if (message.dtype, message.shape) != (target.dtype, target.shape):
                raise DistributedError(
                    f"{self.call}: rank {sender} sent {describe(message)} by {call}; "
                    "send and receive the same dtype and shape"
                )
            np.copyto(target, message)
        return self._over

    def _awaited(self) -> list[int]:
        return list(self._boxes) if len(self._boxes) == 1 else []  # any other may still send


class ThreadGroup(ProcessGroup):
    """One channel of one rank of `run_ranks`."""

    backend = "threads"
    compares_calls = True

    def __init__(self, world: ThreadWorld, rank: int, name: str, timeout_s: float) -> None:
        here = next(ranks for ranks in world.hosts if rank in ranks)
        super().__init__(rank, world.size, here.index(rank), len(here), name, timeout_s)
        self.world, self.hosts = world, world.hosts
        self._parts: Counter[tuple[int, ...]] = Counter()  # how many of each were made

    def _part(self, places: Sequence[int], timeout_s: float) -> ThreadGroup:
        key = tuple(places)
        self._parts[key] += 1
        world = self.world.part(key, self._parts[key])
        return thread_group(world, places.index(self.rank), timeout_s)

    def abort(self, code: int, reason: str) -> NoReturn:
        """Stop every rank: they raise DistributedError at their next collective, this one now."""
        error = DistributedError(f"abort({code}) by rank {self.rank} of {self.size}: {reason}")
        self.world.whole.fail(self.world.ranks[self.rank], error)
        raise error

    def _start(self, transfer: Transfer) -> Work:
        if transfer.collective == "send":
            box = self._box(self.rank, transfer.peer, transfer.tag)
            with self.world.changed:
                box.append((transfer.call, transfer.source.copy()))
                self.world.changed.notify_all()
            return CompletedWork(transfer.call, self.sequence)
        if transfer.collective == "recv":
            peers = range(self.size) if transfer.peer == ANY_RANK else (transfer.peer,)
            boxes = {peer: self._box(peer, self.rank, transfer.tag) for peer in peers}
            return _RecvWork(self, transfer, boxes)
        return self._join_round(transfer)

    def _share(self, nbytes: int, signals: int) -> Slab | None:
        mine = np.empty(nbytes, np.uint8), np.zeros(signals, np.int64)
        with self.world.changed:
            all_ = self.world.slabs.setdefault((self.name, self.sequence), {})
            all_[self.rank] = mine
        self.barrier()
        ranks = next(ranks for ranks in self.hosts if self.rank in ranks)
        memory, rows = zip(*(all_[rank] for rank in ranks), strict=True)
        return Slab(memory, rows, ranks.index(self.rank))

    def _join_round(self, transfer: Transfer) -> Work:
        world, key = self.world, (self.name, self.sequence)
        with world.changed:
            round_ = world.rounds.setdefault(key, _Round(self.name, self.size))
            round_.transfers[self.rank] = transfer
            last = not round_.missing()
            if last:
                del world.rounds[key]
        if last:  # outside the lock: other channels go on
            round_.complete()
            with world.changed:
                round_.done = True
                world.changed.notify_all()
        return _RoundWork(transfer.call, self, round_)

    def _box(self, src: int, dst: int, tag: int) -> deque[tuple[str, HostArray]]:
        with self.world.changed:
            return self.world.mail.setdefault((self.name, src, dst, tag), deque())


def thread_group(world: ThreadWorld, rank: int, timeout_s: float) -> ThreadGroup:
    """Return the group of one rank of ``world``."""
    """Return the group of one rank of ``world``."""
    return link_channels(lambda name: ThreadGroup(world, rank, name, timeout_s))


def _join(world: ThreadWorld, ranks: Sequence[threading.Thread], timeout_s: float) -> None:
    """Wait for the threads; past the time, stop them and say where each one is."""
    deadline = time.monotonic() + timeout_s
    for thread in ranks:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [thread for thread in ranks if thread.is_alive()]
    if not late:
        return
    frames = sys._current_frames()
    where = "\n".join(
        f"{thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident], limit=-8))
        for thread in late
        if thread.ident in frames
    )
    names = ", ".join(thread.name for thread in late)
    late_error = DistributedError(
        f"run_ranks({len(ranks)}): {names} not done after {timeout_s} s; they are here:\n{where}"
    )
    world.fail(ranks.index(late[0]), late_error)
    for thread in late:
        thread.join(1.0)


def _all_reduce(transfers: Sequence[Transfer]) -> None:
    result = tree_reduce(transfers[0].op, [t.source for t in transfers])
    for t in transfers:
        np.copyto(t.target, result)


def _reduce_scatter(transfers: Sequence[Transfer]) -> None:
    result = tree_reduce(transfers[0].op, [t.source for t in transfers])
    for t, part in zip(transfers, np.split(result, len(transfers)), strict=True):
        np.copyto(t.target, part)


def _reduce(transfers: Sequence[Transfer]) -> None:
    into = transfers[transfers[0].peer].target
    np.copyto(into, tree_reduce(transfers[0].op, [t.source for t in transfers]))


def _scatter(transfers: Sequence[Transfer]) -> None:
    parts = transfers[transfers[0].peer].source
    for t, part in zip(transfers, parts, strict=True):
        np.copyto(t.target, part)


def _all_to_all(transfers: Sequence[Transfer]) -> None:
    pieces = [np.split(t.source.reshape(-1), np.cumsum(t.sends)[:-1]) for t in transfers]
    for rank, t in enumerate(transfers):
        np.concatenate([piece[rank] for piece in pieces], out=t.target.reshape(-1))


def _broadcast(transfers: Sequence[Transfer]) -> None:
    for t in transfers:
        np.copyto(t.target, transfers[t.peer].source)


def _all_gather(transfers: Sequence[Transfer]) -> None:
    for t in transfers:
        _stack(t, transfers)


def _gather(transfers: Sequence[Transfer]) -> None:
    _stack(transfers[transfers[0].peer], transfers)


def _stack(into: Transfer, transfers: Sequence[Transfer]) -> None:
    for rank, t in enumerate(transfers):
        into.target[rank, ...] = t.source


def _barrier(transfers: Sequence[Transfer]) -> None:
    """The arrival of all is all there is to it."""


_MOVES: dict[str, Callable[[Sequence[Transfer]], None]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
    "barrier": _barrier,
}
