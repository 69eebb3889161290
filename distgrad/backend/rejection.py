"""Samplers that draw until they accept, one number at a time, in the order of PyTorch's CPU.

Each takes the source of its draws and the parameters of one sample.  Note [PyTorch's streams] in
``random.py`` says what the draws are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_f32 = np.float32


class Source(NamedTuple):
    """Where one sample after the other takes its draws from."""

    uniform: Callable[[], float]  # [0, 1) in float64
    normal: Callable[[], float]


def poisson(source: Source, rate: float) -> float:
    """One sample: by products of uniforms (Knuth) or transformed rejection (Hörmann 1993, PTRS)."""
    draw = source.uniform
    if rate < 10:
        count, product, limit = 0, draw() if rate else 0.0, math.exp(-rate)
        while product > limit:
            count, product = count + 1, product * draw()
        return count
    log_rate, b = math.log(rate), 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha, squeeze = 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2)
    while True:
        u, v = draw() - 0.5, draw()
        us = 0.5 - abs(u)
        k = math.floor((2 * a / us + b) * u + rate + 0.43)
        if us >= 0.07 and v <= squeeze:
            return k
        if k < 0 or (us < 0.013 and v > us):
            continue
        bound = k * log_rate - rate - math.lgamma(k + 1)
        if math.log(v) + math.log(inverse_alpha) - math.log(a / (us * us) + b) <= bound:
            return k


def gamma(source: Source, shape: float, kind: type[np.floating] = np.float64) -> float:
    """One sample of the gamma distribution with rate 1 (Marsaglia and Tsang 2000).

    Args:
        kind: the type in which PyTorch has the shape and what it makes of it.
    """
    if shape == 0:
        return 0.0
    scale, alpha = 1.0, kind(shape)
    if alpha < 1:  # G(a) = G(a + 1) U^(1/a)
        scale = (1 - source.uniform()) ** float(kind(1) / alpha)
        alpha = kind(alpha + kind(1))
    d = float(alpha - kind(_f32(1) / _f32(3)))
    c = 1 / math.sqrt(9 * d)
    while True:
        x = source.normal()
        y = 1 + c * x
        if y <= 0:
            continue
        v, u, square = y * y * y, 1 - source.uniform(), x * x
        if u < 1 - float(_f32(0.0331)) * square * square:
            return scale * d * v
        if math.log(u) < 0.5 * square + d * (1 - v + math.log(v)):
            return scale * d * v


def binomial(source: Source, count: float, prob: float) -> float:
    """One sample of the number of successes in ``count`` trials."""
    if count <= 0 or prob <= 0:
        return 0.0
    if prob >= 1:
        return count
    if prob > 0.5:
        return count - binomial(source, count, 1 - prob)
    sampler = _by_rejection if count * prob >= 10 else _by_waiting_times
    return sampler(source, count, prob)


def _by_waiting_times(source: Source, count: float, prob: float) -> float:
    """The number of geometric waiting times that fit into ``count`` trials."""
    passed, successes, log_failure = 0.0, 0, math.log1p(-prob)
    while True:
        u = source.uniform()
        passed += math.ceil(math.log(u) / log_failure) if u else math.inf
        if passed > count:
            return successes
        successes += 1


def _by_rejection(source: Source, n: float, p: float) -> float:
    """Transformed rejection with squeeze (Hörmann 1993, BTRS)."""
    spread = math.sqrt(n * p * (1 - p))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    centre, squeeze, odds = n * p + 0.5, 0.92 - 4.2 / b, p / (1 - p)
    alpha, m = (2.83 + 5.1 / b) * spread, math.floor((n + 1) * p)
    at_mode = (m + 0.5) * math.log((m + 1) / (odds * (n - m + 1))) + _tail(m) + _tail(n - m)
    while True:
        u, v = source.uniform() - 0.5, source.uniform()
        us = 0.5 - abs(u)
        k = math.floor((2 * a / us + b) * u + centre) if us else -1
        if us >= 0.07 and v <= squeeze:
            return k
        if k < 0 or k > n:
            continue
        bound = at_mode + (n + 1) * math.log((n - m + 1) / (n - k + 1))
        bound += (k + 0.5) * math.log(odds * (n - k + 1) / (k + 1)) - _tail(k) - _tail(n - k)
        if v == 0 or math.log(v * alpha / (a / (us * us) + b)) <= bound:
            return k


def _tail(k: float) -> float:
    """log(k!) less Stirling's approximation at k + 1."""
    if k < 15:
        stirling = 0.5 * math.log(2 * math.pi) + (k + 0.5) * math.log(k + 1) - (k + 1)
        return math.lgamma(k + 1) - stirling
    square = (k + 1) * (k + 1)
    return (1 / 12 - (1 / 360 - 1 / 1260 / square) / square) / (k + 1)
