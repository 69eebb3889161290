"""Compiled operators, of which there are none."""

from __future__ import annotations

from typing import NoReturn


def load_library(path: str) -> NoReturn:
    """Raise: libraries compiled for PyTorch cannot be used.

    Raises:
        OSError: always, as PyTorch does for a library that does not fit.
    """
    raise OSError(f"torch.ops.load_library({path!r}): distgrad cannot use PyTorch's extensions")
