"""PyTorch's collectives on objects, which travel as pickles.

Unpickling runs code, so only ranks of one job, which trust each other, may use these.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from distgrad.distributed.collective import Steps, agreed, exchanged
from distgrad.distributed.group import ANY_RANK, ProcessGroup
from distgrad.distributed.plans import Group, Plan, member, place_in, run
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError

Filled: TypeAlias = Generator[Any, None, None]
_HEAD = 2  # numbers before a message: how many objects, how many bytes


def all_gather_object(object_list: list[Any], obj: Any, group: Group = None) -> None:
    """Fill ``object_list`` with the objects of all ranks, in rank order.

    Example:
        >>> from distgrad.distributed import run_ranks
        >>> def body(group):
        ...     found = [None] * group.size
        ...     all_gather_object(found, {"rank": group.rank})
        ...     return found
        >>> run_ranks(2, body)[1]
        [{'rank': 0}, {'rank': 1}]
    """

    def planned(mine: ProcessGroup) -> Plan:
        into = _room("all_gather_object", "object_list", object_list, mine.size)
        found: list[Any] = []
        call = "all_gather_object()"
        return Plan(call, _all_gather(mine, call, obj, found), partial(_fill, into, found))

    run("all_gather_object", group, False, planned)


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int | None = None,
    group: Group = None,
    group_dst: int | None = None,
) -> None:
    """Fill ``object_gather_list``, given on rank ``dst`` (0) only, with the objects of all."""

    def planned(mine: ProcessGroup) -> Plan:
        root = place_in("gather_object", "dst", mine, dst, group_dst, default=0)
        into: list[Any] = []
        if mine.rank == root:
            into = _room("gather_object", "object_gather_list", object_gather_list, mine.size)
        found: list[Any] = []
        call = f"gather_object(dst={root})"
        return Plan(call, _gather(mine, call, obj, root, found), partial(_fill, into, found))

    run("gather_object", group, False, planned)


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Replace the objects in ``object_list`` by those of rank ``src`` (0).

    Args:
        device: PyTorch's; pickles travel through host memory here, on every device.
    """

    def planned(mine: ProcessGroup) -> Plan:
        root = place_in("broadcast_object_list", "src", mine, src, group_src, default=0)
        into = _room("broadcast_object_list", "object_list", object_list, None)
        found: list[Any] = []
        call = f"broadcast_object_list({len(into)} objects, src={root})"
        return Plan(call, _broadcast(mine, call, into, root, found), partial(_fill, into, found))

    run("broadcast_object_list", group, False, planned)


def scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    src: int | None = None,
    group: Group = None,
    group_src: int | None = None,
) -> None:
    """Put this rank's object of the input list, given on rank ``src`` (0), at place 0 of the other.

    The input list is ignored on other ranks.
    """
    function = "scatter_object_list"

    def planned(mine: ProcessGroup) -> Plan:
        root = place_in(function, "src", mine, src, group_src, default=0)
        into = _room(function, "scatter_object_output_list", scatter_object_output_list, None)
        if not into:
            raise ArgumentError(
                f"{function}(scatter_object_output_list=[]): needs a place for the object; pass "
                "a list of one element"
            )
        given: list[Any] = []
        if mine.rank == root:
            name = "scatter_object_input_list"
            given = _room(function, name, scatter_object_input_list, mine.size)
        found: list[Any] = []
        call = f"{function}(src={root})"
        return Plan(call, _scatter(mine, call, given, root, found), partial(_fill, into, found))

    run(function, group, False, planned)


def send_object_list(
    object_list: list[Any],
    dst: int | None = None,
    group: Group = None,
    device: Any = None,
    group_dst: int | None = None,
    use_batch: bool = False,
) -> None:
    """Send the objects to rank ``dst``.

    Args:
        device, use_batch: PyTorch's; pickles travel through host memory here, and messages need
            no batch to start with.
    """
    function = "send_object_list"
    mine = member(function, group)
    if mine is None:
        return
    peer = place_in(function, "dst", mine, dst, group_dst)
    given = _room(function, "object_list", object_list, None)
    _refuse_itself(function, mine, peer)
    data = np.frombuffer(pickle.dumps(given), np.uint8)
    head = np.array([len(given), data.size], np.int64)
    works = [mine.start_send(part, peer, 0, function) for part in (head, data)]
    for work in works:
        work.wait()


def recv_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: Group = None,
    device: Any = None,
    group_src: int | None = None,
    use_batch: bool = False,
) -> int:
    """Replace the objects in ``object_list`` by those that rank ``src`` sends; return that rank.

    Args:
        src: None takes what comes first, from any rank.
        device, use_batch: as for `send_object_list`.
    """
    function = "recv_object_list"
    mine = member(function, group)
    if mine is None:
        return -1
    into = _room(function, "object_list", object_list, None)
    anybody = src is None and group_src is None
    peer = ANY_RANK if anybody else place_in(function, "src", mine, src, group_src)
    _refuse_itself(function, mine, peer)
    head, senders = np.zeros(_HEAD, np.int64), list[int]()
    mine.start_recv(head, peer, 0, function, senders).wait()
    count, nbytes = map(int, head)
    data = np.empty(nbytes, np.uint8)
    mine.start_recv(data, senders[0], 0, function).wait()
    if count != len(into):
        raise DistributedError(
            f"{function}(object_list: {len(into)} objects): rank {senders[0]} sent {count}; pass "
            "a list of that length"
        )
    into[:] = pickle.loads(data.tobytes())
    return mine.ranks[senders[0]]


# Steps. All leave what they got in ``found``.


def _all_gather(mine: ProcessGroup, call: str, obj: Any, found: list[Any]) -> Steps:
    if not mine.compares_calls:
        yield from agreed(mine, call)
    yield from exchanged(mine, call, obj, found)


def _gather(mine: ProcessGroup, call: str, obj: Any, root: int, found: list[Any]) -> Steps:
    if not mine.compares_calls:
        yield from agreed(mine, call)
    data = _pickled(obj)
    lengths = np.empty((mine.size, 1), np.int64)
    yield mine.launch("all_gather", call, np.array([data.size], np.int64), lengths)
    padded = _padded(data, int(lengths.max()))
    rows = np.empty((mine.size if mine.rank == root else 0, padded.size), np.uint8)
    yield mine.launch("gather", call, padded, rows, peer=root)
    found += [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, lengths[:, 0], strict=False)]


def _broadcast(
    mine: ProcessGroup, call: str, given: list[Any], root: int, found: list[Any]
) -> Steps:
    if not mine.compares_calls:
        yield from agreed(mine, call)
    data = _pickled(given) if mine.rank == root else np.empty(0, np.uint8)
    length = np.array([data.size], np.int64)
    yield mine.launch("broadcast", call, length, length, peer=root)
    if mine.rank != root:
        data = np.empty(int(length[0]), np.uint8)
    yield mine.launch("broadcast", call, data, data, peer=root)
    if mine.rank != root:
        found += pickle.loads(data.tobytes())


def _scatter(mine: ProcessGroup, call: str, given: list[Any], root: int, found: list[Any]) -> Steps:
    if not mine.compares_calls:
        yield from agreed(mine, call)
    parts = [_pickled(obj) for obj in given]
    lengths = np.array([part.size for part in parts] or [0] * mine.size, np.int64)
    yield mine.launch("broadcast", call, lengths, lengths, peer=root)
    longest = int(lengths.max())
    rows = np.empty((0, longest), np.uint8)
    if mine.rank == root:
        rows = np.stack([_padded(part, longest) for part in parts])
    row = np.empty(longest, np.uint8)
    yield mine.launch("scatter", call, rows, row, peer=root)
    found.append(pickle.loads(row[: lengths[mine.rank]].tobytes()))


def _pickled(obj: Any) -> HostArray:
    return np.frombuffer(pickle.dumps(obj), np.uint8).copy()


def _padded(data: HostArray, length: int) -> HostArray:
    padded = np.zeros(length, np.uint8)
    padded[: data.size] = data
    return padded


def _fill(into: list[Any], found: list[Any]) -> None:
    into[: len(found)] = found


def _room(function: str, name: str, value: Any, size: int | None) -> list[Any]:
    """Return ``value``, a list of ``size`` elements."""
    if not isinstance(value, list):
        raise ArgumentTypeError(
            f"{function}({name}={value!r}): {name} must be a list, not {type(value).__name__}"
        )
    if size is not None and len(value) != size:
        raise ArgumentError(
            f"{function}({name}: {len(value)} objects): the group has {size} ranks; pass a list "
            f"of {size} objects"
        )
    return value


def _refuse_itself(function: str, mine: ProcessGroup, peer: int) -> None:
    if peer == mine.rank:
        raise ArgumentError(
            f"{function}(): rank {mine.rank} would exchange a message with itself; copy the list"
        )
