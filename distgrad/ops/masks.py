"""Operations with masks: fill, choose and write by them, and the places of what is not zero."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import booleans, case, given, real
from distgrad.backend.device import where_it_is
from distgrad.errors import DtypeError, ShapeError
from distgrad.ops.index import check_kind, getitem, on_device, put_index
from distgrad.ops.shape import broadcast_tensors, narrow, reshape
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, TensorLike

__all__ = [
    "argwhere",
    "masked_fill",
    "masked_scatter",
    "masked_select",
    "nonzero",
    "nonzero_static",
]


# ---------------------------------------------------------------------- masks
@op(
    "linear",
    widens=False,
    samples=[case(real(3, 4), booleans(3, 4), real()), case(real(3, 4), booleans(4), real()),
             case(real(4), booleans(3, 4), real()), case(real(), booleans(2), real())],
    inplace=True,
    d_input=lambda F, g, mask: F.masked_fill(g, mask, 0),
    d_value=lambda F, g, mask: F.sum(F.mul(g, F.to_dtype(mask, _dtype_of(g)))),
)  # fmt: skip
def masked_fill(xp: Namespace, input: Tensor, mask: Tensor, value: TensorLike) -> Array:
    """Return ``input`` with ``value`` where ``mask`` is true; mask and input broadcast."""
    where: Array = mask
    if where.dtype != bool:
        raise DtypeError(
            f"masked_fill only supports boolean masks, but got mask with dtype {where.dtype}; "
            "use mask.bool()"
        )
    if xp.ndim(value):
        raise ShapeError(
            "masked_fill_ only supports a 0-dimensional value tensor, but got tensor with "
            f"{xp.ndim(value)} dimension(s); use where()"
        )
    check_kind(input, value)
    if where.shape != input.shape:
        shape = xp.broadcast_shapes(input.shape, where.shape)
        input, where = xp.broadcast_to(input, shape), xp.broadcast_to(where, shape)
        out = xp.array(input, copy=True, order="C")
    else:
        out = xp.array(input, copy=True)
    xp.copyto(out, value, where=where, casting="unsafe")
    return out


def _dtype_of(x: Any) -> Any:
    return x.array.dtype if isinstance(x, Tensor) else x.dtype


@takes_out
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """Return the elements where ``mask`` is true, in a row; mask and input broadcast."""
    input, mask = _masked("masked_select", input, mask)
    if not mask.array.ndim:
        input, mask = reshape(input, (1,)), reshape(mask, (1,))
    return getitem(input, mask)


def _masked(name: str, input: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if mask.array.dtype != bool:
        error = DtypeError(f"expected BoolTensor for mask, not {mask.array.dtype}")
        recover(name, error, {"input": input, "mask": mask}, {})
    one, other = broadcast_tensors(input, mask)
    return one, other


@where_it_is
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Return ``input`` with the first elements of ``source`` where ``mask`` is true."""
    operands = {"input": input, "mask": mask, "source": source}
    if source.array.dtype != input.array.dtype:
        recover("masked_scatter", DtypeError("input and source must have one dtype"), operands, {})
    input, mask = _masked("masked_scatter", input, mask)
    if not input.array.ndim:
        return reshape(masked_scatter(reshape(input, (1,)), mask, source), ())
    places = mask.array.nonzero()
    count = len(places[0])
    if count > source.array.size:
        error = ShapeError(
            f"the mask has {count} true elements, but source only {source.array.size}"
        )
        recover("masked_scatter", error, operands, {})
    values = narrow(reshape(source, (-1,)), 0, 0, count)
    return put_index(input, on_device(input, places), values, tuple(range(input.array.ndim)))


# ---------------------------------------------------------------------- where
@op(samples=[case(given([[1.0, 0.0], [0.0, 2.0]])), case(booleans(3)), case(given(1.0))],
    method=False, reference="nonzero")  # fmt: skip
def argwhere(xp: Namespace, input: Tensor) -> Array:
    """Return the indices of the elements that are not zero, one row each."""
    if not input.ndim:
        return xp.zeros((int(bool(input)), 0), xp.int64)
    return xp.stack(input.nonzero(), axis=1)


@op(samples=[case(given([[1.0, 0.0], [0.0, 2.0]]), size=3), case(booleans(3), size=1),
             case(given(1.0), size=2)])  # fmt: skip
def nonzero_static(xp: Namespace, input: Tensor, *, size: int, fill_value: int = -1) -> Array:
    """Return the first ``size`` rows of ``nonzero(input)``, filled up with ``fill_value``."""
    if size < 0:
        raise ShapeError(f"nonzero_static: 'size' must be an non-negative integer, got {size}")
    found = argwhere.op.forward(xp, input)[:size]  # type: ignore[attr-defined]
    out = xp.full((size, input.ndim), fill_value, xp.int64)
    out[: len(found)] = found
    return out


def nonzero(input: Tensor, *, as_tuple: bool = False, out: Tensor | None = None) -> Any:
    """Return the indices of the elements that are not zero: one row each, or a tuple by dimension.

    Example:
        >>> import distgrad as dg
        >>> dg.nonzero(dg.tensor([0, 3, 5]))
        tensor([[1],
                [2]])
    """
    if not as_tuple:
        return argwhere(input, out=out)  # type: ignore[call-arg]
    if out is not None:
        error = ShapeError("nonzero does not support the out kwarg when as_tuple is True")
        recover("nonzero", error, {"input": input}, {})
    found = argwhere(input if input.array.ndim else reshape(input, (1,))).array
    return tuple(wrap(found[:, i].copy()) for i in range(found.shape[1]))


for _function in (argwhere, masked_scatter, masked_select, nonzero, nonzero_static):
    as_method(_function)
Tensor.masked_scatter_ = in_place(masked_scatter, "masked_scatter_")  # type: ignore[method-assign]
del _function
