"""Modules without the work of their first values."""

from __future__ import annotations

import inspect
from typing import Any

from distgrad.backend.random import current_generator
from distgrad.errors import CheckpointError
from distgrad.nn.module import Module

__all__ = ["skip_init"]


def skip_init(module_cls: type[Module], *args: Any, **kwargs: Any) -> Module:
    """Return ``module_cls(*args, **kwargs)`` with any values; the random stream stays where it is.

    Example:
        >>> from distgrad import nn
        >>> skip_init(nn.Linear, 2, 3)
        Linear(in_features=2, out_features=3, bias=True)
    """
    if not issubclass(module_cls, Module):
        raise CheckpointError(f"Expected a Module; got {module_cls}")
    if "device" not in inspect.signature(module_cls).parameters:
        raise CheckpointError("Module must support a 'device' arg to skip initialization")
    generator = current_generator()
    state = generator.get_state()
    try:
        return module_cls(*args, **kwargs)
    finally:
        generator.set_state(state)
