"""PyTorch's counter of floating-point operations, which distgrad has not."""

from __future__ import annotations

from typing import Any

from distgrad.errors import ArgumentError

__all__ = ["FlopCounterMode"]


class FlopCounterMode:
    """Counts operations in PyTorch; here it cannot be made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise ArgumentError(
            "FlopCounterMode(): distgrad does not count operations; PyTorch's counter gives the "
            "same numbers for the same model"
        )
