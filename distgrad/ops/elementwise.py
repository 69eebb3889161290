"""Arithmetic and functions, element by element, with broadcasting."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, cast, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import (
    Sample,
    apart,
    between,
    booleans,
    broadcast_pairs,
    case,
    given,
    integers,
    unary,
    unit,
)
from distgrad.autograd.samples import positive as above_zero
from distgrad.autograd.samples import real as real_
from distgrad.autograd.traced import Traced
from distgrad.backend.dtype import checked_number, complex128, float64
from distgrad.errors import ArgumentTypeError, DtypeError, DtypeNotImplemented, ShapeError
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Number, TensorLike

__all__ = [
    "abs", "absolute", "acos", "acosh", "add", "addcdiv", "addcmul", "arccos", "arccosh",
    "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "asin", "asinh", "atan", "atan2",
    "atanh", "cos", "cosh", "deg2rad", "div", "divide", "exp", "exp2", "expm1", "float_power",
    "floor_divide", "fmod", "hypot", "lerp", "log", "log1p", "log2", "log10", "logaddexp",
    "logaddexp2", "mul", "multiply", "nan_to_num", "neg", "negative", "positive", "pow",
    "rad2deg", "reciprocal", "remainder", "rsqrt", "rsub", "sgn", "sigmoid", "sign", "sin",
    "sinh", "sqrt", "square", "sub", "subtract", "tan", "tanh", "true_divide",
]  # fmt: skip


def _whole(low: int = 1) -> list[Sample]:
    """Return samples of integers, and of integers with a float."""
    return [
        case(integers(9, 3, 4, low=low), integers(9, 4, low=low)),
        case(integers(9, 3, low=low), between(0.5, 2.0, 3)),
    ]


def is_complex(x: Any) -> bool:
    """Return True for a complex array, or a tensor of complex numbers."""
    return bool((x.array if isinstance(x, Tensor) else x).dtype.kind == "c")


def refuse(kinds: str, name: str, *arrays: Any) -> None:
    """Raise for an array of one of the ``kinds`` of dtype that ``name`` does not take."""
    for array in arrays:
        if array.dtype.kind in kinds:
            raise DtypeNotImplemented(
                f'"{name}" not implemented for {array.dtype}; convert with .to(dtype)'
            )


def _no_bools(input: Any, other: Any) -> None:
    kinds = [
        "b" if isinstance(vars(t).get("_exact"), bool) else t.array.dtype.kind
        for t in (input, other)
    ]
    if kinds == ["b", "b"]:
        raise DtypeError(
            "Subtraction, the `-` operator, with two bool tensors is not supported. "
            "Use the `^` or `logical_xor()` operator instead."
        )
    if "b" in kinds:
        raise DtypeError(
            "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying "
            "to invert a mask, use the `~` or `logical_not()` operator instead."
        )


# ---------------------------------------------------------------------- arithmetic
@op(
    "elementwise",
    samples=[*broadcast_pairs(), case(real_(3), real_(3), alpha=2.5), *_whole()],
    operator="+",
    inplace=True,
    d_input=lambda g: g,
    d_other=lambda g, alpha: g if alpha == 1 else g * _number(alpha),
)
def add(xp: Namespace, input: TensorLike, other: TensorLike, *, alpha: float = 1) -> Array:
    """Return ``input + alpha * other``."""
    return xp.add(input, other if alpha == 1 else _scaled(xp, other, alpha))


@op(
    "elementwise",
    samples=[*broadcast_pairs(), case(real_(3), real_(3), alpha=2.5), *_whole()],
    operator="-",
    inplace=True,
    check=_no_bools,
    d_input=lambda g: g,
    d_other=lambda g, alpha: g * -_number(alpha),
)
def sub(xp: Namespace, input: TensorLike, other: TensorLike, *, alpha: float = 1) -> Array:
    """Return ``input - alpha * other``.

    Raises:
        DtypeError: one of them is bool; use ``logical_xor`` or ``logical_not``.
    """
    return xp.subtract(input, other if alpha == 1 else _scaled(xp, other, alpha))


def _number(x: Any) -> Any:
    """Return a number as it stands, or that of a tensor of one element."""
    return x.item() if isinstance(x, Tensor) else x


def _scaled(xp: Namespace, other: Any, alpha: Number) -> Any:
    """Return ``other * alpha`` in the dtype of ``other``."""
    alpha, kind = _number(alpha), other.dtype.kind
    if isinstance(alpha, bool) and kind != "b":
        raise DtypeError("Boolean alpha only supported for Boolean results.")
    if isinstance(alpha, float | complex) and kind in "iub":
        raise DtypeError(
            "For integral input tensors, argument alpha must not be a floating point number."
        )
    if isinstance(alpha, complex) and kind != "c":
        raise DtypeError(
            "For non-complex input tensors, argument alpha must not be a complex number."
        )
    if kind == "b":
        return xp.logical_and(other, bool(alpha))
    return xp.multiply(other, checked_number(alpha, other.dtype))


def rsub(input: Tensor, other: TensorLike, *, alpha: float = 1) -> Tensor:
    """Return ``other - alpha * input``."""
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(
            f"rsub(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    return sub(other, input, alpha=alpha)


@op(
    "elementwise",
    samples=[*broadcast_pairs(), *_whole()],
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
    samples=[*broadcast_pairs(second=above_zero), *_whole()],
    method=False,
    operator="/",
    inplace=True,
    floats=True,
    d_input=lambda g, other: g / other,
    d_other=lambda g, input, other: -g * (input / other) / other,
)
def div(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the true quotient ``input / other``; integers give the default float."""
    return xp.divide(input, other)


true_divide = div


def _no_zero_divisor(name: str, *arrays: Any) -> None:
    refuse("bc", name, arrays[-1])
    if arrays[-1].dtype.kind in "iu" and bool((arrays[-1] == 0).any()):
        raise DtypeError("ZeroDivisionError: integers hold no infinity; convert to float first")


_QUOTIENTS = [
    case(between(0.6, 1.4, 3, 4), between(0.41, 0.49, 4)),
    case(given([5.0, -5.0, 5.0, -5.0, 1.0]), given([3.0, 3.0, -3.0, -3.0, 0.3])),
    case(integers(9, 3, 4, low=-9), integers(4, 4, low=1)),
]


@op("elementwise", samples=_QUOTIENTS, operator="//", inplace=True, node="DivBackward1",
    d_input=lambda F, g: F.zero(g), d_other=lambda F, g: F.zero(g))  # fmt: skip
def floor_divide(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the largest whole number not above ``input / other``.

    Raises:
        DtypeError: an integer is divided by zero.
    """
    _no_zero_divisor("div_floor", input, other)
    return xp.floor_divide(input, other)


@op("elementwise", widens=False, samples=_QUOTIENTS, method=False, node="DivBackward1",
    reference=lambda torch, x, y: torch.div(x, y, rounding_mode="trunc"),
    d_input=lambda F, g: F.zero(g), d_other=lambda F, g: F.zero(g))  # fmt: skip
def trunc_divide(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input / other`` with its fraction cut off."""
    _no_zero_divisor("div_trunc", input, other)
    if input.dtype.kind in "iu":  # type: ignore[union-attr]
        return xp.floor_divide(input - xp.fmod(input, other), other)
    return xp.trunc(xp.divide(input, other))


@takes_out  # type: ignore[no-redef]
def div(input: TensorLike, other: TensorLike, *, rounding_mode: str | None = None) -> Tensor:
    """Return the quotient ``input / other``; integers give the default float.

    Args:
        rounding_mode: "floor" or "trunc" for whole numbers (integers stay integers), None for the
            true quotient.
    """
    if rounding_mode is None:
        return true_divide(input, other)
    if rounding_mode not in ("floor", "trunc"):
        raise ShapeError(
            "div(): expected rounding_mode to be one of None, 'trunc', or 'floor' "
            f"but found {rounding_mode!r}"
        )
    return (floor_divide if rounding_mode == "floor" else trunc_divide)(input, other)


@op(
    "elementwise",
    samples=_QUOTIENTS,
    operator="%",
    inplace=True,
    d_input=lambda g: g,
    d_other=lambda F, g, input, other: -g * F.floor_divide(input, other),
)
def remainder(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the remainder of division, with the sign of the divisor, as Python's ``%``."""
    _no_zero_divisor("remainder", input, other)
    return xp.remainder(input, other)


@op(
    "elementwise",
    samples=_QUOTIENTS,
    inplace=True,
    d_input=lambda g: g,
    d_other=lambda F, g, input, other: -g * F.trunc_divide(input, other),
)
def fmod(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return the remainder of division, with the sign of ``input``, as C's ``fmod``."""
    _no_zero_divisor("fmod", input, other)
    return xp.fmod(input, other)


@op("elementwise", samples=[*unary(), case(integers(9, 3))], operator="neg", inplace=True,
    d_input=lambda g: -g)  # fmt: skip
def neg(xp: Namespace, input: Tensor) -> Array:
    """Return ``-input``."""
    if input.dtype == bool:  # type: ignore[comparison-overlap]
        raise DtypeError(
            "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to "
            "invert a mask, use the `~` or `logical_not()` operator instead."
        )
    return xp.negative(input)


def positive(input: Tensor) -> Tensor:
    """Return ``input`` itself."""
    if input.array.dtype.kind == "b":
        raise DtypeError(
            f"positive({input._brief()}): The `+` operator, on a bool tensor is not supported."
        )
    return input


@op("elementwise", samples=[*unary(above_zero), case(integers(9, 3, low=1))], floats=True,
    inplace=True, d_input=lambda g, out: -g * out * out)  # fmt: skip
def reciprocal(xp: Namespace, input: Tensor) -> Array:
    """Return ``1 / input``."""
    return xp.reciprocal(input)


# ---------------------------------------------------------------------- powers
def _constant(exponent: Any) -> float | None:
    """Return an exponent that is one number and no variable as that number."""
    if isinstance(exponent, int | float):
        return exponent
    if isinstance(exponent, Tensor):
        if exponent.requires_grad:
            return None
        exponent = exponent.array
    if isinstance(exponent, Traced):
        return None
    if exponent.ndim or hasattr(exponent, "__cuda_array_interface__"):
        return None
    value = exponent.item()
    return None if isinstance(value, complex) else value


def _d_base(F: Any, g: Any, input: Any, exponent: Any) -> Any:
    number = _constant(exponent)
    if number == 2:
        return g * (input * 2)
    if number is not None:
        return F.zero(g) if number == 0 else g * (F.pow(input, number - 1) * number)
    slope = exponent * F.pow(input, exponent - 1)
    return g * F.where(exponent == 0, 0.0, slope)


def _d_exponent(F: Any, g: Any, input: Any, exponent: Any, out: Any) -> Any:
    flat = (input == 0) & _not_negative(F, exponent)
    return g * F.where(flat, 0.0, out * F.log(F.where(flat, 1.0, input)))


def _not_negative(F: Any, x: Any) -> Any:
    return (F.real(x) >= 0) & (F.imag(x) == 0) if is_complex(x) else x >= 0


@op(
    "elementwise",
    samples=[
        *broadcast_pairs(above_zero, real_), *_whole(),
        *[case(real_(3), given(e)) for e in (2.0, 3.0, 1.0, 0.0, 4.0, 2)],
        *[case(above_zero(3), given(e)) for e in (-1.0, 0.5, -0.5, -2.0, 2.5)],
    ],
    operator="**",
    inplace=True,
    d_input=_d_base,
    d_exponent=_d_exponent,
)  # fmt: skip
def pow(xp: Namespace, input: TensorLike, exponent: TensorLike) -> Array:
    """Return ``input`` to the power of ``exponent``.

    Raises:
        ShapeError: an integer to a negative power.
    """
    base: Array = input
    number = _constant(exponent)
    if number in _POWERS and base.ndim and base.dtype.kind == "f":
        return _POWERS[number](xp, base)
    if base.dtype.kind == "b":
        if not _is_number(exponent):
            refuse("b", "pow", base)
        return base | (not number)
    if base.dtype.kind == "i" and (number is None or number < 0):
        if _is_number(exponent):
            raise ShapeError("Integers to negative integer powers are not allowed.")
        return _integer_power(xp, base, exponent)
    return xp.power(base, exponent)


def _is_number(x: Any) -> bool:
    """Return True for the array of a Python number: `scalar` makes it read-only."""
    return not (x.ndim or getattr(x.flags, "writeable", True))


def _integer_power(xp: Namespace, base: Any, exponent: Any) -> Array:
    """Return integers to the power of integers; negative powers are cut to -1, 0 or 1."""
    power = xp.power(base, xp.maximum(exponent, 0))
    one = xp.asarray(1, base.dtype)
    sign = xp.where(exponent % 2 == 0, one, base)
    inverse = xp.where(xp.abs(base) == 1, sign, 0 * one)
    return xp.where(exponent < 0, inverse, power)


def _times_itself(xp: Namespace, x: Array, factor: Any = None) -> Array:
    """Return ``x * x``, times ``factor`` if there is one."""
    product = xp.multiply(x, x)
    if factor is not None:
        product *= factor
    return product


# NumPy's power takes 70 ns for a negative number to the third power, a product 0.1 ns.
_POWERS: dict[Any, Any] = {
    1: lambda xp, x: xp.array(x, copy=True),
    2: lambda xp, x: xp.multiply(x, x),
    3: lambda xp, x: _times_itself(xp, x, x),
    4: lambda xp, x: _times_itself(xp, xp.multiply(x, x)),
    0.5: lambda xp, x: xp.sqrt(x),
    -0.5: lambda xp, x: xp.reciprocal(xp.sqrt(x)),
    -1: lambda xp, x: xp.reciprocal(x),
    -2: lambda xp, x: xp.reciprocal(xp.multiply(x, x)),
}


@takes_out
def float_power(input: TensorLike, exponent: TensorLike) -> Tensor:
    """Return ``input ** exponent``, computed in float64."""

    def wide(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        kind = (complex128 if x.array.dtype.kind == "c" else float64).numpy
        return x if x.array.dtype == kind else cast(x, kind)

    if not isinstance(input, Tensor) and not isinstance(exponent, Tensor):
        raise ArgumentTypeError("float_power(): one of input and exponent must be a Tensor")
    return pow(wide(input), wide(exponent))


@op("elementwise", samples=[*unary(), case(integers(9, 3))], inplace=True,
    d_input=lambda g, input: g * (input * 2))  # fmt: skip
def square(xp: Namespace, input: Tensor) -> Array:
    """Return ``input ** 2``."""
    x: Array = xp.astype(input, xp.int64) if input.dtype == bool else input  # type: ignore[comparison-overlap]
    return xp.multiply(x, x)


@op("elementwise", samples=[*unary(above_zero), case(integers(9, 3, low=1))], floats=True,
    inplace=True, d_input=lambda g, out: g / (2 * out))  # fmt: skip
def sqrt(xp: Namespace, input: Tensor) -> Array:
    """Return the square root."""
    return xp.sqrt(input)


@op("elementwise", samples=unary(above_zero), floats=True, inplace=True,
    d_input=lambda g, out: g * (out * out * out * -0.5))  # fmt: skip
def rsqrt(xp: Namespace, input: Tensor) -> Array:
    """Return ``1 / sqrt(input)``."""
    return xp.reciprocal(xp.sqrt(input))


# ---------------------------------------------------------------------- signs and rounding
@op("elementwise", samples=[*unary(apart), case(integers(5, 4, low=-5))], operator="abs",
    inplace=True, jvp=lambda F, t_input, input: _real(F, t_input * _sgn_conj(F, input)),
    d_input=lambda F, g, input: g * _sgn_conj(F, input))  # fmt: skip
def abs(xp: Namespace, input: Tensor) -> Array:
    """Return the absolute value."""
    refuse("b", "abs", input)
    return xp.abs(input)


def _real_sign(xp: Namespace, x: Any) -> Array:
    """Return -1, 0 or 1, and 0 for nan as in PyTorch."""
    if x.dtype.kind == "b":
        return xp.array(x, copy=True)
    if x.dtype.kind == "f":
        return xp.subtract(xp.greater(x, 0), xp.less(x, 0), dtype=x.dtype)
    return xp.sign(x)


@op("elementwise", samples=[*unary(apart), case(integers(5, 4, low=-5)), case(booleans(3))],
    inplace=True, d_input=lambda F, g: F.zero(g))  # fmt: skip
def sign(xp: Namespace, input: Tensor) -> Array:
    """Return -1, 0 or 1 by the sign of each element."""
    refuse("c", "sign", input)
    return _real_sign(xp, input)


@op("elementwise", samples=[*unary(apart), case(integers(5, 4, low=-5))], inplace=True,
    jvp=lambda F, t_input, input: _turned(F, t_input, input),
    d_input=lambda F, g, input: F.conj(_turned(F, F.conj(g), input)))  # fmt: skip
def sgn(xp: Namespace, input: Tensor) -> Array:
    """Return the sign of each element; of a complex number its direction ``input / |input|``."""
    return xp.sign(input) if is_complex(input) else _real_sign(xp, input)


def _turned(F: Any, t: Any, input: Any) -> Any:
    """Return what ``t``, added to ``input``, adds to its direction: the part across it."""
    if not is_complex(input):
        return F.zero(t)
    direction = F.sgn(input)
    across = t - direction * F.real(t * F.conj(direction))
    zero = input == 0
    return F.where(zero, 0.0, across / F.where(zero, 1.0, F.abs(input)))


def _sgn_conj(F: Any, input: Any) -> Any:
    direction = F.sgn(input)
    return F.conj(direction) if is_complex(input) else direction


def _real(F: Any, x: Any) -> Any:
    return F.real(x) if is_complex(x) else x


# ---------------------------------------------------------------------- exponentials
@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * out)  # fmt: skip
def exp(xp: Namespace, input: Tensor) -> Array:
    """Return e to the power of each element."""
    return xp.exp(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * (out * math.log(2)))  # fmt: skip
def exp2(xp: Namespace, input: Tensor) -> Array:
    """Return 2 to the power of each element."""
    return xp.exp2(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * (out + 1))  # fmt: skip
def expm1(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(input) - 1``, precise near zero."""
    return xp.expm1(input)


@op("elementwise", samples=[*unary(above_zero), case(integers(9, 3, low=1))], floats=True,
    inplace=True, d_input=lambda g, input: g / input)  # fmt: skip
def log(xp: Namespace, input: Tensor) -> Array:
    """Return the natural logarithm."""
    return xp.log(input)


@op("elementwise", samples=unary(above_zero), floats=True, inplace=True,
    d_input=lambda g, input: g / (input * math.log(2)))  # fmt: skip
def log2(xp: Namespace, input: Tensor) -> Array:
    """Return the logarithm to base 2."""
    return xp.log2(input)


@op("elementwise", samples=unary(above_zero), floats=True, inplace=True,
    d_input=lambda g, input: g / (input * math.log(10)))  # fmt: skip
def log10(xp: Namespace, input: Tensor) -> Array:
    """Return the logarithm to base 10."""
    return xp.log10(input)


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda g, input: g / (input + 1))  # fmt: skip
def log1p(xp: Namespace, input: Tensor) -> Array:
    """Return ``log(1 + input)``, precise near zero."""
    return xp.log1p(input)


@op("elementwise", samples=broadcast_pairs(),
    d_input=lambda F, g, input, out: g * F.exp(input - out),
    d_other=lambda F, g, other, out: g * F.exp(other - out))  # fmt: skip
def logaddexp(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return ``log(exp(input) + exp(other))``, without overflow."""
    refuse("biu", "logaddexp", input)
    if not is_complex(input):
        return xp.logaddexp(input, other)
    first = xp.greater_equal(xp.real(input), xp.real(other))
    high, low = xp.where(first, input, other), xp.where(first, other, input)
    same = xp.equal(high, low)  # two infinities have no difference
    return high + xp.log1p(xp.exp(xp.where(same, 0, low - xp.where(same, 0, high))))


@op("elementwise", samples=broadcast_pairs(),
    d_input=lambda F, g, input, out: g * F.exp2(input - out),
    d_other=lambda F, g, other, out: g * F.exp2(other - out))  # fmt: skip
def logaddexp2(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return ``log2(2 ** input + 2 ** other)``, without overflow."""
    refuse("biuc", "logaddexp2", input)
    return xp.logaddexp2(input, other)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * (out * (1 - out)))  # fmt: skip
def sigmoid(xp: Namespace, input: Tensor) -> Array:
    """Return ``1 / (1 + exp(-input))``."""
    return xp.sigmoid(input)


# ---------------------------------------------------------------------- angles
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


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda g, out: g * (out * out + 1))  # fmt: skip
def tan(xp: Namespace, input: Tensor) -> Array:
    """Return the tangent of angles in radians."""
    return xp.tan(input)


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.rsqrt(1 - input * input))  # fmt: skip
def asin(xp: Namespace, input: Tensor) -> Array:
    """Return the angles whose sine is ``input``."""
    return xp.arcsin(input)


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda F, g, input: -g * F.rsqrt(1 - input * input))  # fmt: skip
def acos(xp: Namespace, input: Tensor) -> Array:
    """Return the angles whose cosine is ``input``."""
    return xp.arccos(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, input: g / (input * input + 1))  # fmt: skip
def atan(xp: Namespace, input: Tensor) -> Array:
    """Return the angles whose tangent is ``input``."""
    return xp.arctan(input)


@op("elementwise", samples=broadcast_pairs(above_zero, real_), floats=True, inplace=True,
    d_input=lambda g, input, other: g * (other / (input * input + other * other)),
    d_other=lambda g, input, other: g * (-input / (input * input + other * other)))  # fmt: skip
def atan2(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the angle of the point (x = ``other``, y = ``input``), from -π to π."""
    refuse("c", "atan2", input)
    return xp.arctan2(input, other)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.cosh(input))  # fmt: skip
def sinh(xp: Namespace, input: Tensor) -> Array:
    """Return the hyperbolic sine."""
    return xp.sinh(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.sinh(input))  # fmt: skip
def cosh(xp: Namespace, input: Tensor) -> Array:
    """Return the hyperbolic cosine."""
    return xp.cosh(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g, out: g * (1 - out * out))  # fmt: skip
def tanh(xp: Namespace, input: Tensor) -> Array:
    """Return the hyperbolic tangent."""
    return xp.tanh(input)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.rsqrt(input * input + 1))  # fmt: skip
def asinh(xp: Namespace, input: Tensor) -> Array:
    """Return the numbers whose hyperbolic sine is ``input``."""
    return xp.arcsinh(input)


@op("elementwise", samples=unary(lambda *s: between(1.2, 3, *s)), floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.rsqrt(input * input - 1))  # fmt: skip
def acosh(xp: Namespace, input: Tensor) -> Array:
    """Return the numbers whose hyperbolic cosine is ``input``."""
    return xp.arccosh(input)


@op("elementwise", samples=unary(unit), floats=True, inplace=True,
    d_input=lambda g, input: g / (1 - input * input))  # fmt: skip
def atanh(xp: Namespace, input: Tensor) -> Array:
    """Return the numbers whose hyperbolic tangent is ``input``."""
    return xp.arctanh(input)


@op("elementwise", samples=broadcast_pairs(above_zero, real_), inplace=True,
    d_input=lambda g, input, out: g * (input / out),
    d_other=lambda g, other, out: g * (other / out))  # fmt: skip
def hypot(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return ``sqrt(input ** 2 + other ** 2)``, without overflow."""
    refuse("biuc", "hypot", input)
    return xp.hypot(input, other)


def _times(xp: Namespace, name: str, input: Any, factor: float) -> Array:
    refuse("c", name, input)
    return xp.multiply(input, input.dtype.type(factor))  # bfloat16 takes no Python float


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g: g * (math.pi / 180))  # fmt: skip
def deg2rad(xp: Namespace, input: Tensor) -> Array:
    """Return angles in degrees in radians."""
    return _times(xp, "deg2rad", input, math.pi / 180)


@op("elementwise", samples=unary(), floats=True, inplace=True,
    d_input=lambda g: g * (180 / math.pi))  # fmt: skip
def rad2deg(xp: Namespace, input: Tensor) -> Array:
    """Return angles in radians in degrees."""
    return _times(xp, "rad2deg", input, 180 / math.pi)


# ---------------------------------------------------------------------- three operands
@op(
    "elementwise",
    samples=[case(real_(3, 4), real_(4), real_(3, 1)),
             case(real_(2), real_(2), real_(2), value=-0.5),
             case(integers(9, 3), integers(9, 3), integers(9, 3), value=2)],
    inplace=True,
    d_input=lambda g: g,
    d_tensor1=lambda g, tensor2, value: g * (tensor2 * _number(value)),
    d_tensor2=lambda g, tensor1, value: g * (tensor1 * _number(value)),
)  # fmt: skip
def addcmul(
    xp: Namespace, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1
) -> Array:
    """Return ``input + value * tensor1 * tensor2``."""
    refuse("b", "addcmul", input)
    product = xp.multiply(tensor1, tensor2)
    if value != 1:
        factor = checked_number(_number(value), input.dtype)  # type: ignore[arg-type]
        product = xp.multiply(product, factor)
    return xp.add(input, product)


@op(
    "elementwise",
    samples=[case(real_(3, 4), real_(4), above_zero(3, 1)),
             case(real_(2), real_(2), above_zero(2), value=-0.5)],
    inplace=True,
    d_input=lambda g: g,
    d_tensor1=lambda g, tensor2, value: g * _number(value) / tensor2,
    d_tensor2=lambda g, tensor1, tensor2, value: (
        g * (tensor1 * -_number(value)) / (tensor2 * tensor2)
    ),
)  # fmt: skip
def addcdiv(
    xp: Namespace, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1
) -> Array:
    """Return ``input + value * tensor1 / tensor2``."""
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        raise DtypeError(
            "Integer division with addcdiv is no longer supported; convert the tensors to float, "
            "or use input + value * trunc(tensor1 / tensor2)"
        )
    quotient = xp.divide(tensor1, tensor2)
    return xp.add(input, quotient if value == 1 else quotient * _number(value))


@op(
    "elementwise",
    samples=[case(real_(3, 4), real_(4), real_(3, 1)), case(real_(2), real_(2), given(0.3)),
             case(real_(2), real_(2), given(0.8))],
    promote=(),
    inplace=True,
    d_input=lambda g, weight: g * (1 - weight),
    d_end=lambda g, weight: g * weight,
    d_weight=lambda g, input, end: g * (end - input),
)  # fmt: skip
def lerp(xp: Namespace, input: Tensor, end: Tensor, weight: TensorLike) -> Array:
    """Return ``input + weight * (end - input)``; all of one floating point dtype."""
    refuse("biu", "lerp", input)
    step: Array = weight
    if not step.ndim and step.dtype != input.dtype:  # a tensor of one number is a number
        step = xp.astype(step, input.dtype)
    for name, array in (("end", end), ("weight", step)):
        if array.dtype != input.dtype:
            raise DtypeError(f"expected dtype {input.dtype} for `{name}` but got {array.dtype}")
    way = xp.subtract(end, input)
    near = xp.abs(step) < 0.5
    if xp.ndim(near):
        return xp.where(near, input + step * way, end - way * (1 - step))
    return input + step * way if near else end - way * (1 - step)


@op(
    "elementwise",
    samples=[*unary(), case(integers(5, 3))],
    inplace=True,
    d_input=lambda F, g, input: F.where(F.isfinite(input), g, 0.0),
)  # fmt: skip
def nan_to_num(
    xp: Namespace,
    input: Tensor,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Array:
    """Return ``input`` with nan as ``nan`` (0), and infinities as the largest finite numbers."""
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        return xp.array(input, copy=True)
    return xp.nan_to_num(input, nan=nan or 0.0, posinf=posinf, neginf=neginf)


# ---------------------------------------------------------------------- other names
absolute, negative, subtract, multiply, divide = abs, neg, sub, mul, div
arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2
arcsinh, arccosh, arctanh = asinh, acosh, atanh

for _name, _function in (
    ("absolute", abs), ("negative", neg), ("subtract", sub), ("multiply", mul), ("divide", div),
    ("true_divide", true_divide), ("arcsin", asin), ("arccos", acos), ("arctan", atan),
    ("arctan2", atan2), ("arcsinh", asinh), ("arccosh", acosh), ("arctanh", atanh), ("div", div),
    ("float_power", float_power),
):  # fmt: skip
    as_method(_function, _name)
    as_method(in_place(_function, f"{_name}_"))
as_method(rsub)


def _rdiv(self: Tensor, other: Any) -> Tensor:
    """Return ``other / self``."""
    if not isinstance(self, Tensor):
        raise AttributeError(f"__rdiv__(): {type(self).__name__!r} is no tensor, has no reciprocal")
    return div(other, self)


_abs_: Any = vars(Tensor)["abs_"]


def _abs_in_place(self: Tensor) -> Tensor:
    """Write ``abs(self)`` into this tensor and return it."""
    if self.is_complex():
        error = DtypeError("In-place abs is not supported for complex tensors; use abs()")
        recover("abs_", error, {"self": self}, {})
    return _abs_(self)  # type: ignore[no-any-return]


as_method(_abs_in_place, "abs_")
as_method(_abs_in_place, "absolute_")
for _name in ("div", "idiv"):
    setattr(Tensor, f"__{_name}__", getattr(Tensor, f"__{_name.replace('div', 'truediv')}__"))
as_method(_rdiv, "__rdiv__")
as_method(positive)
as_method(positive, "__pos__")
del _name, _function
