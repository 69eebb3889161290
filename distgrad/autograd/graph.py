"""Tools for the graph: hooks on what is saved, hooks on several gradients, edges by name."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from distgrad.autograd import engine, saving
from distgrad.autograd.node import (
    AccumulateGrad,
    Node,
    Removable,
    Slot,
    accumulator,
    attached,
    check_unchanged,
    edge_of,
    freed,
    post_hook,
)
from distgrad.autograd.saving import SavedTensor
from distgrad.errors import ArgumentError, ArgumentTypeError, GradError
from distgrad.tensor import Tensor, shared_of, wrap

__all__ = [
    "AccumulateGrad",
    "GradientEdge",
    "Node",
    "Removable",
    "SavedTensor",
    "Slot",
    "allow_mutation_on_saved_tensors",
    "attached",
    "check_unchanged",
    "disable_saved_tensors_hooks",
    "edge_of",
    "freed",
    "get_gradient_edge",
    "increment_version",
    "post_hook",
    "register_multi_grad_hook",
    "save_on_cpu",
    "saved_tensors_hooks",
    "set_warn_on_accumulate_grad_stream_mismatch",
]


class GradientEdge(NamedTuple):
    """Where the gradient of a tensor arrives: output ``output_nr`` of ``node``."""

    node: Node | AccumulateGrad
    output_nr: int
    ownership_token: Any = None  # the edge itself, where the node has several outputs


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """Return where the gradient of ``tensor`` arrives; ``grad`` and ``backward`` take it as input.

    Raises:
        GradError: the tensor does not require grad.
    """
    if not tensor.requires_grad:
        raise GradError(
            f"get_gradient_edge({tensor._brief()}): It is not possible to get the gradient edge "
            "for a Tensor that does not require gradients; call requires_grad_() first"
        )
    edge = tensor._node
    if edge is None:
        return GradientEdge(accumulator(tensor), 0)
    edge.describe(tensor.array.dtype)
    if type(edge) is Slot:
        return GradientEdge(edge.node, edge.index, edge)
    return GradientEdge(edge, 0)


def increment_version(tensor: Tensor | Iterable[Tensor]) -> None:
    """Note a change of a tensor's memory that the library cannot see, made through ``array``."""
    for one in (tensor,) if isinstance(tensor, Tensor) else tensor:
        shared_of(one).bump()


class _unsafe_preserve_version_counter:
    """Lets changes in place of ``tensors`` inside a ``with`` block leave no trace in ``_version``.

    Gradients of what saved them before are then of the new values.
    """

    def __init__(self, tensors: Tensor | tuple[Tensor, ...]) -> None:
        """Keep the versions."""
        self.tensors = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
        self.before = [(shared.count, shared.changed_at) for shared in map(shared_of, self.tensors)]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        for tensor, (count, time) in zip(self.tensors, self.before, strict=True):
            shared = shared_of(tensor)
            shared.count, shared.changed_at = count, time
            node = None if shared.node is None else shared.node()
            if node is not None:
                node.changed_at = time


def set_warn_on_accumulate_grad_stream_mismatch(enabled: bool) -> None:
    """Do nothing: gradients are accumulated on the stream that made them."""


# ---------------------------------------------------------------------- what is saved
class saved_tensors_hooks:
    """Packs each tensor saved for backward inside a ``with`` block, and unpacks it when used.

    Args:
        pack_hook: takes the saved tensor, returns anything; runs without recording.
        unpack_hook: takes what was packed, returns a tensor of the same values.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor([1.0, 2.0], requires_grad=True)
        >>> with saved_tensors_hooks(lambda t: t.tolist(), dg.tensor):
        ...     y = x * x
        >>> y.sum().backward()
        >>> x.grad
        tensor([2., 4.])
    """

    def __init__(
        self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]
    ) -> None:
        """Keep the pair of hooks."""
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook

    def __enter__(self) -> None:
        saving.push((self.pack_hook, self.unpack_hook))

    def __exit__(self, *error: object) -> None:
        saving.pop()


class save_on_cpu(saved_tensors_hooks):
    """Keeps what is saved inside a ``with`` block in host memory; backward copies it back.

    Args:
        pin_memory: copy both ways beside other work, by page-locked memory. Backward must run
            on the stream that forward ran on, or behind it.
        device_type: accepted; the tensor's own device counts.
    """

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        """Set the hooks."""
        super().__init__(_to_pinned if pin_memory else _to_host, _from_host)


def _to_host(tensor: Tensor) -> tuple[Any, Tensor]:
    return tensor.device, tensor.detach().cpu()


def _to_pinned(tensor: Tensor) -> tuple[Any, Tensor]:
    return tensor.device, tensor.detach().to("cpu", non_blocking=True)


def _from_host(packed: tuple[Any, Tensor]) -> Tensor:
    return packed[1].to(packed[0], non_blocking=True)  # from page-locked memory alone


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Refuse ``saved_tensors_hooks`` inside the block, with ``error_message``."""
    if saving.local.hooks:
        raise GradError(error_message)
    before = saving.local.forbidden
    saving.local.forbidden = error_message
    try:
        yield
    finally:
        saving.local.forbidden = before


# ---------------------------------------------------------------------- several gradients
class _Handles(Removable):
    """The handle of hooks on several tensors."""

    def __init__(self, handles: tuple[Removable, ...]) -> None:
        self.handles = handles

    def remove(self) -> None:
        """Take all the hooks away again."""
        for handle in self.handles:
            handle.remove()


def register_multi_grad_hook(
    tensors: Sequence[Tensor],
    fn: Callable[..., None],
    *,
    mode: Literal["all", "any"] = "all",
) -> Removable:
    """Call ``fn`` once per backward with the gradients of several tensors.

    Args:
        tensors: they must require grad.
        fn: with "all", takes a list of gradients, None for tensors that this backward does not
            reach; with "any", takes the first gradient that comes.
        mode: "all" or "any".
    """
    if mode not in ("all", "any"):
        raise ArgumentError(
            f"register_multi_grad_hook(mode={mode!r}): Expects mode to be one of ('all', 'any') "
            f"but got {mode}"
        )
    seen: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
    if mode == "any":

        def first(grad: Tensor) -> None:
            walk = engine.current_walk()
            if walk not in seen:
                seen[walk] = []
                fn(grad)

        return _Handles(tuple(t.register_hook(first) for t in tensors if t.requires_grad))
    edges = [edge_of(t) for t in tensors]

    def gather(place: int, grad: Tensor) -> None:
        walk = engine.current_walk()
        if walk not in seen:
            missing = sum(walk.executes(edge) for edge in edges)
            seen[walk] = [missing, [None] * len(edges)]
        state = seen[walk]
        state[0] -= 1
        state[1][place] = grad
        if state[0] == 0:
            fn(state[1])

    return _Handles(tuple(t.register_hook(_at(i, gather)) for i, t in enumerate(tensors)))


def _at(place: int, gather: Callable[[int, Tensor], None]) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        gather(place, grad)

    return hook


# ---------------------------------------------------------------------- changes of what is saved
class _Kept:
    """A saved tensor that is cloned when its memory is about to change."""

    __slots__ = ("__weakref__", "array", "root", "state")

    def __init__(self, array: Any, state: _Mutations) -> None:
        self.array, self.root, self.state = array, memory_of(array), state


class _Mutations:
    """What is saved inside one ``allow_mutation_on_saved_tensors``, by the memory that it is in."""

    current: _Mutations | None = None

    def __init__(self) -> None:
        self.kept: dict[int, weakref.WeakSet[_Kept]] = {}
        self.open = True

    def pack(self, tensor: Tensor) -> _Kept:
        """Remember where the tensor lies."""
        entry = _Kept(tensor.array, self)
        self.kept.setdefault(id(entry.root), weakref.WeakSet()).add(entry)
        return entry

    def unpack(self, entry: _Kept) -> Tensor:
        """Return the values from before any change."""
        if not self.open:
            raise AssertionError(
                "Trying to backward outside of the 'allow_mutation_on_saved_tensors' context"
                "in which the graph was originally recorded."
            )
        return wrap(entry.array)

    def before_write(self, target: Tensor) -> None:
        """Clone what lies in the memory of ``target``."""
        for entry in self.kept.pop(id(memory_of(target.array)), ()):
            entry.array = entry.array.copy()
            entry.root = None


def memory_of(array: Any) -> Any:
    """Return the array that owns the memory of ``array``."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


@contextmanager
def allow_mutation_on_saved_tensors() -> Iterator[_Mutations]:
    """Let saved tensors be changed in place inside the block: they are cloned at that moment.

    Forward and backward must both run inside the block.
    """
    if _Mutations.current is not None:
        raise GradError(
            "allow_mutation_on_saved_tensors(): allow_mutation_on_saved_tensors contexts cannot be "
            "nested; leave the outer one first"
        )
    state = _Mutations.current = _Mutations()
    switch, write = saving.switch, state.before_write
    with saved_tensors_hooks(state.pack, state.unpack):
        switch.writers += (write,)
        try:
            yield state
        finally:
            switch.writers = tuple(w for w in switch.writers if w != write)
            _Mutations.current = None
            state.open = False
            state.kept.clear()


def engine_edge(edge: GradientEdge) -> Any:
    """Return the edge as the engine knows it."""
    if not isinstance(edge, GradientEdge):
        raise ArgumentTypeError(f"expected a GradientEdge, got {type(edge).__name__}")
    node = edge.node
    if isinstance(node, AccumulateGrad):
        return node.variable
    if (len(node.likes) < 2 and node._shape != ()) or not node.likes:
        return node
    return edge.ownership_token or _slot(node, edge.output_nr)


def _slot(node: Node, index: int) -> Slot:
    slot = object.__new__(Slot)
    slot.node, slot.index, slot._edges = node, index, (node,)
    slot._shape = node.likes[index][0]
    return slot
