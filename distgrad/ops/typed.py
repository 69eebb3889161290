"""Types of tensors by PyTorch's older names, such as ``FloatTensor(2, 3)``."""

from __future__ import annotations

from typing import Any, TypeVar

from distgrad.autograd.declare import as_method
from distgrad.backend import dtype as _dtype
from distgrad.backend.device import device as Device
from distgrad.backend.device import get_default_device, set_default_device
from distgrad.errors import ArgumentTypeError
from distgrad.ops.create import empty, tensor
from distgrad.ops.methods import _TYPE_NAMES
from distgrad.ops.shape import alias
from distgrad.ops.storage import UntypedStorage
from distgrad.tensor import Size, Tensor, wrap

T = TypeVar("T", bound=Tensor)

__all__ = [
    "BFloat16Tensor", "BoolTensor", "ByteTensor", "CharTensor", "DoubleTensor", "FloatTensor",
    "HalfTensor", "IntTensor", "LongTensor", "ShortTensor", "is_storage", "set_default_tensor_type",
    "typename",
]  # fmt: skip


class _TensorType(type):
    """The class of these types: an instance is any tensor of the dtype on the device."""

    kind: _dtype.dtype
    place: str

    def __instancecheck__(cls, value: object) -> bool:
        if not isinstance(value, Tensor):
            return False
        return value.dtype is cls.kind and value.device.type == cls.place

    def __call__(cls, *args: Any, device: Any = None) -> Tensor:
        """Return an uninitialised tensor of these sizes, or one of this data."""
        place = Device(cls.place) if device is None else Device(device)
        if place.type != cls.place:
            raise ArgumentTypeError(
                f"{cls.__name__}(device={str(place)!r}): legacy constructor expects device type: "
                f"{cls.place}; use tensor(data, dtype=…, device=…)"
            )
        return _of(args, cls.kind, place)

    def __repr__(cls) -> str:
        return f"<class '{cls.__module__}.{cls.__name__}'>"

    def __str__(cls) -> str:
        place = "" if cls.place == "cpu" else "cuda."
        return f"{_dtype.MODULE_PREFIX}.{place}{cls.__name__}"

    @property
    def dtype(cls) -> _dtype.dtype:
        """The dtype of these tensors."""
        return cls.kind


def _of(args: tuple[Any, ...], kind: _dtype.dtype, place: Device) -> Tensor:
    if not args or all(isinstance(n, int) for n in args):
        return empty(*(args or (0,)), dtype=kind, device=place)
    if len(args) > 1:
        raise ArgumentTypeError(
            f"{_TYPE_NAMES[kind.name]}{args!r}: takes sizes or one sequence; use tensor([…])"
        )
    data = args[0]
    if isinstance(data, Size):
        return empty(data, dtype=kind, device=place)
    if isinstance(data, Tensor):
        if data.dtype is not kind:
            raise ArgumentTypeError(
                f"{_TYPE_NAMES[kind.name]}({data._brief()}): expected {kind} (got {data.dtype}); "
                "convert with .to(dtype)"
            )
        return data.detach()
    return tensor(data, dtype=kind, device=place)


def _type(name: str, place: str) -> Any:
    kind = _dtype.dtype(next(n for n, word in _TYPE_NAMES.items() if word == name))
    # as PyTorch's: they are no classes of tensors, only their constructors and tests
    return _TensorType(name, (), {"kind": kind, "place": place, "__module__": __name__,
                                  "__doc__": f"Tensors of {kind.name} on {place}."})  # fmt: skip


BFloat16Tensor, BoolTensor = _type("BFloat16Tensor", "cpu"), _type("BoolTensor", "cpu")
ByteTensor, CharTensor = _type("ByteTensor", "cpu"), _type("CharTensor", "cpu")
DoubleTensor, FloatTensor = _type("DoubleTensor", "cpu"), _type("FloatTensor", "cpu")
HalfTensor, IntTensor = _type("HalfTensor", "cpu"), _type("IntTensor", "cpu")
LongTensor, ShortTensor = _type("LongTensor", "cpu"), _type("ShortTensor", "cpu")

#: the same for arrays on a GPU: ``cuda.FloatTensor``
ON_CUDA = {name: _type(name, "cuda") for name in __all__ if name.endswith("Tensor")}


def set_default_tensor_type(t: Any, /) -> None:
    """Set the default dtype, and with a type of ``cuda`` the default device.

    Args:
        t: a type such as ``DoubleTensor``, or its name.
    """
    chosen = _named(t) if isinstance(t, str) else t
    if not isinstance(chosen, _TensorType) or not chosen.kind.is_floating_point:
        raise ArgumentTypeError(
            f"set_default_tensor_type({t!r}): only floating-point types are supported as the "
            "default type; use FloatTensor or DoubleTensor"
        )
    if chosen.place != get_default_device().type:
        set_default_device(chosen.place)
    _dtype.set_default_dtype(chosen.kind)


def _named(text: str) -> Any:
    """Return the type of the name, such as ``torch.cuda.FloatTensor``; None if there is none."""
    *places, name = text.split(".")
    types = ON_CUDA if "cuda" in places else globals()
    return types.get(name) if name in ON_CUDA else None


def typename(obj: Any, /) -> str:
    """Return the name of an object's type, that of a tensor by dtype and device."""
    if isinstance(obj, Tensor):
        return str(obj.type())
    if isinstance(obj, _TensorType):
        return str(obj)
    module = getattr(obj, "__module__", "") or ""
    named = obj if hasattr(obj, "__qualname__") else type(obj)
    module = module if named is obj else type(obj).__module__
    name = named.__qualname__
    return name if module in ("", "builtins") else f"{module}.{name}"


def is_storage(obj: Any, /) -> bool:
    """Return whether ``obj`` is the memory of a tensor."""
    return isinstance(obj, UntypedStorage)


def new(self: Tensor, *args: Any, device: Any = None) -> Tensor:
    """Return a tensor of this dtype and device: uninitialised, of these sizes, or of this data."""
    return _of(args, self.dtype, self.device if device is None else Device(device))


def as_subclass(self: Tensor, cls: type[T]) -> T:
    """Return this tensor as one of a subclass: the same memory, the same history.

    Differs from PyTorch: operations on it return plain tensors.
    """
    out = alias(self)
    out.__class__ = cls
    return out  # type: ignore[return-value]


def _make_subclass(cls: type[T], data: Tensor, require_grad: bool = False) -> T:
    """Return a tensor of class ``cls`` on the memory of ``data``, without its history."""
    out = wrap(data.array, cls)
    out._requires = bool(require_grad)
    return out  # type: ignore[return-value]


as_method(new)
as_method(as_subclass)
Tensor._make_subclass = staticmethod(_make_subclass)  # type: ignore[attr-defined]
