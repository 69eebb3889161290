"""Windows as columns, and back."""

from __future__ import annotations

from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.nn.modules.sizes import Sizes
from distgrad.tensor import Tensor


class Fold(Module):
    """Sums columns of windows into an image: the reverse of ``Unfold``, overlaps added."""

    def __init__(
        self,
        output_size: Sizes,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        padding: Sizes = 0,
        stride: Sizes = 1,
    ) -> None:
        """Take the sizes of the image and of the windows."""
        super().__init__()
        self.output_size, self.kernel_size = output_size, kernel_size
        self.dilation, self.padding, self.stride = dilation, padding, stride

    def forward(self, input: Tensor) -> Tensor:
        """Return the image (N, C, H, W) of the columns (N, C * window, L)."""
        return F.fold(
            input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride
        )

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"output_size={self.output_size}, " + _windows(self)


class Unfold(Module):
    """Takes the windows of an image (N, C, H, W) as columns (N, C * window, L)."""

    def __init__(
        self, kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1
    ) -> None:
        """Take the sizes of the windows."""
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.padding, self.stride = padding, stride

    def forward(self, input: Tensor) -> Tensor:
        """Return the columns."""
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        """Return the sizes."""
        return _windows(self)


def _windows(module: Fold | Unfold) -> str:
    return (
        f"kernel_size={module.kernel_size}, dilation={module.dilation}, "
        f"padding={module.padding}, stride={module.stride}"
    )
