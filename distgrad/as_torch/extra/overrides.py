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


class TorchFunctionMode:
    """A mode that would be asked about every operation; here it is not, and changes nothing."""

    def __enter__(self) -> TorchFunctionMode:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def handle_torch_function(public_api: Any, relevant_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what the function does: no class answers for it."""
    return public_api(*args, **kwargs)
