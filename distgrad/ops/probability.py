"""Functions of probability laws: entropy, normal tails, incomplete gamma, zeta."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, cast, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import between, broadcast_pairs, case, given, positive, real, unary
from distgrad.backend import special
from distgrad.backend.dtype import default_float
from distgrad.errors import DistgradError, DtypeNotImplemented, ShapeError
from distgrad.ops.checks import no_narrow
from distgrad.ops.elementwise import refuse
from distgrad.ops.shape import clone
from distgrad.ops.special import lgamma
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, TensorLike

__all__ = [
    "entr", "erfcx", "gammainc", "gammaincc", "igamma", "igammac", "log_ndtr", "mvlgamma", "ndtr",
    "ndtri", "xlog1py", "zeta",
]  # fmt: skip

_ROOT = math.sqrt(2 / math.pi)


@op("elementwise", samples=unary(positive), floats=True,
    method=False, reference="special.entr",
    d_input=lambda F, g, input: -g * (F.log(input) + 1))  # fmt: skip
def special_entr(xp: Namespace, input: Tensor) -> Array:
    """Return ``-x log(x)``: 0 at 0, -inf below."""
    refuse("c", "entr", input)
    kind = input.dtype.type  # type: ignore[attr-defined]
    value = -input * xp.log(xp.where(xp.greater(input, 0), input, kind(1)))
    negative = xp.where(xp.less(input, 0), kind(-math.inf), value)
    return xp.where(xp.isnan(input), input, xp.where(xp.equal(input, 0), kind(0), negative))


@op("elementwise", samples=[*unary(), case(given([-5.0, 30.0, 0.0]))], floats=True,
    check=no_narrow, method=False,
    reference="special.erfcx",
    d_input=lambda F, g, input, out: g * (2 * input * out - 2 / math.sqrt(math.pi)))  # fmt: skip
def special_erfcx(xp: Namespace, input: Tensor) -> Array:
    """Return ``exp(x²) erfc(x)``, without overflow where erfc is tiny."""
    refuse("c", "erfcx", input)
    return special.erfcx(xp, input)


@op("elementwise", samples=unary(), floats=True, method=False, reference="special.ndtr",
    d_input=lambda F, g, input: g * (F.exp(input * input * -0.5) * (_ROOT / 2)))  # fmt: skip
def special_ndtr(xp: Namespace, input: Tensor) -> Array:
    """Return the probability that a standard normal number is below ``input``."""
    refuse("c", "ndtr", input)
    return xp.erfc(xp.multiply(input, -math.sqrt(0.5))) * input.dtype.type(0.5)  # type: ignore[attr-defined]


@op("elementwise", samples=[*unary(), case(given([-30.0, 9.0]))], floats=True,
    check=no_narrow, method=False,
    reference="special.log_ndtr",
    d_input=lambda F, g, input: g / F.special_erfcx(input * -math.sqrt(0.5)) * _ROOT)  # fmt: skip
def special_log_ndtr(xp: Namespace, input: Tensor) -> Array:
    """Return the logarithm of ``ndtr``, precise far below 0."""
    refuse("c", "log_ndtr", input)
    return special.log_ndtr(xp, input)


@op("elementwise", samples=[*unary(lambda *s: between(0.1, 0.9, *s)), case(given([0.001, 0.999]))],
    floats=True, check=no_narrow, method=False, reference="special.ndtri",
    d_input=lambda F, g, out: g * (F.exp(out * out * 0.5) * math.sqrt(2 * math.pi)))  # fmt: skip
def special_ndtri(xp: Namespace, input: Tensor) -> Array:
    """Return the inverse of ``ndtr``."""
    refuse("c", "ndtri", input)
    return special.ndtri(xp, input)


@op("elementwise", samples=[*broadcast_pairs(real, positive), case(given([0.0]), positive(1))],
    floats=True, method=False, reference="special.xlog1py",
    d_input=lambda F, g, input, other: g * F.where(
        (input == 0) & (other <= -1), 0.0,
        F.log1p(F.where((input == 0) & (other <= -1), 1.0, other)),
    ),
    d_other=lambda g, input, other: g * input / (other + 1))  # fmt: skip
def special_xlog1py(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input * log1p(other)``, which is 0 where ``input`` is 0 and ``other`` not nan."""
    refuse("c", "xlog1py", input)
    product = xp.multiply(input, xp.log1p(other))
    zero = xp.equal(input, 0) & xp.equal(other, other)
    return xp.where(zero, xp.zeros((), product.dtype), product)


_ORDERS = given([1.5, 2.0, 7.0])


@op("elementwise", samples=[case(_ORDERS, positive(3)), case(_ORDERS, positive(2, 1))],
    floats=True, check=no_narrow, method=False, reference="special.zeta",
    d_q=lambda F, g, input, q: -g * input * F.special_zeta(input + 1, q))  # fmt: skip
def special_zeta(xp: Namespace, input: TensorLike, q: TensorLike) -> Array:
    """Return Hurwitz's zeta function Σ (q + k)^-input, for ``input`` above 1; gradient in ``q``."""
    refuse("c", "zeta", input)
    return special.zeta(xp, input, q)


def _density(F: Any, a: Any, x: Any) -> Any:
    return F.exp((a - 1) * F.log(x) - x - F.lgamma(a))


@op("elementwise", samples=[case(_ORDERS, between(0.2, 12, 3)), case(_ORDERS, positive(4, 1))],
    inplace=True, reference="igamma",
    d_other=lambda F, g, input, other: g * _density(F, input, other))  # fmt: skip
def igamma(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the regularised lower incomplete gamma function P(input, other).

    The gradient is that of ``other`` alone, as in PyTorch.
    """
    refuse("biuc", "igamma", input)
    return special.gammainc(xp, input, other)


@op("elementwise", samples=[case(_ORDERS, between(0.2, 12, 3)), case(_ORDERS, positive(4, 1))],
    inplace=True, reference="igammac",
    d_other=lambda F, g, input, other: -g * _density(F, input, other))  # fmt: skip
def igammac(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the regularised upper incomplete gamma function Q(input, other).

    The gradient is that of ``other`` alone, as in PyTorch.
    """
    refuse("biuc", "igammac", input)
    return special.gammaincc(xp, input, other)


@takes_out
def mvlgamma(input: Tensor, p: int) -> Tensor:
    """Return the logarithm of the multivariate gamma function of ``p`` dimensions.

    Raises:
        ShapeError: ``p`` is below 1.
    """
    error: DistgradError
    if p < 1:
        error = ShapeError("p has to be greater than or equal to 1")
        recover("mvlgamma", error, {"input": input}, {"p": p})
    if input.array.dtype.kind == "c":
        error = DtypeNotImplemented("not implemented for complex numbers")
        recover("mvlgamma", error, {"input": input}, {})
    if input.array.dtype.kind in "biu":
        input = cast(input, default_float())
    total = lgamma(input)
    for j in range(1, p):
        total = total + lgamma(input - j / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)


def _mvlgamma_of_copy(self: Tensor, p: int) -> Tensor:
    """Return ``mvlgamma(self, p)`` whose graph keeps no memory that is written over."""
    return mvlgamma(clone(self), p)


entr, erfcx, ndtr, log_ndtr = special_entr, special_erfcx, special_ndtr, special_log_ndtr
ndtri, xlog1py, zeta = special_ndtri, special_xlog1py, special_zeta
gammainc, gammaincc = igamma, igammac
as_method(mvlgamma)
as_method(in_place(_mvlgamma_of_copy, "mvlgamma_"))
