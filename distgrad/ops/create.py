"""Tensors from data, sizes and ranges."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, cast
from distgrad.autograd.inplace import assign, refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.traced import Refused, is_traced
from distgrad.backend import dtype as _dtype
from distgrad.backend.device import device as Device
from distgrad.backend.device import (
    device_of,
    get_default_device,
    is_on,
    namespace_of,
    to_device,
)
from distgrad.backend.dtype import dtype as DType
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DtypeError,
    GradError,
    ShapeError,
)
from distgrad.ops import shape as _shapes
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Number

__all__ = [
    "arange", "as_tensor", "asarray", "empty", "empty_like", "eye", "from_dlpack",
    "from_numpy", "full", "full_like", "linspace", "logspace", "ones", "ones_like",
    "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros", "zeros_like",
]  # fmt: skip

_range = range
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
        found = tuple([n if type(n) is int else n.__index__() for n in size])
    except (AttributeError, TypeError):
        wrong = next(n for n in size if not hasattr(n, "__index__"))
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


# ---------------------------------------------------------------------- from data
def tensor(
    data: Any, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False
) -> Tensor:
    """Return a new tensor with a copy of ``data``.

    Args:
        data: a number, nested sequences of numbers, a NumPy array, or a tensor.
        dtype: by default what the data says: bool, int64, the default float, or complex.
        device: by default the default device, or that of a tensor.
        requires_grad: record operations on it.

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
        return finish(array.astype(kind, copy=True), place, requires_grad, "tensor")
    array = _from_data(data, None if dtype is None else numpy_dtype(dtype, "tensor"))
    return finish(array, placed(device), requires_grad, "tensor")


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
    if not isinstance(data, list | tuple | _range):
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


def from_dlpack(ext_tensor: Any) -> Tensor:
    """Return a tensor on the memory of any object that speaks DLPack."""
    if isinstance(ext_tensor, Tensor):
        return ext_tensor.detach()
    kind = ext_tensor.__dlpack_device__()[0]
    if kind in (2, 3, 13):  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged
        return wrap(namespace_of(Device("cuda")).from_dlpack(ext_tensor))
    return wrap(numpy.from_dlpack(ext_tensor))


# ---------------------------------------------------------------------- from sizes
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


def ones(
    *sizes: Any,
    size: Sequence[int] | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ones of the given sizes: ``ones(2, 3)`` or ``ones((2, 3))``."""
    return _made("ones", sizes if size is None else (size,), dtype, device, requires_grad)


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


def full(
    size: Sequence[int],
    fill_value: Any,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor of the given size filled with one value, whose kind decides the dtype."""
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    kind = _kind_of(fill_value) if dtype is None else numpy_dtype(dtype, "full")
    place = placed(device)
    array = namespace_of(place).full(sizes_of("full", (size,)), _fitting(value, kind), kind)
    return finish(array, place, requires_grad, "full")


def _kind_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.array.dtype
    found: DType = _dtype.result_type([value])
    return found.numpy


def _fitting(value: Any, kind: Any) -> Any:
    """Return a number that NumPy takes for ``kind``: floats are cut for integers."""
    if kind.kind in "iu" and isinstance(value, float):
        return int(value)
    return value.real if kind.kind == "f" and isinstance(value, complex) else value


def zeros_like(
    input: Tensor, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return zeros of the shape, dtype and device of ``input``."""
    return _like("zeros_like", input, dtype, device, requires_grad)


def ones_like(
    input: Tensor, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return ones of the shape, dtype and device of ``input``."""
    return _like("ones_like", input, dtype, device, requires_grad)


def empty_like(
    input: Tensor, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return uninitialised memory of the shape, dtype and device of ``input``."""
    return _like("empty_like", input, dtype, device, requires_grad)


def _like(name: str, input: Tensor, dtype: Any, device: DeviceLike, requires_grad: bool) -> Tensor:
    array = checked(name, input).array
    place = device_of(array) if device is None else placed(device)
    kind = array.dtype if dtype is None else numpy_dtype(dtype, name)
    if type(array) is numpy.ndarray and place.type == "cpu":
        made = getattr(numpy, name)(array, kind)
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
    device: DeviceLike = None,
    requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """Return ``fill_value`` in the shape, dtype and device of ``input``."""
    out = _like("empty_like", input, dtype, device, requires_grad)
    value = fill_value.item() if isinstance(fill_value, Tensor) else fill_value
    out.array[...] = _fitting(value, out.array.dtype)
    return out


def scalar_tensor(
    s: Any, *, dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False
) -> Tensor:
    """Return a number as a zero-dimensional tensor of the default float or ``dtype``."""
    return full((), s, dtype=numpy_dtype(dtype, "scalar_tensor"), device=device,
                requires_grad=requires_grad)  # fmt: skip


# ---------------------------------------------------------------------- ranges
def arange(
    start: Any = None,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the numbers from ``start`` (0) up to but without ``end`` in steps of ``step``.

    int64 when all three are integers, else the default float.

    Raises:
        ShapeError: the step is zero, or leads away from ``end``.

    Example:
        >>> import distgrad as dg
        >>> dg.arange(3), dg.arange(1, 2, 0.5)
        (tensor([0, 1, 2]), tensor([1.0000, 1.5000]))
    """
    if end is None:
        start, end = 0, start
    elif start is None:
        start = 0
    if end is None:
        raise ArgumentTypeError("arange(): missing 1 required positional argument: 'end'")
    first, last, by = (_number(n, "arange") for n in (start, end, step))
    whole = all(isinstance(n, int) for n in (first, last, by))
    if dtype is None:
        kind = numpy.dtype(numpy.int64) if whole else _dtype.default_float()
    else:
        kind = numpy_dtype(dtype, "arange")
    if kind.kind in "iu" and not whole:
        first, last, by = int(first), int(last), int(by)
        whole = True
    count = _steps(first, last, by)
    place = placed(device)
    xp = namespace_of(place)
    if whole:
        array = xp.arange(first, last, by, dtype=xp.int64).astype(kind, copy=False)
    else:
        array = (xp.arange(count, dtype=xp.float64) * by + first).astype(kind)
    return finish(array, place, requires_grad, "arange")


def _number(value: Any, name: str) -> Any:
    value = value.item() if isinstance(value, Tensor | numpy.generic) else value
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name}(): must be real number, not {type(value).__name__}")
    return value


def _steps(first: Any, last: Any, by: Any) -> int:
    if not by:
        raise ShapeError("arange(step=0): step must be nonzero")
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ShapeError(f"arange({first}, {last}): unsupported range: {first} -> {last}")
    if (last - first) * by < 0:
        raise ShapeError(
            f"arange({first}, {last}, {by}): upper bound and larger bound inconsistent with step "
            "sign; swap the bounds or change the sign of the step"
        )
    if isinstance(first, int) and isinstance(last, int) and isinstance(by, int):
        return -((first - last) // by)
    count: int = math.ceil((last - first) / by)
    return count


def range(  # the builtin is kept as _range
    start: Any = 0,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the numbers from ``start`` to ``end``, which is included.  Use ``arange``.

    Warns: it is deprecated, as in PyTorch, because Python's range leaves out the end.
    """
    warnings.warn("range is deprecated: its end is included; use arange", stacklevel=2)
    first, last, by = (_number(n, "range") for n in ((0, start, step) if end is None else
                                                     (start, end, step)))  # fmt: skip
    if not by or (last - first) * by < 0:
        raise ShapeError(f"range({first}, {last}, {by}): the step does not lead to the end")
    count = math.floor((last - first) / by) + 1
    kind = numpy_dtype(dtype, "range")
    place = placed(device)
    xp = namespace_of(place)
    array = (xp.arange(count, dtype=xp.float64) * by + first).astype(kind)
    return finish(array, place, requires_grad, "range")


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ``steps`` numbers at equal distances from ``start`` to ``end``, both included."""
    return _spaced("linspace", start, end, steps, None, dtype, device, requires_grad)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return ``base`` to the power of ``steps`` equally distant numbers from start to end."""
    return _spaced("logspace", start, end, steps, base, dtype, device, requires_grad)


def _spaced(
    name: str, start: Any, end: Any, steps: int, base: float | None, dtype: Any,
    device: DeviceLike, requires_grad: bool,
) -> Tensor:  # fmt: skip
    first, last = _endpoint(start), _endpoint(end)
    if steps < 0:
        raise ShapeError(f"{name}(steps={steps}): number of steps must be non-negative")
    kind = numpy_dtype(dtype, name)
    if dtype is None and isinstance(first + last, complex):
        kind = _dtype.get_default_dtype().to_complex().numpy
    place = placed(device)
    xp = namespace_of(place)
    step = (last - first) / (steps - 1) if steps > 1 else 0
    place_of = xp.arange(steps, dtype=xp.float64)
    # counted from the nearer end, so that the last number is ``end`` itself
    array = xp.where(
        place_of < steps / 2, first + step * place_of, last - step * (steps - 1 - place_of)
    )
    if steps == 1:
        array = xp.full(1, first)
    if base is not None:
        array = xp.power(base, array)
    return finish(array.astype(kind), place, requires_grad, name)


def _endpoint(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | numpy.generic) else value


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the matrix of ``n`` rows and ``m`` (``n``) columns with ones on its diagonal."""
    for letter, value in (("n", n), ("m", m)):
        if value is not None and value < 0:
            raise ShapeError(
                f"eye(n={n}, m={m}): {letter} must be greater or equal to 0, got {value}"
            )
    place = placed(device)
    array = namespace_of(place).eye(n, m, dtype=numpy_dtype(dtype, "eye"))
    return finish(array, place, requires_grad, "eye")


def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: DeviceLike = None
) -> Tensor:
    """Return the row and column numbers on and below diagonal ``offset``, as a 2 × N tensor."""
    return _triangle("tril_indices", numpy.tril_indices, row, col, offset, dtype, device)


def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: DeviceLike = None
) -> Tensor:
    """Return the row and column numbers on and above diagonal ``offset``, as a 2 × N tensor."""
    return _triangle("triu_indices", numpy.triu_indices, row, col, offset, dtype, device)


def _triangle(
    name: str, function: Callable[..., Any], row: int, col: int, offset: int, dtype: Any,
    device: DeviceLike,
) -> Tensor:  # fmt: skip
    if row < 0 or col < 0:
        raise ShapeError(f"{name}({row}, {col}): sizes must be non-negative")
    kind = numpy.dtype(numpy.int64) if dtype is None else numpy_dtype(dtype, name)
    array = numpy.stack(function(row, offset, col)).astype(kind, copy=False)
    return finish(array, placed(device), False, name)


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


def _new(name: str) -> Callable[..., Tensor]:
    def new(
        self: Tensor,
        *size: Any,
        dtype: Any = None,
        device: DeviceLike = None,
        requires_grad: bool = False,
    ) -> Tensor:
        return _made(
            name,
            size,
            self.dtype if dtype is None else dtype,
            self.device if device is None else device,
            requires_grad,
        )

    new.__name__ = f"new_{name}"
    new.__doc__ = f"Return {name} of the given sizes in this tensor's dtype and on its device."
    return new


def new_full(
    self: Tensor,
    size: Sequence[int],
    fill_value: Any,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor filled with one value, in this tensor's dtype and on its device."""
    return full(
        size,
        fill_value,
        dtype=self.dtype if dtype is None else dtype,
        device=self.device if device is None else device,
        requires_grad=requires_grad,
    )


for _function in (new_tensor, new_full, _new("zeros"), _new("ones"), _new("empty")):
    as_method(_function)


# ---------------------------------------------------------------------- over what stands there
def zero_(self: Tensor) -> Tensor:
    """Fill this tensor with zeros and return it."""
    refuse_leaf(self, "zero_")
    if mode.grad and self.requires_grad:
        return assign(self, _shapes.zero(self), "zero_")
    try:
        self.array.fill(0)
    except Refused:
        return assign(self, _shapes.zero(self), "zero_")
    shared_of(self).bump()
    return self


def fill_(self: Tensor, value: Tensor | Number) -> Tensor:
    """Fill this tensor with one value (a number or a 0-d tensor) and return it."""
    refuse_leaf(self, "fill_")
    tracked = isinstance(value, Tensor) and value.requires_grad
    traced = is_traced((self,))
    if isinstance(value, Tensor) or traced or (mode.grad and (self.requires_grad or tracked)):
        return assign(self, _shapes.fill(self, value), "fill_")
    self.array.fill(_fitting(value, self.array.dtype))
    shared_of(self).bump()
    return self


def copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy ``src`` into this tensor, with broadcasting and conversion, and return it."""
    refuse_leaf(self, "copy_")
    if not isinstance(src, Tensor):
        raise ArgumentTypeError(
            f"copy_(): argument 'other' (position 1) must be Tensor, not {type(src).__name__}"
        )
    if mode.grad and (self.requires_grad or src.requires_grad):
        return assign(self, _shapes.copy(self, src), "copy_")
    try:
        same = type(src.array) is type(self.array)
        self.array[...] = src.array if same else src.to(self.device).array
    except Refused:
        return assign(self, _shapes.copy(self, src), "copy_")
    except ValueError as error:
        raise ShapeError(
            f"copy_({self._brief()}, src: {src._brief()}): The size of src does not broadcast to "
            f"{list(self.array.shape)}; reshape or expand it first"
        ) from error
    shared_of(self).bump()
    return self


for _function in (zero_, fill_, copy_):
    as_method(_function)
del _function
