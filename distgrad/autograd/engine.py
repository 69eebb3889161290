"""Backward: a list of what is ready to run, never recursion.

A node runs when every node that uses its output has delivered its gradient; of several that are
ready, the one recorded last runs first, as in PyTorch.  So a leaf's ``grad`` is complete exactly
once per backward.  That is where ``register_post_accumulate_grad_hook`` fires, and where the
reducer of ``distgrad.distributed`` takes the gradient.

Note [Two worlds]
    With ``create_graph=False`` gradients are raw arrays and rules call forwards; with
    ``create_graph=True`` they are tensors, rules call operations, and the walk records a graph.

Note [Ownership of gradients]
    A rule may hand on its ``g`` or a view of it, so a gradient is added in place, or kept as
    ``leaf.grad`` without a copy, only when the engine knows that nobody else holds it: it is a sum
    made here, or a fresh array (not ``g``, no ``base``) from a rule with one output.

Note [Complex gradients]
    PyTorch's gradient of a complex number z = x + iy is dL/dx + i dL/dy.  Inside a backward its
    conjugate travels: then the rule ``g * f'(z)`` of a real function serves the holomorphic one,
    and forward mode too.  Conjugated are the roots, and what leaves for leaves, users and hooks.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from numpy import ndarray

from distgrad.autograd import saving
from distgrad.autograd.holders import is_held_once
from distgrad.autograd.mode import mode
from distgrad.autograd.node import Node, Slot, attached
from distgrad.backend.device import array_namespace, several_gpus, working_on
from distgrad.backend.layout import lie_alike
from distgrad.errors import ArgumentTypeError, GradError, ShapeError
from distgrad.tensor import Tensor, clock, wrap

Edge = Any  # Node | Slot | leaf Tensor
WRITTEN: Any = object()  # in the place of a leaf's gradient that a rule has put where it belongs


class Functions:
    """The operations by name as rules see them (``F``); filled by ``declare``."""


tensor_functions = Functions()
_array_functions: dict[Any, Functions] = {}
forwards: dict[str, Callable[..., Any]] = {}  # name -> body, filled by declare


def array_functions(xp: Any) -> Functions:
    """Return the forwards of all operations bound to the array namespace ``xp``."""
    F = _array_functions.get(xp)
    if F is None or len(vars(F)) != len(forwards):
        F = _array_functions[xp] = Functions()
        for name, body in forwards.items():
            setattr(F, name, _bound(body, xp))
    return F


def _bound(body: Callable[..., Any], xp: Any) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return body(xp, *args, **options)

    return call


class _State(threading.local):
    """The backward that this thread is in, and its callbacks; None outside."""

    callbacks: list[Callable[[], None]] | None = None
    walk: _Walk | None = None
    depth = 0  # of backwards inside backwards


_state = _State()


def in_backward() -> bool:
    """Return whether this thread is inside a backward."""
    return _state.callbacks is not None


def queue_callback(function: Callable[[], None]) -> None:
    """Call ``function()`` once at the end of the backward that is running in this thread.

    Of the outermost one, where a checkpoint or a Function runs another inside.
    """
    if _state.callbacks is None:
        raise GradError("queue_callback(): no backward is running; call it from a gradient hook")
    _state.callbacks.append(function)


def run(
    roots: Sequence[tuple[Edge, Any]],
    *,
    create_graph: bool = False,
    keep_graph: bool = False,
    inputs: Sequence[Edge] | None = None,
    accumulate: bool = True,
) -> list[Any]:
    """Send gradients from the roots through the graph.

    Args:
        roots: pairs of an edge and its gradient (arrays, or tensors with ``create_graph``).
        create_graph: record the walk itself, for gradients of gradients.
        keep_graph: keep saved values for another backward.
        inputs: the edges whose gradients are wanted; None means all leaves.
        accumulate: add into ``leaf.grad`` (of ``inputs`` only, where they are given).

    Returns:
        The gradients of ``inputs`` (None where there is none); an empty list without ``inputs``.
    """
    if _state.depth >= _MAX_DEPTH:
        return _in_new_thread(roots, create_graph, keep_graph, inputs, accumulate)
    before = mode.grad, _state.callbacks, _state.walk
    outermost = _state.callbacks is None
    callbacks = [] if _state.callbacks is None else _state.callbacks
    mode.grad, _state.callbacks = create_graph, callbacks
    _state.depth += 1
    try:
        kind = _placed(walks[-1]) if several_gpus() else walks[-1]
        walk = _state.walk = kind(roots, create_graph, keep_graph, inputs, accumulate)
        walk.run()
        for callback in callbacks if outermost else ():
            callback()
        return walk.captured()
    finally:
        mode.grad, _state.callbacks, _state.walk = before
        _state.depth -= 1


_MAX_DEPTH = 40  # Python allows 1000 calls inside each other in one thread


def _in_new_thread(
    roots: Any, create_graph: bool, keep_graph: bool, inputs: Any, accumulate: bool
) -> list[Any]:
    """Run a backward that is nested too deeply on the stack of a thread of its own."""
    found: list[Any] = []
    hooks, callbacks = saving.local.hooks, _state.callbacks

    def work() -> None:
        saving.local.hooks, _state.callbacks = hooks, callbacks
        try:
            found.append(run(
                roots, create_graph=create_graph, keep_graph=keep_graph, inputs=inputs,
                accumulate=accumulate,
            ))  # fmt: skip
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    result = found[0]
    if isinstance(result, BaseException):
        raise result
    gradients: list[Any] = result
    return gradients


class _Walk:
    """One backward: how many gradients each node waits for, and what has come in."""

    __slots__ = (
        "F", "__weakref__", "acc", "accumulate", "create_graph", "given", "inputs", "keep_graph",
        "needed", "owned", "ready", "wait", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        roots: Sequence[tuple[Edge, Any]],
        create_graph: bool,
        keep_graph: bool,
        inputs: Sequence[Edge] | None,
        accumulate: bool,
    ) -> None:
        self.create_graph, self.keep_graph, self.accumulate = create_graph, keep_graph, accumulate
        self.inputs = inputs
        self.wanted: dict[Edge, Any] | None = None if inputs is None else dict.fromkeys(inputs)
        self.acc: dict[Edge, Any] = {}
        self.owned: set[Edge] = set()
        self.given: dict[Edge, Any] = {}  # what came to a node with its gradient: see into.py
        for edge, g in roots:
            self.acc[edge] = self.acc[edge] + g if edge in self.acc else g
        self.wait = _dependencies(list(self.acc))
        self.needed = None if inputs is None else _needed(list(self.acc), self.wait, inputs)
        if self.needed is not None and accumulate:  # as in PyTorch, these run too
            inner = [e for e in inputs or () if not e._leaf]
            self.needed.update(inner, [e.owner for e in inner])
        self.ready = sorted([edge for edge in self.acc if not self.wait[edge]], key=_order)
        if create_graph:
            self.F: Any = tensor_functions
        else:
            self.F = array_functions(array_namespace(next(iter(self.acc.values()))))

    def captured(self) -> list[Any]:
        """Return what came in for the wanted edges, in their order."""
        return [] if self.wanted is None else [self.wanted[e] for e in self.inputs or ()]

    def run(self) -> None:
        """Run what is ready until nothing is."""
        ready, acc, wanted, needed = self.ready, self.acc, self.wanted, self.needed
        while ready:
            node = ready.pop()
            if node._leaf:
                self._leaf(node)
                continue
            g = acc.pop(node, None)
            if g is not None:
                if node._hooks is not None and (needed is None or self.executes(node)):
                    g = call_hooks(node, g)
                    self.owned.discard(node)
                if wanted is not None and node in wanted:
                    wanted[node] = g
            elif node._hooks and type(node) is not Slot:
                g = self._hooks_of_nothing(node)
            if needed is None or node in needed:
                if type(node) is Slot:
                    self._slot(node, g)
                else:
                    self._node(node, g)

    def executes(self, edge: Edge) -> bool:
        """Return True when this backward computes the gradient that belongs to ``edge``."""
        if self.needed is None or self.wanted is None:
            return edge in self.wait
        return edge in self.wait and (edge in self.needed or edge in self.wanted)

    def _node(self, node: Any, g: Any) -> None:
        """Send the gradients of one operation's operands on, and free what it saved."""
        if g is None and not node._takes_none:
            self._deliver(node._edges, (None,) * len(node._edges), None)
            return
        if node._of_slots is not None:
            g = self._hooks_of_missing(node, g)
        if node._prehooks is not None and g is not None:
            g = call_prehooks(node._prehooks, g)
        grads = node.pull_graph(self.F, g) if self.create_graph else node.pull(self.F, g)
        if node._posthooks is not None:
            grads = call_posthooks(node._posthooks, grads, g)
        if not self.keep_graph and node._frees and node._held:
            node._held = None
        self._deliver(node._edges, grads, g)

    def _hooks_of_nothing(self, edge: Any) -> Any:
        """Call the hooks of an edge that no gradient came for with None; one may give one."""
        g = None
        if self.needed is None or self.executes(edge):
            for hook in tuple(edge._hooks.values()):
                new = hook(g)
                g = g if new is None else new
        if g is None:
            return None
        g = conjugated(g)
        return g if self.create_graph else g.array

    def _hooks_of_missing(self, node: Any, g: Any) -> Any:
        """Call the hooks on outputs that got no gradient with None, as PyTorch does."""
        parts = list(g) if type(g) is tuple else [g]
        for index, state in tuple(node._of_slots.items()):
            if state.hooks is not None and index < len(parts) and parts[index] is None:
                for hook in tuple(state.hooks.values()):
                    new = hook(None)
                    if new is not None:
                        new = conjugated(new)
                        parts[index] = new if self.create_graph else new.array
        return tuple(parts) if type(g) is tuple else g

    def _deliver(self, edges: tuple[Edge, ...], grads: Sequence[Any], g: Any) -> None:
        """Add each gradient to what its edge already has; an edge with nothing to wait for runs."""
        acc, wait = self.acc, self.wait
        for edge, new in zip(edges, grads, strict=True):
            if edge is None:
                continue
            if new is not None:
                if new.shape != edge._shape:
                    new = self.F.sum_to_size(new, edge._shape)
                if edge in acc:
                    self._add(edge, new)
                else:
                    acc[edge] = new
                    if edge._leaf and new is not g and type(g) is not tuple:
                        self.owned.add(edge)
            left = wait[edge] = wait[edge] - 1
            if not left:
                if edge._leaf:  # nothing comes after it, so its gradient is complete first
                    self._leaf(edge)
                else:
                    self._make_ready(edge)

    def _make_ready(self, edge: Edge) -> None:
        """Put an edge among those that may run, which are in the order of their recording."""
        ready = self.ready
        if ready and ready[-1].order > edge.order:
            bisect.insort(ready, edge, key=_order)
        else:
            ready.append(edge)

    def _add(self, edge: Edge, new: Any) -> None:
        """Sum two contributions: a new array at first, in place from then on."""
        if self.acc[edge] is WRITTEN:
            with lock_of(edge):
                accumulate_array(edge, new, False)
        elif self.create_graph:
            self.acc[edge] = self.acc[edge] + new
        elif edge in self.owned and not edge._leaf:
            self.acc[edge] += new
        else:
            if type(new) is ndarray:
                self.acc[edge] = self.acc[edge] + new
            else:
                self._add_on_device(edge, new)
            self.owned.add(edge)

    def _add_on_device(self, edge: Edge, new: Any) -> None:
        """Sum two contributions as they lie, in the memory of the first if nobody else has it."""
        xp, out = array_namespace(new), None
        if is_held_once(self.acc, edge) and lie_alike(self.acc[edge], new):
            out = self.acc[edge]
        if out is not None and (out.shape != new.shape or out.dtype != new.dtype):
            out = None
        self.acc[edge] = xp.add(self.acc[edge], new, out=out)

    def _slot(self, slot: Slot, g: Any) -> None:
        """Gather one output's gradient; the node runs when all its outputs have reported."""
        node = slot.node
        parts = self.acc.setdefault(node, {})
        if g is not None:  # two slots may stand for one output
            parts[slot.index] = parts[slot.index] + g if slot.index in parts else g
        left = self.wait[node] = self.wait[node] - 1
        if not left:
            if parts:
                self.acc[node] = tuple(parts.get(i) for i in range(len(node.likes)))
            else:
                del self.acc[node]
            self._make_ready(node)

    def _leaf(self, leaf: Tensor) -> None:
        """Call the hooks of ``leaf`` with what came for it, keep it if wanted, accumulate it."""
        g = self.acc.pop(leaf, None)
        hooked = bool(leaf._hooks)
        if hooked:
            if g is None:
                g = self._hooks_of_nothing(leaf)
            elif self.needed is None or self.executes(leaf):
                g = call_hooks(leaf, g)
            self.owned.discard(leaf)
        if g is None:
            return
        wanted = self.wanted
        if wanted is not None:
            if leaf not in wanted:
                return
            wanted[leaf] = g
        if self.accumulate:
            state = leaf._accumulator
            if state is None:
                self._accumulate(leaf, g)
            else:
                self._accumulate_between_hooks(leaf, g, state)

    def _accumulate(self, leaf: Tensor, g: Any) -> None:
        """Add ``g`` into ``leaf.grad`` and call the hooks that come after."""
        if g is not WRITTEN:
            if leaf.array.dtype.kind == "c":
                g = conjugated(g)
            if leaf._grad_dtype != "own":
                g = self._converted(leaf, g)
            with _locks[id(leaf) >> 6 & 63]:  # backwards of several threads may meet here
                if self.create_graph:
                    leaf._grad = copied(g) if leaf._grad is None else leaf._grad + g
                else:
                    owned = leaf in self.owned and getattr(g, "base", None) is None
                    accumulate_array(leaf, g, owned)
        if leaf._post_hooks is not None:
            call_leaf_hooks(leaf)

    def _accumulate_between_hooks(self, leaf: Tensor, g: Any, state: Any) -> None:
        """Do the same for a leaf whose node in the graph has hooks of its own."""
        if state.prehooks:
            g = call_prehooks(state.prehooks, g)
            self.owned.discard(leaf)
        first = leaf._grad is None
        self._accumulate(leaf, g)
        if state.posthooks:
            came = conjugated(g)
            grad = leaf._grad if first else came if self.create_graph else wrap(_array(came))
            for hook in tuple(state.posthooks.values()):
                hook((), (grad,))

    def _converted(self, leaf: Tensor, g: Any) -> Any:
        """Return the gradient in the dtype that the leaf's ``grad`` is to have."""
        dtype = leaf._grad_dtype
        if dtype is None or dtype == (g.array if self.create_graph else g).dtype:
            return g
        self.owned.discard(leaf)
        return tensor_functions.to_dtype(g, dtype) if self.create_graph else g.astype(dtype)  # type: ignore[attr-defined]


class _OnEveryGpu(_Walk):
    """A walk that makes the GPU of each gradient the current one; see `working_on`."""

    __slots__ = ()

    def _node(self, node: Any, g: Any) -> None:
        with working_on(*_arrays_in(g)):
            super()._node(node, g)

    def _add(self, edge: Edge, new: Any) -> None:
        with working_on(*_arrays_in(new)):
            super()._add(edge, new)

    def _slot(self, slot: Slot, g: Any) -> None:
        with working_on(*_arrays_in(g)):
            super()._slot(slot, g)

    def _leaf(self, leaf: Tensor) -> None:
        with working_on(leaf.array):
            super()._leaf(leaf)


def _arrays_in(g: Any) -> list[Any]:
    parts = g if type(g) is tuple else (g,)
    return [part.array if isinstance(part, Tensor) else part for part in parts]


_PLACED: dict[type[_Walk], type[_Walk]] = {}


def is_plain(walk: Any) -> bool:
    """Return whether nobody looks on, as anomaly mode does."""
    return type(walk) is _Walk or type(walk) is _PLACED.get(_Walk)


def _placed(kind: type[_Walk]) -> type[_Walk]:
    found = _PLACED.get(kind)
    if found is None:
        found = type(f"{kind.__name__}OnEveryGpu", (_OnEveryGpu, kind), {"__slots__": ()})
        _PLACED[kind] = found
    return found


class CopyBackwards(Node):
    """Stands before a gradient that is kept with its history."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the gradient as it is."""
        return (None, g)

    pull_graph = pull


def copied(g: Tensor) -> Tensor:
    """Return a copy of a gradient; its history leads to that of ``g``."""
    if hasattr(g.array, "below"):
        return tensor_functions.clone(g)  # type: ignore[attr-defined, no-any-return]
    array = g.array.copy()
    if not g._requires:
        return wrap(array)
    node = CopyBackwards()
    node._edges, node._shape = (None, g._node or g), array.shape
    node.clock, node.saved = clock.tick(), ()
    return attached(array, node)


def call_leaf_hooks(leaf: Tensor) -> None:
    """Call the hooks that follow the accumulation of ``leaf.grad``."""
    for hook in tuple((leaf._post_hooks or {}).values()):
        if hook(leaf) is not None:
            raise GradError(
                f"post_accumulate_grad_hook({leaf._brief()}): hooks should return None."
            )


def _order(edge: Edge) -> float:
    """Return the place of an edge among those that are ready: the last one runs first."""
    return math.inf if edge._leaf else edge.order


walks: list[type[_Walk]] = [_Walk]  # the last one is used; anomaly mode brings its own


def current_walk() -> Any:
    """Return the backward that is running in this thread."""
    if _state.walk is None:
        raise GradError("expected this hook to be called inside a backward call")
    return _state.walk


def accumulate_array(leaf: Tensor, g: Any, owned: bool) -> None:
    """Add the array ``g`` into ``leaf.grad``: into its bucket view if it has one, else in place."""
    grad = leaf._grad
    if grad is not None:
        if grad._requires:
            leaf._grad = grad + wrap(g)
        else:
            if grad.array.shape != g.shape:
                raise ShapeError(
                    f"backward(): the gradient of shape {list(g.shape)} does not fit the .grad of "
                    f"shape {list(grad.array.shape)} of a tensor whose data was replaced: The size "
                    "of tensors must match; set .grad to None first"
                )
            grad.array += g
            if grad._shared is not None:
                grad._shared.bump()
    elif leaf._grad_buffer is not None:
        leaf._grad_buffer.array[...] = g
        leaf._grad = leaf._grad_buffer
    else:
        leaf._grad = wrap(_laid_out(leaf.array, g, owned))


def _laid_out(like: Any, g: Any, owned: bool) -> Any:
    """Return a gradient to keep: with the strides of its leaf, as in PyTorch, and no one else's."""
    xp = array_namespace(like)
    if hasattr(like, "below") or g.strides == like.strides or g.flags.c_contiguous:
        alike = hasattr(like, "below") or g.strides == like.strides or like.flags.c_contiguous
        if alike or like.size < 2:
            return xp.asarray(g) if owned else xp.array(g)
    out = xp.empty_like(like, dtype=g.dtype)
    out[...] = g
    return out


_locks = [threading.RLock() for _ in range(64)]


def lock_of(leaf: Tensor) -> threading.RLock:
    """Return what keeps backwards of several threads apart that meet at a leaf."""
    return _locks[id(leaf) >> 6 & 63]


def _dependencies(starts: list[Edge]) -> dict[Edge, int]:
    """Return for every edge reachable from ``starts`` how many deliveries it will get."""
    wait = dict.fromkeys(starts, 0)
    stack = list(starts)
    while stack:
        for edge in stack.pop()._edges:
            if edge is None:
                continue
            if edge in wait:
                wait[edge] += 1
            else:
                wait[edge] = 1
                stack.append(edge)
    return wait


def _needed(starts: list[Edge], wait: dict[Edge, int], inputs: Sequence[Edge]) -> set[Edge]:
    """Return the nodes from which one of ``inputs`` can be reached by at least one step."""
    order, left = [], dict(wait)
    stack = [edge for edge in starts if not left[edge]]
    while stack:
        node = stack.pop()
        order.append(node)
        for edge in node._edges:
            if edge is not None:
                left[edge] -= 1
                if not left[edge]:
                    stack.append(edge)
    wanted = set(inputs)
    needed: set[Edge] = set()
    for node in reversed(order):
        if any(e is not None and (e in wanted or e in needed) for e in node._edges):
            needed.add(node)
    return needed


# ---------------------------------------------------------------------- hooks see tensors
def call_hooks(edge: Any, g: Any) -> Any:
    """Return the gradient after ``hook(grad) -> grad | None`` of each registered hook."""
    raw = not isinstance(g, Tensor)
    grad = conjugated(wrap(_array(g)) if raw else g)
    for key in tuple(edge._hooks):
        hook = edge._hooks.get(key)
        new = None if hook is None else hook(grad)
        if new is not None:
            _check_hooked(hook, new, grad)
            grad = new
    if not edge._leaf and edge._retain is not None:
        edge._retain(grad)
    grad = conjugated(grad)
    return grad.array if raw else grad


def _check_hooked(hook: Any, new: Any, grad: Tensor) -> None:
    """Raise where ``hook`` has returned no gradient, or one that does not fit in place of another.

    Raises:
        ArgumentTypeError: it is no tensor.
        GradError: its shape or dtype differs.
    """
    name = getattr(hook, "__name__", type(hook).__name__)
    if not isinstance(new, Tensor):
        raise ArgumentTypeError(
            f"hook({name}): expected Variable, but hook returned '{type(new).__name__}'"
        )
    have, old = new.array, grad.array
    if have.shape != old.shape:
        raise GradError(
            f"hook({name}): hook '{name}' has changed the size of value: it returned a gradient of "
            f"shape {list(have.shape)} for one of shape {list(old.shape)}"
        )
    if have.dtype != old.dtype:
        raise GradError(
            f"hook({name}): hook '{name}' has changed the type of value (was {old.dtype} got "
            f"{have.dtype})"
        )


def conjugated(g: Any) -> Any:
    """Return a gradient as users see it, or back; see Note [Complex gradients]."""
    array = g.array if isinstance(g, Tensor) else g
    if g is None or array.dtype.kind != "c":
        return g
    return tensor_functions.conj(g) if isinstance(g, Tensor) else g.conj()  # type: ignore[attr-defined]


def call_prehooks(hooks: dict[int, Callable[..., Any]], g: Any) -> Any:
    """Return the output gradients after ``hook(grad_outputs) -> grad_outputs | None``."""
    many = type(g) is tuple
    grads = tuple(map(conjugated, _tensors(g if many else (g,))))
    raw = not any(isinstance(p, Tensor) for p in (g if many else (g,)))
    for key in tuple(hooks):
        hook = hooks.get(key)  # one hook may remove another
        new = None if hook is None else hook(grads)
        if new is not None:
            found = tuple(new) if isinstance(new, list | tuple) else (new,)
            _check_count(hook, found, grads)
            grads = found
    grads = tuple(map(conjugated, grads))
    back = _arrays(grads) if raw else grads
    return back if many else back[0]


def call_posthooks(hooks: dict[int, Callable[..., Any]], grads: Sequence[Any], g: Any) -> Any:
    """Return the input gradients after ``hook(grad_inputs, grad_outputs)``."""
    outs = tuple(
        map(conjugated, _tensors(g if type(g) is tuple else (g,)))
    )  # None where no gradient came
    raw = not any(isinstance(p, Tensor) for p in grads)
    ins = tuple(map(conjugated, _tensors(grads)))
    for key in tuple(hooks):
        hook = hooks.get(key)
        new = None if hook is None else hook(ins, outs)
        if new is not None:
            found = tuple(new) if isinstance(new, list | tuple) else (new,)
            _check_count(hook, found, ins)
            ins = found
    ins = tuple(map(conjugated, ins))
    return _arrays(ins) if raw else ins


def _check_count(hook: Any, new: tuple[Any, ...], old: tuple[Any, ...]) -> None:
    if len(new) != len(old):
        name = getattr(hook, "__name__", type(hook).__name__)
        raise GradError(
            f"hook({name}): hook '{name}' has returned an incorrect number of values (got "
            f"{len(new)}, but expected {len(old)})"
        )
    for one in new:
        if one is not None and not isinstance(one, Tensor):
            raise ArgumentTypeError(
                f"hook: expected Variable, but hook returned '{type(one).__name__}'"
            )


def _tensors(grads: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x if x is None or isinstance(x, Tensor) else wrap(_array(x)) for x in grads)


def _arrays(grads: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(None if x is None else x.array for x in grads)


def _array(g: Any) -> Any:
    with working_on(g):
        return array_namespace(g).asarray(g)


def zeros_for(likes: Sequence[Any], grads: Sequence[Any], tensors: bool) -> tuple[Any, ...]:
    """Return ``grads`` with zeros for None; ``likes``: shape, namespace and dtype of each."""
    full = []
    for (shape, kind, dtype), g in zip(likes, grads, strict=True):
        if g is None:
            zeros = kind.zeros(shape, dtype)
            g = wrap(zeros) if tensors else zeros
        full.append(g)
    return tuple(full)
