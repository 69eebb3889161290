"""The plain average, and averages in half precision."""

from __future__ import annotations

from typing import Any

from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import bfloat16, dtype, float16
from distgrad.backend.forms import device_form
from distgrad.distributed.comm_hooks import GradBucket, Hook, divided
from distgrad.distributed.group import ProcessGroup
from distgrad.futures import Future
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace


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
    averages = hook is allreduce_hook  # then it is divided here, in the same pass on a GPU

    def compressed(state: Any, bucket: GradBucket) -> Future[Tensor]:
        buffer = bucket.buffer()
        xp = array_namespace(buffer.array)
        out = bucket.room(kind.numpy) if averages else xp.empty(buffer.array.shape, kind.numpy)
        _compress(xp, buffer.array, out, bucket.group(state).size if averages else 1)
        bucket.set_buffer(wrap(out))

        def widen(done: Future[Tensor]) -> Tensor:
            _decompress(xp, done.value().array.reshape(-1), buffer.array)
            return buffer

        if averages:
            return bucket.all_reduce(bucket.buffer(), state).then(widen)
        return hook(state, bucket).then(widen)

    compressed.__qualname__ = f"{hook.__qualname__} in {kind}"
    return compressed


@device_form
def _compress(xp: Namespace, source: Array, out: Array, by: int) -> None:
    """Leave ``source`` in ``out``, divided by the number ``by`` after it was rounded."""
    out[...] = source
    if by > 1:
        xp.divide(out, out.dtype.type(by), out=out)


@device_form
def _decompress(xp: Namespace, source: Array, out: Array) -> None:
    """Leave ``source`` in ``out``."""
    out[...] = source
