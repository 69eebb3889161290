"""Conversions of tensors to other types and devices, as methods of Tensor."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy

from distgrad.autograd.declare import as_method, as_property, op, recover
from distgrad.autograd.inplace import detach_
from distgrad.autograd.samples import unary
from distgrad.backend import device as devices
from distgrad.backend import dtype as dtypes
from distgrad.backend import pinned
from distgrad.backend.layout import preserve_format
from distgrad.errors import ArgumentTypeError, ShapeError
from distgrad.ops.arrange import flip
from distgrad.ops.shape import clone, to_dtype
from distgrad.tensor import Tensor
from distgrad.tensor import is_inference as made_in_inference
from distgrad.typing import Array, Namespace

__all__ = [
    "detach", "detach_", "get_device", "is_conj", "is_inference", "is_neg", "is_nonzero",
    "is_same_size", "resolve_conj", "resolve_neg",
]  # fmt: skip


@op("linear", widens=False,
    samples=unary(), method=False, node="ToCopyBackward0", reference="clone",
    d_input=lambda F, g, input_device: F.to_device(g, input_device))  # fmt: skip
def to_device(
    xp: Namespace, input: Tensor, device: devices.device = devices.CPU, non_blocking: bool = False
) -> Array:
    """Return a copy on another device."""
    moved = pinned.moved(input, device) if non_blocking else None
    if moved is not None:
        return moved
    moved = devices.to_device(input, device)
    return xp.array(input, copy=True) if moved is input else moved


def to(
    self: Tensor,
    *target: Any,
    dtype: Any = None,
    device: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """Return this tensor in another dtype or on another device; itself when it is so already.

    Args:
        target: a dtype, a device (and a dtype), or a tensor whose dtype and device to take;
            then ``non_blocking`` and ``copy``.
        dtype: the dtype.
        device: the device.
        non_blocking: copy from a GPU, or to one from page-locked memory, beside other work: the
            host goes on, and has to wait for the stream before it reads or changes its side.
        copy: copy even when nothing changes.
        memory_format: the order in memory; ``preserve_format`` leaves it as it is.

    Example:
        >>> import distgrad as dg
        >>> dg.tensor([1, 2]).to(dg.float64)
        tensor([1., 2.], dtype=distgrad.float64)
    """
    try:
        if target:
            device, dtype, flags = _read(target, device, dtype)
            non_blocking = flags[0] if flags else non_blocking
            copy = flags[1] if len(flags) > 1 else copy
        kind = self.array.dtype if dtype is None else dtypes.as_numpy(dtype)
        place = self.device if device is None else devices.device(device)
    except Exception as error:
        recover("to", error, {"input": self}, {"target": target})
    if device is None or devices.is_on(self.array, place):
        out = converted(self, kind)
    elif non_blocking and self.array.dtype != kind and place.type == "cuda":
        out = converted(to_device(self, place, True), kind)  # or it would leave pinned memory
    else:
        out = to_device(converted(self, kind), place, bool(non_blocking))
    if memory_format not in (None, preserve_format):
        if not out.is_contiguous(memory_format=memory_format):
            return clone(out, memory_format=memory_format)
    return clone(out) if copy and out is self else out


def _read(target: tuple[Any, ...], device: Any, dtype: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return the device, the dtype and what stands after them."""
    first, *rest = target
    if isinstance(first, Tensor):
        return first.device, first.array.dtype, tuple(rest)
    if first is None or isinstance(first, str | int | devices.device):
        if rest and not isinstance(rest[0], bool):
            return first, rest[0], tuple(rest[1:])
        return first, dtype, tuple(rest)
    if isinstance(first, dtypes.dtype | numpy.dtype | type):
        return device, first, tuple(rest)
    raise ArgumentTypeError(
        f"to() takes a dtype, a device or a tensor, not {type(first).__name__}; "
        "for example .to(distgrad.float32) or .to('cuda')"
    )


def converted(tensor: Tensor, kind: numpy.dtype[Any]) -> Tensor:
    """Return the tensor in a NumPy dtype: itself when it has it, no gradient through integers."""
    if tensor.array.dtype == kind:
        return tensor
    if tensor.requires_grad and kind.kind in "iub":
        tensor = tensor.detach()
    return to_dtype(tensor, kind)


def type_as(self: Tensor, other: Tensor) -> Tensor:
    """Return this tensor in the dtype, and on the device, of ``other``."""
    return to(self, other)


_TYPE_NAMES = {
    "float16": "HalfTensor", "bfloat16": "BFloat16Tensor", "float32": "FloatTensor",
    "float64": "DoubleTensor", "int8": "CharTensor", "int16": "ShortTensor", "int32": "IntTensor",
    "int64": "LongTensor", "uint8": "ByteTensor", "bool": "BoolTensor",
    "complex64": "ComplexFloatTensor", "complex128": "ComplexDoubleTensor",
}  # fmt: skip
_TYPES = {name: kind for kind, name in _TYPE_NAMES.items()}


def type_(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """Return the name of this tensor's type, or the tensor in ``dtype``."""
    place = "cuda." if self.is_cuda else ""
    if dtype is None:
        name = self.dtype.name
        return f"{dtypes.MODULE_PREFIX}.{place}{_TYPE_NAMES.get(name, name)}"
    if isinstance(dtype, str):
        dtype = _TYPES.get(dtype.rpartition(".")[2], dtype)
    elif isinstance(dtype, type):  # such as dg.FloatTensor
        dtype = getattr(dtype, "dtype", dtype)
    return to(self, dtype=dtype)


# ---------------------------------------------------------------------- one method per dtype
def _in_type(self: Tensor, kind: dtypes.dtype, memory_format: Any) -> Tensor:
    out = converted(self, kind.numpy)
    return out if memory_format is preserve_format else to(out, memory_format=memory_format)


def double(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in float64."""
    return _in_type(self, dtypes.float64, memory_format)


def float_(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in float32."""
    return _in_type(self, dtypes.float32, memory_format)


def half(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in float16."""
    return _in_type(self, dtypes.float16, memory_format)


def bfloat16(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in bfloat16."""
    return _in_type(self, dtypes.bfloat16, memory_format)


def long(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in int64, rounded towards zero."""
    return _in_type(self, dtypes.int64, memory_format)


def int_(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in int32, rounded towards zero."""
    return _in_type(self, dtypes.int32, memory_format)


def short(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in int16, rounded towards zero."""
    return _in_type(self, dtypes.int16, memory_format)


def char(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in int8, rounded towards zero."""
    return _in_type(self, dtypes.int8, memory_format)


def byte(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in uint8, rounded towards zero."""
    return _in_type(self, dtypes.uint8, memory_format)


def bool_(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return True where this tensor is not zero."""
    return _in_type(self, dtypes.bool_, memory_format)


def cfloat(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in complex64."""
    return _in_type(self, dtypes.complex64, memory_format)


def cdouble(self: Tensor, *, memory_format: Any = preserve_format) -> Tensor:
    """Return this tensor in complex128."""
    return _in_type(self, dtypes.complex128, memory_format)


# ---------------------------------------------------------------------- devices and comparisons
def cpu(self: Tensor, memory_format: Any = None) -> Tensor:
    """Return this tensor in host memory; itself when it is there."""
    return to(self, device="cpu")


def cuda(
    self: Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = None
) -> Tensor:
    """Return this tensor on a GPU; itself when it is there."""
    return to(self, device="cuda" if device is None else device, non_blocking=non_blocking)


def is_same_size(input: Tensor, other: Tensor) -> bool:
    """Return True when both tensors have the same shape."""
    return bool(input.array.shape == other.array.shape)


def get_device(self: Tensor) -> int:
    """Return the number of this tensor's GPU, -1 in host memory."""
    index = self.device.index
    return -1 if not self.is_cuda or index is None else index


def is_signed(self: Tensor) -> bool:
    """Return True when the dtype has negative numbers."""
    return self.dtype.is_signed


def ndimension(self: Tensor) -> int:
    """Return the number of dimensions."""
    return int(self.array.ndim)


def is_nonzero(input: Tensor) -> bool:
    """Return True when the only element is not zero."""
    if input.array.size != 1:
        error = ShapeError(
            "Boolean value of Tensor with "
            f"{'more than one value' if input.array.size else 'no values'} is ambiguous"
        )
        recover("is_nonzero", error, {"input": input}, {})
    return bool(input.array.item())


def _is_cpu(self: Tensor) -> bool:
    """True when the array lives in host memory."""
    return not self.is_cuda


def detach(input: Tensor) -> Tensor:
    """Return the same memory without a history."""
    return input.detach()


# ---------------------------------------------------------------------- what PyTorch does lazily
def is_conj(input: Tensor) -> bool:
    """Return False: conjugation is done at once."""
    return False


def is_neg(input: Tensor) -> bool:
    """Return False: negation is done at once."""
    return False


def resolve_conj(input: Tensor) -> Tensor:
    """Return ``input``: conjugation was done at once."""
    return input


def resolve_neg(input: Tensor) -> Tensor:
    """Return ``input``: negation was done at once."""
    return input


def is_inference(input: Tensor) -> bool:
    """Return True for a tensor on memory that was allocated in ``inference_mode``."""
    return made_in_inference(input)


# ---------------------------------------------------------------------- as a Python container
def _contains(self: Tensor, element: Any) -> bool:
    """Return True when one of the elements equals ``element``."""
    if not isinstance(element, Tensor | int | float | complex | numpy.number):
        error = ShapeError(
            "Tensor.__contains__ only supports Tensor or scalar, but you passed in a "
            f"{type(element)}"
        )
        recover("__contains__", error, {"self": self}, {})
    found: Tensor = self == element
    return bool(found.array.any())


def _reversed(self: Tensor) -> Tensor:
    """Return a copy with the order along dimension 0 reversed."""
    return flip(self, (0,)) if self.array.ndim else self


def _delete(self: Tensor, index: Any) -> NoReturn:
    """Refuse ``del tensor[index]``."""
    recover("__delitem__", ArgumentTypeError("Tensor does not support deleting items"),
            {"self": self}, {"index": index})  # fmt: skip
    raise AssertionError


for _function in (
    bfloat16, byte, cdouble, cfloat, char, cpu, cuda, detach_, double, get_device, half,
    is_conj, is_inference, is_neg, is_nonzero, is_same_size, is_signed, long, ndimension,
    resolve_conj, resolve_neg, short, to, type_as,
):  # fmt: skip
    as_method(_function)
del _function
as_property(_is_cpu, "is_cpu")
as_method(_contains, "__contains__")
as_method(_delete, "__delitem__")
as_method(_reversed, "__reversed__")
as_method(bool_, "bool")
as_method(float_, "float")
as_method(int_, "int")
as_method(type_, "type")
