"""Losses: classification, regression, likelihoods.  Those with a margin are in ``margin``."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy

from distgrad.autograd import engine
from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import between, case, given, integers, positive, real
from distgrad.autograd.traced import is_traced
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.backend.forms import device_form
from distgrad.errors import (
    ArgumentError,
    DtypeError,
    DtypeNotImplemented,
    IndexOutOfRange,
    ShapeError,
    signature,
)
from distgrad.ops.activation import log_softmax, logsigmoid
from distgrad.ops.checks import demand_floating, is_floating
from distgrad.ops.compare import lt, where
from distgrad.ops.elementwise import abs as abs_
from distgrad.ops.elementwise import exp, log
from distgrad.ops.matmul import linear
from distgrad.ops.reduce import mean
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import expand, reshape, to_dtype, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy",
    "gaussian_nll_loss", "huber_loss", "kl_div", "l1_loss", "linear_cross_entropy", "mse_loss",
    "nll_loss", "poisson_nll_loss", "smooth_l1_loss",
]  # fmt: skip


# ---------------------------------------------------------------------- reductions
def reduction_of(name: str, reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """Return the checked ``reduction``, after PyTorch's deprecated arguments if they are given."""
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' "
            "instead.",
            stacklevel=3,
        )
    if reduction not in ("none", "mean", "sum"):
        raise ArgumentError(
            f"{name}(reduction={reduction!r}): {reduction} is not a valid value for reduction; use "
            "'none', 'mean' or 'sum'"
        )
    return reduction


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """Return the mean or the sum of ``loss``, or ``loss`` itself."""
    if reduction == "none":
        return loss
    return mean(loss) if reduction == "mean" else sum_(loss)


def at_least(x: Tensor, low: float) -> Tensor:
    """Return ``x``, but at least ``low``; the limit does not stop the gradient, as in PyTorch."""
    fixed = x.detach()
    return where(lt(fixed, low), x - fixed + low, x)


def _times_weight(name: str, loss: Tensor, weight: Tensor) -> Tensor:
    if weight.array.shape != loss.array.shape:
        raise ArgumentError(
            f"{signature(name, {'input': loss, 'weight': weight}, {})}: Weights and input must "
            "have the same size; expand the weight"
        )
    return loss * weight


def _weighted(name: str, loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Return the reduction of ``loss * weight``; a mean divides by the sum of the weights."""
    if weight is None:
        return reduced(loss, reduction)
    loss = _times_weight(name, loss, weight)
    return sum_(loss) / sum_(weight) if reduction == "mean" else reduced(loss, reduction)


def demand_numbers(name: str, input: Tensor, target: Tensor) -> None:
    """Refuse complex numbers, and whole numbers on both sides."""
    complex_ = "c" in input.array.dtype.kind + target.array.dtype.kind
    if complex_ or not (is_floating(input.array) or is_floating(target.array)):
        error = DtypeNotImplemented(f"not implemented for {input.array.dtype}; use .float()")
        recover(name, error, {"input": input, "target": target}, {})


def _same_size(name: str, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both broadcast to one shape; a difference is allowed and warned of, as in PyTorch."""
    if name != "l1_loss":
        demand_numbers(name, input, target)
    if input.array.shape == target.array.shape:
        return input, target
    warnings.warn(
        f"{name}: using a target size ({list(target.shape)}) that is different to the input size "
        f"({list(input.shape)}). This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=3,
    )
    try:
        shape = numpy.broadcast_shapes(input.array.shape, target.array.shape)
    except ValueError as error:
        recover(name, error, {"input": input, "target": target}, {})
    return expand(input, shape), expand(target, shape)


# ---------------------------------------------------------------------- cross entropy
def _check_classes(xp: Namespace, x: Array, target: Array, weight: Array | None) -> None:
    if x.ndim == 0 or x.ndim != target.ndim + 1:
        raise ShapeError(
            "0D or 1D target tensor expected, multi-target not supported: input "
            f"{list(x.shape)} needs a target of shape {[*x.shape[:1], *x.shape[2:]][x.ndim == 1 :]}"
        )
    if target.dtype.kind not in "iu" or target.dtype.itemsize not in (1, 8):
        raise DtypeError(
            f"expected target dtype to be Long or Byte, but got {target.dtype}; use .long()"
        )
    if x.ndim > 1 and x.shape[0] != target.shape[0]:
        raise ArgumentError(
            f"Expected input batch_size ({x.shape[0]}) to match target batch_size "
            f"({target.shape[0]})"
        )
    demand_floating(x)
    if x.shape[2:] != target.shape[1:]:
        want = [x.shape[0], *x.shape[2:]]
        raise ShapeError(f"Expected target size {want}, got {list(target.shape)}")
    classes = x.shape[x.ndim > 1]
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(
            f"weight tensor should be defined either for all {classes} classes or no classes but "
            f"got weight tensor of shape: {list(weight.shape)}"
        )


def _row_weights(
    xp: Namespace, classes: int, labels: Array, weight: Array | None, ignore: int, dtype: Any
) -> tuple[Array, Array | None, Array | None]:
    """Return usable labels, the weight of each row and whether it counts; None: all 1.

    Raises:
        IndexOutOfRange: a label is neither a class nor ``ignore``.
    """
    if type(labels) is not numpy.ndarray:
        return _device_weights(xp, classes, labels, weight, ignore, dtype)
    low, high = (int(xp.min(labels)), int(xp.max(labels))) if labels.size else (0, 0)
    inside = low >= 0 and high < classes
    valid = None
    if not inside or 0 <= ignore < classes:
        valid = labels != ignore
        wrong = valid & ((labels < 0) | (labels >= classes)) if not inside else None
        if wrong is not None and wrong.any():
            raise IndexOutOfRange(
                f"Target {int(labels[wrong][0])} is out of bounds: classes are 0 … {classes - 1}"
                f"{'' if ignore < 0 else f', or {ignore} to be ignored'}; give the model more "
                "outputs or correct the targets"
            )
        labels = xp.where(valid, labels, 0)
    rows = None if weight is None else weight[labels].astype(dtype, copy=False)
    if valid is not None:
        rows = valid.astype(dtype) if rows is None else rows * valid
    return labels, rows, valid


def _device_weights(
    xp: Namespace, classes: int, labels: Array, weight: Array | None, ignore: int, dtype: Any
) -> tuple[Array, Array | None, Array | None]:
    """Do the same on a device, which the host does not wait for: a wrong label makes nan."""
    valid = labels != ignore
    inside = (labels >= 0) & (labels < classes)
    labels = xp.where(inside, labels, 0)
    rows = valid.astype(dtype) if weight is None else weight[labels].astype(dtype) * valid
    return labels, xp.where(valid & ~inside, dtype.type(math.nan), rows), valid


def _class_rows(xp: Namespace, x: Array) -> Array:
    """Return ``x`` as a matrix with the classes in its rows, at least in float32."""
    if x.ndim != 2:
        x = x[None] if x.ndim == 1 else xp.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    return x.astype(xp.float32) if x.dtype.itemsize == 2 else x


def _smooth(
    xp: Namespace, rows: Array, lse: Array, weight: Array | None, valid: Array | None
) -> Array:
    """Return minus the weighted sum of log-probabilities over the classes of each row."""
    w = xp.ones(rows.shape[1], rows.dtype) if weight is None else weight.astype(rows.dtype)
    loss = lse * float(w.sum()) - xp.matmul(rows, w)
    return loss if valid is None else loss * valid


def _row_sums(xp: Namespace, rows: Array) -> tuple[Array, Array]:
    """Return Σ exp(row - shift) and shift: the rows' maxima, or none where that is safe anyway.

    Finding and subtracting maxima costs two passes; no exponential overflows below e⁶⁰.  A device
    is not asked: the host would have to wait for it.
    """
    none = xp.zeros(0, rows.dtype)
    if not rows.size:
        return xp.zeros(len(rows), rows.dtype), none
    if type(rows) is numpy.ndarray and float(rows.max()) < 60:
        sums = _exponential_sums(xp, rows, none)
        if float(sums.min()) > 1e-30:
            return sums, none
    top = rows.max(axis=1)
    top = xp.where(xp.isneginf(top), xp.zeros_like(top), top)
    return _exponential_sums(xp, rows, top), top


def _exponential_sums(xp: Namespace, rows: Array, shift: Array) -> Array:
    sums, ones = xp.empty(len(rows), rows.dtype), xp.ones(rows.shape[1], rows.dtype)
    for part in xp.row_blocks(*rows.shape):
        if shift.size:
            e = xp.subtract(rows[part], shift[part, None])
            xp.exp(e, out=e)
        else:
            e = xp.exp(rows[part])
        xp.matmul(e, ones, out=sums[part])
    return sums


@device_form
def _cross_entropy(
    xp: Namespace, x: Array, target: Array, weight: Array | None, reduction: str, ignore: int,
    smoothing: float, dtype: Any,
) -> tuple[Array, ...]:  # fmt: skip
    rows = _class_rows(xp, x)
    count, classes = rows.shape
    labels, w, valid = _row_weights(xp, classes, target.reshape(-1), weight, ignore, rows.dtype)
    sums, shift = _row_sums(xp, rows)
    with xp.errstate(invalid="ignore", divide="ignore"):
        lse = xp.log(sums)
        if shift.size:
            lse += shift
        loss = lse - rows[xp.arange(count), labels]
        if w is not None:
            loss *= w
        if smoothing:
            loss *= 1 - smoothing
            loss += _smooth(xp, rows, lse, weight, valid) * (smoothing / classes)
        total = xp.asarray(count if w is None else xp.add.reduce(w), rows.dtype)
        out = loss.reshape(target.shape) if reduction == "none" else xp.add.reduce(loss)
        if reduction == "mean":
            out = out / total
    used = xp.zeros(0, labels.dtype) if valid is None else labels
    kept = xp.zeros(0, rows.dtype) if w is None else w
    return xp.asarray(out, dtype or x.dtype), used, kept, sums, shift, total


@device_form
def _d_cross_entropy(
    xp: Namespace, g: Array, input: Array, target: Array, weight: Array | None, labels: Array,
    row_weights: Array, sums: Array, shift: Array, total: Array, reduction: str, ignore_index: int,
    label_smoothing: float, input_spare: bool,
) -> Array:  # fmt: skip
    """(p·Σq − q)·g for each row, q the target distribution times the weights.

    It takes the place of the logits where nobody else has them: these are the largest array.
    """
    rows = _class_rows(xp, input)
    spare = input_spare and input.ndim < 3 and rows.dtype == input.dtype
    count, classes = rows.shape
    labels = labels if labels.size else target.reshape(-1)
    with xp.errstate(invalid="ignore", divide="ignore"):
        scale = g.reshape(-1) / total if reduction == "mean" else g.reshape(-1)
    scale = scale.astype(rows.dtype, copy=False)
    whole = hit = scale * row_weights if row_weights.size else scale
    spread = None
    if label_smoothing:
        share = xp.full(classes, label_smoothing / classes, rows.dtype)
        share = share if weight is None else share * weight
        each = scale * (target.reshape(-1) != ignore_index)
        spread, hit = (each, share), hit * (1 - label_smoothing)
        whole = hit + each * float(share.sum())
    out = rows if spare else xp.empty_like(rows)
    for part in xp.row_blocks(count, classes):
        if shift.size:
            xp.subtract(rows[part], shift[part, None], out=out[part])
        xp.exp(out[part] if shift.size else rows[part], out=out[part])
    out *= (whole / sums)[:, None]
    out[xp.arange(count), labels] -= hit
    if spread:
        out -= spread[0][:, None] * spread[1]
    if input.ndim > 2:
        batch, _, *space = input.shape
        out = xp.moveaxis(out.reshape(batch, *space, classes), -1, 1)
    return out.reshape(input.shape).astype(input.dtype, copy=False)


def _cross_entropy_formula(
    F: Any, input: Any, target: Any, weight: Any, reduction: str, ignore_index: int,
    label_smoothing: float, loss_dtype: Any,
) -> Any:  # fmt: skip
    input = input if loss_dtype is None else F.to_dtype(input, loss_dtype)
    dim = 0 if input.ndim == 1 else 1
    return _surprise(
        F, F.log_softmax(input, dim), target, weight, reduction, ignore_index, label_smoothing
    )


def _surprise(
    F: Any, logp: Any, target: Any, weight: Any, reduction: str, ignore_index: int,
    label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """Return the loss of log-probabilities, in operations alone."""
    dim = 0 if logp.ndim == 1 else 1
    classes = logp.shape[dim]
    valid = F.ne(target, ignore_index)
    labels = F.where(valid, target, 0)
    rows = keep = F.to_dtype(valid, logp.array.dtype)
    if weight is not None:
        rows = keep * F.index(weight, [labels], (0,))
    loss = -F.pick(logp, labels) * (rows * (1 - label_smoothing))
    if label_smoothing:
        shape = (classes,) if dim == 0 else (1, classes, *(1,) * (logp.ndim - 2))
        each = logp if weight is None else logp * F.reshape(weight, shape)
        loss = loss - keep * F.sum(each, dim) * (label_smoothing / classes)
    if reduction == "none":
        return loss
    return F.sum(loss) / F.sum(rows) if reduction == "mean" else F.sum(loss)


_LABELS = [0, 2, 1, 2]


def _torch_cross_entropy(
    torch: Any, x: Any, y: Any, w: Any = None, *, reduction: str, ignore_index: int,
    label_smoothing: float,
) -> Any:  # fmt: skip
    return torch.nn.functional.cross_entropy(
        x, y, w, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


@op(
    samples=[
        case(real(4, 3), given(_LABELS), reduction="mean", ignore_index=-100, label_smoothing=0.0),
        case(real(4, 3), given(_LABELS), reduction="none", ignore_index=2, label_smoothing=0.0),
        case(real(4, 3), given(_LABELS), positive(3), reduction="mean", ignore_index=1,
             label_smoothing=0.3),
        case(real(2, 3, 4), integers(3, 2, 4), reduction="sum", ignore_index=-100,
             label_smoothing=0.1),
        case(real(2, 3, 2, 2), integers(3, 2, 2, 2), positive(3), reduction="none",
             ignore_index=-100, label_smoothing=0.0),
        case(real(3), given(1), reduction="mean", ignore_index=-100, label_smoothing=0.0),
    ],
    outputs=("loss", "labels!", "row_weights!", "sums!", "shift!", "total!"),
    method=False,
    node="CrossEntropyLossBackward0",
    reference=_torch_cross_entropy,
    formula=_cross_entropy_formula,
    d_input=_d_cross_entropy,
)  # fmt: skip
def cross_entropy_loss(
    xp: Namespace,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    loss_dtype: Any = None,
) -> Any:
    """Return ``cross_entropy`` for class numbers, and what backward needs of it.

    On a GPU ``loss_dtype`` may be float32 beside logits in 16 bits, which are read as they are.
    """
    _check_classes(xp, input, target, weight)
    return _cross_entropy(
        xp, input, target, weight, reduction, ignore_index, label_smoothing, loss_dtype
    )


@where_it_is
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return -log(softmax(input)[target]): how surprised the logits are by the right classes.

    Shape:
        input: ``(C)``, ``(N, C)`` or ``(N, C, *)``; target: class numbers ``()``, ``(N)`` or
        ``(N, *)``, or class probabilities in the shape of input; weight: ``(C)``.
    Args:
        weight: of each class; a mean divides by the sum of the weights in use.
        ignore_index: rows with this class number count for nothing.
        label_smoothing: this much of each target is spread evenly over all classes.
    Raises:
        IndexOutOfRange: a target is no class.
    """
    reduction = reduction_of("cross_entropy", reduction, size_average, reduce)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(
            f"cross_entropy(label_smoothing={label_smoothing}): label_smoothing must be between "
            f"0.0 and 1.0. Got: {label_smoothing}"
        )
    if input.array.shape == target.array.shape and target.is_floating_point():
        if ignore_index >= 0:
            error = ShapeError("ignore_index is not supported for floating point target")
            recover("cross_entropy", error, {"input": input, "target": target}, {})
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    out: Tensor = cross_entropy_loss(
        input, target, weight, reduction, ignore_index, label_smoothing
    )[0]
    return out


def wide_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return ``cross_entropy`` in float32, of logits in 16 bits on a GPU: what autocast calls.

    For class numbers these are read as they are, and their gradient is rounded once where it is
    made: as of logits in float32, but without these.
    """
    whole = reduction_of("cross_entropy", reduction, size_average, reduce)
    weight = None if weight is None else _in_float32(weight)
    right = 0.0 <= label_smoothing <= 1.0
    if input.array.dtype.itemsize != 2 or target.is_floating_point() or not right:
        logits, target = _in_float32(input), _in_float32(target)
        return cross_entropy(
            logits, target, weight, None, ignore_index, None, whole, label_smoothing
        )
    out: Tensor = cross_entropy_loss(
        input, target, weight, whole, ignore_index, label_smoothing, loss_dtype=_FLOAT32
    )[0]
    return out


_FLOAT32 = numpy.dtype("float32")


def _in_float32(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.array.dtype.itemsize == 2
    out: Tensor = to_dtype(tensor, _FLOAT32) if narrow else tensor
    return out


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """Return the loss for targets that are probabilities."""
    dim = 0 if input.ndim == 1 else 1
    classes = input.array.shape[dim]
    if smoothing:
        target = target * (1 - smoothing) + smoothing / classes
    terms = log_softmax(input, dim) * target
    if weight is not None:
        shape = (classes,) if dim == 0 else (1, classes) + (1,) * (input.ndim - 2)
        terms = terms * reshape(weight, shape)
    loss = -sum_(terms, dim)
    if reduction == "mean":
        return sum_(loss) / (loss.numel() if loss.ndim else 1)
    return reduced(loss, reduction)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object | None = None,
) -> Tensor:
    """Return the cross entropy of ``linear(input, linear_weight, linear_bias)``.

    Shape:
        input: ``(D)`` or ``(N, D)``, linear_weight: ``(C, D)`` or ``(C, *, D)``, linear_bias:
        ``(C)`` or ``(C, *)``, target: as for logits ``(C)``, ``(N, C)`` or ``(N, C, *)``.
    Args:
        weight, reduction, ignore_index, label_smoothing: as in ``cross_entropy``.
        options: taken for compatibility: how PyTorch cuts the work; the result does not depend on
            it.
    """
    *batch, features = input.array.shape or (0,)
    classes, *more, width = linear_weight.array.shape if linear_weight.ndim > 1 else (0, 0)
    shape = (*batch, classes, *more)
    operands = {"input": input, "linear_weight": linear_weight, "target": target}
    soft = target.array.shape == shape
    wrong = ""
    if input.ndim not in (1, 2) or linear_weight.ndim < 2:
        wrong = "expected input of 1 or 2 dimensions and linear_weight of at least 2"
    elif features != width:
        wrong = (
            f"expected equal last dimensions of input and linear_weight, got {features}, {width}"
        )
    elif linear_bias is not None and linear_bias.array.shape != (classes, *more):
        wrong = f"expected linear_bias shape {(classes, *more)}, got {linear_bias.array.shape}"
    elif more and not batch:
        wrong = "a linear_weight of more than 2 dimensions needs a batch: input of 2 dimensions"
    elif soft and ignore_index is not None:
        wrong = "ignore_index cannot be specified when target contains probabilities"
    if wrong:
        recover("linear_cross_entropy", ShapeError(wrong), operands, {})
    rows = reshape(linear_weight, (-1, width))
    bias = None if linear_bias is None else reshape(linear_bias, (-1,))
    logits = reshape(linear(input, rows, bias), shape)
    ignored = -100 if ignore_index is None else ignore_index
    return cross_entropy(
        logits, target, weight, ignore_index=ignored, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip


# ---------------------------------------------------------------------- picking classes
@op(
    "multilinear",
    samples=[case(real(3, 4), given([1, 0, 3])), case(real(2, 3, 2), given([[2, 1], [0, 0]])),
             case(real(3), given(2))],
    method=False,
    reference="none",
    d_input=lambda F, g, input_shape, index: F.pick_backward(g, index, input_shape),
)  # fmt: skip
def pick(xp: Namespace, input: Tensor, index: Tensor) -> Array:
    """Return the entries of ``input`` along its class dimension whose numbers stand in ``index``.

    Shape:
        input: ``(C)`` or ``(N, C, *)``, index: ``()`` or ``(N, *)``; result: as index.
    """
    dim = 0 if input.ndim == 1 else 1
    return xp.take_along_axis(input, xp.expand_dims(index, dim), dim).reshape(index.shape)


@op(
    "multilinear",
    samples=[case(real(3), given([1, 0, 3]), size=(3, 4))],
    method=False,
    reference="none",
    d_grad=lambda F, g, index: F.pick(g, index),
)
def pick_backward(xp: Namespace, grad: Tensor, index: Tensor, size: tuple[int, ...]) -> Array:
    """Return zeros of ``size`` with ``grad`` at the places that ``pick`` reads."""
    dim = 0 if len(size) == 1 else 1
    classes = xp.reshape(xp.arange(size[dim]), (-1,) + (1,) * (len(size) - 1 - dim))
    chosen = xp.expand_dims(index, dim) == classes
    return xp.where(chosen, xp.expand_dims(grad, dim), xp.zeros((), grad.dtype))


@where_it_is
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return -input[target], the negative log-likelihood where input holds log-probabilities.

    Shape, Args:
        as ``cross_entropy``, for class numbers.
    """
    reduction = reduction_of("nll_loss", reduction, size_average, reduce)
    if is_traced((input, target, weight)):
        F = engine.tensor_functions
        return _surprise(F, input, target, weight, reduction, ignore_index)  # type: ignore[no-any-return]
    xp, x, labels = array_namespace(input.array), input.array, target.array
    try:
        w = None if weight is None else weight.array
        _check_classes(xp, x, labels, w)
        flat, rows, _ = _row_weights(
            xp, x.shape[x.ndim > 1], labels.reshape(-1), w, ignore_index, x.dtype
        )
    except (ShapeError, DtypeError, ArgumentError, IndexOutOfRange) as error:
        named = signature("nll_loss", {"input": input, "target": target}, {})
        raise type(error)(f"{named}: {error}") from None
    loss = -pick(input, wrap(flat.reshape(labels.shape)))
    if rows is not None:
        loss = loss * wrap(rows.reshape(labels.shape))
    if reduction != "mean":
        return reduced(loss, reduction)
    total = labels.size if rows is None else float(rows.sum())
    return sum_(loss) / total if total else sum_(loss) * math.nan


# ---------------------------------------------------------------------- binary cross entropy
@op(
    "elementwise",
    samples=[case(between(0.1, 0.9, 3, 2), between(0, 1, 3, 2))],
    method=False,
    reference=lambda torch, x, y: torch.nn.functional.binary_cross_entropy(x, y, reduction="none"),
    d_input=lambda F, g, input, target: (
        g * (input - target) / F.maximum(input * (1 - input), F.where(input == input, 1e-12, input))
    ),
    d_target=lambda F, g, input: g * (F.log(1 - input) - F.log(input)),
)
def bernoulli_surprise(xp: Namespace, input: Tensor, target: Tensor) -> Array:
    """Return -target·log(input) - (1 - target)·log(1 - input), the logarithms at least -100."""
    with xp.errstate(divide="ignore"):
        yes, no = xp.log(input), xp.log1p(-input)
    out = target * xp.maximum(yes, -100)
    out += (1 - target) * xp.maximum(no, -100)
    return xp.negative(out)


@where_it_is
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return -target·log(input) - (1 - target)·log(1 - input) for probabilities ``input``.

    Raises:
        ArgumentError: the shapes differ.
        ShapeError: an input is no probability.
    """
    reduction = reduction_of("binary_cross_entropy", reduction, size_average, reduce)
    _demand_same("binary_cross_entropy", input, target)
    demand_numbers("binary_cross_entropy", input, input)
    x = input.array
    if target.array.dtype != x.dtype:
        error = DtypeError(f"Found dtype {target.array.dtype} but expected {x.dtype}")
        recover("binary_cross_entropy", error, {"input": input, "target": target}, {})
    if x.size and not is_traced((input,)) and not ((x >= 0) & (x <= 1)).all():
        raise ShapeError(
            f"{signature('binary_cross_entropy', {'input': input, 'target': target}, {})}: all "
            "elements of input should be between 0 and 1; for logits use "
            "binary_cross_entropy_with_logits"
        )
    loss = bernoulli_surprise(input, target)
    return reduced(loss if weight is None else loss * weight, reduction)


def _demand_same(name: str, input: Tensor, target: Tensor) -> None:
    if input.array.shape != target.array.shape:
        raise ArgumentError(
            f"{signature(name, {'input': input, 'target': target}, {})}: Target size "
            f"({list(target.shape)}) must be the same as input size ({list(input.shape)})"
        )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Return ``binary_cross_entropy`` of sigmoid(input), without its overflow.

    Args:
        pos_weight: factor of the term with ``target``; broadcasts to input.
    """
    name = "binary_cross_entropy_with_logits"
    reduction = reduction_of(name, reduction, size_average, reduce)
    _demand_same(name, input, target)
    surprise = logsigmoid(input)
    if pos_weight is not None:
        surprise = surprise * ((pos_weight - 1) * target + 1)
    loss = (1 - target) * input - surprise
    return reduced(loss if weight is None else loss * weight, reduction)


# ---------------------------------------------------------------------- regression
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return (input - target)²."""
    reduction = reduction_of("mse_loss", reduction, size_average, reduce)
    input, target = _same_size("mse_loss", input, target)
    error = input - target
    return _weighted("mse_loss", error * error, weight, reduction)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return |input - target|."""
    reduction = reduction_of("l1_loss", reduction, size_average, reduce)
    input, target = _same_size("l1_loss", input, target)
    return _weighted("l1_loss", abs_(input - target), weight, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Return e² / (2·beta) where e = |input - target| is below beta, else e - beta / 2."""
    if beta < 0:
        raise ShapeError(f"smooth_l1_loss(beta={beta}): does not support negative values for beta")
    if beta == 0:
        return l1_loss(input, target, size_average, reduce, reduction)
    reduction = reduction_of("smooth_l1_loss", reduction, size_average, reduce)
    input, target = _same_size("smooth_l1_loss", input, target)
    return reduced(_huber(input - target, beta) / beta, reduction)


def _huber(error: Tensor, delta: float) -> Tensor:
    size = abs_(error)
    return where(size < delta, error * error * 0.5, (size - 0.5 * delta) * delta)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return e² / 2 where e = |input - target| is below delta, else delta·(e - delta / 2)."""
    if delta <= 0:
        raise ShapeError(f"huber_loss(delta={delta}): does not support non-positive values")
    reduction = reduction_of("huber_loss", reduction, None, None)
    input, target = _same_size("huber_loss", input, target)
    loss = _huber(input - target, delta)
    return reduced(loss if weight is None else _times_weight("huber_loss", loss, weight), reduction)


# ---------------------------------------------------------------------- likelihoods
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Return target·(log(target) - input), where ``input`` holds log-probabilities.

    Args:
        reduction: also "batchmean": the sum divided by the length of the first dimension, which is
            the divergence by definition.
        log_target: ``target`` holds logarithms too.
    """
    demand_numbers("kl_div", input, target)
    batchmean = reduction == "batchmean"
    reduction = reduction_of("kl_div", "sum" if batchmean else reduction, size_average, reduce)
    if log_target:
        loss = exp(target) * (target - input)
    else:
        present = target != 0  # a negative target gives nan, as a logarithm should
        loss = target * log(where(present, target, 1.0)) - target * input
    loss = reduced(loss, reduction)
    return loss / input.array.shape[0] if batchmean and input.ndim else loss


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Return (log(var) + (input - target)² / var) / 2, of normal distributions.

    Args:
        var: the variances: one for each input, or for each row of it; at least ``eps`` is used.
        full: add the constant log(2π) / 2.
    """
    reduction = reduction_of("gaussian_nll_loss", reduction, None, None)
    demand_numbers("gaussian_nll_loss", input, input)
    if not isinstance(var, Tensor):
        var = wrap(array_namespace(input.array).full_like(input.array, var))
    name = signature("gaussian_nll_loss", {"input": input, "target": target, "var": var}, {})
    if not is_traced((var,)) and (var.array < 0).any():
        raise ArgumentError(f"{name}: var has negative entry/entries")
    shape, of = input.array.shape, var.array.shape
    if shape != of and shape[:-1] == of:
        var = unsqueeze(var, -1)
    elif shape != of and (
        len(shape) != len(of) or sum(b for a, b in zip(shape, of, strict=True) if a != b) != 1
    ):
        raise ArgumentError(f"{name}: var is of incorrect size")
    var = at_least(var, eps)
    error = input - target
    loss = 0.5 * (log(var) + error * error / var)
    return reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return rate - target·log(rate), of Poisson distributions; ``input`` is log(rate) or rate.

    Args:
        full: add Stirling's approximation of log(target!) where target > 1.
        eps: added to the rate under the logarithm.
    """
    reduction = reduction_of("poisson_nll_loss", reduction, size_average, reduce)
    loss = exp(input) - target * input if log_input else input - target * log(input + eps)
    if full:
        above = target > 1
        t = where(above, target, 1.0)
        stirling = t * log(t) - t + 0.5 * log(2 * math.pi * t)
        loss = loss + where(above, stirling, 0.0)
    return reduced(loss, reduction)
