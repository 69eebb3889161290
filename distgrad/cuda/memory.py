"""The memory of GPUs, which CuPy's pool holds.

The pool counts what it gives out and what it has taken from the GPU, but keeps no peaks: ``max_…``
is the largest value that one of these functions has seen.
"""

from __future__ import annotations

from typing import Any

from distgrad.backend.device import cuda_in_use, cupy_module
from distgrad.cuda.devices import DeviceLike, index_of
from distgrad.errors import ArgumentError

_peaks: dict[tuple[int, str], int] = {}


def _pool_of(name: str, device: DeviceLike) -> tuple[int, Any]:
    cupy = cupy_module(f"cuda.{name}()")
    index = index_of(name, device)
    with cupy.cuda.Device(index):
        return index, cupy.get_default_memory_pool()


def _counted(name: str, device: DeviceLike) -> tuple[int, int]:
    """Return a number of bytes now, and the most that was seen; zeros while no GPU is used."""
    if not cuda_in_use():
        return 0, 0
    index, pool = _pool_of(name, device)
    with cupy_module(name).cuda.Device(index):
        now = int(pool.used_bytes() if name == "memory_allocated" else pool.total_bytes())
    most = _peaks[index, name] = max(now, _peaks.get((index, name), 0))
    return now, most


def memory_allocated(device: DeviceLike = None) -> int:
    """Return the bytes that tensors occupy on a GPU; 0 while none is used."""
    return _counted("memory_allocated", device)[0]


def max_memory_allocated(device: DeviceLike = None) -> int:
    """Return the most bytes that tensors were seen to occupy, when this or its kin was called."""
    return _counted("memory_allocated", device)[1]


def memory_reserved(device: DeviceLike = None) -> int:
    """Return the bytes that the pool has taken from a GPU; 0 while none is used."""
    return _counted("memory_reserved", device)[0]


def max_memory_reserved(device: DeviceLike = None) -> int:
    """Return the most bytes that the pool was seen to hold, when this or its kin was called."""
    return _counted("memory_reserved", device)[1]


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Forget what was the most so far."""
    _peaks.clear()


reset_max_memory_allocated = reset_peak_memory_stats


def memory_stats(device: DeviceLike = None) -> dict[str, int]:
    """Return the counts of the pool by PyTorch's names for them."""
    allocated, most_allocated = _counted("memory_allocated", device)
    reserved, most_reserved = _counted("memory_reserved", device)
    return {
        "allocated_bytes.all.current": allocated,
        "allocated_bytes.all.peak": most_allocated,
        "reserved_bytes.all.current": reserved,
        "reserved_bytes.all.peak": most_reserved,
    }


def memory_summary(device: DeviceLike = None, abbreviated: bool = False) -> str:
    """Return the counts of the pool as text."""
    return "\n".join(f"{name:<30} {count:>16,}" for name, count in memory_stats(device).items())


def mem_get_info(device: DeviceLike = None) -> tuple[int, int]:
    """Return the free and the total bytes of a GPU."""
    cupy = cupy_module("cuda.mem_get_info()")
    with cupy.cuda.Device(index_of("mem_get_info", device)):
        free, total = cupy.cuda.runtime.memGetInfo()
    return int(free), int(total)


def set_per_process_memory_fraction(fraction: float, device: DeviceLike = None) -> None:
    """Let the pool take no more than this part of a GPU's memory."""
    if not 0 <= fraction <= 1:
        raise ArgumentError(
            f"cuda.set_per_process_memory_fraction({fraction}): invalid fraction; use 0 to 1"
        )
    index, pool = _pool_of("set_per_process_memory_fraction", device)
    with cupy_module("cuda").cuda.Device(index):
        pool.set_limit(fraction=fraction)


def empty_cache() -> None:
    """Give memory that no tensor occupies back to the GPU; does nothing while none is used."""
    if cuda_in_use():
        _pool_of("empty_cache", None)[1].free_all_blocks()


def ipc_collect() -> None:
    """Do nothing: memory of a GPU is not shared between processes here."""
