"""Functions of arrays that a GPU computes in its own way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

__all__ = ["device_form", "may_overwrite", "overwriting"]

F = TypeVar("F", bound=Callable[..., Any])


def device_form(function: F) -> F:
    """Return ``function(xp, …)``, which leaves its work to the GPU's form of it where there is one.

    The form is found by the function's name, without leading underscores, in ``xp.kernels``, and
    takes the same arguments but ``xp``.  It answers ``NotImplemented`` for operands that it does
    not take (a dtype, a shape, strides); then ``function`` computes them, as everywhere else.
    """
    name = function.__name__.lstrip("_")

    @wraps(function)
    def choose(xp: Any, *args: Any, **options: Any) -> Any:
        kernel = xp.kernels.get(name)
        if kernel is not None:
            result = kernel(*args, **options)
            if result is not NotImplemented:
                return result
        return function(xp, *args, **options)

    return choose  # type: ignore[return-value]


# ---------------------------------------------------------------------- operations in place
class _Here(threading.local):
    """What a thread may overwrite."""

    array: Any = None


_here = _Here()


@contextmanager
def overwriting(array: Any) -> Iterator[None]:
    """Let a kernel in the block put its result in the place of its operand ``array``."""
    _here.array = array
    try:
        yield
    finally:
        _here.array = None


def may_overwrite(array: Any) -> bool:
    """Return whether this operand of a kernel is to be the result's memory."""
    return array is _here.array
