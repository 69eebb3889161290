"""The functions that PyTorch's and NumPy's pickles call, written anew so that none does harm."""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.backend.device import device as Device
from distgrad.backend.dtype import dtype as DType
from distgrad.backend.layout import strided
from distgrad.errors import CheckpointError
from distgrad.nn.parameter import Buffer, Parameter
from distgrad.serialization.storages import Storage
from distgrad.tensor import Size, Tensor, wrap


# ---------------------------------------------------------------------- tensors
def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return a tensor in a storage that knows its dtype."""
    kind = storage.kind.dtype if isinstance(storage, Storage) else None
    if kind is None:
        raise CheckpointError("a tensor has no storage, or one without a dtype")
    return _in_storage(storage, kind, offset, size, stride)


def _in_storage(storage: Any, kind: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    shape_ok = isinstance(size, tuple) and isinstance(stride, tuple)
    if not isinstance(storage, Storage) or not isinstance(kind, DType) or not shape_ok:
        raise CheckpointError("a tensor is described in another way than PyTorch's")
    return storage.tensor(kind, offset, tuple(size), tuple(stride))


def tensor_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Return a tensor that may require grad; hooks are left out."""
    return _finished(tensor(storage, offset, size, stride), requires_grad, metadata)


def tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    kind: Any,
    metadata: Any = None,
) -> Tensor:
    """Return a tensor of a dtype in a storage of bytes."""
    return _finished(_in_storage(storage, kind, offset, size, stride), requires_grad, metadata)


def _finished(made: Tensor, requires_grad: Any, metadata: Any) -> Tensor:
    bits = metadata if isinstance(metadata, dict) else {}
    if bits.get("conj"):
        made.array = made.array.conj()
    if bits.get("neg"):
        made.array = -made.array
    return made.requires_grad_(True) if requires_grad is True else made


def parameter(data: Any, requires_grad: Any, hooks: Any = None) -> Parameter:
    """Return a parameter on the memory of a tensor."""
    made = Parameter(data, requires_grad is True)
    made.__dict__.update({k: v for k, v in data.__dict__.items() if k == "_storage"})
    return made


def parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
    """Return a parameter with attributes."""
    return with_attributes(parameter(data, requires_grad), state)


def with_attributes(made: Any, state: Any) -> Any:
    """Return a tensor with a user's attributes; those of autograd are left out."""
    found = state[0] if isinstance(state, tuple) and state else state
    if not isinstance(made, Tensor) or not isinstance(found, dict):
        raise CheckpointError("the attributes of a tensor are no dict")
    names = [k for k in found if isinstance(k, str) and not k.startswith("_")]
    made.__dict__.update({name: found[name] for name in names})
    return made


def of_class(kind: type[Tensor], made: Tensor, state: Any) -> Tensor:
    """Return a tensor as one of a class; a buffer is marked in its attributes."""
    if kind is Tensor and isinstance(state, dict) and state.get("_is_buffer"):
        return Buffer(made)
    if kind is Parameter:
        return parameter(made, made.requires_grad)
    out = wrap(made.array, kind)
    out.__dict__.update(made.__dict__)
    return out.requires_grad_(made.requires_grad)


def size(numbers: Any = ()) -> Size:
    """Return a shape."""
    return Size(int(n) for n in numbers)


def device(kind: str, index: int | None = None) -> Device:
    """Return a device."""
    return Device(kind, index)


def layout(name: Any) -> Any:
    """Return the layout of a name: there is one."""
    if name != "torch.strided":
        raise CheckpointError(f"tensors of layout {name} are unknown")
    return strided


# ---------------------------------------------------------------------- NumPy
def array_reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """Return the empty array that ``array_state`` fills."""
    return numpy.empty(0, numpy.uint8)


def array_state(array: Any, state: Any) -> Any:
    """Fill an array with what NumPy wrote: shape, dtype, order, bytes."""
    _, shape, kind, by_columns, data = state
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(kind, numpy.dtype) or not isinstance(data, bytes):
        raise CheckpointError("a NumPy array holds objects; only numbers and texts can be loaded")
    array.__setstate__((1, size(shape), kind, bool(by_columns), data))
    return array


def numpy_dtype(text: Any, align: Any = False, copy: Any = True) -> Any:
    """Return a NumPy dtype of plain numbers or texts."""
    kind = numpy.dtype(text) if isinstance(text, str) else None
    if kind is None or kind.kind not in "biufcSU":
        raise CheckpointError(f"NumPy arrays of dtype {text!r} cannot be loaded")
    return numpy.dtype(kind.str, copy=True)


def dtype_state(kind: Any, state: Any) -> Any:
    """Give a NumPy dtype its byte order."""
    order = state[1]
    if order not in ("<", ">", "|", "="):
        raise CheckpointError(f"a NumPy dtype has byte order {order!r}")
    sizes = (kind.itemsize, kind.alignment) if kind.kind in "SU" else (-1, -1)
    kind.__setstate__((3, order, None, None, None, *sizes, 0))
    return kind


def numpy_scalar(kind: Any, data: Any) -> Any:
    """Return one of NumPy's numbers."""
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(kind, numpy.dtype) or not isinstance(data, bytes):
        raise CheckpointError("a NumPy number holds an object; only numbers can be loaded")
    return numpy.frombuffer(data, kind, 1)[0]


# ---------------------------------------------------------------------- plain values
def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that Python wrote as a text."""
    if encoding not in ("latin1", "utf-8", "ascii"):
        raise CheckpointError(f"bytes in encoding {encoding!r}")
    return str(text).encode(encoding)


def byte_string(*args: Any) -> bytes:
    """Return no bytes: Python 3 writes all others in another way."""
    if args:
        raise CheckpointError("bytes are written in another way than Python's")
    return b""


def byte_array(*args: Any) -> bytearray:
    """Return the bytearray that Python wrote as a text or as bytes."""
    if len(args) == 2:
        return bytearray(encode(*args))
    if args and not isinstance(args[0], bytes):
        raise CheckpointError("a bytearray is written in another way than Python's")
    return bytearray(*args)
