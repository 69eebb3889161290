"""The memory of GPUs, which CuPy's pools hold: the default one, and those of captured graphs.

Peaks are true ones, of all threads, from the first question on that needs them; see `peaks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.backend.device import cuda_in_use, cupy_module, is_cuda_available
from distgrad.cuda.devices import DeviceLike, index_of
from distgrad.cuda.peaks import Counter, Tally, counter_of, pools_of
from distgrad.errors import ArgumentError


def _pool_of(name: str, device: DeviceLike) -> tuple[int, Any]:
    cupy = cupy_module(f"cuda.{name}()")
    index = index_of(name, device)
    with cupy.cuda.Device(index):
        return index, cupy.get_default_memory_pool()


def _bytes(name: str, device: DeviceLike) -> int:
    """Return what the pools hold, or have given out; 0 while no GPU is used."""
    if not cuda_in_use():
        return 0
    cupy, index = cupy_module(f"cuda.{name}()"), index_of(name, device)
    with cupy.cuda.Device(index):
        used = name == "memory_allocated"
        pools = pools_of(cupy, index)
        return sum(int(pool.used_bytes() if used else pool.total_bytes()) for pool in pools)


@contextmanager
def _counter(name: str, device: DeviceLike) -> Iterator[tuple[Counter, int]]:
    """Give the counter and the number of the GPU, which is the current one in the block."""
    cupy, index = cupy_module(f"cuda.{name}()"), index_of(name, device)
    with cupy.cuda.Device(index):
        yield counter_of(cupy), index


def _tally(name: str, device: DeviceLike) -> Tally:
    """Return what was counted; zeros while no GPU is used."""
    if not cuda_in_use():
        return Tally()
    with _counter(name, device) as (counter, index):
        return counter.tally(index)


def memory_allocated(device: DeviceLike = None) -> int:
    """Return the bytes that tensors occupy on a GPU; 0 while none is used."""
    return _bytes("memory_allocated", device)


def max_memory_allocated(device: DeviceLike = None) -> int:
    """Return the most bytes that tensors occupied since peaks were reset, or first asked for."""
    return _tally("max_memory_allocated", device).peak


def memory_reserved(device: DeviceLike = None) -> int:
    """Return the bytes that the pools have taken from a GPU; 0 while none is used."""
    return _bytes("memory_reserved", device)


def max_memory_reserved(device: DeviceLike = None) -> int:
    """Return the most bytes that the pools held since peaks were reset, or first asked for."""
    return _tally("max_memory_reserved", device).reserved_peak


def reset_peak_memory_stats(device: DeviceLike = None) -> None:
    """Forget what was the most so far on a GPU, and count from now on."""
    if is_cuda_available():
        with _counter("reset_peak_memory_stats", device) as (counter, index):
            counter.reset_peaks(index)


def reset_accumulated_memory_stats(device: DeviceLike = None) -> None:
    """Forget how much was taken and given back on a GPU, and count from now on."""
    if is_cuda_available():
        with _counter("reset_accumulated_memory_stats", device) as (counter, index):
            counter.reset_sums(index)


reset_max_memory_allocated = reset_peak_memory_stats
reset_max_memory_cached = reset_peak_memory_stats


def memory_stats(device: DeviceLike = None) -> dict[str, int]:
    """Return the counts of the pools by PyTorch's names for them.

    ``allocated`` and ``freed`` are sums since counting began, or was reset.

    Differs from PyTorch: there is one pool for small and large pieces, so only ``all``; a piece
        that is in use is active; what CuPy does not tell, such as retries, is left out.
    """
    tally = _tally("memory_stats", device)
    reserved = memory_reserved(device)
    return {
        f"{name}.all.{key}": count
        for name, counts in {
            "allocated_bytes": _row(tally.bound, tally.peak, tally.taken, tally.given_back),
            "active_bytes": _row(tally.bound, tally.peak, tally.taken, tally.given_back),
            "reserved_bytes": {"current": reserved, "peak": tally.reserved_peak},
            "allocation": {"allocated": tally.pieces, "freed": tally.pieces_back},
        }.items()
        for key, count in counts.items()
    }


def _row(current: int, peak: int, allocated: int, freed: int) -> dict[str, int]:
    return {"current": current, "peak": peak, "allocated": allocated, "freed": freed}


def memory_stats_as_nested_dict(device: DeviceLike = None) -> dict[str, Any]:
    """Return what ``memory_stats`` does, a dictionary for each part of the names."""
    nested: dict[str, Any] = {}
    for name, count in memory_stats(device).items():
        *parts, last = name.split(".")
        inner = nested
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = count
    return nested


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
