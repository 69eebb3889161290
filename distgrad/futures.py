"""Futures: values that come later, and what to do with them then.

Note [Callbacks do not wait]: a callback runs in the thread that sets the value, which for transfers
is the communication thread: one that waited there would wait for itself. A callback that needs
another transfer returns its future, and the future of the callback takes the value of that one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from distgrad.errors import DistributedError

T = TypeVar("T")
S = TypeVar("S")

_NAP_S = 1e-4
_PATIENCE_S = 0.05
_EMPTY: Any = object()


class _Inside(threading.local):
    callbacks = 0  # how many callbacks this thread is in


_inside = _Inside()


class Future(Generic[T]):
    """A value that comes later; set once, by `set_result` or `set_exception`.

    Args:
        push: called again and again by those who wait, where nobody else moves things on.

    Example:
        >>> future = Future()
        >>> doubled = future.then(lambda done: 2 * done.value())
        >>> future.set_result(21)
        >>> doubled.wait()
        42
    """

    def __init__(self, *, push: Callable[[], None] | None = None) -> None:
        self._push = push
        self._value: T = _EMPTY
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[Future[T]], None]] = []

    def done(self) -> bool:
        """Return whether there is a value or an exception."""
        return self._over.is_set()

    def value(self) -> T:
        """Return the value, or raise the exception.

        Raises:
            DistributedError: there is none yet.
        """
        if not self.done():
            raise DistributedError("Future.value(): there is no value yet; call wait() first")
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, timeout_s: float | None = None) -> T:
        """Return the value when it is there, or raise the exception.

        Args:
            timeout_s: seconds to wait at most; None waits for ever.
        """
        if not self.done() and _inside.callbacks and self._push is None:
            raise DistributedError(
                "Future.wait(): a callback cannot wait, because nothing moves until it returns; "
                "return the future, or use its then()"
            )
        if not self.wait_some(timeout_s):
            raise DistributedError(f"Future.wait(): no value after {timeout_s} s")
        return self.value()

    def wait_some(self, timeout_s: float | None) -> bool:
        """Wait for at most ``timeout_s`` and return whether the future is done."""
        started = time.monotonic()
        while not self.done():
            push = self._push  # a callback may have returned a future that has one
            if push is not None:
                push()
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                break
            self._over.wait(_PATIENCE_S if push is None else _NAP_S)
        return self.done()

    def then(self, callback: Callable[[Future[T]], S | Future[S]]) -> Future[S]:
        """Return the future of ``callback(self)``, which is called when this one is done.

        An exception of this future reaches the next one through ``self.value()`` in the callback.
        """
        following: Future[S] = Future(push=self._push)

        def run(done: Future[T]) -> None:
            try:
                result = callback(done)
            except BaseException as error:
                following.set_exception(error)
                return
            if isinstance(result, Future):
                following._push = result._push
                result.add_done_callback(following._follow)
            else:
                following.set_result(result)

        self.add_done_callback(run)
        return following

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Call ``callback(self)`` when this future is done; at once, if it is."""
        with self._lock:
            if not self.done():
                self._callbacks.append(callback)
                return
        self._call(callback)

    def set_result(self, result: T) -> None:
        """Set the value and run the callbacks."""
        self._finish(result, None)

    def set_exception(self, error: BaseException) -> None:
        """Set the exception and run the callbacks."""
        self._finish(_EMPTY, error)

    def _follow(self, other: Future[T]) -> None:
        self._finish(other._value, other._error)

    def _finish(self, result: T, error: BaseException | None) -> None:
        with self._lock:
            if self.done():
                raise DistributedError("Future.set_result(): the future is done already")
            self._value, self._error = result, error
            self._over.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Future[T]], None]) -> None:
        _inside.callbacks += 1
        try:
            callback(self)
        finally:
            _inside.callbacks -= 1


def collect_all(futures: Sequence[Future[Any]]) -> Future[list[Future[Any]]]:
    """Return the future of the list of ``futures``, done when all of them are."""

    def push() -> None:
        for future in futures:
            if not future.done() and future._push is not None:
                future._push()

    pushed = any(future._push is not None for future in futures)
    together: Future[list[Future[Any]]] = Future(push=push if pushed else None)
    lock, missing = threading.Lock(), [len(futures)]

    def one_more(_: Future[Any]) -> None:
        with lock:
            missing[0] -= 1
            last = missing[0] == 0
        if last:
            together.set_result(list(futures))

    for future in futures:
        future.add_done_callback(one_more)
    if not futures:
        together.set_result([])
    return together


def wait_all(futures: Sequence[Future[T]]) -> list[T]:
    """Return the values of ``futures`` when all are there; raises the first exception."""
    return [cast(T, future.value()) for future in collect_all(futures).wait()]
