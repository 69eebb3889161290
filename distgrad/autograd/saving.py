"""What is done to values when a node saves them: nothing, until a tool asks for it.

Note [Tools cost nothing when off]
    The source of every operation makes its node with the global ``_new_node``.  Only while saved
    tensor hooks or anomaly mode are on somewhere, that global is ``_observed`` in all operations.
    Nodes made then, in a thread that asked, are of a subclass whose ``saved`` packs and unpacks;
    what is really kept is in ``_held`` for all nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from distgrad.autograd.mode import mode
from distgrad.autograd.node import Node, Slot, attached
from distgrad.errors import ArgumentTypeError, GradError
from distgrad.tensor import Tensor, clock, wrap

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class _Local(threading.local):
    """The hooks of one thread, innermost last, and why they are forbidden, if they are."""

    def __init__(self) -> None:
        self.hooks: list[Hooks] = []
        self.forbidden: str | None = None


class _Switch:
    """How many tools are on, in all threads."""

    users = 0
    at_birth: Callable[[Node], None] | None = None  # anomaly mode notes where a node was made
    writers: tuple[Callable[[Tensor], None], ...] = ()  # called before a change in place
    inspect: Callable[[Any], None] | None = None  # refuses to save tensors of inference mode


local = _Local()
switch = _Switch()
lock = threading.RLock()  # the end of a tensor, which comes at any time, may turn a tool off
_recorders: list[dict[str, Any]] = [wrap.__globals__]  # the globals of all operations, and of wrap
_current: dict[str, Any] = {"_new_node": object.__new__, "_new": object.__new__}


def register(names: dict[str, Any]) -> None:
    """Give the globals of an operation ``_new_node`` and ``_new``, now and when they change."""
    with lock:
        _recorders.append(names)
        names.update(_current)


def replace(name: str, make: Callable[..., Any]) -> None:
    """Let the operations make their nodes (``_new_node``) or tensors (``_new``) with ``make``."""
    _current[name] = make
    for names in _recorders:
        names[name] = make


def observe(change: int) -> None:
    """Count a tool that is turned on (1) or off (-1)."""
    with lock:
        before = switch.users
        switch.users += change
        if bool(before) != bool(switch.users):
            replace("_new_node", _observed if switch.users else object.__new__)


def _observed(kind: type[Node]) -> Node:
    if local.hooks:
        kind = packing(kind)
    if switch.inspect is not None:
        kind = _derived(_Inspecting, kind)
    node = object.__new__(kind)
    if switch.at_birth is not None:
        switch.at_birth(node)
    return node


def push(hooks: Hooks) -> None:
    """Make ``hooks`` the innermost of this thread."""
    if local.forbidden is not None:
        raise GradError(local.forbidden)
    local.hooks.append(hooks)
    observe(1)


def pop() -> None:
    """Take the innermost hooks of this thread away."""
    if local.hooks:
        local.hooks.pop()
        observe(-1)


# ---------------------------------------------------------------------- packed values
class Packed:
    """What a pack hook returned for one tensor, and all that is needed to put it in place again."""

    __slots__ = ("edge", "packed", "raw", "requires_grad", "unpack")

    def __init__(self, tensor: Tensor, hooks: Hooks, edge: Any, raw: bool = False) -> None:
        """Pack ``tensor``, whose gradient goes to ``edge``; ``raw``: the array is wanted back."""
        self.edge, self.raw, self.requires_grad = edge, raw, tensor.requires_grad
        pack, self.unpack = hooks
        before, version = mode.grad, tensor._version
        mode.grad = False
        try:
            self.packed = pack(tensor)
        finally:
            mode.grad = before
        if tensor._version != version:
            raise GradError(_PACK_CHANGES)

    def tensor(self) -> Tensor:
        """Return the unpacked tensor, connected as the saved one was."""
        data = self.unpack(self.packed)
        if not isinstance(data, Tensor):
            raise ArgumentTypeError(
                "Output of saved tensor unpack_hook expected to be a Tensor but got result of type "
                f"{type(data).__name__}; return a tensor from the hook"
            )
        if data is self.edge or not (self.requires_grad or data._requires):
            out: Tensor = data
            return out
        out = wrap(data.array)
        if self.requires_grad:
            out._requires, out._node = (
                True,
                (through(self.edge) if self.edge._leaf else self.edge),
            )
        return out


_PACK_CHANGES = (
    "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack "
    "hook cannot be modified by in-place operations as this can lead to unexpected side-effects; "
    "change a clone() instead"
)


class AliasBackward0(Node):
    """Stands before an edge, for a tensor that is not the one of the edge itself."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the gradient as it is."""
        return (g,)

    pull_graph = pull


def through(edge: Any) -> Node:
    """Return a node that hands its gradient on to ``edge``."""
    node = AliasBackward0()
    node._edges, node._shape, node.clock, node.saved = (edge,), edge._shape, clock.tick(), ()
    return node


def _pack_all(node: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the saved values of an operation's node with its tensors packed."""
    op = getattr(node, "op", None)
    if op is None or not local.hooks:
        return values
    hooks = local.hooks[-1]
    return tuple([_pack_one(node, op, n, v, hooks) for n, v in zip(op.plan.kept, values)])  # noqa: B905  (of one length, by construction)


def _pack_one(node: Any, op: Any, name: str, value: Any, hooks: Hooks) -> Any:
    if isinstance(value, Tensor):
        if value._is_number:  # as in PyTorch, nobody packs Python numbers
            return value
        return Packed(value, hooks, value._node or value)
    if name == "out" or name in (op.outputs or ()):
        if value is None:
            return None
        edge = output_edge(node, op, name, value)
        return Packed(wrap(value) if edge is None else attached(value, edge), hooks, edge, True)
    if isinstance(value, tuple) and any(isinstance(v, Tensor) for v in value):
        return tuple([_pack_one(node, op, "", v, hooks) for v in value])
    return value


def output_edge(node: Node, op: Any, name: str, array: Any) -> Any:
    """Return where the gradient of the output ``name`` of ``node`` goes; None: nowhere."""
    if name == "out":
        return node
    places = [n for n, differentiable in op.outputs.items() if differentiable]
    if name not in places:
        return None
    return node if len(places) == 1 else Slot(node, places.index(name), array)


def unpack(value: Any) -> Any:
    """Return a saved value as it was before packing."""
    if type(value) is Packed:
        tensor = value.tensor()
        return tensor.array if value.raw else tensor
    if type(value) is tuple and any(type(v) is Packed for v in value):
        return tuple([unpack(v) for v in value])
    return value


class _Packing:
    """Mixed into the class of a node: what is saved goes through the hooks."""

    __slots__ = ()
    _held: Any

    @property
    def saved(self) -> tuple[Any, ...] | None:
        """The saved values, unpacked."""
        return None if self._held is None else tuple([unpack(v) for v in self._held])

    @saved.setter
    def saved(self, values: tuple[Any, ...] | None) -> None:
        self._held = None if values is None else _pack_all(self, values)

    @property
    def changed_at(self) -> int:
        """Never: what was packed is not what may be changed."""
        return -1

    @changed_at.setter
    def changed_at(self, time: int) -> None:
        pass


class _Inspecting:
    """Mixed into the class of a node: what is saved is looked at first."""

    __slots__ = ()
    _held: Any

    @property
    def saved(self) -> Any:
        """The saved values."""
        return super().saved  # type: ignore[misc]

    @saved.setter
    def saved(self, values: Any) -> None:
        if switch.inspect is not None and values is not None:
            switch.inspect(values)
        above: Any = super(_Inspecting, type(self)).saved  # type: ignore[misc]
        above.__set__(self, values)


_classes: dict[tuple[type, type[Node]], type[Node]] = {}


def packing(kind: type[Node]) -> type[Node]:
    """Return the subclass of ``kind`` whose saved values go through hooks."""
    return _derived(_Packing, kind)


def _derived(mixin: type, kind: type[Node]) -> type[Node]:
    """Return the subclass of ``kind`` with ``mixin``: ``kind`` itself where it has it already."""
    if issubclass(kind, mixin):
        return kind
    found = _classes.get((mixin, kind))
    if found is None:
        body = {"__slots__": (), "__module__": kind.__module__}
        found = _classes[mixin, kind] = type(kind.__name__, (mixin, kind), body)
    return found


class SavedTensor:
    """One saved tensor of a node, as ``node._raw_saved_<name>`` gives it."""

    __slots__ = ("_name", "_node", "_place")

    def __init__(self, node: Node | None = None, name: str = "", place: int = 0) -> None:
        """Stand for the saved value ``name``, number ``place``, of ``node``."""
        if node is None:
            raise GradError(
                "SavedTensor(): Trying to create a SavedTensor object from Python is forbidden; "
                "take it from node._raw_saved_<name>"
            )
        self._node, self._name, self._place = node, name, place

    def _value(self) -> Any:
        node: Any = self._node
        return None if node._held is None else node._held[self._place]

    @property
    def data(self) -> Any:
        """What was packed, or the saved tensor itself, detached where it is an output or a leaf."""
        value = self._value()
        if type(value) is Packed:
            return value.packed
        if isinstance(value, Tensor):
            return value if value._node is not None else value.detach()
        return None if value is None else wrap(value)

    @property
    def unpack_hook(self) -> Any:
        """The hook that unpacks it, or None."""
        value = self._value()
        return value.unpack if type(value) is Packed else None

    def unpack(self) -> Any:
        """Return the saved tensor."""
        return getattr(self._node, f"_saved_{self._name}")

    def register_hooks(
        self, pack: Callable[..., Any] | None = None, unpack: Callable[..., Any] | None = None
    ) -> None:
        """Pack the saved tensor now with ``pack``; ``unpack`` gives it back in backward."""
        if not callable(pack) or not callable(unpack):
            raise ArgumentTypeError(
                "register_hooks(): incompatible function arguments; takes two functions: "
                "pack_hook and unpack_hook"
            )
        node: Any = self._node
        if node._held is None:
            raise GradError(
                "register_hooks(): Calling register_hooks on a saved tensor after it has been "
                "freed. Saved intermediate values of the graph are freed when you call .backward() "
                "or autograd.grad(). Specify retain_graph=True to keep them"
            )
        value = self._value()
        if value is None:
            raise GradError(
                "register_hooks(): Calling register_hooks on a saved tensor with value None is "
                "forbidden"
            )
        if type(value) is Packed:
            raise GradError(
                "register_hooks(): Calling register_hooks on a saved tensor whose hooks have "
                "already been set. Hint: only one pair of hooks is allowed at a time."
            )
        self._replace(value, (pack, unpack))

    def _replace(self, value: Any, hooks: Hooks) -> None:
        node: Any = self._node
        packed = _pack_one(node, node.op, self._name, value, hooks)
        node.__class__ = packing(type(node))
        node._held = (*node._held[: self._place], packed, *node._held[self._place + 1 :])
