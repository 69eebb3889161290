"""The collectives on the board of a host: what each rank writes there, and what it reads.

Long arrays go in pieces, one in every turn of the board. A row piece is the same span of what every
rank brings; a column piece that span of what each brings for every rank.

Every function takes the board and the transfer, and is a generator as Note [Waiting or not] of
`board` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distgrad.distributed.board import Board, Turns, digest_of, reduce_into, spans_of
from distgrad.distributed.reduce_op import UFUNCS
from distgrad.distributed.work import HostArray, Transfer


def takes(collective: str) -> bool:
    """Return whether transfers of this kind are made on the board."""
    return collective in _MOVES


def moving(board: Board, t: Transfer) -> Turns:
    """Make a transfer; the generator returns whether all ranks made the same call."""
    return _MOVES[t.collective](board, t)


def _barrier(board: Board, t: Transfer) -> Turns:
    board.turn += 1
    return board.meeting(digest_of(t.call), t.call)


def _all_reduce(board: Board, t: Transfer) -> Turns:
    wire = _wide(t.target)
    key = (t.op, wire.dtype, wire.shape, t.call)
    plan = board.plans.get(key) or board.plan(key, t.call, t.op, wire)
    same = yield from board.reducing(plan, wire)
    if same and wire is not t.target:
        np.copyto(t.target, wire, casting="unsafe")
    return same


def _reduce(board: Board, t: Transfer) -> Turns:
    wire = _wide(t.source).reshape(-1)
    ranks, here = _ranks(board), board.me == t.peer
    direct = here and wire.dtype == t.target.dtype
    total = t.target.reshape(-1) if direct else np.empty(wire.size if here else 0, wire.dtype)

    def write(span: slice) -> None:
        board.part(board.me, wire.dtype, (span.stop - span.start,))[...] = wire[span]

    def read(span: slice) -> None:
        if here:
            shape = (span.stop - span.start,)
            parts = [board.part(place, wire.dtype, shape) for place in ranks]
            board.quietly(_reduce_parts, t.op, parts, total[span])

    same = yield from _in_pieces(board, t, wire.size, wire.itemsize, write, read)
    if same and here and not direct:
        np.copyto(t.target, total.reshape(t.target.shape), casting="unsafe")
    return same


def _reduce_scatter(board: Board, t: Transfer) -> Turns:
    ranks = _ranks(board)
    source = _wide(t.source).reshape(len(ranks), -1)
    total = np.empty(source.shape[1], source.dtype)

    def write(span: slice) -> None:
        shape = (len(ranks), span.stop - span.start)
        board.part(board.me, source.dtype, shape)[...] = source[:, span]

    def read(span: slice) -> None:
        shape = (len(ranks), span.stop - span.start)
        parts = [board.part(place, source.dtype, shape)[board.me] for place in ranks]
        board.quietly(_reduce_parts, t.op, parts, total[span])

    size, width = total.size, source.itemsize * len(ranks)
    same = yield from _in_pieces(board, t, size, width, write, read)
    if same:
        np.copyto(t.target, total.reshape(t.target.shape), casting="unsafe")
    return same


def _broadcast(board: Board, t: Transfer) -> Turns:
    target = _bytes(t.target)

    def write(span: slice) -> None:
        if board.me == t.peer:
            board.part(board.me, target.dtype, (span.stop - span.start,))[...] = target[span]

    def read(span: slice) -> None:
        if board.me != t.peer:
            target[span] = board.part(t.peer, target.dtype, (span.stop - span.start,))

    return _in_pieces(board, t, target.size, 1, write, read)


def _all_gather(board: Board, t: Transfer) -> Turns:
    return _gathered(board, t, True)


def _gather(board: Board, t: Transfer) -> Turns:
    return _gathered(board, t, board.me == t.peer)


def _gathered(board: Board, t: Transfer, here: bool) -> Turns:
    ranks, source = _ranks(board), _bytes(t.source)
    target = _bytes(t.target).reshape(len(ranks) if here else 0, source.size)

    def write(span: slice) -> None:
        board.part(board.me, source.dtype, (span.stop - span.start,))[...] = source[span]

    def read(span: slice) -> None:
        for place in ranks if here else ():
            part = board.part(place, source.dtype, (span.stop - span.start,))
            target[place, span] = source[span] if place == board.me else part

    return _in_pieces(board, t, source.size, 1, write, read)


def _scatter(board: Board, t: Transfer) -> Turns:
    ranks, target = _ranks(board), _bytes(t.target)
    here = board.me == t.peer
    source = _bytes(t.source).reshape(len(ranks) if here else 0, target.size)

    def write(span: slice) -> None:
        if here:
            shape = (len(ranks), span.stop - span.start)
            board.part(board.me, source.dtype, shape)[...] = source[:, span]

    def read(span: slice) -> None:
        shape = (len(ranks), span.stop - span.start)
        target[span] = board.part(t.peer, target.dtype, shape)[board.me]

    return _in_pieces(board, t, target.size, len(ranks), write, read)


def _in_pieces(
    board: Board,
    t: Transfer,
    count: int,
    width: int,
    write: Callable[[slice], None],
    read: Callable[[slice], None],
) -> Turns:
    """Write, meet and read, piece by piece.

    Args:
        count: elements of the whole.
        width: bytes that a rank writes for one.
    """
    digest = digest_of(t.call)
    for span in spans_of(count, max(1, board.half_bytes // width)):
        board.turn += 1
        write(span)
        if not (yield from board.meeting(digest, t.call)):
            return False
        read(span)
    return True


def _reduce_parts(op: str, parts: list[HostArray], out: HostArray) -> None:
    reduce_into(UFUNCS[op], parts, out)
    if op == "avg":
        np.divide(out, len(parts), out=out)


def _ranks(board: Board) -> range:
    return range(len(board.slab.signals))


def _wide(array: HostArray) -> HostArray:
    """The array as NumPy adds it without rounding in between: narrow floats as float32."""
    narrow = array.dtype == np.float16 or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if narrow else array


def _bytes(array: HostArray) -> HostArray:
    return array.reshape(-1).view(np.uint8)


_MOVES: dict[str, Callable[[Board, Any], Turns]] = {
    "barrier": _barrier,
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
}
