"""Type aliases of the public interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from distgrad.tensor import Tensor

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or ``cupy.ndarray``."""

Number: TypeAlias = "int | float | bool | complex"
TensorLike: TypeAlias = "Tensor | int | float | bool | complex"
Shape: TypeAlias = "tuple[int, ...]"
Dim: TypeAlias = "int | Sequence[int] | None"
Namespace: TypeAlias = Any
"""The array functions an operation's body gets as ``xp``: backend.numpy_backend or cupy_backend."""
