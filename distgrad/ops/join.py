"""Joining tensors and taking them apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import Unlike, as_method, op, recover
from distgrad.autograd.inplace import independent
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.backend.dtype import joint_type
from distgrad.errors import ArgumentTypeError, DtypeError, IndexOutOfRange, ShapeError
from distgrad.ops.shape import (
    atleast_1d,
    atleast_2d,
    atleast_3d,
    expand,
    narrow,
    reshape,
    wrap_dim,
)
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "block_diag",
    "cartesian_prod",
    "cat",
    "chunk",
    "column_stack",
    "combinations",
    "concat",
    "concatenate",
    "dsplit",
    "dstack",
    "hsplit",
    "hstack",
    "meshgrid",
    "row_stack",
    "split",
    "split_with_sizes",
    "stack",
    "tensor_split",
    "unbind",
    "unsafe_chunk",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "vsplit",
    "vstack",
]

Tensors = Sequence[Tensor]


# ---------------------------------------------------------------------- joining
@op(
    "linear",
    widens=False,
    samples=[case([real(2, 3), real(1, 3)]), case([real(2, 3), real(2, 1), real(2, 2)], dim=-1),
             case([real(0), real(2, 2)], dim=1), case([real(2)], dim=0)],
    method=False,
    d_tensors=lambda F, g, tensors_shape, dim: _pieces(F, g, tensors_shape, dim),
)  # fmt: skip
def cat(xp: Namespace, tensors: Sequence[Tensor], dim: int = 0) -> Array:
    """Return the tensors joined along dimension ``dim``; an empty vector joins anything."""
    arrays: list[Any] = list(tensors)
    if len({a.dtype for a in arrays}) > 1:
        raise Unlike(joint_type(arrays).numpy)
    whole = [a for a in arrays if a.shape != (0,)] or arrays[:1]
    first = whole[0]
    if not first.ndim:
        raise ShapeError("zero-dimensional tensor cannot be concatenated; use stack()")
    place = wrap_dim(dim, first.ndim)
    try:
        return xp.concatenate(whole, axis=place)
    except ValueError:
        raise ShapeError(_unequal(first.shape, [a.shape for a in whole], place)) from None


def _unequal(first: Shape, shapes: list[Shape], dim: int) -> str:
    for number, shape in enumerate(shapes):
        if len(shape) != len(first):
            return f"Tensors must have same number of dimensions: got {len(first)} and {len(shape)}"
        for d, (a, b) in enumerate(zip(first, shape, strict=True)):
            if a != b and d != dim:
                return (
                    f"Sizes of tensors must match except in dimension {dim}. Expected size {a} "
                    f"but got size {b} in dimension {d} for tensor number {number} in the list"
                )
    return "these shapes cannot be joined"


def _pieces(F: Any, g: Any, shapes: list[Shape], dim: int) -> list[Any]:
    pieces: list[Any] = []
    start = 0
    for shape in shapes:
        if shape == (0,) and g.ndim > 1:
            pieces.append(None)
            continue
        pieces.append(F.narrow(g, dim, start, shape[dim]))
        start += shape[dim]
    return pieces


@op(
    "linear",
    widens=False,
    samples=[case([real(2, 3), real(2, 3)]), case([real(2), real(2), real(2)], dim=-1),
             case([real(), real()])],
    method=False,
    d_tensors=lambda F, g, tensors_shape, dim: [
        F.select(g, dim, i) for i in range(len(tensors_shape))
    ],
)  # fmt: skip
def stack(xp: Namespace, tensors: Sequence[Tensor], dim: int = 0) -> Array:
    """Return the tensors, all of one shape, joined along a new dimension ``dim``."""
    arrays: list[Any] = list(tensors)
    if len({a.dtype for a in arrays}) > 1:
        raise Unlike(joint_type(arrays).numpy)
    place = wrap_dim(dim, arrays[0].ndim + 1)
    for number, a in enumerate(arrays):
        if a.shape != arrays[0].shape:
            raise ShapeError(
                f"stack expects each tensor to be equal size, but got {list(arrays[0].shape)} at "
                f"entry 0 and {list(a.shape)} at entry {number}; use cat() for unequal sizes"
            )
    return xp.stack(arrays, axis=place)


@takes_out
def concat(tensors: Tensors, dim: int = 0) -> Tensor:
    """Return the tensors joined along dimension ``dim``."""
    return cat(tensors, dim)


@takes_out
def concatenate(tensors: Tensors, axis: int = 0, *, dim: int | None = None) -> Tensor:
    """Return the tensors joined along dimension ``axis``, also named ``dim``."""
    return cat(tensors, axis if dim is None else dim)


def _check_list(name: str, tensors: Tensors) -> None:
    error: Exception | None = None
    if isinstance(tensors, Tensor):
        error = ArgumentTypeError("argument 'tensors' must be tuple of Tensors, not Tensor")
    elif not len(tensors):
        error = ShapeError(f"{name} expects a non-empty TensorList")
    if error is not None:
        recover(name, error, {"tensors": tensors}, {})


@takes_out
def hstack(tensors: Tensors) -> Tensor:
    """Return the tensors joined along columns (vectors: end to end)."""
    _check_list("hstack", tensors)
    raised = [atleast_1d(t) for t in tensors]
    return cat(raised, 0 if raised and raised[0].array.ndim == 1 else 1)


@takes_out
def vstack(tensors: Tensors) -> Tensor:
    """Return the tensors joined along rows; a vector is a row."""
    _check_list("vstack", tensors)
    return cat([atleast_2d(t) for t in tensors], 0)


@takes_out
def row_stack(tensors: Tensors) -> Tensor:
    """Return the tensors joined along rows; a vector is a row."""
    return vstack(tensors)


@takes_out
def dstack(tensors: Tensors) -> Tensor:
    """Return the tensors joined along the third dimension."""
    _check_list("dstack", tensors)
    return cat([atleast_3d(t) for t in tensors], 2)


@takes_out
def column_stack(tensors: Tensors) -> Tensor:
    """Return the tensors joined along columns; a vector is a column."""
    _check_list("column_stack", tensors)
    return cat([t if t.array.ndim > 1 else reshape(t, (-1, 1)) for t in tensors], 1)


@op(
    "linear",
    widens=False,
    samples=[case([real(2, 3), real(1, 2)]), case([real(2), real(), real(2, 1)])],
    method=False,
    reference=lambda torch, tensors: torch.block_diag(*tensors),
    d_tensors=lambda F, g, tensors_shape: _blocks(F, g, tensors_shape),
)
def block_diagonal(xp: Namespace, tensors: Sequence[Tensor]) -> Array:
    """Return a matrix with the given ones along its diagonal and zeros elsewhere."""
    for number, a in enumerate(tensors):
        if a.ndim > 2:
            raise ShapeError(
                "Input tensors must have 2 or fewer dimensions. "
                f"Input {number} has {a.ndim} dimensions"
            )
    matrices = [xp.atleast_2d(a) for a in tensors]
    kind = joint_type(matrices).numpy
    out = xp.zeros((sum(m.shape[0] for m in matrices), sum(m.shape[1] for m in matrices)), kind)
    row = column = 0
    for m in matrices:
        out[row : row + m.shape[0], column : column + m.shape[1]] = m
        row, column = row + m.shape[0], column + m.shape[1]
    return out


def _blocks(F: Any, g: Any, shapes: list[Shape]) -> list[Any]:
    blocks = []
    row = column = 0
    for shape in shapes:
        height, width = (1, 1, *shape)[-2:]
        block = F.narrow(F.narrow(g, 0, row, height), 1, column, width)
        blocks.append(F.reshape(block, shape))
        row, column = row + height, column + width
    return blocks


def block_diag(*tensors: Tensor) -> Tensor:
    """Return a matrix with the given ones along its diagonal; a vector is a row."""
    return block_diagonal(list(tensors) or [Tensor([])])


# ---------------------------------------------------------------------- taking apart
@op(
    "linear",
    samples=[case(real(4, 3), split_size_or_sections=[1, 3]),
             case(real(5, 3), split_size_or_sections=2),
             case(real(2, 6), split_size_or_sections=3, dim=-1),
             case(real(3), split_size_or_sections=(0, 3))],
    outputs="*",
    view=True,
    d_tensor=lambda F, g, dim: F.cat(list(g), dim),
)  # fmt: skip
def split(
    xp: Namespace, tensor: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> Array:
    """Return views along ``dim``: of one size (the last may be shorter), or of the given sizes."""
    if not tensor.ndim:
        raise ShapeError("split expects at least a 1-dimensional tensor")
    place = wrap_dim(dim, tensor.ndim)
    total, sizes = tensor.shape[place], split_size_or_sections
    if isinstance(sizes, int):
        if sizes < 0 or (not sizes and total):
            raise ShapeError(f"split_size can only be 0 if dimension size is 0, but got {total}")
        count = -(-total // sizes) if sizes else 1
        bounds = [min(i * sizes, total) for i in range(max(count, 1) + 1)]
    else:
        bounds = [0, *itertools.accumulate(int(n) for n in sizes)]
        if bounds[-1] != total or min(sizes, default=0) < 0:
            raise ShapeError(
                f"split_with_sizes expects split_sizes to sum exactly to {total} (input tensor's "
                f"size at dimension {place}), but got split_sizes={list(sizes)}"
            )
    lead = (slice(None),) * place
    return [tensor[(*lead, slice(a, b))] for a, b in itertools.pairwise(bounds)]


@op(
    "linear",
    samples=[case(real(3, 2)), case(real(2, 3), dim=-1), case(real(2))],
    outputs="*",
    view=True,
    d_input=lambda F, g, dim: F.stack(list(g), dim),
)
def unbind(xp: Namespace, input: Tensor, dim: int = 0) -> Array:
    """Return a view of every entry along ``dim``, which is taken away."""
    if not input.ndim:
        raise IndexOutOfRange(f"Dimension specified as {dim} but tensor has no dimensions")
    lead = (slice(None),) * wrap_dim(dim, input.ndim)
    return [input[(*lead, i, ...)] for i in range(input.shape[len(lead)])]


@takes_names
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Return ``chunks`` views of one size along ``dim``; the last may be shorter, or missing."""
    try:
        place = wrap_dim(dim, input.array.ndim)
        if not input.array.ndim:
            raise ShapeError("chunk expects at least a 1-dimensional tensor")
        if chunks <= 0:
            raise ShapeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    except Exception as error:
        recover("chunk", error, {"input": input}, {"chunks": chunks, "dim": dim})
    total = input.array.shape[place]
    if not total:
        return tuple(split(input, [0] * chunks, dim))
    return tuple(split(input, -(-total // chunks), dim))


@takes_names
def tensor_split(
    input: Tensor, indices_or_sections: int | Sequence[int] | Tensor, dim: int = 0
) -> tuple[Tensor, ...]:
    """Return views along ``dim``: nearly equal sections, or cut before the given indices.

    Example:
        >>> import distgrad as dg
        >>> [len(part) for part in dg.tensor_split(dg.arange(7), 3)]
        [3, 2, 2]
    """
    where = indices_or_sections
    try:
        if not input.array.ndim:
            raise ShapeError(
                "tensor_split expected at least a 1-dimensional tensor, but got one with 0 dims"
            )
        total = input.array.shape[wrap_dim(dim, input.array.ndim)]
        if isinstance(where, Tensor):
            if where.array.dtype != numpy.int64 or where.array.ndim > 1:
                raise DtypeError(
                    "tensor_split expected tensor_indices_or_sections to be an int64 tensor of at "
                    f"most one dimension, but got {where._brief()}"
                )
            where = where.tolist()
        if isinstance(where, int) and where <= 0:
            raise ShapeError(f"number of sections must be larger than 0, got {where}")
    except Exception as error:
        recover("tensor_split", error, {"input": input}, {"indices_or_sections": where, "dim": dim})
    if isinstance(where, int):
        short, longer = divmod(total, where)
        sizes = [short + 1] * longer + [short] * (where - longer)
        return tuple(split(input, sizes, dim))
    bounds = [0, *(slice(None, i).indices(total)[1] for i in where), total]
    return tuple(_part(input, dim, a, max(b - a, 0)) for a, b in itertools.pairwise(bounds))


def _part(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    index: list[Any] = [slice(None)] * input.array.ndim
    index[dim] = slice(start, start + length)
    return input[tuple(index)]


def hsplit(input: Tensor, indices_or_sections: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Return views cut along columns (a vector: along its only dimension)."""
    return _split_along("hsplit", input, indices_or_sections, min(input.array.ndim - 1, 1), 1)


def vsplit(input: Tensor, indices_or_sections: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Return views cut along rows."""
    return _split_along("vsplit", input, indices_or_sections, 0, 2)


def dsplit(input: Tensor, indices_or_sections: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Return views cut along the third dimension."""
    return _split_along("dsplit", input, indices_or_sections, 2, 3)


def _split_along(
    name: str, input: Tensor, where: int | Sequence[int], dim: int, least: int
) -> tuple[Tensor, ...]:
    shape = input.array.shape
    error = None
    if len(shape) < least:
        error = ShapeError(
            f"requires a tensor with at least {least} dimension, "
            f"but got a tensor with {len(shape)} dimensions"
        )
    elif isinstance(where, int) and (where <= 0 or shape[dim] % where):
        error = ShapeError(
            f"attempting to split along dimension {dim}, but the size of the dimension "
            f"{shape[dim]} is not divisible by the split_size {where}"
        )
    if error is not None:
        recover(name, error, {"input": input}, {"indices_or_sections": where})
    return tensor_split(input, where, dim)


@takes_names
def unsafe_split(
    tensor: Tensor, split_size: int | Sequence[int], dim: int = 0
) -> tuple[Tensor, ...]:
    """Return what ``split`` does; the parts may be changed in place."""
    parts, start = [], 0
    for part in split(tensor.detach(), split_size, dim):
        length = part.array.shape[dim]
        parts.append(independent(narrow(tensor, dim, start, length)))
        start += length
    return tuple(parts)


@takes_names
def split_with_sizes(input: Tensor, split_sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Return views of the given sizes along ``dim``."""
    return tuple(split(input, list(split_sizes), dim))


@takes_names
def unsafe_split_with_sizes(
    input: Tensor, split_sizes: Sequence[int], dim: int = 0
) -> tuple[Tensor, ...]:
    """Return what ``split_with_sizes`` does; the parts may be changed in place."""
    return unsafe_split(input, list(split_sizes), dim)


def _split_method(self: Tensor, split_size: int | Sequence[int], dim: int = 0) -> Any:
    """Return views along ``dim``: of one size (the last may be shorter), or of the given sizes."""
    return split(self, split_size, dim)


@takes_names
def unsafe_chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Return what ``chunk`` does; the parts may be changed in place."""
    sizes = [part.array.shape[dim] for part in chunk(input.detach(), chunks, dim)]
    return unsafe_split(input, sizes, dim)


# ---------------------------------------------------------------------- grids
def meshgrid(*tensors: Tensor, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Return the coordinates of the grid over vectors: each expanded to the shape of all.

    Args:
        tensors: vectors (or one list of them).
        indexing: "ij": the first vector varies along the first dimension; "xy": along the second.

    Differs from PyTorch: leaving out ``indexing`` gives no warning.
    """
    many = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    if indexing not in ("ij", "xy"):
        error = ShapeError(
            f'torch.meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}'
        )
        recover("meshgrid", error, {"tensors": list(many)}, {"indexing": indexing})
    try:
        _check_grid(many)
    except Exception as error:
        recover("meshgrid", error, {"tensors": list(many)}, {"indexing": indexing})
    order = [1, 0, *range(2, len(many))] if indexing == "xy" and len(many) > 1 else None
    shape = [t.array.size for t in many]
    if order:
        shape = [shape[d] for d in order]
    grids = []
    for place, t in enumerate(many):
        own = [1] * len(many)
        own[order[place] if order else place] = -1
        grids.append(expand(reshape(t, tuple(own)), tuple(shape)))
    return tuple(grids)


def _check_grid(tensors: Sequence[Tensor]) -> None:
    for t in tensors:
        if t.array.ndim > 1:
            raise ShapeError(f"Expected 0D or 1D tensor in the tensor list but got: {t._brief()}")
        if t.array.dtype != tensors[0].array.dtype:
            raise DtypeError("meshgrid expects all tensors to have the same dtype")


def _check_vector(name: str, input: Tensor) -> None:
    if input.array.ndim != 1:
        error = ShapeError(f"Expect a 1D vector, but got shape {list(input.array.shape)}")
        recover(name, error, {"input": input}, {})


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """Return all combinations of one element from each vector, one row each."""
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tuple(tensors[0])
    for vector in tensors:
        _check_vector("cartesian_prod", vector)
    if len(tensors) == 1:
        return tensors[0]
    return stack([reshape(g, (-1,)) for g in meshgrid(*tensors)], 1)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """Return all choices of ``r`` elements of a vector in its order, one row each."""
    _check_vector("combinations", input)
    if r < 0:
        error = ShapeError(f"Expect a non-negative number, but got {r}")
        recover("combinations", error, {"input": input}, {"r": r})
    count = input.array.size
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(count), r))
    if not rows or not r:
        return reshape(input[:0], (0, r) if r else (0,))
    return input[wrap(numpy.asarray(rows))]


for _function in (
    chunk,
    dsplit,
    hsplit,
    split_with_sizes,
    tensor_split,
    unsafe_chunk,
    unsafe_split,
    unsafe_split_with_sizes,
    vsplit,
):
    as_method(_function)
del _function
as_method(_split_method, "split")
