"""Registration of compiled operators, of which there are none: what is registered is not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _unused(function: Any) -> Any:
    """Return the function."""
    return function


def register_fake(op: Any, func: Any = None, /, **options: Any) -> Any:
    """Return the function, or a decorator that does so: nothing is traced."""
    return _unused if func is None else func


register_kernel = register_torch_dispatch = impl_abstract = register_fake


def register_autograd(op: Any, backward: Callable[..., Any], /, **options: Any) -> None:
    """Do nothing: there is no such operator."""


class Library:
    """Names for operators; what is put in is not used."""

    def __init__(self, ns: str, kind: str, dispatch_key: str = "") -> None:
        self.ns, self.kind = ns, kind

    def define(self, schema: str, alias_analysis: str = "", **options: Any) -> str:
        """Return the name in ``schema``."""
        return schema.partition("(")[0]

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        """Do nothing."""
