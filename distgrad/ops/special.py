"""Special functions, element by element."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, op
from distgrad.autograd.inplace import in_place
from distgrad.autograd.samples import apart, between, broadcast_pairs, case, given, unary, unit
from distgrad.autograd.samples import positive as above_zero
from distgrad.autograd.samples import real as real_
from distgrad.errors import ShapeError
from distgrad.ops.elementwise import refuse
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, TensorLike

__all__ = [
    "digamma", "erf", "erfc", "erfinv", "lgamma", "logit", "polygamma", "sinc", "xlogy",
]  # fmt: skip


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: g * (F.exp(-input * input) * (2 / math.sqrt(math.pi))))  # fmt: skip
def erf(xp: Namespace, input: Tensor) -> Array:
    """Return the error function."""
    refuse("c", "erf", input)
    return xp.erf(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: F.exp(-input * input) * g * (-2 / math.sqrt(math.pi)))  # fmt: skip
def erfc(xp: Namespace, input: Tensor) -> Array:
    """Return ``1 - erf(input)``, precise where it is small."""
    refuse("c", "erfc", input)
    return xp.erfc(input)


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda F, g, out: g * (F.exp(out * out) * (math.sqrt(math.pi) / 2)))  # fmt: skip
def erfinv(xp: Namespace, input: Tensor) -> Array:
    """Return the numbers whose error function is ``input``."""
    refuse("c", "erfinv", input)
    return xp.erfinv(input)


@op("elementwise", samples=[*unary(above_zero), case(given([-1.5, -0.3, 20.0]))],
    floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.digamma(input))  # fmt: skip
def lgamma(xp: Namespace, input: Tensor) -> Array:
    """Return the logarithm of the absolute value of the gamma function."""
    refuse("c", "lgamma", input)
    return xp.lgamma(input)


@op("elementwise", samples=[*unary(above_zero), case(given([-1.5, -0.3, 20.0]))],
    floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.polygamma(1, input))  # fmt: skip
def digamma(xp: Namespace, input: Tensor) -> Array:
    """Return the derivative of ``lgamma``."""
    refuse("c", "digamma", input)
    return xp.digamma(input)


@op("elementwise", samples=[case(above_zero(3, 4), n=1), case(above_zero(), n=2),
                            case(above_zero(2), n=0), case(given([-1.5, -0.3, 20.0]), n=1)],
    floats=True, method=False, reference=lambda torch, x, n: torch.polygamma(n, x),
    d_input=lambda F, g, input, n: g * F.polygamma(n + 1, input))  # fmt: skip
def polygamma(xp: Namespace, n: int, input: Tensor) -> Array:
    """Return the derivative number ``n`` of ``digamma``."""
    refuse("c" if n else "", "polygamma", input)
    if n < 0:
        raise ShapeError("polygamma(n, x) does not support negative n.")
    return xp.polygamma(n, input) if n else xp.digamma(input)


def _polygamma_method(self: Tensor, n: int) -> Tensor:
    """Return the derivative number ``n`` of ``digamma``."""
    return polygamma(n, self)


@op("elementwise", samples=[*unary(apart), case(given([0.0, 0.5]))][:3], floats=True, inplace=True,
    d_input=lambda F, g, input: _d_sinc(F, g, input))  # fmt: skip
def sinc(xp: Namespace, input: Tensor) -> Array:
    """Return ``sin(π input) / (π input)``, which is 1 at zero."""
    x = xp.multiply(input, input.dtype.type(math.pi))  # type: ignore[attr-defined]
    zero = xp.equal(input, 0)
    one = xp.ones((), x.dtype)
    return xp.where(zero, one, xp.sin(x) / xp.where(zero, one, x))


def _d_sinc(F: Any, g: Any, input: Any) -> Any:
    x = F.where(input == 0, 1.0, input) * math.pi
    slope = (x * F.cos(x) - F.sin(x)) / (x * x) * math.pi
    return g * F.where(input == 0, 0.0, slope)


@op("elementwise", samples=[*broadcast_pairs(real_, above_zero),
                            case(given([0.0, 1.0]), above_zero(2))],
    floats=True, inplace=True,
    d_input=lambda F, g, input, other: g * F.where(
        (input == 0) & (other <= 0), 0.0, F.log(F.where((input == 0) & (other <= 0), 1.0, other))
    ),
    d_other=lambda g, input, other: g * input / other)  # fmt: skip
def xlogy(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input * log(other)``, which is 0 where ``input`` is 0 and ``other`` not nan."""
    refuse("c", "xlogy", input)
    product = xp.multiply(input, xp.log(other))
    zero = xp.equal(input, 0) & xp.equal(other, other)
    return xp.where(zero, xp.zeros((), product.dtype), product)


@op("elementwise", samples=[*unary(lambda *s: between(0.1, 0.9, *s)),
                            case(between(0, 1, 9), eps=0.2)],
    floats=True, inplace=True,
    d_input=lambda F, g, input, eps: F.where(
        (input < (eps or 0.0)) | (input > 1 - (eps or 0.0)),
        math.nan if eps is None else 0.0,
        g / (input * (1 - input)),
    ))  # fmt: skip
def logit(xp: Namespace, input: Tensor, eps: float | None = None) -> Array:
    """Return ``log(input / (1 - input))``, with ``input`` limited to [eps, 1 - eps] first."""
    refuse("c", "logit", input)
    x = input if eps is None else xp.minimum(xp.maximum(input, eps), 1 - eps)
    return xp.log(xp.divide(x, xp.subtract(1, x)))


as_method(_polygamma_method, "polygamma")
as_method(in_place(_polygamma_method, "polygamma_"))
