"""Writing a pickle in which tensors bear PyTorch's names, so that PyTorch reads it."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from distgrad.backend.device import device as Device
from distgrad.backend.dtype import ALL_DTYPES
from distgrad.backend.dtype import dtype as DType
from distgrad.backend.layout import layout
from distgrad.errors import ArgumentTypeError
from distgrad.nn.parameter import Buffer, Parameter
from distgrad.serialization.storages import NAMES, UNTYPED, Layout, Span, Storages
from distgrad.tensor import Size, Tensor

PROTOCOL = 2


class Name:
    """The name of a function or class of PyTorch; only the name is written."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self) -> None:
        """Let the pickler take it for a function."""


_TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
_TENSOR_OF_DTYPE = Name("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = Name("torch._utils", "_rebuild_parameter")
_PARAMETER_WITH_STATE = Name("torch._utils", "_rebuild_parameter_with_state")
_WITH_STATE = Name("torch._tensor", "_rebuild_from_type_v2")
_SIZE, _DEVICE = Name("torch", "Size"), Name("torch", "device")
_LAYOUT = Name("torch.serialization", "_get_layout")
_CLASSES = {
    Tensor: Name("torch", "Tensor"),
    Parameter: Name("torch.nn.parameter", "Parameter"),
    Buffer: Name("torch.nn.parameter", "Buffer"),
}
_STORAGES = {kind: Name("torch", name) for kind, name in NAMES.items()}
_BYTES = Name("torch.storage", UNTYPED)
_DTYPES = {kind.name: Name("torch", kind.name) for kind in ALL_DTYPES}


class _Persistent:
    """Stands for a storage in the pickle."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key


class _Call:
    """Stands for what a function of PyTorch returns."""

    __slots__ = ("args", "function")

    def __init__(self, function: Name, args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args


# Python's C pickler insists that a name can be imported; the one written in Python has a method
# for names.
class Pickler(pickle._Pickler):
    """Pickles tensors as ``placed`` says where they lie.

    Args:
        file: where the pickle goes.
        placed: called with each tensor; gives its place in a storage.
        protocol: the version of the format.
    """

    def __init__(
        self, file: Any, placed: Callable[[Tensor], Layout | None], protocol: int = PROTOCOL
    ) -> None:
        super().__init__(file, protocol=protocol)
        self._placed = placed

    def persistent_id(self, obj: Any) -> Any:
        """Return the key of a storage; other objects have none."""
        return obj.key if type(obj) is _Persistent else None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write a name: PyTorch's, for what PyTorch has."""
        known = _name_of(obj)
        if known is None:
            super().save_global(obj, name)  # type: ignore[misc]
            return
        line = f"{known.module}\n{known.name}\n".encode()
        self.write(pickle.GLOBAL + line)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    def reducer_override(self, obj: Any) -> Any:
        """Return how an object is rebuilt, for the kinds that PyTorch has as well."""
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        kind = type(obj)
        if kind is _Call:
            return obj.function, obj.args
        if _name_of(obj) is not None:
            return "a name, which save_global knows"
        if kind is Size:
            return _SIZE, (tuple(obj),)
        if kind is Device:
            return _DEVICE, ((obj.type,) if obj.index is None else (obj.type, obj.index))
        if kind is layout:
            return _LAYOUT, ("torch.strided",)
        return NotImplemented

    def _tensor(self, tensor: Tensor) -> Any:
        plain = self._plain(tensor)
        state = {k: v for k, v in tensor.__dict__.items() if not k.startswith("_")}
        if isinstance(tensor, Parameter):
            args: Any = (_Call(*plain), tensor.requires_grad, OrderedDict())
            return (_PARAMETER_WITH_STATE, (*args, state)) if state else (_PARAMETER, args)
        kind: type[Tensor] = type(tensor)
        if isinstance(tensor, Buffer):
            kind, state = Tensor, {**state, "persistent": tensor.persistent, "_is_buffer": True}
        if kind is Tensor and not state:
            return plain
        return _WITH_STATE, (plain[0], kind, plain[1], state)

    def _plain(self, tensor: Tensor) -> tuple[Name, tuple[Any, ...]]:
        """Return the function that rebuilds a tensor without its class, and its arguments."""
        place = self._placed(tensor)
        if place is None:  # the first reading: nothing is known yet
            return _TENSOR, ()
        span = place.span
        kind = _STORAGES.get(span.kind.name, _BYTES)
        nbytes = span.high - span.low
        count = nbytes if kind is _BYTES else nbytes // span.kind.itemsize
        storage = _Persistent(("storage", kind, span.key, span.place, count))
        shape = tuple(tensor.array.shape)
        args: Any = (
            storage,
            place.offset,
            shape,
            place.stride,
            tensor.requires_grad,
            OrderedDict(),
        )
        return (_TENSOR_OF_DTYPE, (*args, span.kind)) if kind is _BYTES else (_TENSOR, args)


def _name_of(obj: Any) -> Name | None:
    kind = type(obj)
    if kind is Name:
        named: Name = obj
        return named
    if kind is DType:
        return _DTYPES[obj.name]
    return _CLASSES.get(obj) if isinstance(obj, type) else None


def pickled(obj: Any, protocol: int) -> tuple[bytes, list[Span]]:
    """Return an object's pickle, and the storages that it names."""
    storages = Storages()

    def noted(tensor: Tensor) -> None:
        storages.note(tensor)

    Pickler(io.BytesIO(), noted, protocol).dump(obj)
    spans = storages.settle()

    def placed(tensor: Tensor) -> Layout:
        place = storages.layout(tensor)
        if place is None:
            raise ArgumentTypeError(
                f"save({tensor._brief()}): an object gives a new tensor each time it is pickled; "
                "let its __getstate__ give the same one"
            )
        return place

    file = io.BytesIO()
    Pickler(file, placed, protocol).dump(obj)
    return file.getvalue(), spans
