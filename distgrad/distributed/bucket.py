"""Buckets: flat arrays whose slices are the ``grad`` of parameters, and the plan that fills them.

Note [Two flat arrays]
    A bucket holds the gradients of its parameters in one array and their values in another, in the
    same order.  So an all-reduce, the first broadcast and an optimizer step each work on one long
    array, and nothing is packed or unpacked.

Note [The tail]
    The last bucket ends in a few more elements: one flag per parameter that has a gradient, and
    the digits of the sample count and of the number of the reduction, in a base so small that sums
    over all ranks are exact in the bucket's dtype.  Agreement on them costs no collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, array_namespace, device_of, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reduction import Common
from distgrad.distributed.shared import ALIGNMENT
from distgrad.distributed.tree import Subtree, Sum, Tree
from distgrad.distributed.work import HostArray
from distgrad.tensor import Tensor, wrap

FIRST_CAP_MB = 1.0  # the first bucket is ready early, so it should be small
CAP_MB = 25.0
_COUNT_BITS = 53


class Bucket:
    """Parameters of one dtype and device, and their gradients in one array.

    ``flat`` holds the gradients where the parameters are; ``wire`` is what goes to the other ranks:
    the same array, or on a GPU a copy of it on the host. ``sums`` are as long as ``wire`` and hold
    the sums of shards that wait for their neighbours.
    """

    __slots__ = (
        "common", "filled_at", "flat", "index", "job", "launched", "names", "params", "ready",
        "spans", "sums", "tail", "total", "values", "wire", "work",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        params: Sequence[Tensor],
        names: Sequence[str],
        memory: Memory,
        tail: int = 0,
    ) -> None:
        """Move the values of ``params`` into one array and give each a slice for its gradient.

        Args:
            index: number of the bucket, alike on all ranks.
            params: leaves of one dtype on one device.
            names: their names, for messages.
            memory: where ``wire`` and ``sums`` come from.
            tail: elements beyond the gradients.
        """
        self.index, self.params, self.names, self.tail = index, list(params), list(names), tail
        sizes = [p.array.size for p in params]
        starts = np.cumsum([0, *sizes]).tolist()
        self.spans = [slice(a, b) for a, b in pairwise(starts)]
        array = params[0].array
        xp, dtype = array_namespace(array), array.dtype
        self.wire, self.sums, self.common = memory.take(starts[-1] + tail, dtype)
        on_host = isinstance(array, np.ndarray)
        self.flat = self.wire if on_host else xp.zeros(self.wire.shape, dtype)
        self.values = xp.empty(starts[-1], dtype)
        self.total = Sum(np.add)  # of the shards before this one
        self.job: Any = None  # at the communication thread
        self.work: Any = None  # the transfer itself, once started
        self.filled_at = 0.0
        self.launched = False  # in this backward
        self.ready: set[int] = set()
        for param, span in zip(params, self.spans, strict=True):
            value = self.values[span].reshape(param.array.shape)
            value[...] = param.array
            param.array = value
            view = wrap(self.flat[span].reshape(param.array.shape))
            if param.grad is not None:
                view.array[...] = param.grad.array
                param.grad = view
            param._grad_buffer = view

    @property
    def full(self) -> bool:
        """True when every parameter has reported its gradient."""
        return len(self.ready) == len(self.params)

    @property
    def gradients(self) -> Any:
        """The flat gradients without the tail."""
        return self.flat[: self.spans[-1].stop]

    @property
    def end(self) -> Any:
        """The tail."""
        return self.flat[self.spans[-1].stop :]

    def keep(self, part: Subtree) -> None:
        """Add the gradients of a shard to those before it; ``flat`` is free for the next one."""
        self.stage_out()
        self.total.push(part, self.wire)
        stack = self.total.stack
        if stack[-1][1] is self.wire:
            place = self.sums[len(stack) - 1]
            np.copyto(place, self.wire)
            stack[-1] = (stack[-1][0], place)

    def settle(self, part: Subtree) -> list[HostArray]:
        """Add the gradients of the last shard and return what this rank brings, ``wire`` last."""
        self.stage_out()
        self.total.push_into(part, self.wire)
        arrays = [array for _, array in self.total.stack]
        self.total.stack.clear()
        return arrays

    def reduce_alone(self, part: Subtree) -> None:
        """Leave the sum of all shards in ``flat``, where one rank has them all."""
        *others, wire = self.settle(part)
        for array in reversed(others):
            np.add(array, wire, out=wire)
        self.stage_in()

    def stage_out(self) -> None:
        """Copy the gradients of a GPU to the host."""
        if self.wire is not self.flat:
            self.wire[...] = to_device(self.flat, CPU)

    def stage_in(self) -> None:
        """Bring what came over the wire back to where the gradients live."""
        if self.wire is not self.flat:
            self.flat[...] = to_device(self.wire, device_of(self.flat))

    def describe(self) -> str:
        """Return the bucket for messages: number, size, first and last parameter."""
        return (
            f"bucket {self.index} ({self.flat.nbytes / 2**20:.2f} MiB {self.flat.dtype}, "
            f"{self.names[0]} … {self.names[-1]})"
        )


class Memory:
    """Where buckets get their arrays: common memory of the ranks of a host, or their own.

    Args:
        group: the ranks.
        tree: which shards they have.
        nbytes: of all that will be taken, roundings aside.
        arrays: how many times `take` will be called.
    """

    def __init__(self, group: ProcessGroup, tree: Tree, nbytes: int, arrays: int) -> None:
        self.tree, self.hosts = tree, group.hosts
        room = (1 + tree.waiting) * (nbytes + arrays * ALIGNMENT)
        self.slab = group.shared_memory(room, 2 * arrays)  # each plan has signals of its own
        self.here = next(ranks for ranks in group.hosts if group.rank in ranks)

    def reuse(self) -> None:
        """Let the next arrays lie where the first ones do."""
        if self.slab is not None:
            self.slab.reuse()

    def take(self, count: int, dtype: Any) -> tuple[HostArray, list[HostArray], Common | None]:
        """Return an array for the wire, arrays for sums, and both as others see them."""
        if self.slab is None:
            sums = [np.empty(count, dtype) for _ in range(self.tree.waiting)]
            return np.zeros(count, dtype), sums, None
        waiting = [self.slab.take(count, dtype) for _ in range(self.tree.waiting)]
        wire = self.slab.take(count, dtype)
        brought = [
            [sums[place] for sums in waiting[: len(self.tree.parts[rank]) - 1]] + [wire[place]]
            for place, rank in enumerate(self.here)
        ]
        mine = self.slab.place
        return wire[mine], [sums[mine] for sums in waiting], Common(self.slab, self.hosts, brought)


def plan_buckets(
    named: Sequence[tuple[str, Tensor]],
    cap_mb: float | None = None,
    order: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return for each bucket the positions of its parameters in ``named``.

    They are taken in ``order``, by default from the end. A bucket closes when it has reached
    ``cap_mb`` (default 25 MiB, and 1 MiB for the first).
    """
    open_: dict[tuple[str, str], list[int]] = {}
    filled: dict[tuple[str, str], int] = {}
    buckets: list[list[int]] = []
    for place in reversed(range(len(named))) if order is None else order:
        array = named[place][1].array
        key = (str(array.dtype), str(device_of(array)))
        open_.setdefault(key, []).append(place)
        filled[key] = filled.get(key, 0) + array.nbytes
        cap = (FIRST_CAP_MB if not buckets else CAP_MB) if cap_mb is None else cap_mb
        if filled[key] >= cap * 2**20:
            buckets.append(open_.pop(key))
            del filled[key]
    return buckets + list(open_.values())


class Tail:
    """Numbers that travel at the end of the last bucket, and are summed with it.

    Args:
        dtype: of the bucket.
        ranks: how many numbers a sum adds.
        params: how many flags there are.
    """

    def __init__(self, dtype: Any, ranks: int, params: int) -> None:
        self.ranks, self.params = ranks, params
        # Sums of as many digits of this base are exact in the dtype.
        exact = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}.get(str(dtype), 2**53)
        self.base = max(2, exact // ranks)
        self.digits = [_digits(self.base, bits) for bits in (_COUNT_BITS, 16, 32)]
        self.length = params + sum(self.digits)

    def write(
        self, tail: Any, used: Sequence[bool], count: int, number: int, last_shard: bool
    ) -> None:
        """Write flags, the sample count, and the number of this reduction with its square.

        Nothing but zeros before the last shard: one tail for each rank.
        """
        if not last_shard:
            tail[...] = 0
            return
        number %= 2**16
        values = list(map(float, used))
        for value, digits in zip((count, number, number**2), self.digits, strict=True):
            rest = value
            for _ in range(digits):
                rest, digit = divmod(rest, self.base)
                values.append(float(digit))
        tail[...] = array_namespace(tail).asarray(values, dtype=tail.dtype)

    def read(self, tail: Any) -> tuple[list[bool], int, bool]:
        """Return which parameters any rank used, the count, and whether all numbers are alike."""
        values = tail.tolist()
        numbers, at = [], self.params
        for digits in self.digits:
            part = values[at : at + digits]
            numbers.append(sum(int(digit) * self.base**i for i, digit in enumerate(part)))
            at += digits
        count, first, squares = numbers
        return [v > 0 for v in values[: self.params]], count, squares * self.ranks == first**2


def _digits(base: int, bits: int) -> int:
    digits, reach = 0, 1
    while reach < 2**bits:
        reach *= base
        digits += 1
    return digits
