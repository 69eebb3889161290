"""Whole numbers, element by element: rounding, parts of floating point numbers, divisors."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, op
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import (
    apart,
    between,
    broadcast_pairs,
    case,
    given,
    integers,
    positive,
    real,
    unary,
)
from distgrad.errors import ArgumentTypeError, DtypeError
from distgrad.ops.elementwise import mul, pow, refuse
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, TensorLike

__all__ = [
    "ceil", "copysign", "fix", "floor", "frac", "frexp", "gcd", "heaviside", "lcm", "ldexp",
    "nextafter", "round", "trunc",
]  # fmt: skip


def _rounding(xp: Namespace, name: str, function: Any, input: Any) -> Array:
    refuse("bc", name, input)
    return xp.array(input, copy=True) if input.dtype.kind in "iu" else function(input)


@op("elementwise", samples=[*unary(apart), case(integers(5, 4))], inplace=True,
    d_input=lambda F, g: F.zero(g))  # fmt: skip
def floor(xp: Namespace, input: Tensor) -> Array:
    """Return the largest whole number that is not above each element."""
    return _rounding(xp, "floor", xp.floor, input)


@op("elementwise", samples=[*unary(apart), case(integers(5, 4))], inplace=True,
    d_input=lambda F, g: F.zero(g))  # fmt: skip
def ceil(xp: Namespace, input: Tensor) -> Array:
    """Return the smallest whole number that is not below each element."""
    return _rounding(xp, "ceil", xp.ceil, input)


@op("elementwise", samples=[*unary(apart), case(integers(5, 4))], inplace=True,
    d_input=lambda F, g: F.zero(g))  # fmt: skip
def trunc(xp: Namespace, input: Tensor) -> Array:
    """Return each element with its fraction cut off."""
    return _rounding(xp, "trunc", xp.trunc, input)


@op("elementwise", samples=[case(between(0.6, 1.4, 3)), case(integers(5, 4)),
                            case(given([1.234, -5.678]), decimals=2),
                            case(given([123.0]), decimals=-1)],
    inplace=True, d_input=lambda F, g: F.zero(g))  # fmt: skip
def round(xp: Namespace, input: Tensor, *, decimals: int = 0) -> Array:
    """Return each element rounded to ``decimals`` places; halves go to the even neighbour."""
    if not decimals:
        return _rounding(xp, "round", xp.rint, input)
    refuse("biuc", "round", input)
    ten = 10.0 ** math.fabs(decimals)
    if decimals < 0:
        return xp.rint(input / ten) * ten
    return xp.rint(input * ten) / ten


@op("elementwise", samples=unary(apart), inplace=True, d_input=lambda g: g)
def frac(xp: Namespace, input: Tensor) -> Array:
    """Return the fraction of each element, with its sign."""
    refuse("biuc", "frac", input)
    return xp.subtract(input, xp.trunc(input))


@op("elementwise", samples=broadcast_pairs(apart, apart), floats=True, inplace=True,
    d_input=lambda F, g, input, out: g * F.where(input == 0, 0.0, out / input),
    d_other=lambda F, g: F.zero(g))  # fmt: skip
def copysign(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return the magnitude of ``input`` with the sign of ``other``."""
    refuse("c", "copysign", input)
    return xp.copysign(input, other)


@op(
    "elementwise",
    widens=False,
    samples=[case(given([-1.5, 0.0, 2.0]), real(3))],
    promote=(),
    inplace=True,
)
def heaviside(xp: Namespace, input: Tensor, values: Tensor) -> Array:
    """Return 0 below zero, 1 above, and ``values`` at zero; both of one dtype."""
    refuse("c", "heaviside", input)
    if input.dtype != values.dtype:
        raise DtypeError("heaviside is not yet implemented for tensors with different dtypes.")
    step = xp.astype(xp.greater(input, 0), input.dtype)
    return xp.where(xp.equal(input, 0), values, step)


@op("elementwise", widens=False, samples=broadcast_pairs(), inplace=True,
    d_input=lambda F, g, input, other: F.where(input == other, 0.0, g),
    d_other=lambda F, g: F.zero(g))  # fmt: skip
def nextafter(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the number next to ``input`` in the direction of ``other``."""
    refuse("biuc", "nextafter", input)
    return xp.nextafter(input, other)


@op(samples=[case(positive(3))], outputs=("mantissa", "exponent!"),
    d_input=lambda F, g, exponent: F.ldexp_core(g, exponent, -1))  # fmt: skip
def frexp(xp: Namespace, input: Tensor) -> tuple[Array, Array]:
    """Return mantissa in [0.5, 1) and int32 exponent: ``input == mantissa * 2 ** exponent``."""
    refuse("biuc", "frexp", input)
    mantissa, exponent = xp.frexp(input)
    return mantissa, exponent


@op("elementwise", samples=[case(real(3), integers(5, 3))], method=False, promote=(),
    reference=lambda torch, x, n: torch.ldexp(x, n),
    d_input=lambda F, g, other, sign: F.ldexp_core(g, other, sign))  # fmt: skip
def ldexp_core(xp: Namespace, input: Tensor, other: Tensor, sign: int = 1) -> Array:
    """Return ``input * 2 ** (sign * other)`` for integers ``other``."""
    refuse("bc", "ldexp", other)
    return xp.ldexp(input, xp.astype(xp.multiply(other, sign), xp.int32))


@takes_out
def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """Return ``input * 2 ** other``."""
    for name, operand in (("input", input), ("other", other)):
        if not isinstance(operand, Tensor):
            raise ArgumentTypeError(
                f"ldexp(): argument '{name}' must be Tensor, not {type(operand).__name__}"
            )
    if input.array.dtype.kind == "f" and other.array.dtype.kind in "biu":
        return ldexp_core(input, other)
    return mul(input, pow(2.0, other))


@op("elementwise", samples=[case(integers(20, 3, 4), integers(9, 4))], inplace=True)
def gcd(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the greatest common divisors of integers."""
    refuse("fcVb", "gcd", input)
    return xp.gcd(input, other)


@op("elementwise", samples=[case(integers(20, 3, 4), integers(9, 4))], inplace=True)
def lcm(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the least common multiples of integers."""
    refuse("fcVb", "lcm", input)
    return xp.lcm(input, other)


fix = trunc
for _name, _function in (("fix", trunc), ("ldexp", ldexp)):
    as_method(_function, _name)
    as_method(in_place(_function, f"{_name}_"))
del _name, _function
