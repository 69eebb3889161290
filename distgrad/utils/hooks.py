"""The handles of hooks."""

from distgrad.autograd.node import Removable

__all__ = ["RemovableHandle"]

RemovableHandle = Removable
