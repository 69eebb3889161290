"""Bessel functions, for ``distgrad.special``.

Source: Abramowitz and Stegun, chapter 9, for the derivatives.
"""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import between, case, given, positive, unary
from distgrad.backend import special
from distgrad.ops.checks import no_narrow
from distgrad.ops.elementwise import refuse
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = [
    "airy_ai", "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "i0", "i0e", "i1", "i1e",
    "modified_bessel_i0", "modified_bessel_i1", "modified_bessel_k0", "modified_bessel_k1",
    "scaled_modified_bessel_k0", "scaled_modified_bessel_k1", "spherical_bessel_j0",
]  # fmt: skip

_REAL = [*unary(positive), case(between(-12, 12, 9))]
# PyTorch's own J and Y have fewer digits beyond 2.5
_NEAR = [*unary(positive), case(between(-2.5, 2.5, 9))]
_NEAR_ABOVE = [*unary(positive), case(between(0.5, 2.5, 9))]
_ABOVE = [*unary(positive), case(between(0.5, 12, 9))]


def _quotient(F: Any, value: Any, x: Any, at_zero: float) -> Any:
    """Return ``value / x``, and its limit at 0."""
    zero = x == 0
    return F.where(zero, at_zero, value / F.where(zero, 1.0, x))


@op("elementwise", samples=_REAL, floats=True, inplace=True,
    d_input=lambda F, g, input: g * F.special_i1(input))  # fmt: skip
def i0(xp: Namespace, input: Tensor) -> Array:
    """Return the modified Bessel function of the first kind of order 0."""
    refuse("c", "i0", input)
    return special.i0(xp, input)


@op("elementwise", samples=_REAL, floats=True, method=False, reference="special.i0e",
    node="SpecialI0EBackward0",
    d_input=lambda F, g, input, out: g * (F.special_i1e(input) - F.sgn(input) * out))  # fmt: skip
def special_i0e(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(-|x|) i0(x)``."""
    refuse("c", "i0e", input)
    return special.i0e(xp, input)


@op("elementwise", samples=_REAL, floats=True, method=False, reference="special.i1",
    d_input=lambda F, g, input, out: g * (F.i0(input) - _quotient(F, out, input, 0.5)))  # fmt: skip
def special_i1(xp: Namespace, input: Tensor) -> Array:
    """Return the modified Bessel function of the first kind of order 1."""
    refuse("c", "i1", input)
    return special.i1(xp, input)


@op("elementwise", samples=_REAL, floats=True, method=False, reference="special.i1e",
    node="SpecialI1EBackward0",
    d_input=lambda F, g, input, out: g * (
        F.special_i0e(input) - out * F.sgn(input) - _quotient(F, out, input, 0.5)
    ))  # fmt: skip
def special_i1e(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(-|x|) i1(x)``."""
    refuse("c", "i1e", input)
    return special.i1e(xp, input)


@op("elementwise", samples=_NEAR, floats=True,
    check=no_narrow, method=False, reference="special.bessel_j0",
    d_input=lambda F, g, input: -g * F.special_bessel_j1(input))  # fmt: skip
def special_bessel_j0(xp: Namespace, input: Tensor) -> Array:
    """Return the Bessel function of the first kind of order 0."""
    refuse("c", "bessel_j0", input)
    return special.j0(xp, input)


@op("elementwise", samples=_NEAR, floats=True,
    check=no_narrow, method=False, reference="special.bessel_j1",
    d_input=lambda F, g, input, out: g * (
        F.special_bessel_j0(input) - _quotient(F, out, input, 0.5)
    ))  # fmt: skip
def special_bessel_j1(xp: Namespace, input: Tensor) -> Array:
    """Return the Bessel function of the first kind of order 1."""
    refuse("c", "bessel_j1", input)
    return special.j1(xp, input)


@op("elementwise", samples=_NEAR_ABOVE, floats=True,
    check=no_narrow, method=False, reference="special.bessel_y0",
    d_input=lambda F, g, input: -g * F.special_bessel_y1(input))  # fmt: skip
def special_bessel_y0(xp: Namespace, input: Tensor) -> Array:
    """Return the Bessel function of the second kind of order 0."""
    refuse("c", "bessel_y0", input)
    return special.y0(xp, input)


@op("elementwise", samples=_NEAR_ABOVE, floats=True,
    check=no_narrow, method=False, reference="special.bessel_y1",
    d_input=lambda F, g, input, out: g * (F.special_bessel_y0(input) - out / input))  # fmt: skip
def special_bessel_y1(xp: Namespace, input: Tensor) -> Array:
    """Return the Bessel function of the second kind of order 1."""
    refuse("c", "bessel_y1", input)
    return special.y1(xp, input)


@op("elementwise", samples=_ABOVE, floats=True, check=no_narrow, method=False,
    reference="special.modified_bessel_k0",
    d_input=lambda F, g, input: -g * F.special_modified_bessel_k1(input))  # fmt: skip
def special_modified_bessel_k0(xp: Namespace, input: Tensor) -> Array:
    """Return the modified Bessel function of the second kind of order 0."""
    refuse("c", "modified_bessel_k0", input)
    return special.k0(xp, input)


@op("elementwise", samples=_ABOVE, floats=True, check=no_narrow, method=False,
    reference="special.modified_bessel_k1",
    d_input=lambda F, g, input, out: -g * (
        F.special_modified_bessel_k0(input) + out / input
    ))  # fmt: skip
def special_modified_bessel_k1(xp: Namespace, input: Tensor) -> Array:
    """Return the modified Bessel function of the second kind of order 1."""
    refuse("c", "modified_bessel_k1", input)
    return special.k1(xp, input)


@op("elementwise", samples=_ABOVE, floats=True, check=no_narrow, method=False,
    reference="special.scaled_modified_bessel_k0",
    d_input=lambda F, g, input, out: g * (
        out - F.special_scaled_modified_bessel_k1(input)
    ))  # fmt: skip
def special_scaled_modified_bessel_k0(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(x)`` times the modified Bessel function of the second kind of order 0."""
    refuse("c", "scaled_modified_bessel_k0", input)
    return special.k0e(xp, input)


@op("elementwise", samples=_ABOVE, floats=True, check=no_narrow, method=False,
    reference="special.scaled_modified_bessel_k1",
    d_input=lambda F, g, input, out: g * (
        out - F.special_scaled_modified_bessel_k0(input) - out / input
    ))  # fmt: skip
def special_scaled_modified_bessel_k1(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(x)`` times the modified Bessel function of the second kind of order 1."""
    refuse("c", "scaled_modified_bessel_k1", input)
    return special.k1e(xp, input)


@op("elementwise", samples=[*unary(positive), case(given([-3.0, 2.5, 7.0]))], floats=True,
    check=no_narrow,
    method=False, reference="special.spherical_bessel_j0",
    d_input=lambda F, g, input, out: g * _quotient(F, F.cos(input) - out, input, 0.0))  # fmt: skip
def special_spherical_bessel_j0(xp: Namespace, input: Tensor) -> Array:
    """Return the spherical Bessel function ``sin(x) / x``, which is 1 at 0."""
    refuse("c", "spherical_bessel_j0", input)
    zero = xp.equal(input, 0)
    one = xp.ones((), input.dtype)
    return xp.where(zero, one, xp.sin(input) / xp.where(zero, one, input))


# PyTorch's own Ai is off by up to 3e-6 between -4.6 and -2.
@op("elementwise", samples=[*unary(positive), case(given([-9.0, -5.0, -1.5, 0.0, 7.0]))],
    floats=True, check=no_narrow, method=False, reference="special.airy_ai")  # fmt: skip
def special_airy_ai(xp: Namespace, input: Tensor) -> Array:
    """Return the Airy function Ai; as in PyTorch without a gradient."""
    refuse("c", "airy_ai", input)
    return special.airy_ai(xp, input)


airy_ai = special_airy_ai
bessel_j0, bessel_j1 = special_bessel_j0, special_bessel_j1
bessel_y0, bessel_y1 = special_bessel_y0, special_bessel_y1
i0e, i1, i1e = special_i0e, special_i1, special_i1e
modified_bessel_i0, modified_bessel_i1 = i0, special_i1
modified_bessel_k0, modified_bessel_k1 = special_modified_bessel_k0, special_modified_bessel_k1
scaled_modified_bessel_k0 = special_scaled_modified_bessel_k0
scaled_modified_bessel_k1 = special_scaled_modified_bessel_k1
spherical_bessel_j0 = special_spherical_bessel_j0
