"""Causal masks for attention with fewer queries than keys."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy

from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor

__all__ = ["CausalBias", "CausalVariant", "causal_lower_right", "causal_upper_left"]


class CausalVariant(IntEnum):
    """Which corner of the matrix of queries and keys the diagonal goes through."""

    UPPER_LEFT = 1
    LOWER_RIGHT = 2


class CausalBias(Tensor):
    """A bool mask, True where a query may look: ``attn_mask`` of attention.

    Args:
        variant: the corner.
        seq_len_q: number of queries.
        seq_len_kv: number of keys.
    """

    __slots__ = ()
    variant: CausalVariant
    seq_len_q: int
    seq_len_kv: int

    def __init__(self, variant: CausalVariant, seq_len_q: int, seq_len_kv: int) -> None:
        """Make the mask."""
        if not isinstance(variant, CausalVariant):
            raise ArgumentError(f"CausalBias(variant={variant!r}): takes a CausalVariant")
        shift = seq_len_kv - seq_len_q if variant is CausalVariant.LOWER_RIGHT else 0
        super().__init__(numpy.tri(seq_len_q, seq_len_kv, shift, dtype=bool), dtype=bool)
        self.variant, self.seq_len_q, self.seq_len_kv = variant, seq_len_q, seq_len_kv


def _sizes(size: tuple[Any, ...]) -> tuple[int, int]:
    if len(size) != 2:
        raise ArgumentError(f"a causal bias has 2 sizes, queries and keys, got {list(size)}")
    return int(size[0]), int(size[1])


def causal_upper_left(*size: int) -> CausalBias:
    """Return the mask that lets query i see keys 0 … i.

    Example:
        >>> causal_upper_left(2, 3).tolist()
        [[True, False, False], [True, True, False]]
    """
    return CausalBias(CausalVariant.UPPER_LEFT, *_sizes(size))


def causal_lower_right(*size: int) -> CausalBias:
    """Return the mask that lets the last query see all keys, and each one before one key less.

    Example:
        >>> causal_lower_right(2, 3).tolist()
        [[True, True, False], [True, True, True]]
    """
    return CausalBias(CausalVariant.LOWER_RIGHT, *_sizes(size))
