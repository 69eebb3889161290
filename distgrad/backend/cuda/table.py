"""Every function of arrays that has a form of its own on a GPU, by the name it has in ``ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.backend.cuda import (
    activation,
    attention,
    batch,
    compress,
    conv,
    embed,
    gemm,
    norm,
    optimizer,
    pool,
    random,
    softmax,
    window,
)

__all__ = ["KERNELS"]

KERNELS: dict[str, Callable[..., Any]] = {
    **activation.KERNELS,
    **attention.KERNELS,
    **batch.KERNELS,
    **compress.KERNELS,
    **conv.KERNELS,
    **embed.KERNELS,
    **gemm.KERNELS,
    **norm.KERNELS,
    **optimizer.KERNELS,
    **pool.KERNELS,
    **random.KERNELS,
    **softmax.KERNELS,
    **window.KERNELS,
}
