"""Names for parts of a program in the timelines of NVIDIA's profilers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from distgrad.cuda import nvtx
from distgrad.errors import ArgumentError


class record_function:
    """Names a ``with`` block or a decorated function, where a GPU is used.

    Args:
        name: the name.
        args: PyTorch's; more text, which is left out.
    """

    def __init__(self, name: str, args: str | None = None) -> None:
        self.name = name

    def __enter__(self) -> record_function:
        nvtx.range_push(self.name)
        return self

    def __exit__(self, *error: object) -> None:
        nvtx.range_pop()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with that name around it."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped


class EventList(list[Any]):
    """Events of PyTorch's profiler; nothing makes one here."""


class emit_nvtx:
    """Would mark each operation in the timelines of NVIDIA's profilers; `record_function` does."""

    def __enter__(self) -> NoReturn:
        """Raise: operations are not marked.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "emit_nvtx(): operations are not marked one by one; use record_function around parts"
        )

    def __exit__(self, *error: object) -> None:
        pass
