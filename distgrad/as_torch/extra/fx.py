"""Names of PyTorch's graph capture, which distgrad has not: programs run, and are not traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from distgrad.errors import ArgumentError
from distgrad.nn import Module

__all__ = [
    "Argument", "Graph", "GraphModule", "Interpreter", "Node", "Proxy", "Target", "TraceError",
    "Tracer", "Transformer", "has_side_effect", "replace_pattern", "symbolic_trace", "wrap",
]  # fmt: skip


def _refuse(what: str) -> NoReturn:
    raise ArgumentError(
        f"torch.fx.{what}: distgrad captures no graphs; call the module or function itself"
    )


class GraphModule(Module):
    """What tracing would make of a module; nothing here is one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse("GraphModule()")


class _CodeOnlyModule(Module):
    """Part of a captured graph; nothing here is one."""


_USER_PRESERVED_ATTRIBUTES_KEY = "_user_preserved_attributes"


def _copy_attr(from_module: Module, to_module: Module, target: str) -> None:
    """Let ``to_module`` have the attribute ``target`` of ``from_module``, both dotted."""
    path, _, name = target.rpartition(".")
    setattr(to_module.get_submodule(path), name, getattr(from_module.get_submodule(path), name))


Target = Callable[..., Any] | str  # of a node's call
Argument = Any  # of it


class TraceError(ValueError):
    """What tracing raises in PyTorch."""


class Graph:
    """A captured graph; nothing here is one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse("Graph()")


class Node:
    """A node of a captured graph; nothing here is one."""


class Proxy:
    """What stands for a tensor while a graph is captured; nothing here is one."""


class Tracer:
    """Captures graphs in PyTorch; here it only can be derived from."""

    def is_leaf_module(self, m: Module, module_qualified_name: str) -> bool:
        """Return whether ``m`` is one of distgrad's own modules."""
        return type(m).__module__.startswith("distgrad.nn")

    def trace(self, root: Any, concrete_args: Any = None) -> NoReturn:
        """Raise: no graphs are captured.

        Raises:
            ArgumentError: always.
        """
        _refuse("Tracer.trace()")


class Interpreter:
    """Runs captured graphs in PyTorch; there are none here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse("Interpreter()")


Transformer = Interpreter


def wrap(fn_or_name: Callable[..., Any] | str) -> Any:
    """Return the function: nothing looks into it anyway."""
    return fn_or_name


has_side_effect = wrap


def symbolic_trace(root: Any, concrete_args: Any = None) -> NoReturn:
    """Raise: no graphs are captured.

    Raises:
        ArgumentError: always.
    """
    _refuse("symbolic_trace()")


def replace_pattern(gm: Any, pattern: Any, replacement: Any) -> NoReturn:
    """Raise: there are no captured graphs.

    Raises:
        ArgumentError: always.
    """
    _refuse("replace_pattern()")


def get_proxy_mode() -> None:
    """Return None: nothing is traced."""


def guard_or_false(a: Any) -> bool:
    """Return ``bool(a)``: sizes are numbers here."""
    return bool(a)


guard_or_true = statically_known_true = guard_or_false


def free_symbols(val: Any) -> set[Any]:
    """Return the empty set: sizes are numbers here."""
    return set()


free_unbacked_symbols = free_symbols


class GuardOnDataDependentSymNode(RuntimeError):
    """What tracing raises in PyTorch for sizes that depend on data."""
