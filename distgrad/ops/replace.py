"""Copies of a tensor in which one part, that a view would show, is replaced."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, real
from distgrad.errors import ShapeError
from distgrad.ops.index import select
from distgrad.ops.index_reader import ALL
from distgrad.ops.shape import diagonal, slice_view, wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["diagonal_scatter", "select_scatter", "slice_scatter"]


def _replaced(xp: Namespace, input: Any, src: Any, view: Any, *options: Any) -> Array:
    """Return a copy of ``input`` in which ``view(copy, *options)`` holds ``src``."""
    out = xp.array(input, copy=True)
    part = view.op.forward(xp, out, *options)
    if part.shape != src.shape:
        raise ShapeError(
            "expected src to have a size equal to the slice of self. src size = "
            f"{list(src.shape)}, slice size = {list(part.shape)}"
        )
    part[...] = src
    return out


@op(
    "linear",
    samples=[case(real(3, 4), real(4), dim=0, index=-1), case(real(3, 4), real(3), dim=1, index=2)],
    reference=lambda torch, x, src, dim, index: torch.select_scatter(x, src, dim, index),
    d_input=lambda F, g, dim, index: F.select_scatter(
        g, F.zero(F.select(g, dim, index)), dim, index
    ),
    d_src=lambda F, g, dim, index: F.select(g, dim, index),
)
def select_scatter(xp: Namespace, input: Tensor, src: Tensor, dim: int, index: int) -> Array:
    """Return ``input`` with ``src`` as entry ``index`` along ``dim``."""
    return _replaced(xp, input, src, select, dim, index)


def _index(ndim: int, dim: int, start: int | None, end: int | None, step: int) -> tuple[Any, ...]:
    if step <= 0:
        raise ShapeError(f"step must be positive, got {step}")
    return (*(ALL,) * wrap_dim(dim, ndim), slice(start, end, step), ...)


@op(
    "linear",
    samples=[case(real(4, 3), real(2, 3), start=1, end=3),
             case(real(2, 5), real(2, 2), dim=1, start=-4, step=2),
             case(real(3), real(3))],
    reference=lambda torch, x, src, **options: torch.slice_scatter(x, src, **options),
    d_input=lambda F, g, dim, start, end, step: F.slice_scatter(
        g, F.zero(F.slice_view(g, _index(g.ndim, dim, start, end, step))), dim, start, end, step
    ),
    d_src=lambda F, g, dim, start, end, step: F.slice_view(
        g, _index(g.ndim, dim, start, end, step)
    ),
)  # fmt: skip
def slice_scatter(
    xp: Namespace,
    input: Tensor,
    src: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    """Return ``input`` with ``src`` as the slice ``start:end:step`` along ``dim``."""
    return _replaced(xp, input, src, slice_view, _index(input.ndim, dim, start, end, step))


@op(
    "linear",
    samples=[case(real(3, 3), real(3)), case(real(2, 3, 4), real(4, 2), offset=1, dim1=0, dim2=1)],
    reference=lambda torch, x, src, **options: torch.diagonal_scatter(x, src, **options),
    d_input=lambda F, g, offset, dim1, dim2: F.diagonal_scatter(
        g, F.zero(F.diagonal(g, offset, dim1, dim2)), offset, dim1, dim2
    ),
    d_src=lambda F, g, offset, dim1, dim2: F.diagonal(g, offset, dim1, dim2),
)
def diagonal_scatter(
    xp: Namespace, input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Array:
    """Return ``input`` with ``src`` on a diagonal."""
    return _replaced(xp, input, src, diagonal, offset, dim1, dim2)
