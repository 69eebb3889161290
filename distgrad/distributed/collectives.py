"""PyTorch's collectives on tensors.

Every function takes ``group`` (None is the default group), and most take ``async_op``: then it
returns a `Work` at once, and its ``wait()`` raises what goes wrong. Tensors on a GPU travel through
host memory. ``src`` and ``dst`` count among all ranks, ``group_src`` and ``group_dst`` in one.

Ranks: all ranks of the group, in the same order, with tensors of the same dtype and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from distgrad.distributed.collective import split_among, transferred
from distgrad.distributed.group import OPS, ProcessGroup, dtype_kind
from distgrad.distributed.handle import Work
from distgrad.distributed.operands import (
    bring,
    bring_all,
    checked,
    checked_list,
    cut,
    flat_of,
    host_of,
    one_for_each,
    room_for,
    same_dtype,
)
from distgrad.distributed.plans import Group, Plan, place_in, run
from distgrad.distributed.reduce_op import ReduceOp, name_of
from distgrad.distributed.work import HostArray
from distgrad.errors import (
    ArgumentError,
    DtypeError,
    ShapeError,
    describe,
    signature,
)
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

    def planned(mine: ProcessGroup) -> Plan:
        host = room_for("all_reduce", "tensor", checked("all_reduce", "tensor", tensor), keep=True)
        call, how = _reducing("all_reduce", tensor, op)
        steps = transferred(mine, "all_reduce", call, host, host, how)
        return Plan(call, steps, partial(bring, tensor, host), [tensor])

    return run("all_reduce", group, async_op, planned)


def all_reduce_coalesced(
    tensors: list[Tensor] | Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Work | None:
    """Replace each tensor of one dtype by its reduction, all in one transfer."""

    def planned(mine: ProcessGroup) -> Plan:
        given = [tensors] if isinstance(tensors, Tensor) else tensors
        listed = checked_list("all_reduce_coalesced", "tensors", given)
        if not listed:
            raise ArgumentError("all_reduce_coalesced(tensors=[]): pass one tensor or more")
        for place, tensor in enumerate(listed):
            room_for("all_reduce_coalesced", f"tensors[{place}]", tensor)
        flat = flat_of(listed).copy()
        _, how = _reducing("all_reduce_coalesced", listed[0], op)
        call = signature("all_reduce_coalesced", {"tensors": listed}, {"op": how})
        steps = transferred(mine, "all_reduce", call, flat, flat, how)
        return Plan(call, steps, lambda: bring_all(listed, cut(flat, listed)), listed)

    return run("all_reduce_coalesced", group, async_op, planned)


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
        host = room_for("broadcast", "tensor", checked("broadcast", "tensor", tensor), keep)
        call = signature("broadcast", {"tensor": host}, {"src": root})
        steps = transferred(mine, "broadcast", call, host, host, peer=root)
        return Plan(call, steps, partial(bring, tensor, host), [tensor])

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
        if mine.rank != root:
            host = host_of(tensor)
            return Plan(call, transferred(mine, "reduce", call, host, _NOTHING, how, root))
        host = room_for("reduce", "tensor", tensor, keep=True)
        steps = transferred(mine, "reduce", call, host, host, how, root)
        return Plan(call, steps, partial(bring, tensor, host), [tensor])

    return run("reduce", group, async_op, planned)


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill ``tensor_list`` with the tensors of all ranks, in rank order."""

    def planned(mine: ProcessGroup) -> Plan:
        source = host_of(checked("all_gather", "tensor", tensor))
        into = one_for_each("all_gather", "tensor_list", tensor_list, mine.size, tensor)
        _check_rooms("all_gather", "tensor_list", into)
        call = signature("all_gather", {"tensor": source}, {})
        target = np.empty((mine.size, *source.shape), source.dtype)
        steps = transferred(mine, "all_gather", call, source, target)
        return Plan(call, steps, lambda: bring_all(into, list(target)), into)

    return run("all_gather", group, async_op, planned)


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: Group = None, async_op: bool = False
) -> Work | None:
    """Fill ``output_tensor`` with the tensors of all ranks, one after the other.

    Shape: [k, *rest] -> [size * k, *rest] or [size, k, *rest]
    """
    function = "all_gather_into_tensor"

    def planned(mine: ProcessGroup) -> Plan:
        source = host_of(checked(function, "input_tensor", input_tensor))
        checked(function, "output_tensor", output_tensor)
        same_dtype(function, "output_tensor", output_tensor, input_tensor)
        _check_whole(function, "output_tensor", output_tensor, input_tensor, mine.size)
        target = room_for(function, "output_tensor", output_tensor)
        call = signature(function, {"input_tensor": source}, {})
        rows = target.reshape(mine.size, *source.shape)
        steps = transferred(mine, "all_gather", call, source, rows)
        return Plan(call, steps, partial(bring, output_tensor, target), [output_tensor])

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
        source = host_of(checked("gather", "tensor", tensor))
        root = place_in("gather", "dst", mine, dst, group_dst, default=0)
        _check_root_list("gather", "gather_list", gather_list, mine.rank == root, "destination")
        call = signature("gather", {"tensor": source}, {"dst": root})
        if mine.rank != root:
            nothing = np.empty((0, *source.shape), source.dtype)
            return Plan(call, transferred(mine, "gather", call, source, nothing, peer=root))
        into = one_for_each("gather", "gather_list", gather_list, mine.size, tensor)
        _check_rooms("gather", "gather_list", into)
        target = np.empty((mine.size, *source.shape), source.dtype)
        steps = transferred(mine, "gather", call, source, target, peer=root)
        return Plan(call, steps, lambda: bring_all(into, list(target)), into)

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
        target = room_for("scatter", "tensor", tensor)
        source = np.empty((0, *target.shape), target.dtype)
        if mine.rank == root:
            parts = one_for_each("scatter", "scatter_list", scatter_list, mine.size, tensor)
            source = np.stack([host_of(part) for part in parts])
        call = signature("scatter", {"tensor": target}, {"src": root})
        steps = transferred(mine, "scatter", call, source, target, peer=root)
        return Plan(call, steps, partial(bring, tensor, target), [tensor])

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
        return _reduce_scatter(mine, function, output, flat_of(parts), op)

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
        return _reduce_scatter(mine, function, output, host_of(input).reshape(-1), op)

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
        source = host_of(checked(function, "input", input))
        checked(function, "output", output)
        same_dtype(function, "output", output, input)
        target = room_for(function, "output", output)
        if source.shape[1:] != target.shape[1:]:
            raise ShapeError(
                f"{function}(output: {describe(output)}, input: {describe(input)}): rows must have "
                "one shape; make all dimensions but the first equal"
            )
        row = int(np.prod(source.shape[1:]))
        sends = _splits(function, "input", source, input_split_sizes, mine.size)
        receives = _splits(function, "output", target, output_split_sizes, mine.size)
        call = f"{function}(rows of {source.dtype}{list(source.shape[1:])})"
        steps = split_among(
            mine, call, source, target, [n * row for n in sends], [n * row for n in receives]
        )
        return Plan(call, steps, partial(bring, output, target), [output])

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
        source = flat_of(parts)
        sends, receives = [p.array.size for p in parts], [t.array.size for t in into]
        target = np.empty(sum(receives), source.dtype)
        call = f"{function}({source.dtype})"
        steps = split_among(mine, call, source, target, sends, receives)
        return Plan(call, steps, lambda: bring_all(into, cut(target, into)), into)

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


# Parts


def _reducing(function: str, tensor: Tensor, op: ReduceOp, **options: int) -> tuple[str, str]:
    """Return the call in words and the operation's name, which fits the dtype."""
    how = name_of(function, op)
    call = signature(function, {"tensor": tensor}, {**options, "op": how})
    kind = dtype_kind(tensor.array.dtype)
    if kind in OPS[how]:
        return call, how
    fits = ", ".join(known.name for known in ReduceOp if kind in OPS[known.value])
    wrong = f"{call}: {ReduceOp(how).name} does not take {tensor.array.dtype}, which takes {fits}"
    if kind == "c":
        raise ArgumentError(f"{wrong}; reduce the real parts, or the absolute values")
    raise DtypeError(f"{wrong}; cast the tensor first")


def _reduce_scatter(
    mine: ProcessGroup, function: str, output: Tensor, source: HostArray, op: ReduceOp
) -> Plan:
    call, how = _reducing(function, output, op)
    target = room_for(function, "output", output)
    steps = transferred(mine, "reduce_scatter", call, source, target.reshape(-1), how)
    return Plan(call, steps, partial(bring, output, target), [output])


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
