"""The plain average, and averages in half precision."""

from __future__ import annotations

from typing import Any

from distgrad.backend.dtype import bfloat16, dtype, float16
from distgrad.distributed.comm_hooks import GradBucket, Hook, divided
from distgrad.distributed.group import ProcessGroup
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap


def allreduce_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future[Tensor]:
    """Average over the ranks, as without a hook."""
    buffer = divided(bucket.buffer(), bucket.group(process_group).size)
    return bucket.all_reduce(buffer, process_group)


def fp16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future[Tensor]:
    """Average in float16: half the bytes.

    Scale the loss, as for any float16: beyond 65504 a sum is infinite, which a GradScaler skips,
    and below 6e-5 digits are lost and NumPy takes a hundred times as long.
    """
    return fp16_compress_wrapper(allreduce_hook)(process_group, bucket)


def bf16_compress_hook(process_group: ProcessGroup | None, bucket: GradBucket) -> Future[Tensor]:
    """Average in bfloat16: half the bytes, the range of float32 and 8 bits."""
    return bf16_compress_wrapper(allreduce_hook)(process_group, bucket)


def fp16_compress_wrapper(hook: Hook) -> Hook:
    """Return ``hook`` on gradients in float16."""
    return _compressed(hook, float16)


def bf16_compress_wrapper(hook: Hook) -> Hook:
    """Return ``hook`` on gradients in bfloat16."""
    return _compressed(hook, bfloat16)


def _compressed(hook: Hook, kind: dtype) -> Hook:
    def compressed(state: Any, bucket: GradBucket) -> Future[Tensor]:
        buffer = bucket.buffer()
        bucket.set_buffer(wrap(buffer.array.astype(kind.numpy)))

        def widen(done: Future[Tensor]) -> Tensor:
            buffer.array[...] = done.value().array.reshape(-1)
            return buffer

        return hook(state, bucket).then(widen)

    compressed.__qualname__ = f"{hook.__qualname__} in {kind}"
    return compressed
