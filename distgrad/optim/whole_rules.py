"""Update rules that look at whole parameters: at norms, at rows and columns, at a matrix.

They have the form of `distgrad.optim.rules`, but a part of a parameter does not do for them.
"""

from __future__ import annotations

import math

import numpy

from distgrad.optim import rules
from distgrad.optim.rules import Arrays, Pair
from distgrad.typing import Array, Namespace


def _norm(xp: Namespace, x: Array) -> Array:
    """Return the root of the sum of squares, as an array without dimensions."""
    return xp.sqrt(xp.sum(xp.square(xp.widened(x))))


def _trust(xp: Namespace, p: Array, change: Array) -> Array:
    """Return the ratio of the norms of ``p`` and of its change; 1 where one of them is 0."""
    ours, other = _norm(xp, p), _norm(xp, change)
    known = (ours > 0) & (other > 0)
    ratio = xp.where(known, ours / xp.where(known, other, 1), 1)
    return ratio.astype(p.dtype)


def lamb(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    lr: float,
    betas: Pair,
    eps: float,
    weight_decay: float,
    adapt: bool,
    scale: float,
    unbias: float,
) -> None:
    """LAMB (You et al. 2020); ``state`` is [exp_avg, exp_avg_sq].

    r ← Adam's direction + weight_decay · p;  p ← p - lr · ‖p‖ / ‖r‖ · r
    """
    m, v = state
    scratch = xp.empty_like(p)
    rules.average(xp, m, g, betas[0], scratch)
    rules.average_square(xp, v, g, betas[1], scratch)
    xp.sqrt(v, out=scratch)
    scratch *= scale
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= unbias
    if weight_decay:
        scratch += xp.multiply(p, weight_decay)
    if adapt:
        scratch *= _trust(xp, p, scratch)
    scratch *= lr
    p -= scratch


def lars(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    step: int,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    trust_coefficient: float,
    adapt: bool,
) -> None:
    """LARS (You et al. 2017); ``state`` is that of ``sgd``, which gets

    trust_coefficient · ‖p‖ / ‖d‖ · d  in place of the gradient, with  d = g + weight_decay · p
    """
    if weight_decay:
        g = rules.penalised(xp, p, g, lr=lr, weight_decay=weight_decay)
    if adapt:
        factor = _trust(xp, p, g) * trust_coefficient
        g = xp.multiply(g, factor.astype(p.dtype))
    rules.sgd(
        xp,
        p,
        g,
        state,
        step=step,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
    )


def adafactor(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    eps: tuple[float | None, float],
    d: float,
    weight_decay: float,
    kept: float,
    memory: float,
    rest: float,
    most: float,
) -> None:
    """Adafactor (Shazeer & Stern 2018); ``state`` is [row_var, col_var], of vectors [variance].

    The averages of g² are kept for rows and for columns, and multiplied: V ← r c / mean(r).
    u ← g / √V, made smaller where its root mean square is above d
    p ← p - max(eps₂, rms(p)) · min(lr, 1 / √t) · u
    """
    kind = p.dtype
    least = float(numpy.finfo(kind).eps) if eps[0] is None else eps[0]
    size = xp.maximum(_norm(xp, p) / math.sqrt(p.size), eps[1])
    rate = size * most
    if weight_decay:
        p *= kept
    estimate = xp.empty_like(p)
    if p.ndim > 1:
        row, col = state
        _average_factors(xp, row, col, g, rest, estimate)
        estimate /= xp.maximum(xp.mean(row, axis=-2, keepdims=True), least)
    else:
        (variance,) = state
        variance *= memory
        xp.multiply(g, g, out=estimate)
        estimate *= rest
        variance += estimate
        xp.copyto(estimate, variance)
    xp.maximum(estimate, least * least, out=estimate)
    xp.sqrt(estimate, out=estimate)
    xp.divide(g, estimate, out=estimate)
    rate /= xp.maximum(_norm(xp, estimate) / (math.sqrt(p.size) * d), 1)
    estimate *= rate.astype(kind)
    p -= estimate


def _average_factors(
    xp: Namespace, row: Array, col: Array, g: Array, rest: float, out: Array
) -> None:
    """Move the means of g² along rows and columns, and write their product to ``out``."""
    for mean, axis in ((row, -1), (col, -2)):
        squares = xp.sum(xp.square(g), axis=axis, keepdims=True) / g.shape[axis]
        squares -= mean
        squares *= rest
        mean += squares
    xp.multiply(row, col, out=out)


def muon(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    ns_coefficients: tuple[float, float, float],
    eps: float,
    ns_steps: int,
    adjust_lr_fn: str | None,
) -> None:
    """Muon (Jordan et al. 2024) for a matrix; ``state`` is [momentum_buffer].

    buffer ← momentum · buffer + (1 - momentum) · g;  p ← p - lr' · UVᵀ of the buffer's UΣVᵀ
    """
    (buffer,) = state
    scratch = xp.empty_like(p)
    rules.average(xp, buffer, g, momentum, scratch)
    change = buffer
    if nesterov:
        change = buffer.copy()
        rules.average(xp, change, g, momentum, scratch)
    change = orthogonal(xp, change, ns_coefficients, ns_steps, eps)
    p -= xp.multiply(change.astype(p.dtype), adjusted(lr, adjust_lr_fn, p.shape))


def adjusted(lr: float, how: str | None, shape: tuple[int, ...]) -> float:
    """Return the learning rate of a matrix, by the original way or to have AdamW's changes."""
    rows, columns = shape
    if how == "match_rms_adamw":
        return lr * 0.2 * math.sqrt(max(rows, columns))
    return lr * math.sqrt(max(1, rows / columns))


def orthogonal(
    xp: Namespace, g: Array, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Array:
    """Return about UVᵀ of UΣVᵀ, by a Newton-Schulz iteration whose numbers are bfloat16's."""
    a, b, c = coefficients
    x = _rounded(xp, g.astype(numpy.float32))
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = _rounded(xp, x / xp.maximum(_rounded(xp, _norm(xp, x)), eps))
    for _ in range(steps):
        gram = _rounded(xp, xp.matmul(x, x.T))
        polynomial = _rounded(xp, b * gram + c * xp.matmul(gram, gram))
        x = _rounded(xp, a * x + xp.matmul(polynomial, x))
    return x.T if tall else x


def _rounded(xp: Namespace, x: Array) -> Array:
    """Return float32 numbers rounded to those that bfloat16 has, ties to even."""
    bits = x.copy().view(xp.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    out: Array = bits.view(xp.float32)
    return out
