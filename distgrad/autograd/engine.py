"""Backward: an explicit stack over the graph, never recursion.

A node runs when every node that uses its output has delivered its gradient, so a leaf's ``grad`` is
complete exactly once per backward.  That is where ``register_post_accumulate_grad_hook`` fires, and
where the reducer of ``distgrad.distributed`` takes the gradient.

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

import threading
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.mode import mode
from distgrad.autograd.node import Slot
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError
from distgrad.tensor import Tensor, wrap

Edge = Any  # Node | Slot | leaf Tensor


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


_state = _State()


def queue_callback(function: Callable[[], None]) -> None:
    """Call ``function()`` once at the end of the backward that is running in this thread."""
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
    before = mode.grad, _state.callbacks, _state.walk
    mode.grad, _state.callbacks = create_graph, []
    try:
        walk = _state.walk = walks[-1](roots, create_graph, keep_graph, inputs, accumulate)
        walk.run()
        for callback in _state.callbacks:
            callback()
        return walk.captured()
    finally:
        mode.grad, _state.callbacks, _state.walk = before


class _Walk:
    """One backward: how many gradients each node waits for, and what has come in."""

    __slots__ = (
        "F", "__weakref__", "acc", "accumulate", "create_graph", "inputs", "keep_graph", "needed",
        "owned", "ready", "wait", "wanted",
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
        for edge, g in roots:
            self.acc[edge] = self.acc[edge] + g if edge in self.acc else g
        self.wait = _dependencies(list(self.acc))
        self.needed = None if inputs is None else _needed(list(self.acc), self.wait, inputs)
        self.ready = [edge for edge in self.acc if not self.wait[edge]]
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
            g = acc.pop(node, None)
            if g is not None:
                if node._hooks is not None and (needed is None or self.executes(node)):
                    g = call_hooks(node, g)
                    self.owned.discard(node)
                if wanted is not None and node in wanted:
                    wanted[node] = g
            if node._leaf:
                if g is not None:
                    self._leaf(node, g)
            elif needed is None or node in needed:
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
        if node._prehooks is not None and g is not None:
            g = call_prehooks(node._prehooks, g)
        grads = node.pull_graph(self.F, g) if self.create_graph else node.pull(self.F, g)
        if node._posthooks is not None:
            grads = call_posthooks(node._posthooks, grads, g)
        if not self.keep_graph and node._held:
            node._held = None
        self._deliver(node._edges, grads, g)

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
                self.ready.append(edge)

    def _add(self, edge: Edge, new: Any) -> None:
        """Sum two contributions: a new array at first, in place from then on."""
        if self.create_graph:
            self.acc[edge] = self.acc[edge] + new
        elif edge in self.owned and not edge._leaf:
            self.acc[edge] += new
        else:
            self.acc[edge] = self.acc[edge] + new
            self.owned.add(edge)

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
            self.ready.append(node)

    def _leaf(self, leaf: Tensor, g: Any) -> None:
        """Accumulate into ``leaf.grad`` and fire the leaf's hooks."""
        if not self.accumulate or (self.wanted is not None and leaf not in self.wanted):
            return
        if leaf.array.dtype.kind == "c":
            g = conjugated(g)
        if self.create_graph:
            leaf.grad = g if leaf.grad is None else leaf.grad + g
        else:
            owned = leaf in self.owned and getattr(g, "base", None) is None
            accumulate_array(leaf, g, owned)
        if leaf._post_hooks is not None:
            for hook in tuple(leaf._post_hooks.values()):
                hook(leaf)


walks: list[type[_Walk]] = [_Walk]  # the last one is used; anomaly mode brings its own


def current_walk() -> Any:
    """Return the backward that is running in this thread."""
    if _state.walk is None:
        raise GradError("expected this hook to be called inside a backward call")
    return _state.walk


def accumulate_array(leaf: Tensor, g: Any, owned: bool) -> None:
    """Add the array ``g`` into ``leaf.grad``: into its bucket view if it has one, else in place."""
    grad = leaf.grad
    if grad is not None:
        if grad.requires_grad:
            leaf.grad = grad + wrap(g)
        else:
            grad.array += g
            if grad._shared is not None:
                grad._shared.bump()
    elif leaf._grad_buffer is not None:
        leaf._grad_buffer.array[...] = g
        leaf.grad = leaf._grad_buffer
    else:
        xp = array_namespace(leaf.array)
        leaf.grad = wrap(xp.asarray(g) if owned else xp.array(g))


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
    for hook in tuple(edge._hooks.values()):
        new = hook(grad)
        if new is not None:
            if new.array.shape != grad.array.shape:
                raise GradError(
                    f"hook({hook!r}): returned a gradient of shape {list(new.array.shape)} for one "
                    f"of shape {list(grad.array.shape)}; return a gradient of the same shape"
                )
            grad = new
    if not edge._leaf and edge._retain is not None:
        edge._retain(grad)
    grad = conjugated(grad)
    return grad.array if raw else grad


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
    for hook in tuple(hooks.values()):
        new = hook(grads)
        if new is not None:
            grads = tuple(new) if isinstance(new, list | tuple) else (new,)
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
    for hook in tuple(hooks.values()):
        new = hook(ins, outs)
        if new is not None:
            ins = tuple(new) if isinstance(new, list | tuple) else (new,)
    ins = tuple(map(conjugated, ins))
    return _arrays(ins) if raw else ins


def _tensors(grads: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(x if x is None or isinstance(x, Tensor) else wrap(_array(x)) for x in grads)


def _arrays(grads: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(None if x is None else x.array for x in grads)


def _array(g: Any) -> Any:
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
