"""Batches in page-locked memory, from which a GPU copies while the program goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.backend.device import CPU, is_on
from distgrad.ops.sharing import pin_memory as pinned
from distgrad.tensor import Tensor


def pin_memory(data: Any) -> Any:
    """Return ``data`` with its tensors of the host in page-locked memory, inside containers too.

    An object with a method ``pin_memory`` decides itself.
    """
    if isinstance(data, Tensor):
        return pinned(data) if is_on(data.array, CPU) else data
    if isinstance(data, str | bytes):
        return data
    if isinstance(data, Mapping):
        return type(data)({key: pin_memory(value) for key, value in data.items()})  # type: ignore[call-arg]
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(pin_memory, data))
    if isinstance(data, Sequence):
        return type(data)([pin_memory(value) for value in data])  # type: ignore[call-arg]
    return data.pin_memory() if hasattr(data, "pin_memory") else data
