"""The fast path of ``nn.MultiheadAttention`` in PyTorch; here there is one path."""

from __future__ import annotations


def get_fastpath_enabled() -> bool:
    """Return False: there is one path."""
    return False


def set_fastpath_enabled(value: bool) -> None:
    """Accept any wish: there is one path."""
