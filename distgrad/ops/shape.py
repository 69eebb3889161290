"""Shapes: views, joins and splits.  What can share memory with its operand does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, real, unary
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape


@op("linear", samples=unary(), view=True, method=False, reference="clone",
    d_input=lambda g: g)  # fmt: skip
def alias(xp: Namespace, input: Tensor) -> Array:
    """Return the same elements: a view with a history of its own."""
    return input[...]  # type: ignore[index]


@op("linear", samples=unary(), reference="clone", d_input=lambda g: g)
def clone(xp: Namespace, input: Tensor) -> Array:
    """Return a copy that gradients flow through."""
    return xp.array(input, copy=True)


@op(
    "linear",
    samples=[],
    method=False,
    node="ToCopyBackward0",
    d_input=lambda F, g, input: F.to_dtype(g, _dtype_of(input)),
)
def to_dtype(xp: Namespace, input: Tensor, dtype: Any) -> Array:
    """Return a copy in another dtype (a ``numpy.dtype``)."""
    return xp.astype(input, dtype)


def _dtype_of(x: Any) -> Any:
    return x.array.dtype if isinstance(x, Tensor) else x.dtype


@op(
    "linear",
    samples=[case(real(3, 4), shape=(2, 6)), case(real(3, 4), shape=(-1,)),
             case(real(1), shape=())],
    view=True,
    method="*shape",
    d_input=lambda F, g, input_shape: F.reshape(g, input_shape),
)  # fmt: skip
def reshape(xp: Namespace, input: Tensor, shape: Shape) -> Array:
    """Return the same elements in a new shape; one entry may be -1.

    A view where the memory's order allows it, else a copy.
    """
    return xp.reshape(input, shape)


@op(
    "linear",
    samples=[case(real(3, 1), size=(2, 3, 4)), case(real(3), size=(-1,)), case(real(), size=(2,))],
    view=True,
    method="*size",
    d_input=lambda F, g, input_shape: F.sum_to_size(g, input_shape),
)  # fmt: skip
def expand(xp: Namespace, input: Tensor, size: Shape) -> Array:
    """Return a view that repeats dimensions of length 1; -1 keeps a length."""
    lead = len(size) - input.ndim
    shape = tuple(input.shape[i - lead] if n == -1 else n for i, n in enumerate(size))
    return xp.broadcast_to(input, shape)


@op(
    "linear",
    samples=[case(real(2, 3, 4), size=(3, 1)), case(real(3), size=()), case(real(2), size=(2,))],
    method="*size",
    d_input=lambda F, g, input_shape: F.expand(g, input_shape),
)
def sum_to_size(xp: Namespace, input: Tensor, size: Shape) -> Array:
    """Return the sum over the dimensions that broadcasting from ``size`` would have repeated."""
    return xp.sum_to_shape(input, tuple(size))


@op("linear", samples=[case(real(2, 3)), case(real(4, 2, 3))], view=True, method=False,
    reference=lambda torch, x: x.mT, node="TransposeBackward0", d_input=lambda F, g: F.mT(g))  # fmt: skip
def mT(xp: Namespace, input: Tensor) -> Array:
    """Return the last two dimensions swapped."""
    return xp.swapaxes(input, -1, -2)


@op(
    "linear",
    samples=[case([real(2, 3), real(1, 3)]), case([real(2, 3), real(2, 1), real(2, 2)], dim=-1)],
    method=False,
    d_tensors=lambda F, g, tensors_shape, dim: _pieces(F, g, tensors_shape, dim),
)
def cat(xp: Namespace, tensors: Sequence[Tensor], dim: int = 0) -> Array:
    """Return the tensors joined along dimension ``dim``."""
    return xp.concatenate(tensors, axis=dim)


def _pieces(F: Any, g: Any, shapes: list[Shape], dim: int) -> list[Any]:
    pieces, start = [], 0
    for shape in shapes:
        pieces.append(F.narrow(g, dim, start, shape[dim]))
        start += shape[dim]
    return pieces


@op(
    "linear",
    samples=[case(real(3, 4), dim=1, start=1, length=2), case(real(3, 4), dim=-2, start=0, length=3)],
    view=True,
    d_input=lambda F, g, input_shape, dim, start: F.narrow_backward(g, input_shape, dim, start),
)
def narrow(xp: Namespace, input: Tensor, dim: int, start: int, length: int) -> Array:
    """Return the view of ``length`` entries from ``start`` along ``dim``."""
    index = [slice(None)] * input.ndim
    index[dim] = slice(start, start + length)
    return input[tuple(index)]  # type: ignore[index]


@op(
    "linear",
    samples=[case(real(3, 2), input_size=(3, 4), dim=1, start=1)],
    method=False,
    reference="none",
    d_input=lambda F, g, input_shape, dim, start: F.narrow(g, dim, start, input_shape[dim]),
)
def narrow_backward(
    xp: Namespace, input: Tensor, input_size: Shape, dim: int, start: int
) -> Array:
    """Return zeros of ``input_size`` with ``input`` written from ``start`` along ``dim``."""
    out = xp.zeros(input_size, input.dtype)
    index = [slice(None)] * len(input_size)
    index[dim] = slice(start, start + input.shape[dim])
    out[tuple(index)] = input
    return out


@op("linear", samples=[case(real(4, 3), split_size_or_sections=[1, 3])], outputs="*", view=True,
    reference="split",
    d_tensor=lambda F, g, dim: F.cat(g, dim))  # fmt: skip
def split(xp: Namespace, tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Array:
    """Return views of the given lengths along ``dim``."""
    return xp.split(tensor, split_size_or_sections, axis=dim)
