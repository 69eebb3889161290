"""Every update rule once, as a plain function in place on arrays.

A rule works element by element, so the same function updates one parameter, one flat array of many
parameters, a block of it that fits the cache, or a shard: always with the same bits.

    rule(xp, p, g, state, *, step, lr, …)

``p`` is changed, ``g`` is only read, ``state`` is a list of arrays of p's shape that are changed,
``step`` counts from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from distgrad.typing import Array, Namespace

WeightDecay: TypeAlias = "Callable[[Namespace, Array, Array, float, float], Array]"
"""``decay(xp, p, g, lr, weight_decay)`` changes ``p`` or returns another gradient."""


def penalised(xp: Namespace, p: Array, g: Array, lr: float, weight_decay: float) -> Array:
    """Return ``g + weight_decay * p``: the gradient of a penalty on the weights added."""
    if not weight_decay:
        return g
    out = xp.multiply(p, weight_decay)
    out += g
    return out


def shrunk(xp: Namespace, p: Array, g: Array, lr: float, weight_decay: float) -> Array:
    """Return ``g`` after ``p`` was moved towards 0 by ``lr * weight_decay`` of itself."""
    if weight_decay:
        p *= 1 - lr * weight_decay
    return g


def _average(xp: Namespace, average: Array, value: Array, decay: float, scratch: Array) -> None:
    """Move ``average`` to ``decay * average + (1 - decay) * value``."""
    xp.subtract(value, average, out=scratch)
    scratch *= 1 - decay
    average += scratch


def _average_square(
    xp: Namespace, average: Array, value: Array, decay: float, scratch: Array
) -> None:
    """Move ``average`` to ``decay * average + (1 - decay) * value**2``."""
    average *= decay
    xp.multiply(value, value, out=scratch)
    scratch *= 1 - decay
    average += scratch


def sgd(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Stochastic gradient descent; ``state`` is [] or, with momentum, [momentum_buffer].

    buffer ← momentum · buffer + (1 - dampening) · g   (g itself at the first step)
    p ← p - lr · (buffer, or with nesterov: g + momentum · buffer)
    """
    g = penalised(xp, p, g, lr, weight_decay)
    if not state:
        p -= xp.multiply(g, lr)
        return
    (buffer,) = state
    scratch = xp.empty_like(p)
    if step == 1:
        xp.copyto(buffer, g)
    else:
        buffer *= momentum
        if dampening:
            xp.multiply(g, 1 - dampening, out=scratch)
            buffer += scratch
        else:
            buffer += g
    if nesterov:
        xp.multiply(buffer, momentum, out=scratch)
        scratch += g
        scratch *= lr
    else:
        xp.multiply(buffer, lr, out=scratch)
    p -= scratch


def adam(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam (Kingma & Ba 2015); ``state`` is [exp_avg, exp_avg_sq], with AMSGrad a maximum more.

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
    p ← p - lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps)
    """
    g = penalised(xp, p, g, lr, weight_decay)
    m, v, *largest = state
    scratch = xp.empty_like(p)
    _average(xp, m, g, betas[0], scratch)
    _average_square(xp, v, g, betas[1], scratch)
    if largest:
        v = xp.maximum(largest[0], v, out=largest[0])
    xp.sqrt(v, out=scratch)
    scratch *= 1 / math.sqrt(1 - betas[1] ** step)
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= lr / (1 - betas[0] ** step)
    p -= scratch


def adamw(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam with the weights themselves decayed (Loshchilov & Hutter 2019, algorithm 2).

    p ← p - lr · weight_decay · p, then Adam's step.
    """
    g = shrunk(xp, p, g, lr, weight_decay)
    adam(xp, p, g, state, step=step, lr=lr, betas=betas, eps=eps, weight_decay=0)


def nadam(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay: WeightDecay,
    mu: float,
    mu_next: float,
    mu_product: float,
) -> None:
    """Adam with Nesterov momentum (Dozat 2016); ``state`` is [exp_avg, exp_avg_sq].

    p ← p - lr · ((1 - μₜ) / (1 - Πμ) · g + μₜ₊₁ / (1 - μₜ₊₁ Πμ) · m) / (√(v / (1 - β₂ᵗ)) + eps)
    """
    g = decay(xp, p, g, lr, weight_decay)
    m, v = state
    scratch = xp.empty_like(p)
    _average(xp, m, g, betas[0], scratch)
    _average_square(xp, v, g, betas[1], scratch)
    denominator = xp.multiply(v, 1 / (1 - betas[1] ** step))
    xp.sqrt(denominator, out=denominator)
    denominator += eps
    xp.multiply(g, lr * (1 - mu) / (1 - mu_product), out=scratch)
    scratch /= denominator
    p -= scratch
    xp.multiply(m, lr * mu_next / (1 - mu_product * mu_next), out=scratch)
    scratch /= denominator
    p -= scratch


def radam(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay: WeightDecay,
) -> None:
    """Rectified Adam (Liu et al. 2020); ``state`` is [exp_avg, exp_avg_sq].

    While the variance of √v is too uncertain (ρₜ ≤ 5), a step of plain momentum.
    """
    g = decay(xp, p, g, lr, weight_decay)
    m, v = state
    scratch = xp.empty_like(p)
    _average(xp, m, g, betas[0], scratch)
    _average_square(xp, v, g, betas[1], scratch)
    correction = 1 - betas[1] ** step
    limit = 2 / (1 - betas[1]) - 1
    certain = limit - 2 * step * betas[1] ** step / correction
    rate = lr / (1 - betas[0] ** step)
    if certain > 5.0:
        rectified = (certain - 4) * (certain - 2) * limit
        rate *= math.sqrt(rectified / ((limit - 4) * (limit - 2) * certain) * correction)
        xp.sqrt(v, out=scratch)
        scratch += eps
        xp.divide(m, scratch, out=scratch)
        scratch *= rate
    else:
        xp.multiply(m, rate, out=scratch)
    p -= scratch


def adamax(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Adam with the infinity norm (Kingma & Ba 2015); ``state`` is [exp_avg, exp_inf].

    u ← max(β₂ u, |g| + eps);  p ← p - lr / (1 - β₁ᵗ) · m / u
    """
    g = penalised(xp, p, g, lr, weight_decay)
    m, largest = state
    scratch = xp.empty_like(p)
    _average(xp, m, g, betas[0], scratch)
    largest *= betas[1]
    xp.absolute(g, out=scratch)
    scratch += eps
    xp.maximum(largest, scratch, out=largest)
    xp.divide(m, largest, out=scratch)
    scratch *= lr / (1 - betas[0] ** step)
    p -= scratch


def adagrad(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    lr_decay: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Adagrad (Duchi et al. 2011); ``state`` is [sum].

    sum ← sum + g²;  p ← p - lr / (1 + (t - 1) lr_decay) · g / (√sum + eps)
    """
    g = penalised(xp, p, g, lr, weight_decay)
    (total,) = state
    scratch = xp.multiply(g, g)
    total += scratch
    xp.sqrt(total, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    scratch *= lr / (1 + (step - 1) * lr_decay)
    p -= scratch


def adadelta(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Adadelta (Zeiler 2012); ``state`` is [square_avg, acc_delta].

    v ← ρ v + (1 - ρ) g²;  Δ ← √(u + eps) / √(v + eps) · g;  u ← ρ u + (1 - ρ) Δ²;  p ← p - lr Δ
    """
    g = penalised(xp, p, g, lr, weight_decay)
    squares, deltas = state
    scratch = xp.empty_like(p)
    _average_square(xp, squares, g, rho, scratch)
    delta = xp.add(deltas, eps)
    xp.add(squares, eps, out=scratch)
    xp.sqrt(delta, out=delta)
    xp.sqrt(scratch, out=scratch)
    delta /= scratch
    delta *= g
    _average_square(xp, deltas, delta, rho, scratch)
    delta *= lr
    p -= delta


def rmsprop(
    xp: Namespace,
    p: Array,
    g: Array,
    state: list[Array],
    *,
    step: int,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> None:
    """RMSprop (Hinton's lecture 6e); ``state`` is [square_avg, momentum_buffer?, grad_avg?].

    v ← α v + (1 - α) g²;  p ← p - lr · g / (√v + eps), with momentum where asked for
    """
    g = penalised(xp, p, g, lr, weight_decay)
    squares = state[0]
    scratch = xp.empty_like(p)
    _average_square(xp, squares, g, alpha, scratch)
    if centered:
        _average(xp, state[-1], g, alpha, scratch)
        xp.multiply(state[-1], state[-1], out=scratch)
        xp.subtract(squares, scratch, out=scratch)
        xp.sqrt(scratch, out=scratch)
    else:
        xp.sqrt(squares, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    if momentum > 0:
        state[1] *= momentum
        state[1] += scratch
        xp.multiply(state[1], lr, out=scratch)
    else:
        scratch *= lr
    p -= scratch
