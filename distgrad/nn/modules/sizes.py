"""Sizes given as one number or one for each dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Sizes: TypeAlias = "int | Sequence[int]"


def per_dim(value: Sizes, dims: int) -> tuple[int, ...]:
    """Return ``value`` for each of ``dims`` dimensions.

    Example:
        >>> per_dim(3, 2), per_dim((1, 2), 2)
        ((3, 3), (1, 2))
    """
    return (value,) * dims if isinstance(value, int) else tuple(value)
