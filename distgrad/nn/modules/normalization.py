"""Layers that normalise each sample by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty
from distgrad.ops.elementwise import add, mul, pow, square
from distgrad.ops.shape import expand, narrow, squeeze, unsqueeze
from distgrad.tensor import Tensor


def affine_parameters(
    module: Module, size: int | tuple[int, ...], weight: bool, bias: bool, device: Any, dtype: Any
) -> None:
    """Give ``module`` the parameters ``weight`` and ``bias``, or None in their place."""
    for name, wanted in (("weight", weight), ("bias", weight and bias)):
        made = Parameter(empty(size, device=device, dtype=dtype)) if wanted else None
        module.register_parameter(name, made)


def reset_affine(module: Any) -> None:
    """Fill ``weight`` with 1 and ``bias`` with 0, where they exist."""
    if module.weight is not None:
        init.ones_(module.weight)
    if module.bias is not None:
        init.zeros_(module.bias)


class LayerNorm(Module):
    """Normalises over the last dimensions to mean 0 and variance 1, then scales and shifts.

    Args:
        normalized_shape: sizes of the last dimensions, or of the last one.
        eps: added to the variance.
        elementwise_affine: learn a scale and, with ``bias``, a shift for each place.
        bias: learn the shift.
        device: where the parameters live.
        dtype: of the parameters.

    Example:
        >>> import distgrad as dg
        >>> LayerNorm(2)(dg.tensor([[1.0, 3.0]])).round(decimals=3).tolist()
        [[-1.0, 1.0]]
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Start with scale 1 and shift 0."""
        super().__init__()
        shape = normalized_shape
        self.normalized_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        affine_parameters(self, self.normalized_shape, elementwise_affine, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale 1 and shift 0."""
        reset_affine(self)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the shape and the options."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )


class GroupNorm(Module):
    """Normalises each group of channels of each sample, then scales and shifts each channel."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Start with scale 1 and shift 0."""
        super().__init__()
        if num_channels % num_groups:
            raise ArgumentError(
                f"GroupNorm(num_groups={num_groups}, num_channels={num_channels}): num_channels "
                f"({num_channels}) must be divisible by num_groups ({num_groups})"
            )
        self.num_groups, self.num_channels = num_groups, num_channels
        self.eps, self.affine = eps, affine
        affine_parameters(self, num_channels, affine, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale 1 and shift 0."""
        reset_affine(self)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the sizes and the options."""
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divides by the root of the mean square over the last dimensions, then scales.

    ``eps`` defaults to the smallest step of the input's dtype.
    """

    weight: Tensor | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Start with scale 1."""
        super().__init__()
        shape = normalized_shape
        self.normalized_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        sizes = self.normalized_shape
        made = Parameter(empty(sizes, device=device, dtype=dtype)) if elementwise_affine else None
        self.register_parameter("weight", made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set scale 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """Return the shape and the options."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class LocalResponseNorm(Module):
    """Divides each element by a power of the mean square over ``size`` neighbouring channels."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        """Take the number of channels, the factor, the exponent and the additive constant."""
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """Return the size and the constants."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class CrossMapLRN2d(LocalResponseNorm):
    """``LocalResponseNorm`` of images as Torch 7 computed it, and PyTorch does.

    A window of even ``size`` is one channel smaller, and its sum is divided by ``size`` all the
    same; windows beyond the first channel's reach count that channel too.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1) -> None:
        """Take the number of channels, the factor, the exponent and the additive constant."""
        super().__init__(size, alpha, beta, k)

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input."""
        if input.ndim != 4:
            raise ArgumentError(
                f"CrossMapLRN2d({input._brief()}): Expected 4D input, got {input.ndim}D instead."
            )
        reach, squares = (self.size - 1) // 2, square(input)
        window, rest = 2 * reach + 1, max(input.array.shape[1] - reach - 1, 0)
        around = F.pad(squares, (0, 0, 0, 0, reach, reach))
        means = squeeze(F.avg_pool3d(unsqueeze(around, 1), (window, 1, 1), stride=1), 1)
        first = expand(narrow(squares, 1, 0, 1), (-1, rest, -1, -1))
        first = F.pad(first, (0, 0, 0, 0, input.array.shape[1] - rest, 0))
        sums = add(mul(means, window), first)
        return mul(input, pow(add(mul(sums, self.alpha / self.size), self.k), -self.beta))
