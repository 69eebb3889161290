"""PyTorch's collectives on tensors.

Every function takes ``group`` (None is the default group), and most take ``async_op``: then it
returns a `Work` at once, and its ``wait()`` raises what goes wrong. Tensors on GPUs travel by NCCL
where each rank has a GPU of its own, and by way of the host otherwise; after a transfer by NCCL
``wait()`` waits for the other ranks' calls and lets the current stream wait for the numbers, not
the host. ``src`` and ``dst`` count among all ranks, ``group_src`` and ``group_dst`` in one.

Ranks: all ranks of the group, in the same order, with tensors of the same dtype and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from distgrad.distributed.collective import split_among, transferred
from distgrad.distributed.default import default_group
from distgrad.distributed.group import OPS, ProcessGroup, dtype_kind
from distgrad.distributed.handle import Work
from distgrad.distributed.operands import (
    bring,
    bring_all,
    checked,
    checked_list,
    cut,
    empty,
    flat_of,
    host_of,
    in_words,
    one_for_each,
    room_for,
    same_dtype,
    turn_of,
)
from distgrad.distributed.plans import Group, Plan, place_in, run
from distgrad.distributed.reduce_op import ReduceOp, name_of
from distgrad.distributed.work import HostArray
from distgrad.errors import (
    ArgumentError,
    DtypeError,
    ShapeError,
    describe,
)
from distgrad.futures import Future
from distgrad.tensor import Tensor

_NOTHING = np.empty(0, np.uint8)


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Work | None:
    """Replace ``tensor`` by its reduction over the ranks, the same bits on every rank.

    Example:
        >>> import distgrad as dg
        >>> def body(group):
        ...     t = dg.tensor([1.0, 2.0]) * (group.rank + 1)
        ...     dg.distributed.all_reduce(t)
        ...     return t.tolist()
        >>> dg.distributed.run_ranks(2, body)
        [[3.0, 6.0], [3.0, 6.0]]
    """
    if not async_op and type(op) is ReduceOp and _reduced_as_before(tensor, op, group):
        return None

    def planned(mine: ProcessGroup) -> Plan:
        checked("all_reduce", "tensor", tensor)
        call, how = _reducing("all_reduce", tensor, op)
        turn = turn_of(mine, "all_reduce", how, tensor)
        host = room_for("all_reduce", "tensor", tensor, True, turn)
        board = mine.board
        if board is not None and turn is None and host is tensor.array and board.takes(host.dtype):
            board.plan((op, host.dtype, host.shape), call, how, host)
        steps = transferred(mine, "all_reduce", call, host, host, how, turn=turn)
        return Plan(call, steps, partial(bring, tensor, host), [tensor], turn)

    return run("all_reduce", group, async_op, planned)


def _reduced_as_before(tensor: Tensor, op: ReduceOp, group: Group) -> bool:
    """Make the all-reduce, if the board knows one like it: all was checked and planned then."""
    mine = default_group() if group is None else group
    board = mine.board if isinstance(mine, ProcessGroup) else None
    array = tensor.array if isinstance(tensor, Tensor) else None
    if board is None or type(array) is not np.ndarray or not array.flags.carray:
        return False
    plan = board.plans.get((op, array.dtype, array.shape))
    if plan is None:
        return False
    board.group.all_reduce_planned(board, plan, array)
    bring(tensor, array)
    return True


def all_reduce_coalesced(
    tensors: list[Tensor] | Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Future[list[Tensor]] | None:
    """Replace each tensor of one dtype by its reduction, all in one transfer.

    With ``async_op`` it returns a future of the tensors, as PyTorch does.
    """

    def planned(mine: ProcessGroup) -> Plan:
        given = [tensors] if isinstance(tensors, Tensor) else tensors
        listed = checked_list("all_reduce_coalesced", "tensors", given)
        if not listed:
            raise ArgumentError("all_reduce_coalesced(tensors=[]): pass one tensor or more")
        _check_rooms("all_reduce_coalesced", "tensors", listed)
        _, how = _reducing("all_reduce_coalesced", listed[0], op)
        turn = turn_of(mine, "all_reduce_coalesced", how, *listed)
        flat = flat_of(listed, turn).copy()
        call = in_words("all_reduce_coalesced", {"tensors": listed}, {"op": how})
        steps = transferred(mine, "all_reduce", call, flat, flat, how, turn=turn)
        return Plan(call, steps, lambda: bring_all(listed, cut(flat, listed)), listed, turn)

    return _future(run("all_reduce_coalesced", group, async_op, planned))


def all_gather_coalesced(
    output_tensor_lists: list[list[Tensor]],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Future[list[Tensor]] | None:
    """Fill a list for each rank with its tensors of one dtype, all in one transfer.

    With ``async_op`` it returns a future, as PyTorch does.
    """
    function = "all_gather_coalesced"

    def planned(mine: ProcessGroup) -> Plan:
        parts = checked_list(function, "input_tensor_list", input_tensor_list)
        if not parts:
            raise ArgumentError(f"{function}(input_tensor_list=[]): pass one tensor or more")
        lists = output_tensor_lists if isinstance(output_tensor_lists, list | tuple) else []
        if len(lists) != mine.size:
            raise ArgumentError(
                f"{function}(output_tensor_lists: {len(lists)} lists): the group has {mine.size} "
                "ranks; pass a list of tensors for each of them"
            )
        for place, listed in enumerate(lists):
            _check_like(function, f"output_tensor_lists[{place}]", listed, parts)
        into = [tensor for listed in lists for tensor in listed]
        turn = turn_of(mine, function, "", *parts, *into)
        source = flat_of(parts, turn)
        target = empty((mine.size, source.size), source.dtype, turn)
        call = in_words(function, {"input_tensor_list": parts}, {})
        steps = transferred(mine, "all_gather", call, source, target, turn=turn)
        return Plan(call, steps, lambda: bring_all(into, cut(target.reshape(-1), into)), into, turn)

    return _future(run(function, group, async_op, planned))


def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Replace ``tensor`` by that of rank ``src``."""

    def planned(mine: ProcessGroup) -> Plan:
        root = place_in("broadcast", "src", mine, src, group_src)
        keep = mine.rank == root
        turn = turn_of(mine, "broadcast", "", checked("broadcast", "tensor", tensor))
        host = room_for("broadcast", "tensor", tensor, keep, turn)
        call = in_words("broadcast", {"tensor": tensor}, {"src": root})
        steps = transferred(mine, "broadcast", call, host, host, peer=root, turn=turn)
        return Plan(call, steps, partial(bring, tensor, host), [tensor], turn)

    return run("broadcast", group, async_op, planned)


def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Replace ``tensor`` by its reduction on rank ``dst``; the other ranks keep theirs."""

    def planned(mine: ProcessGroup) -> Plan:
        root = place_in("reduce", "dst", mine, dst, group_dst)
        checked("reduce", "tensor", tensor)
        call, how = _reducing("reduce", tensor, op, dst=root)
        turn = turn_of(mine, "reduce", how, tensor)
        if mine.rank != root:
            host = host_of(tensor, turn)
            steps = transferred(mine, "reduce", call, host, _NOTHING, how, root, turn)
            return Plan(call, steps, turn=turn)
        host = room_for("reduce", "tensor", tensor, True, turn)
        steps = transferred(mine, "reduce", call, host, host, how, root, turn)
        return Plan(call, steps, partial(bring, tensor, host), [tensor], turn)

    return run("reduce", group, async_op, planned)


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill ``tensor_list`` with the tensors of all ranks, in rank order."""

    def planned(mine: ProcessGroup) -> Plan:
        checked("all_gather", "tensor", tensor)
        into = one_for_each("all_gather", "tensor_list", tensor_list, mine.size, tensor)
        _check_rooms("all_gather", "tensor_list", into)
        turn = turn_of(mine, "all_gather", "", tensor, *into)
        source = host_of(tensor, turn)
        call = in_words("all_gather", {"tensor": tensor}, {})
        target = empty((mine.size, *source.shape), source.dtype, turn)
        steps = transferred(mine, "all_gather", call, source, target, turn=turn)
        return Plan(call, steps, lambda: bring_all(into, list(target)), into, turn)

    return run("all_gather", group, async_op, planned)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill ``output_tensor`` with the tensors of all ranks, one after the other.

    Shape: [k, *rest] -> [size * k, *rest] or [size, k, *rest]
    """
    function = "all_gather_into_tensor"

    def planned(mine: ProcessGroup) -> Plan:
        checked(function, "input_tensor", input_tensor)
        checked(function, "output_tensor", output_tensor)
        same_dtype(function, "output_tensor", output_tensor, input_tensor)
        _check_whole(function, "output_tensor", output_tensor, input_tensor, mine.size)
        turn = turn_of(mine, function, "", input_tensor, output_tensor)
        source = host_of(input_tensor, turn)
        target = room_for(function, "output_tensor", output_tensor, turn=turn)
        call = in_words(function, {"input_tensor": input_tensor}, {})
        rows = target.reshape(mine.size, *source.shape)
        steps = transferred(mine, "all_gather", call, source, rows, turn=turn)
        return Plan(call, steps, partial(bring, output_tensor, target), [output_tensor], turn)

    return run(function, group, async_op, planned)


def gather(
    tensor: Tensor,
    gather_list: list[Tensor] | None = None,
    dst: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Fill ``gather_list``, given on rank ``dst`` (0) only, with the tensors of all ranks."""

    def planned(mine: ProcessGroup) -> Plan:
        checked("gather", "tensor", tensor)
        root = place_in("gather", "dst", mine, dst, group_dst, default=0)
        _check_root_list("gather", "gather_list", gather_list, mine.rank == root, "destination")
        call = in_words("gather", {"tensor": tensor}, {"dst": root})
        into: list[Tensor] = []
        if mine.rank == root:
            into = one_for_each("gather", "gather_list", gather_list, mine.size, tensor)
            _check_rooms("gather", "gather_list", into)
        turn = turn_of(mine, "gather", "", tensor, *into)
        source = host_of(tensor, turn)
        target = empty((len(into), *source.shape), source.dtype, turn)
        steps = transferred(mine, "gather", call, source, target, peer=root, turn=turn)
        return Plan(call, steps, lambda: bring_all(into, list(target)), into, turn)

    return run("gather", group, async_op, planned)


def scatter(
    tensor: Tensor,
    scatter_list: list[Tensor] | None = None,
    src: int | None = None,
    group: Group = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Replace ``tensor`` by this rank's of the list, given on rank ``src`` (0) only."""

    def planned(mine: ProcessGroup) -> Plan:
        checked("scatter", "tensor", tensor)
        root = place_in("scatter", "src", mine, src, group_src, default=0)
        _check_root_list("scatter", "scatter_list", scatter_list, mine.rank == root, "source")
        parts: list[Tensor] = []
        if mine.rank == root:
            parts = one_for_each("scatter", "scatter_list", scatter_list, mine.size, tensor)
        turn = turn_of(mine, "scatter", "", tensor, *parts)
        target = room_for("scatter", "tensor", tensor, turn=turn)
        source = empty((len(parts), *target.shape), target.dtype, turn)
        for place, part in enumerate(parts):
            source[place, ...] = host_of(part, turn)
        call = in_words("scatter", {"tensor": tensor}, {"src": root})
        steps = transferred(mine, "scatter", call, source, target, peer=root, turn=turn)
        return Plan(call, steps, partial(bring, tensor, target), [tensor], turn)

    return run("scatter", group, async_op, planned)


def reduce_scatter(
    output: Tensor,
    input_list: list[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Replace ``output`` by the reduction of the list entries that are meant for this rank."""
    function = "reduce_scatter"

    def planned(mine: ProcessGroup) -> Plan:
        checked(function, "output", output)
        parts = one_for_each(function, "input_list", input_list, mine.size, output)
        return _reduce_scatter(mine, function, output, parts, op)

    return run(function, group, async_op, planned)


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Replace ``output`` by this rank's slice of the reduction of ``input``.

    Shape: [size * k, *rest] or [size, k, *rest] -> [k, *rest]
    """
    function = "reduce_scatter_tensor"

    def planned(mine: ProcessGroup) -> Plan:
        checked(function, "output", output)
        same_dtype(function, "output", output, checked(function, "input", input))
        _check_whole(function, "input", input, output, mine.size)
        return _reduce_scatter(mine, function, output, [input], op)

    return run(function, group, async_op, planned)


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send a part of ``input`` to each rank; fill ``output`` with what they send, in rank order.

    Args:
        output_split_sizes: rows that each rank sends to this one; default is equal parts.
        input_split_sizes: rows of ``input`` for each rank; default is equal parts.
    """
    function = "all_to_all_single"

    def planned(mine: ProcessGroup) -> Plan:
        checked(function, "input", input)
        checked(function, "output", output)
        same_dtype(function, "output", output, input)
        turn = turn_of(mine, function, "", input, output)
        source = host_of(input, turn)
        target = room_for(function, "output", output, turn=turn)
        if source.shape[1:] != target.shape[1:]:
            raise ShapeError(
                f"{function}(output: {describe(output)}, input: {describe(input)}): rows must have "
                "one shape; make all dimensions but the first equal"
            )
        row = int(np.prod(source.shape[1:]))
        sends = _splits(function, "input", source, input_split_sizes, mine.size)
        receives = _splits(function, "output", target, output_split_sizes, mine.size)
        call = f"{function}(rows of {source.dtype}{list(source.shape[1:])})"
        counts = [n * row for n in sends], [n * row for n in receives]
        steps = split_among(mine, call, source, target, *counts, turn)
        return Plan(call, steps, partial(bring, output, target), [output], turn)

    return run(function, group, async_op, planned)


def all_to_all(
    output_tensor_list: list[Tensor],
    input_tensor_list: list[Tensor],
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Send each rank its tensor of the input list; receive one from each into the output list."""
    function = "all_to_all"

    def planned(mine: ProcessGroup) -> Plan:
        parts = one_for_each(function, "input_tensor_list", input_tensor_list, mine.size)
        into = one_for_each(function, "output_tensor_list", output_tensor_list, mine.size)
        same_dtype(function, "output_tensor_list[0]", into[0], parts[0])
        _check_rooms(function, "output_tensor_list", into)
        turn = turn_of(mine, function, "", *parts, *into)
        source = flat_of(parts, turn)
        sends, receives = [p.array.size for p in parts], [t.array.size for t in into]
        target = empty((sum(receives),), source.dtype, turn)
        call = f"{function}({source.dtype})"
        steps = split_among(mine, call, source, target, sends, receives, turn)
        return Plan(call, steps, lambda: bring_all(into, cut(target, into)), into, turn)

    return run(function, group, async_op, planned)


def barrier(
    group: Group = None, async_op: bool = False, device_ids: Sequence[int] | None = None
) -> Work | None:
    """Return when every rank of the group has called it.

    Args:
        device_ids: for PyTorch's NCCL; here the ranks themselves meet, so none may be given.
    """

    def planned(mine: ProcessGroup) -> Plan:
        if device_ids is not None:
            raise ArgumentError(
                f"barrier(device_ids={device_ids!r}): ranks meet here and not devices; leave "
                "device_ids out, and synchronize the device before"
            )
        return Plan("barrier()", transferred(mine, "barrier", "barrier()", _NOTHING, _NOTHING))

    return run("barrier", group, async_op, planned)


all_gather_single = all_gather_into_tensor
reduce_scatter_single = reduce_scatter_tensor


# Parts


def _future(work: Work | None) -> Future[list[Tensor]] | None:
    return None if work is None else work.get_future()


def _check_like(function: str, name: str, values: Any, like: list[Tensor]) -> None:
    """Raise if ``values`` are not tensors of dtype and shapes of ``like``, to be written to."""
    tensors = checked_list(function, name, values)
    if len(tensors) != len(like):
        raise ArgumentError(
            f"{function}({name}: {len(tensors)} tensors): {len(like)} are sent; pass as many"
        )
    for place, (tensor, other) in enumerate(zip(tensors, like, strict=True)):
        same_dtype(function, f"{name}[{place}]", tensor, other)
        if tensor.array.shape != other.array.shape:
            raise ShapeError(
                f"{function}({name}[{place}]: {describe(tensor)}): must have the shape of what is "
                f"sent, {describe(other)}"
            )
    _check_rooms(function, name, tensors)


def _reducing(function: str, tensor: Tensor, op: ReduceOp, **options: int) -> tuple[str, str]:
    """Return the call in words and the operation's name, which fits the dtype."""
    how = name_of(function, op)
    call = in_words(function, {"tensor": tensor}, {**options, "op": how})
    kind = dtype_kind(tensor.array.dtype)
    if kind in OPS[how]:
        return call, how
    fits = ", ".join(known.name for known in ReduceOp if kind in OPS.get(known.value, ""))
    wrong = f"{call}: {ReduceOp(how).name} does not take {tensor.array.dtype}, which takes {fits}"
    if kind == "c":
        raise ArgumentError(f"{wrong}; reduce the real parts, or the absolute values")
    raise DtypeError(f"{wrong}; cast the tensor first")


def _reduce_scatter(
    mine: ProcessGroup, function: str, output: Tensor, parts: list[Tensor], op: ReduceOp
) -> Plan:
    call, how = _reducing(function, output, op)
    turn = turn_of(mine, function, how, output, *parts)
    source = flat_of(parts, turn)
    target = room_for(function, "output", output, turn=turn)
    flat = target.reshape(-1)
    steps = transferred(mine, "reduce_scatter", call, source, flat, how, turn=turn)
    return Plan(call, steps, partial(bring, output, target), [output], turn)


def _check_rooms(function: str, name: str, tensors: list[Tensor]) -> None:
    for place, tensor in enumerate(tensors):
        room_for(function, f"{name}[{place}]", tensor)


def _check_whole(function: str, name: str, whole: Tensor, part: Tensor, size: int) -> None:
    """Raise if ``whole`` is neither ``size`` parts in a row nor a stack of them."""
    shape, rows = part.array.shape, whole.array.shape
    flat = (size * shape[0], *shape[1:]) if shape else (size,)
    if rows not in (flat, (size, *shape)):
        raise ArgumentError(
            f"{function}({name}: {describe(whole)}): a part is {describe(part)}, so for {size} "
            f"ranks {name} must be {list(flat)} or {[size, *shape]}"
        )


def _check_root_list(function: str, name: str, value: Any, here: bool, end: str) -> None:
    if here and not value:
        raise ArgumentError(
            f"{function}({name}={value!r}): {name} must be specified on the {end} rank"
        )
    if not here and value:
        raise ArgumentError(
            f"{function}({name}: {len(value)} tensors): {name} must not be specified on ranks "
            f"other than the {end}; pass None there"
        )


def _splits(
    function: str, name: str, array: HostArray, sizes: Sequence[int] | None, ranks: int
) -> list[int]:
    """Return the rows of each part."""
    if array.ndim == 0:
        raise ShapeError(f"{function}({name}: {describe(array)}): has no rows; use reshape(-1)")
    if not sizes:
        if array.shape[0] % ranks:
            raise ShapeError(
                f"{function}({name}: {describe(array)}): dimension 0 cannot be cut into {ranks} "
                f"equal parts; pass {name}_split_sizes"
            )
        return [array.shape[0] // ranks] * ranks
    wrong = len(sizes) != ranks or min(sizes) < 0 or sum(sizes) != array.shape[0]
    if wrong:
        raise ShapeError(
            f"{function}({name}: {describe(array)}, {name}_split_sizes={list(sizes)}): must be "
            f"{ranks} numbers of rows, 0 or more, that sum to {array.shape[0]}"
        )
    return [int(n) for n in sizes]
