"""OpenMP, which only BLAS uses here."""

from __future__ import annotations


def is_available() -> bool:
    """Return False: operations outside BLAS run on one thread."""
    return False
