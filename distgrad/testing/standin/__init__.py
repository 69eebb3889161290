"""A stand-in for CuPy on a machine without a GPU: refuses what CuPy refuses, counts waits.

``installed()`` puts it in CuPy's place for the time of a block, and takes every trace of it away
afterwards.  Names, parameters and loops are those of CuPy (``cupy_api.json``, by ``snapshot``).
Devices, streams and events are in ``streams``, NCCL between ranks is in ``nccl``: work whose
order no event proves is refused.  Speed and rounding are for a GPU to say (``tests/gpu``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distgrad.backend
from distgrad.autograd import engine
from distgrad.backend import device as devices
from distgrad.backend import dtype as dtypes
from distgrad.testing.standin import nccl as links
from distgrad.testing.standin import streams
from distgrad.testing.standin.ledger import HostSync, Ledger, StreamHazard, ledger, no_syncs
from distgrad.testing.standin.modules import make_modules

__all__ = ["HostSync", "Ledger", "StreamHazard", "installed", "ledger", "no_syncs"]

_BACKEND = "distgrad.backend.cupy_backend"
_KERNELS = "distgrad.backend.cuda"
_STOOD_FOR = ("cupy", "cupyx", "cupy_backends", "cudnn", "nvmath")


def _is_ours(name: str) -> bool:
    return name in (_BACKEND, _KERNELS) or name.startswith(f"{_KERNELS}.")


def _take_out() -> dict[str, object]:
    """Remove CuPy, real or not, and all that was made from it; return the modules."""
    names = [n for n in sys.modules if n.partition(".")[0] in _STOOD_FOR or _is_ours(n)]
    taken: dict[str, object] = {name: sys.modules.pop(name) for name in names}
    for name in ("cupy_backend", "cuda"):
        vars(distgrad.backend).pop(name, None)
    devices._CUDA_COUNT = 0
    for kind in [k for k in devices._NAMESPACES if k.__module__.partition(".")[0] == "cupy"]:
        del devices._NAMESPACES[kind]
    for xp in [xp for xp in engine._array_functions if xp.__name__ == _BACKEND]:
        del engine._array_functions[xp]
    dtypes._SCALARS.clear()
    return taken


@contextmanager
def installed(
    count: int = 1,
    *,
    nccl: bool = True,
    nvmath: bool = True,
    cudnn: bool = True,
    folder: Path | None = None,
) -> Iterator[Ledger]:
    """Make ``import cupy`` give the stand-in inside the block.

    Args:
        count: how many GPUs the driver reports; -1 for a machine without a driver.
        nccl: whether CuPy's wheel finds NCCL.
        nvmath: whether nvmath-python is installed, and finds cuBLASLt.
        cudnn: whether cuDNN's frontend is installed, and finds cuDNN.
        folder: where ranks that are processes meet; threads need none.
    """
    before = _take_out()
    sys.modules.update(make_modules(count, nccl, nvmath, cudnn))  # type: ignore[arg-type]
    links.between_processes[:] = [] if folder is None else [folder]
    ledger.__init__()  # type: ignore[misc]
    try:
        with streams.started(count, folder):
            yield ledger
    finally:
        _take_out()
        sys.modules.update(before)  # type: ignore[arg-type]
        if _BACKEND in before:
            vars(distgrad.backend)["cupy_backend"] = before[_BACKEND]
