"""TorchScript, of which there is no compiler here: functions and modules run as Python."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final, NoReturn

from distgrad.as_torch.extra.top import tell_once
from distgrad.errors import ArgumentError
from distgrad.nn import Module

__all__ = [
    "Final", "ScriptFunction", "ScriptModule", "annotate", "export", "fork", "freeze", "ignore",
    "interface", "is_scripting", "is_tracing", "load", "optimized_execution", "save", "script",
    "script_if_tracing", "script_method", "trace", "trace_module", "unused", "wait",
]  # fmt: skip

_SAYS = "torch.jit runs Python code as it is: distgrad has no TorchScript compiler"


class ScriptModule(Module):
    """A module, written as one of TorchScript's."""


class ScriptFunction:
    """What PyTorch's ``script`` makes of a function; nothing here is one."""


def script(obj: Any, *args: Any, **options: Any) -> Any:
    """Return ``obj`` itself; says so once."""
    tell_once(_SAYS)
    return obj


def trace(func: Any, *args: Any, **options: Any) -> Any:
    """Return ``func`` itself; says so once."""
    tell_once(_SAYS)
    return func


def trace_module(mod: Any, inputs: Any, **options: Any) -> Any:
    """Return ``mod`` itself; says so once."""
    tell_once(_SAYS)
    return mod


def freeze(mod: Any, *args: Any, **options: Any) -> Any:
    """Return ``mod`` itself."""
    return mod


def _as_it_is(function: Any) -> Any:
    """Return what is decorated."""
    return function


export = script_method = script_if_tracing = interface = _as_it_is


def ignore(drop: Any = False, **options: Any) -> Any:
    """Return what is decorated."""
    return drop if callable(drop) else _as_it_is


unused = _as_it_is


def annotate(the_type: Any, the_value: Any) -> Any:
    """Return the value."""
    return the_value


def _overload_method(func: Any) -> Any:
    """Return what is decorated: one of several signatures."""
    return func


_overload = _script_if_tracing = _overload_method


def is_scripting() -> bool:
    """Return False: there is no TorchScript."""
    return False


def is_tracing() -> bool:
    """Return False: there is no tracing."""
    return False


def fork(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the result of the function, which runs at once."""
    return func(*args, **kwargs)


def wait(future: Any) -> Any:
    """Return what ``fork`` returned."""
    return future


def optimized_execution(should_optimize: bool) -> Any:
    """Return a ``with`` block that changes nothing."""
    return nullcontext()


def _no_files(what: str) -> NoReturn:
    raise ArgumentError(
        f"torch.jit.{what}: distgrad has no TorchScript; save and load state dicts with torch.save "
        "and torch.load"
    )


def save(m: Any, f: Any, _extra_files: Any = None) -> NoReturn:
    """Raise: there is no TorchScript to write."""
    _no_files("save")


def load(f: Any, map_location: Any = None, _extra_files: Any = None) -> NoReturn:
    """Raise: there is no TorchScript to read."""
    _no_files("load")
