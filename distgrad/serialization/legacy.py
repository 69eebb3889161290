"""The files of PyTorch before 1.6: five pickles in a row, then the storages."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy

from distgrad.errors import CheckpointError
from distgrad.serialization.archive import storage_key
from distgrad.serialization.machine import Machine
from distgrad.serialization.policy import FilePolicy
from distgrad.serialization.storages import Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT = struct.Struct("<q")


def is_legacy(head: bytes) -> bool:
    """Return whether a file begins as these do: with a pickle of a long number."""
    return head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def load(data: bytes, move: Callable[[Any, str], Any], weights_only: bool, encoding: str) -> Any:
    """Return the object of a file.

    The storages stand behind the pickle that uses them, so it is read twice: first to find them.

    Raises:
        CheckpointError: it is cut off or damaged.
    """
    found = _Storages(len(data))
    machine = Machine(data, FilePolicy(found.reserve, weights_only), encoding)
    if machine.run() != _MAGIC or machine.run() != _VERSION:
        raise CheckpointError("this version of PyTorch's old files is unknown")
    about = machine.run()
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise CheckpointError("an old file from a computer of the other byte order")
    start = machine.position
    machine.run()
    keys = machine.run()
    if not isinstance(keys, list) or {str(key) for key in keys} != set(found.by_name):
        raise CheckpointError("the storages are not those that the pickle names")
    position = machine.position
    for key in keys:
        position = _fill(found.by_name[str(key)], data, position)
    for name, storage in found.by_name.items():
        storage.data = move(storage.data, found.places[name])
    again = Machine(data, FilePolicy(found.reserve, weights_only), encoding)
    again.position = start
    return again.run()


class _Storages:
    """The storages that a pickle names, together no larger than the file."""

    def __init__(self, limit: int) -> None:
        self.by_name: dict[str, Storage] = {}
        self.places: dict[str, str] = {}
        self._left = limit

    def reserve(self, key: Any) -> Storage:
        """Return the storage of a key, of zeros when it is named first."""
        kind, name, place, count = storage_key(key)
        if len(key) > 5 and key[5] is not None:
            raise CheckpointError("a storage is part of another, as PyTorch wrote before 0.4")
        if name not in self.by_name:
            self._left -= count * kind.itemsize
            if self._left < 0:
                raise CheckpointError("the storages are larger than the file")
            self.by_name[name] = Storage(numpy.zeros(count * kind.itemsize, numpy.uint8), kind)
            self.places[name] = place
        return self.by_name[name]


def _fill(storage: Storage, data: bytes, position: int) -> int:
    """Copy the bytes of a storage, and return where the next one begins."""
    size = len(storage.data)
    begin = position + _COUNT.size
    if begin + size > len(data):
        raise CheckpointError("the file is cut off inside its storages")
    (count,) = _COUNT.unpack_from(data, position)
    if count * storage.kind.itemsize != size:
        raise CheckpointError(f"a storage of {size} bytes is said to have {count} elements")
    storage.data[:] = numpy.frombuffer(data, numpy.uint8, size, begin)
    return begin + size
