"""The order in which ``einsum`` contracts: from left to right."""

from __future__ import annotations

enabled = False
strategy = None


def is_available() -> bool:
    """Return False: opt_einsum is not used."""
    return False


def get_opt_einsum() -> None:
    """Return None: opt_einsum is not used."""
    return
