"""Shapes: views of the same elements.  What can share memory with its operand does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method, as_property, op, recover
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.samples import case, real, unary
from distgrad.backend.layout import contiguous_format, laid_out, order_of
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DtypeError,
    IndexOutOfRange,
    ShapeError,
)
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape, TensorLike

__all__ = [
    "adjoint",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "broadcast_shapes",
    "broadcast_tensors",
    "broadcast_to",
    "clone",
    "diagonal",
    "fill",
    "flatten",
    "moveaxis",
    "movedim",
    "narrow",
    "permute",
    "ravel",
    "reshape",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "transpose",
    "unflatten",
    "unsqueeze",
]


# ---------------------------------------------------------------------- dimensions
def wrap_dim(dim: int, ndim: int) -> int:
    """Return ``dim`` counted from the front; a 0-d tensor counts as having one dimension."""
    count = ndim or 1
    if not -count <= dim < count:
        raise IndexOutOfRange(
            f"Dimension out of range (expected to be in range of [{-count}, {count - 1}], "
            f"but got {dim})"
        )
    return dim % count


def wrap_dims(dims: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return several different dimensions counted from the front."""
    found = tuple(wrap_dim(d, ndim) for d in dims)
    if len(set(found)) < len(found):
        raise ShapeError(f"duplicate dims are not allowed: {tuple(dims)} name one dimension twice")
    return found


def fill_in(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Return ``shape`` for ``count`` elements, its -1 replaced by the length that fits."""
    sizes = tuple(int(n) for n in shape)
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) > 1:
        raise ShapeError("only one dimension can be inferred; leave one -1 at most")
    if -1 in sizes and not known:
        raise ShapeError(
            f"cannot reshape tensor of {count} elements into shape {list(sizes)} because the "
            "unspecified dimension size -1 can be any value and is ambiguous"
        )
    if any(n < -1 for n in sizes):
        raise ShapeError(f"invalid shape dimension {min(sizes)} at {list(sizes)}; use sizes >= 0")
    filled = tuple(count // known if n == -1 else n for n in sizes)
    if math.prod(filled) != count:
        raise ShapeError(
            f"shape '{list(sizes)}' is invalid for input of size {count}: "
            f"{count} elements do not fit {known}"
        )
    return filled


# ---------------------------------------------------------------------- copies
@op("linear", samples=unary(), view=True, method=False, reference="clone",
    d_input=lambda g: g)  # fmt: skip
def alias(xp: Namespace, input: Tensor) -> Array:
    """Return the same elements: a view with a history of its own."""
    return input[...]


@op("linear", widens=False, samples=unary(), reference="clone", d_input=lambda g: g)
def clone(xp: Namespace, input: Tensor, *, memory_format: Any = None) -> Array:
    """Return a copy that gradients flow through, in the memory order of ``input`` or another."""
    order = None if memory_format is None else order_of(memory_format, input.ndim)
    return xp.array(input, copy=True) if order is None else laid_out(input, order)


@op(
    "linear",
    widens=False,
    samples=[],
    method=False,
    node="ToCopyBackward0",
    d_input=lambda F, g, input_dtype: _cast_back(F, g, input_dtype),
)
def to_dtype(xp: Namespace, input: Tensor, dtype: Any) -> Array:
    """Return a copy in another dtype (a ``numpy.dtype``)."""
    return xp.cast(input, dtype)


def _cast_back(F: Any, g: Any, dtype: Any) -> Any:
    """A real number takes the real part of a complex gradient."""
    if dtype.kind != "c" and dtype_of(g).kind == "c":
        g = F.real(g)
    return F.to_dtype(g, dtype)


def dtype_of(x: Any) -> Any:
    """Return the NumPy dtype of a tensor or an array."""
    return x.array.dtype if isinstance(x, Tensor) else x.dtype


@op("linear", widens=False, samples=unary(), method=False, reference="zeros_like",
    d_input=lambda F, g: F.zero(g))  # fmt: skip
def zero(xp: Namespace, input: Tensor) -> Array:
    """Return zeros in place of the elements."""
    return xp.zeros(input.shape, input.dtype)


@op(
    "linear",
    widens=False,
    samples=[case(real(2, 3), real())],
    method=False,
    d_input=lambda F, g: F.zero(g),
    d_value=lambda F, g: F.sum(g),
)
def fill(xp: Namespace, input: Tensor, value: TensorLike) -> Array:
    """Return ``value`` in place of all elements."""
    if xp.ndim(value):
        raise ShapeError(
            "fill_ only supports 0-dimension value tensor but got tensor with "
            f"{xp.ndim(value)} dimensions; use copy_()"
        )
    kinds: list[Any] = [input.dtype, getattr(value, "dtype", input.dtype)]
    if kinds[0].kind != "c" and kinds[1].kind == "c":
        raise DtypeError(f"value cannot be converted to type {input.dtype} without overflow")
    return xp.full(input.shape, xp.asarray(value), input.dtype)


@op(
    "linear",
    widens=False,
    samples=[case(real(2, 3), real(3)), case(real(2), real(2))],
    method=False,
    node="CopyBackwards",
    reference=lambda torch, x, src: x.clone().copy_(src),
    d_input=lambda F, g: F.zero(g),
    d_src=lambda F, g, src_dtype: F.to_dtype(g, src_dtype),
)
def copy(xp: Namespace, input: Tensor, src: TensorLike, non_blocking: bool = False) -> Array:
    """Return ``src`` in the shape and dtype of ``input``."""
    return xp.array(xp.broadcast_to(src, input.shape), input.dtype, copy=True)


# ---------------------------------------------------------------------- new shapes
@op(
    "linear",
    samples=[case(real(3, 4), shape=(2, 6)), case(real(3, 4), shape=(-1,)),
             case(real(1), shape=()), case(real(0, 3), shape=(3, 0))],
    view=True,
    method="*shape",
    node="ViewBackward0",
    d_input=lambda F, g, input_shape: F.reshape(g, input_shape),
)  # fmt: skip
def reshape(xp: Namespace, input: Tensor, shape: Shape) -> Array:
    """Return the same elements in a new shape; one entry may be -1.

    A view where the memory's order allows it, else a copy.
    """
    memory: Array = input
    if shape and min(shape) < -1:
        fill_in(shape, memory.size)  # NumPy takes every negative number for -1
    try:
        return memory.reshape(shape)
    except ValueError:
        return memory.reshape(fill_in(shape, memory.size))


@op(
    "linear",
    samples=[case(real(3, 4), shape=(2, 6)), case(real(2, 0), shape=(0, 5))],
    view=True,
    method=False,
    reference=lambda torch, x, shape: x.view(shape),
    d_input=lambda F, g, input_shape: F.reshape(g, input_shape),
)
def view(xp: Namespace, input: Tensor, shape: Shape) -> Array:
    """Return a view of the same elements in a new shape; never a copy."""
    memory: Array = input
    if shape and min(shape) < -1:
        fill_in(shape, memory.size)  # NumPy takes every negative number for -1
    try:
        out = memory.reshape(shape)
    except ValueError:
        out = memory.reshape(fill_in(shape, memory.size))
    if not memory.flags.c_contiguous and out.size and not xp.may_share_memory(out, memory):
        raise ShapeError(
            "view size is not compatible with input tensor's size and stride (at least one "
            "dimension spans across two contiguous subspaces). Use .reshape(...) instead"
        )
    return out


@op(
    "linear",
    samples=[case(real(3, 1), size=(2, 3, 4)), case(real(3), size=(-1,)), case(real(), size=(2,)),
             case(real(1, 3), size=(0, 3))],
    view=True,
    method="*size",
    reference="broadcast_to",
    d_input=lambda F, g, input_shape: F.sum_to_size(g, input_shape),
)  # fmt: skip
def expand(xp: Namespace, input: Tensor, size: Shape) -> Array:
    """Return a view that repeats dimensions of length 1; -1 keeps a length."""
    size = tuple(size)
    have, lead = input.shape, len(size) - input.ndim
    if lead < 0:
        raise ShapeError(
            f"the number of sizes provided ({len(size)}) must be greater or equal to the number "
            f"of dimensions in the tensor ({input.ndim})"
        )
    if -1 in size:
        if -1 in size[:lead]:
            raise ShapeError(
                f"The expanded size of the tensor (-1) isn't allowed in a leading, non-existing "
                f"dimension {list(size).index(-1)}"
            )
        size = (
            *size[:lead],
            *(h if n == -1 else n for n, h in zip(size[lead:], have, strict=True)),
        )
    for place, (n, h) in enumerate(zip(size[lead:] if lead else size, have, strict=True), lead):
        if n != h and h != 1:
            raise ShapeError(
                f"The expanded size of the tensor ({n}) must match the existing size ({h}) at "
                f"non-singleton dimension {place}. Target sizes: {list(size)}. "
                f"Tensor sizes: {list(have)}"
            )
    if math.prod(size) == xp.size(input):  # NumPy's expanded arrays are read-only, others not
        return xp.reshape(input, size)
    return xp.broadcast_to(input, size)


@op(
    "linear",
    samples=[case(real(2, 3, 4), size=(3, 1)), case(real(3), size=()), case(real(2), size=(2,))],
    method="*size",
    reference=lambda torch, x, size: x.sum_to_size(size) if size else x.sum(),
    d_input=lambda F, g, input_shape: F.expand(g, input_shape),
)
def sum_to_size(xp: Namespace, input: Tensor, size: Shape) -> Array:
    """Return the sum over the dimensions that broadcasting from ``size`` would have repeated."""
    size, lead = tuple(size), input.ndim - len(size)
    if lead < 0 or any(n not in (1, h) for n, h in zip(size, input.shape[lead:], strict=True)):
        raise ShapeError(f"size {list(size)} is not expandable to size {list(input.shape)}")
    if input.dtype.kind in "biu" and (not size or size != input.shape):  # type: ignore[attr-defined]
        return xp.sum_to_shape(xp.astype(input, xp.int64), size)
    out = xp.sum_to_shape(input, size)
    return xp.array(out, copy=True) if out is input else out


@op(
    "linear",
    samples=[case(real(2, 1, 3, 1)), case(real(2, 1, 3), dim=1), case(real(2, 3), dim=0),
             case(real(1, 2, 1), dim=(0, -1)), case(real()), case(real(), dim=0)],
    view=True,
    d_input=lambda F, g, input_shape: F.reshape(g, input_shape),
)  # fmt: skip
def squeeze(xp: Namespace, input: Tensor, dim: int | Sequence[int] | None = None) -> Array:
    """Return a view without dimensions of length 1 (all of them, or those in ``dim``)."""
    if dim is None:
        return xp.squeeze(input)
    dims = wrap_dims((dim,) if isinstance(dim, int) else dim, input.ndim)
    kept = (n for i, n in enumerate(input.shape) if i not in dims or n != 1)
    return xp.reshape(input, tuple(kept))


@op(
    "linear",
    samples=[case(real(3, 4), dim=0), case(real(3, 4), dim=-1), case(real(), dim=0)],
    view=True,
    d_input=lambda F, g, input_shape: F.reshape(g, input_shape),
)
def unsqueeze(xp: Namespace, input: Tensor, dim: int) -> Array:
    """Return a view with a new dimension of length 1 at ``dim``."""
    place = wrap_dim(dim, input.ndim + 1)
    return input[(slice(None),) * place + (None, ...)]


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Return ``input`` with dimensions ``start_dim`` to ``end_dim`` joined into one."""
    shape = input.array.shape
    try:
        start, end = wrap_dim(start_dim, len(shape)), wrap_dim(end_dim, len(shape))
        if start > end:
            raise ShapeError("flatten() has invalid args: start_dim cannot come after end_dim")
    except Exception as error:
        recover("flatten", error, {"input": input}, {"start_dim": start_dim, "end_dim": end_dim})
    if shape and start == end:
        return input
    joined = math.prod(shape[start : end + 1])
    return reshape(input, (*shape[:start], joined, *shape[end + 1 :]))


def ravel(input: Tensor) -> Tensor:
    """Return the elements in one row: a view of contiguous memory, else a copy."""
    return reshape(contiguous(input), (-1,))


@takes_names
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Return ``input`` with dimension ``dim`` split into ``sizes``, of which one may be -1.

    Example:
        >>> import distgrad as dg
        >>> dg.unflatten(dg.ones(3, 8), 1, (2, -1)).shape
        distgrad.Size([3, 2, 4])
    """
    shape = input.array.shape
    try:
        place = wrap_dim(dim, len(shape))
        inner = fill_in(sizes, shape[place])
    except Exception as error:
        recover("unflatten", error, {"input": input}, {"dim": dim, "sizes": sizes})
    return reshape(input, (*shape[:place], *inner, *shape[place + 1 :]))


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """Return a view of ``input`` in the shape of ``other``."""
    return view(input, other.array.shape)


def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    """Return ``input`` in the shape of ``other``."""
    return reshape(input, other.array.shape)


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """Return a view of ``input`` expanded to the shape of ``other``."""
    return expand(input, other.array.shape)


def broadcast_to(input: Tensor, size: Shape) -> Tensor:
    """Return a view of ``input`` expanded to ``size``."""
    return expand(input, size)


def broadcast_shapes(*shapes: int | Sequence[int]) -> Shape:
    """Return the shape to which all ``shapes`` broadcast."""
    out: list[int] = []
    for shape in shapes:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if min(sizes, default=0) < 0:
            raise ArgumentError("Attempting to broadcast a dimension with negative length!")
        out = [1] * (len(sizes) - len(out)) + out
        for place in range(-len(sizes), 0):
            if out[place] == 1:
                out[place] = sizes[place]
            elif sizes[place] not in (1, out[place]):
                raise ShapeError(
                    "broadcast_shapes(): Shape mismatch: objects cannot be broadcast to a single "
                    f"shape: {', '.join(str(s) for s in shapes)}"
                )
    return tuple(out)


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return views of the tensors expanded to one shape."""
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tuple(tensors[0])
    shape = broadcast_shapes(*(t.array.shape for t in tensors))
    return tuple(expand(t, shape) for t in tensors)


def _at_least(tensors: tuple[Any, ...], raised: Any) -> Any:
    if len(tensors) == 1 and not isinstance(tensors[0], list | tuple):
        return raised(_tensor(tensors[0]))
    many = tensors[0] if len(tensors) == 1 else tensors
    return tuple(raised(_tensor(t)) for t in many)


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"expected Tensor, but got {type(value).__name__}")
    return value


def atleast_1d(*tensors: Any) -> Any:
    """Return each tensor with one dimension at least."""
    return _at_least(tensors, lambda t: t if t.array.ndim else reshape(t, (1,)))


def atleast_2d(*tensors: Any) -> Any:
    """Return each tensor with two dimensions at least; a vector becomes a row."""
    return _at_least(tensors, lambda t: t if t.array.ndim > 1 else reshape(t, (1, -1)))


def atleast_3d(*tensors: Any) -> Any:
    """Return each tensor with three dimensions at least; new ones of a matrix come last."""

    def raised(t: Tensor) -> Tensor:
        shape = t.array.shape
        if len(shape) > 2:
            return t
        return reshape(t, (*shape, 1) if len(shape) == 2 else (1, shape[0] if shape else 1, 1))

    return _at_least(tensors, raised)


# ---------------------------------------------------------------------- other orders of dimensions
@op(
    "linear",
    samples=[case(real(2, 3)), case(real(4, 2, 3))],
    view=True,
    method=False,
    node="TransposeBackward0",
    reference=lambda torch, x: x.mT,
    d_input=lambda F, g: F.mT(g),
)
def mT(xp: Namespace, input: Tensor) -> Array:
    """Return the last two dimensions swapped; a number as it is."""
    if not input.ndim:
        return input[...]
    if input.ndim < 2:
        raise ShapeError(
            "tensor.mT is only supported on matrices or batches of matrices. "
            f"Got {input.ndim}-D tensor"
        )
    return xp.swapaxes(input, -1, -2)


@op(
    "linear",
    samples=[case(real(2, 3), dim0=0, dim1=1), case(real(2, 3, 4), dim0=-1, dim1=0),
             case(real(), dim0=0, dim1=-1)],
    view=True,
    inplace=False,
    d_input=lambda F, g, dim0, dim1: F.transpose(g, dim0, dim1),
)  # fmt: skip
def transpose(xp: Namespace, input: Tensor, dim0: int, dim1: int) -> Array:
    """Return a view with dimensions ``dim0`` and ``dim1`` swapped."""
    if not input.ndim:
        wrap_dims((dim0,), 0), wrap_dims((dim1,), 0)
        return input[...]
    return xp.swapaxes(input, dim0, dim1)


@op(
    "linear",
    samples=[case(real(2, 3, 4), dims=(2, 0, 1)), case(real(2, 3), dims=(-1, 0)),
             case(real(), dims=())],
    view=True,
    method="*dims",
    d_input=lambda F, g, dims: F.permute(g, _inverse(dims)),
)  # fmt: skip
def permute(xp: Namespace, input: Tensor, dims: Shape) -> Array:
    """Return a view with the dimensions in the order ``dims``."""
    if len(dims) != input.ndim:
        raise ShapeError(
            "number of dimensions in the tensor input does not match the length of the desired "
            f"ordering of dimensions i.e. input.dim() = {input.ndim} is not equal to "
            f"len(dims) = {len(dims)}"
        )
    return xp.transpose(input, wrap_dims(dims, input.ndim))


def _inverse(dims: Shape) -> Shape:
    places = {d % len(dims): i for i, d in enumerate(dims)}
    return tuple(places[i] for i in range(len(dims)))


def t(input: Tensor) -> Tensor:
    """Return the transpose of a matrix; a vector or scalar as it is."""
    if input.array.ndim > 2:
        error = ShapeError(
            f"t() expects a tensor with <= 2 dimensions, but self is {input.array.ndim}D; use .mT"
        )
        recover("t", error, {"input": input}, {})
    return transpose(input, 0, 1) if input.array.ndim == 2 else alias(input)


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """Return a view with two dimensions swapped."""
    return transpose(input, axis0, axis1)


def swapdims(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Return a view with two dimensions swapped."""
    return transpose(input, dim0, dim1)


def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Return a view with dimensions ``source`` moved to ``destination``."""
    ndim = input.array.ndim
    try:
        sources = wrap_dims((source,) if isinstance(source, int) else source, ndim)
        targets = wrap_dims((destination,) if isinstance(destination, int) else destination, ndim)
        if len(sources) != len(targets):
            raise ShapeError(
                f"Invalid source or destination dims: source {sources} and destination {targets} "
                "must have the same number of dims"
            )
    except Exception as error:
        options = {"source": source, "destination": destination}
        recover("movedim", error, {"input": input}, options)
    order = [d for d in range(ndim) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return permute(input, tuple(order))


def moveaxis(
    input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]
) -> Tensor:
    """Return a view with dimensions ``source`` moved to ``destination``."""
    return movedim(input, source, destination)


# ---------------------------------------------------------------------- parts
@op(
    "linear",
    samples=[case(real(3, 4), index=(slice(1, None), ...)),
             case(real(3, 4), index=(slice(None, None, 2), None, -1, ...)),
             case(real(2), index=(...,))],
    view=True,
    method=False,
    node="SliceBackward0",
    reference=lambda torch, x, index: x[index],
    d_input=lambda F, g, input_shape, index: F.slice_backward(g, input_shape, index),
)  # fmt: skip
def slice_view(xp: Namespace, input: Tensor, index: tuple[Any, ...]) -> Array:
    """Return the view ``input[index]`` for numbers, slices, None and one ``...``."""
    for item in index:
        if type(item) is slice and item.step is not None and item.step <= 0:
            raise ArgumentError("step must be greater than zero; use flip() to go backwards")
    return input[index]


@op(
    "linear",
    widens=False,
    samples=[case(real(2, 4), input_size=(3, 4), index=(slice(1, None), ...))],
    method=False,
    reference="none",
    d_grad=lambda F, g, index: F.slice_view(g, index),
)
def slice_backward(xp: Namespace, grad: Tensor, input_size: Shape, index: tuple[Any, ...]) -> Array:
    """Return zeros of ``input_size`` with ``grad`` written at ``index``."""
    out = xp.zeros(input_size, grad.dtype)
    out[index] = grad
    return out


@op(
    "linear",
    samples=[case(real(3, 4), dim=1, start=1, length=2),
             case(real(3, 4), dim=-2, start=0, length=3),
             case(real(4), dim=0, start=-3, length=2)],
    view=True,
    d_input=lambda F, g, input_shape, dim, start: F.narrow_backward(g, input_shape, dim, start),
)  # fmt: skip
def narrow(xp: Namespace, input: Tensor, dim: int, start: int, length: int) -> Array:
    """Return the view of ``length`` entries from ``start`` along ``dim``."""
    if not input.ndim:
        raise ShapeError("narrow() cannot be applied to a 0-dim tensor")
    place, first = wrap_dim(dim, input.ndim), _start(start)
    size = input.shape[place]
    if not -size <= first <= size:
        raise IndexOutOfRange(
            f"start out of range (expected to be in range of [{-size}, {size}], but got {first})"
        )
    first += size if first < 0 else 0
    if length < 0 or first + length > size:
        raise ShapeError(
            f"start ({first}) + length ({length}) exceeds dimension size ({size})"
            if length >= 0
            else "length must be non-negative"
        )
    return input[(slice(None),) * place + (slice(first, first + length),)]


def _start(start: Any) -> int:
    array = start.array if isinstance(start, Tensor) else None
    if array is not None and (array.ndim or array.dtype.kind not in "iu"):
        raise ShapeError("start must be an 0-dim integral Tensor.")
    return int(start)


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 2), input_size=(3, 4), dim=1, start=1)],
    method=False,
    reference="none",
    d_input=lambda F, g, input_shape, dim, start: F.narrow(g, dim, start, input_shape[dim]),
)
def narrow_backward(xp: Namespace, input: Tensor, input_size: Shape, dim: int, start: int) -> Array:
    """Return zeros of ``input_size`` with ``input`` written from ``start`` along ``dim``."""
    out = xp.zeros(input_size, input.dtype)
    first = int(start) + (input_size[dim] if start < 0 else 0)
    part = slice(first, first + input.shape[dim])
    out[(slice(None),) * (dim % input.ndim) + (part,)] = input
    return out


@op(
    "linear",
    samples=[case(real(3, 4)), case(real(3, 4), offset=1), case(real(4, 3), offset=-2),
             case(real(2, 3, 4), offset=1, dim1=-1, dim2=0), case(real(2, 3), offset=5)],
    view=True,
    d_input=lambda F, g, input_shape, offset, dim1, dim2: F.diagonal_backward(
        g, input_shape, offset, dim1, dim2
    ),
)  # fmt: skip
def diagonal(xp: Namespace, input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """Return a view of a diagonal; its entries are the last dimension.

    Args:
        offset: 0 is the main diagonal, positive numbers are above, negative ones below.
        dim1: dimension of the rows.
        dim2: dimension of the columns.
    """
    dims = wrap_dim(dim1, input.ndim), wrap_dim(dim2, input.ndim)
    if dims[0] == dims[1]:
        raise ShapeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return xp.diagonal(input, offset, *dims)


@op(
    "linear",
    widens=False,
    samples=[case(real(3), input_size=(3, 4)), case(real(2), input_size=(3, 3), offset=-1),
             case(real(3, 1), input_size=(2, 3, 4), offset=1, dim1=-1, dim2=0)],
    method=False,
    reference="none",
    d_grad=lambda F, g, offset, dim1, dim2: F.diagonal(g, offset, dim1, dim2),
)  # fmt: skip
def diagonal_backward(
    xp: Namespace, grad: Tensor, input_size: Shape, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Array:
    """Return zeros of ``input_size`` with ``grad`` on a diagonal."""
    out = xp.zeros(input_size, grad.dtype)
    xp.diagonal(out, offset, dim1, dim2)[...] = grad
    return out


@op(
    "linear",
    samples=[case(real(7), dimension=0, size=3, step=2),
             case(real(2, 5), dimension=-1, size=2, step=1),
             case(real(5, 2), dimension=0, size=4, step=1),
             case(real(), dimension=0, size=1, step=1)],
    view=True,
    method=False,
    node="UnfoldBackward0",
    reference=lambda torch, x, dimension, size, step: x.unfold(dimension, size, step),
    d_input=lambda F, g, input_shape, dimension, size, step: F.windows_backward(
        g, input_shape, dimension, size, step
    ),
)  # fmt: skip
def windows_view(xp: Namespace, input: Tensor, dimension: int, size: int, step: int) -> Array:
    """Return a view of all slices of ``size`` along ``dimension``, ``step`` apart.

    Shape:
        ``dimension`` counts the slices; their elements are a new last dimension.
    """
    place = wrap_dim(dimension, input.ndim)
    if step <= 0:
        raise ShapeError(f"step is {step} but must be > 0")
    length = input.shape[place] if input.ndim else 1
    if not 0 <= size <= length:
        raise ShapeError(
            f"maximum size for tensor at dimension {place} is {length} but size is {size}"
        )
    if not input.ndim:
        return xp.reshape(input, -1)[:size]
    moved = xp.moveaxis(input, place, -1)
    return xp.moveaxis(xp.windows(moved, [size], [step], [1]), -2, place)


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 3), input_size=(7,), dimension=0, size=3, step=2),
             case(real(2, 4, 2), input_size=(2, 5), dimension=-1, size=2, step=1)],
    method=False,
    reference="none",
    d_grad=lambda F, g, dimension, size, step: F.windows_view(g, dimension, size, step),
)  # fmt: skip
def windows_backward(
    xp: Namespace, grad: Tensor, input_size: Shape, dimension: int, size: int, step: int
) -> Array:
    """Return zeros of ``input_size`` plus ``grad`` at the places that ``windows_view`` shows."""
    if not input_size:
        return xp.reshape(grad.sum(), ())
    out = xp.zeros(input_size, grad.dtype)
    moved = xp.moveaxis(out, dimension, -1)
    parts = xp.moveaxis(grad, dimension % len(input_size), -2)
    end = (parts.shape[-2] - 1) * step + 1
    for offset in range(size):  # one addition per place in a window, none overlapping in itself
        moved[..., offset : offset + end : step] += parts[..., offset]
    return out


# ---------------------------------------------------------------------- methods
def contiguous(input: Tensor, *, memory_format: Any = contiguous_format) -> Tensor:
    """Return ``input`` itself when its memory is in row-major (or the given) order, else a copy."""
    if input.is_contiguous(memory_format=memory_format):
        return input
    return clone(input, memory_format=memory_format)


def view_of(input: Tensor, size: Shape | None = None, *, dtype: Any = None) -> Tensor:
    """Return a view in another shape, or of the same bytes as another dtype."""
    if dtype is None and isinstance(size, list | tuple):
        return view(input, tuple(size))
    return view_dtype(input, size if dtype is None else dtype)


def _view_method(self: Tensor, *shape: Any, size: Any = None, dtype: Any = None) -> Tensor:
    """Return a view in another shape, or of the same bytes as another dtype."""
    if len(shape) == 1 and (isinstance(shape[0], list | tuple) or not _is_index(shape[0])):
        size = shape[0]
    elif shape:
        size = shape
    return view_of(self, size, dtype=dtype)


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__")


@op(samples=[], view=True, method=False, reference="none")
def view_dtype(xp: Namespace, input: Tensor, dtype: Any) -> Array:
    """Return a view of the same bytes as elements of another dtype."""
    kind = xp.dtype(getattr(dtype, "numpy", dtype))
    if not input.ndim and kind.itemsize != input.dtype.itemsize:
        raise ShapeError("self.dim() cannot be 0 to view a dtype of a different element size")
    return input.view(kind)


def _reversed_dims(self: Tensor) -> Tensor:
    """The dimensions in reverse order."""
    return permute(self, tuple(range(self.array.ndim))[::-1])


def _matrix_transpose(self: Tensor) -> Tensor:
    """The last two dimensions swapped."""
    return mT(self)


def _conjugate_transpose(self: Tensor) -> Tensor:
    """The transpose of a matrix, complex numbers conjugated."""
    if self.array.ndim not in (0, 2):
        error = ShapeError(
            "tensor.H is only supported on matrices (2-D tensors). "
            f"Got {self.array.ndim}-D tensor; use .mH for a batch"
        )
        recover("H", error, {"input": self}, {})
    return adjoint(self) if self.array.ndim else self


def adjoint(input: Tensor) -> Tensor:
    """Return the last two dimensions swapped, complex numbers conjugated."""
    return mT(input.conj() if input.is_complex() else input)


def unfold(self: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Return a view of all slices of ``size`` along ``dimension``, ``step`` apart."""
    return windows_view(self, dimension, size, step)


for _function in (
    adjoint, contiguous, expand_as, flatten, moveaxis, movedim, ravel, reshape_as,
    swapaxes, swapdims, t, unflatten, unfold, view_as,
):  # fmt: skip
    as_method(_function)
del _function
as_method(_view_method, "view")
as_method(broadcast_to, gather="size")
as_property(_reversed_dims, "T")
as_property(_matrix_transpose, "mT")
as_property(_conjugate_transpose, "H")
as_property(adjoint, "mH")
