"""The graph: a Node per recorded operation, a Slot per output where there are several.

An edge points to a Node, a Slot, or straight to a leaf tensor.  All three answer to ``_edges``,
``_shape``, ``_hooks``, ``_leaf`` and ``owner``, so the engine walks them alike.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from distgrad.autograd import node_names
from distgrad.backend import dtype as _dtype
from distgrad.errors import GradError
from distgrad.tensor import Size, Tensor, wrap

_keys = itertools.count()


class Removable:
    """Handle of a registered hook."""

    def __init__(self, hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> None:
        """Register ``hook`` at the end of ``hooks``."""
        self.id = next(_keys)
        self._hooks = hooks
        hooks[self.id] = hook

    def remove(self) -> None:
        """Take the hook away again."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> Removable:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class Metadata(NamedTuple):
    """What is known of one output of a node: its shape, and its dtype if somebody told."""

    shape: Size
    dtype: Any


def _metadata(like: Any) -> Metadata:
    if like is None:
        return Metadata(Size(), None)
    shape, _, dtype = like
    return Metadata(Size(shape), _dtype.from_numpy(dtype))


class Node:
    """One recorded operation.  Each operation has a subclass of its own, named as in PyTorch."""

    __slots__ = ("__dict__", "__weakref__", "_edges", "_shape", "clock", "saved")
    _edges: tuple[Any, ...]  # where the gradients of the differentiable operands go
    _shape: tuple[int, ...]  # of the output
    clock: int  # time of recording; a saved tensor changed later is refused
    order: int  # the same; of nodes that are ready, the highest runs first in backward
    saved: tuple[Any, ...] | None  # None once freed

    likes: tuple[Any, ...] = ()  # shape, namespace and dtype of each output, where several
    changed_at = -1  # when the output's memory was last changed in place

    _held: tuple[Any, ...] | None  # ``saved`` as it is kept; packed where hooks ask for it
    _leaf = False
    _takes_none = False  # backward runs even where no gradient came in
    _hooks: dict[int, Callable[..., Any]] | None = None
    _retain: Callable[[Any], None] | None = None  # retain_grad: called after all hooks
    _prehooks: dict[int, Callable[..., Any]] | None = None
    _posthooks: dict[int, Callable[..., Any]] | None = None
    _frees = True  # what it keeps are tensors, which go when backward has passed
    _of_slots: dict[int, _SlotState] | None = None  # hooks on outputs, where there are several
    _dtype: Any = None  # of the only output, if it was asked for through the tensor

    def __init_subclass__(cls) -> None:
        """Note whether a node of an operation keeps tensors, or only shapes and options."""
        op = cls.__dict__.get("op")
        if op is not None:
            tensors = {o.name for o in op.operands} | {"out", *(op.outputs or ())}
            cls._frees = any(name in tensors for name in op.plan.kept)

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the operands' gradients as arrays for the output's gradient ``g``."""
        raise NotImplementedError

    def pull_graph(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the operands' gradients as tensors with a history of their own."""
        raise NotImplementedError

    @property
    def owner(self) -> Node:
        """The node itself (a Slot answers with the node behind it)."""
        return self

    def describe(self, dtype: Any) -> None:
        """Note the dtype of the output, which the node itself has no use for."""
        if self._dtype is None:
            self._dtype = dtype
        self._take_name()

    def _take_name(self) -> None:
        """Become of the class that PyTorch's name says, now that somebody looks."""
        op: Any = getattr(self, "op", None)
        if op is not None and "_all_names" not in op.node.__dict__:
            node_names.name_all(op)
        if op is not None and op.name in node_names.VARIANTS and self._held is not None:
            values = dict(zip(op.plan.kept, self._held, strict=True))
            self.__class__ = node_names.renamed(type(self), values)

    @property
    def _input_metadata(self) -> list[Metadata]:
        """What backward gets: shape and dtype of each output."""
        if self.likes:
            return [_metadata(like) for like in self.likes]
        kind = None if self._dtype is None else _dtype.from_numpy(self._dtype)
        return [Metadata(Size(self._shape), kind)]

    def name(self) -> str:
        """Return the name of the class, e.g. ``AddBackward0``."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"

    def _sequence_nr(self) -> int:
        """Return the number that orders this node among others in backward."""
        return self.order

    def _set_sequence_nr(self, number: int) -> None:
        """Order this node as if it had been recorded with this number."""
        kind = type(self)
        if not issubclass(kind, _Renumbered):
            self.__class__ = type(kind.__name__, (_Renumbered, kind), {"__slots__": ()})
        self.order = number

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """Pairs of the nodes that gradients flow to and the number of their output."""
        return tuple(_public_edge(e) for e in self._edges)

    @property
    def metadata(self) -> dict[Any, Any]:
        """A dict for the user's own notes."""
        notes: dict[Any, Any] = self.__dict__.setdefault("_metadata", {})
        return notes

    def register_hook(self, hook: Callable[..., Any]) -> Removable:
        """Call ``hook(grad_inputs, grad_outputs)`` after this node ran in backward."""
        if self._posthooks is None:
            self._posthooks = {}
        return Removable(self._posthooks, hook)

    def register_prehook(self, hook: Callable[..., Any]) -> Removable:
        """Call ``hook(grad_outputs)`` before this node runs in backward."""
        if self._prehooks is None:
            self._prehooks = {}
        return Removable(self._prehooks, hook)


Node._held = Node.__dict__["saved"]  # the same slots under other names
Node.order = Node.__dict__["clock"]


class _Renumbered:
    """Mixed into the class of a node whose place in backward was set by hand."""

    __slots__ = ()

    @property
    def order(self) -> int:
        """The number that was set."""
        return self.__dict__["_order"]  # type: ignore[no-any-return]

    @order.setter
    def order(self, number: int) -> None:
        self.__dict__["_order"] = number


class _SlotState:
    """Hooks on one output of a node with several."""

    __slots__ = ("hooks", "retain")

    def __init__(self) -> None:
        self.hooks: dict[int, Callable[..., Any]] | None = None
        self.retain: Callable[[Any], None] | None = None


class Slot:
    """One of several differentiable outputs of a node; all slots of one output are equal."""

    __slots__ = ("_edges", "_shape", "index", "node")
    _leaf = False

    def __init__(self, node: Node, index: int, array: Any) -> None:
        """Stand between ``node`` and its output number ``index``, of ``array``'s shape and type."""
        self.node, self.index, self._edges = node, index, (node,)
        self._shape = array.shape

    def __eq__(self, other: object) -> bool:
        return type(other) is Slot and other.node is self.node and other.index == self.index

    def __hash__(self) -> int:
        return hash((id(self.node), self.index))

    @property
    def owner(self) -> Node:
        """The node behind this output."""
        return self.node

    @property
    def order(self) -> int:
        """The order of the node, which comes next when all of its outputs are there."""
        return self.node.order

    def describe(self, dtype: Any) -> None:
        """Let the node take its name; it knows the types of its outputs."""
        self.node._take_name()

    def _state(self) -> _SlotState:
        node = self.node
        if node._of_slots is None:
            node._of_slots = {}
        return node._of_slots.setdefault(self.index, _SlotState())

    @property
    def _hooks(self) -> dict[int, Callable[..., Any]] | None:
        of_slots = self.node._of_slots
        state = None if of_slots is None else of_slots.get(self.index)
        return None if state is None else state.hooks

    @_hooks.setter
    def _hooks(self, hooks: dict[int, Callable[..., Any]]) -> None:
        self._state().hooks = hooks

    @property
    def _retain(self) -> Callable[[Any], None] | None:
        of_slots = self.node._of_slots
        state = None if of_slots is None else of_slots.get(self.index)
        return None if state is None else state.retain

    @_retain.setter
    def _retain(self, keep: Callable[[Any], None] | None) -> None:
        self._state().retain = keep


class _LeafState:
    """Hooks and notes that belong to the accumulation into one leaf."""

    __slots__ = ("node", "notes", "posthooks", "prehooks")

    def __init__(self) -> None:
        self.prehooks: dict[int, Callable[..., Any]] = {}
        self.posthooks: dict[int, Callable[..., Any]] = {}
        self.notes: dict[Any, Any] = {}
        self.node: Any = None  # a weak reference: the node holds the leaf


class AccumulateGrad(Node):
    """How a leaf shows itself in the graph: the place where its ``grad`` is accumulated."""

    __slots__ = ("variable",)

    def __init__(self, variable: Tensor) -> None:
        """Show ``variable``."""
        self.variable = variable
        self._edges, self._shape = (), variable._shape
        self.clock = 2**64 - 1  # as in PyTorch: accumulated at once

    def name(self) -> str:
        """Return ``AccumulateGrad``, with PyTorch's prefix."""
        return "torch::autograd::AccumulateGrad"

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self):#x}>"

    @property
    def metadata(self) -> dict[Any, Any]:
        """A dict for the user's own notes."""
        return _state_of(self.variable).notes

    @property
    def _input_metadata(self) -> list[Metadata]:
        return [Metadata(self.variable.shape, self.variable.dtype)]

    def register_hook(self, hook: Callable[..., Any]) -> Removable:
        """Call ``hook((), (grad,))`` after the leaf's ``grad`` was accumulated."""
        return Removable(_state_of(self.variable).posthooks, hook)

    def register_prehook(self, hook: Callable[..., Any]) -> Removable:
        """Call ``hook((grad,))``, which may return another, before it is accumulated."""
        return Removable(_state_of(self.variable).prehooks, hook)


def _state_of(leaf: Tensor) -> _LeafState:
    if leaf._accumulator is None:
        leaf._accumulator = _LeafState()
    state: _LeafState = leaf._accumulator
    return state


def accumulator(leaf: Tensor) -> AccumulateGrad:
    """Return the node of ``leaf``: the same one as long as somebody holds it."""
    state = _state_of(leaf)
    node = None if state.node is None else state.node()
    if node is None:
        node = AccumulateGrad(leaf)
        state.node = weakref.ref(node)
    return node


def _public_edge(edge: Any) -> tuple[Any, int]:
    if edge is None:
        return None, 0
    if type(edge) is Slot:
        edge.node._take_name()
        return edge.node, edge.index
    if edge._leaf:
        return accumulator(edge), 0
    edge._take_name()
    return edge, 0


def edge_of(tensor: Tensor) -> Any:
    """Return where the gradient of ``tensor`` goes: its node, the tensor as a leaf, or None."""
    return tensor._node or (tensor if tensor._requires else None)


def post_hook(leaf: Tensor, hook: Callable[[Tensor], Any]) -> Removable:
    """Register ``hook(leaf)`` to run after a backward has accumulated ``leaf.grad``."""
    if leaf._post_hooks is None:
        leaf._post_hooks = {}
    return Removable(leaf._post_hooks, hook)


def attached(array: Any, edge: Any) -> Tensor:
    """Return a tensor on ``array`` whose gradient goes to ``edge``."""
    out = wrap(array)
    out._requires, out._node = True, edge
    return out


def freed(node: Node) -> GradError:
    """Return the error for a second backward through ``node``."""
    return GradError(
        f"backward({node.name()}): Trying to backward through the graph a second time (or directly "
        "access saved tensors after they have already been freed). Saved intermediate values of "
        "the graph are freed when you call .backward() or autograd.grad(). Specify "
        "retain_graph=True if you need to backward through the graph a second time or if you need "
        "to access saved tensors after calling backward"
    )


def check_unchanged(node: Node, tensors: tuple[Tensor | None, ...], output: bool) -> None:
    """Raise when a saved tensor (the ``output`` too) was changed after ``node`` was recorded."""
    if output and node.changed_at > node.clock:
        raise GradError(
            f"backward({node.name()}): one of the variables needed for gradient computation has "
            f"been modified by an inplace operation: the output of {node.name()}, of shape "
            f"{list(node._shape)}; use an out-of-place operation or clone() before changing it"
        )
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor._detached_at > node.clock:
            raise GradError(
                f"backward({node.name()}): Trying to use a saved tensor that has been detached "
                "in-place, i.e. with .detach_(). This is not supported, please use out-of-place "
                "`.detach()` instead"
            )
        shared = tensor._shared
        if shared is not None and shared.changed_at > node.clock:
            raise GradError(
                f"backward({node.name()}): one of the variables needed for gradient computation "
                f"has been modified by an inplace operation: [{_kind(tensor)}] is at "
                f"version {shared.count}; use an out-of-place operation or clone() before changing"
            )


def _kind(tensor: Tensor) -> str:
    return f"{tensor.array.dtype}{list(tensor.array.shape)}"
