"""Where the storages of a file are put: ``map_location``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy

from distgrad.backend.device import device as Device
from distgrad.backend.device import is_cuda_available, to_device
from distgrad.errors import ArgumentTypeError, DeviceError
from distgrad.ops.storage import UntypedStorage
from distgrad.tensor import Tensor, wrap

Locate: TypeAlias = Callable[[UntypedStorage, str], UntypedStorage | None]
MapLocation: TypeAlias = Device | str | Mapping[str, str] | Locate | None


def mover(map_location: MapLocation) -> Callable[[Any, str], Any]:
    """Return a function that puts the bytes of a storage where they belong.

    Args:
        map_location: None keeps the device that the file names; a device takes all; a dict gives
            a device for each device; a function gets a storage and the name of its device, and
            returns the storage where it wants it, or None to keep the device.
    """
    if map_location is None:
        return _keep
    if isinstance(map_location, Device | str | int):
        device = Device(map_location)
        return lambda data, place: to_device(data, device)
    if isinstance(map_location, Mapping):
        table = map_location
        return lambda data, place: _keep(data, table.get(place, place))
    if callable(map_location):
        function = map_location
        return lambda data, place: _asked(function, data, place)
    raise ArgumentTypeError(
        f"load(map_location={map_location!r}): takes a device, its name, a dict of names, a "
        "function or None"
    )


def _keep(data: Any, place: str) -> Any:
    device = Device(place)
    if device.type == "cuda" and not is_cuda_available():
        raise DeviceError(
            "Attempting to deserialize object on a CUDA device but cuda.is_available() is False; "
            "If you are running on a CPU-only machine, please use load with "
            "map_location=device('cpu') to map your storages to the CPU."
        )
    return to_device(data, device)


def _asked(function: Callable[[Any, str], Any], data: Any, place: str) -> Any:
    found = function(UntypedStorage(wrap(data)), place)
    if found is None:
        return _keep(data, place)
    memory = found._tensor if isinstance(found, UntypedStorage) else found
    if not isinstance(memory, Tensor) or memory.array.dtype != numpy.uint8:
        raise ArgumentTypeError(
            f"load(map_location=function): it returned a {type(found).__name__} for {place!r}; "
            "return the storage it is given, moved with .cpu() or .cuda(), or None"
        )
    return memory.array.reshape(-1)
