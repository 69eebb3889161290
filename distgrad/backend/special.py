"""Special functions that neither NumPy nor the backends have, on any array namespace.

All are computed in float64 and vectorised: Chebyshev series, recurrences and continued fractions
with a fixed number of steps or until every element has converged.  The tables in
`chebyshev` were fitted in 40 digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from distgrad.backend import chebyshev as tables
from distgrad.typing import Array, Namespace


def _wide(function: Callable[..., Array]) -> Callable[..., Array]:
    """Compute in float64 and return the dtype of the first operand."""

    @functools.wraps(function)
    def call(xp: Namespace, *arrays: Array) -> Array:
        kind = arrays[0].dtype
        with xp.errstate(all="ignore"):
            out = function(xp, *(xp.asarray(a, dtype=np.float64) for a in arrays))
        return xp.asarray(out).astype(kind, copy=False)

    return call


def _series(xp: Namespace, t: Array, coefficients: Sequence[float]) -> Array:
    """Return Σ cₖ Tₖ(t) by Clenshaw's recurrence."""
    older, newer, twice = xp.zeros_like(t), xp.zeros_like(t), t + t
    for c in reversed(coefficients[1:]):
        older, newer = newer, twice * newer - older + c
    return t * newer - older + coefficients[0]


# ---------------------------------------------------------------------- modified Bessel functions
def _i0e(xp: Namespace, x: Array) -> Array:
    x = xp.abs(x)
    near = _series(xp, xp.minimum(x, 8) / 4 - 1, tables.I0_NEAR)
    far = _series(xp, 16 / xp.maximum(x, 8) - 1, tables.I0_FAR) / xp.sqrt(xp.maximum(x, 8))
    return xp.where(x <= 8, near, far)


def _i1e(xp: Namespace, x: Array) -> Array:
    size = xp.abs(x)
    near = size * _series(xp, xp.minimum(size, 8) / 4 - 1, tables.I1_NEAR)
    far = _series(xp, 16 / xp.maximum(size, 8) - 1, tables.I1_FAR)
    return xp.copysign(xp.where(size <= 8, near, far / xp.sqrt(xp.maximum(size, 8))), x)


@_wide
def i0e(xp: Namespace, x: Array) -> Array:
    """exp(-|x|) times the modified Bessel function of the first kind of order 0."""
    return _i0e(xp, x)


@_wide
def i0(xp: Namespace, x: Array) -> Array:
    """The modified Bessel function of the first kind of order 0."""
    return _i0e(xp, x) * xp.exp(xp.abs(x))


@_wide
def i1e(xp: Namespace, x: Array) -> Array:
    """exp(-|x|) times the modified Bessel function of the first kind of order 1."""
    return _i1e(xp, x)


@_wide
def i1(xp: Namespace, x: Array) -> Array:
    """The modified Bessel function of the first kind of order 1."""
    return _i1e(xp, x) * xp.exp(xp.abs(x))


def _k0(xp: Namespace, x: Array, scaled: bool) -> Array:
    low = xp.minimum(xp.maximum(x, 0), 2)
    near = _series(xp, low * low / 2 - 1, tables.K0_NEAR)
    near = near - xp.log(low / 2) * _i0e(xp, low) * xp.exp(low)
    high = xp.maximum(x, 2)
    far = _series(xp, 4 / high - 1, tables.K0_FAR) / xp.sqrt(high)
    if scaled:
        near = near * xp.exp(low)
    else:
        far = far * xp.exp(-high)
    return xp.where(x < 0, math.nan, xp.where(x == 0, math.inf, xp.where(x <= 2, near, far)))


def _k1(xp: Namespace, x: Array, scaled: bool) -> Array:
    low = xp.minimum(xp.maximum(x, 0), 2)
    near = _series(xp, low * low / 2 - 1, tables.K1_NEAR) / low
    near = near + xp.log(low / 2) * _i1e(xp, low) * xp.exp(low)
    high = xp.maximum(x, 2)
    far = _series(xp, 4 / high - 1, tables.K1_FAR) / xp.sqrt(high)
    if scaled:
        near = near * xp.exp(low)
    else:
        far = far * xp.exp(-high)
    return xp.where(x < 0, math.nan, xp.where(x == 0, math.inf, xp.where(x <= 2, near, far)))


@_wide
def k0(xp: Namespace, x: Array) -> Array:
    """The modified Bessel function of the second kind of order 0."""
    return _k0(xp, x, False)


@_wide
def k0e(xp: Namespace, x: Array) -> Array:
    """exp(x) times the modified Bessel function of the second kind of order 0."""
    return _k0(xp, x, True)


@_wide
def k1(xp: Namespace, x: Array) -> Array:
    """The modified Bessel function of the second kind of order 1."""
    return _k1(xp, x, False)


@_wide
def k1e(xp: Namespace, x: Array) -> Array:
    """exp(x) times the modified Bessel function of the second kind of order 1."""
    return _k1(xp, x, True)


# ---------------------------------------------------------------------- Bessel functions
_FAR = {0: (tables.P0_FAR, tables.Q0_FAR), 1: (tables.P1_FAR, tables.Q1_FAR)}


def _waves(xp: Namespace, x: Array, order: int) -> tuple[Array, Array]:
    """Return J and Y above 8, from modulus and phase."""
    x = xp.maximum(x, 8)
    t = 128 / (x * x) - 1
    p, q = (_series(xp, t, table) for table in _FAR[order])
    q = q / x
    sine, cosine = xp.sin(x), xp.cos(x)
    if order == 0:
        c, s = cosine + sine, sine - cosine
    else:
        c, s = sine - cosine, -(sine + cosine)
    scale = 1 / xp.sqrt(math.pi * x)
    found = scale * (p * c - q * s), scale * (p * s + q * c)
    endless = xp.isinf(x)
    return xp.where(endless, 0.0, found[0]), xp.where(endless, 0.0, found[1])


def _low(xp: Namespace, x: Array) -> tuple[Array, Array]:
    low = xp.minimum(xp.abs(x), 8)
    return low, low * low / 32 - 1


@_wide
def j0(xp: Namespace, x: Array) -> Array:
    """The Bessel function of the first kind of order 0."""
    _, t = _low(xp, x)
    size = xp.abs(x)
    return xp.where(size <= 8, _series(xp, t, tables.J0_NEAR), _waves(xp, size, 0)[0])


@_wide
def j1(xp: Namespace, x: Array) -> Array:
    """The Bessel function of the first kind of order 1."""
    low, t = _low(xp, x)
    size = xp.abs(x)
    near = low * _series(xp, t, tables.J1_NEAR)
    value = xp.where(size <= 8, near, _waves(xp, size, 1)[0])
    return xp.where(x < 0, -value, value)


@_wide
def y0(xp: Namespace, x: Array) -> Array:
    """The Bessel function of the second kind of order 0."""
    low, t = _low(xp, x)
    near = _series(xp, t, tables.Y0_NEAR)
    near = near + (2 / math.pi) * xp.log(low) * _series(xp, t, tables.J0_NEAR)
    value = xp.where(x <= 8, near, _waves(xp, x, 0)[1])
    return xp.where(x < 0, math.nan, xp.where(x == 0, -math.inf, value))


@_wide
def y1(xp: Namespace, x: Array) -> Array:
    """The Bessel function of the second kind of order 1."""
    low, t = _low(xp, x)
    j = low * _series(xp, t, tables.J1_NEAR)
    near = low * _series(xp, t, tables.Y1_NEAR) + (2 / math.pi) * (xp.log(low) * j - 1 / low)
    value = xp.where(x <= 8, near, _waves(xp, x, 1)[1])
    return xp.where(x < 0, math.nan, xp.where(x == 0, -math.inf, value))


@_wide
def airy_ai(xp: Namespace, x: Array) -> Array:
    """The Airy function Ai; nan at infinities, as PyTorch's."""
    near = _series(xp, (xp.clip(x, -3, 2) + 0.5) / 2.5, tables.AIRY_NEAR)
    high = xp.clip(x, 2, 200)
    zeta = high * xp.sqrt(high) * (2 / 3)
    scale = 2 * xp.sqrt(math.pi * xp.sqrt(high))
    far = _series(xp, _AIRY_2 / zeta - 1, tables.AIRY_FAR) * xp.exp(-zeta) / scale
    low = xp.maximum(-x, 3)
    zeta = low * xp.sqrt(low) * (2 / 3)
    t = 24 / (zeta * zeta) - 1  # 24 is twice the square of ζ(3)
    p, q = _series(xp, t, tables.AIRY_P), _series(xp, t, tables.AIRY_Q) / zeta
    phase = zeta - math.pi / 4
    waves = (p * xp.cos(phase) + q * xp.sin(phase)) / xp.sqrt(math.pi * xp.sqrt(low))
    value = xp.where(x > 2, far, xp.where(x < -3, waves, near))
    return xp.where(xp.isfinite(x), value, math.nan)


_AIRY_2 = 2 * (2 / 3) * 2**1.5  # twice ζ(2)


# ---------------------------------------------------------------------- tails of the normal law
def _erfcx(xp: Namespace, x: Array) -> Array:
    size = xp.abs(x)
    positive = _series(xp, 8 / (4 + size) - 1, tables.ERFCX) / (1 + 2 * size)
    return xp.where(x < 0, 2 * xp.exp(x * x) - positive, positive)


@_wide
def erfcx(xp: Namespace, x: Array) -> Array:
    """exp(x²) times the complementary error function."""
    return _erfcx(xp, x)


def _log_ndtr(xp: Namespace, x: Array) -> Array:
    low = xp.minimum(x, -1)
    tail = xp.log(_erfcx(xp, -low * math.sqrt(0.5)) / 2) - low * low / 2
    rest = xp.log1p(-xp.erfc(xp.maximum(x, -1) * math.sqrt(0.5)) / 2)
    return xp.where(x < -1, tail, rest)


@_wide
def log_ndtr(xp: Namespace, x: Array) -> Array:
    """The logarithm of the distribution function of the standard normal law."""
    return _log_ndtr(xp, x)


@_wide
def ndtri(xp: Namespace, p: Array) -> Array:
    """The number below which a standard normal number is with probability ``p``."""
    tail = xp.where(p > 0.5, 1 - p, p)
    middle = math.sqrt(2) * xp.erfinv(2 * xp.clip(tail, 0.02, 0.5) - 1)
    goal = xp.log(xp.clip(tail, 5e-324, 0.02))
    z = -xp.sqrt(xp.maximum(-2 * goal - xp.log(-4 * math.pi * goal), 2.0))
    for _ in range(6):  # Newton's method on the logarithm, which is nearly a parabola
        slope = math.sqrt(2 / math.pi) / _erfcx(xp, -z * math.sqrt(0.5))
        z = z - (_log_ndtr(xp, z) - goal) / slope
    z = xp.where(tail > 0.02, middle, z)
    z = xp.where(tail == 0, -math.inf, xp.where(tail < 0, math.nan, z))
    return xp.where(p > 0.5, -z, z)


# ---------------------------------------------------------------------- zeta and gamma
@_wide
def zeta(xp: Namespace, x: Array, q: Array) -> Array:
    """Hurwitz's zeta function Σ (q + k)^-x, by Euler's and Maclaurin's sum."""
    x, q = xp.broadcast_arrays(x, q)
    start, q = q, xp.maximum(q, -1e4) + 0.0
    total, near = xp.zeros_like(x), 12 + xp.clip(x, 0, 60)
    while bool((low := q < near).any()):
        total = total + xp.where(low, q**-x, 0.0)
        q = xp.where(low, q + 1, q)
    total = total + q ** (1 - x) / (x - 1) + q**-x / 2
    factor, power = x + 0.0, q ** (-1 - x)
    for k, coefficient in enumerate(_BERNOULLI):
        total = total + coefficient * factor * power
        factor = factor * (x + 2 * k + 1) * (x + 2 * k + 2)
        power = power / (q * q)
    whole = start == xp.floor(start)
    total = xp.where((start <= 0) & whole, math.inf, total)
    total = xp.where((start < 0) & ~whole & (x != xp.floor(x)), math.nan, total)
    return xp.where(x < 1, math.nan, xp.where(x == 1, math.inf, total))


# B(2k) / (2k)!, k = 1 … 9
_BERNOULLI = (
    1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000,
    1 / 74724249600, -3617 / 10670622842880000, 43867 / 5109094217170944000,
)  # fmt: skip
# Stirling's series: lgamma(a) = (a - 1/2) log a - a + log(2π)/2 + Σ S_k a^(1-2k)
_STIRLING = (
    1 / 12,
    -1 / 360,
    1 / 1260,
    -1 / 1680,
    1 / 1188,
    -691 / 360360,
    1 / 156,
    -3617 / 122400,
)


def _log1pmx(xp: Namespace, x: Array) -> Array:
    """Return log(1 + x) - x without loss of digits near 0."""
    small = xp.clip(x, -0.3, 0.3)
    r = small / (2 + small)
    square = r * r
    total = xp.zeros_like(x)
    for k in range(19, 0, -1):
        total = (total + 1 / (2 * k + 1)) * square
    near = 2 * r * total - small * r
    return xp.where(xp.abs(x) < 0.3, near, xp.log1p(x) - x)


def _gamma_factor(xp: Namespace, a: Array, x: Array) -> Array:
    """Return x^a exp(-x) / gamma(a), for large ``a`` from its distance to the maximum."""
    plain = xp.exp(a * xp.log(x) - x - xp.lgamma(a))
    big = xp.maximum(a, 10)
    inverse, correction = 1 / (big * big), xp.zeros_like(a)
    for s in reversed(_STIRLING):
        correction = correction * inverse + s
    exponent = big * _log1pmx(xp, (x - big) / big) - correction / big
    return xp.where(a < 10, plain, xp.exp(exponent) * xp.sqrt(big / (2 * math.pi)))


def _lower(xp: Namespace, a: Array, x: Array) -> Array:
    """Return P(a, x) by its series: for x below a."""
    term = 1 / a
    total, n = term + 0.0, a + 0.0
    for _ in range(100_000):
        n = n + 1
        term = term * (x / n)
        total = total + term
        if not bool((term > 1e-17 * total).any()):
            break
    return total * _gamma_factor(xp, a, x)


def _upper(xp: Namespace, a: Array, x: Array) -> Array:
    """Return Q(a, x) by its continued fraction (Lentz's method): for x above a."""
    b = x + 1 - a
    c, d = xp.full_like(x, 1e300), 1 / b
    h = d + 0.0
    for i in range(1, 100_000):
        an = -i * (i - a)
        b = b + 2
        d, c = an * d + b, b + an / c
        d = 1 / xp.where(xp.abs(d) < 1e-300, 1e-300, d)
        c = xp.where(xp.abs(c) < 1e-300, 1e-300, c)
        going = xp.abs(c * d - 1) > 4e-16
        if not bool(going.any()):
            break
        h = xp.where(going, h * (c * d), h)  # what has converged gathers no rounding errors
    return h * _gamma_factor(xp, a, x)


def _incomplete(xp: Namespace, a: Array, x: Array, lower: bool) -> Array:
    a, x = xp.broadcast_arrays(a, x)
    below = (x <= a) | (x < 1)
    good = (a > 0) & (x > 0) & xp.isfinite(a) & xp.isfinite(x)
    below, above = below & good, ~below & good
    out = xp.empty(a.shape)
    part = _lower(xp, xp.where(below, a, 1.0), xp.where(below, x, 0.5))
    out[...] = part if lower else 1 - part
    part = _upper(xp, xp.where(above, a, 1.0), xp.where(above, x, 2.0))
    out = xp.where(above, 1 - part if lower else part, out)
    at_zero = xp.where(a > 0, 0.0, xp.where(x > 0, 1.0, math.nan))
    at_zero = xp.where((x > 0) & xp.isinf(x), 1.0, xp.where((a > 0) & xp.isinf(a), 0.0, at_zero))
    edge = (xp.isinf(x) & xp.isinf(a)) | (x < 0) | (a < 0) | xp.isnan(x) | xp.isnan(a)
    at_zero = xp.where(edge, math.nan, at_zero)
    return xp.where(good, out, at_zero if lower else 1 - at_zero)


@_wide
def gammainc(xp: Namespace, a: Array, x: Array) -> Array:
    """The regularised lower incomplete gamma function."""
    return _incomplete(xp, a, x, True)


@_wide
def gammaincc(xp: Namespace, a: Array, x: Array) -> Array:
    """The regularised upper incomplete gamma function."""
    return _incomplete(xp, a, x, False)
