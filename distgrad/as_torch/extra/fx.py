"""Symbolic tracing, which is not here; marks for it are accepted."""

from __future__ import annotations

from typing import Any

from distgrad.errors import ArgumentError


class Tracer:
    """PyTorch's tracer; there is none here, so none can be made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise ArgumentError("torch.fx: distgrad does not trace; use forward hooks of modules")


class GraphModule(Tracer):
    """A traced module; there is none here."""


symbolic_trace = Tracer


def wrap(fn_or_name: Any) -> Any:
    """Return what is marked to be left whole by tracing."""
    return fn_or_name
