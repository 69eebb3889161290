"""Compiled extensions of PyTorch, which cannot work on distgrad's tensors."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.errors import ArgumentError

__all__ = [
    "CUDA_HOME",
    "BuildExtension",
    "CUDAExtension",
    "CppExtension",
    "include_paths",
    "is_ninja_available",
    "load",
    "load_inline",
]  # fmt: skip

CUDA_HOME = None


def load(name: str, *args: Any, **options: Any) -> NoReturn:
    """Raise: an extension is compiled against PyTorch's own binary interface.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        f"torch.utils.cpp_extension.load({name!r}): distgrad loads no extensions compiled for "
        "PyTorch; write the operation in Python, as a torch.autograd.Function"
    )


load_inline = CppExtension = CUDAExtension = BuildExtension = load


def include_paths(device_type: str = "cpu") -> list[str]:
    """Return an empty list: there are no headers."""
    return []


def is_ninja_available() -> bool:
    """Return False: nothing is compiled."""
    return False
