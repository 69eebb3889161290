"""Tensors from data and from sizes."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, cast
from distgrad.autograd.outputs import into
from distgrad.backend import dtype as _dtype
from distgrad.backend import pinned
from distgrad.backend.device import device as Device
from distgrad.backend.device import (
    device_of,
    get_default_device,
    is_on,
    namespace_of,
    to_device,
    working_on,
)
from distgrad.backend.dtype import checked_number
from distgrad.backend.dtype import dtype as DType
from distgrad.backend.layout import order_of, strided
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DtypeError,
    GradError,
    ShapeError,
    explain,
)
from distgrad.ops import shape as _shapes
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

__all__ = [
    "as_tensor", "asarray", "empty", "empty_like", "empty_permuted", "empty_strided",
    "from_dlpack", "from_numpy", "full", "full_like", "ones", "ones_like", "scalar_tensor",
    "tensor", "zeros", "zeros_like",
]  # fmt: skip

DeviceLike = Device | str | int | None


# ---------------------------------------------------------------------- what all of them share
def finish(array: Array, place: Device, requires_grad: bool, name: str) -> Tensor:
    """Return ``array`` as a tensor on ``place``; ``name`` stands in errors."""
    if place.type != "cpu":
        array = to_device(array, place)
    out = wrap(array)
    if requires_grad:
        if array.dtype.kind not in "fcV":
            raise GradError(
                f"{name}(dtype={array.dtype}): Only Tensors of floating point and complex dtype "
                "can require gradients; pass a float dtype"
            )
        out.requires_grad = True
    return out


def factory(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a function that makes tensors the keywords ``out``, ``layout`` and ``pin_memory``.

    ``out`` decides the dtype; ``layout`` can only be ``strided``; see `page_locked`.
    """
    name = function.__name__

    @functools.wraps(function)
    def call(
        *args: Any, out: Tensor | None = None, layout: Any = None, pin_memory: bool = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        strided_only(name, layout)
        if out is None:
            try:
                made = function(*args, **options)
                return page_locked(made, name) if pin_memory else made
            except MemoryError as error:
                asked = {"size": args} if args else {}
                raise explain(name, error, {}, {**asked, **options}) from error
        kind = numpy_dtype(options.get("dtype") or out.dtype, name)
        if kind != out.array.dtype:
            raise DtypeError(
                f"{name}(out: {out._brief()}): dtype {kind} does not match dtype of out parameter "
                f"({out.array.dtype}); leave dtype= away"
            )
        options |= {"dtype": out.dtype, "requires_grad": False}
        return into(out, name, function, args, options)

    return call


def page_locked(tensor: Tensor, name: str) -> Tensor:
    """Return a new tensor, with its elements in memory from which a GPU copies by itself.

    Raises:
        DeviceError: it is on a GPU, or there is none.
    """
    if not isinstance(tensor.array, numpy.ndarray):
        raise DeviceError(
            f"{name}(device={tensor.device}, pin_memory=True): only dense CPU tensors can be "
            "pinned; leave pin_memory away"
        )
    tensor.array = pinned.copied(tensor.array, f"{name}(pin_memory=True)")
    return tensor


def strided_only(name: str, layout: Any) -> None:
    """Refuse layouts that tensors of this package do not have."""
    if layout is not None and layout is not strided:
        raise ShapeError(f"{name}(layout={layout!r}): tensors have the layout strided only")


def placed(device: DeviceLike) -> Device:
    """Return the device that a ``device`` argument names; None means the default one."""
    if device is None:
        return get_default_device()
    return device if type(device) is Device else Device(device)


def numpy_dtype(dtype: Any, name: str) -> Any:
    """Return the NumPy dtype of a ``dtype`` argument; None means the default float."""
    if dtype is None or type(dtype) is DType or dtype in (float, int, bool, complex):
        return _dtype.as_numpy(dtype)
    if isinstance(dtype, numpy.dtype):
        return dtype
    raise ArgumentTypeError(
        f"{name}(dtype={dtype!r}): argument 'dtype' must be a dtype, not {type(dtype).__name__}; "
        f"use {_dtype.MODULE_PREFIX}.float32 or another"
    )


def sizes_of(name: str, size: Any) -> tuple[int, ...]:
    """Return the sizes of ``name(*size)``, given one by one or as one sequence."""
    if len(size) == 1 and isinstance(size[0], list | tuple):
        size = size[0]
    try:
        found = tuple([n if type(n) is int else _index(n) for n in size])
    except (AttributeError, TypeError):
        wrong = next(n for n in size if isinstance(n, bool) or not hasattr(n, "__index__"))
        raise ArgumentTypeError(
            f"{name}(size={tuple(size)!r}): argument 'size' must be tuple of ints, "
            f"not {type(wrong).__name__}"
        ) from None
    if found and min(found) < 0:
        raise ShapeError(
            f"{name}(size={found}): Dimension size must be non-negative; negative sizes are "
            "for reshape only"
        )
    return found


def _index(n: Any) -> int:
    if isinstance(n, bool):
        raise TypeError
    found: int = n.__index__()
    return found


# ---------------------------------------------------------------------- from data
def tensor(
    data: Any, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """Return a new tensor with a copy of ``data``.

    Args:
        data: a number, nested sequences of numbers, a NumPy array, or a tensor.
        dtype: by default what the data says: bool, int64, the default float, or complex.
        device: by default the default device, or that of a tensor.
        requires_grad: record operations on it.
        pin_memory: take memory from which a GPU copies by itself.

    Raises:
        ArgumentError: rows of different lengths, or something that is not a number.

    Example:
        >>> import distgrad as dg
        >>> dg.tensor([[1, 2], [3, 4.5]])
        tensor([[1.0000, 2.0000],
                [3.0000, 4.5000]])
    """
    if isinstance(data, Tensor):
        warnings.warn(
            "To copy construct from a tensor, it is recommended to use sourceTensor.detach()."
            "clone() or sourceTensor.detach().clone().requires_grad_(True), rather than "
            "tensor(sourceTensor).",
            stacklevel=2,
        )
        array = data.array
        kind = array.dtype if dtype is None else numpy_dtype(dtype, "tensor")
        place = device_of(array) if device is None else placed(device)
        made = finish(array.astype(kind, copy=True), place, requires_grad, "tensor")
    else:
        array = _from_data(data, None if dtype is None else numpy_dtype(dtype, "tensor"))
        made = finish(array, placed(device), requires_grad, "tensor")
    return page_locked(made, "tensor") if pin_memory else made


def _from_data(data: Any, kind: Any) -> Array:
    """Return a new NumPy array of ``data``, in ``kind`` or what PyTorch takes it for."""
    if isinstance(data, numpy.ndarray | numpy.generic):
        return numpy.array(data, kind or _dtype.from_numpy(data.dtype).numpy)
    leaf = _first_leaf(data)
    if isinstance(leaf, Tensor):
        data = _numbers_in(data, leaf)
        kind = kind or leaf.array.dtype
    try:
        array = numpy.array(data)
    except (ValueError, OverflowError):
        raise _unfit(data) from None
    if not array.size and array.dtype == numpy.float64:
        return array.astype(kind or _dtype.default_float())
    if array.dtype.kind not in "biufc" or array.dtype == numpy.uint64:
        raise _unfit(data)
    if array.dtype == numpy.float64 and bool((numpy.abs(array) >= 2.0**63).any()):
        if isinstance(data, list | tuple) and (error := _ragged(data, 0)):
            raise error  # NumPy turns integers beyond 64 bits into floats
    if kind is None:
        return array.astype(_inferred(array.dtype, leaf), copy=False)
    return _converted(array, kind)


def _first_leaf(data: Any) -> Any:
    while isinstance(data, list | tuple) and data:
        data = data[0]
    return data


def _numbers_in(data: Any, leaf: Tensor) -> Any:
    if isinstance(data, list | tuple):
        return [_numbers_in(d, leaf) for d in data]
    if not isinstance(data, Tensor):
        return data
    if data.array.size != 1:
        raise ArgumentError(
            f"tensor([{data._brief()}, …]): only one element tensors can be converted to Python "
            "scalars; join tensors with stack() or cat()"
        )
    return data.array.item()


def _inferred(kind: Any, leaf: Any) -> Any:
    """Return the dtype for NumPy's choice ``kind``; Python's floats mean the default float."""
    if isinstance(leaf, numpy.ndarray | numpy.generic):
        return kind
    if kind.kind == "f":
        return _dtype.default_float()
    if kind.kind == "c":
        return _dtype.get_default_dtype().to_complex().numpy
    return kind


def _converted(array: Array, kind: Any) -> Array:
    """Return Python numbers in the dtype that was asked for, which must hold them."""
    if array.dtype.kind == "c" and kind.kind != "c":
        raise ArgumentTypeError("tensor(): must be real number, not complex; use a complex dtype")
    if kind.kind in "iu" and array.size:
        limits = numpy.iinfo(kind)
        low = limits.min if limits.min else -limits.max
        if not bool(((array >= low) & (array <= limits.max)).all()):
            raise DtypeError(
                f"tensor(dtype={kind}): value cannot be converted to type {kind} without "
                f"overflow; its range is [{limits.min}, {limits.max}]"
            )
    return array.astype(kind, copy=False)


def _unfit(data: Any) -> Exception:
    """Return the error for data that is no array of numbers."""
    leaf = _first_leaf(data)
    if isinstance(data, str):
        return ArgumentTypeError("tensor(): new(): invalid data type 'str'; pass numbers")
    if isinstance(leaf, str):
        return ArgumentError("tensor(): too many dimensions 'str'; pass numbers")
    if not isinstance(data, list | tuple | range):
        if isinstance(data, int):
            return ArgumentError(
                "tensor(): Overflow when unpacking long; it does not fit in 64 bits"
            )
        return DtypeError(f"tensor(): Could not infer dtype of {type(data).__name__}")
    return _ragged(data, 0) or DtypeError(
        f"tensor(): Could not infer dtype of {type(_odd_leaf(data)).__name__}"
    )


def _ragged(data: Sequence[Any], dim: int) -> Exception | None:
    """Return the error of the first row that differs from its neighbours."""
    first = data[0] if len(data) else None
    nested = isinstance(first, list | tuple)
    for row in data:
        if isinstance(row, list | tuple) is not nested:
            what = "not a sequence" if nested else "'list' object cannot be interpreted as a number"
            return ArgumentTypeError(f"tensor(): {what}: at dim {dim} rows and numbers are mixed")
        if nested and len(row) != len(first):  # type: ignore[arg-type]
            return ArgumentError(
                f"tensor(): expected sequence of length {len(first)} at dim {dim + 1} "  # type: ignore[arg-type]
                f"(got {len(row)}); pad the rows to one length"
            )
        if isinstance(row, int) and not -(2**63) <= row < 2**63:
            return ArgumentError(f"tensor(): Overflow when unpacking long: {row} is beyond 64 bits")
    return next((e for row in data if nested and (e := _ragged(row, dim + 1))), None)


def _odd_leaf(data: Any) -> Any:
    """Return the first leaf that is no number."""
    if not isinstance(data, list | tuple):
        return None if isinstance(data, int | float | complex | numpy.generic) else data
    return next((odd for d in data if (odd := _odd_leaf(d)) is not None), None)


def as_tensor(data: Any, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return ``data`` as a tensor: itself or on the same memory where that is possible.

    Gradient: it flows to ``data`` where that is a tensor.
    """
    kind = None if dtype is None else numpy_dtype(dtype, "as_tensor")
    if isinstance(data, Tensor):
        if device is not None and not is_on(data.array, placed(device)):
            data = data.to(placed(device))
        same: bool = kind is None or data.array.dtype == kind
        return data if same else cast(data, kind)
    if isinstance(data, numpy.ndarray):
        return finish(numpy.asarray(data, kind), placed(device), False, "as_tensor")
    return finish(_from_data(data, kind), placed(device), False, "as_tensor")


def asarray(
    obj: Any,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ``obj`` as a tensor.

    Args:
        copy: True always copies, False never, None where it must.
    """
    out = as_tensor(obj, dtype, device)
    source = obj.array if isinstance(obj, Tensor) else obj
    shares = isinstance(source, numpy.ndarray) and numpy.may_share_memory(source, out.array)
    if copy is False and not (shares or out is obj):
        raise ArgumentError(
            "asarray(copy=False): cannot alias the object: its memory, dtype or device differs"
        )
    if not requires_grad:
        out = out.detach() if isinstance(obj, Tensor) else out
    if copy and (shares or out is obj):
        out = _shapes.clone(out)
    return out.requires_grad_() if requires_grad else out


def from_numpy(ndarray: Any) -> Tensor:
    """Return a tensor on the memory of a NumPy array: changes to one are seen by the other.

    Raises:
        ArgumentTypeError: it is not a NumPy array, or of a dtype that tensors do not have.
    """
    if not isinstance(ndarray, numpy.ndarray):
        raise ArgumentTypeError(
            f"from_numpy(): expected np.ndarray (got {type(ndarray).__name__}); use tensor()"
        )
    if ndarray.dtype.kind not in "biufcV" or ndarray.dtype.names:
        raise ArgumentTypeError(
            f"from_numpy({ndarray.dtype}{list(ndarray.shape)}): can't convert np.ndarray of type "
            f"{ndarray.dtype.type.__name__}; use bool, an integer, a float or a complex type"
        )
    _dtype.from_numpy(ndarray.dtype)
    if not ndarray.flags.writeable:
        warnings.warn(
            "The given NumPy array is not writable, and writing to the tensor would be an error. "
            "You may want to copy the array to protect its data or make it writable before "
            "converting it to a tensor.",
            stacklevel=2,
        )
    return wrap(ndarray.view(numpy.ndarray) if type(ndarray) is not numpy.ndarray else ndarray)


class _Capsule:
    """A DLPack capsule of host memory, as an object that speaks DLPack."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def from_dlpack(ext_tensor: Any) -> Tensor:
    """Return a tensor on the memory of any object that speaks DLPack, or of a capsule."""
    if isinstance(ext_tensor, Tensor):
        return ext_tensor.detach()
    if type(ext_tensor).__name__ == "PyCapsule":
        ext_tensor = _Capsule(ext_tensor)
    kind = ext_tensor.__dlpack_device__()[0]
    if kind in (2, 3, 13):  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged
        return wrap(namespace_of(Device("cuda")).from_dlpack(ext_tensor))
    return wrap(numpy.from_dlpack(ext_tensor))


# ---------------------------------------------------------------------- from sizes
@factory
def zeros(
    *sizes: Any,
    size: Sequence[int] | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return zeros of the given sizes: ``zeros(2, 3)`` or ``zeros((2, 3))``.

    Example:
        >>> import distgrad as dg
        >>> dg.zeros(2, 3)
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    return _made("zeros", sizes if size is None else (size,), dtype, device, requires_grad)


@factory
def ones(
    *sizes: Any,
    size: Sequence[int] | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ones of the given sizes: ``ones(2, 3)`` or ``ones((2, 3))``."""
    return _made("ones", sizes if size is None else (size,), dtype, device, requires_grad)


@factory
def empty(
    *sizes: Any,
    size: Sequence[int] | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return memory of the given sizes with whatever stands in it."""
    return _made("empty", sizes if size is None else (size,), dtype, device, requires_grad)


def _made(name: str, size: Any, dtype: Any, device: DeviceLike, requires_grad: bool) -> Tensor:
    if not size:
        raise ArgumentTypeError(f"{name}(): missing 1 required positional argument: 'size'")
    place = placed(device)
    make = getattr(namespace_of(place), name)
    return finish(make(sizes_of(name, size), numpy_dtype(dtype, name)), place, requires_grad, name)


@factory
def full(
    size: Sequence[int],
    fill_value: Any,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor of the given size filled with one value, whose kind decides the dtype."""
    if not isinstance(size, Sequence) or isinstance(size, str):
        raise ArgumentTypeError(
            f"full(size={size!r}): argument 'size' must be tuple of ints, not {type(size).__name__}"
        )
    value = _filling("full", fill_value)
    kind = _kind_of(fill_value) if dtype is None else numpy_dtype(dtype, "full")
    place = placed(device)
    array = namespace_of(place).full(sizes_of("full", (size,)), checked_number(value, kind), kind)
    return finish(array, place, requires_grad, "full")


def _kind_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.array.dtype
    found: DType = _dtype.joint_type([value])
    return found.numpy


def _filling(name: str, value: Any) -> Any:
    """Return the number to fill with, which may come as a 0-d tensor."""
    if not isinstance(value, Tensor):
        return value
    if value.array.ndim:
        raise ArgumentTypeError(
            f"{name}(fill_value: {value._brief()}): argument 'fill_value' must be Number, "
            "not Tensor"
        )
    return value.item()


@factory
def empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return memory of the given size, with ``stride`` elements between neighbours of each dim."""
    shape, steps = sizes_of("empty_strided", (size,)), tuple(stride)
    if len(shape) != len(steps) or min(steps, default=0) < 0:
        raise ShapeError(
            f"empty_strided(size={shape}, stride={steps}): dimensionality of sizes "
            f"({len(shape)}) must match dimensionality of strides ({len(steps)}), none negative"
        )
    extent = 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    place, kind = placed(device), numpy_dtype(dtype, "empty_strided")
    xp = namespace_of(place)
    memory = xp.empty(extent if math.prod(shape) else 0, kind)
    spaced = tuple(step * kind.itemsize for step in steps)
    array = xp.lib.stride_tricks.as_strided(memory, shape, spaced)
    return finish(array, place, requires_grad, "empty_strided")


@factory
def empty_permuted(
    size: Sequence[int],
    physical_layout: Sequence[int],
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return memory of the given size without gaps, its dimensions in memory in the order given."""
    shape, order = sizes_of("empty_permuted", (size,)), tuple(physical_layout)
    if sorted(order) != list(range(len(shape))):
        raise ShapeError(
            f"empty_permuted(size={shape}, physical_layout={order}): Number of dimensions in size "
            "does not match the physical_layout, or it has a duplicate dim; name each dim once"
        )
    place, kind = placed(device), numpy_dtype(dtype, "empty_permuted")
    memory = namespace_of(place).empty([shape[d] for d in order], kind)
    array = memory.transpose(sorted(range(len(order)), key=order.__getitem__))
    return finish(array, place, requires_grad, "empty_permuted")


def zeros_like(
    input: Tensor, *, dtype: Any = None, layout: Any = None, device: DeviceLike = None,
    pin_memory: bool = False, requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return zeros of the shape, dtype and device of ``input``."""
    made = _like("zeros_like", input, dtype, layout, device, requires_grad, memory_format)
    return page_locked(made, "zeros_like") if pin_memory else made


def ones_like(
    input: Tensor, *, dtype: Any = None, layout: Any = None, device: DeviceLike = None,
    pin_memory: bool = False, requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return ones of the shape, dtype and device of ``input``."""
    made = _like("ones_like", input, dtype, layout, device, requires_grad, memory_format)
    return page_locked(made, "ones_like") if pin_memory else made


def empty_like(
    input: Tensor, *, dtype: Any = None, layout: Any = None, device: DeviceLike = None,
    pin_memory: bool = False, requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return uninitialised memory of the shape, dtype and device of ``input``."""
    made = _like("empty_like", input, dtype, layout, device, requires_grad, memory_format)
    return page_locked(made, "empty_like") if pin_memory else made


def _like(
    name: str, input: Tensor, dtype: Any, layout: Any, device: DeviceLike, requires_grad: bool,
    memory_format: Any,
) -> Tensor:  # fmt: skip
    strided_only(name, layout)
    array = checked(name, input).array
    place = device_of(array) if device is None else placed(device)
    kind = array.dtype if dtype is None else numpy_dtype(dtype, name)
    order = order_of(memory_format, array.ndim)
    if order is not None:
        make = getattr(namespace_of(place), name.removesuffix("_like"))
        inner = make([array.shape[d] for d in order], kind)
        made = inner.transpose(sorted(range(len(order)), key=order.__getitem__))
    elif type(array) is numpy.ndarray and place.type == "cpu":
        made = getattr(numpy, name)(array, kind)
    elif not hasattr(array, "below") and is_on(array, place):
        with working_on(array):
            made = getattr(namespace_of(place), name)(array, kind)
    else:
        made = getattr(namespace_of(place), name.removesuffix("_like"))(array.shape, kind)
    return finish(made, place, requires_grad, name)


def checked(name: str, input: Any) -> Tensor:
    """Return ``input`` if it is a tensor."""
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(
            f"{name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    return input


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: DeviceLike = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """Return ``fill_value`` in the shape, dtype and device of ``input``."""
    out = _like("empty_like", input, dtype, layout, device, requires_grad, memory_format)
    value = _filling("full_like", fill_value)
    with working_on(out.array):
        out.array[...] = checked_number(value, out.array.dtype)
    return page_locked(out, "full_like") if pin_memory else out


@factory
def scalar_tensor(
    s: Any, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False
) -> Tensor:
    """Return a number as a zero-dimensional tensor of the default float or ``dtype``."""
    return full((), s, dtype=numpy_dtype(dtype, "scalar_tensor"), device=device,
                requires_grad=requires_grad)  # fmt: skip


# ---------------------------------------------------------------------- like this tensor
def new_tensor(
    self: Tensor,
    data: Any,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a copy of ``data`` in this tensor's dtype and on its device."""
    return tensor(
        data,
        dtype=self.dtype if dtype is None else dtype,
        device=self.device if device is None else device,
        requires_grad=requires_grad,
    )


def _own(self: Tensor, dtype: Any, device: DeviceLike) -> tuple[Any, Any]:
    """Return dtype and device, by default those of this tensor."""
    return self.dtype if dtype is None else dtype, self.device if device is None else device


def _new(name: str) -> Callable[..., Tensor]:
    def new(
        self: Tensor,
        *sizes: Any,
        size: Sequence[int] | None = None,
        dtype: Any = None,
        layout: Any = None,
        device: DeviceLike = None,
        pin_memory: bool = False,
        requires_grad: bool = False,
    ) -> Tensor:
        strided_only(f"new_{name}", layout)
        kind, place = _own(self, dtype, device)
        made = _made(name, sizes if size is None else (size,), kind, place, requires_grad)
        return page_locked(made, f"new_{name}") if pin_memory else made

    new.__name__ = f"new_{name}"
    new.__doc__ = f"Return {name} of the given sizes in this tensor's dtype and on its device."
    return new


def new_full(
    self: Tensor, size: Sequence[int], fill_value: Any, *, dtype: Any = None, layout: Any = None,
    device: DeviceLike = None, pin_memory: bool = False, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return a tensor filled with one value, in this tensor's dtype and on its device."""
    kind, place = _own(self, dtype, device)
    return full(size, fill_value, dtype=kind, layout=layout, device=place, pin_memory=pin_memory,
                requires_grad=requires_grad)  # fmt: skip


def new_empty_strided(
    self: Tensor, size: Sequence[int], stride: Sequence[int], *, dtype: Any = None,
    layout: Any = None, device: DeviceLike = None, pin_memory: bool = False,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``empty_strided`` in this tensor's dtype and on its device."""
    kind, place = _own(self, dtype, device)
    return empty_strided(size, stride, dtype=kind, layout=layout, device=place,
                         pin_memory=pin_memory, requires_grad=requires_grad)  # fmt: skip


for _function in (
    new_tensor, new_full, new_empty_strided, _new("zeros"), _new("ones"), _new("empty"),
):  # fmt: skip
    as_method(_function)
del _function
