"""What programs may ask of precision and of equal bits, and what that means here.

On the CPU every operation gives the same bits each time, and float32 is computed in float32: there
is nothing to switch, so the switches keep what they are told.  On a GPU additions of many values
into one place (``scatter_add``, ``index_add``, gradients of embeddings) are made in any order.
"""

from __future__ import annotations

from typing import Literal

from distgrad.errors import ArgumentError, DistgradError

__all__ = [
    "are_deterministic_algorithms_enabled", "get_deterministic_debug_mode",
    "get_float32_matmul_precision", "is_deterministic_algorithms_warn_only_enabled",
    "is_warn_always_enabled", "set_deterministic_debug_mode", "set_float32_matmul_precision",
    "set_flush_denormal", "set_warn_always", "use_deterministic_algorithms",
]  # fmt: skip

Precision = Literal["highest", "high", "medium"]
_MODES = {"default": 0, "warn": 1, "error": 2}


class _Promises:
    """What was asked for."""

    deterministic = False
    warn_only = False
    fill_uninitialized = True
    precision: str = "highest"
    warn_always = False


promises = _Promises()


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Note that equal bits are wanted; operations on the CPU always give them.

    Args:
        mode: whether they are.
        warn_only: kept; no operation of this package refuses.
    """
    promises.deterministic, promises.warn_only = bool(mode), bool(warn_only)


def are_deterministic_algorithms_enabled() -> bool:
    """Return what ``use_deterministic_algorithms`` was told."""
    return promises.deterministic


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    """Return what ``use_deterministic_algorithms`` was told of ``warn_only``."""
    return promises.warn_only


def set_deterministic_debug_mode(debug_mode: int | str) -> None:
    """Set ``use_deterministic_algorithms`` by a number or a word: default, warn, error."""
    level = _MODES.get(debug_mode, -1) if isinstance(debug_mode, str) else debug_mode
    if level not in _MODES.values():
        raise ArgumentError(
            f"set_deterministic_debug_mode({debug_mode!r}): is none of 0, 1, 2, "
            f"{', '.join(map(repr, _MODES))}"
        )
    use_deterministic_algorithms(level > 0, warn_only=level == 1)


def get_deterministic_debug_mode() -> int:
    """Return 0, 1 (warn) or 2 (error)."""
    return 0 if not promises.deterministic else 1 if promises.warn_only else 2


def set_float32_matmul_precision(precision: Precision) -> None:
    """Say how exact products of float32 matrices must be.

    On a GPU "high" and "medium" read the factors with 10 bits of mantissa (TF32), and add up in
    float32.  On the host products are always "highest".
    """
    if precision not in ("highest", "high", "medium"):
        raise MatmulPrecisionError(
            f"set_float32_matmul_precision({precision!r}): is none of 'highest', 'high', 'medium'"
        )
    promises.precision = precision


def get_float32_matmul_precision() -> str:
    """Return what ``set_float32_matmul_precision`` was told."""
    return promises.precision


class MatmulPrecisionError(DistgradError, RuntimeError):
    """A word that names no precision; PyTorch raises RuntimeError."""


def set_warn_always(b: bool, /) -> None:
    """Note whether warnings that come once shall come always; Python's filters decide here."""
    promises.warn_always = bool(b)


def is_warn_always_enabled() -> bool:
    """Return what ``set_warn_always`` was told."""
    return promises.warn_always


def set_flush_denormal(mode: bool) -> bool:
    """Return False: NumPy cannot be told to take tiny numbers for zero."""
    return False
