"""Names of PyTorch's tensors without data, which distgrad has not."""

from __future__ import annotations

from distgrad.tensor import Tensor

__all__ = ["FakeTensor", "FakeTensorMode"]


class FakeTensor(Tensor):
    """A tensor without data; nothing here is one."""


class FakeTensorMode:
    """A mode that makes such tensors; nothing here is one."""
