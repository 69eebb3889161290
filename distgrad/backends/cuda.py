"""Switches of computations on a GPU: they are kept; one path computes each operation here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.backend.device import is_cuda_available
from distgrad.backend.promises import get_float32_matmul_precision, set_float32_matmul_precision
from distgrad.backend.switches import attention as _attention
from distgrad.errors import ArgumentError


class _Matmul:
    """Switches of matrix products; 16-bit floats always add up in float32."""

    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True

    @property
    def allow_tf32(self) -> bool:
        """Whether factors in float32 may be read with 10 bits of mantissa."""
        return get_float32_matmul_precision() != "highest"

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        set_float32_matmul_precision("high" if allowed else "highest")

    @property
    def fp32_precision(self) -> str:
        """The same as a word: "tf32" or "none"; "ieee" may be set for the latter."""
        return "tf32" if self.allow_tf32 else "none"

    @fp32_precision.setter
    def fp32_precision(self, word: str) -> None:
        if word not in ("tf32", "ieee", "none"):
            raise ArgumentError(f"fp32_precision={word!r}: is none of 'tf32', 'ieee', 'none'")
        self.allow_tf32 = word == "tf32"


class _PlanCache:
    """Switches of the cache of FFT plans, which CuPy looks after."""

    size = 0
    max_size = 16

    def clear(self) -> None:
        """Do nothing: CuPy looks after its plans."""


matmul, cufft_plan_cache = _Matmul(), _PlanCache()


def is_built() -> bool:
    """Return whether a GPU can be used; CuPy is there or not."""
    return is_cuda_available()


def flash_sdp_enabled() -> bool:
    """Return what ``enable_flash_sdp`` was told."""
    return _attention.flash


def enable_flash_sdp(enabled: bool) -> None:
    """Allow it; cuDNN computes attention while one of the fused kernels is allowed."""
    _attention.flash = bool(enabled)


def mem_efficient_sdp_enabled() -> bool:
    """Return what ``enable_mem_efficient_sdp`` was told."""
    return _attention.memory_efficient


def enable_mem_efficient_sdp(enabled: bool) -> None:
    """Allow it; cuDNN computes attention while one of the fused kernels is allowed."""
    _attention.memory_efficient = bool(enabled)


def math_sdp_enabled() -> bool:
    """Return what ``enable_math_sdp`` was told."""
    return _attention.math


def enable_math_sdp(enabled: bool) -> None:
    """Allow it; cuDNN computes attention while one of the fused kernels is allowed."""
    _attention.math = bool(enabled)


def cudnn_sdp_enabled() -> bool:
    """Return what ``enable_cudnn_sdp`` was told."""
    return _attention.cudnn


def enable_cudnn_sdp(enabled: bool) -> None:
    """Allow it; cuDNN computes attention while one of the fused kernels is allowed."""
    _attention.cudnn = bool(enabled)


@contextmanager
def sdp_kernel(
    enable_flash: bool = True,
    enable_math: bool = True,
    enable_mem_efficient: bool = True,
    enable_cudnn: bool = True,
) -> Iterator[None]:
    """Have these kernels allowed inside a ``with`` block."""
    with _attention.only(enable_flash, enable_math, enable_mem_efficient, enable_cudnn):
        yield


def preferred_linalg_library(backend: Any = None) -> str:
    """Return the library of decompositions, which is not chosen here."""
    return "default"
