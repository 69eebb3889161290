"""Changes in place, and views: tensors that share memory share one version counter.

An operation in place is the operation itself, its result written into the operand's memory, and the
operand taking over the result's history.  When the operand is a view, the history of its base is
rewritten, and every other view of that base is derived anew, so all of them stay true.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.graph import Node, edge_of, freed
from distgrad.autograd.mode import mode
from distgrad.errors import DtypeError, GradError, ShapeError
from distgrad.tensor import Tensor, clock, shared_of, wrap


# ---------------------------------------------------------------------- views
def link_view(
    out: Tensor, base: Tensor, array: Any, function: Callable[..., Any], options: tuple[Any, ...]
) -> None:
    """Note that ``out`` is ``function(base, *options)`` on the same memory, if it is."""
    memory = out.array.base
    if memory is None or (memory is not array and memory is not array.base):
        return  # a copy had to be made
    shared = out._shared = shared_of(base)
    out._base = base if base._base is None else base._base
    out._view = (base, function, options)  # type: ignore[attr-defined]
    if shared.views is None:
        shared.views = []
    elif len(shared.views) > 64 and len(shared.views) & (len(shared.views) - 1) == 0:
        shared.views = [v for v in shared.views if v() is not None]
    shared.views.append(weakref.ref(out))


def link_views(
    outs: Sequence[Tensor], base: Tensor, array: Any, function: Callable[..., Any], options: Any
) -> None:
    """Link every output of an operation that gives several views."""
    for index, out in enumerate(outs):
        link_view(out, base, array, _Pick(function, index), options)


class _Pick:
    """One output of an operation with several."""

    __slots__ = ("function", "index")

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self.function, self.index = function, index

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)[self.index]


def replay(view: Tensor, base: Tensor) -> Tensor:
    """Return what ``view`` is of its base, of another ``base`` of the same shape."""
    steps, origin = [], view
    while origin._base is not None:
        parent, function, options = origin._view  # type: ignore[attr-defined]
        steps.append((function, options))
        origin = parent
    for function, options in reversed(steps):
        base = function(base, *options)
    return base


class CopySlices(Node):
    """A base after a change in place of one of its views: (old base, new values of the view)."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the base's gradient without the view's part, and the view's part."""
        (view,) = self._view()
        rest = g.copy()
        part = replay(view, wrap(rest)).array
        of_view = part.copy()
        part[...] = 0
        return rest, of_view

    def pull_graph(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the same as tensors with a history."""
        (view,) = self._view()
        rest = F.clone(g)
        part = replay(view, rest)
        of_view = F.clone(part)
        assign(part, F.mul(part, 0), "zero_")
        return rest, of_view

    def _view(self) -> tuple[Any, ...]:
        if self.saved is None:
            raise freed(self)
        return self.saved


# ---------------------------------------------------------------------- changes in place
def in_place(function: Callable[..., Any], name: str) -> Callable[..., Tensor]:
    """Return the method ``name`` that writes ``function(self, …)`` into ``self``."""

    def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
        refuse_leaf(self, name)
        return assign(self, function(self, *args, **options), name)

    method.__name__ = name
    method.__doc__ = f"Write ``{function.__name__}(self, …)`` into this tensor and return it."
    return method


def refuse_leaf(target: Tensor, name: str) -> None:
    """Raise when a leaf that requires grad, or a view of one, would be changed and recorded."""
    if not mode.grad or not target.requires_grad:
        return
    base = target if target._base is None else target._base
    if base._node is None and base.requires_grad:
        what = "a leaf Variable" if base is target else "a view of a leaf Variable"
        raise GradError(
            f"{name}({target._brief()}): {what} that requires grad is being used in an in-place "
            "operation; use it under torch.no_grad() or change a clone()".replace("torch", "dg")
        )


def assign(target: Tensor, result: Tensor, name: str) -> Tensor:
    """Write ``result`` into ``target``'s memory; ``target`` takes over its history."""
    _check(target, result, name)
    target.array[...] = result.array
    shared_of(target).bump()
    if not mode.grad or not (target.requires_grad or result.requires_grad):
        return target
    base = target if target._base is None else target._base
    if base is target:
        base._node, base.requires_grad = result._node or edge_of(result), result.requires_grad
    else:
        node = CopySlices()
        node._edges, node._shape = (edge_of(base), edge_of(result)), base.array.shape
        node.clock, node.saved = clock.now, (target,)
        base._node, base.requires_grad = node, True
    _derive_views(base)
    return target


def _derive_views(base: Tensor) -> None:
    for ref in list(shared_of(base).views or ()):
        view = ref()
        if view is not None and view._base is base:
            again = replay(view, base)
            view._node, view.requires_grad = again._node, again.requires_grad


def _check(target: Tensor, result: Tensor, name: str) -> None:
    have, new = target.array, result.array
    if have.shape != new.shape:
        raise ShapeError(
            f"{name}({target._brief()}): output with shape {list(have.shape)} doesn't match the "
            f"broadcast shape {list(new.shape)}; use the operation that is not in place"
        )
    if have.dtype != new.dtype and "biufc".find(have.dtype.kind) < "biufc".find(new.dtype.kind):
        if not (have.dtype.kind in "iu" and new.dtype.kind in "iu"):
            raise DtypeError(
                f"{name}({target._brief()}): result type {new.dtype} can't be cast to the desired "
                f"output type {have.dtype}; convert the tensor first (.to(dtype))"
            )
