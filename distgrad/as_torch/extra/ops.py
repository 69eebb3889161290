"""``torch.ops``: operations that a program made with ``torch.library``, by namespace and name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from distgrad.as_torch.extra.library import CustomOpDef, operations

__all__ = ["aten", "load_library", "loaded_libraries"]

loaded_libraries: set[str] = set()


class Packet:
    """An operation of ``torch.ops.aten``, whose overloads are all the one that distgrad has."""

    def __init__(self, name: str, function: Callable[..., Any] | None) -> None:
        self.__name__, self._function = name, function

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return what distgrad's operation of this name does."""
        if self._function is None:
            raise NotImplementedError(f"torch.ops.aten.{self.__name__}: distgrad has no such name")
        return self._function(*args, **options)

    def __getattr__(self, overload: str) -> Packet:
        """Return the overload, which is a packet of its own so that tables can tell them apart."""
        if overload.startswith("__"):
            raise AttributeError(overload)
        made = Packet(f"{self.__name__}.{overload}", self._function)
        setattr(self, overload, made)
        return made


class Namespace:
    """Operations that were made with ``torch.library`` under one name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> CustomOpDef:
        """Return the operation ``name``."""
        found = operations.get(f"{self.__name__}::{name}")
        if found is None:
            raise AttributeError(f"torch.ops.{self.__name__}.{name}: no such operation was made")
        return found


def __getattr__(name: str) -> Namespace:
    """Return the namespace ``name`` of operations, if one was made in it."""
    if name.startswith("__") or not any(full.startswith(f"{name}::") for full in operations):
        raise AttributeError(f"torch.ops.{name}: no operation was made in this namespace")
    return Namespace(name)


class Aten:
    """The operations by the names that PyTorch's dispatcher has for them."""

    def __getattr__(self, name: str) -> Packet:
        """Return the operation ``name``; programs may hold names that distgrad has not."""
        if name.startswith("__"):
            raise AttributeError(name)
        function = getattr(import_module("distgrad"), name, None)
        made = Packet(name, function if callable(function) else None)
        setattr(self, name, made)
        return made


aten = Aten()


def load_library(path: str) -> NoReturn:
    """Raise: a compiled library of operations needs PyTorch's own binary interface.

    Raises:
        OSError: always, as when the library does not fit PyTorch; programs go on without it.
    """
    raise OSError(
        f"torch.ops.load_library({path!r}): it is compiled for PyTorch; distgrad loads no such "
        "library; install the package's version in Python, or do without these operations"
    )
