"""Layers that reduce windows of the last dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.nn.modules.sizes import Sizes, per_dim
from distgrad.tensor import Tensor

OutputSizes: TypeAlias = "int | Sequence[int | None] | None"


class _MaxPoolNd(Module):
    _function: Callable[..., Any]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        """Take the windows.

        Args:
            kernel_size: of the window.
            stride: step of the window (default: its size).
            padding: cells of minus infinity added at both ends.
            dilation: distance of neighbouring elements of the window.
            return_indices: return the places of the maxima too, for ``MaxUnpool``.
            ceil_mode: a window may begin inside and reach over the end.
        """
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation = padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, and with ``return_indices`` their places."""
        return type(self)._function(
            input, self.kernel_size, self.stride, self.padding, self.dilation,
            ceil_mode=self.ceil_mode, return_indices=self.return_indices,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the windows."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPoolNd):
    """Maxima of windows of (N, C, L)."""

    _function = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPoolNd):
    """Maxima of windows of (N, C, H, W)."""

    _function = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPoolNd):
    """Maxima of windows of (N, C, D, H, W)."""

    _function = staticmethod(F.max_pool3d)


class _MaxUnpoolNd(Module):
    _dims = 0
    _function: Callable[..., Tensor]

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        """Take the windows of the pooling to undo."""
        super().__init__()
        self.kernel_size = per_dim(kernel_size, self._dims)
        self.stride = self.kernel_size if stride is None else per_dim(stride, self._dims)
        self.padding = per_dim(padding, self._dims)

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Return zeros with the values of ``input`` at ``indices``."""
        return type(self)._function(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )

    def extra_repr(self) -> str:
        """Return the windows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpoolNd):
    """Puts the maxima that ``MaxPool1d`` returned back to their places."""

    _dims, _function = 1, staticmethod(F.max_unpool1d)


class MaxUnpool2d(_MaxUnpoolNd):
    """Puts the maxima that ``MaxPool2d`` returned back to their places."""

    _dims, _function = 2, staticmethod(F.max_unpool2d)


class MaxUnpool3d(_MaxUnpoolNd):
    """Puts the maxima that ``MaxPool3d`` returned back to their places."""

    _dims, _function = 3, staticmethod(F.max_unpool3d)


class AvgPool1d(Module):
    """Means of windows of (N, C, L)."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        """Take the windows; ``count_include_pad`` counts padding as elements."""
        super().__init__()
        self.kernel_size = per_dim(kernel_size, 1)
        self.stride = self.kernel_size if stride is None else per_dim(stride, 1)
        self.padding = per_dim(padding, 1)
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """Return the means."""
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the windows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AvgPoolNd(Module):
    _function: Callable[..., Tensor]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        """Take the windows.

        Args:
            kernel_size: of the window.
            stride: step of the window (default: its size).
            padding: zeros added at both ends.
            ceil_mode: a window may begin inside and reach over the end.
            count_include_pad: count padding as elements.
            divisor_override: divide by this number instead of the number of elements.
        """
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """Return the means."""
        return type(self)._function(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
            self.count_include_pad, self.divisor_override,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the windows."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_AvgPoolNd):
    """Means of windows of (N, C, H, W)."""

    _function = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPoolNd):
    """Means of windows of (N, C, D, H, W)."""

    _function = staticmethod(F.avg_pool3d)


class _LPPoolNd(Module):
    _function: Callable[..., Tensor]

    def __init__(
        self,
        norm_type: float,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        ceil_mode: bool = False,
    ) -> None:
        """Take the exponent and the windows."""
        super().__init__()
        self.norm_type, self.kernel_size = norm_type, kernel_size
        self.stride, self.ceil_mode = stride, ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        """Return the p-norms of the windows."""
        return type(self)._function(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode
        )

    def extra_repr(self) -> str:
        """Return the exponent and the windows."""
        return (
            f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"ceil_mode={self.ceil_mode}"
        )


class LPPool1d(_LPPoolNd):
    """The p-norms of windows of (N, C, L)."""

    _function = staticmethod(F.lp_pool1d)


class LPPool2d(_LPPoolNd):
    """The p-norms of windows of (N, C, H, W)."""

    _function = staticmethod(F.lp_pool2d)


class LPPool3d(_LPPoolNd):
    """The p-norms of windows of (N, C, D, H, W)."""

    _function = staticmethod(F.lp_pool3d)


class _AdaptiveMaxPoolNd(Module):
    _function: Callable[..., Any]

    def __init__(self, output_size: OutputSizes, return_indices: bool = False) -> None:
        """Take the sizes of the output; None keeps a size."""
        super().__init__()
        self.output_size, self.return_indices = output_size, return_indices

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, and with ``return_indices`` their places."""
        return type(self)._function(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        """Return the sizes of the output."""
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPoolNd):
    """Maxima of as many windows of (N, C, L) as the output has elements."""

    _function = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPoolNd):
    """Maxima of as many windows of (N, C, H, W) as the output has elements."""

    _function = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPoolNd):
    """Maxima of as many windows of (N, C, D, H, W) as the output has elements."""

    _function = staticmethod(F.adaptive_max_pool3d)


class _AdaptiveAvgPoolNd(Module):
    _function: Callable[..., Tensor]

    def __init__(self, output_size: OutputSizes) -> None:
        """Take the sizes of the output; None keeps a size."""
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        """Return the means."""
        return type(self)._function(input, self.output_size)

    def extra_repr(self) -> str:
        """Return the sizes of the output."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPoolNd):
    """Means of as many windows of (N, C, L) as the output has elements."""

    _function = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPoolNd):
    """Means of as many windows of (N, C, H, W) as the output has elements."""

    _function = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPoolNd):
    """Means of as many windows of (N, C, D, H, W) as the output has elements."""

    _function = staticmethod(F.adaptive_avg_pool3d)


class _FractionalMaxPoolNd(Module):
    _function: Callable[..., Any]
    _dims = 0

    def __init__(
        self,
        kernel_size: Sizes,
        output_size: Sizes | None = None,
        output_ratio: float | Sequence[float] | None = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> None:
        """Take the windows, and either the sizes of the output or their part of the input's.

        Args:
            kernel_size: of the window.
            output_size: of the output.
            output_ratio: of the output's sizes to the input's, between 0 and 1.
            return_indices: return the places of the maxima too, for ``MaxUnpool``.
            _random_samples: (N, C, dimensions), fixes where the windows begin.
        """
        super().__init__()
        name, dims = type(self).__name__, self._dims
        if (output_size is None) == (output_ratio is None):
            raise ArgumentError(
                f"{name}(output_size={output_size}, output_ratio={output_ratio}): exactly one of "
                "output_size and output_ratio must be specified"
            )
        self.kernel_size = per_dim(kernel_size, dims)
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)
        self.output_size = None if output_size is None else per_dim(output_size, dims)
        ratios = (output_ratio,) * dims if isinstance(output_ratio, float) else output_ratio
        self.output_ratio = None if ratios is None else tuple(ratios)
        if self.output_ratio is not None and not all(0 < r < 1 for r in self.output_ratio):
            raise ArgumentError(
                f"{name}(output_ratio={output_ratio}): output_ratio must be between 0 and 1"
            )

    def forward(self, input: Tensor) -> Any:
        """Return the maxima, and with ``return_indices`` their places."""
        return type(self)._function(
            input, self.kernel_size, self.output_size, self.output_ratio, self.return_indices,
            _random_samples=self._random_samples,
        )  # fmt: skip


class FractionalMaxPool2d(_FractionalMaxPoolNd):
    """Maxima of windows at random distances of (N, C, H, W)."""

    _dims, _function = 2, staticmethod(F.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPoolNd):
    """Maxima of windows at random distances of (N, C, D, H, W)."""

    _dims, _function = 3, staticmethod(F.fractional_max_pool3d)
