"""Sums without rounding: the same for every order of additions and every number of ranks.

A finite float64 is an integer times 2**-1074. Integers add exactly, so partial sums can be made
anywhere and added in any order; the whole is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy

_UNIT = 1130  # values are integers times 2**-_UNIT, those of ``frexp`` included
_LOW_BITS = 26

Exact = int | float
"""An integer times 2**-1130; or inf or nan, as a float."""


def exact_sum(values: Any) -> Exact:
    """Return the sum of a float64 array.

    Example:
        >>> rounded(exact_sum(numpy.array([1e100, 1.0, -1e100])))
        1.0
    """
    if not values.size:
        return 0
    finite = numpy.isfinite(values)
    if not finite.all():
        with numpy.errstate(invalid="ignore"):
            return float(values[~finite].sum())
    mantissas, exponents = numpy.frexp(values)
    digits = (mantissas * 2.0**53).astype(numpy.int64)
    lowest = int(exponents.min())
    places = exponents - lowest
    # Sums of numbers below 2**27 are exact in float64 for up to 2**26 of them.
    high = numpy.bincount(places, digits >> _LOW_BITS)
    low = numpy.bincount(places, digits & (1 << _LOW_BITS) - 1)
    pairs = zip(high.tolist(), low.tolist(), strict=True)
    shift = lowest - 53 + _UNIT
    return sum(((int(a) << _LOW_BITS) + int(b)) << (shift + i) for i, (a, b) in enumerate(pairs))


def exact_total(parts: Iterable[Exact]) -> Exact:
    """Return the sum of sums."""
    parts = list(parts)
    strange = [part for part in parts if isinstance(part, float)]
    return sum(strange) if strange else sum(parts)


def rounded(total: Exact) -> float:
    """Return a sum as a float, rounded to the nearest."""
    if isinstance(total, float):
        return total
    try:
        return total / (1 << _UNIT)
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")
