"""How PyTorch cuts the work of ``LinearCrossEntropyLoss``; here nothing depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["LinearCrossEntropyOptions"]


@dataclass
class LinearCrossEntropyOptions:
    """Taken by ``LinearCrossEntropyLoss`` for compatibility; results do not depend on it.

    Args:
        allow_retain_graph: a graph can always be kept here.
        batch_chunk_size: rows of a chunk.
        chunking_method: how chunks are chosen.
        acc_policy: how sums are kept.
        acc_dtype: in which dtype.
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: Literal["accurate", "balanced", "compact", "auto"] = "auto"
    acc_dtype: Any = None
