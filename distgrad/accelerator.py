"""The kind of device beside the CPU: CUDA, where a GPU can be used."""

from __future__ import annotations

from typing import Any

from distgrad.backend.device import device as Device
from distgrad.backend.device import is_cuda_available as is_available
from distgrad.cuda import devices, memory, streams
from distgrad.cuda.devices import device_count
from distgrad.cuda.memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_peak_memory_stats,
)

__all__ = [
    "current_accelerator", "current_device_idx", "current_device_index", "current_stream",
    "device_count", "device_index", "empty_cache", "get_memory_info", "is_available",
    "max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved",
    "memory_stats", "reset_peak_memory_stats", "set_device_idx", "set_device_index", "set_stream",
    "synchronize",
]  # fmt: skip

current_device_index = current_device_idx = devices.current_device
set_device_index = set_device_idx = devices.set_device
current_stream, set_stream = streams.current_stream, streams.set_stream
synchronize, device_index = devices.synchronize, devices.device
get_memory_info = memory.mem_get_info


def current_accelerator(check_available: bool = False) -> Any:
    """Return the device ``cuda``, or None where no GPU can be used.

    Args:
        check_available: PyTorch's; the answer is about what can be used anyway.
    """
    return Device("cuda") if is_available() else None
