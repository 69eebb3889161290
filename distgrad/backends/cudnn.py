"""Switches of cuDNN, which CuPy 14 does not use: they are kept and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

enabled = True
benchmark = False
deterministic = False
allow_tf32 = True
benchmark_limit: int | None = 10


def is_available() -> bool:
    """Return False: convolutions on a GPU are made of CuPy's own operations."""
    return False


def version() -> None:
    """Return None: there is no cuDNN here."""
    return


@contextmanager
def flags(
    enabled: bool = False,
    benchmark: bool = False,
    benchmark_limit: int | None = 10,
    deterministic: bool = False,
    allow_tf32: bool = True,
    fp32_precision: str = "none",
) -> Iterator[None]:
    """Change nothing inside a ``with`` block, as there is no cuDNN here."""
    yield
