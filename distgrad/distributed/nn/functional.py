"""Collectives that autograd differentiates, any number of times.

Each returns a new tensor. The gradient of a collective is the transposed collective: the loss that
is differentiated is the sum of the losses of all ranks. Backward is therefore a collective too:
every rank must run it, and through the same operations.

Note [Which reductions]: SUM and AVG are linear. MIN and MAX give the gradient to the ranks that
hold the extreme value, in equal parts. The others have no gradient here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.autograd.function import Function
from distgrad.backend.device import array_namespace
from distgrad.distributed import collectives as plain
from distgrad.distributed.default import get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.operands import bring, host_of, one_for_each
from distgrad.distributed.plans import Group, NonMember, place_in
from distgrad.distributed.reduce_op import ReduceOp
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistributedError,
    describe,
)
from distgrad.ops.compare import eq
from distgrad.ops.join import cat, stack
from distgrad.tensor import Tensor, wrap

_LINEAR = (ReduceOp.SUM, ReduceOp.AVG)


def all_reduce(tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: Group = None) -> Tensor:
    """Return the reduction of ``tensor`` over the ranks, on every rank.

    Example:
        >>> import distgrad as dg
        >>> def body(group):
        ...     x = dg.tensor(float(group.rank + 1), requires_grad=True)
        ...     total = all_reduce(x)
        ...     (total * x).backward()  # each rank's loss depends on all x
        ...     return total.item(), x.grad.item()
        >>> dg.distributed.run_ranks(2, body)
        [(3.0, 6.0), (3.0, 6.0)]
    """
    mine = _group("all_reduce", group)
    if op in _LINEAR:
        return _apply(_AllReduce, tensor, mine, op)
    if op not in (ReduceOp.MIN, ReduceOp.MAX):
        raise ArgumentError(
            f"all_reduce(tensor: {describe(tensor)}, op={op}): has no gradient; use SUM, AVG, MIN "
            "or MAX, or distgrad.distributed.all_reduce"
        )
    extreme = _apply(_AllReduce, tensor.detach(), mine, op)
    holds = eq(tensor.detach(), extreme).to(tensor.dtype)
    share = holds / _apply(_AllReduce, holds, mine, ReduceOp.SUM)
    chosen = _apply(_AllReduce, tensor * share, mine, ReduceOp.SUM)
    return chosen + (extreme - chosen.detach())  # its value, and the gradient of what was chosen


def broadcast(tensor: Tensor, src: int, group: Group = None) -> Tensor:
    """Return the tensor of rank ``src``; its gradient is the sum over the ranks."""
    mine = _group("broadcast", group)
    return _apply(_Broadcast, tensor, mine, place_in("broadcast", "src", mine, src, None))


def reduce(tensor: Tensor, dst: int, op: ReduceOp = ReduceOp.SUM, group: Group = None) -> Tensor:
    """Return the sum, or mean, over the ranks on rank ``dst``, and zeros on the others."""
    mine = _group("reduce", group)
    if op not in _LINEAR:
        raise ArgumentError(f"reduce(op={op}): has no gradient; use SUM or AVG")
    total = _apply(_Reduce, tensor, mine, place_in("reduce", "dst", mine, dst, None))
    return total / mine.size if op is ReduceOp.AVG else total


def all_gather(tensor: Tensor, group: Group = None) -> tuple[Tensor, ...]:
    """Return the tensors of all ranks, in rank order."""
    return tuple(_apply(_AllGather, tensor, _group("all_gather", group)).unbind(0))


def gather(tensor: Tensor, dst: int = 0, group: Group = None) -> tuple[Tensor, ...]:
    """Return the tensors of all ranks on rank ``dst``, and zeros on the others."""
    mine = _group("gather", group)
    place = place_in("gather", "dst", mine, dst, None)
    return tuple(_apply(_Gather, tensor, mine, place).unbind(0))


def scatter(tensors: Sequence[Tensor], src: int = 0, group: Group = None) -> Tensor:
    """Return this rank's of the ``tensors`` of rank ``src``; the others' give the shape alone."""
    mine = _group("scatter", group)
    place = place_in("scatter", "src", mine, src, None)
    given = one_for_each("scatter", "tensors", tensors, mine.size, tensors[0] if tensors else None)
    return _apply(_Scatter, stack(given), mine, place)


def reduce_scatter(
    output: Tensor, input_list: list[Tensor], op: ReduceOp = ReduceOp.SUM, group: Group = None
) -> Tensor:
    """Return the sum, or mean, of the list entries that are meant for this rank.

    Args:
        output: gets the values too.
    """
    mine = _group("reduce_scatter", group)
    if op not in _LINEAR:
        raise ArgumentError(f"reduce_scatter(op={op}): has no gradient; use SUM or AVG")
    parts = one_for_each("reduce_scatter", "input_list", input_list, mine.size, output)
    total = _apply(_ReduceScatter, stack(parts), mine)
    result = total / mine.size if op is ReduceOp.AVG else total
    bring(output, host_of(result))
    return result


def all_to_all(
    output_tensor_list: list[Tensor], input_tensor_list: list[Tensor], group: Group = None
) -> tuple[Tensor, ...]:
    """Return what the ranks sent to this one, each its entry of the input list.

    Args:
        output_tensor_list: gives the shapes, and gets the values too.
    """
    mine = _group("all_to_all", group)
    given = one_for_each("all_to_all", "input_tensor_list", input_tensor_list, mine.size)
    into = one_for_each("all_to_all", "output_tensor_list", output_tensor_list, mine.size)
    sizes = [tensor.numel() for tensor in into]
    flat = cat([tensor.reshape(-1) for tensor in given])
    whole = _apply(_AllToAll, flat, mine, sizes, [tensor.numel() for tensor in given])
    parts = whole.split(sizes)
    results = tuple(p.reshape(t.shape) for p, t in zip(parts, into, strict=True))
    for tensor, result in zip(into, results, strict=True):
        bring(tensor, host_of(result))
    return results


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group = None,
) -> Tensor:
    """Return the rows that the ranks sent to this one, in rank order.

    Args:
        output: gives the number of rows, and gets the values too.
        output_split_sizes, input_split_sizes: as for `distgrad.distributed.all_to_all_single`.
    """
    mine = _group("all_to_all_single", group)
    receives = output_split_sizes or [output.shape[0] // mine.size] * mine.size
    sends = input_split_sizes or [input.shape[0] // mine.size] * mine.size
    result = _apply(_AllToAll, input, mine, list(receives), list(sends))
    bring(output, host_of(result))
    return result


def average_gradients(
    grads: Tensor | Sequence[Tensor | None], group: Group = None, *, count: float | None = None
) -> tuple[Tensor | None, ...]:
    """Return the mean over the ranks of what ``autograd.grad(create_graph=True)`` returned.

    The means can be differentiated again: a penalty made of them is the same number on all ranks,
    and the mean over the ranks of its gradients is the gradient on the big batch.

    Args:
        grads: the gradients of this rank. None where a parameter was not used; it stays None if no
            rank used it, and else counts as zero.
        count: of the samples whose mean loss was differentiated here. With it the mean is that over
            all samples, exactly, however unevenly they lie; without it, that over the ranks.

    Ranks: all ranks, with gradients of the same shapes. Cost: one all-reduce for each dtype.
    """
    mine = _group("average_gradients", group)
    given = [grads] if isinstance(grads, Tensor) else list(grads)
    total, used = _agreed_layout(mine, given, count)
    weight = 1.0 / mine.size if count is None else (count / total if total else 0.0)
    results: list[Tensor | None] = [None] * len(given)
    for dtype in sorted({dtype for dtype, _ in used.values()}):
        places = [place for place, (kind, _) in sorted(used.items()) if kind == dtype]
        flat = cat([_flat(given[place], *used[place]) for place in places])
        if count is None:
            reduced = _apply(_AllReduce, flat, mine, ReduceOp.AVG)
        else:
            reduced = _apply(_AllReduce, flat * weight, mine, ReduceOp.SUM)
        shapes = [used[place][1] for place in places]
        parts = reduced.split([int(np.prod(shape)) for shape in shapes])
        for place, part, shape in zip(places, parts, shapes, strict=True):
            results[place] = part.reshape(shape)
    return tuple(results)


def _agreed_layout(
    mine: ProcessGroup, given: list[Any], count: float | None
) -> tuple[float, dict[int, tuple[str, tuple[int, ...]]]]:
    """Return the global count, and dtype and shape of each gradient that some rank has."""
    wrong = next((g for g in given if not isinstance(g, Tensor | None)), None)
    if wrong is not None:
        raise ArgumentTypeError(
            f"average_gradients(grads): must hold tensors or None, not {type(wrong).__name__}"
        )
    mine_says = [None if g is None else (str(g.array.dtype), g.array.shape) for g in given]
    said = mine.all_gather_object((count, mine_says))
    first_count, first = said[0]
    used: dict[int, tuple[str, tuple[int, ...]]] = {}
    for rank, (other_count, layout) in enumerate(said):
        if len(layout) != len(first) or (other_count is None) != (first_count is None):
            raise DistributedError(
                f"average_gradients(): rank {rank} gives {len(layout)} gradients and count "
                f"{other_count}, rank 0 {len(first)} and {first_count}; make the same calls"
            )
        for place, entry in enumerate(layout):
            if entry is not None and used.setdefault(place, entry) != entry:
                raise DistributedError(
                    f"average_gradients(): gradient {place} is {entry} on rank {rank} and "
                    f"{used[place]} on a lower rank; make the same calls"
                )
    return sum(float(number or 0) for number, _ in said), used


def _flat(grad: Tensor | None, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return the gradient as one row; zeros where this rank has none."""
    if grad is not None:
        return grad.reshape(-1)
    return wrap(np.zeros(int(np.prod(shape)), np.dtype(dtype)))


# The linear maps. The backward of each is its transpose, of this list again.


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup, op: ReduceOp) -> Tensor:
        ctx.group, ctx.op = group, op
        out = _copy(tensor)
        plain.all_reduce(out, op, group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _AllReduce.apply(grad, ctx.group, ctx.op), None, None


class _Broadcast(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup, place: int) -> Tensor:
        ctx.group, ctx.place = group, place
        out = _copy(tensor)
        plain.broadcast(out, group=group, group_src=place)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Reduce.apply(grad, ctx.group, ctx.place), None, None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup, place: int) -> Tensor:
        ctx.group, ctx.place = group, place
        out = _copy(tensor)
        plain.reduce(out, group=group, group_dst=place)
        return out if group.rank == place else _zeros(out, tuple(out.shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Broadcast.apply(grad, ctx.group, ctx.place), None, None


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        out = _zeros(tensor, (group.size, *tensor.shape))
        plain.all_gather_into_tensor(out, tensor, group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _ReduceScatter.apply(grad, ctx.group), None


class _ReduceScatter(Function):
    @staticmethod
    def forward(ctx: Any, stacked: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        out = _zeros(stacked, tuple(stacked.shape[1:]))
        plain.reduce_scatter_tensor(out, stacked, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _AllGather.apply(grad, ctx.group), None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup, place: int) -> Tensor:
        ctx.group, ctx.place = group, place
        out = _zeros(tensor, (group.size, *tensor.shape))
        rows = list(out.unbind(0)) if group.rank == place else None
        plain.gather(tensor, rows, group=group, group_dst=place)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Scatter.apply(grad, ctx.group, ctx.place), None, None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, stacked: Tensor, group: ProcessGroup, place: int) -> Tensor:
        ctx.group, ctx.place = group, place
        out = _zeros(stacked, tuple(stacked.shape[1:]))
        rows = list(stacked.unbind(0)) if group.rank == place else None
        plain.scatter(out, rows, group=group, group_src=place)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _Gather.apply(grad, ctx.group, ctx.place), None, None


class _AllToAll(Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: ProcessGroup, receives: list[int], sends: list[int]
    ) -> Tensor:
        ctx.group, ctx.receives, ctx.sends = group, receives, sends
        out = _zeros(tensor, (sum(receives), *tensor.shape[1:]))
        plain.all_to_all_single(out, tensor, receives, sends, group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _AllToAll.apply(grad, ctx.group, ctx.sends, ctx.receives), None, None, None


def _apply(kind: type[Function], tensor: Tensor, *options: Any) -> Tensor:
    out: Tensor = kind.apply(tensor, *options)
    return out


def _copy(tensor: Tensor) -> Tensor:
    return wrap(tensor.array.copy())


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return wrap(array_namespace(like.array).zeros(shape, like.array.dtype))


def _group(function: str, group: Group) -> ProcessGroup:
    if isinstance(group, NonMember):
        raise ArgumentError(
            f"{function}(group={group!r}): this rank is no member; call it on members only"
        )
    return get_group() if group is None else group
