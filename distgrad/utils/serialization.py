"""Tensors in files: safetensors, and nested containers of tensors on top of it.  No pickle.

A file appears under its name only when it is complete: it is written under a temporary name beside
it, flushed to disk, and renamed.  Loading executes nothing that a file contains.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy

from distgrad.backend.device import device as Device
from distgrad.backend.device import to_device
from distgrad.errors import ArgumentTypeError, CheckpointError
from distgrad.tensor import Tensor, wrap

FilePath = str | os.PathLike[str]

_TREE = "distgrad.tree"  # key of the metadata that holds the containers as JSON
_ALIASES = "distgrad.aliases"  # names of tensors that are the same memory as another
_MAX_DEPTH = 100


# ---------------------------------------------------------------------- atomic files
@contextlib.contextmanager
def atomic_path(path: FilePath) -> Iterator[str]:
    """Give a temporary path whose file takes the name ``path`` when the block ends well.

    After an error (a full disk, say) nothing new is left behind and an old file is as it was.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _flush(path: str) -> None:
    """Wait until a file, or the entries of a directory, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not os.path.isdir(path):  # some file systems cannot flush directories
            raise
    finally:
        os.close(handle)


# ---------------------------------------------------------------------- dicts of tensors
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
    return _read(path, Device(device))[0]


def _read(path: FilePath, device: Device) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open  # takes 20 ms to import

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: wrap(to_device(file.get_tensor(name), device)) for name in file.keys()}  # noqa: SIM118  (no mapping)
        aliases = json.loads(notes.pop(_ALIASES, "{}"))
        tensors |= {name: wrap(tensors[original].array) for name, original in aliases.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"load({os.fspath(path)!r}): there is no such file") from error
    except Exception as error:
        raise CheckpointError(
            f"load({os.fspath(path)!r}): not a whole safetensors file ({error}); it may have been "
            "cut off or damaged: take an older one"
        ) from error
    return tensors, notes


# ---------------------------------------------------------------------- nested containers
def save(obj: Any, path: FilePath) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, texts and None to a file.

    The file is a safetensors file: tensors of a plain dict keep their names, so other programs can
    read it.  Containers and numbers stand as JSON in its head.

    Args:
        obj: what to save, such as ``{"model": model.state_dict(), "step": 100}``.
        path: the file; an old one is replaced only by a whole new one.

    Raises:
        ArgumentTypeError: something inside is of another kind; the path to it is named.
        CheckpointError: the file could not be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _packed(obj, "", tensors, 0)
    save_file(tensors, path, {_TREE: json.dumps(tree)})


def load(
    path: FilePath, map_location: Device | str | None = None, *, weights_only: bool = True
) -> Any:
    """Return what ``save`` wrote, or the tensors of any safetensors file by name.

    Args:
        path: the file.
        map_location: where the tensors are put (default: the cpu).
        weights_only: accepted; nothing else is ever loaded.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    device = Device("cpu" if map_location is None else map_location)
    tensors, notes = _read(path, device)
    if _TREE not in notes:
        return tensors
    try:
        return _unpacked(json.loads(notes[_TREE]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"load({os.fspath(path)!r}): its head is damaged ({error}); take an older file"
        ) from error


_PLAIN = (bool, int, str, type(None))


def _packed(value: Any, path: str, tensors: dict[str, Tensor], depth: int) -> Any:
    """Return ``value`` as JSON; tensors go to ``tensors`` under their path."""
    if depth > _MAX_DEPTH:
        raise ArgumentTypeError(f"save(): {path[:80]}… is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Tensor):
        name = path or "tensor"
        while name in tensors:  # paths of different containers may read alike
            name += "'"
        tensors[name] = value
        return {"tensor": name, "grad": True} if value.requires_grad else {"tensor": name}
    if isinstance(value, float):
        return {"float": value.hex()}  # exact, infinities and NaN included
    if type(value) in _PLAIN:
        return value
    below = path + "." if path else ""
    if isinstance(value, Mapping):
        items = []
        for key, item in value.items():
            if type(key) not in _PLAIN:
                raise ArgumentTypeError(
                    f"save(): the key {key!r} at {path or 'the top'} is a {type(key).__name__}; "
                    "keys are texts, integers, bools or None"
                )
            items.append([key, _packed(item, f"{below}{key}", tensors, depth + 1)])
        return {"ordered" if isinstance(value, OrderedDict) else "dict": items}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(v, f"{below}{i}", tensors, depth + 1) for i, v in enumerate(value)]}
    raise ArgumentTypeError(
        f"save(): {path or 'the object'} is a {type(value).__name__}; only tensors, numbers, "
        "texts, None, dicts, lists and tuples can be saved"
    )


def _unpacked(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree), "")
    content = tree[kind]
    if kind == "tensor":
        tensor = tensors[content]
        return tensor.requires_grad_() if tree.get("grad") else tensor
    return _KINDS[kind](content, tensors)


_KINDS: dict[str, Callable[[Any, dict[str, Tensor]], Any]] = {
    "float": lambda text, tensors: float.fromhex(text),
    "dict": lambda items, tensors: {k: _unpacked(v, tensors) for k, v in items},
    "ordered": lambda items, tensors: OrderedDict((k, _unpacked(v, tensors)) for k, v in items),
    "list": lambda items, tensors: [_unpacked(v, tensors) for v in items],
    "tuple": lambda items, tensors: tuple(_unpacked(v, tensors) for v in items),
}
