"""Parameters and buffers: tensors that a module finds when they are assigned to it."""

from __future__ import annotations

from typing import Any

from distgrad.backend.device import device as Device
from distgrad.backend.device import namespace_of
from distgrad.backend.dtype import default_float
from distgrad.errors import ArgumentTypeError
from distgrad.tensor import Tensor


class Parameter(Tensor):
    """A tensor that belongs to a module: it requires grad and optimizers change it.

    Args:
        data: the tensor whose memory the parameter takes; empty when left out.
        requires_grad: whether gradients are wanted.

    Example:
        >>> import distgrad as dg
        >>> Parameter(dg.ones(2))
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        _take(self, "Parameter", data)
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that belongs to a module's state but is not trained.

    Args:
        data: the tensor whose memory the buffer takes; empty when left out.
        persistent: whether ``state_dict`` holds it.
    """

    __slots__ = ()
    persistent: bool = True

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True) -> None:
        _take(self, "Buffer", data)
        self.persistent = persistent


def _take(self: Tensor, kind: str, data: Any) -> None:
    """Give ``self`` the memory of ``data``, without its history."""
    if data is None:
        array = namespace_of(Device("cpu")).empty(0, default_float())
    elif isinstance(data, Tensor):
        array = data.array
    else:
        raise ArgumentTypeError(
            f"{kind}(data: {type(data).__name__}): takes a Tensor; make one with tensor(...)"
        )
    self.array = array
    self._requires = False
    self._grad = self._node = self._shared = None
