"""Lets a tool see the forward of every operation, and answer in its place, in one thread.

While some thread has a watcher, two globals of all operations are replaced: ``_forward``, and
``_direct``, which is all of the forward where that is one function of the array namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distgrad.autograd.declare import Operation, direct_of, table
from distgrad.autograd.saving import lock

Compute = Callable[[], Any]
Watcher = Callable[[Operation, Compute, tuple[Any, ...], dict[str, Any]], Any]


class _Local(threading.local):
    def __init__(self) -> None:
        self.watchers: list[Watcher] = []


class _Count:
    users = 0


_local = _Local()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher(op, compute, arrays, options)`` return the output arrays of each operation.

    The innermost watcher answers; what ``compute()`` returns is the result of the operation.
    """
    _local.watchers.append(watcher)
    _count(1)
    try:
        yield
    finally:
        _local.watchers.remove(watcher)
        _count(-1)


def _count(change: int) -> None:
    with lock:
        before = _Count.users
        _Count.users += change
        if bool(before) == bool(_Count.users):
            return
        for op in table.values():
            names: dict[str, Any] = op.function.__globals__
            names["_forward"], names["_direct"] = op.forward, direct_of(op)
            if _Count.users:
                names["_forward"] = _watched(op, op.forward, 1)
                names["_direct"] = _watched(op, names["_direct"], 0)


def _watched(op: Operation, real: Any, first: int) -> Callable[..., Any]:
    """Return ``real`` as the watchers want it; its operands begin at argument ``first``."""

    def forward(*args: Any, **options: Any) -> Any:
        def compute() -> Any:
            return real(*args, **options)

        watchers = _local.watchers
        return watchers[-1](op, compute, args[first:], options) if watchers else compute()

    return forward
