"""Switches of computations on a GPU: they are kept; one path computes each operation here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.backend.device import is_cuda_available


class _Matmul:
    """Switches of matrix products; CuPy computes float32 in float32."""

    allow_tf32 = False
    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True
    fp32_precision = "none"


class _PlanCache:
    """Switches of the cache of FFT plans, which CuPy looks after."""

    size = 0
    max_size = 16

    def clear(self) -> None:
        """Do nothing: CuPy looks after its plans."""


class _Attention:
    """Which kernels of attention may be used; there is one."""

    flash = math = memory_efficient = cudnn = True


matmul, cufft_plan_cache, _attention = _Matmul(), _PlanCache(), _Attention()


def is_built() -> bool:
    """Return whether a GPU can be used; CuPy is there or not."""
    return is_cuda_available()


def flash_sdp_enabled() -> bool:
    """Return what ``enable_flash_sdp`` was told."""
    return _attention.flash


def enable_flash_sdp(enabled: bool) -> None:
    """Keep the wish; attention is computed in one way."""
    _attention.flash = bool(enabled)


def mem_efficient_sdp_enabled() -> bool:
    """Return what ``enable_mem_efficient_sdp`` was told."""
    return _attention.memory_efficient


def enable_mem_efficient_sdp(enabled: bool) -> None:
    """Keep the wish; attention is computed in one way."""
    _attention.memory_efficient = bool(enabled)


def math_sdp_enabled() -> bool:
    """Return what ``enable_math_sdp`` was told."""
    return _attention.math


def enable_math_sdp(enabled: bool) -> None:
    """Keep the wish; attention is computed in one way."""
    _attention.math = bool(enabled)


def cudnn_sdp_enabled() -> bool:
    """Return what ``enable_cudnn_sdp`` was told."""
    return _attention.cudnn


def enable_cudnn_sdp(enabled: bool) -> None:
    """Keep the wish; attention is computed in one way."""
    _attention.cudnn = bool(enabled)


@contextmanager
def sdp_kernel(
    enable_flash: bool = True,
    enable_math: bool = True,
    enable_mem_efficient: bool = True,
    enable_cudnn: bool = True,
) -> Iterator[None]:
    """Keep the wishes inside a ``with`` block."""
    before = dict(vars(_attention))
    _attention.flash, _attention.math = enable_flash, enable_math
    _attention.memory_efficient, _attention.cudnn = enable_mem_efficient, enable_cudnn
    try:
        yield
    finally:
        vars(_attention).clear()
        vars(_attention).update(before)


def preferred_linalg_library(backend: Any = None) -> str:
    """Return the library of decompositions, which is not chosen here."""
    return "default"
