"""Helpers of ``torch.distributions`` that packages for probability use by their private names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.ops.create import empty
from distgrad.tensor import Tensor

__all__ = ["_standard_normal", "_sum_rightmost"]


def _standard_normal(shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
    """Return samples of the standard normal distribution."""
    drawn: Tensor = empty(shape, dtype=dtype, device=device).normal_()
    return drawn


def _sum_rightmost(value: Tensor, dim: int) -> Tensor:
    """Return the sums over the last ``dim`` dimensions."""
    if dim == 0:
        return value
    return value.reshape(*value.shape[:-dim], -1).sum(-1)
