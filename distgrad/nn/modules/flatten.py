"""Layers that merge and split dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from distgrad.errors import ArgumentTypeError
from distgrad.nn.module import Module
from distgrad.ops.shape import flatten, unflatten
from distgrad.tensor import Tensor


class Flatten(Module):
    """Merges the dimensions from ``start_dim`` to ``end_dim``; all but the batch by default."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        """Take the first and the last dimension to merge."""
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dimensions merged."""
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """Return the range of dimensions."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits dimension ``dim`` into several of the sizes ``unflattened_size``."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        """Take the dimension and its new sizes."""
        super().__init__()
        if not isinstance(dim, int) or not isinstance(unflattened_size, tuple | list):
            raise ArgumentTypeError(
                f"Unflatten(dim={dim!r}, unflattened_size={unflattened_size!r}): takes an int and "
                "a tuple of ints"
            )
        self.dim, self.unflattened_size = dim, unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with one dimension split."""
        return unflatten(input, self.dim, self.unflattened_size)

    def extra_repr(self) -> str:
        """Return the dimension and its sizes."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
