"""PyTorch's messages between two ranks, and the barrier that names who is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from distgrad.distributed.group import ANY_RANK, ProcessGroup
from distgrad.distributed.handle import Work
from distgrad.distributed.operands import bring, checked, host_of, in_words, message_turn, room_for
from distgrad.distributed.plans import Group, member, place_in, seconds
from distgrad.distributed.waiting import nap_s
from distgrad.distributed.work import HostArray
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistributedError,
)
from distgrad.tensor import Tensor

_BARRIER_TAG = 0x4000  # of the control channel, where nobody else sends messages with such tags
_BARRIER_TAGS = 0x1000


def isend(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> Work | None:
    """Start to send ``tensor``, which must not change until the work is complete."""
    return _send("isend", tensor, dst, group, tag, group_dst)


def send(
    tensor: Tensor,
    dst: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_dst: int | None = None,
) -> None:
    """Send ``tensor`` to rank ``dst`` and return when it may be changed again."""
    work = _send("send", tensor, dst, group, tag, group_dst)
    if work is not None:
        work.wait()


def irecv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> Work | None:
    """Start to receive into ``tensor`` from rank ``src``; None takes what comes first."""
    return _recv("irecv", tensor, src, group, tag, group_src)


def recv(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    tag: int = 0,
    group_src: int | None = None,
) -> int:
    """Replace ``tensor`` by the next one that rank ``src`` sends with ``tag``; return that rank.

    Args:
        src: None takes what comes first, from any rank.
    """
    work = _recv("recv", tensor, src, group, tag, group_src)
    if work is None:
        return -1
    work.wait()
    mine = member("recv", group)
    assert mine is not None
    return mine.ranks[work.source_rank()]


class P2POp:
    """One message of `batch_isend_irecv`.

    Args:
        op: `isend` or `irecv`.
        tensor: to send, or to receive into.
        peer: the other rank, among all ranks.
        group: None is the default group.
        tag: of the message.
        group_peer: the other rank, in the group.
    """

    def __init__(
        self,
        op: Callable[..., Any],
        tensor: Tensor,
        peer: int | None = None,
        group: Group = None,
        tag: int = 0,
        group_peer: int | None = None,
    ) -> None:
        if op not in (isend, irecv):
            raise ArgumentError(
                f"P2POp({op!r}): op must be distgrad.distributed.isend or irecv; pass one of them"
            )
        mine = member("P2POp", group)
        self.op, self.tensor, self.tag = op, checked("P2POp", "tensor", tensor), tag
        self.group = mine
        self.group_peer = -1
        if mine is not None:
            self.group_peer = place_in("P2POp", "peer", mine, peer, group_peer)
        self.peer = -1 if mine is None else mine.ranks[self.group_peer]

    def __repr__(self) -> str:
        return f"P2POp({self.op.__name__}, {self.tensor._brief()}, peer={self.peer})"


def batch_isend_irecv(p2p_op_list: list[P2POp]) -> list[Work]:
    """Start all these messages and return their works; the order is of no importance."""
    listed = isinstance(p2p_op_list, list) and p2p_op_list
    if not listed or not all(isinstance(one, P2POp) for one in p2p_op_list):
        raise ArgumentError(
            f"batch_isend_irecv({p2p_op_list!r}): must be a list of P2POp, one or more"
        )
    if len({id(one.group) for one in p2p_op_list}) > 1:
        raise ArgumentError("batch_isend_irecv(): all messages must belong to the same group")
    works: list[Work] = []
    for one in p2p_op_list:
        if one.group is not None:
            end = "group_dst" if one.op is isend else "group_src"
            works.append(one.op(one.tensor, group=one.group, tag=one.tag, **{end: one.group_peer}))
    return works


def monitored_barrier(
    group: Group = None,
    timeout: timedelta | float | None = None,
    wait_all_ranks: bool = False,
) -> None:
    """Return when every rank has called it, or raise an error that names who has not.

    Args:
        timeout: a duration, or seconds, that ranks are waited for; None takes the group's.
        wait_all_ranks: PyTorch's; here all the missing ranks are named in any case.

    Raises:
        DistributedError: on rank 0 and on all that came; on the others when they come.
    """
    mine = member("monitored_barrier", group)
    if mine is None:
        return
    limit = seconds("monitored_barrier", timeout) or mine.timeout_s
    control = mine.channel("control")
    tag = _BARRIER_TAG + mine.barriers % _BARRIER_TAGS
    mine.barriers += 1
    missing = _first(control, tag, limit) if mine.rank == 0 else _other(control, tag, limit)
    if missing:
        names = ", ".join(str(mine.ranks[place]) for place in missing)
        ranks = "rank" if len(missing) == 1 else "ranks"
        raise DistributedError(
            f"monitored_barrier(): {ranks} {names} of {mine.size} failed to reach it within "
            f"{limit:g} s, as rank {mine.ranks[0]} saw; look where those are, or allow more time"
        )


def _first(control: ProcessGroup, tag: int, limit: float) -> list[int]:
    """Wait for all others, tell them who is missing, and return it."""
    call = "monitored_barrier()"
    others = range(1, control.size)
    waits = {r: control.start_recv(np.empty(1, np.uint8), r, tag, call) for r in others}
    started = time.monotonic()
    while waits and (waited := time.monotonic() - started) < limit:
        waits = {rank: work for rank, work in waits.items() if not work.test()}
        time.sleep(nap_s(waited) if waits else 0.0)
    absent = np.zeros(control.size, np.uint8)
    absent[list(waits)] = 1
    for rank in others:
        told = control.start_send(absent, rank, tag, call)
        if rank not in waits:
            told.wait()
    return list(waits)


def _other(control: ProcessGroup, tag: int, limit: float) -> list[int]:
    """Say that this rank is here and return who is missing, as rank 0 says."""
    call = "monitored_barrier()"
    absent = np.zeros(control.size, np.uint8)
    control.start_send(np.zeros(1, np.uint8), 0, tag, call)
    answer = control.start_recv(absent, 0, tag, call)
    started = time.monotonic()
    while not answer.test():
        waited = time.monotonic() - started
        if waited > limit + _GRACE_S:
            return [0]
        time.sleep(nap_s(waited))
    return [int(rank) for rank in absent.nonzero()[0]]


_GRACE_S = 5.0  # that rank 0 may be later than this one


def _send(
    function: str, tensor: Tensor, dst: int | None, group: Group, tag: int, group_dst: int | None
) -> Work | None:
    mine = member(function, group)
    if mine is None:
        return None
    turn = message_turn(mine, checked(function, "tensor", tensor))
    host = host_of(tensor, turn)
    if turn is not None:
        turn.take()
    peer = place_in(function, "dst", mine, dst, group_dst)
    call = _described(function, mine, host, "dst", peer, tag)
    return Work(mine.start_send(host, peer, tag, call), _nothing, [tensor])


def _recv(
    function: str, tensor: Tensor, src: int | None, group: Group, tag: int, group_src: int | None
) -> Work | None:
    mine = member(function, group)
    if mine is None:
        return None
    turn = message_turn(mine, checked(function, "tensor", tensor))
    host = room_for(function, "tensor", tensor, turn=turn)
    if turn is not None:
        turn.take()
    anybody = src is None and group_src is None
    peer = ANY_RANK if anybody else place_in(function, "src", mine, src, group_src)
    call = _described(function, mine, host, "src", peer, tag)
    senders: list[int] = []
    transfer = mine.start_recv(host, peer, tag, call, senders)
    return Work(transfer, partial(bring, tensor, host), [tensor], senders)


def _described(
    function: str, mine: ProcessGroup, host: HostArray, end: str, peer: int, tag: int
) -> str:
    call = in_words(function, {"tensor": host}, {end: peer, "tag": tag})
    if peer == mine.rank:
        raise ArgumentError(
            f"{call}: rank {mine.rank} would exchange a message with itself; copy the tensor"
        )
    if not isinstance(tag, int):
        raise ArgumentTypeError(f"{call}: tag must be an int, not {type(tag).__name__}")
    if not 0 <= tag < 1 << 15:
        raise ArgumentError(f"{call}: tag must be 0 to {(1 << 15) - 1}, which every MPI grants")
    return call


def _nothing() -> None:
    """A sent tensor needs nothing."""
