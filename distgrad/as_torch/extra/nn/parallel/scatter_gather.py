"""Cutting batches over the GPUs of one process, of which distgrad uses one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.errors import ArgumentError

__all__ = ["gather", "scatter"]


def _check(call: str, count: int) -> None:
    if count != 1:
        raise ArgumentError(
            f"{call}: a process of distgrad uses one device, not {count}; start a process for each "
            "GPU and use DistributedDataParallel"
        )


def scatter(inputs: Any, target_gpus: Sequence[Any], dim: int = 0) -> tuple[Any, ...]:
    """Return ``inputs`` once, for the one device in ``target_gpus``."""
    _check("scatter()", len(target_gpus))
    return (inputs,)


def gather(outputs: Sequence[Any], target_device: Any, dim: int = 0) -> Any:
    """Return the one element of ``outputs``."""
    _check("gather()", len(outputs))
    return outputs[0]
