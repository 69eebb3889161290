"""Normalisation over features, batches, groups and neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, positive, real
from distgrad.errors import ArgumentError, DtypeError, ShapeError, describe, signature
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm",
    "native_batch_norm", "native_layer_norm", "normalize", "rms_norm",
]  # fmt: skip


# ---------------------------------------------------------------------- helpers on arrays
def _rows(xp: Namespace, x: Array, width: int) -> Array:
    """Return ``x`` as a matrix with rows of ``width``; half precision becomes float32."""
    rows = x.reshape(-1, width) if width else x.reshape(0, 0)
    return rows.astype(xp.float32) if x.dtype.itemsize == 2 else rows


def _check_normalized_shape(op_: str, x: Array, shape: Shape, *affine: Array | None) -> None:
    if not shape:
        raise ShapeError(f"{op_} needs at least one normalized dimension; normalized_shape is empty")
    if tuple(x.shape[-len(shape) :]) != shape:
        raise ShapeError(
            f"Given normalized_shape={list(shape)}, expected input with shape "
            f"{[*'*', *shape]}, but got input of size {list(x.shape)}".replace("'", "")
        )
    for name, a in zip(("weight", "bias"), affine, strict=False):
        if a is not None and a.shape != shape:
            raise ShapeError(
                f"Expected {name} to be of same shape as normalized_shape, but got {name} of "
                f"shape {list(a.shape)} and normalized_shape = {list(shape)}"
            )
        if a is not None and a.dtype != x.dtype and x.dtype.itemsize != 2:
            raise DtypeError(f"expected {name} of dtype {x.dtype} like input, but got {a.dtype}")


# ---------------------------------------------------------------------- layer norm
def _layer_norm(
    xp: Namespace, x: Array, shape: Shape, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    _check_normalized_shape("layer_norm", x, shape, weight, bias)
    if x.dtype.kind != "f" and x.dtype.kind != "V":
        raise DtypeError(f"expected a floating point input, but got {x.dtype}; use .float()")
    width = math.prod(shape)
    rows = _rows(xp, x, width)
    out = xp.empty_like(rows)
    mean, rstd = xp.empty((len(rows), 1), rows.dtype), xp.empty((len(rows), 1), rows.dtype)
    share = xp.full((width, 1), 1 / max(width, 1), rows.dtype)
    for part in xp.row_blocks(*rows.shape):
        unit = out[part]
        middle = xp.matmul(rows[part], share, out=mean[part])
        xp.subtract(rows[part], middle, out=unit)
        scale = rstd[part]
        xp.divide(xp.row_dots(unit, unit)[:, None], width, out=scale)
        scale += eps
        xp.sqrt(scale, out=scale)
        xp.reciprocal(scale, out=scale)
        unit *= scale
        if weight is not None:
            unit *= weight.reshape(-1)
        if bias is not None:
            unit += bias.reshape(-1)
    lead = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    out = out.reshape(x.shape).astype(x.dtype, copy=False)
    return out, mean.reshape(lead), rstd.reshape(lead)


def _d_layer_norm(
    xp: Namespace,
    g: Array,
    needs: tuple[bool, ...],
    input: Array,
    normalized_shape: Shape,
    weight: Array | None,
    mean: Array,
    rstd: Array,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx = r·(g·w − mean(g·w) − x̂·mean(g·w·x̂)), in blocks of rows and few passes.

    The sums over rows and over columns are products with vectors, which BLAS does fastest.
    """
    width = math.prod(normalized_shape)
    gs, rows = _rows(xp, g, width), _rows(xp, input, width)
    kind, mean, rstd = gs.dtype, mean.reshape(-1, 1), rstd.reshape(-1, 1)
    w = None if weight is None else weight.reshape(-1).astype(kind, copy=False)
    share = xp.full((width, 1), 1 / max(width, 1), kind)
    if w is not None:
        share *= w[:, None]
    out = xp.empty_like(rows) if needs[0] else None
    sums = xp.zeros((2, width), kind)
    for part in xp.row_blocks(*rows.shape):
        scale, ones = rstd[part], xp.ones(len(rows[part]), kind)
        unit = xp.subtract(rows[part], mean[part])
        unit *= scale
        product = xp.multiply(gs[part], unit, out=None if out is None else out[part])
        if needs[1]:
            sums[0] += xp.matmul(ones, product)
        if needs[2]:
            sums[1] += xp.matmul(ones, gs[part])
        if needs[0]:
            unit *= xp.matmul(product, share)
            unit += xp.matmul(gs[part], share)
            if w is None:
                xp.subtract(gs[part], unit, out=product)
            else:
                xp.multiply(gs[part], w, out=product)
                product -= unit
            product *= scale
    d_input = None if out is None else out.reshape(input.shape).astype(input.dtype, copy=False)
    d_weight, d_bias = (
        s.reshape(normalized_shape).astype(input.dtype, copy=False) if needed else None
        for s, needed in zip(sums, needs[1:], strict=True)
    )
    return d_input, d_weight, d_bias


def _layer_norm_formula(
    F: Any, input: Any, normalized_shape: Shape, weight: Any, bias: Any, eps: float
) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))
    width = math.prod(normalized_shape)
    mean = F.sum(input, dims, True) / width
    centred = input - mean
    rstd = (F.sum(centred * centred, dims, True) / width + eps) ** -0.5
    out = centred * rstd
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


@op(
    samples=[case(real(4, 5), real(5), real(5), normalized_shape=(5,), eps=1e-5),
             case(real(2, 3, 4), normalized_shape=(3, 4), eps=1e-5),
             case(real(3, 4), real(4), normalized_shape=(4,), eps=1e-3),
             case(real(0, 4), real(4), real(4), normalized_shape=(4,), eps=1e-5)],
    outputs=("out", "mean!", "rstd!"),
    method=False,
    node="NativeLayerNormBackward0",
    reference=lambda torch, x, w=None, b=None, normalized_shape=(), eps=0.0:
        torch.native_layer_norm(x, normalized_shape, w, b, eps),
    formula=_layer_norm_formula,
    d_all=_d_layer_norm,
)  # fmt: skip
def native_layer_norm(
    xp: Namespace,
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Any:
    """Return ``layer_norm``, and the mean and 1 / standard deviation it used."""
    return _layer_norm(xp, input, tuple(normalized_shape), weight, bias, eps)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``input`` with mean 0 and variance 1 over its last dimensions, times weight plus bias.

    Shape:
        input: ``(*, *normalized_shape)``, weight and bias: ``normalized_shape``.
    Source:
        Ba, Kiros, Hinton, "Layer Normalization" (2016).
    """
    out: Tensor = native_layer_norm(input, tuple(normalized_shape), weight, bias, eps)[0]
    return out
