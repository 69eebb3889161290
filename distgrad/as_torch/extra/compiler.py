"""What programs tell PyTorch's compiler; there is none, so nothing follows from it."""

from __future__ import annotations

from typing import Any

from distgrad.as_torch.extra.top import compile

__all__ = [
    "allow_in_graph", "assume_constant_result", "compile", "cudagraph_mark_step_begin", "disable",
    "is_compiling", "is_dynamo_compiling", "is_exporting", "list_backends", "reset",
    "set_stance",
]  # fmt: skip


def is_compiling() -> bool:
    """Return False: nothing is compiled."""
    return False


is_dynamo_compiling = is_exporting = is_compiling


def disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """Return the function, or a decorator that does so."""
    return (lambda function: function) if fn is None else fn


def allow_in_graph(fn: Any) -> Any:
    """Return the function."""
    return fn


assume_constant_result = allow_in_graph


def reset() -> None:
    """Do nothing: there is no compiler."""


cudagraph_mark_step_begin = reset


def list_backends(exclude_tags: Any = ()) -> list[str]:
    """Return an empty list."""
    return []


def set_stance(stance: str = "default", **options: Any) -> None:
    """Do nothing: there is no compiler."""
