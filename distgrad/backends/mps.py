"""Apple's GPUs, on which arrays cannot live here."""

from __future__ import annotations


def is_available() -> bool:
    """Return False: arrays live on the CPU or on CUDA."""
    return False


def is_built() -> bool:
    """Return False: arrays live on the CPU or on CUDA."""
    return False


def is_macos13_or_newer(minor: int = 0) -> bool:
    """Return False: arrays live on the CPU or on CUDA."""
    return False


def is_macos_or_newer(major: int, minor: int) -> bool:
    """Return False: arrays live on the CPU or on CUDA."""
    return False
