"""Memory shared with other libraries by DLPack."""

from __future__ import annotations

from typing import Any

from distgrad.ops.create import from_dlpack
from distgrad.tensor import Tensor

__all__ = ["from_dlpack", "to_dlpack"]


def to_dlpack(tensor: Tensor) -> Any:
    """Return a capsule with the memory of ``tensor``, for a library's ``from_dlpack``."""
    return tensor.__dlpack__()
