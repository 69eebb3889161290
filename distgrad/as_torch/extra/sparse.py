"""PyTorch's names for matrices of few numbers."""

from __future__ import annotations

from distgrad.ops.coo import sparse_coo_tensor
from distgrad.ops.matmul import mm

__all__ = ["FloatTensor", "mm"]

FloatTensor = sparse_coo_tensor
