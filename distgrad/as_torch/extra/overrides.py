"""PyTorch's protocol by which other classes answer for functions; here operations take tensors."""

from __future__ import annotations

from typing import Any

from distgrad.tensor import Tensor


def has_torch_function(relevant_args: Any) -> bool:
    """Return False: no class answers for operations."""
    return False


def is_tensor_like(inp: Any) -> bool:
    """Return whether ``inp`` is a tensor."""
    return isinstance(inp, Tensor)


has_torch_function_unary = has_torch_function


def has_torch_function_variadic(*args: Any) -> bool:
    """Return False: no class answers for operations."""
    return False
