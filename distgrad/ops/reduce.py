"""Reductions over one, several or all dimensions."""

from __future__ import annotations

from distgrad.autograd.declare import op
from distgrad.autograd.samples import reductions
from distgrad.tensor import Tensor
from distgrad.typing import Array, Dim, Namespace, Shape


def kept_shape(shape: Shape, dim: Dim) -> Shape:
    """Return ``shape`` with 1 in the reduced dimensions."""
    if dim is None:
        return (1,) * len(shape)
    dims = {d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim)} if shape else set()
    return tuple(1 if i in dims else n for i, n in enumerate(shape))


@op(
    "linear",
    samples=reductions(),
    d_input=lambda F, g, input_shape, dim, keepdim: F.expand(
        g if keepdim or dim is None else F.reshape(g, kept_shape(input_shape, dim)), input_shape
    ),
)
def sum(xp: Namespace, input: Tensor, dim: Dim = None, keepdim: bool = False) -> Array:
    """Return the sum over ``dim`` (all dimensions by default)."""
    return xp.add.reduce(input, axis=dim if not isinstance(dim, list) else tuple(dim), keepdims=keepdim)
