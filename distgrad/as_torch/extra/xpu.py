"""A kind of device that is not here: arrays live on the CPU or on CUDA."""

from __future__ import annotations

from distgrad.errors import DeviceError


def is_available() -> bool:
    """Return False."""
    return False


def device_count() -> int:
    """Return 0."""
    return 0


def manual_seed(seed: int) -> None:
    """Do nothing, as there is no such device."""


def empty_cache() -> None:
    """Do nothing, as there is no such device."""


def synchronize() -> None:
    """Raise, as there is no such device.

    Raises:
        DeviceError: always.
    """
    raise DeviceError("torch.xpu.synchronize(): there is no such device; use 'cpu' or 'cuda'")
