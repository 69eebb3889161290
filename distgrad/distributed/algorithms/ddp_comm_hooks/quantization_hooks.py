"""Averages of gradients rounded to 8 bits.

Note [8 bits]
    A row of numbers from ``low`` to ``high``, both of which are moved so that 0 is between them,
    becomes ``round((x - low) / scale)`` with ``scale = (high - low) / 255``. Each rank sends its
    rows, with ``low`` and ``scale`` as float32, to all others, which add what they stand for. The
    error of a number is at most half of its row's ``scale``; it is not kept for the next step. A
    row with a number that is not finite is all nan, so that a GradScaler skips the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.comm_hooks import GradBucket
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap

_STEPS = 255


def quantization_pertensor_hook(
    process_group: ProcessGroup | None, bucket: GradBucket
) -> Future[Tensor]:
    """Average in 8 bits, with one scale for the bucket; see Note [8 bits].

    Cost: (P - 1) n bytes from each rank for n elements.
    """
    return _averaged(process_group, bucket, max(1, bucket.buffer().array.size))


def quantization_perchannel_hook(
    process_group: ProcessGroup | None, bucket: GradBucket, bucket_size: int = 512
) -> Future[Tensor]:
    """Average in 8 bits, with a scale for each ``bucket_size`` elements; see Note [8 bits].

    Cost: (P - 1) n (1 + 8 / bucket_size) bytes from each rank for n elements.
    """
    if bucket_size < 1:
        raise ArgumentError(
            f"quantization_perchannel_hook(bucket_size={bucket_size}): a row has 1 element or more"
        )
    return _averaged(process_group, bucket, bucket_size)


def _averaged(group: ProcessGroup | None, bucket: GradBucket, width: int) -> Future[Tensor]:
    buffer = bucket.buffer()
    flat = to_device(buffer.array, CPU)
    rows = -(-flat.size // width)

    def add(done: Future[list[Tensor]]) -> Tensor:
        messages = done.value()
        total = np.zeros(flat.size, np.float32)
        for message in messages:
            total += unpacked(to_device(message.array, CPU), rows, width)[: flat.size]
        total /= len(messages)
        buffer.array[...] = to_device(total.astype(flat.dtype), device_of(buffer.array))
        return buffer

    return bucket.all_gather(wrap(packed(flat, rows, width)), group).then(add)


def packed(flat: HostArray, rows: int, width: int) -> HostArray:
    """Return ``flat`` as bytes: the lows, the scales, and a byte for each number."""
    padded = np.zeros((rows, width), np.float32)
    padded.reshape(-1)[: flat.size] = flat
    low, high = np.minimum(padded.min(1), 0), np.maximum(padded.max(1), 0)
    with np.errstate(all="ignore"):  # nan where a row is not finite
        scale = (high - low) / np.float32(_STEPS)
        steps = np.where(scale > 0, scale, 1)[:, None]
        codes = np.nan_to_num(np.rint((padded - low[:, None]) / steps)).astype(np.uint8)
    parts: list[Any] = [low.astype(np.float32), scale.astype(np.float32), codes.reshape(-1)]
    return np.concatenate([part.view(np.uint8) for part in parts])


def unpacked(message: HostArray, rows: int, width: int) -> HostArray:
    """Return the numbers that `packed` made a message of, rounded.

    Example:
        >>> flat = np.array([0.0, 1.0, -3.0, 252.0], np.float32)
        >>> unpacked(packed(flat, 2, 2), 2, 2)
        array([  0.,   1.,  -3., 252.], dtype=float32)
    """
    low, scale = np.frombuffer(message[: 8 * rows].tobytes(), np.float32).reshape(2, rows, 1)
    codes = message[8 * rows :].reshape(rows, width)
    with np.errstate(all="ignore"):
        numbers: HostArray = codes.astype(np.float32) * scale + low
    return numbers.reshape(-1)
