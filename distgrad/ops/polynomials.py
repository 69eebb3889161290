"""Orthogonal polynomials, for ``distgrad.special``: evaluated by their recurrences.

The degree is an operand too: its numbers are cut to integers, and below 0 the result is 0.  As in
PyTorch they carry no gradient.

Source: Abramowitz and Stegun, chapter 22.
"""

from __future__ import annotations

from collections.abc import Callable

from distgrad.autograd.declare import op
from distgrad.autograd.samples import between, case, given
from distgrad.ops.checks import no_narrow
from distgrad.ops.elementwise import refuse
from distgrad.typing import Array, Namespace, TensorLike

__all__ = [
    "chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v",
    "chebyshev_polynomial_w", "hermite_polynomial_h", "hermite_polynomial_he",
    "laguerre_polynomial_l", "legendre_polynomial_p", "shifted_chebyshev_polynomial_t",
    "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
    "shifted_chebyshev_polynomial_w",
]  # fmt: skip

_DEGREES = given([0, 1, 2, 3, 7, -1])
_SAMPLES = [case(between(-2, 2, 4, 6), _DEGREES), case(between(-1, 1, 2, 6), _DEGREES)]
Step = Callable[[int, Array, Array], Array]


def _recurrence(
    xp: Namespace, name: str, x: Array, n: Array, first: Array, step: Step, last: int = 1 << 30
) -> Array:
    """Return the polynomial of degree ``n``: ``first`` for 1, ``step(k, p_k, p_(k-1))`` for k + 1.

    Args:
        last: the highest degree that is not nan.
    """
    refuse("c", name, x)
    n = xp.trunc(n)
    older, newer = xp.ones_like(x), first
    out = xp.where(xp.equal(n, 0), older, xp.where(xp.equal(n, 1), newer, xp.zeros_like(x)))
    out = xp.where(xp.greater(n, last), xp.full_like(x, xp.nan), out)
    wanted = xp.where(xp.less_equal(n, last), n, 0)
    highest = int(wanted.max()) if n.size else 0
    with xp.errstate(all="ignore"):
        for k in range(1, highest):
            older, newer = newer, step(k, newer, older)
            out = xp.where(xp.equal(n, k + 1), newer, out)
    return out


# ---------------------------------------------------------------------- Chebyshev
def _chebyshev(xp: Namespace, name: str, x: Array, n: Array, first: Array) -> Array:
    """Return the polynomial with the recurrence of all four kinds, which differ in degree 1.

    High degrees within (-1, 1) come from their angle, which loses no digits there.
    """
    n = xp.trunc(n)
    by_angle = xp.less(xp.abs(x), 1) & xp.greater(n, 6)
    low = xp.where(by_angle, 0, n)
    near = _recurrence(xp, name, x, low, first, lambda k, p, before: (x + x) * p - before)
    angle = xp.arccos(xp.where(by_angle, x, 0))
    return xp.where(by_angle, _BY_ANGLE[name](xp, n, angle), near)


# cos((n + 1/2) a) / cos(a / 2) and its like: a is never 0 or π, since |x| < 1.
_BY_ANGLE: dict[str, Callable[..., Array]] = {
    "T": lambda xp, n, a: xp.cos(n * a),
    "U": lambda xp, n, a: xp.sin((n + 1) * a) / xp.sin(a),
    "V": lambda xp, n, a: xp.cos((n + 0.5) * a) / xp.cos(a / 2),
    "W": lambda xp, n, a: xp.sin((n + 0.5) * a) / xp.sin(a / 2),
}


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.chebyshev_polynomial_t")  # fmt: skip
def special_chebyshev_polynomial_t(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Chebyshev polynomial of the first kind of degree ``n``."""
    x: Array = input
    return _chebyshev(xp, "T", x, n, x)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.chebyshev_polynomial_u")  # fmt: skip
def special_chebyshev_polynomial_u(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Chebyshev polynomial of the second kind of degree ``n``."""
    x: Array = input
    return _chebyshev(xp, "U", x, n, x + x)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.chebyshev_polynomial_v")  # fmt: skip
def special_chebyshev_polynomial_v(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Chebyshev polynomial of the third kind of degree ``n``."""
    x: Array = input
    return _chebyshev(xp, "V", x, n, x + x - 1)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.chebyshev_polynomial_w")  # fmt: skip
def special_chebyshev_polynomial_w(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Chebyshev polynomial of the fourth kind of degree ``n``."""
    x: Array = input
    return _chebyshev(xp, "W", x, n, x + x + 1)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.shifted_chebyshev_polynomial_t")  # fmt: skip
def special_shifted_chebyshev_polynomial_t(
    xp: Namespace, input: TensorLike, n: TensorLike
) -> Array:
    """Return the Chebyshev polynomial of the first kind at ``2 * input - 1``."""
    x: Array = input + input - 1
    return _chebyshev(xp, "T", x, n, x)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.shifted_chebyshev_polynomial_u")  # fmt: skip
def special_shifted_chebyshev_polynomial_u(
    xp: Namespace, input: TensorLike, n: TensorLike
) -> Array:
    """Return the Chebyshev polynomial of the second kind at ``2 * input - 1``."""
    x: Array = input + input - 1
    return _chebyshev(xp, "U", x, n, x + x)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.shifted_chebyshev_polynomial_v")  # fmt: skip
def special_shifted_chebyshev_polynomial_v(
    xp: Namespace, input: TensorLike, n: TensorLike
) -> Array:
    """Return the Chebyshev polynomial of the third kind at ``2 * input - 1``."""
    x: Array = input + input - 1
    return _chebyshev(xp, "V", x, n, x + x - 1)


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.shifted_chebyshev_polynomial_w")  # fmt: skip
def special_shifted_chebyshev_polynomial_w(
    xp: Namespace, input: TensorLike, n: TensorLike
) -> Array:
    """Return the Chebyshev polynomial of the fourth kind at ``2 * input - 1``."""
    x: Array = input + input - 1
    return _chebyshev(xp, "W", x, n, x + x + 1)


# ---------------------------------------------------------------------- Hermite, Laguerre, Legendre
def _last_hermite(x: Array) -> int:
    """Return the degree above which PyTorch answers nan."""
    return 128 if x.dtype.itemsize < 8 else 512


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.hermite_polynomial_h")  # fmt: skip
def special_hermite_polynomial_h(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the physicist's Hermite polynomial of degree ``n``."""
    x: Array = input
    return _recurrence(
        xp, "hermite_polynomial_h", x, n, x + x,
        lambda k, p, before: (x + x) * p - 2 * k * before, _last_hermite(x),
    )  # fmt: skip


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.hermite_polynomial_he")  # fmt: skip
def special_hermite_polynomial_he(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the probabilist's Hermite polynomial of degree ``n``."""
    x: Array = input
    return _recurrence(
        xp, "hermite_polynomial_he", x, n, x,
        lambda k, p, before: x * p - k * before, _last_hermite(x),
    )  # fmt: skip


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.laguerre_polynomial_l")  # fmt: skip
def special_laguerre_polynomial_l(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Laguerre polynomial of degree ``n``."""
    x: Array = input
    return _recurrence(
        xp, "laguerre_polynomial_l", x, n, 1 - x,
        lambda k, p, before: ((2 * k + 1 - x) * p - k * before) / (k + 1),
    )  # fmt: skip


@op("elementwise", samples=_SAMPLES, floats=True, check=no_narrow, method=False,
    reference="special.legendre_polynomial_p")  # fmt: skip
def special_legendre_polynomial_p(xp: Namespace, input: TensorLike, n: TensorLike) -> Array:
    """Return the Legendre polynomial of degree ``n``."""
    x: Array = input
    return _recurrence(
        xp, "legendre_polynomial_p", x, n, x,
        lambda k, p, before: ((2 * k + 1) * x * p - k * before) / (k + 1),
    )  # fmt: skip


chebyshev_polynomial_t, chebyshev_polynomial_u, chebyshev_polynomial_v, chebyshev_polynomial_w = (
    special_chebyshev_polynomial_t, special_chebyshev_polynomial_u,
    special_chebyshev_polynomial_v, special_chebyshev_polynomial_w,
)  # fmt: skip
shifted_chebyshev_polynomial_t = special_shifted_chebyshev_polynomial_t
shifted_chebyshev_polynomial_u = special_shifted_chebyshev_polynomial_u
shifted_chebyshev_polynomial_v = special_shifted_chebyshev_polynomial_v
shifted_chebyshev_polynomial_w = special_shifted_chebyshev_polynomial_w
hermite_polynomial_h, hermite_polynomial_he = (
    special_hermite_polynomial_h, special_hermite_polynomial_he,
)  # fmt: skip
laguerre_polynomial_l = special_laguerre_polynomial_l
legendre_polynomial_p = special_legendre_polynomial_p
