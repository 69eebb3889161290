"""Switches of recording: ``no_grad``, ``enable_grad``, ``set_grad_enabled``.

Each thread has its own state, as in PyTorch: a new thread records.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Mode(threading.local):
    """The state of one thread."""

    grad = True
    inference = False
    multithreading = True
    view_replay = False


mode = Mode()


def is_grad_enabled() -> bool:
    """Return True when operations of this thread are recorded."""
    return mode.grad


def is_inference_mode_enabled() -> bool:
    """Return True inside ``inference_mode``."""
    return mode.inference


class _Switch:
    """A context manager and decorator that sets ``mode`` and puts it back."""

    _grad = True
    _inference: bool | None = None

    def __enter__(self) -> None:
        self._before = (mode.grad, mode.inference)
        mode.grad = self._grad
        if self._inference is not None:
            mode.inference = self._inference

    def __exit__(self, *error: object) -> None:
        mode.grad, mode.inference = self._before

    def _again(self) -> _Switch:
        """Return a fresh switch of the same setting, so that decorated functions can recurse."""
        return type(self)()

    def __call__(self, function: F) -> F:
        if inspect.isclass(function):
            warnings.warn(
                "Decorating classes is deprecated and will be disabled in future versions. You "
                "should only decorate functions or methods. To preserve the current behavior of "
                "class decoration, you can directly decorate the `__init__` method and nothing "
                "else.",
                FutureWarning,
                stacklevel=2,
            )
            cls: Any = function
            cls.__init__ = self(cls.__init__)
            return function
        if inspect.isgeneratorfunction(function):
            return self._generator(function)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]

    def _generator(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            generator = function(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, generator)
            try:
                while True:
                    with self._again():
                        item = step()
                    try:
                        step = functools.partial(generator.send, (yield item))
                    except GeneratorExit:
                        with self._again():
                            generator.close()
                        raise
                    except BaseException as error:  # belongs to the generator
                        step = functools.partial(generator.throw, error)
            except StopIteration as stop:
                return stop.value

        return wrapped  # type: ignore[return-value]


class no_grad(_Switch):
    """Turns recording off inside a ``with`` block or a decorated function.

    Example:
        >>> import distgrad as dg
        >>> x = dg.ones(2, requires_grad=True)
        >>> with dg.no_grad():
        ...     y = x * 2
        >>> y.requires_grad
        False
    """

    _grad = False

    def __new__(cls, function: Any = None) -> Any:
        """Return the switch, or ``function`` decorated when used as ``@no_grad``."""
        self = super().__new__(cls)
        return self if function is None else self(function)


class enable_grad(no_grad):
    """Turns recording on inside a ``with`` block or a decorated function."""

    _grad = True


class set_grad_enabled(_Switch):
    """Turns recording on or off: at once when called, until the end of a ``with`` block."""

    def __init__(self, mode_: bool) -> None:
        self._grad = bool(mode_)
        self._before = (mode.grad, mode.inference)
        mode.grad = self._grad

    def __enter__(self) -> None:
        mode.grad = self._grad

    def __call__(self, function: F) -> F:
        mode.grad = self._before[0]
        return super().__call__(function)

    def _again(self) -> _Switch:
        return set_grad_enabled(self._grad)


class _Setting:
    """Sets one switch of ``mode`` at once when called, until the end of a ``with`` block."""

    _name = ""

    def __init__(self, mode_: bool) -> None:
        """Set it."""
        self._before = getattr(mode, self._name)
        setattr(mode, self._name, bool(mode_))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        setattr(mode, self._name, self._before)


class set_multithreading_enabled(_Setting):
    """Says whether backward may use several threads; it is kept, and one thread is used."""

    _name = "multithreading"


class _force_original_view_tracking(_Setting):
    """Says whether views are made anew by their own operations; here they always are."""

    _name = "view_replay"


def is_multithreading_enabled() -> bool:
    """Return what ``set_multithreading_enabled`` was told."""
    return mode.multithreading


def is_view_replay_enabled() -> bool:
    """Return what ``_force_original_view_tracking`` was told."""
    return mode.view_replay
