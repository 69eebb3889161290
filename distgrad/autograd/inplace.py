"""Changes in place, and views: tensors that share memory share one version counter.

An operation in place is the operation itself, its result written into the operand's memory, and the
operand taking over the result's history.  When the operand is a view, the history of its base is
rewritten, and every other view of that base is derived anew, so all of them stay true.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.mode import mode
from distgrad.autograd.node import Node, edge_of, freed
from distgrad.autograd.saving import switch
from distgrad.backend.device import array_namespace, working_on
from distgrad.backend.dtype import can_cast
from distgrad.backend.forms import overwriting
from distgrad.errors import DtypeError, GradError, ShapeError
from distgrad.tensor import UNTRACKED, Tensor, clock, is_inference, ndarray, shared_of, wrap


# ---------------------------------------------------------------------- views
def link_view(
    out: Tensor, base: Tensor, array: Any, function: Callable[..., Any], options: tuple[Any, ...]
) -> None:
    """Note that ``out`` is ``function(base, *options)`` on the same memory, if it is."""
    memory = out.array.base
    if memory is None:  # a copy had to be made; but CuPy's strided views have no base either
        if type(array) is ndarray or not array_namespace(array).may_share_memory(out.array, array):
            return
    elif memory is not array and memory is not array.base:
        if not array_namespace(array).may_share_memory(out.array, array):
            return
    shared = out._shared = shared_of(base)
    if shared is UNTRACKED:
        return
    out._base = base if base._base is None else base._base
    out._view = (base, function, options)  # type: ignore[attr-defined]
    if not mode.grad:
        out._unseen = shared.count
        out._requires = base._requires
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


def independent(view: Tensor) -> Tensor:
    """Return ``view`` as a tensor of its own: changes of its memory concern nobody else."""
    view._base = view._shared = view._unseen = None
    return view


class _Pick:
    """One output of an operation with several."""

    __slots__ = ("function", "index")

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self.function, self.index = function, index

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)[self.index]


Steps = list[tuple[Callable[..., Any], tuple[Any, ...]]]


def steps_of(view: Tensor) -> Steps:
    """Return the operations and options that make ``view`` of its base, in order."""
    steps: Steps = []
    while view._base is not None:
        view, function, options = view._view  # type: ignore[attr-defined]
        steps.append((function, options))
    return steps[::-1]


def follow(steps: Steps, base: Tensor) -> Tensor:
    """Return the view that ``steps`` make of ``base``."""
    for function, options in steps:
        base = function(base, *options)
    return base


class CopySlices(Node):
    """A base after a change in place of one of its views: (old base, new values of the view).

    It keeps the steps from the base to the view, not the tensors, whose history it is part of.
    What travels is the conjugate of a gradient (see ``engine``); the part of it that a view between
    real and complex numbers shows is taken from the gradient itself.
    """

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the base's gradient without the view's part, and the view's part."""
        steps, order = self._kept()
        rest = _copied(g, order)
        part = follow(steps, wrap(rest)).array
        if part.dtype == rest.dtype:
            of_view = part.copy()
            part[...] = 0
            return rest, of_view
        xp = array_namespace(rest)
        xp.conj(rest, out=rest)
        of_view = xp.conj(part)
        part[...] = 0
        return xp.conj(rest, out=rest), of_view

    def pull_graph(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the same as tensors with a history."""
        steps, order = self._kept()
        rest = F.clone(g)
        if not hasattr(rest.array, "below"):
            rest.array = _copied(rest.array, order)
        part = follow(steps, rest)
        turned = part.array.dtype != rest.array.dtype
        if turned:
            rest = F.conj(rest)
            part = follow(steps, rest)
        of_view = F.conj(part) if turned else F.clone(part)
        assign(part, F.zero(part), "zero_")
        return F.conj(rest) if turned else rest, of_view

    def _kept(self) -> tuple[Any, ...]:
        if self.saved is None:
            raise freed(self)
        return self.saved


def _order(array: Any) -> tuple[int, ...]:
    """Return the dimensions from the one with the longest stride to the one with the shortest."""
    return tuple(sorted(range(array.ndim), key=lambda d: -array.strides[d]))


def _copied(array: Any, order: tuple[int, ...]) -> Any:
    """Return a copy whose dimensions lie in memory in ``order``, so that views of it are views."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return array.transpose(order).copy("C").transpose(inverse)


# ---------------------------------------------------------------------- changes in place
def in_place(function: Callable[..., Any], name: str) -> Callable[..., Tensor]:
    """Return the method ``name`` that writes ``function(self, …)`` into ``self``."""

    straight = _needs_no_operand(function)

    def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
        refuse_leaf(self, name)
        if self._base is not None and self._node is not None and self._node._hooks:
            _leave_hooks(self)
        if switch.users and mode.grad:  # hooks may pack what is changed below
            return assign(self, function(_values_before(self), *args, **options), name)
        if straight and type(self.array) is not ndarray and self._base is None:
            with overwriting(self.array):
                result = function(self, *args, **options)
        else:
            result = function(self, *args, **options)
        if result._node is not None:
            _keep_old_values(self, result._node.owner)
        return assign(self, result, name)

    method.__name__ = name
    method.__wrapped__ = function  # type: ignore[attr-defined]  # its signature is the method's
    method.__doc__ = f"Write ``{function.__name__}(self, …)`` into this tensor and return it."
    return method


def _needs_no_operand(function: Callable[..., Any]) -> bool:
    """Return whether backward of an operation does without its first operand."""
    op = getattr(function, "op", None)
    return op is not None and op.operands[0].name not in op.plan.kept


def _keep_old_values(target: Tensor, node: Any) -> None:
    """Give ``node`` a copy of ``target`` to save, where its derivative needs it as first operand.

    Where ``target`` is another operand too, it is refused in backward as changed, as in PyTorch.
    """
    saved = node._held
    if saved and saved[0] is target and node.op.plan.kept[0] == node.op.operands[0].name:
        node.saved = (_values_before(target), *saved[1:])


def _values_before(target: Tensor) -> Tensor:
    """Return a copy of ``target`` with its place in the graph."""
    with working_on(target.array):
        old = wrap(target.array.copy())
    old._requires, old._node = target._requires, edge_of(target)
    return old


def refuse_leaf(target: Tensor, name: str) -> None:
    """Raise when ``target`` may not be changed in place while operations are recorded.

    That is a leaf that requires grad or a view of one, a view made under ``no_grad`` or in a custom
    Function, and one of several views made by one operation.
    """
    for before_write in switch.writers:
        before_write(target)
    refuse_inference(target, name)
    if not mode.grad:
        return
    if target._requires:
        _refuse_view(target, name)
    elif target._unseen is not None and target._base is not None and target._base._requires:
        raise _refused(target, name, _made_where(target))


def refuse_inference(target: Tensor, name: str) -> None:
    """Raise when ``target`` was made in inference mode, outside of that mode."""
    if not mode.inference and is_inference(target):
        raise _refused(target, name, _INFERENCE)


def _refuse_view(target: Tensor, name: str) -> None:
    """Raise when ``target`` may not get a history by a change in place."""
    base = target if target._base is None else target._base
    made_by = target.__dict__.get("_custom_view")
    if made_by is not None:
        raise _refused(target, name, made_by)
    if target._unseen is not None and base._requires:
        raise _refused(target, name, _made_where(target))
    if base is target and base._node is None and base._requires:
        raise _refused(target, name, _LEAF.format("a leaf Variable"))
    step = target
    while step._base is not None:
        how: Any = step._view  # type: ignore[attr-defined]
        above, function, _ = how
        if type(function) is _Pick:
            of: Any = function.function
            node = of.op.node.__name__.removesuffix("Backward0")
            raise _refused(target, name, _ONE_OF_SEVERAL.format(function.index, node))
        if above._base is not None and above._node is None and above._requires:
            raise _refused(target, name, _LEAF_BETWEEN)
        step = above
    if base._node is None and base._requires:
        raise _refused(target, name, _LEAF.format("a view of a leaf Variable"))


def _leave_hooks(view: Tensor) -> None:
    """Derive ``view`` anew: as in PyTorch, hooks on it do not concern what it becomes."""
    old, again = view._node, follow(steps_of(view), view._base)  # type: ignore[arg-type]
    view._node = again._node
    if old._retain is not None and again._node is not None:
        again._node._hooks = {}
        again._node._retain, old._retain = old._retain, None


_LEAF = (
    "{} that requires grad is being used in an in-place operation. Use it under dg.no_grad() or "
    "change a clone()"
)
_UNSEEN = (
    "A view was created in {} mode and is being modified inplace {}; move both inside the block, "
    "or both outside"
)
_INFERENCE = (
    "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a "
    "clone() to get a normal tensor before doing inplace update"
)


def _made_where(view: Tensor) -> str:
    """Say in which mode an unrecorded view was made, that is to be changed now."""
    if view._inference is not None:
        return _UNSEEN.format("inference", "in normal mode")
    return _UNSEEN.format("no_grad", "with grad mode enabled")


_LEAF_BETWEEN = (
    "A view was created in no_grad mode and is being modified inplace with grad mode enabled: a "
    "view of a view that became a leaf is being changed; do all of it inside the no_grad block"
)
_ONE_OF_SEVERAL = (
    "Output {} of {} is a view and is being modified inplace. This view is the output of a "
    "function that returns multiple views. Such functions do not allow the output views to be "
    "modified inplace; use an out-of-place operation, or index the tensor instead of splitting it"
)


def _refused(target: Tensor, name: str, why: str) -> GradError:
    return GradError(f"{name}({target._brief()}): {why}")


def assign(target: Tensor, result: Tensor, name: str) -> Tensor:
    """Write ``result`` into ``target``'s memory; ``target`` takes over its history."""
    _check(target, result, name)
    if result._requires and not target._requires and mode.grad:
        _refuse_view(target, name)
    if type(target.array) is type(result.array) is ndarray:
        target.array[...] = result.array
    else:
        with working_on(target.array):
            _store(target, result)
    shared_of(target).bump()
    if mode.grad and (target._requires or result._requires):
        adopt(target, edge_of(result), result._requires)
    return target


def adopt(target: Tensor, edge: Any, requires_grad: bool) -> None:
    """Let ``target``, whose memory was written, have the history that ``edge`` leads to."""
    base = target if target._base is None else target._base
    if base is target:
        _move(base, edge, requires_grad)
    else:
        node = CopySlices()
        node._edges, node._shape = (edge_of(base), edge), base.array.shape
        node.clock, node.saved = clock.tick(), (steps_of(target), _order(base.array))
        _move(base, node, True)
    _derive_views(base)


def _move(tensor: Tensor, edge: Any, requires_grad: bool) -> None:
    """Set the history of ``tensor``; what ``retain_grad`` asked for moves along."""
    old = tensor._node
    tensor._node, tensor._requires = edge, requires_grad
    if tensor._base is None and tensor._shared is not None:  # later changes concern the new node
        tensor._shared.node = None if edge is None or edge._leaf else weakref.ref(edge.owner)
    if tensor._retains and old is not None and edge is not None:
        keep, old._retain = old._retain, None
        if edge._hooks is None:
            edge._hooks = {}
        edge._retain = keep


def detach_(self: Tensor) -> Tensor:
    """Cut this tensor off from its history, in place, and return it.

    Raises:
        GradError: it is a view, whose base has a history of its own.
    """
    if self._base is not None and self._requires:
        raise GradError(
            f"detach_({self._brief()}): Can't detach views in-place; use detach() instead"
        )
    if self._node is not None:
        clock.changed = self._detached_at = clock.tick()
        if self._shared is not None:
            self._shared.node = None
    if hasattr(self.array, "below"):  # forward mode or vmap: a tangent goes too
        self.array = self.array.detached().array
    self._node, self._requires = None, False
    return self


store_traced: list[Callable[[Tensor, Tensor], None]] = []  # autograd.traced puts its own here


def _store(target: Tensor, result: Tensor) -> None:
    if hasattr(target.array, "below") or hasattr(result.array, "below"):
        store_traced[0](target, result)
        return
    if result.array is target.array:  # a kernel has put it there
        return
    target.array[...] = result.array
    if type(target.array) is type(result.array):
        _save_there(target, result)


def _save_there(target: Tensor, result: Tensor) -> None:
    """Let the node of ``result`` save its output as it is in ``target``: once, not twice.

    Later changes of ``target`` are then refused in backward, as in PyTorch.  Of views the node
    would not hear, so they keep a copy.
    """
    node, array = result._node, result.array
    saved = getattr(node, "_held", None)
    if not saved or target._base is not None or target.array.dtype != array.dtype:
        return
    if any([value is array for value in saved]):
        node.saved = tuple([target.array if value is array else value for value in saved])


def refuse_expanded(array: Any) -> None:
    """Raise for an array whose elements share memory: read-only in NumPy, not so in CuPy."""
    writeable = getattr(array.flags, "writeable", None)
    if writeable is None:
        writeable = all(step or n < 2 for step, n in zip(array.strides, array.shape, strict=True))
    if not writeable:
        raise ShapeError(
            "unsupported operation: more than one element of the written-to tensor refers to a "
            "single memory location. Please clone() the tensor before performing the operation"
        )


def _derive_views(base: Tensor) -> None:
    for ref in list(shared_of(base).views or ()):
        view = ref()
        if view is None or view._base is not base:
            continue
        if view._unseen is not None:  # nobody knows what it should be now; ``grad_fn`` says so
            view._requires = base._requires
        else:
            again = follow(steps_of(view), base)
            _move(view, again._node, again._requires)


def _check(target: Tensor, result: Tensor, name: str) -> None:
    have, new = target.array, result.array
    try:
        refuse_expanded(have)
    except ShapeError as error:
        raise ShapeError(f"{name}({target._brief()}): {error}") from None
    if have.shape != new.shape:
        raise ShapeError(
            f"{name}({target._brief()}): output with shape {list(have.shape)} doesn't match the "
            f"broadcast shape {list(new.shape)}; use the operation that is not in place"
        )
    if have.dtype != new.dtype and not can_cast(result.dtype, target.dtype):
        raise DtypeError(
            f"{name}({target._brief()}): result type {new.dtype} can't be cast to the desired "
            f"output type {have.dtype}; convert the tensor first (.to(dtype))"
        )
