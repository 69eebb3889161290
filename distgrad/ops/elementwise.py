"""Arithmetic and functions, element by element, with broadcasting."""

from __future__ import annotations

from distgrad.autograd.declare import op
from distgrad.autograd.samples import apart, between, broadcast_pairs, case, positive, real, unary
from distgrad.errors import DtypeError
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, TensorLike


# ---------------------------------------------------------------------- arithmetic
@op(
    "elementwise",
    samples=[*broadcast_pairs(), case(real(3), real(3), alpha=2.5)],
    operator="+",
    inplace=True,
    d_input=lambda g: g,
    d_other=lambda g, alpha: g if alpha == 1 else g * alpha,
)
def add(xp: Namespace, input: Tensor, other: TensorLike, *, alpha: float = 1) -> Array:
    """Return ``input + alpha * other``."""
    return xp.add(input, other if alpha == 1 else other * alpha)


@op(
    "elementwise",
    samples=[*broadcast_pairs(), case(real(3), real(3), alpha=2.5)],
    operator="-",
    inplace=True,
    d_input=lambda g: g,
    d_other=lambda g, alpha: g * -alpha,
)
def sub(xp: Namespace, input: TensorLike, other: TensorLike, *, alpha: float = 1) -> Array:
    """Return ``input - alpha * other``.

    Raises:
        DtypeError: both are bool; use ``logical_xor``.
    """
    if input.dtype == bool:  # type: ignore[union-attr]
        raise DtypeError("subtraction with a bool tensor is not supported; use ^ or logical_xor()")
    return xp.subtract(input, other if alpha == 1 else other * alpha)


@op(
    "elementwise",
    samples=broadcast_pairs(),
    operator="*",
    inplace=True,
    d_input=lambda g, other: g * other,
    d_other=lambda g, input: g * input,
)
def mul(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the product ``input * other``."""
    return xp.multiply(input, other)


@op(
    "elementwise",
    samples=broadcast_pairs(second=positive),
    operator="/",
    inplace=True,
    floats=True,
    d_input=lambda g, other: g / other,
    d_other=lambda g, out, other: -g * out / other,
)
def div(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the true quotient ``input / other``; integers give the default float."""
    return xp.divide(input, other)


@op("elementwise", samples=unary(), operator="neg", inplace=True, d_input=lambda g: -g)
def neg(xp: Namespace, input: Tensor) -> Array:
    """Return ``-input``."""
    return xp.negative(input)


@op(
    "elementwise",
    samples=[*broadcast_pairs(positive, real), case(real(3), between(2, 2, 3))],
    operator="**",
    inplace=True,
    d_input=lambda F, g, input, exponent: g * F.where(
        exponent == 0, 0.0, exponent * F.pow(input, exponent - 1)
    ),
    d_exponent=lambda F, g, input, out: g * F.where(
        input > 0, out * F.log(F.where(input > 0, input, 1.0)), 0.0
    ),
)
def pow(xp: Namespace, input: TensorLike, exponent: TensorLike) -> Array:
    """Return ``input`` raised to ``exponent``."""
    return xp.power(input, exponent)


@op("elementwise", samples=unary(apart), operator="abs", inplace=True,
    d_input=lambda F, g, input: g * F.sign(input))  # fmt: skip
def abs(xp: Namespace, input: Tensor) -> Array:
    """Return the absolute value."""
    return xp.abs(input)


@op("elementwise", samples=unary(apart), inplace=True)
def sign(xp: Namespace, input: Tensor) -> Array:
    """Return -1, 0 or 1 by the sign of each element."""
    return xp.sign(input)


# ---------------------------------------------------------------------- functions
@op("elementwise", samples=unary(), floats=True, inplace=True, d_input=lambda g, out: g * out)
def exp(xp: Namespace, input: Tensor) -> Array:
    """Return e to the power of each element."""
    return xp.exp(input)


@op("elementwise", samples=unary(positive), floats=True, inplace=True,
    d_input=lambda g, input: g / input)  # fmt: skip
def log(xp: Namespace, input: Tensor) -> Array:
    """Return the natural logarithm."""
    return xp.log(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * (1 - out * out))  # fmt: skip
def tanh(xp: Namespace, input: Tensor) -> Array:
    """Return the hyperbolic tangent."""
    return xp.tanh(input)


@op("elementwise", samples=unary(positive), floats=True, inplace=True,
    d_input=lambda g, out: g / (2 * out))  # fmt: skip
def sqrt(xp: Namespace, input: Tensor) -> Array:
    """Return the square root."""
    return xp.sqrt(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.cos(input))  # fmt: skip
def sin(xp: Namespace, input: Tensor) -> Array:
    """Return the sine of angles in radians."""
    return xp.sin(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: -g * F.sin(input))  # fmt: skip
def cos(xp: Namespace, input: Tensor) -> Array:
    """Return the cosine of angles in radians."""
    return xp.cos(input)
