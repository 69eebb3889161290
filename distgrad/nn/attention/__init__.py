"""Choice of attention kernels, as PyTorch names it: cuDNN's on a GPU, and "math"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from distgrad.backend.switches import attention
from distgrad.errors import ArgumentTypeError
from distgrad.nn.attention import bias

__all__ = ["SDPBackend", "bias", "sdpa_kernel"]


class SDPBackend(IntEnum):
    """PyTorch's kernels of ``scaled_dot_product_attention``."""

    ERROR = -1
    MATH = 0
    FLASH_ATTENTION = 1
    EFFICIENT_ATTENTION = 2
    CUDNN_ATTENTION = 3
    OVERRIDEABLE = 4

    def __repr__(self) -> str:
        return f"<SDPBackend.{self.name}: {self.value}>"

    __str__ = __repr__


@contextmanager
def sdpa_kernel(
    backends: list[SDPBackend] | SDPBackend, set_priority: bool = False
) -> Iterator[None]:
    """Have these kernels allowed inside a ``with`` block; all fused ones mean cuDNN's, on a GPU.

    Args:
        backends: a kernel or a list of them.
        set_priority: their order is meant.
    """
    chosen = [backends] if isinstance(backends, SDPBackend) else backends
    if not isinstance(chosen, list) or not all(isinstance(b, SDPBackend) for b in chosen):
        raise ArgumentTypeError(
            f"sdpa_kernel({backends!r}): Backend must be an instance of SDPBackend or a list of "
            "SDPBackend instances"
        )
    names = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION,
             SDPBackend.CUDNN_ATTENTION)  # fmt: skip
    with attention.only(*(name in chosen for name in names)):
        yield
