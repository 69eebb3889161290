"""Distances, and the losses that ask for a margin."""

from __future__ import annotations

from collections.abc import Callable

import numpy

from distgrad.autograd.declare import recover
from distgrad.autograd.numpy_names import takes_names
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError, signature
from distgrad.ops.activation import logsigmoid
from distgrad.ops.checks import demand_full_precision, is_floating
from distgrad.ops.compare import clamp_min, eq, minimum, ne, where
from distgrad.ops.elementwise import exp, log1p, sqrt
from distgrad.ops.loss import at_least, demand_numbers, pick, reduced, reduction_of
from distgrad.ops.reduce import mean, vector_norm
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import expand, reshape, unsqueeze
from distgrad.tensor import Tensor, wrap

__all__ = [
    "cosine_embedding_loss", "cosine_similarity", "hinge_embedding_loss", "margin_ranking_loss",
    "multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss",
    "pairwise_distance", "soft_margin_loss", "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]  # fmt: skip


# ---------------------------------------------------------------------- distances
@takes_names
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return the cosine of the angle between ``x1`` and ``x2`` along ``dim``.

    Args:
        eps: the smallest norm to divide by.
    """
    try:
        if not (is_floating(x1.array) or is_floating(x2.array)):
            raise DtypeError(
                "expected common dtype to be floating point, yet common dtype is "
                f"{x1.array.dtype}; use .float()"
            )
        shape = numpy.broadcast_shapes(x1.array.shape, x2.array.shape)
    except (DistgradError, ValueError) as error:
        recover("cosine_similarity", error, {"x1": x1, "x2": x2}, {"dim": dim})
    x1, x2 = expand(x1, shape), expand(x2, shape)
    return sum_(_unit(x1, dim, eps) * _unit(x2, dim, eps), dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    size = vector_norm(x, 2, dim, True)
    return x / at_least(size, eps)


@takes_names
def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """Return the ``p``-norm of ``x1 - x2 + eps`` over the last dimension."""
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


# ---------------------------------------------------------------------- two classes, 1 and -1
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return input where target is 1, and max(0, margin - input) where it is -1."""
    reduction = reduction_of("hinge_embedding_loss", reduction, size_average, reduce)
    demand_numbers("hinge_embedding_loss", input, target)
    far = where(ne(target, 1), clamp_min(margin - input, 0), 0.0)
    near = where(ne(target, -1), input, 0.0)
    return reduced(far + near, reduction)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return log(1 + exp(-target·input)), with targets 1 and -1."""
    reduction = reduction_of("soft_margin_loss", reduction, size_average, reduce)
    demand_numbers("soft_margin_loss", input, target)
    return reduced(log1p(exp(-input * target)), reduction)


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return max(0, margin - target·(input1 - input2)): 1 ranks input1 higher, -1 input2."""
    reduction = reduction_of("margin_ranking_loss", reduction, size_average, reduce)
    if not input1.ndim == input2.ndim == target.ndim:
        named = {"input1": input1, "input2": input2, "target": target}
        raise ShapeError(
            f"{signature('margin_ranking_loss', named, {})}: All input tensors should have same "
            "dimension"
        )
    return reduced(clamp_min(-target * (input1 - input2) + float(margin), 0), reduction)


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return 1 - cos(input1, input2) for target 1, and max(0, cos - margin) for -1.

    Shape:
        input1 and input2: ``(N, D)`` or ``(D)``, target: ``(N)`` or ``()``.
    """
    reduction = reduction_of("cosine_embedding_loss", reduction, size_average, reduce)
    if not input1.ndim == input2.ndim == target.ndim + 1:
        named = {"input1": input1, "input2": input2, "target": target}
        raise ShapeError(
            f"{signature('cosine_embedding_loss', named, {})}: {target.ndim}D target tensor "
            f"expects {target.ndim + 1}D input tensors"
        )
    size1 = sum_(input1 * input1, -1) + 1e-12
    size2 = sum_(input2 * input2, -1) + 1e-12
    cos = sum_(input1 * input2, -1) / sqrt(size1 * size2)
    far = where(eq(target, -1), clamp_min(cos - margin, 0), 0.0)
    return reduced(where(eq(target, 1), 1 - cos, 0.0) + far, reduction)


# ---------------------------------------------------------------------- triplets
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return max(0, d(anchor, positive) - d(anchor, negative) + margin), d the ``p``-distance.

    Args:
        swap: take d(positive, negative) where it is smaller than d(anchor, negative).
    Source:
        Balntas et al., "Learning shallow convolutional feature descriptors with triplet losses".
    """
    reduction = reduction_of("triplet_margin_loss", reduction, size_average, reduce)
    if margin <= 0:
        raise ArgumentError(
            f"triplet_margin_loss(margin={margin}): margin must be greater than 0, got {margin}"
        )
    if not anchor.ndim == positive.ndim == negative.ndim:
        named = {"anchor": anchor, "positive": positive, "negative": negative}
        raise ShapeError(
            f"{signature('triplet_margin_loss', named, {})}: The anchor, positive, and negative "
            "tensors are expected to have the same number of dimensions"
        )

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return pairwise_distance(a, b, p, eps)

    return _triplet(anchor, positive, negative, distance, margin, swap, reduction)


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    margin: float,
    swap: bool,
    reduction: str,
) -> Tensor:
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = minimum(far, distance(positive, negative))
    return reduced(clamp_min(near - far + margin, 0), reduction)


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Return ``triplet_margin_loss`` with a distance of one's own."""
    name = "triplet_margin_with_distance_loss"
    reduction = reduction_of(name, reduction, None, None)
    if margin <= 0:
        raise ArgumentError(f"{name}(margin={margin}): margin must be greater than 0")
    distance = distance_function or pairwise_distance
    return _triplet(anchor, positive, negative, distance, margin, swap, reduction)


# ---------------------------------------------------------------------- many classes
@where_it_is
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return Σ max(0, margin - input[target] + input[i])^p / C over the wrong classes i.

    Shape:
        input: ``(N, C)`` or ``(C)``, target: ``(N)`` or ``()``, weight: ``(C)``.
    """
    reduction = reduction_of("multi_margin_loss", reduction, size_average, reduce)
    try:
        _check_multi_margin(input, target, p, weight)
    except DistgradError as error:
        recover("multi_margin_loss", error, {"input": input, "target": target}, {"p": p})
    xp, labels = array_namespace(input.array), target.array.reshape(-1)
    x = input if input.ndim == 2 else reshape(input, (1, -1))
    classes = x.array.shape[1]
    right = unsqueeze(pick(x, wrap(labels)), -1)
    loss = clamp_min(margin - right + x, 0)
    loss = loss * loss if p == 2 else loss
    if weight is not None:
        loss = loss * unsqueeze(wrap(weight.array[labels]), -1)
    wrong = xp.arange(classes) != labels[..., None]
    total = sum_(where(wrap(wrong), loss, 0.0), -1) / classes
    return reduced(reshape(total, target.array.shape), reduction)


def _check_rows(input: Tensor, target: Tensor) -> int:
    """Return the number of classes of a vector or matrix of scores."""
    shape = input.array.shape
    if len(shape) > 2 or (shape and shape[-1] == 0):
        raise ShapeError(
            "Expected non-empty vector or matrix with optional 0-dim batch size, but got: "
            f"{list(shape)}"
        )
    demand_full_precision(input.array)
    if target.array.dtype != "int64":
        raise DtypeError(f"expected target of dtype int64, but got {target.array.dtype}")
    return shape[-1] if shape else 1


def _check_multi_margin(input: Tensor, target: Tensor, p: int, weight: Tensor | None) -> None:
    if p not in (1, 2):
        raise ArgumentError("only p == 1 and p == 2 supported")
    if weight is not None and weight.ndim != 1:
        raise ArgumentError("weight must be one-dimensional")
    classes, labels = _check_rows(input, target), target.array
    rows = input.array.shape[0] if input.ndim == 2 else 1
    if labels.ndim > 1 or labels.size != rows:
        raise ShapeError(
            f"target tensor should be 1-D, one class for each row. Expected target size [{rows}], "
            f"but got {list(labels.shape)}"
        )
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ShapeError(f"target out of range: classes are 0 … {classes - 1}")
    if weight is not None and weight.array.shape != (classes,):
        raise ShapeError(
            f"inconsistent weight size, expected {classes} but got {list(weight.array.shape)}"
        )
    if weight is not None and weight.array.dtype != input.array.dtype:
        raise DtypeError(f"expected weight of {input.array.dtype}, but got {weight.array.dtype}")


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return Σ max(0, 1 - input[j] + input[i]) / C over target classes j and the others i.

    Shape:
        input and target: ``(N, C)`` or ``(C)``; a row of target lists classes up to the first -1.
    """
    reduction = reduction_of("multilabel_margin_loss", reduction, size_average, reduce)
    try:
        classes = _check_rows(input, target)
        if input.array.shape != target.array.shape:
            raise ShapeError(
                f"inconsistent target size: {list(target.array.shape)} for input of size: "
                f"{list(input.array.shape)}"
            )
        rows = target.array.reshape(-1, classes)
        if rows.size and (int(rows.min()) < -1 or int(rows.max()) >= classes):
            raise ShapeError(f"target is out of range: -1 … {classes - 1}")
    except DistgradError as error:
        recover("multilabel_margin_loss", error, {"input": input, "target": target}, {})
    xp = array_namespace(input.array)
    listed = xp.cumsum(rows < 0, axis=1) == 0
    index = xp.where(listed, rows, 0)
    others = xp.ones(rows.shape, bool)
    others[xp.nonzero(listed)[0], rows[listed]] = False
    x = input if input.ndim == 2 else reshape(input, (1, -1))
    shape = (*rows.shape, classes)
    right = pick(expand(unsqueeze(x, -1), shape), wrap(index))
    loss = clamp_min(1 - unsqueeze(right, -1) + unsqueeze(x, 1), 0)
    pairs = wrap(listed[:, :, None] & others[:, None, :])
    total = sum_(where(pairs, loss, 0.0), (1, 2)) / classes
    return reduced(total if input.ndim == 2 else sum_(total, 0), reduction)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the mean over classes of the binary cross entropy of logits ``input``."""
    reduction = reduction_of("multilabel_soft_margin_loss", reduction, size_average, reduce)
    loss = -(target * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    return reduced(mean(loss if weight is None else loss * weight, -1), reduction)
