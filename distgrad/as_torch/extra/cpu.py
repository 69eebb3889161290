"""The CPU, by the functions that each kind of device has."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from distgrad.backend.device import device as _device


def is_available() -> bool:
    """Return True."""
    return True


def device_count() -> int:
    """Return 1."""
    return 1


def current_device() -> str:
    """Return its name."""
    return str(_device("cpu"))


def set_device(device: Any) -> None:
    """Do nothing: there is one."""


def synchronize(device: Any = None) -> None:
    """Do nothing: operations are complete when they return."""


def stream(stream: Any) -> AbstractContextManager[None]:
    """Return a ``with`` block that changes nothing."""
    return nullcontext()
