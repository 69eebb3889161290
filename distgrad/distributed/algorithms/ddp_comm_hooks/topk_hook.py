"""Only the largest gradients travel; the rest waits for its turn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.comm_hooks import GradBucket
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap


class ErrorMemory:
    """What each bucket has held back, until the bucket holds other parameters."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[tuple[str, ...], Any]] = {}

    def take(self, bucket: GradBucket) -> Any:
        """Return what ``bucket`` has held back, or None."""
        names, array = self._held.pop(bucket.index(), ((), None))
        return array if names == bucket.names else None

    def put(self, bucket: GradBucket, array: Any) -> None:
        """Keep ``array`` for the next time."""
        self._held[bucket.index()] = bucket.names, array


class TopKState:
    """The share of elements that travel, and what was held back.

    Args:
        process_group: the ranks; default is the group of the DistributedDataParallel.
        ratio: elements of a bucket that each rank sends, at least one.
        use_error_feedback: add what was not sent to the next gradient.
    """

    def __init__(
        self,
        process_group: ProcessGroup | None = None,
        ratio: float = 0.01,
        use_error_feedback: bool = True,
    ) -> None:
        if not 0 < ratio <= 1:
            raise ArgumentError(f"TopKState(ratio={ratio}): a share is above 0 and at most 1")
        self.process_group, self.ratio = process_group, ratio
        self.use_error_feedback = use_error_feedback
        self.errors = ErrorMemory()


def topk_hook(state: TopKState, bucket: GradBucket) -> Future[Tensor]:
    """Average the largest elements of each rank; what is not sent is added to the next gradient.

    Each rank sends a place (4 bytes) and a value for each of them to every other. The choice is
    made on the host.

    Cost: (P - 1) k (4 + itemsize) bytes from each rank.
    """
    buffer = bucket.buffer()
    flat = to_device(buffer.array, CPU)
    held = state.errors.take(bucket) if state.use_error_feedback else None
    if held is not None:
        flat = flat + held
    k = max(1, math.ceil(state.ratio * flat.size))
    places = np.argpartition(np.abs(flat), -k)[-k:].astype(np.int32)
    values = flat[places]
    if state.use_error_feedback:
        rest = flat.copy()
        rest[places] = 0
        state.errors.put(bucket, rest)
    message = np.concatenate([places.view(np.uint8), values.view(np.uint8)])

    def add(done: Future[list[Tensor]]) -> Tensor:
        total = np.zeros_like(flat)
        rows = done.value()
        for row in rows:
            data = to_device(row.array, CPU)
            total[data[: 4 * k].view(np.int32)] += data[4 * k :].view(flat.dtype)
        total /= flat.dtype.type(len(rows))
        buffer.array[...] = to_device(total, device_of(buffer.array))
        return buffer

    return bucket.all_gather(wrap(message), state.process_group).then(add)
