"""What no backend computes, and how both say so."""

from __future__ import annotations

from typing import NoReturn

from distgrad.errors import DtypeError, DtypeNotImplemented
from distgrad.typing import Array

__all__ = ["refuse_product"]


def refuse_product(a: Array, b: Array) -> NoReturn:
    """Raise for two arrays that have no matrix product: of two dtypes, or of bool."""
    if a.dtype == b.dtype:
        raise DtypeNotImplemented("matrix products are not implemented for bool; use .int()")
    raise DtypeError(
        f"expected m1 and m2 to have the same dtype, but got: {a.dtype} != {b.dtype}; "
        "convert one with .to(dtype)"
    )
