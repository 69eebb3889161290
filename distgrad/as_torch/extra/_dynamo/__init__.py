"""Settings of PyTorch's compiler: they can be set, and nothing follows from them."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from distgrad.as_torch.extra.compiler import (
    allow_in_graph,
    assume_constant_result,
    disable,
    is_compiling,
    reset,
)

__all__ = [
    "OptimizedModule", "allow_in_graph", "assume_constant_result", "config", "disable",
    "graph_break", "is_compile_supported", "is_compiling", "mark_dynamic", "mark_static",
    "mark_static_address", "reset",
]  # fmt: skip

config = SimpleNamespace(suppress_errors=False, cache_size_limit=8, verbose=False)


class OptimizedModule:
    """What ``torch.compile`` makes of a module in PyTorch; here it returns the module itself."""


def mark_static_address(t: Any, guard: bool = True) -> None:
    """Do nothing: there is no compiler that would use it."""


mark_dynamic = mark_static = mark_static_address


def TransformGetItemToIndex() -> Any:
    """Return a context that changes nothing: tensors index tensors anyway."""
    return nullcontext()


def graph_break(msg: str = "") -> None:
    """Do nothing: there is no graph."""


def is_compile_supported(device_type: Any) -> bool:
    """Return False: there is no compiler."""
    return False
