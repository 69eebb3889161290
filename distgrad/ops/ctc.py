"""Connectionist temporal classification.

Source: Graves et al. 2006.  The sum over alignments is the forward recursion in log space, all
sequences of a batch at once; its gradient is that of the operations it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import recover
from distgrad.backend.device import array_namespace
from distgrad.errors import DistgradError, ShapeError
from distgrad.ops.checks import demand_full_precision
from distgrad.ops.compare import where
from distgrad.ops.elementwise import exp
from distgrad.ops.join import cat, stack
from distgrad.ops.loss import reduced, reduction_of
from distgrad.ops.reduce import logsumexp
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.scatter import gather
from distgrad.ops.shape import squeeze, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

__all__ = ["ctc_loss"]

_NEVER = -1e30  # the logarithm of no probability, without the nan of inf - inf
Lengths = Tensor | Sequence[int] | int


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Return minus the log-likelihood of label sequences over all their alignments.

    Shape:
        log_probs: ``(T, N, C)`` or ``(T, C)``, logarithms of probabilities; targets: ``(N, S)``, or
        all labels in one row.
    Args:
        input_lengths, target_lengths: the lengths of each sequence.
        blank: the number of the blank label.
        reduction: "mean" divides each loss by its target's length first.
        zero_infinity: targets too long for their input count for 0.

    The gradient is that of the function before ``log_softmax``, as in PyTorch.  Differs from
    PyTorch: an infinite loss has a zero gradient, not nan.
    """
    reduction = reduction_of("ctc_loss", reduction, None, None)
    single = log_probs.array.ndim == 2
    x = unsqueeze(log_probs, 1) if single else log_probs
    try:
        demand_full_precision(x.array)
        labels, given, wanted = _read(x, targets, input_lengths, target_lengths, blank)
    except DistgradError as error:
        operands = {"log_probs": log_probs, "targets": targets}
        recover("ctc_loss", error, operands, {"blank": blank})
    losses = _losses(x, labels, given, wanted, blank)
    infinite = wrap(losses.array > -_NEVER / 2)
    losses = where(infinite, 0.0 if zero_infinity else float("inf"), losses)
    if single:
        losses = squeeze(losses, 0)
    if reduction == "mean":
        xp = array_namespace(x.array)
        counts = xp.maximum(wanted, 1).astype(x.array.dtype)
        losses = losses / wrap(counts.reshape(losses.array.shape))
    return reduced(losses, reduction)


def _lengths(xp: Any, value: Lengths, batch: int, name: str) -> Array:
    raw = value.array if isinstance(value, Tensor) else value
    found = xp.asarray(raw, dtype=xp.int64).reshape(-1)
    if len(found) != batch:
        raise ShapeError(f"{name} must be of size batch_size ({batch}), but has {len(found)}")
    return found


def _read(
    x: Tensor, targets: Tensor, input_lengths: Lengths, target_lengths: Lengths, blank: int
) -> tuple[Array, Array, Array]:
    """Return the labels as a matrix, and the lengths."""
    xp = array_namespace(x.array)
    if x.array.ndim != 3 or targets.array.dtype.kind not in "iu":
        raise ShapeError("log_probs must be (T, N, C) or (T, C), and targets of an integer dtype")
    steps, batch, classes = x.array.shape
    if not 0 <= blank < classes:
        raise ShapeError(f"blank must be in label range [0, {classes}), but is {blank}")
    given = _lengths(xp, input_lengths, batch, "input_lengths")
    wanted = _lengths(xp, target_lengths, batch, "target_lengths")
    if int(given.max()) > steps or int(given.min()) < 0 or int(wanted.min()) < 0:
        raise ShapeError(f"Expected input_lengths to have value at most {steps}, and none below 0")
    raw, longest = targets.array, int(wanted.max())
    if raw.ndim == 1 and batch == 1:
        raw = raw[None]
    if raw.ndim == 1:
        place = xp.arange(longest)
        start = (xp.cumsum(wanted) - wanted)[:, None] + place
        inside = place < wanted[:, None]
        raw = xp.where(inside, raw[xp.minimum(start, max(len(raw) - 1, 0))], blank)
    if raw.shape[0] != batch or raw.shape[1] < longest:
        raise ShapeError(
            f"Expected targets of at least {batch} x {longest} labels, but got {list(raw.shape)}"
        )
    return raw[:, :longest], given, wanted


def _losses(x: Tensor, labels: Array, given: Array, wanted: Array, blank: int) -> Tensor:
    xp = array_namespace(x.array)
    steps, batch, _ = x.array.shape
    states = 2 * labels.shape[1] + 1
    extended = xp.full((batch, states), blank, xp.int64)
    inside = xp.arange(labels.shape[1]) < wanted[:, None]
    extended[:, 1::2] = xp.where(inside, labels, blank)
    skips = xp.zeros((batch, states), bool)
    skips[:, 3::2] = extended[:, 3::2] != extended[:, 1:-2:2]
    may_skip = wrap(skips)
    index = xp.array(xp.broadcast_to(extended, (steps, batch, states)))
    values = gather(x, 2, wrap(index))
    never = wrap(xp.full((batch, 2), _NEVER, x.array.dtype))
    reached = where(wrap(xp.arange(states) < 2), values[0], _NEVER)
    for t in range(1, steps):
        wide = cat([never, reached], 1)
        jump = where(may_skip, wide[:, :states], _NEVER)
        new = logsumexp(stack([reached, wide[:, 1 : states + 1], jump]), 0) + values[t]
        reached = where(wrap((t < given)[:, None]), new, reached)
    last = xp.stack([2 * wanted, xp.maximum(2 * wanted - 1, 0)], 1)
    ends = gather(reached, 1, wrap(last))
    first = wrap(xp.stack([wanted >= 0, wanted > 0], 1))
    losses = -logsumexp(where(first, ends, _NEVER), 1)
    running = wrap((xp.arange(steps)[:, None] < given)[..., None].astype(x.array.dtype))
    total = sum_(exp(x) * running, (0, 2))  # its gradient belongs to log_softmax before this
    return losses + (total - total.detach())
