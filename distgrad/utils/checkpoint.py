"""Activation checkpointing: what backward needs is computed again instead of kept.

Without reentrance (the one to use), the forward records its graph as always, but a hook replaces
each tensor that would be saved by a place holder.  The first place holder that backward asks for
runs the function again under another hook, which catches the same tensors in the same order; the
run stops when it has the last one.  Nested checkpoints work the same way, one level at a time.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from distgrad.autograd import engine, saving
from distgrad.autograd.function import Function
from distgrad.autograd.gradients import backward
from distgrad.autograd.graph import saved_tensors_hooks
from distgrad.autograd.mode import enable_grad, mode, no_grad
from distgrad.autograd.node import edge_of
from distgrad.errors import ArgumentError, CheckpointError, GradError
from distgrad.nn.modules.container import Sequential
from distgrad.ops.random import fork_rng, get_rng_state, set_rng_state
from distgrad.tensor import Tensor
from distgrad.utils.selective import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

__all__ = [
    "CheckpointError",
    "CheckpointFunction",
    "CheckpointPolicy",
    "GraphExecGroup",
    "SelectiveCheckpointContext",
    "checkpoint",
    "checkpoint_sequential",
    "create_selective_checkpoint_contexts",
    "noop_context_fn",
    "set_checkpoint_debug_enabled",
    "set_checkpoint_early_stop",
]

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def noop_context_fn() -> Contexts:
    """Return two contexts that do nothing."""
    return nullcontext(), nullcontext()


class _Settings:
    early_stop: bool | None = None
    debug: bool | None = None


@contextmanager
def set_checkpoint_early_stop(enable: bool) -> Iterator[None]:
    """Let checkpoints made inside the block stop when all is recomputed (True), or run on."""
    before, _Settings.early_stop = _Settings.early_stop, enable
    try:
        yield
    finally:
        _Settings.early_stop = before


@contextmanager
def set_checkpoint_debug_enabled(enabled: bool | None) -> Iterator[None]:
    """Set ``debug`` for all checkpoints made inside the block."""
    before, _Settings.debug = _Settings.debug, enabled
    try:
        yield
    finally:
        _Settings.debug = before


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    preserve_rng_state: bool = True,
    context_fn: Callable[[], Contexts] = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    **kwargs: Any,
) -> Any:
    """Return ``function(*args, **kwargs)``; what backward needs of it is computed again there.

    Args:
        function: what to run; it must do the same both times.
        args, kwargs: its arguments; they are kept.
        use_reentrant: False; True runs the forward without recording and a backward inside
            backward, with PyTorch's limits.
        preserve_rng_state: draw the same random numbers both times.
        context_fn: gives two contexts, for the forward and for the second run.
        determinism_check: "default" compares shapes, dtypes and devices, "none" nothing.
        debug: name the node of each tensor in the error when the two runs differ.
        early_stop: end the second run as soon as all is there.

    Raises:
        CheckpointError: the second run saved other tensors than the first.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor([1.0, 2.0], requires_grad=True)
        >>> checkpoint(lambda x: (x * x).sum(), x, use_reentrant=False).backward()
        >>> x.grad
        tensor([2., 4.])
    """
    if use_reentrant is None:
        _warn_reentrant("checkpoint")
        use_reentrant = True
    if not use_reentrant:
        frame = _Frame(
            function, args, kwargs, preserve_rng_state, context_fn, determinism_check, debug,
            early_stop if _Settings.early_stop is None else _Settings.early_stop,
        )  # fmt: skip
        return frame.forward()
    if kwargs:
        raise ArgumentError(f"checkpoint(): Unexpected keyword arguments: {','.join(kwargs)}")
    if context_fn is not noop_context_fn or debug:
        raise ArgumentError(
            "checkpoint(): Passing `context_fn` or `debug` is only supported when "
            "use_reentrant=False."
        )
    return CheckpointFunction.apply(function, preserve_rng_state, *args)


def checkpoint_sequential(
    functions: Sequential | Sequence[Callable[..., Any]],
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    *,
    preserve_rng_state: bool = True,
) -> Any:
    """Return ``input`` after all ``functions``, in ``segments`` checkpoints; the last keeps all.

    Args:
        functions: a Sequential or a list of modules or functions, each of one argument.
        segments: how many parts.
        input: what the first one gets.
        use_reentrant: as in ``checkpoint``.
        preserve_rng_state: as in ``checkpoint``.
    """
    if use_reentrant is None:
        _warn_reentrant("checkpoint_sequential")
        use_reentrant = True
    parts = list(functions.children()) if isinstance(functions, Sequential) else list(functions)
    size = len(parts) // segments
    end = 0
    for start in range(0, size * (segments - 1), size):
        end = start + size
        input = checkpoint(
            _chain(parts[start:end]), input, use_reentrant=use_reentrant,
            preserve_rng_state=preserve_rng_state,
        )  # fmt: skip
    return _chain(parts[end:])(input)


def _chain(functions: Sequence[Callable[..., Any]]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        for function in functions:
            value = function(value)
        return value

    return run


def _warn_reentrant(name: str) -> None:
    warnings.warn(
        f"{name}(): the use_reentrant parameter should be passed explicitly. use_reentrant=False "
        "is recommended, but if you need to preserve the current default behavior, you can pass "
        "use_reentrant=True.",
        stacklevel=3,
    )


# ---------------------------------------------------------------------- without reentrance
class _Stop(Exception):
    """No error: the second run has all it came for."""


class _Holder:
    """Stands for one saved tensor; ``found``: by backward, the tensor computed again."""

    __slots__ = ("__weakref__", "found", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.found: weakref.WeakKeyDictionary[Any, Tensor | None] = weakref.WeakKeyDictionary()


class _Frame:
    """One call of ``checkpoint``."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        preserve: bool,
        context_fn: Callable[[], Contexts],
        check: str,
        debug: bool,
        early_stop: bool,
    ) -> None:
        if check not in ("default", "none"):
            raise ArgumentError(
                "checkpoint(): determinism_check should be one of ['default', 'none'], but got "
                f"{check}"
            )
        self.function, self.args, self.kwargs = function, args, kwargs
        self.first, self.second = context_fn()
        self.check, self.early_stop = check == "default", early_stop
        self.debug = debug if _Settings.debug is None else _Settings.debug
        self.state = get_rng_state() if preserve else None
        self.versions = [a._version if isinstance(a, Tensor) else 0 for a in args]
        if mode.grad and saving.local.hooks:  # a checkpoint around this one keeps the arguments
            hooks = saving.local.hooks[-1]
            self.args = tuple(
                saving.Packed(a, hooks, edge_of(a)) if isinstance(a, Tensor) else a for a in args
            )
        self.given = args
        self.holders: list[weakref.ref[_Holder]] = []
        self.looks: list[Any] = []
        self.done: weakref.WeakSet[Any] = weakref.WeakSet()  # backwards that ran it again
        self.complete = False

    def forward(self) -> Any:
        """Run the function the first time."""
        args, self.given = self.given, ()
        if not mode.grad:
            return self.function(*args, **self.kwargs)
        with saved_tensors_hooks(self._pack, self._unpack), self.first:
            result = self.function(*args, **self.kwargs)
        self.complete = True
        return result

    def _pack(self, tensor: Tensor) -> _Holder:
        holder = _Holder(len(self.holders))
        self.holders.append(weakref.ref(holder))
        self.looks.append(_look(tensor) if self.check else None)
        return holder

    def _unpack(self, holder: _Holder) -> Tensor:
        task = _task()
        if task not in self.done:
            self._again(task)
            self.done.add(task)
        if holder.found.get(task) is None:
            if isinstance(task, GraphExecGroup):
                raise CheckpointError(
                    "checkpoint(): Performing two backward calls that overlap (i.e. require the "
                    "same saved activations) in one GraphExecGroup is not supported; leave it "
                    "between them"
                )
            raise CheckpointError(
                "checkpoint(): Unpack is being triggered for a tensor that was already unpacked "
                "once. If you are calling ctx.saved_tensors in backward, make sure to do so only "
                "once."
            )
        found = holder.found[task]
        assert found is not None
        holder.found[task] = None  # once only: it may be freed as backward goes on
        return found

    def _again(self, task: Any) -> None:
        """Run the function the second time and hand its tensors to the holders."""
        count = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            place, count = count, count + 1
            tensor = tensor.detach() if tensor.requires_grad else tensor
            if place >= len(self.holders):
                if not self.complete:
                    return tensor  # a backward inside the function: more is to come in the first
                raise CheckpointError(
                    "checkpoint(): trying to save more tensors during recomputation than during "
                    f"the original forward pass.{self._hint()}"
                )
            holder = self.holders[place]()
            if holder is not None:
                holder.found[task] = tensor
                self._compare(place, tensor)
            if self.early_stop and count == len(self.holders):
                raise _Stop
            return tensor

        self._check_arguments()
        args = tuple(a.tensor() if type(a) is saving.Packed else a for a in self.args)
        with fork_rng(enabled=self.state is not None):
            if self.state is not None:
                set_rng_state(self.state)
            try:
                with saved_tensors_hooks(pack, _same), enable_grad(), self.second:
                    self.function(*args, **self.kwargs)
            except _Stop:
                pass
        if self.complete and count != len(self.holders):
            raise CheckpointError(
                "checkpoint(): A different number of tensors was saved during the original "
                "forward and recomputation.\n"
                f"Number of tensors saved during forward: {len(self.holders)}\n"
                f"Number of tensors saved during recomputation: {count}.{self._hint()}"
            )

    def _check_arguments(self) -> None:
        for place, (arg, version) in enumerate(zip(self.args, self.versions, strict=True)):
            if isinstance(arg, Tensor) and arg._version != version:
                raise GradError(
                    f"checkpoint(argument {place}: {arg._brief()}): one of the variables needed "
                    "for gradient computation has been modified by an inplace operation: it is at "
                    f"version {arg._version}; expected version {version} instead"
                )

    def _compare(self, place: int, tensor: Tensor) -> None:
        if self.check and _look(tensor) != self.looks[place]:
            raise CheckpointError(
                "checkpoint(): Recomputed values for the following tensors have different metadata "
                f"than during the forward pass.\ntensor at position {place}:\n"
                f"saved metadata: {self.looks[place]}\nrecomputed metadata: {_look(tensor)}"
                f"{self._hint()}"
            )

    def _hint(self) -> str:
        if not self.debug:
            return "\nTip: To see a more detailed error message, pass `debug=True` to checkpoint()."
        lead = (
            "You are seeing this error because you passed `debug=True` to checkpoint and tensors "
            "to be saved during the original forward and differ between those saved during "
            "recomputation."
        )
        rows = "\n".join(f"  {i}: {look}" for i, look in enumerate(self.looks))
        return f"\n{lead}\nTensors saved during the original forward:\n{rows}"


def _look(tensor: Tensor) -> dict[str, Any]:
    return {"shape": tensor.shape, "dtype": tensor.dtype, "device": tensor.device}


def _same(tensor: Tensor) -> Tensor:
    return tensor


class GraphExecGroup:
    """Counts the backwards inside a ``with`` block as one: what is computed again serves them all.

    They must not need the same saved tensors.
    """

    def __enter__(self) -> GraphExecGroup:
        if _groups.stack:
            raise GradError("GraphExecGroup(): GraphExecGroup contexts cannot be nested")
        _groups.stack.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _groups.stack.pop()


class _Groups(threading.local):
    def __init__(self) -> None:
        self.stack: list[GraphExecGroup] = []


_groups = _Groups()


class _Outside:
    """What stands for the backward, when a saved tensor is looked at outside one."""


def _task() -> Any:
    if _groups.stack:
        return _groups.stack[-1]
    try:
        return engine.current_walk()
    except GradError:
        return _Outside()


# ---------------------------------------------------------------------- with reentrance
class CheckpointFunction(Function):
    """Runs forward without recording, and in backward forward and backward again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        """Return ``function(*args)``."""
        if not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            warnings.warn(
                "None of the inputs have requires_grad=True. Gradients will be None", stacklevel=4
            )
        ctx.function, ctx.preserve = function, preserve
        ctx.state = get_rng_state() if preserve else None
        ctx.values = [None if isinstance(a, Tensor) else a for a in args]
        ctx.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*[args[i] for i in ctx.places])
        with no_grad():
            return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradients of the arguments."""
        if engine.current_walk().inputs is not None:
            raise GradError(
                "checkpoint(use_reentrant=True): When use_reentrant=True, checkpoint is "
                "incompatible with .grad() or passing an `inputs` parameter to .backward(). To "
                "resolve this error, you can set use_reentrant=False"
            )
        args = list(ctx.values)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            args[place] = tensor.detach().requires_grad_(tensor.requires_grad)
        with fork_rng(enabled=ctx.preserve), enable_grad():
            if ctx.preserve:
                set_rng_state(ctx.state)
            outputs = ctx.function(*args)
        outs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [
            (o, g)
            for o, g in zip(outs, grads, strict=True)
            if isinstance(o, Tensor) and o.requires_grad
        ]
        if not pairs:
            raise GradError(
                "checkpoint(use_reentrant=True): none of output has requires_grad=True, this "
                "checkpoint() is not necessary"
            )
        backward([o for o, _ in pairs], [g for _, g in pairs])
        return (None, None, *[a.grad if isinstance(a, Tensor) else None for a in args])
