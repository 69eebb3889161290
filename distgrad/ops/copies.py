"""What views show, in memory of its own: ``permute_copy`` beside ``permute``, and so on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from distgrad.autograd.declare import as_method, recover
from distgrad.autograd.outputs import takes_out
from distgrad.backend.layout import contiguous_format
from distgrad.errors import ShapeError
from distgrad.ops.complex import view_as_complex, view_as_real
from distgrad.ops.index import select, slice_of
from distgrad.ops.join import split, split_with_sizes, unbind
from distgrad.ops.shape import (
    alias,
    clone,
    diagonal,
    expand,
    narrow,
    permute,
    squeeze,
    t,
    transpose,
    unfold,
    unsqueeze,
    view_of,
)
from distgrad.ops.storage import as_strided
from distgrad.tensor import Tensor

__all__ = [
    "alias_copy", "as_strided_copy", "detach_copy", "diagonal_copy", "expand_copy", "narrow_copy",
    "permute_copy", "select_copy", "slice_copy", "split_copy",
    "split_with_sizes_copy", "squeeze_copy", "t_copy", "transpose_copy", "unbind_copy",
    "unfold_copy", "unsqueeze_copy", "view_as_complex_copy", "view_as_real_copy", "view_copy",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


def _copying(view: Callable[P, R], name: str) -> Callable[P, R]:
    """Return the function ``name``, which copies what ``view`` returns and takes ``out``."""

    @functools.wraps(view)
    def copied(*args: Any, **options: Any) -> Any:
        found: Any = view(*args, **options)
        return _copy(found) if isinstance(found, Tensor) else tuple(_copy(x) for x in found)

    copied.__name__ = copied.__qualname__ = name
    copied.__module__ = __name__
    copied.__doc__ = f"Return what ``{name.removesuffix('_copy')}`` returns, in memory of its own."
    copied.__dict__.pop("op", None)  # it is a composite
    return takes_out(copied)


def _copy(view: Tensor) -> Tensor:
    return clone(view, memory_format=contiguous_format)


def _detached(input: Tensor) -> Tensor:
    return input.detach()


@takes_out
def narrow_copy(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return a copy of ``length`` entries from ``start`` along ``dim``."""
    if dim >= input.array.ndim:
        error = ShapeError(f"Expected dim < {input.array.ndim}, the number of dimensions")
        recover("narrow_copy", error, {"input": input}, {"dim": dim})
    return _copy(narrow(input, dim, start, length))


alias_copy = _copying(alias, "alias_copy")
as_strided_copy = _copying(as_strided, "as_strided_copy")
detach_copy = _copying(_detached, "detach_copy")
diagonal_copy = _copying(diagonal, "diagonal_copy")
expand_copy = _copying(expand, "expand_copy")
permute_copy = _copying(permute, "permute_copy")
select_copy = _copying(select, "select_copy")
slice_copy = _copying(slice_of, "slice_copy")
split_copy = _copying(split, "split_copy")
split_with_sizes_copy = _copying(split_with_sizes, "split_with_sizes_copy")
squeeze_copy = _copying(squeeze, "squeeze_copy")
t_copy = _copying(t, "t_copy")
transpose_copy = _copying(transpose, "transpose_copy")
unbind_copy = _copying(unbind, "unbind_copy")
unfold_copy = _copying(unfold, "unfold_copy")
unsqueeze_copy = _copying(unsqueeze, "unsqueeze_copy")
view_as_complex_copy = _copying(view_as_complex, "view_as_complex_copy")
view_as_real_copy = _copying(view_as_real, "view_as_real_copy")
view_copy = _copying(view_of, "view_copy")

as_method(narrow_copy)
