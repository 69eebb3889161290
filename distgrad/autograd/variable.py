"""``Variable``: the name of a tensor in old programs."""

from __future__ import annotations

from typing import Any

from distgrad.autograd import engine
from distgrad.tensor import Tensor


class _Meta(type):
    """Makes every tensor a Variable."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor)


class Variable(metaclass=_Meta):
    """``Variable(tensor, requires_grad)`` is the tensor's memory without its history.

    Example:
        >>> import distgrad as dg
        >>> Variable(dg.ones(2), requires_grad=True)
        tensor([1., 1.], requires_grad=True)
    """

    _execution_engine = engine

    def __new__(cls, data: Any = None, requires_grad: bool = False) -> Any:
        """Return an alias of ``data``."""
        tensor = Tensor() if data is None else data.detach()
        return tensor.requires_grad_(requires_grad)
