"""The graph: a Node per recorded operation, a Slot per output where there are several.

An edge points to a Node, a Slot, or straight to a leaf tensor.  All three answer to ``_edges``,
``_shape``, ``_hooks``, ``_leaf`` and ``owner``, so the engine walks them alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from distgrad.errors import GradError
from distgrad.tensor import Tensor, wrap

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


class Node:
    """One recorded operation.  Each operation has a subclass of its own, named as in PyTorch."""

    __slots__ = ("__dict__", "__weakref__", "_edges", "_shape", "clock", "saved")
    _edges: tuple[Any, ...]  # where the gradients of the differentiable operands go
    _shape: tuple[int, ...]  # of the output
    clock: int  # time of recording; a saved tensor changed later is refused
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

    def name(self) -> str:
        """Return the name of the class, e.g. ``AddBackward0``."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"

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


Node._held = Node.__dict__["saved"]  # the same slot under another name


class Slot:
    """One of several differentiable outputs of a node."""

    __slots__ = ("__dict__", "_edges", "_shape", "index", "node")
    _leaf = False
    _hooks: dict[int, Callable[..., Any]] | None = None
    _retain: Callable[[Any], None] | None = None

    def __init__(self, node: Node, index: int, array: Any) -> None:
        """Stand between ``node`` and its output number ``index``, of ``array``'s shape and type."""
        self.node, self.index, self._edges = node, index, (node,)
        self._shape = array.shape

    @property
    def owner(self) -> Node:
        """The node behind this output."""
        return self.node


class AccumulateGrad:
    """How ``next_functions`` shows a leaf: the place where its ``grad`` is accumulated."""

    __slots__ = ("variable",)

    def __init__(self, variable: Tensor) -> None:
        """Show ``variable``."""
        self.variable = variable

    def name(self) -> str:
        """Return ``AccumulateGrad``, with PyTorch's prefix."""
        return "torch::autograd::AccumulateGrad"

    next_functions: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self.variable):#x}>"

    def register_hook(self, hook: Callable[..., Any]) -> Removable:
        """Call ``hook(grad_inputs, grad_outputs)`` after the leaf's ``grad`` was accumulated."""
        return post_hook(self.variable, lambda leaf: hook((), (leaf.grad,)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and other.variable is self.variable

    def __hash__(self) -> int:
        return id(self.variable)


def _public_edge(edge: Any) -> tuple[Any, int]:
    if edge is None:
        return None, 0
    if type(edge) is Slot:
        return edge.node, edge.index
    return (AccumulateGrad(edge), 0) if edge._leaf else (edge, 0)


def edge_of(tensor: Tensor) -> Any:
    """Return where the gradient of ``tensor`` goes: its node, the tensor as a leaf, or None."""
    return tensor._node or (tensor if tensor.requires_grad else None)


def post_hook(leaf: Tensor, hook: Callable[[Tensor], Any]) -> Removable:
    """Register ``hook(leaf)`` to run after a backward has accumulated ``leaf.grad``."""
    if leaf._post_hooks is None:
        leaf._post_hooks = {}
    return Removable(leaf._post_hooks, hook)


def attached(array: Any, edge: Any) -> Tensor:
    """Return a tensor on ``array`` whose gradient goes to ``edge``."""
    out = wrap(array)
    out.requires_grad, out._node = True, edge
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
        shared = None if tensor is None else tensor._shared
        if shared is not None and shared.changed_at > node.clock:
            raise GradError(
                f"backward({node.name()}): one of the variables needed for gradient computation "
                f"has been modified by an inplace operation: [{_kind(tensor)}] is at "
                f"version {shared.count}; use an out-of-place operation or clone() before changing"
            )


def _kind(tensor: Tensor | None) -> str:
    assert tensor is not None
    return f"{tensor.array.dtype}{list(tensor.array.shape)}"
