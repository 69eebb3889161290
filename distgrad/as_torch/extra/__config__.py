"""How this package was built: it was not, it is Python over NumPy."""

from __future__ import annotations

import numpy

__all__ = ["parallel_info", "show"]


def show() -> str:
    """Return what does the arithmetic."""
    return f"distgrad over NumPy {numpy.__version__}"


def parallel_info() -> str:
    """Return the number of threads of matrix products."""
    from distgrad.backend.threads import get_num_threads

    return f"threads of BLAS: {get_num_threads()}"
