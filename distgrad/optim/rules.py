"""Every update rule that works element by element, once, as a plain function in place on arrays.

The same function updates one parameter, one flat array of many parameters, a block of it that fits
the cache, or a shard: always with the same bits.

    rule(xp, p, g, state, *, step, lr, …)

``p`` is changed, ``g`` is only read, ``state`` is a list of arrays of p's shape that are changed.
The other arguments are options of a parameter group, asked for by name, and ``step``, which counts
from 1.  Weight decay comes before the rule: ``penalised`` or ``shrunk``.

Rules that look at whole parameters (norms, rows and columns) are in `distgrad.optim.whole_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from distgrad.typing import Array, Namespace

Arrays: TypeAlias = "Sequence[Array]"
Pair: TypeAlias = "tuple[float, float]"


# ---------------------------------------------------------------------- weight decay
def penalised(xp: Namespace, p: Array, g: Array, *, lr: float, weight_decay: float) -> Array:
    """Return ``g + weight_decay * p``: the gradient of a penalty on the weights added."""
    out: Array = xp.multiply(p, weight_decay)
    out += g
    return out


def shrunk(xp: Namespace, p: Array, g: Array, *, lr: float, weight_decay: float) -> Array:
    """Return ``g`` after ``p`` was moved towards 0 by ``lr * weight_decay`` of itself."""
    p *= 1 - lr * weight_decay
    return g


# ---------------------------------------------------------------------- averages
def average(xp: Namespace, mean: Array, value: Array, decay: float, scratch: Array) -> None:
    """Move ``mean`` to ``decay * mean + (1 - decay) * value``."""
    xp.subtract(value, mean, out=scratch)
    scratch *= 1 - decay
    mean += scratch


def average_square(xp: Namespace, mean: Array, value: Array, decay: float, scratch: Array) -> None:
    """Move ``mean`` to ``decay * mean + (1 - decay) * value**2``."""
    mean *= decay
    xp.multiply(value, value, out=scratch)
    scratch *= 1 - decay
    mean += scratch


# ---------------------------------------------------------------------- rules
def sgd(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    step: int,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
) -> None:
    """Stochastic gradient descent; ``state`` is [] or, with momentum, [momentum_buffer].

    buffer ← momentum · buffer + (1 - dampening) · g   (g itself at the first step)
    p ← p - lr · (buffer, or with nesterov: g + momentum · buffer)
    """
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
    state: Arrays,
    *,
    step: int,
    lr: float,
    betas: Pair,
    eps: float,
) -> None:
    """Adam (Kingma & Ba 2015); ``state`` is [exp_avg, exp_avg_sq], with AMSGrad a maximum more.

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
    p ← p - lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps)
    """
    m, v, *largest = state
    scratch = xp.empty_like(p)
    average(xp, m, g, betas[0], scratch)
    average_square(xp, v, g, betas[1], scratch)
    if largest:
        v = xp.maximum(largest[0], v, out=largest[0])
    xp.sqrt(v, out=scratch)
    scratch *= 1 / math.sqrt(1 - betas[1] ** step)
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= lr / (1 - betas[0] ** step)
    p -= scratch


def nadam(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    betas: Pair,
    eps: float,
    unbias: float,
    by_gradient: float,
    by_average: float,
) -> None:
    """Adam with Nesterov momentum (Dozat 2016); ``state`` is [exp_avg, exp_avg_sq].

    p ← p - lr · ((1 - μₜ) / (1 - Πμ) · g + μₜ₊₁ / (1 - μₜ₊₁ Πμ) · m) / (√(v / (1 - β₂ᵗ)) + eps)
    """
    m, v = state
    scratch = xp.empty_like(p)
    average(xp, m, g, betas[0], scratch)
    average_square(xp, v, g, betas[1], scratch)
    denominator = xp.multiply(v, unbias)
    xp.sqrt(denominator, out=denominator)
    denominator += eps
    xp.multiply(g, by_gradient, out=scratch)
    scratch /= denominator
    p -= scratch
    xp.multiply(m, by_average, out=scratch)
    scratch /= denominator
    p -= scratch


def radam(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    step: int,
    lr: float,
    betas: Pair,
    eps: float,
) -> None:
    """Rectified Adam (Liu et al. 2020); ``state`` is [exp_avg, exp_avg_sq].

    While the variance of √v is too uncertain (ρₜ ≤ 5), a step of plain momentum.
    """
    m, v = state
    scratch = xp.empty_like(p)
    average(xp, m, g, betas[0], scratch)
    average_square(xp, v, g, betas[1], scratch)
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
    state: Arrays,
    *,
    step: int,
    lr: float,
    betas: Pair,
    eps: float,
) -> None:
    """Adam with the infinity norm (Kingma & Ba 2015); ``state`` is [exp_avg, exp_inf].

    u ← max(β₂ u, |g| + eps);  p ← p - lr / (1 - β₁ᵗ) · m / u
    """
    m, largest = state
    scratch = xp.empty_like(p)
    average(xp, m, g, betas[0], scratch)
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
    state: Arrays,
    *,
    step: int,
    lr: float,
    lr_decay: float,
    eps: float,
) -> None:
    """Adagrad (Duchi et al. 2011); ``state`` is [sum].

    sum ← sum + g²;  p ← p - lr / (1 + (t - 1) lr_decay) · g / (√sum + eps)
    """
    (total,) = state
    scratch = xp.multiply(g, g)
    total += scratch
    xp.sqrt(total, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    scratch *= lr / (1 + (step - 1) * lr_decay)
    p -= scratch


def adadelta(
    xp: Namespace, p: Array, g: Array, state: Arrays, *, lr: float, rho: float, eps: float
) -> None:
    """Adadelta (Zeiler 2012); ``state`` is [square_avg, acc_delta].

    v ← ρ v + (1 - ρ) g²;  Δ ← √(u + eps) / √(v + eps) · g;  u ← ρ u + (1 - ρ) Δ²;  p ← p - lr Δ
    """
    squares, deltas = state
    scratch = xp.empty_like(p)
    average_square(xp, squares, g, rho, scratch)
    delta = xp.add(deltas, eps)
    xp.add(squares, eps, out=scratch)
    xp.sqrt(delta, out=delta)
    xp.sqrt(scratch, out=scratch)
    delta /= scratch
    delta *= g
    average_square(xp, deltas, delta, rho, scratch)
    delta *= lr
    p -= delta


def rmsprop(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    centered: bool,
) -> None:
    """RMSprop (Hinton's lecture 6e); ``state`` is [square_avg, momentum_buffer?, grad_avg?].

    v ← α v + (1 - α) g²;  p ← p - lr · g / (√v + eps), with momentum where asked for
    """
    squares = state[0]
    scratch = xp.empty_like(p)
    average_square(xp, squares, g, alpha, scratch)
    if centered:
        average(xp, state[-1], g, alpha, scratch)
        xp.multiply(state[-1], state[-1], out=scratch)
        xp.subtract(squares, scratch, out=scratch)
        xp.sqrt(scratch, out=scratch)
    else:
        xp.sqrt(squares, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    if momentum > 0:
        buffer = state[1]
        buffer *= momentum
        buffer += scratch
        xp.multiply(buffer, lr, out=scratch)
    else:
        scratch *= lr
    p -= scratch


def rprop(
    xp: Namespace, p: Array, g: Array, state: Arrays, *, etas: Pair, step_sizes: Pair
) -> None:
    """Resilient backpropagation (Riedmiller & Braun 1993); ``state`` is [prev, step_size].

    size ← size · η₊ where g kept its sign, · η₋ where it changed;  p ← p - size · sign(g)

    Where the sign changed, the element stays, and the next step takes the gradient for new.
    """
    prev, size = state
    turn = xp.multiply(g, prev)
    kept, turned = turn > 0, turn < 0
    turn.fill(1)
    xp.copyto(turn, etas[1], where=kept)
    xp.copyto(turn, etas[0], where=turned)
    size *= turn
    xp.clip(size, *step_sizes, out=size)
    xp.copyto(prev, g)
    xp.copyto(prev, 0, where=turned)
    p -= xp.multiply(xp.sign(prev), size, out=turn)


def asgd(
    xp: Namespace,
    p: Array,
    g: Array,
    state: Arrays,
    *,
    kept: float,
    eta: float,
    mu: float,
) -> None:
    """Averaged stochastic gradient descent (Polyak & Juditsky 1992); ``state`` is [ax].

    p ← (1 - λ η) p - η g;  ax ← ax + μ (p - ax)
    """
    (mean,) = state
    p *= kept
    p -= xp.multiply(g, eta)
    known = isinstance(mu, float)  # and not on a GPU
    if known and mu == 1:
        xp.copyto(mean, p)
        return
    scratch = xp.subtract(p, mean)
    scratch *= mu
    mean += scratch
    if not known:
        xp.copyto(mean, p, where=xp.equal(mu, 1))
