"""Names of a package that load what they stand for when they are first asked for.

``import distgrad`` would take half as long again if it loaded what few programs use.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def later(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose ``places`` are loaded when asked for.

    Args:
        package: its name.
        places: for each name the module that it is, or ``module:`` if that one has it.

    Example:
        >>> __getattr__ = later("distgrad", {"fft": "distgrad.ops.fft", "relu": "distgrad.ops:"})
        >>> __getattr__("fft").__name__
        'distgrad.ops.fft'
    """

    def load(name: str) -> Any:
        place = places.get(name)
        if place is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(place.rstrip(":"))
        found = getattr(module, name) if place.endswith(":") else module
        setattr(sys.modules[package], name, found)
        return found

    return load
