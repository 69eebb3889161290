"""Buckets: flat arrays whose slices are the ``grad`` of parameters, and the plan that fills them.

Note [Two flat arrays]
    A bucket holds the gradients of its parameters in one array and their values in another, in the
    same order.  So an all-reduce, the first broadcast and an optimizer step each work on one long
    array, and nothing is packed or unpacked.

Note [The tail]
    The last bucket ends in a few more elements: one flag per parameter that has a gradient, and
    the digits of the sample count, in a base so small that sums over all ranks are exact in the
    bucket's dtype.  Agreement on unused parameters and on the count costs no collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, array_namespace, device_of, to_device
from distgrad.tensor import Tensor, wrap

FIRST_CAP_MB = 1.0  # the first bucket is ready early, so it should be small
CAP_MB = 25.0
_COUNT_BITS = 53


class Bucket:
    """Parameters of one dtype and device, and their gradients in one array."""

    __slots__ = (
        "filled_at", "flat", "host", "index", "job", "names", "params", "ready", "spans", "tail",
        "values", "work",
    )  # fmt: skip

    def __init__(
        self, index: int, params: Sequence[Tensor], names: Sequence[str], tail: int = 0
    ) -> None:
        """Move the values of ``params`` into one array and give each a slice for its gradient.

        Args:
            index: number of the bucket, alike on all ranks.
            params: leaves of one dtype on one device.
            names: their names, for messages.
            tail: elements beyond the gradients.
        """
        self.index, self.params, self.names, self.tail = index, list(params), list(names), tail
        sizes = [p.array.size for p in params]
        starts = np.cumsum([0, *sizes]).tolist()
        self.spans = [slice(a, b) for a, b in pairwise(starts)]
        xp, dtype = array_namespace(params[0].array), params[0].array.dtype
        self.flat = xp.zeros(starts[-1] + tail, dtype)
        self.values = xp.empty(starts[-1], dtype)
        on_host = isinstance(self.flat, np.ndarray)
        self.host = self.flat if on_host else np.empty(self.flat.shape, dtype)
        self.job: Any = None  # at the communication thread
        self.work: Any = None  # the transfer itself, once started
        self.filled_at = 0.0
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

    def stage_out(self) -> np.ndarray[Any, Any]:
        """Return the array that goes over the wire; a GPU's is copied to the host."""
        if self.host is not self.flat:
            self.host[...] = to_device(self.flat, CPU)
        return self.host

    def stage_in(self) -> None:
        """Bring what came over the wire back to where the gradients live."""
        if self.host is not self.flat:
            self.flat[...] = to_device(self.host, device_of(self.flat))

    def describe(self) -> str:
        """Return the bucket for messages: number, size, first and last parameter."""
        return (
            f"bucket {self.index} ({self.flat.nbytes / 2**20:.2f} MiB {self.flat.dtype}, "
            f"{self.names[0]} … {self.names[-1]})"
        )


def plan_buckets(
    named: Sequence[tuple[str, Tensor]], cap_mb: float | None = None
) -> list[list[int]]:
    """Return for each bucket the positions of its parameters in ``named``.

    Gradients come in about the reverse order of registration, so buckets are filled from the end.
    A bucket closes when it has reached ``cap_mb`` (default 25 MiB, and 1 MiB for the first).
    """
    open_: dict[tuple[str, str], list[int]] = {}
    filled: dict[tuple[str, str], int] = {}
    buckets: list[list[int]] = []
    for place in reversed(range(len(named))):
        array = named[place][1].array
        key = (str(array.dtype), str(device_of(array)))
        open_.setdefault(key, []).append(place)
        filled[key] = filled.get(key, 0) + array.nbytes
        cap = (FIRST_CAP_MB if not buckets else CAP_MB) if cap_mb is None else cap_mb
        if filled[key] >= cap * 2**20:
            buckets.append(open_.pop(key))
            del filled[key]
    return buckets + list(open_.values())


# ---------------------------------------------------------------------- the tail
def tail_base(dtype: Any, world_size: int) -> int:
    """Return the base of count digits: sums of ``world_size`` digits stay exact in ``dtype``."""
    exact = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}.get(str(dtype), 2**53)
    return max(2, exact // world_size)


def tail_length(dtype: Any, world_size: int, params: int) -> int:
    """Return how many elements the tail takes: flags and digits."""
    base = tail_base(dtype, world_size)
    digits, reach = 0, 1
    while reach < 2**_COUNT_BITS:
        reach *= base
        digits += 1
    return params + digits


def write_tail(tail: Any, used: Sequence[bool], count: int, world_size: int) -> None:
    """Write flags and the digits of ``count`` into ``tail``."""
    base = tail_base(tail.dtype, world_size)
    digits = []
    for _ in range(tail.size - len(used)):
        count, digit = divmod(count, base)
        digits.append(digit)
    xp = array_namespace(tail)
    tail[...] = xp.asarray([*map(float, used), *map(float, digits)], dtype=tail.dtype)


def read_tail(tail: Any, params: int, world_size: int) -> tuple[list[bool], int]:
    """Return which parameters were used on any rank, and the total count."""
    values = tail.tolist()
    base = tail_base(tail.dtype, world_size)
    count = sum(int(digit) * base**place for place, digit in enumerate(values[params:]))
    return [v > 0 for v in values[:params]], count
