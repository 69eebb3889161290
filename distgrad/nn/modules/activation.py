"""Functions of each element as layers, and the softmax family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.modules.attention import MultiheadAttention  # noqa: F401  PyTorch's place
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty
from distgrad.tensor import Tensor


class _Plain(Module):
    """A function without options."""

    _function: Callable[..., Tensor]

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return type(self)._function(input)


class Sigmoid(_Plain):
    """1 / (1 + exp(-x))."""

    _function = staticmethod(F.sigmoid)


class Tanh(_Plain):
    """The hyperbolic tangent."""

    _function = staticmethod(F.tanh)


class LogSigmoid(_Plain):
    """The logarithm of the sigmoid."""

    _function = staticmethod(F.logsigmoid)


class Softsign(_Plain):
    """x / (1 + |x|)."""

    _function = staticmethod(F.softsign)


class Tanhshrink(_Plain):
    """x - tanh(x)."""

    _function = staticmethod(F.tanhshrink)


class _InPlace(Module):
    """A function whose only option is to change its input."""

    _function: Callable[..., Tensor]

    def __init__(self, inplace: bool = False) -> None:
        """Take whether the input may be changed."""
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return type(self)._function(input, self.inplace)

    def extra_repr(self) -> str:
        """Return ``inplace=True`` where it is."""
        return "inplace=True" if self.inplace else ""


class ReLU(_InPlace):
    """The larger of x and 0."""

    _function = staticmethod(F.relu)


class SiLU(_InPlace):
    """x times its sigmoid."""

    _function = staticmethod(F.silu)


class Mish(_InPlace):
    """x * tanh(softplus(x))."""

    _function = staticmethod(F.mish)


class SELU(_InPlace):
    """The scaled exponential linear unit, which keeps mean 0 and variance 1."""

    _function = staticmethod(F.selu)


class Hardsigmoid(_InPlace):
    """The sigmoid made of three straight lines."""

    _function = staticmethod(F.hardsigmoid)

    def extra_repr(self) -> str:
        """Return nothing, as PyTorch does."""
        return ""


class Hardswish(_InPlace):
    """x times the hard sigmoid."""

    _function = staticmethod(F.hardswish)

    def extra_repr(self) -> str:
        """Return nothing, as PyTorch does."""
        return ""


def _inplace(module: Any) -> str:
    return ", inplace=True" if module.inplace else ""


class Threshold(Module):
    """x where it is above ``threshold``, else ``value``."""

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        """Take the threshold and the value below it."""
        super().__init__()
        self.threshold, self.value, self.inplace = threshold, value, inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.threshold(input, self.threshold, self.value, self.inplace)

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"threshold={self.threshold}, value={self.value}{_inplace(self)}"


class RReLU(Module):
    """A rectifier with a negative slope drawn at random while training."""

    def __init__(
        self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False
    ) -> None:
        """Take the range of slopes."""
        super().__init__()
        self.lower, self.upper, self.inplace = lower, upper, inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        """Return the range of slopes."""
        return f"lower={self.lower}, upper={self.upper}{_inplace(self)}"


class Hardtanh(Module):
    """x held between ``min_val`` and ``max_val``."""

    def __init__(
        self,
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
        min_value: float | None = None,
        max_value: float | None = None,
    ) -> None:
        """Take the bounds; ``min_value`` and ``max_value`` are their older names."""
        super().__init__()
        for old, new, value in (
            ("min_value", "min_val", min_value),
            ("max_value", "max_val", max_value),
        ):
            if value is not None:
                warnings.warn(
                    f"keyword argument `{old}` is deprecated and rename to `{new}`",
                    FutureWarning,
                    stacklevel=2,
                )
        self.min_val = min_val if min_value is None else min_value
        self.max_val = max_val if max_value is None else max_value
        self.inplace = inplace
        if self.max_val <= self.min_val:
            raise ArgumentError(
                f"Hardtanh(min_val={self.min_val}, max_val={self.max_val}): max_val must be "
                "greater than min_val"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        """Return the bounds."""
        return f"min_val={self.min_val}, max_val={self.max_val}{_inplace(self)}"


class ReLU6(Hardtanh):
    """x held between 0 and 6."""

    def __init__(self, inplace: bool = False) -> None:
        """Take whether the input may be changed."""
        super().__init__(0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        """Return ``inplace=True`` where it is."""
        return "inplace=True" if self.inplace else ""


class _Alpha(Module):
    _function: Callable[..., Tensor]

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        """Take the depth of the negative side."""
        super().__init__()
        self.alpha, self.inplace = alpha, inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return type(self)._function(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        """Return alpha."""
        return f"alpha={self.alpha}{_inplace(self)}"


class ELU(_Alpha):
    """x where positive, else alpha (exp(x) - 1)."""

    _function = staticmethod(F.elu)


class CELU(_Alpha):
    """x where positive, else alpha (exp(x / alpha) - 1)."""

    _function = staticmethod(F.celu)


class LeakyReLU(Module):
    """x where positive, else ``negative_slope`` x."""

    def __init__(self, negative_slope: float = 1e-2, inplace: bool = False) -> None:
        """Take the slope of the negative side."""
        super().__init__()
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        """Return the slope."""
        return f"negative_slope={self.negative_slope}{_inplace(self)}"


class PReLU(Module):
    """x where positive, else a learned slope times x: one slope, or one for each channel."""

    weight: Tensor

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        """Take the number of slopes and their first value."""
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the slopes to their first value."""
        init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        """Return the number of slopes."""
        return f"num_parameters={self.num_parameters}"


class GLU(Module):
    """The first half along ``dim`` times the sigmoid of the second half."""

    def __init__(self, dim: int = -1) -> None:
        """Take the dimension to split."""
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the gated half."""
        return F.glu(input, self.dim)

    def extra_repr(self) -> str:
        """Return the dimension."""
        return f"dim={self.dim}"


class GELU(Module):
    """x times the normal distribution's probability of a value below x.

    Args:
        approximate: "none", or "tanh" for an approximation by the hyperbolic tangent.
    """

    def __init__(self, approximate: str = "none") -> None:
        """Take how it is computed."""
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        """Return how it is computed."""
        return f"approximate={self.approximate!r}"


class _Shrink(Module):
    _function: Callable[..., Tensor]

    def __init__(self, lambd: float = 0.5) -> None:
        """Take the half width of the interval that becomes 0."""
        super().__init__()
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return type(self)._function(input, self.lambd)

    def extra_repr(self) -> str:
        """Return lambda."""
        return str(self.lambd)


class Hardshrink(_Shrink):
    """x, or 0 where |x| is at most ``lambd``."""

    _function = staticmethod(F.hardshrink)


class Softshrink(_Shrink):
    """x moved by ``lambd`` towards 0."""

    _function = staticmethod(F.softshrink)


class Softplus(Module):
    """log(1 + exp(beta x)) / beta; x itself where beta x is above ``threshold``."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        """Take the sharpness and the threshold."""
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of each element."""
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"beta={self.beta}, threshold={self.threshold}"


# ---------------------------------------------------------------------- softmax
class _AlongDim(Module):
    _function: Callable[..., Tensor]

    def __init__(self, dim: int | None = None) -> None:
        """Take the dimension along which the values sum to 1."""
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Return the function along the dimension."""
        return type(self)._function(input, self.dim)

    def extra_repr(self) -> str:
        """Return the dimension."""
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """exp(x) divided by its sum along ``dim``."""

    _function = staticmethod(F.softmax)


class Softmin(_AlongDim):
    """The softmax of -x along ``dim``."""

    _function = staticmethod(F.softmin)


class LogSoftmax(_AlongDim):
    """The logarithm of the softmax along ``dim``."""

    _function = staticmethod(F.log_softmax)


class Softmax2d(Module):
    """The softmax over the channels of (N, C, H, W) or (C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the softmax over the channels."""
        if input.array.ndim not in (3, 4):
            raise ArgumentError(
                f"Softmax2d({input._brief()}): expected input to be 3D or 4D, "
                f"got {input.array.ndim}D instead"
            )
        return F.softmax(input, -3)
