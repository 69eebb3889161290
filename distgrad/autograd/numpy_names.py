"""The names that NumPy has for PyTorch's arguments: PyTorch takes them too, and so do we.

A compiled operation gathers ``out=`` and these names in one ``**_named``, which is empty in nearly
every call: so one test serves all of them, at the price that the test for ``out`` alone had.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from distgrad.errors import ArgumentTypeError

P = ParamSpec("P")
R = TypeVar("R")

OTHER_NAMES = {
    "axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other",
}  # fmt: skip


class Absent:
    """Stands for an argument that must be given, while it may come under another name."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT = Absent()


def torch_names(name: str, named: dict[str, Any], known: Any) -> dict[str, Any]:
    """Return keyword arguments under PyTorch's names; ``known`` holds the parameters."""
    found = {}
    for given, value in named.items():
        ours = given if given in known else OTHER_NAMES.get(given, given)
        if ours not in known or ours in found:
            raise ArgumentTypeError(f"{name}() got an unexpected keyword argument {given!r}")
        found[ours] = value
    return found


def refuse_missing(name: str, values: dict[str, Any]) -> None:
    """Raise for arguments that must be given and were not."""
    missing = [n for n, v in values.items() if v is ABSENT]
    if missing:
        raise ArgumentTypeError(
            f"{name}() missing {len(missing)} required positional argument(s): "
            + ", ".join(map(repr, missing))
        )


def takes_names(function: Callable[P, R]) -> Callable[P, R]:
    """Let a plain function of operations be called with NumPy's names."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if not OTHER_NAMES.keys().isdisjoint(options):
            options = torch_names(function.__name__, options, parameters_of(function))
        return function(*args, **options)

    return call


@functools.cache
def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the parameters of a plain function."""
    code = function.__code__
    return frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
