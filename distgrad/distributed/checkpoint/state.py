"""Nested state, taken apart into tensors and the rest by their keys, and put together again.

Dicts, lists and tuples with tensors in them, and objects with ``state_dict`` and
``load_state_dict``, are taken apart; a key is the way to a value, such as
``optim/state/head.weight/exp_avg``. What holds no tensors is one value, in JSON.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from distgrad.backend.device import device as Device
from distgrad.backend.device import device_of, to_device
from distgrad.backend.dtype import as_numpy
from distgrad.backend.dtype import dtype as Dtype
from distgrad.distributed.checkpoint.tensors import NAMES, code_of
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, ArgumentTypeError, CheckpointError, DeviceError
from distgrad.tensor import Tensor, shared_of


@runtime_checkable
class Stateful(Protocol):
    """An object that gives its state, and takes it back."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take it back."""


class Shard:
    """The part of a tensor that this rank has: elements of the flat tensor, one after the other.

    Args:
        tensor: the elements, in one dimension.
        shape: of the whole tensor.
        start: the place of the first of them.

    Example:
        >>> import distgrad as dg
        >>> Shard(dg.zeros(3), (2, 5), 4)
        Shard(elements 4 to 7 of float32[2, 5])
    """

    __slots__ = ("shape", "start", "tensor")

    def __init__(self, tensor: Tensor, shape: tuple[int, ...], start: int) -> None:
        self.tensor, self.shape, self.start = tensor, tuple(shape), start

    @property
    def stop(self) -> int:
        """The place behind the last element."""
        return self.start + int(self.tensor.array.size)

    def __repr__(self) -> str:
        what = f"{self.tensor.array.dtype}{list(self.shape)}"
        return f"Shard(elements {self.start} to {self.stop} of {what})"


Leaf = Tensor | Shard
_PLAIN = frozenset((bool, int, float, str, dict, list, tuple, type(None), Tensor, Shard))


# ---------------------------------------------------------------------- taking apart
def taken_apart(state: Mapping[str, Any]) -> tuple[dict[str, Leaf], dict[str, Any]]:
    """Return the tensors in ``state`` and everything else, by their keys.

    Raises:
        ArgumentError: two values have the same key.
        ArgumentTypeError: a value is neither a tensor nor numbers, texts and containers.
    """
    tensors: dict[str, Leaf] = {}
    objects: dict[str, Any] = {}
    for key, value in leaves(state, ""):
        if key in tensors or key in objects:
            raise ArgumentError(f"save(): two values have the key {key!r}; rename one")
        if isinstance(value, Leaf):
            tensors[key] = value
        else:
            objects[key] = encoded(value, key)
    return tensors, objects


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Give each value in ``value`` that is not taken apart further, with its key."""
    if isinstance(value, Leaf):
        yield key, value
    elif _is_stateful(value):
        yield from leaves(value.state_dict(), key)
    elif isinstance(value, Mapping) and (not key or _holds_tensors(value)):
        for name, part in value.items():
            yield from leaves(part, below(key, name))
    elif isinstance(value, list | tuple) and _holds_tensors(value):
        for place, part in enumerate(value):
            yield from leaves(part, below(key, place))
    else:
        yield key, value


def below(key: str, name: object) -> str:
    """Return the key of what is called ``name`` under ``key``.

    Example:
        >>> below("optim", "a/b")
        'optim/a~1b'
    """
    text = str(name).replace("~", "~0").replace("/", "~1")
    return f"{key}/{text}" if key else text


def _is_stateful(value: Any) -> bool:
    kind = type(value)  # asking a Protocol would take ten times as long
    return (
        kind not in _PLAIN
        and kind is not type
        and callable(getattr(kind, "load_state_dict", None))
        and callable(getattr(kind, "state_dict", None))
    )


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Leaf) or _is_stateful(value):
        return True
    parts = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list | tuple) and any(map(_holds_tensors, parts))


# ---------------------------------------------------------------------- putting together
def restored(value: Any, key: str, give: Callable[[str, Any], Any]) -> Any:
    """Return ``value`` with everything in it taken from a checkpoint, in place where it can be.

    Args:
        value: nested as what was saved.
        key: its key.
        give: returns what to put in the place of a value; it fills tensors itself.
    """
    if isinstance(value, Leaf):
        return give(key, value)
    if _is_stateful(value):
        value.load_state_dict(restored(value.state_dict(), key, give))
        return value
    if isinstance(value, dict) and (not key or _holds_tensors(value)):
        for name in list(value):
            value[name] = restored(value[name], below(key, name), give)
        return value
    if isinstance(value, list | tuple) and _holds_tensors(value):
        parts = [restored(part, below(key, place), give) for place, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    found = give(key, value)
    if type(found) is type(value) is dict and found is not value:
        value.clear()
        value |= found
        return value
    return found


def fill(leaf: Leaf, values: HostArray) -> None:
    """Copy loaded values into a tensor."""
    tensor = leaf.tensor if isinstance(leaf, Shard) else leaf
    array = tensor.array
    array[...] = to_device(values.reshape(array.shape), device_of(array))
    shared_of(tensor).bump()


# ---------------------------------------------------------------------- numbers, texts, containers
def encoded(value: Any, key: str) -> Any:
    """Return ``value`` as JSON can hold it.

    Raises:
        ArgumentTypeError: it is something else than numbers, texts, arrays and containers.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    for kind, (name, write, _) in _KINDS.items():
        if isinstance(value, kind):
            return {name: write(value, key)}
    if isinstance(value, Mapping):
        return _encoded_table(value, key)
    if isinstance(value, list):
        return [encoded(part, key) for part in value]
    raise ArgumentTypeError(
        f"save(): {key!r} is of {type(value).__module__}.{type(value).__qualname__}; a checkpoint "
        "holds tensors, numbers, texts and containers of them, so save its state_dict() or its "
        "parts"
    )


def _encoded_table(value: Mapping[Any, Any], key: str) -> Any:
    plain = all(isinstance(name, str) and not name.startswith("$") for name in value)
    if plain:
        return {name: encoded(part, below(key, name)) for name, part in value.items()}
    return {"$dict": [[encoded(k, key), encoded(v, below(key, k))] for k, v in value.items()]}


def decoded(value: Any) -> Any:
    """Return what `encoded` got.

    Raises:
        CheckpointError: it is nothing that `encoded` returns.
    """
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    names = [name for name in value if name.startswith("$")]
    if not names:
        return {name: decoded(part) for name, part in value.items()}
    read = _READERS.get(names[0])
    if read is None or len(value) > 1:
        raise CheckpointError(f"the state has something called {names[0][:80]!r}")
    try:
        return read(value[names[0]])
    except (ValueError, TypeError, LookupError, ArithmeticError, DeviceError) as error:
        raise CheckpointError(f"the state has a {names[0]!r} that is none") from error


def _text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _write_array(value: HostArray, key: str) -> list[Any]:
    if value.dtype.name not in NAMES.values():
        raise ArgumentTypeError(f"save(): {key!r} is an array of {value.dtype}; convert it")
    data = np.ascontiguousarray(value).tobytes()
    return [code_of(value.dtype), list(value.shape), _text_of(data)]


def _read_array(row: list[Any]) -> HostArray:
    data = base64.b64decode(row[2], validate=True)
    flat = np.frombuffer(data, as_numpy(NAMES[row[0]]))
    return flat.reshape(row[1]).copy()


def _read_table(rows: list[Any]) -> dict[Any, Any]:
    return {decoded(key): decoded(part) for key, part in rows}


def _read_dtype(name: Any) -> Dtype:
    if name not in NAMES.values():
        raise ValueError(name)
    return Dtype(name)


def _parts(value: Any, key: str) -> list[Any]:
    return [encoded(part, key) for part in value]


# how kinds of values that JSON does not have are written and read
_KINDS: dict[Any, tuple[str, Callable[[Any, str], Any], Callable[[Any], Any]]] = {
    tuple: ("$tuple", _parts, lambda row: tuple(map(decoded, row))),
    frozenset: ("$frozenset", _parts, lambda row: frozenset(map(decoded, row))),
    set: ("$set", _parts, lambda row: set(map(decoded, row))),
    bytes | bytearray: (
        "$bytes", lambda value, _: _text_of(bytes(value)),
        lambda text: base64.b64decode(text, validate=True),
    ),
    complex: ("$complex", lambda value, _: [value.real, value.imag], lambda row: complex(*row)),
    np.ndarray: ("$array", _write_array, _read_array),
    Dtype: ("$dtype", lambda value, _: value.name, _read_dtype),
    Device: ("$device", lambda value, _: str(value), lambda name: Device(str(name))),
}  # fmt: skip
_READERS: dict[str, Callable[[Any], Any]] = {name: read for name, _, read in _KINDS.values()}
_READERS |= {"$float": lambda text: float(str(text)), "$dict": _read_table}
