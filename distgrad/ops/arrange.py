"""The same elements in other places: flips, rolls, repeats, triangles, diagonals, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.errors import DtypeNotImplemented, IndexOutOfRange, ShapeError
from distgrad.ops.index import index_select, lookup
from distgrad.ops.shape import diagonal, reshape, transpose, wrap_dim, wrap_dims
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Number, Shape

__all__ = [
    "constant_pad_nd",
    "diag",
    "diag_embed",
    "diagflat",
    "flip",
    "fliplr",
    "flipud",
    "repeat_interleave",
    "roll",
    "rot90",
    "tile",
    "tril",
    "triu",
]


# ---------------------------------------------------------------------- order
def _dims(dims: int | Sequence[int]) -> tuple[int, ...]:
    return (dims,) if isinstance(dims, int) else tuple(dims)


@op(
    "linear",
    widens=False,
    samples=[case(real(2, 3), dims=(0, -1)), case(real(2, 3), dims=(1,)), case(real(), dims=())],
    method="*dims",
    d_input=lambda F, g, dims: F.flip(g, dims),
)
def flip(xp: Namespace, input: Tensor, dims: int | Sequence[int]) -> Array:
    """Return a copy with the order along ``dims`` reversed."""
    return xp.array(xp.flip(input, wrap_dims(_dims(dims), input.ndim)), copy=True)


def fliplr(input: Tensor) -> Tensor:
    """Return a copy with the columns in reverse order."""
    if input.array.ndim < 2:
        recover("fliplr", ShapeError("Input must be >= 2-d."), {"input": input}, {})
    return flip(input, (1,))


def flipud(input: Tensor) -> Tensor:
    """Return a copy with the rows in reverse order."""
    if input.array.ndim < 1:
        recover("flipud", ShapeError("Input must be >= 1-d."), {"input": input}, {})
    return flip(input, (0,))


@op(
    "linear",
    widens=False,
    samples=[case(real(3, 4), shifts=2), case(real(3, 4), shifts=(1, -2), dims=(0, 1)),
             case(real(3, 4), shifts=5, dims=-1), case(real(2, 0), shifts=1, dims=1)],
    d_input=lambda F, g, shifts, dims: F.roll(g, _opposite(shifts), dims),
)  # fmt: skip
def roll(
    xp: Namespace,
    input: Tensor,
    shifts: int | Sequence[int],
    dims: int | Sequence[int] | None = None,
) -> Array:
    """Return a copy with the elements moved on by ``shifts`` along ``dims``, the last to the front.

    Without ``dims`` the elements are moved as one row.
    """
    if shifts == ():
        raise ShapeError("`shifts` required")
    if dims is None or dims == ():
        if len(_dims(shifts)) > 1:
            raise ShapeError(
                f"shifts and dimensions must align. shifts: {len(_dims(shifts))}, dims:0"
            )
        return xp.roll(input, _dims(shifts)[0])
    places, steps = wrap_dims(_dims(dims), input.ndim), _dims(shifts)
    if len(places) != len(steps):
        raise ShapeError(
            f"shifts and dimensions must align. shifts: {len(steps)}, dims:{len(places)}"
        )
    return xp.roll(input, steps, places)


def _opposite(shifts: int | Sequence[int]) -> tuple[int, ...] | int:
    return -shifts if isinstance(shifts, int) else tuple(-s for s in shifts)


def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Return a copy turned by ``k`` quarters, from the first of ``dims`` towards the second."""
    try:
        if len(dims) != 2:
            raise ShapeError(f"expected total rotation dims == 2, but got dims = {len(dims)}")
        if input.array.ndim < 2:
            raise ShapeError(f"expected total dims >= 2, but got total dims = {input.array.ndim}")
        if dims[0] == dims[1] or abs(dims[0] - dims[1]) == input.array.ndim:
            raise ShapeError(f"expected rotation dims to be different, but got {dims}")
        first, second = wrap_dims(dims, input.array.ndim)
    except Exception as error:
        recover("rot90", error, {"input": input}, {"k": k, "dims": dims})
    if k % 4 == 1:
        return transpose(flip(input, (second,)), first, second)
    if k % 4 == 2:
        return flip(input, (first, second))
    if k % 4 == 3:
        return transpose(flip(input, (first,)), first, second)
    return input.clone()


# ---------------------------------------------------------------------- repeating
@op(
    "linear",
    widens=False,
    samples=[case(real(2, 3), repeats=(2, 1)), case(real(3), repeats=(2, 3)),
             case(real(), repeats=(2,)), case(real(2), repeats=(0,))],
    method="*repeats",
    d_input=lambda F, g, input_shape, repeats: _gathered(F, g, input_shape, tuple(repeats)),
)  # fmt: skip
def repeat(xp: Namespace, input: Tensor, repeats: Shape) -> Array:
    """Return copies of ``input`` side by side, ``repeats`` times along each dimension."""
    if len(repeats) < input.ndim:
        raise ShapeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions of "
            f"tensor: {len(repeats)} for {input.ndim}"
        )
    if any(n < 0 for n in repeats):
        raise ShapeError(f"Trying to create tensor with negative dimension: repeats {repeats}")
    return xp.tile(input, repeats)


def _gathered(F: Any, g: Any, shape: Shape, repeats: Shape) -> Any:
    sizes = (1,) * (len(repeats) - len(shape)) + shape
    pairs = tuple(n for pair in zip(repeats, sizes, strict=True) for n in pair)
    if not repeats:
        return g
    return F.reshape(F.sum(F.reshape(g, pairs), tuple(range(0, len(pairs), 2))), shape)


def tile(input: Tensor, dims: Shape) -> Tensor:
    """Return copies of ``input`` side by side; missing leading numbers count as 1."""
    return repeat(input, (1,) * (input.array.ndim - len(dims)) + tuple(dims))


@takes_names
@where_it_is
def repeat_interleave(
    input: Tensor,
    repeats: int | Tensor | None = None,
    dim: int | None = None,
    *,
    output_size: int | None = None,
) -> Tensor:
    """Return each entry along ``dim`` repeated on the spot, by one number or by one each.

    Alone, a vector of numbers of repeats repeats its own places.

    Example:
        >>> import distgrad as dg
        >>> dg.repeat_interleave(dg.tensor([7, 8]), dg.tensor([1, 2]))
        tensor([7, 8, 8])
    """
    xp = array_namespace(input.array)
    if repeats is None:
        repeats, input = input, wrap(xp.arange(input.array.size))
    if dim is None:
        input, dim = reshape(input, (-1,)), 0
    try:
        place = wrap_dim(dim, input.array.ndim)
        _check_repeats(repeats)
    except Exception as error:
        recover("repeat_interleave", error, {"input": input}, {"repeats": repeats, "dim": dim})
    count = input.array.shape[place]
    times = repeats.array if isinstance(repeats, Tensor) else repeats
    if isinstance(repeats, Tensor) and repeats.array.size not in (1, count):
        wrong = ShapeError(
            "repeats must be 0-dim or have the same size as input along dim, but got "
            f"repeats.size(0) = {repeats.array.size} and input.size({place}) = {count}"
        )
        recover("repeat_interleave", wrong, {"input": input, "repeats": repeats}, {"dim": dim})
    return index_select(input, place, wrap(xp.repeat(xp.arange(count), times)))


def _check_repeats(repeats: int | Tensor) -> None:
    if not isinstance(repeats, Tensor):
        if repeats < 0:
            raise ShapeError("Repeats must be non-negative")
    elif repeats.array.dtype.kind != "i" or repeats.array.dtype.itemsize < 4:
        raise DtypeNotImplemented(f"repeats are int32 or int64 numbers, not {repeats.array.dtype}")
    elif repeats.array.size and int(repeats.array.min()) < 0:
        raise ShapeError("repeats can not be negative")


# ---------------------------------------------------------------------- triangles and diagonals
@op("linear", widens=False,
    samples=[case(real(3, 4)), case(real(2, 3, 3), diagonal=-1)], inplace=True,
    d_input=lambda F, g, diagonal: F.tril(g, diagonal))  # fmt: skip
def tril(xp: Namespace, input: Tensor, diagonal: int = 0) -> Array:
    """Return the lower triangle, on and below ``diagonal``, and zeros above."""
    _check_matrix(input.ndim)
    return xp.tril(input, diagonal)


@op("linear", widens=False,
    samples=[case(real(3, 4)), case(real(2, 3, 3), diagonal=-1)], inplace=True,
    d_input=lambda F, g, diagonal: F.triu(g, diagonal))  # fmt: skip
def triu(xp: Namespace, input: Tensor, diagonal: int = 0) -> Array:
    """Return the upper triangle, on and above ``diagonal``, and zeros below."""
    _check_matrix(input.ndim)
    return xp.triu(input, diagonal)


def _check_matrix(ndim: int) -> None:
    if ndim < 2:
        raise ShapeError("input tensor must have at least 2 dimensions")


@op(
    "linear",
    widens=False,
    samples=[
        case(real(3)),
        case(real(2, 3), offset=1),
        case(real(2, 3), offset=-1, dim1=0, dim2=2),
    ],
    d_input=lambda F, g, offset, dim1, dim2: F.diagonal(g, offset, dim1, dim2),
)
def diag_embed(
    xp: Namespace, input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> Array:
    """Return matrices with the last dimension of ``input`` on a diagonal and zeros elsewhere."""
    if not input.ndim:
        raise IndexOutOfRange(
            "Dimension out of range: a 0-d tensor has no diagonal; reshape it to (1,)"
        )
    ndim = input.ndim + 1
    first, second = wrap_dim(dim1, ndim), wrap_dim(dim2, ndim)
    if first == second:
        raise ShapeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    size = input.shape[-1] + abs(offset)
    shape = list(input.shape[:-1])
    for place in sorted((first, second)):
        shape.insert(place, size)
    out = xp.zeros(shape, input.dtype)
    xp.diagonal(out, offset, first, second)[...] = input
    return out


@takes_out
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """Return the matrix with a vector on its diagonal, or the diagonal of a matrix as a copy."""
    if input.array.ndim not in (1, 2):
        error = ShapeError(
            f"diag(): Supports 1D or 2D tensors. Got {input.array.ndim}D; use diagonal()"
        )
        recover("diag", error, {"input": input}, {"diagonal": diagonal})
    if input.array.ndim == 1:
        return diag_embed(input, diagonal)
    return _diagonal_of(input, diagonal).clone()


_diagonal_of = diagonal


def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """Return the matrix with all elements of ``input`` on a diagonal."""
    return diag_embed(reshape(input, (-1,)), offset)


# ---------------------------------------------------------------------- padding
@op(
    "linear",
    widens=False,
    samples=[case(real(2, 3), pad=(1, 2)), case(real(2, 3), pad=(0, 1, 2, 0)),
             case(real(3, 4), pad=(-1, 2, 1, -1))],
    method=False,
    d_input=lambda F, g, pad: F.constant_pad_nd(g, tuple(-n for n in pad)),
    jvp=lambda F, t_input, pad: F.constant_pad_nd(t_input, pad),  # without the constant
)  # fmt: skip
def constant_pad_nd(xp: Namespace, input: Tensor, pad: Sequence[int], value: float = 0) -> Array:
    """Return ``input`` with ``value`` around it; negative numbers cut away.

    Args:
        input: any shape.
        pad: (before, after) for the last dimension, then for the one before it, and so on.
        value: what to pad with.
    """
    pairs = _pairs(pad, input.ndim)
    if not pairs:
        return xp.array(input, copy=True)
    short = [n + a + b for n, (a, b) in zip(input.shape[-len(pairs) :], pairs, strict=True)]
    if min(short) < 0:
        raise ShapeError(
            f"The input size {list(input.shape)}, plus negative padding {list(pad)}, resulted in a "
            "negative output size"
        )
    if not value:
        return xp.pad_zeros(input, pairs)
    inside = [slice(max(a, 0), n - max(b, 0)) for n, (a, b) in zip(short, pairs, strict=True)]
    out = xp.full((*input.shape[: input.ndim - len(pairs)], *short), value, input.dtype)
    cut = [slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in
           zip(input.shape[-len(pairs):], pairs, strict=True)]  # fmt: skip
    out[(..., *inside)] = input[(..., *cut)]
    return out


def _pairs(pad: Sequence[int], ndim: int) -> list[tuple[int, int]]:
    """Return (before, after) of the last dimensions, in their order."""
    if len(pad) % 2:
        raise ShapeError("Padding length must be divisible by 2")
    if len(pad) > 2 * ndim:
        raise ShapeError(
            f"Padding length should be less than or equal to two times the input dimension but got "
            f"padding length {len(pad)} and input of dimension {ndim}"
        )
    return [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]


@where_it_is
def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Return ``input`` with more elements around it.

    Args:
        input: the tensor; the modes but "constant" take 1 to 3 padded last dimensions.
        pad: (before, after) for the last dimension, then for the one before it, and so on.
        mode: "constant"; "reflect": mirrored at the outermost element, which is not repeated;
            "replicate": the outermost element again; "circular": from the other end.
        value: what "constant" pads with (0).
    """
    options = {"pad": pad, "mode": mode, "value": value}
    try:
        if mode == "constant":
            return constant_pad_nd(input, tuple(pad), value or 0)
        if mode not in _SOURCES:
            raise NotImplementedError(f"Unrecognised padding mode {mode}")
        if value:
            raise ShapeError(f'Padding mode "{mode}" doesn\'t take in value argument')
        pairs = _checked_pairs(input, pad, mode)
    except NotImplementedError:
        raise
    except Exception as error:
        recover("pad", error, {"input": input}, options)
    xp = array_namespace(input.array)
    first = input.array.ndim - len(pairs)
    for dim, (before, after) in enumerate(pairs, first):
        if before or after:
            source = _SOURCES[mode](before, after, input.array.shape[dim])
            input = lookup(input, [wrap(xp.asarray(source))], (dim,))
    return input


def _checked_pairs(input: Tensor, pad: Sequence[int], mode: str) -> list[tuple[int, int]]:
    pairs = _pairs(pad, input.array.ndim)
    ndim = input.array.ndim
    if not 1 <= len(pairs) <= 3 or ndim not in (len(pairs) + 1, len(pairs) + 2):
        raise NotImplementedError(
            "Only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now"
        )
    if mode != "circular" and input.array.dtype == bool:
        raise DtypeNotImplemented(f"{mode} padding is not implemented for bool; use .to(dg.uint8)")
    for size, (before, after) in zip(input.array.shape[-len(pairs) :], pairs, strict=True):
        if size + before + after < 1:
            raise ShapeError("Negative padding value is resulting in an empty dimension")
        limit = {"reflect": size - 1, "circular": size}.get(mode)
        if limit is not None and max(before, after) > limit:
            raise ShapeError(
                f"Padding size should be less than the corresponding input dimension, but got: "
                f"padding ({before}, {after}) at a dimension of size {size} in mode {mode!r}"
            )
        if not size:
            raise ShapeError("Expected a non-empty tensor to pad")
    return pairs


def _mirrored(before: int, after: int, size: int) -> Any:
    turned = numpy.abs(numpy.arange(-before, size + after))
    return size - 1 - numpy.abs(size - 1 - turned)


def _repeated(before: int, after: int, size: int) -> Any:
    return numpy.clip(numpy.arange(-before, size + after), 0, size - 1)


def _wrapped(before: int, after: int, size: int) -> Any:
    """Return the places of what negative padding leaves, and around them the same again."""
    first = max(-before, 0)
    left = size - first - max(-after, 0)
    return first + numpy.arange(-max(before, 0), left + max(after, 0)) % left


_SOURCES: dict[str, Any] = {"reflect": _mirrored, "replicate": _repeated, "circular": _wrapped}


def fill_diagonal_(self: Tensor, fill_value: Number, wrap: bool = False) -> Tensor:
    """Fill the main diagonal of this tensor with one number and return it.

    Args:
        self: a matrix, or a tensor whose dimensions are all equal.
        fill_value: the number.
        wrap: begin again below the square of a tall matrix.
    """
    shape = self.array.shape
    if len(shape) < 2 or (len(shape) > 2 and len(set(shape)) > 1):
        error = ShapeError(
            "all dimensions of input must be of equal length, and there must be at least 2"
        )
        recover("fill_diagonal_", error, {"self": self}, {"fill_value": fill_value})
    if len(shape) > 2:
        places = numpy.arange(shape[0])
        self[(places,) * len(shape)] = fill_value
        return self
    height, width = shape
    rows = numpy.arange(height) if wrap else numpy.arange(min(height, width))
    columns = rows % (width + 1)
    inside = columns < width
    self[rows[inside], columns[inside]] = fill_value
    return self


for _function in (diag, diagflat, fill_diagonal_, fliplr, flipud, repeat_interleave, rot90):
    as_method(_function)
del _function
as_method(tile, gather="dims")
