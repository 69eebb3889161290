"""``autograd.Function``: operations whose backward is written by the user."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from distgrad.autograd import engine, saving
from distgrad.autograd.dual import DualLevel
from distgrad.autograd.forward_ad import check_tangent
from distgrad.autograd.inplace import adopt, refuse_leaf
from distgrad.autograd.mode import mode, no_grad
from distgrad.autograd.node import Node, Slot, attached, edge_of, freed
from distgrad.autograd.tangents import Argument, check_jvp
from distgrad.autograd.traced import is_traced, running_levels
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentTypeError, GradError, ShapeError
from distgrad.tensor import Tensor, clock, shared_of, wrap

Tensors = tuple[Tensor | None, ...]


class FunctionCtx:
    """What ``forward`` notes for ``backward``; any attribute may be added."""

    to_save: tuple[Any, ...] = ()
    saved_for_forward: Tensors = ()
    dirty_tensors: tuple[Tensor, ...] = ()
    non_differentiable: tuple[Tensor, ...] = ()
    materialize_grads = True
    _materialize_non_diff_grads = True

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save tensors; ``backward`` finds them in ``saved_tensors``, checked for changes."""
        self.to_save = tensors

    def save_for_forward(self, *tensors: Tensor | None) -> None:
        """Save tensors for ``jvp``."""
        for tensor in tensors:
            if tensor is not None and not isinstance(tensor, Tensor):
                raise AssertionError(
                    "save_for_forward expects all arguments to be tensors; you should "
                    "save non-tensors as attributes on ctx."
                )
        self.saved_for_forward = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Say which inputs ``forward`` has changed in place; they must be returned."""
        self.dirty_tensors = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say which outputs carry no gradient; ``backward`` gets zeros for them."""
        self.non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Say whether ``backward`` gets zeros (True, the default) or None for missing gradients."""
        self.materialize_grads = value


class _UsersOwn:
    """An attribute of Node that belongs to the user on a ctx."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, ctx: Any, owner: Any = None) -> Any:
        if ctx is None or self.name not in ctx.__dict__:
            raise AttributeError(self.name)
        return ctx.__dict__[self.name]

    def __set__(self, ctx: Any, value: Any) -> None:
        ctx.__dict__[self.name] = value


class BackwardCFunction(Node, FunctionCtx):
    """The node of a custom Function, which is its ``ctx`` too."""

    saved = _UsersOwn()
    _forward_cls: type[Function]
    _outputs: tuple[Any, ...]  # for each output: shape, namespace and dtype; None if no tensor
    _inputs: tuple[Any, ...]  # for each argument: shape and dtype; None if no tensor
    _takes_none = True
    _forward_mode = False  # True while jvp runs
    _accessed = False  # the saved tensors were handed out for good
    _not_differentiable: tuple[int, ...] = ()  # the outputs that were marked so
    needs_input_grad: tuple[bool, ...] = ()

    @property
    def saved_tensors(self) -> Tensors:
        """The saved tensors; inside ``jvp`` those of ``save_for_forward``, if there are any.

        Raises:
            GradError: they are freed, or one was changed in place since.
        """
        if self._forward_mode:
            return self.saved_for_forward
        if self._held is None:
            if self._accessed:
                raise GradError(
                    f"{self.name()}: saved tensors of a Function with "
                    "clear_saved_tensors_on_access=True can only be accessed once"
                )
            raise freed(self)
        found = self._unpacked()
        if self._forward_cls.clear_saved_tensors_on_access and _in_backward():
            self._held, self._accessed = None, True
        return found

    def _unpacked(self) -> Tensors:
        assert self._held is not None
        return tuple([entry if entry is None else entry.tensor(self) for entry in self._held])

    @property
    def saved_variables(self) -> Tensors:
        """The old name of ``saved_tensors``."""
        warnings.warn(
            "'saved_variables' is deprecated; use 'saved_tensors'", DeprecationWarning, stacklevel=2
        )
        return self.saved_tensors

    @property
    def _raw_saved_tensors(self) -> tuple[saving.SavedTensor, ...]:
        if self._held is None:
            raise freed(self)
        return tuple([_RawSaved(self, "", i) for i in range(len(self._held))])

    def apply(self, *grads: Any) -> Any:
        """Return what the user's ``backward`` or ``vjp`` returns."""
        kind = self._forward_cls
        if kind.backward is not Function.backward and kind.vjp is not Function.vjp:
            raise GradError(
                f"backward({self.name()}): Implementing both 'backward' and 'vjp' for a custom "
                "Function is not allowed. You should only implement one of them."
            )
        user = kind.backward if kind.vjp is Function.vjp else kind.vjp
        return user(self, *grads)

    def apply_jvp(self, *tangents: Any) -> Any:
        """Return what the user's ``jvp`` returns."""
        self._forward_mode = True
        try:
            return self._forward_cls.jvp(self, *tangents)
        finally:
            self._forward_mode = False

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the gradients of the tensor arguments as arrays."""
        found = self._checked(self.apply(*self._gradients(g)))
        # views: the engine must not think that it owns what the user may keep
        return tuple([None if x is None else x.array[...] for x in found])

    def pull_graph(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return the same as tensors with a history."""
        return self._checked(self.apply(*self._gradients(g)))

    def _gradients(self, g: Any) -> list[Tensor | None]:
        parts = g if type(g) is tuple else (g,) * len(self._outputs)
        full: list[Tensor | None] = []
        skipped = () if self._materialize_non_diff_grads else self._not_differentiable
        for place, (part, like) in enumerate(zip(parts, self._outputs, strict=True)):
            if place in skipped:
                part = like = None
            if part is not None and not isinstance(part, Tensor):
                part = wrap(array_namespace(part).asarray(part))
            elif part is None and like is not None and self.materialize_grads:
                shape, xp, dtype = like
                part = wrap(xp.zeros(shape, dtype))
            full.append(engine.conjugated(part))
        return full

    def _checked(self, found: Any) -> tuple[Any, ...]:
        """Return the gradients of the tensor arguments; raise where they do not fit."""
        name, expected = self.name(), len(self._inputs)
        grads = list(found) if isinstance(found, tuple | list) else [found]
        if len(grads) > expected and all(x is None for x in grads[expected:]):
            del grads[expected:]
        if len(grads) != expected:
            self._refuse(f"function {name} returned an incorrect number of gradients (expected "
                         f"{expected}, got {len(grads)})")  # fmt: skip
        kept: list[Any] = []
        for place, (grad, like) in enumerate(zip(grads, self._inputs, strict=True)):
            if like is not None:
                kept.append(self._fitting(grad, like, len(kept)))
            elif grad is not None:
                self._refuse(
                    f"function {name} returned a gradient different than None at position "
                    f"{place + 1}, but the corresponding forward input was not a Variable"
                )
        return tuple(map(engine.conjugated, kept))

    def _fitting(self, grad: Any, like: Any, place: int) -> Tensor | None:
        if grad is None:
            return None
        if not isinstance(grad, Tensor):
            self._refuse(f"expected Variable or None (got {type(grad).__name__})")
        shape, dtype = like
        have = grad.array.shape
        lead = len(have) - len(shape)
        if lead < 0 or any(n not in (1, h) for n, h in zip(shape, have[lead:], strict=True)):
            raise ShapeError(
                f"backward({self.name()}): Function {self.name()} returned an invalid gradient at "
                f"index {place} - got {list(have)} but expected shape compatible with {list(shape)}"
            )
        if dtype is None or grad.array.dtype == dtype:
            return grad
        return _converted(grad, dtype)

    def _refuse(self, why: str) -> NoReturn:
        raise GradError(f"backward({self.name()}): {why}")


def _converted(grad: Tensor, dtype: Any) -> Tensor:
    if mode.grad and grad.requires_grad:
        return grad.to(dtype)
    return wrap(grad.array.astype(dtype))


class _Saved:
    """One tensor saved for backward, and its version then."""

    __slots__ = ("array", "index", "kept", "shared", "version")

    def __init__(self, tensor: Tensor, index: int | None) -> None:
        """Keep an input or other tensor as it is, output number ``index`` without its history."""
        self.index, self.array = index, tensor.array
        self.kept = tensor if index is None else None
        self.shared = shared_of(tensor)
        self.version = self.shared.count

    def tensor(self, ctx: BackwardCFunction) -> Tensor:
        """Return the tensor; raise if it was changed."""
        if self.shared.count != self.version:
            raise GradError(
                f"backward({ctx.name()}): one of the variables needed for gradient computation has "
                f"been modified by an inplace operation: [{self.array.dtype}"
                f"{list(self.array.shape)}] is at version {self.shared.count}; expected version "
                f"{self.version} instead; use an out-of-place operation or clone() before changing"
            )
        if self.kept is not None:
            return self.kept
        out = attached(self.array, _output_edge(ctx, self.index, self.array))
        out._shared = self.shared
        return out


class _RawSaved(saving.SavedTensor):
    """One saved tensor of a custom Function."""

    __slots__ = ()

    def _value(self) -> Any:
        node: Any = self._node
        entry = None if node._held is None else node._held[self._place]
        return entry.packed if type(entry) is _SavedPacked else entry

    @property
    def data(self) -> Any:
        """What was packed, or the saved tensor itself."""
        value = self._value()
        if value is None:
            return None
        return value.packed if type(value) is saving.Packed else value.tensor(self._node)

    def unpack(self) -> Any:
        """Return the saved tensor."""
        value = self._value()
        return None if value is None else self._node._held[self._place].tensor(self._node)  # type: ignore[index]

    def _replace(self, value: Any, hooks: saving.Hooks) -> None:
        node: Any = self._node
        tensor = value.tensor(node)
        entry = _SavedPacked(saving.Packed(tensor, hooks, edge_of(tensor)))
        node._held = (*node._held[: self._place], entry, *node._held[self._place + 1 :])


def _in_backward() -> bool:
    try:
        engine.current_walk()
    except GradError:
        return False
    return True


class _SavedPacked:
    """One tensor saved for backward through hooks."""

    __slots__ = ("packed",)

    def __init__(self, packed: saving.Packed) -> None:
        self.packed = packed

    def tensor(self, ctx: BackwardCFunction) -> Tensor:
        """Return the unpacked tensor."""
        return self.packed.tensor()


def _output_edge(ctx: BackwardCFunction, index: Any, array: Any) -> Any:
    return ctx if len(ctx._outputs) == 1 else Slot(ctx, index, array)


# ---------------------------------------------------------------------- what users subclass
class FunctionMeta(type):
    """Gives each Function the class of its nodes."""

    _backward_cls: type[BackwardCFunction]

    def __init__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
        """Make the node class ``<name>Backward``."""
        body_of_node = {"_forward_cls": cls, "__module__": __name__, "__repr__": object.__repr__}
        cls._backward_cls = type(name + "Backward", (BackwardCFunction,), body_of_node)
        super().__init__(name, bases, body)


class _Legacy:
    """An attribute of nodes, which instances of a Function once were."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            raise AttributeError(self.name)
        if self.name == "metadata":
            raise GradError(
                "You attempted to access the anomaly metadata of a custom autograd function but "
                "the underlying PyNode has already been deallocated."
            )
        raise GradError(
            f"Attribute '{self.name}' is invalid for this instance of Function: accessing it on an "
            "instance of autograd.Function is a legacy access pattern; call <class>.apply(...) and "
            "use the grad_fn of its output"
        )


class Function(metaclass=FunctionMeta):
    """Base of operations with a backward of their own: define static methods, call ``apply``.

    ``forward(ctx, *args)`` computes and saves; or ``forward(*args)`` computes and
    ``setup_context(ctx, inputs, output)`` saves.  ``backward(ctx, *grad_outputs)`` (or ``vjp``)
    returns one gradient, or None, for each argument of ``forward``.

    Example:
        >>> import distgrad as dg
        >>> class Square(dg.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         (x,) = ctx.saved_tensors
        ...         return 2 * x * g
        >>> x = dg.tensor(3.0, requires_grad=True)
        >>> y = Square.apply(x)
        >>> y
        tensor(9., grad_fn=<SquareBackward>)
        >>> y.backward()
        >>> x.grad
        tensor(6.)
    """

    generate_vmap_rule = False
    clear_saved_tensors_on_access = False
    register_hook = _Legacy()
    register_prehook = _Legacy()
    next_functions = _Legacy()
    name = _Legacy()
    _register_hook_dict = _Legacy()
    _sequence_nr = _Legacy()
    _set_sequence_nr = _Legacy()
    _input_metadata = _Legacy()
    metadata = _Legacy()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Warn: Functions are not instantiated."""
        warnings.warn(
            f"{self.__class__} should not be instantiated. Methods on autograd functions "
            "are all static, so you should invoke them on the class itself. "
            "Instantiating an autograd function will raise an "
            "error in a future version of PyTorch.",
            DeprecationWarning,
            stacklevel=2,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise GradError(
            "Legacy autograd function with non-static forward method is deprecated. Please use "
            "new-style autograd function with static forward method; call <class>.apply(...)"
        )

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; to be overridden."""
        raise NotImplementedError(
            "You must implement the forward function for custom autograd.Function."
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        """Save what backward needs, where ``forward`` takes no ctx."""
        raise NotImplementedError("setup_context is not implemented.")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Return the gradients of forward's arguments; to be overridden."""
        raise NotImplementedError(
            "You must implement either the backward or vjp method for your custom "
            "autograd.Function to use it with backward mode AD."
        )

    vjp = backward

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        """Return the tangents of the outputs for those of the inputs."""
        raise NotImplementedError(
            "You must implement the jvp function for custom "
            "autograd.Function to use it with forward mode AD."
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """Return the outputs over a batch and their batch dimensions."""
        raise NotImplementedError(
            "To use autograd.Function with vmap, you must either override the "
            "vmap staticmethod or set generate_vmap_rule=True."
        )

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` and record it.

        Raises:
            GradError: a changed input was not returned, or is a leaf that requires grad.
        """
        in_two_steps = cls.setup_context is not Function.setup_context
        if in_two_steps:
            bound = inspect.signature(cls.forward).bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        for level in reversed(running_levels()):
            if level.functional and not in_two_steps:
                raise GradError(_ONE_STEP)
            if isinstance(level, DualLevel) and has_tangent(level, args):
                if in_two_steps and mode.grad and any([_tracked(a) for a in args]):
                    break  # it is recorded here, and its forward is what this level answers
                return apply_dual(cls, level, args, kwargs)
        return cls._applied(args, kwargs, in_two_steps)[1]

    @classmethod
    def _applied(cls, args: Any, kwargs: Any, in_two_steps: bool) -> tuple[BackwardCFunction, Any]:
        ctx = cls._backward_cls()
        if saving.switch.at_birth is not None:
            saving.switch.at_birth(ctx)
        recording = _connect(ctx, args)
        before, mode.grad = mode.grad, False
        try:
            if in_two_steps:
                if is_traced(args):
                    result = batched_forward[0](cls, args, kwargs, before)
                    mode.grad = False
                else:
                    result = cls.forward(*args, **kwargs)
                cls.setup_context(ctx, args, result)
            else:
                result = cls.forward(ctx, *args, **kwargs)
        finally:
            mode.grad = before
        return ctx, _record(ctx, args, result, recording)


batched_forward: list[Callable[..., Any]] = []  # autograd.function_batch puts its own here
_ONE_STEP = (
    "In order to use an autograd.Function with functorch transforms (vmap, grad, jvp, jacrev, "
    "...), it must override the setup_context staticmethod. For more details, please see "
    "https://pytorch.org/docs/main/notes/extending.func.html"
)


class InplaceFunction(Function):
    """A Function with the flag ``inplace``, for old programs."""

    def __init__(self, inplace: bool = False) -> None:
        """Keep the flag."""
        super().__init__()
        self.inplace = inplace


class NestedIOFunction(Function):
    """A Function of old programs, whose arguments and results were nested; it cannot be applied."""


# ---------------------------------------------------------------------- recording
def _connect(ctx: BackwardCFunction, args: tuple[Any, ...]) -> bool:
    """Give the node its edges; return True when there is something to record."""
    tensors = [a if isinstance(a, Tensor) else None for a in args]
    ctx.needs_input_grad = tuple([t is not None and t.requires_grad for t in tensors])
    recording = mode.grad and any(ctx.needs_input_grad)
    ctx._inputs = tuple([None if t is None else (t.array.shape, _grad_dtype(t)) for t in tensors])
    ctx._edges = tuple([edge_of(t) for t in tensors if t is not None]) if recording else ()
    ctx._held, ctx._shape, ctx.clock = (), (), clock.tick()
    return recording


def _grad_dtype(tensor: Tensor) -> Any:
    kind = tensor._grad_dtype
    return tensor.array.dtype if kind == "own" else kind


def _record(ctx: BackwardCFunction, args: tuple[Any, ...], result: Any, recording: bool) -> Any:
    """Return the outputs with their histories, and save what is to be saved."""
    many = isinstance(result, tuple)
    raw: tuple[Any, ...] = result if many else (result,)
    ctx._outputs = ctx.likes = tuple([
        (o.array.shape, array_namespace(o.array), o.array.dtype) if isinstance(o, Tensor) else None
        for o in raw
    ])  # fmt: skip
    if len(raw) == 1 and ctx._outputs[0] is not None:
        ctx._shape = ctx._outputs[0][0]
    _check_dirty(ctx, args, raw)
    outputs = [
        _output(ctx, args, i, o, recording) if isinstance(o, Tensor) else o
        for i, o in enumerate(raw)
    ]
    ctx._not_differentiable = tuple(
        [i for i, o in enumerate(raw) if _is_in(o, ctx.non_differentiable)]
    )
    _refuse_changes_of_views(ctx, raw, outputs)
    _save(ctx, raw, recording)
    ctx.to_save, ctx.dirty_tensors, ctx.non_differentiable = (), (), ()
    return tuple(outputs) if many else outputs[0]


def _is_in(tensor: Any, tensors: Sequence[Any]) -> bool:
    return any(tensor is t for t in tensors)


_NO_INPUT = (
    "ctx.mark_dirty() received a tensor that was not an input. Only input Tensors that have been "
    "mutated should be passed to ctx.mark_dirty()."
)


def _check_dirty(ctx: BackwardCFunction, args: tuple[Any, ...], raw: tuple[Any, ...]) -> None:
    name = ctx._forward_cls.__name__
    for tensor in ctx.dirty_tensors:
        if not _is_in(tensor, raw):
            raise GradError(
                f"{name}.apply(): Some elements marked as dirty during the forward method were not "
                "returned as output. The inputs that are modified inplace must all be outputs of "
                "the Function."
            )
        if not _is_in(tensor, args):
            if tensor._base is not None:
                raise GradError(f"{name}.apply(): {_NO_INPUT}")
            warnings.warn(
                _NO_INPUT,
                stacklevel=4,
            )
        elif tensor._base is not None and sum(isinstance(o, Tensor) for o in raw) > 1:
            raise GradError(
                f"{name}.apply(): If your Function modifies inplace an input that is a view of "
                "another Tensor, your Function cannot return more than one Tensor. This is not "
                "supported by the current autograd engine. You should either make sure the input "
                "is not a view (using .clone() for example) or make your Function only return one "
                "Tensor (potentially splitting it into two Functions)."
            )


def _output(
    ctx: BackwardCFunction, args: tuple[Any, ...], index: int, out: Tensor, recording: bool
) -> Tensor:
    """Return output number ``index`` with the history that it has outside."""
    is_input, dirty = _is_in(out, args), _is_in(out, ctx.dirty_tensors)
    plain = out.array.dtype.kind not in "fcV" or _is_in(out, ctx.non_differentiable)
    if dirty and is_input:
        shared_of(out).bump()
    if is_input and not dirty:
        out = out.detach()
    elif plain or not recording:
        if out.requires_grad and not (is_input and not plain):
            out = out.detach()
        return out
    if plain or not recording:
        return out
    edge = _output_edge(ctx, index, out.array)
    if not dirty or not is_input:
        out._node, out._requires = edge, True
        return out
    name = f"{ctx._forward_cls.__name__}.apply"
    if out._requires and out._node is None and out._base is None:
        raise GradError(
            f"{name}({out._brief()}): a leaf Variable that requires grad has been used in an "
            "in-place operation; use it under dg.no_grad() or change a clone()"
        )
    refuse_leaf(out, name)
    adopt(out, edge, True)
    return out


_VIEW = (
    "Output {} of {} is a view and is being modified inplace. This view was created inside a "
    "custom Function (or because an input was returned as-is) and the autograd logic to handle "
    "view+inplace would override the custom backward associated with the custom Function, leading "
    "to incorrect gradients. This behavior is forbidden. You can fix this by cloning the output of "
    "the custom Function."
)
_ONE_OF_SEVERAL = (
    "Output {} of {} is a view and is being modified inplace. This view is the output of a "
    "function that returns multiple views. Such functions do not allow the output views to be "
    "modified inplace. You should replace the inplace operation by an out-of-place one."
)


def _refuse_changes_of_views(
    ctx: BackwardCFunction, raw: tuple[Any, ...], outputs: list[Any]
) -> None:
    """Cut views off from their base, whose changes would give them a history without backward."""
    recorded = [
        (i, o)
        for i, o in enumerate(outputs)
        if isinstance(o, Tensor) and o._node is not None and o._node.owner is ctx
    ]
    why = _VIEW if len(recorded) == 1 else _ONE_OF_SEVERAL
    for index, out in recorded:
        if out._base is not None or out is not raw[index]:
            out._base = out._unseen = None
            out.__dict__["_custom_view"] = why.format(index, ctx._forward_cls.__name__)
    if not recorded and mode.grad:
        for index, out in enumerate(outputs):
            is_view = isinstance(out, Tensor) and out._base is not None
            if is_view and not _is_in(out, ctx.dirty_tensors):
                out._unseen = None
                out.__dict__["_custom_view"] = _VIEW.format(index, ctx._forward_cls.__name__)


def _save(ctx: BackwardCFunction, raw: tuple[Any, ...], recording: bool) -> None:
    for place, tensor in enumerate(ctx.to_save):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"{ctx._forward_cls.__name__}.apply(): save_for_backward can only save variables, "
                f"but argument {place} is of type {type(tensor).__name__}; set it as ctx.<name>"
            )
    if recording:
        ctx._held = tuple([t if t is None else _entry(ctx, t, raw) for t in ctx.to_save])


def _entry(ctx: BackwardCFunction, tensor: Tensor, raw: tuple[Any, ...]) -> Any:
    if saving.switch.inspect is not None:
        saving.switch.inspect(tensor)
    of_this = tensor._node is not None and tensor._node.owner is ctx
    of_this = of_this or _is_in(tensor, ctx.dirty_tensors)
    index = next((i for i, o in enumerate(raw) if of_this and o is tensor), None)
    if not saving.local.hooks:
        return _Saved(tensor, index)
    return _SavedPacked(saving.Packed(tensor, saving.local.hooks[-1], edge_of(tensor)))


# ---------------------------------------------------------------------- forward mode
def _tracked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def has_tangent(level: DualLevel, args: tuple[Any, ...]) -> bool:
    """Return True when one of ``args`` carries a tangent of ``level`` on top."""
    return any(isinstance(a, Tensor) and level.parts(a)[1] is not None for a in args)


def apply_dual(kind: type[Function], level: DualLevel, args: Any, kwargs: Any) -> Any:
    """Run ``forward`` on the primals and ``jvp`` on the tangents."""
    pairs = [level.parts(a) if isinstance(a, Tensor) else (a, None) for a in args]
    in_two_steps = kind.setup_context is not Function.setup_context
    ctx, result = kind._applied(tuple(p for p, _ in pairs), kwargs, in_two_steps)
    given = [_tangent(ctx, p, t) for p, t in pairs]
    before = [t._version if isinstance(t, Tensor) else 0 for t in given]
    found = ctx.apply_jvp(*given)
    tangents = found if isinstance(found, tuple) else (found,)
    outputs = result if isinstance(result, tuple) else (result,)
    if len(tangents) != len(outputs):
        raise GradError(
            f"{kind.__name__}.jvp(): Function's jvp returned an invalid number of forward "
            f"gradients (expected {len(outputs)} but got {len(tangents)})"
        )
    known = [
        Argument(a, p, t, v) for a, (p, _), t, v in zip(args, pairs, given, before, strict=True)
    ]
    duals = []
    for place, (o, t) in enumerate(zip(outputs, tangents, strict=True)):
        check_jvp(kind.__name__, ctx, place, o, t, known)
        duals.append(_dual(level, args, pairs, o, t))
    return tuple(duals) if isinstance(result, tuple) else duals[0]


def _tangent(ctx: BackwardCFunction, primal: Any, tangent: Tensor | None) -> Tensor | None:
    if tangent is not None or not isinstance(primal, Tensor) or not ctx.materialize_grads:
        return tangent
    if primal.array.dtype.kind not in "fcV":
        return None
    return wrap(array_namespace(primal.array).zeros_like(primal.array))


def _dual(level: DualLevel, args: Any, pairs: Any, out: Any, tangent: Any) -> Any:
    """Return an output with its tangent; an input that was changed in place is itself returned."""
    if not isinstance(out, Tensor) or tangent is None:
        return out
    check_tangent("jvp", out, tangent)
    for arg, (primal, _) in zip(args, pairs, strict=True):
        if out is primal and arg is not primal:
            if arg.array.tangent is not tangent:
                raise GradError(_NOT_IN_PLACE)
            return arg
    dual = level.dual(out, tangent)
    if out._node is not None:
        dual._requires, dual._node = True, saving.through(out._node)
    return dual


_NOT_IN_PLACE = (
    "An inplace custom Function is not modifying the forward mode gradients inplace. If the "
    "forward is modifying an input inplace, then the jvp function must modify the corresponding "
    "gradient inplace."
)


# ---------------------------------------------------------------------- once_differentiable
class Error(Node):
    """Raises when a gradient arrives."""

    def __init__(self, message: str, outputs: tuple[Any, ...]) -> None:
        """Stand behind ``outputs``; what would come after it are leaves that nobody sees."""
        self.message, self.saved, self.clock = message, (), clock.tick()
        tensors = [o for o in outputs if isinstance(o, Tensor)]
        self._edges = tuple(
            [wrap(o.array).requires_grad_() if isinstance(o, Tensor) else None for o in outputs]
        )
        self._shape = tensors[0].array.shape if len(outputs) == 1 and tensors else ()
        self.likes = () if len(outputs) == 1 else tuple([
            (o.array.shape, array_namespace(o.array), o.array.dtype)
            if isinstance(o, Tensor) else None
            for o in outputs
        ])  # fmt: skip

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Raise."""
        raise GradError(f"backward({self.name()}): {self.message}")

    pull_graph = pull


def once_differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``backward`` that runs without recording; differentiating it again is an error."""

    @functools.wraps(function)
    def wrapper(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        with no_grad():
            outputs = function(ctx, *args, **kwargs)
        if not mode.grad or not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return outputs
        many = isinstance(outputs, tuple)
        found = _once(outputs if many else (outputs,))
        return found if many else found[0]

    return wrapper


def _once(outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    message = "trying to differentiate twice a function that was marked with @once_differentiable"
    node = Error(message, outputs)
    found = []
    for index, out in enumerate(outputs):
        if isinstance(out, Tensor):
            out = out.detach()
            out._requires = True
            out._node = node if len(outputs) == 1 else Slot(node, index, out.array)
        found.append(out)
    return tuple(found)
