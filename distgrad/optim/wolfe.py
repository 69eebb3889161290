"""A line search whose steps satisfy the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from distgrad.typing import Array

DECREASE, CURVATURE = 1e-4, 0.9
"""Part of the slope that the loss must gain, and part of it that may be left."""


class Point(NamedTuple):
    """A place on the line: the step, the loss, the gradient, the slope along the line."""

    t: float
    loss: float
    grad: Array
    slope: float


def strong_wolfe(
    look: Callable[[float], Point], start: Point, t: float, size: float, least: float
) -> tuple[Point, int]:
    """Return a point where the loss is lower and flatter, and the number of looks.

    Args:
        look: evaluates the loss at a step.
        start: where the line begins, with a slope below 0.
        t: the first step that is tried.
        size: the largest element of the direction.
        least: brackets are not made smaller than this.

    Source: Nocedal & Wright, Numerical Optimization, algorithms 3.5 and 3.6, with cubic
    interpolation.
    """
    low, high, looks = _bracket(look, start, t)
    stuck = False
    while high is not None and looks <= _MOST and abs(high.t - low.t) * size >= least:
        t, stuck = _inside(low, high, stuck)
        new = look(t)
        looks += 1
        if _too_high(new, start) or new.loss >= low.loss:
            low, high = (low, new) if low.loss <= new.loss else (new, low)
        elif _flat(new, start):
            low, high = new, None
        else:
            low, high = new, low if new.slope * (high.t - low.t) >= 0 else high
    return low, looks


_MOST = 25
"""Steps of the search after the first look."""


def _too_high(new: Point, start: Point) -> bool:
    return new.loss > start.loss + DECREASE * new.t * start.slope


def _flat(new: Point, start: Point) -> bool:
    return abs(new.slope) <= -CURVATURE * start.slope


def _bracket(
    look: Callable[[float], Point], start: Point, t: float
) -> tuple[Point, Point | None, int]:
    """Return two points with a good one between them, or a good one and None; and the looks."""
    before, new = start, look(t)
    for looks in range(1, _MOST + 1):
        if _too_high(new, start) or (looks > 2 and new.loss >= before.loss):
            return *_ordered(before, new), looks
        if _flat(new, start):
            return new, None, looks
        if new.slope >= 0:
            return *_ordered(before, new), looks
        bounds = new.t + 0.01 * (new.t - before.t), new.t * 10
        before, new = new, look(cubic(before, new, *bounds))
    return *_ordered(start, new), _MOST + 1


def _ordered(one: Point, other: Point) -> tuple[Point, Point]:
    return (one, other) if one.loss <= other.loss else (other, one)


def _inside(low: Point, high: Point, stuck: bool) -> tuple[float, bool]:
    """Return the next step to try, and whether it came close to an end of the bracket."""
    left, right = min(low.t, high.t), max(low.t, high.t)
    t = cubic(low, high, left, right)
    margin = 0.1 * (right - left)
    if min(right - t, t - left) >= margin:
        return t, False
    if not stuck and left < t < right:
        return t, True
    return (right - margin if abs(t - right) < abs(t - left) else left + margin), False


def cubic(a: Point, b: Point, least: float, most: float) -> float:
    """Return where the cubic through two losses and slopes is lowest between the bounds."""
    if a.t > b.t:
        a, b = b, a
    middle = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = middle * middle - a.slope * b.slope
    if not square >= 0:
        return (least + most) / 2
    root = math.sqrt(square)
    part = (b.slope + root - middle) / (b.slope - a.slope + 2 * root)
    return min(max(b.t - (b.t - a.t) * part, least), most)
