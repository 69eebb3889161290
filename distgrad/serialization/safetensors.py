"""Tensors by name in safetensors files, which many programs read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from distgrad.backend.device import device as Device
from distgrad.backend.device import to_device
from distgrad.backend.dtype import bfloat16
from distgrad.errors import ArgumentTypeError, CheckpointError
from distgrad.nn.module import Module
from distgrad.serialization.atomic import FilePath, atomic_path
from distgrad.serialization.errors import MissingFile
from distgrad.serialization.locations import mover
from distgrad.tensor import Tensor, wrap

_ALIASES = "distgrad.aliases"  # names of tensors that are the same memory as another


def _host(array: Any) -> Any:
    """Return a contiguous array of the host.

    safetensors writes the memory of an array as it lies, so a transposed one would come back wrong.
    """
    return numpy.ascontiguousarray(to_device(array, Device("cpu"))).reshape(array.shape)


def _same_memory(a: Any) -> tuple[Any, ...]:
    start = a.ctypes.data if isinstance(a, numpy.ndarray) else a.data.ptr
    return start, a.shape, a.strides, a.dtype.str


def _deduplicated(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return arrays without repetitions, and for each repeated name the name it repeats."""
    arrays: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise ArgumentTypeError(
                f"save_file({name!r}: {type(tensor).__name__}): takes a dict of tensors by name; "
                "use save() for other data"
            )
        original = first.setdefault(_same_memory(tensor.array), name) if tensor.numel() else name
        if original == name:
            arrays[name] = _host(tensor.array)
        else:
            aliases[name] = original
    return arrays, aliases


def save_file(
    tensors: Mapping[str, Tensor], path: FilePath, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Tensors that are the same memory (tied weights) are written once and tied again by
    ``load_file``; other programs find the first name only.

    Args:
        tensors: tensors by name, on any device, of any layout.
        path: the file; an old one is replaced.
        metadata: texts by name, kept in the file's head.

    Raises:
        CheckpointError: the file could not be written; an old one is as it was.
    """
    from safetensors.numpy import save_file as write  # takes 20 ms to import

    arrays, aliases = _deduplicated(tensors)
    notes = {"format": "pt", **(metadata or {})}
    if aliases:
        notes[_ALIASES] = json.dumps(aliases)
    try:
        with atomic_path(path) as temporary:
            write(arrays, temporary, metadata=notes)
    except Exception as error:
        raise CheckpointError(
            f"save_file({os.fspath(path)!r}): could not be written ({error}); check the space and "
            "the rights of its directory; a file that was there before is unchanged"
        ) from error


def load_file(path: FilePath, device: Device | str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Args:
        path: the file.
        device: where the tensors are put.

    Raises:
        CheckpointError: the file is missing, torn, or no safetensors file.
    """
    return read(path, mover(Device(device)))


def read(path: FilePath, move: Callable[[Any, str], Any]) -> dict[str, Tensor]:
    """Return the tensors of a file, each moved from the host by ``move(array, "cpu")``."""
    from safetensors import safe_open  # takes 20 ms to import

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            notes = dict(file.metadata() or {})
            names = list(file.keys())
            tensors = {name: wrap(move(_array(file, name), "cpu")) for name in names}
        aliases = json.loads(notes.get(_ALIASES, "{}"))
        tensors |= {name: wrap(tensors[original].array) for name, original in aliases.items()}
    except FileNotFoundError as error:
        raise MissingFile(f"load({os.fspath(path)!r}): there is no such file") from error
    except Exception as error:
        raise CheckpointError(
            f"load({os.fspath(path)!r}): not a whole safetensors file ({error}); it may have been "
            "cut off or damaged: take an older one"
        ) from error
    return tensors


def _array(file: Any, name: str) -> Any:
    if file.get_slice(name).get_dtype() == "BF16":
        bfloat16.numpy  # noqa: B018  (registers the dtype with NumPy)
    return file.get_tensor(name)


def save_model(
    model: Module, filename: FilePath, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the state of a module; tied weights are written once."""
    save_file(model.state_dict(), filename, metadata)


def load_model(
    model: Module, filename: FilePath, strict: bool = True, device: Device | str = "cpu"
) -> tuple[set[str], list[str]]:
    """Load the state of a module, and return the keys that are missing and that are unexpected.

    A file of another program may lack the second name of tied weights: that is not missing.

    Raises:
        CheckpointError: keys are missing or unexpected, and ``strict`` is set.
    """
    tensors = load_file(filename, device)
    tied: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in model.state_dict().items():
        tied.setdefault(_same_memory(tensor.array), []).append(name)
    for names in tied.values():
        known = [tensors[name] for name in names if name in tensors]
        tensors |= {name: known[0] for name in names if known and name not in tensors}
    found = model.load_state_dict(tensors, strict=strict)
    return set(found.missing_keys), list(found.unexpected_keys)
