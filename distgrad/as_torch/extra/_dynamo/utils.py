"""Questions about PyTorch's compiler, which is not here."""

from __future__ import annotations


def is_compile_supported(device_type: str) -> bool:
    """Return False: there is no compiler."""
    return False
