"""Selective checkpointing: a policy says which operations are kept and which are computed again.

The contexts are those of ``checkpoint(context_fn=...)``.  In the first run the outputs that the
policy wants to save are put aside; in the second run they take the place of their computation.
"""

from __future__ import annotations

import enum
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from distgrad.autograd import saving
from distgrad.autograd.declare import Operation
from distgrad.autograd.graph import memory_of
from distgrad.autograd.watching import watching
from distgrad.errors import ArgumentError, ArgumentTypeError, GradError
from distgrad.tensor import Tensor, wrap

__all__ = ["CheckpointPolicy", "SelectiveCheckpointContext", "create_selective_checkpoint_contexts"]


class CheckpointPolicy(enum.Enum):
    """What a policy answers: keep the output of an operation, or compute it again.

    MUST and PREFER mean the same here: there is no compiler that could do otherwise.
    """

    MUST_SAVE = 0
    PREFER_SAVE = 1
    MUST_RECOMPUTE = 2
    PREFER_RECOMPUTE = 3


class SelectiveCheckpointContext:
    """What a policy is told: whether this is the second run, and in the first one the output."""

    def __init__(self, *, is_recompute: bool, op_output: Any = None) -> None:
        self.is_recompute, self.op_output = is_recompute, op_output


Policy = Callable[..., CheckpointPolicy | bool]


def create_selective_checkpoint_contexts(
    policy_fn_or_list: Policy | list[Callable[..., Any]],
    allow_cache_entry_mutation: bool = False,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the first and the second run, for ``checkpoint``'s ``context_fn``.

    Args:
        policy_fn_or_list: ``policy(ctx, op, *args, **kwargs)`` returns a ``CheckpointPolicy``, or
            whether to save; or a list of the operations to save.
        allow_cache_entry_mutation: let saved outputs be changed in place; they are kept changed.

    Differs from PyTorch:
        An operation is the function of this package (``dg.matmul``, ``dg.exp``) that computes, not
        one of ``torch.ops``.

    Example:
        >>> import functools
        >>> import distgrad as dg
        >>> from distgrad.utils.checkpoint import checkpoint
        >>> x = dg.ones(2, 2, requires_grad=True)
        >>> keep = functools.partial(create_selective_checkpoint_contexts, [dg.matmul])
        >>> y = checkpoint(lambda x: (x @ x).exp(), x, use_reentrant=False, context_fn=keep)
        >>> y.sum().backward()
    """
    if isinstance(policy_fn_or_list, list):
        for op in policy_fn_or_list:
            if not isinstance(getattr(op, "op", None), Operation):
                raise ArgumentError(
                    "create_selective_checkpoint_contexts(): Expected op in `op_list` to be an "
                    f"OpOverload, here one like dg.matmul, but got: {op} of type {type(op)}"
                )
        policy = _policy_of(policy_fn_or_list)
    elif callable(policy_fn_or_list):
        policy = policy_fn_or_list
    else:
        raise ArgumentTypeError(
            "create_selective_checkpoint_contexts(): policy_fn_or_list must be either a function "
            "or a list of ops."
        )
    cache = _Cache(policy, allow_cache_entry_mutation)
    return _Run(cache.save), _Run(cache.take)


def _policy_of(ops: list[Callable[..., Any]]) -> Policy:
    chosen = {op.op.name for op in ops}  # type: ignore[attr-defined]

    def policy(ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any) -> bool:
        return op.op.name in chosen

    return policy


class _Run:
    """A context that can be entered again, as a second backward does."""

    def __init__(self, watcher: Callable[..., Any]) -> None:
        self.watcher = watcher
        self.open: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self.open.append(watching(self.watcher))
        self.open[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self.open.pop().__exit__(*error)


class _Entry:
    """The saved output of one operation."""

    __slots__ = ("changed", "memories", "output")

    def __init__(self, output: Any) -> None:
        arrays = output if isinstance(output, tuple | list) else (output,)
        self.output, self.memories = output, [memory_of(a) for a in arrays]
        self.changed = False


class _Cache:
    """The saved outputs of one checkpoint, by operation, in the order of their making."""

    def __init__(self, policy: Policy, may_change: bool) -> None:
        self.policy = policy
        self.entries: dict[str, deque[_Entry]] = {}
        if not may_change:
            _watch_writes(self)

    def save(self, op: Operation, compute: Any, args: Any, options: Any) -> Any:
        """Compute, and keep the output if the policy says so."""
        output = compute()
        if self._asks(op, args, options, False, output):
            self.entries.setdefault(op.name, deque()).append(_Entry(output))
        return output

    def take(self, op: Operation, compute: Any, args: Any, options: Any) -> Any:
        """Return the kept output, or compute."""
        if not self._asks(op, args, options, True, None):
            return compute()
        found = self.entries.get(op.name)
        if found is None:
            raise GradError(f"checkpoint(): {op.name} encountered during backward, but not found "
                            "in storage: the policy must answer the same both times")  # fmt: skip
        if not found:
            raise GradError(
                "checkpoint(): Trying to backward an extra time. You are only allowed to backward "
                "once on any region computed under selective activation checkpoint."
            )
        entry = found.popleft()
        if entry.changed:
            raise GradError(
                f"checkpoint(): Tensor cached during selective activation checkpoint has been "
                f"mutated: an output of {op.name}; clone() it before changing it in place"
            )
        return entry.output

    def _asks(self, op: Operation, args: Any, options: Any, again: bool, output: Any) -> bool:
        shown = [_shown(a) for a in args]
        ctx = SelectiveCheckpointContext(is_recompute=again, op_output=_shown(output))
        answer = self.policy(ctx, op.function, *shown, **options)
        if isinstance(answer, bool):
            return answer
        if not isinstance(answer, CheckpointPolicy):
            raise ArgumentTypeError(
                f"checkpoint(): the policy returned {answer!r}; it must return a CheckpointPolicy "
                "or a bool"
            )
        return answer in (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)

    def before_write(self, target: Tensor) -> None:
        """Note that the memory of ``target`` is about to change."""
        memory = memory_of(target.array)
        for entries in self.entries.values():
            for entry in entries:
                entry.changed |= any(memory is m for m in entry.memories)


def _shown(value: Any) -> Any:
    """Return arrays as tensors, for the policy."""
    if isinstance(value, list | tuple):
        return type(value)([_shown(v) for v in value])
    return wrap(value) if hasattr(value, "dtype") and hasattr(value, "strides") else value


def _watch_writes(cache: _Cache) -> None:
    """Tell ``cache`` of changes in place as long as it lives."""
    ref = weakref.ref(cache)

    def write(target: Tensor) -> None:
        alive = ref()
        if alive is not None:
            alive.before_write(target)

    def stop() -> None:
        with saving.lock:
            saving.switch.writers = tuple(w for w in saving.switch.writers if w is not write)

    with saving.lock:
        saving.switch.writers += (write,)
    weakref.finalize(cache, stop)
