"""Layers that pad the last dimensions."""

from __future__ import annotations

from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.nn.modules.sizes import Sizes, per_dim
from distgrad.tensor import Tensor


class _Pad(Module):
    """Pads the last ``_dims`` dimensions; ``padding`` is one number or two for each, last first."""

    _dims = 0
    _mode = "constant"

    def __init__(self, padding: Sizes) -> None:
        """Take the cells to add before and after: the last dimension first."""
        super().__init__()
        self.padding = per_dim(padding, 2 * self._dims)

    def forward(self, input: Tensor) -> Tensor:
        """Return the padded input."""
        return F.pad(input, self.padding, self._mode)

    def extra_repr(self) -> str:
        """Return the padding."""
        return f"{self.padding}"


class ReflectionPad1d(_Pad):
    """Pads (N, C, L) with its mirror image, without the edge."""

    _dims, _mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """Pads (N, C, H, W) with its mirror image, without the edge."""

    _dims, _mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """Pads (N, C, D, H, W) with its mirror image, without the edge."""

    _dims, _mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """Pads (N, C, L) with its edge."""

    _dims, _mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """Pads (N, C, H, W) with its edge."""

    _dims, _mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """Pads (N, C, D, H, W) with its edge."""

    _dims, _mode = 3, "replicate"


class CircularPad1d(_Pad):
    """Pads (N, C, L) with what lies at its other end."""

    _dims, _mode = 1, "circular"


class CircularPad2d(_Pad):
    """Pads (N, C, H, W) with what lies at its other end."""

    _dims, _mode = 2, "circular"


class CircularPad3d(_Pad):
    """Pads (N, C, D, H, W) with what lies at its other end."""

    _dims, _mode = 3, "circular"


class ZeroPad1d(_Pad):
    """Pads (N, C, L) with zeros."""

    _dims = 1


class ZeroPad2d(_Pad):
    """Pads (N, C, H, W) with zeros."""

    _dims = 2


class ZeroPad3d(_Pad):
    """Pads (N, C, D, H, W) with zeros."""

    _dims = 3


class _ConstantPad(_Pad):
    def __init__(self, padding: Sizes, value: float) -> None:
        """Take the cells to add, and what to put there."""
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """Return the padded input."""
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        """Return the padding and the value."""
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """Pads (N, C, L) with ``value``."""

    _dims = 1


class ConstantPad2d(_ConstantPad):
    """Pads (N, C, H, W) with ``value``."""

    _dims = 2


class ConstantPad3d(_ConstantPad):
    """Pads (N, C, D, H, W) with ``value``."""

    _dims = 3
