"""Batches in page-locked memory, from which a GPU copies while the program goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.backend.device import CPU, is_on
from distgrad.ops.sharing import pin_memory as pinned
from distgrad.tensor import Tensor
from distgrad.utils.data.collate import is_namedtuple, like_mapping, like_sequence


def pin_memory(data: Any) -> Any:
    """Return ``data`` with its tensors of the host in page-locked memory, inside containers too.

    An object with a method ``pin_memory`` decides itself.
    """
    if isinstance(data, Tensor):
        return pinned(data) if is_on(data.array, CPU) else data
    if hasattr(data, "pin_memory"):
        return data.pin_memory()
    if isinstance(data, str | bytes):
        return data
    if isinstance(data, Mapping):
        return like_mapping(data, {key: pin_memory(value) for key, value in data.items()})
    if is_namedtuple(data):
        return type(data)(*map(pin_memory, data))
    if isinstance(data, Sequence):
        return like_sequence(data, [pin_memory(value) for value in data])
    return data
