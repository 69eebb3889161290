"""Convolutions and transposed convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.errors import ArgumentError, ShapeError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.modules.lazy import LazyModuleMixin
from distgrad.nn.modules.sizes import Sizes, per_dim
from distgrad.nn.parameter import Parameter, UninitializedParameter
from distgrad.ops.create import empty
from distgrad.tensor import Tensor

_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    """Weights and sizes of a convolution over ``_dims`` dimensions."""

    _dims = 0
    _transposed = False
    weight: Tensor
    bias: Tensor | None

    def _setup(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        output_padding: Sizes,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        n = self._dims
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = per_dim(kernel_size, n), per_dim(stride, n)
        self.padding = padding if isinstance(padding, str) else per_dim(padding, n)
        self.dilation, self.transposed = per_dim(dilation, n), self._transposed
        self.output_padding = per_dim(output_padding, n)
        self.groups, self.padding_mode = groups, padding_mode
        self._check_options()
        self._reversed_padding_repeated_twice = self._pads()
        sizes = (in_channels, out_channels) if self._transposed else (out_channels, in_channels)
        shape = (sizes[0], sizes[1] // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _check_options(self) -> None:
        problem = ""
        if self.groups <= 0:
            problem = "groups must be a positive integer"
        elif self.in_channels % self.groups:
            problem = "in_channels must be divisible by groups"
        elif self.out_channels % self.groups:
            problem = "out_channels must be divisible by groups"
        elif isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            problem = "Invalid padding string, should be one of {'same', 'valid'}"
        elif self.padding == "same" and any(s != 1 for s in self.stride):
            problem = "padding='same' is not supported for strided convolutions"
        elif self.padding_mode not in _MODES:
            problem = f"padding_mode must be one of {_MODES}"
        elif self._transposed and self.padding_mode != "zeros":
            problem = f'Only "zeros" padding mode is supported for {type(self).__name__}'
        if problem:
            raise ArgumentError(
                f"{type(self).__name__}({self.in_channels}, {self.out_channels}, "
                f"stride={self.stride}, padding={self.padding!r}, groups={self.groups}, "
                f"padding_mode={self.padding_mode!r}): {problem}"
            )

    def _pads(self) -> tuple[int, ...]:
        """Return the padding as ``F.pad`` takes it: before and after, last dimension first."""
        if self.padding == "valid":
            return (0, 0) * self._dims
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple(n for t in reversed(totals) for n in (t // 2, t - t // 2))
        return tuple(n for p in reversed(self.padding) for n in (p, p))

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1/√fan_in."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in, _ = init._calculate_fan_in_and_fan_out(self.weight)
            bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Return the sizes and the options that are not the default."""
        n, s = self._dims, f"{self.in_channels}, {self.out_channels}"
        s += f", kernel_size={self.kernel_size}, stride={self.stride}"
        plain = {"padding": (0,) * n, "dilation": (1,) * n, "output_padding": (0,) * n, "groups": 1}
        for name, default in plain.items():
            value = getattr(self, name)
            if value != default:
                s += f", {name}={value}"
        if self.bias is None:
            s += ", bias=False"
        return s if self.padding_mode == "zeros" else f"{s}, padding_mode={self.padding_mode}"


class _Conv(_ConvNd):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw weight and bias uniformly from ±1/√fan_in.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output.
            kernel_size: of the window.
            stride: step of the window.
            padding: added at both ends of each dimension; or "valid" (none) or "same".
            dilation: distance of neighbouring elements of the window.
            groups: blocks of channels that do not see each other.
            bias: whether a bias is learned.
            padding_mode: "zeros", "reflect", "replicate" or "circular".
            device: where the parameters live.
            dtype: of the parameters.
        """
        super().__init__()
        self._setup(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 0, groups, bias,
            padding_mode, device, dtype,
        )  # fmt: skip

    _function: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input`` with the weight."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * self._dims
        return type(self)._function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv1d(_Conv):
    """Convolution over (N, C, L) or (C, L)."""

    _dims = 1
    _function = staticmethod(F.conv1d)


class Conv2d(_Conv):
    """Convolution over (N, C, H, W) or (C, H, W).

    Example:
        >>> import distgrad as dg
        >>> Conv2d(3, 8, 3, padding=1)(dg.ones(2, 3, 5, 5)).shape
        distgrad.Size([2, 8, 5, 5])
    """

    _dims = 2
    _function = staticmethod(F.conv2d)


class Conv3d(_Conv):
    """Convolution over (N, C, D, H, W) or (C, D, H, W)."""

    _dims = 3
    _function = staticmethod(F.conv3d)


class _ConvTranspose(_ConvNd):
    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw weight and bias uniformly; the arguments are those of the convolution.

        ``output_padding`` is added to one end of the output, to choose among the sizes that the
        convolution would map to the same size.
        """
        super().__init__()
        self._setup(
            in_channels, out_channels, kernel_size, stride, padding, dilation, output_padding,
            groups, bias, padding_mode, device, dtype,
        )  # fmt: skip

    _function: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the transposed convolution, of the spatial sizes ``output_size`` if given."""
        extra = self.output_padding
        if output_size is not None:
            extra = self._output_padding(input, tuple(output_size))
        return type(self)._function(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups,
            self.dilation,
        )  # fmt: skip

    def _output_padding(self, input: Tensor, output_size: tuple[int, ...]) -> tuple[int, ...]:
        sizes = input.array.shape[-self._dims :]
        wanted = output_size[-self._dims :]
        pads: Any = self.padding
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                sizes, self.stride, pads, self.dilation, self.kernel_size, strict=True
            )
        ]
        most = [n + s - 1 for n, s in zip(least, self.stride, strict=True)]
        fits = len(output_size) in (self._dims, input.array.ndim)
        if not fits or any(not a <= n <= b for a, n, b in zip(least, wanted, most, strict=True)):
            raise ArgumentError(
                f"{type(self).__name__}({input._brief()}): requested an output size of "
                f"{list(output_size)}, but valid sizes range from {least} to {most}"
            )
        return tuple(n - a for n, a in zip(wanted, least, strict=True))


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution over (N, C, L) or (C, L): the gradient of ``Conv1d``."""

    _dims = 1
    _function = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over (N, C, H, W) or (C, H, W): the gradient of ``Conv2d``."""

    _dims = 2
    _function = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution over (N, C, D, H, W) or (C, D, H, W): the gradient of ``Conv3d``."""

    _dims = 3
    _function = staticmethod(F.conv_transpose3d)


# ---------------------------------------------------------------------- channels known later
class _LazyConv(LazyModuleMixin, _ConvNd):
    """A convolution whose ``in_channels`` its first input tells."""

    weight: Any
    bias: Any

    def _leave_open(self, out_channels: int, bias: bool, device: Any, dtype: Any) -> None:
        self.out_channels = out_channels
        self.weight = UninitializedParameter(device=device, dtype=dtype)
        if bias:
            self.bias = UninitializedParameter(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, once they have a shape."""
        if not self.has_uninitialized_params() and self.in_channels != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor, *args: Any, **kwargs: Any) -> None:
        """Take the number of channels from ``input``."""
        lazy, n = self.has_uninitialized_params(), self._dims
        if input.array.ndim not in (n + 1, n + 2):
            raise ShapeError(
                f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to "
                f"{type(self).__name__}, but got input of size: {input.shape}"
            )
        self.in_channels = input.array.shape[-n - 1]
        if not lazy:
            return
        self._check_options()
        sizes = (self.in_channels, self.out_channels)
        first, second = sizes if self._transposed else sizes[::-1]
        self.weight.materialize((first, second // self.groups, *self.kernel_size))
        if self.bias is not None:
            self.bias.materialize((self.out_channels,))
        self.reset_parameters()


class _LazyConvForward(_LazyConv, _Conv):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Leave the parameters without a shape."""
        super().__init__(0, 0, kernel_size, stride, padding, dilation, groups, False, padding_mode)
        self._leave_open(out_channels, bias, device, dtype)


class LazyConv1d(_LazyConvForward, Conv1d):
    """A ``Conv1d`` whose ``in_channels`` its first input tells."""

    cls_to_become = Conv1d


class LazyConv2d(_LazyConvForward, Conv2d):
    """A ``Conv2d`` whose ``in_channels`` its first input tells."""

    cls_to_become = Conv2d


class LazyConv3d(_LazyConvForward, Conv3d):
    """A ``Conv3d`` whose ``in_channels`` its first input tells."""

    cls_to_become = Conv3d


class _LazyConvTranspose(_LazyConv, _ConvTranspose):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Leave the parameters without a shape."""
        super().__init__(
            0, 0, kernel_size, stride, padding, output_padding, groups, False, dilation,
            padding_mode,
        )  # fmt: skip
        self._leave_open(out_channels, bias, device, dtype)


class LazyConvTranspose1d(_LazyConvTranspose, ConvTranspose1d):
    """A ``ConvTranspose1d`` whose ``in_channels`` its first input tells."""

    cls_to_become = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose, ConvTranspose2d):
    """A ``ConvTranspose2d`` whose ``in_channels`` its first input tells."""

    cls_to_become = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose, ConvTranspose3d):
    """A ``ConvTranspose3d`` whose ``in_channels`` its first input tells."""

    cls_to_become = ConvTranspose3d
