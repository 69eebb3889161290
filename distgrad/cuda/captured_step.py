"""A training step that becomes one launch: captured once for each kind of call, then replayed.

Note [What a captured step depends on]
    The shapes and dtypes of its arguments, the modes of the modules and optimizers that it uses,
    and where their parameters lie.  All of that is its key.  Modules and optimizers are found while
    the step runs the first times, by hooks.  Ranks compare keys before each step, since the
    all-reduces of one replay need those of the others, and a mean holds the global sample count.

Note [Gradients between calls]
    A graph writes gradients where its capture had them, or adds to those that were there then.
    So before a replay, gradients it adds to are brought to that place if they lie elsewhere, and
    after it ``grad`` of each parameter is what it was after the capture.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.amp.state import get_autocast_dtype, is_autocast_enabled
from distgrad.autograd.mode import mode
from distgrad.backend.device import cupy_module
from distgrad.cuda.graphs import CUDAGraph, capture_stream, graph
from distgrad.cuda.streams import current_stream, stream
from distgrad.cuda.trees import leaves, outline, rebuilt
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reducer import Reducer
from distgrad.errors import ArgumentError, CaptureError, DistributedError
from distgrad.nn.hooks import register_module_forward_pre_hook
from distgrad.nn.module import Module
from distgrad.nn.parallel.distributed import DistributedDataParallel
from distgrad.ops.create import empty_like
from distgrad.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from distgrad.tensor import Tensor

__all__ = ["CapturedStep", "capture_step"]

EAGER, CAPTURE, REPLAY = range(3)


class _Used:
    """The modules and optimizers that a step uses."""

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self.optimizers: list[Optimizer] = []
        self._known: set[int] = set()

    @contextmanager
    def found(self) -> Iterator[None]:
        """Note those that this thread uses in the block."""
        thread = threading.get_ident()

        def use(one: Any, *rest: Any) -> None:
            if threading.get_ident() == thread and id(one) not in self._known:
                self._known.add(id(one))
                (self.modules if isinstance(one, Module) else self.optimizers).append(one)

        handles = register_module_forward_pre_hook(use), register_optimizer_step_pre_hook(use)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def parallel(self) -> list[DistributedDataParallel]:
        """The modules whose gradients are averaged over ranks."""
        return [m for m in self.modules if isinstance(m, DistributedDataParallel)]

    def params(self) -> list[Tensor]:
        """Return all parameters, each once."""
        found = {id(p): p for m in self.modules for p in m._parameters.values() if p is not None}
        for optimizer in self.optimizers:
            found |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
        return list(found.values())

    def plans(self) -> tuple[Any, ...]:
        """Return where the optimizers have their state, as far as they know it."""
        return tuple([id(plan) for o in self.optimizers for plan in o.layouts()])

    def buffers(self) -> dict[str, Tensor]:
        """Return all buffers by a name for messages."""
        return {
            f"{type(m).__name__}.{name}": b
            for m in self.modules
            for name, b in m._buffers.items()
            if b is not None
        }

    def modes(self) -> tuple[Any, ...]:
        """Return what they are set to."""
        return (
            tuple([m.training for m in self.modules]),
            tuple([m.reducer.stage for m in self.parallel]),
        )


class _Counted:
    """What a step changes in the counts of a reducer, which a replay has to change too.

    Args:
        reducer: before the step.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._reducer, self._before = reducer, reducer.standing()
        self._reductions, self._more = reducer.reductions, 0

    def settle(self) -> None:
        """Let the current stream wait for parameters that are being gathered."""
        if self._reducer.gathering:
            self._reducer.gathering.wait()

    def note(self) -> None:
        """Look at the counts after the capture, which counted a step that was not made yet."""
        r = self._reducer
        self._after = r.standing()
        self._more = r.reductions - self._reductions
        self.undo()

    def undo(self) -> None:
        """Count as if there had been no capture."""
        r = self._reducer
        r.gathering.forget()  # before the capture all was gathered
        r.reset()
        r.stand(self._before)
        r.reductions = self._reductions

    def replay(self) -> None:
        """Change them as the step did."""
        self._reducer.stand(self._after)
        self._reducer.reductions += self._more


class _Recorded:
    """A captured call.

    Args:
        given: the arguments' tensors, which are copied.
        used: the modules and optimizers.
    """

    def __init__(self, given: list[Tensor], used: _Used) -> None:
        self.graph, params = CUDAGraph(), used.params()
        self.counts = [_Counted(m.reducer) for m in used.parallel]
        self.given = [_copy_of(t) for t in given]
        self.params = params
        self.arrays = [p.array for p in params]  # whose addresses the graph has
        self.before = [p.grad for p in params]
        self.out: Any = None

    def note(self) -> None:
        """Look at counts, and where the gradients are, after the capture."""
        for counts in self.counts:
            counts.note()
        self.after = [p.grad for p in self.params]
        pairs = zip(self.params, self.before, self.after, strict=True)
        self.kept = [(p, a) for p, b, a in pairs if a is not None and a is b]

    def undo(self) -> None:
        """Leave nothing of a capture that failed, here or on another rank."""
        for counts in self.counts:
            counts.undo()
        for p, grad in zip(self.params, self.before, strict=True):
            p.grad = grad

    def replay(self, given: list[Tensor]) -> Any:
        """Do the step with other arguments; return where its results are."""
        for place, fresh in zip(self.given, given, strict=True):
            if place.array is not fresh.array:
                place.array[...] = fresh.array
        for p, grad in self.kept:
            if p.grad is not None and p.grad.array is not grad.array:
                grad.array[...] = p.grad.array
        for counts in self.counts:
            counts.settle()
        self.graph.replay()
        for counts in self.counts:
            counts.replay()
        for p, after in zip(self.params, self.after, strict=True):
            if p.grad is not after:
                p.grad = after
        return self.out


def _copy_of(tensor: Tensor) -> Tensor:
    made = empty_like(tensor).detach()
    made.array[...] = tensor.array
    return made.requires_grad_(tensor.requires_grad)


class CapturedStep:
    """A function of tensors whose work for the GPU is captured; `capture_step` makes it.

    Args:
        function: the step.
        warmup: how often a kind of call runs as it is, before it is captured.
        limit: how many kinds of calls are kept, of those used last.
    """

    def __init__(self, function: Callable[..., Any], warmup: int = 3, limit: int = 8) -> None:
        if warmup < 1 or limit < 1:
            raise ArgumentError(f"capture_step(warmup={warmup}, limit={limit}): at least 1 each")
        self.function, self.warmup, self.limit = function, warmup, limit
        self._used = _Used()
        self._runs: OrderedDict[Any, int] = OrderedDict()
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()
        self._last: tuple[Any, _Recorded] | None = None

    @property
    def captured(self) -> int:
        """How many kinds of calls are captured."""
        return len(self._recorded)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the step returns; of a replay, tensors that the next one writes again."""
        cupy = cupy_module("cuda.capture_step()")
        given = leaves((args, kwargs))
        if not all(t.is_cuda for t in given):
            raise ArgumentError(
                "a captured step: an argument is a tensor on the CPU, whose numbers a CUDA graph "
                "would not see again; move it to the GPU"
            )
        if mode.inference or not _is_plain(cupy):
            raise CaptureError("a captured step: called inside another capture; end that first")
        key = self._key((args, kwargs))
        if self._last is not None and self._last[0] == key:
            return self._last[1].replay(given)
        stage, key = self._agreed(self._stage(key), key)
        if stage == REPLAY:
            self._recorded.move_to_end(key)
            return self._again(key, given)
        if stage == EAGER:
            return self._run(cupy, (args, kwargs), key[0][:-2])
        self._recorded[key] = self._capture(given, (args, kwargs))
        if len(self._recorded) > self.limit:
            self._recorded.popitem(last=False)
        return self._again(key, given)

    def _again(self, key: Any, given: list[Tensor]) -> Any:
        recorded = self._recorded[key]
        if len(key[1]) == 1:  # there are no ranks to agree with: the next call may be the same
            self._last = key[0], recorded
        return recorded.replay(given)

    # ------------------------------------------------------------------ which call it is
    @property
    def _group(self) -> ProcessGroup | None:
        """The ranks that take part; None for this one alone."""
        groups = (m.process_group for m in self._used.parallel)
        return next((group for group in groups if group.size > 1), None)

    def _key(self, call: Any) -> Any:
        params = self._used.params()
        places = tuple([id(p.array) for p in params])
        flags = tuple([p._requires + 2 * (p._grad is None) for p in params])
        autocast = is_autocast_enabled("cuda") and str(get_autocast_dtype("cuda"))
        kind = outline(call), self._used.modes(), mode.grad, autocast, self._used.plans()
        return *kind, (places, flags)

    def _stage(self, key: Any) -> int:
        if any(key == known for known, _ in self._recorded):
            return REPLAY
        return CAPTURE if self._runs.get(key[:-1], 0) >= self.warmup else EAGER

    def _agreed(self, stage: int, key: Any) -> tuple[int, Any]:
        """Return what all ranks do, and the key with those of the others."""
        group, said = self._group, [(0, stage)]
        if group is not None:
            digest = zlib.crc32(repr(key[:2]).encode())
            said = group.channel("control").all_gather_object((digest, stage))
        key = key, tuple(digest for digest, _ in said)
        stage = min(stage for _, stage in said)
        return (CAPTURE if stage == REPLAY and key not in self._recorded else stage), key

    # ------------------------------------------------------------------ the ways to run it
    def _run(self, cupy: Any, call: Any, kind: tuple[Any, ...]) -> Any:
        """Run the step as it is, where it will be captured."""
        beside, here, known = capture_stream(cupy), current_stream(), len(self._used.modules)
        beside.wait_stream(here)
        args, kwargs = call
        with stream(beside), self._used.found():
            out = self.function(*args, **kwargs)
        here.wait_stream(beside)
        if len(self._used.modules) != known:  # the key did not have their modes
            kind = kind[0], self._used.modes(), *kind[2:]
        kind = *kind, self._used.plans()
        self._runs[kind] = self._runs.pop(kind, 0) + 1
        if len(self._runs) > 8 * self.limit:
            self._runs.popitem(last=False)
        return out

    def _capture(self, given: list[Tensor], call: Any) -> _Recorded:
        recorded, error = _Recorded(given, self._used), None
        try:
            self._record(recorded, call)
        except Exception as wrong:
            error = wrong
        try:
            self._agree_on(error)
        except BaseException:
            recorded.undo()
            raise
        recorded.before.clear()
        return recorded

    def _agree_on(self, error: Exception | None) -> None:
        """Raise the error of a capture; on ranks whose own one succeeded, that of another rank.

        Ranks: all, unless the ranks have lost each other.
        """
        group = self._group
        if group is not None and not isinstance(error, DistributedError):
            said = group.channel("control").all_gather_object(_in_words(error))
            rank, text = next((pair for pair in enumerate(said) if pair[1]), (0, ""))
            if len(set(said)) > 1 and (error is None or isinstance(error, CaptureError)):
                raise CaptureError(f"a captured step: rank {rank} cannot: {text}") from error
        if error is not None:
            raise error

    def _record(self, recorded: _Recorded, call: Any) -> None:
        """Run the step while CUDA records it."""
        buffers = {name: (b, b.array) for name, b in self._used.buffers().items()}
        args, kwargs = rebuilt(call, recorded.given)
        for counts in recorded.counts:
            counts.settle()
        with graph(recorded.graph):
            recorded.out = self.function(*args, **kwargs)
            for counts in recorded.counts:
                counts.settle()  # all streams have to come together in the end
        recorded.note()
        now = self._used.buffers()
        for name, (buffer, array) in buffers.items():
            if now.get(name) is not buffer or buffer.array is not array:
                raise CaptureError(
                    f"a captured step: it puts another tensor in the place of the buffer {name}, "
                    "which a replay would not do; change the buffer in place"
                )
        recorded.out = rebuilt(recorded.out, [t.detach() for t in leaves(recorded.out)])


def _in_words(error: Exception | None) -> str:
    """Return what other ranks are to hear of an error."""
    if error is None or isinstance(error, CaptureError):
        return str(error or "")
    return f"{type(error).__name__}: {error}"


def _is_plain(cupy: Any) -> bool:
    return not cupy.cuda.get_current_stream().is_capturing()


def capture_step(
    function: Callable[..., Any] | None = None, *, warmup: int = 3, limit: int = 8
) -> Any:
    """Return ``function``, a whole training step, such that it becomes one launch of a CUDA graph.

    The first calls of a kind run as they are, and train; the next one captures, and from then on
    the step is replayed: forward, backward, all-reduce, clipping and optimizer together.  Calls are
    of one kind if shapes, dtypes and modes agree (Note [What a captured step depends on]).

    What the step returns lies where the next replay writes: read it, or ``clone()`` it, before.
    Python in the step runs when it is captured only, so its numbers must not change; the learning
    rate of an optimizer may.

    Args:
        function: takes tensors on the GPU, in tuples, lists and dicts too; without it the result
            is a decorator.
        warmup: how often a kind of call runs before it is captured.
        limit: how many captured kinds of calls are kept.

    Raises:
        CaptureError: something in the step cannot be recorded, here or on another rank; names it,
            and the line.  Counts and gradients are as before, so the function itself may go on.

    Ranks: all call it together, where the step averages gradients over ranks.
    """
    if function is None:
        return lambda given: CapturedStep(given, warmup, limit)
    return CapturedStep(function, warmup, limit)
