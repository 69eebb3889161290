"""Hooks of modules: functions called before and after ``forward`` and ``backward``.

Full backward hooks need all gradients of a module's inputs and outputs at once.  Two nodes that
pass gradients through unchanged, one before and one after ``forward``, gather them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.graph import Node, Removable, Slot, edge_of
from distgrad.autograd.mode import mode
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor, clock, shared_of, wrap

Hook = Callable[..., Any]
Hooks = OrderedDict[int, Hook]


class GlobalHooks:
    """Hooks that run for every module of the process."""

    __slots__ = (
        "always", "backward", "backward_pre", "forward", "forward_pre", "kwargs", "registration",
        "used",
    )  # fmt: skip

    def __init__(self) -> None:
        self.used = False  # once a hook was registered, calls look for hooks
        self.forward_pre: Hooks = OrderedDict()
        self.forward: Hooks = OrderedDict()
        self.backward_pre: Hooks = OrderedDict()
        self.backward: Hooks = OrderedDict()
        self.kwargs: set[int] = set()
        self.always: set[int] = set()
        self.registration: dict[str, Hooks] = {
            kind: OrderedDict() for kind in ("buffer", "module", "parameter")
        }

    def add(self, hooks: Hooks, hook: Hook) -> Removable:
        """Register ``hook`` for every module."""
        self.used = True
        return Removable(hooks, hook)

    def active(self) -> bool:
        """Return whether any hook is still registered, and note it."""
        calls = (self.forward_pre, self.forward, self.backward_pre, self.backward)
        self.used = any(calls)
        return self.used


everywhere = GlobalHooks()


def register_module_forward_pre_hook(hook: Hook) -> Removable:
    """Call ``hook(module, args)`` before the forward of every module."""
    return everywhere.add(everywhere.forward_pre, hook)


def register_module_forward_hook(
    hook: Hook, *, with_kwargs: bool = False, always_call: bool = False
) -> Removable:
    """Call ``hook(module, args, output)`` after the forward of every module."""
    handle = everywhere.add(everywhere.forward, hook)
    if with_kwargs:
        everywhere.kwargs.add(handle.id)
    if always_call:
        everywhere.always.add(handle.id)
    return handle


def register_module_full_backward_pre_hook(hook: Hook) -> Removable:
    """Call ``hook(module, grad_output)`` before the backward of every module."""
    return everywhere.add(everywhere.backward_pre, hook)


def register_module_full_backward_hook(hook: Hook) -> Removable:
    """Call ``hook(module, grad_input, grad_output)`` after the backward of every module."""
    return everywhere.add(everywhere.backward, hook)


register_module_backward_hook = register_module_full_backward_hook


def register_module_buffer_registration_hook(hook: Hook) -> Removable:
    """Call ``hook(module, name, buffer)`` when a buffer is registered; it may return another."""
    return Removable(everywhere.registration["buffer"], hook)


def register_module_module_registration_hook(hook: Hook) -> Removable:
    """Call ``hook(module, name, child)`` when a module is registered; it may return another."""
    return Removable(everywhere.registration["module"], hook)


def register_module_parameter_registration_hook(hook: Hook) -> Removable:
    """Call ``hook(module, name, param)`` when a parameter is registered; it may return another."""
    return Removable(everywhere.registration["parameter"], hook)


def registered(module: Any, name: str, value: Any, kind: str) -> Any:
    """Return what the hooks make of a value that is registered."""
    for hook in everywhere.registration[kind].values():
        new = hook(module, name, value)
        value = value if new is None else new
    return value


# ---------------------------------------------------------------------- calling a module
def call_with_hooks(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return ``module.forward(*args, **kwargs)`` with all hooks around it."""
    called: set[int] = set()
    result = None
    try:
        args, kwargs = _before_forward(module, args, kwargs)
        gather = _gatherer(module)
        if gather is not None:
            args = gather.inputs(args)
        result = module.forward(*args, **kwargs)
        result = _after_forward(module, args, kwargs, result, called)
        return result if gather is None else gather.outputs(result)
    except Exception:
        _always_called(module, args, kwargs, result, called)
        raise


def _before_forward(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for key, hook in (*everywhere.forward_pre.items(), *module._forward_pre_hooks.items()):
        if key not in module._forward_pre_hooks_with_kwargs:
            new = hook(module, args)
            if new is not None:
                args = new if isinstance(new, tuple) else (new,)
            continue
        new = hook(module, args, kwargs)
        if new is None:
            continue
        if not (isinstance(new, tuple) and len(new) == 2):
            raise RuntimeError(
                "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                f"but got {new}."
            )
        args, kwargs = new
    return args, kwargs


def _after_forward(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, called: set[int]
) -> Any:
    for key, hook in (*everywhere.forward.items(), *module._forward_hooks.items()):
        called.add(key)
        new = _call(module, key, hook, args, kwargs, result)
        if new is not None:
            result = new
    return result


def _call(
    module: Any, key: int, hook: Hook, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Any:
    if key in module._forward_hooks_with_kwargs or key in everywhere.kwargs:
        return hook(module, args, kwargs, result)
    return hook(module, args, result)


def _always_called(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, called: set[int]
) -> None:
    """Run the hooks that were registered with ``always_call``, after an error."""
    wanted = (module._forward_hooks_always_called.keys() | everywhere.always) - called
    for key, hook in (*everywhere.forward.items(), *module._forward_hooks.items()):
        if key in wanted:
            _call(module, key, hook, args, kwargs, result)


# ---------------------------------------------------------------------- backward
class BackwardHookFunctionBackward(Node):
    """Passes the gradients of several tensors through unchanged."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the gradients of the outputs."""
        return g if type(g) is tuple else (g,)

    pull_graph = pull


def _through(values: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[int], Node | None]:
    """Return ``values`` with the tensors that require grad led through one node."""
    places = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]
    if not places or not mode.grad:
        return values, [], None
    tensors = [values[i] for i in places]
    node = BackwardHookFunctionBackward()
    node._edges, node.saved, node.clock = tuple(edge_of(t) for t in tensors), (), clock.tick()
    node._shape = tensors[0].array.shape if len(tensors) == 1 else ()
    node.likes = tuple((t.array.shape, array_namespace(t.array), t.array.dtype) for t in tensors)
    out = list(values)
    for index, (place, tensor) in enumerate(zip(places, tensors, strict=True)):
        new = wrap(tensor.array)
        new._shared, new._requires = shared_of(tensor), True
        new._node = node if len(tensors) == 1 else Slot(node, index, tensor.array)
        out[place] = new
    return tuple(out), places, node


def _gatherer(module: Any) -> _Gatherer | None:
    pre = [*everywhere.backward_pre.values(), *module._backward_pre_hooks.values()]
    full = [*everywhere.backward.values(), *module._backward_hooks.values()]
    return _Gatherer(module, pre, full) if pre or full else None


class _Gatherer:
    """Calls the backward hooks of one call of a module."""

    __slots__ = ("count", "full", "grads", "likes", "module", "places", "pre")

    def __init__(self, module: Any, pre: list[Hook], full: list[Hook]) -> None:
        self.module, self.pre, self.full = module, pre, full
        self.grads: tuple[Any, ...] | None = None
        self.places: list[int] = []
        self.likes: list[tuple[int, Any, Any, Any]] = []  # how zeros of each input look
        self.count = 0

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Lead the inputs through a node that calls the hooks with both gradients."""
        self.likes = [
            (i, array_namespace(v.array), v.array.shape, v.array.dtype)
            for i, v in enumerate(args)
            if isinstance(v, Tensor) and v.array.dtype.kind in "fcV"
        ]
        args, self.places, node = _through(args)
        self.count = len(args)
        if node is not None:
            node.register_hook(self._at_input)
        return args

    def outputs(self, result: Any) -> Any:
        """Lead the outputs through a node that notes their gradients."""
        many = isinstance(result, tuple)
        values, places, node = _through(result if many else (result,))
        if node is not None:

            def at_output(_: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
                return self._at_output(places, len(values), grads)

            node.register_hook(at_output)
        return values if many else values[0]

    def _at_output(self, places: list[int], count: int, grads: Sequence[Any]) -> tuple[Any, ...]:
        full = _spread(places, grads, count)
        for hook in self.pre:
            new = hook(self.module, full)
            if new is not None:
                full = _checked("pre ", "grad_output", new, full)
        if self.places:
            self.grads = full
        else:  # no input requires grad: nothing will come to the inputs
            for hook in self.full:
                hook(self.module, (None,) * self.count, full)
        return tuple(full[i] for i in places)

    def _at_input(self, grads: Sequence[Any], _: Any) -> tuple[Any, ...] | None:
        if self.grads is None:
            return None  # a gradient that did not come through the outputs
        spread = list(_spread(self.places, grads, self.count))
        for i, xp, shape, dtype in self.likes:
            if spread[i] is None:
                spread[i] = wrap(xp.zeros(shape, dtype))
        full = tuple(spread)
        for hook in self.full:
            new = hook(self.module, full, self.grads)
            if new is not None:
                full = _checked("", "grad_input", new, full)
        self.grads = None
        return tuple(full[i] for i in self.places)


def _checked(kind: str, what: str, new: Any, old: tuple[Any, ...]) -> tuple[Any, ...]:
    grads: tuple[Any, ...] = new if isinstance(new, tuple) else (new,)
    if len(grads) != len(old):
        raise ArgumentError(
            f"Backward {kind}hook returned an invalid number of {what}, got {len(grads)}, "
            f"but expected {len(old)}; return a tuple with one for each, or None"
        )
    return grads


def _spread(places: list[int], values: Sequence[Any], count: int) -> tuple[Any, ...]:
    full: list[Any] = [None] * count
    for place, value in zip(places, values, strict=True):
        full[place] = value
    return tuple(full)
