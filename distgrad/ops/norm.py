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
    return x.reshape(-1, width) if width else x.reshape(math.prod(x.shape), 0)


def _row_means(xp: Namespace, rows: Array) -> Array:
    """Return the mean of each row as a column; a product with a vector adds fastest."""
    width = rows.shape[1]
    return xp.matmul(rows, xp.full((width, 1), 1 / max(width, 1), rows.dtype))


def _wide(xp: Namespace, x: Array) -> Array:
    """Return half precision in float32, the rest as it is."""
    return x.astype(xp.float32) if x.dtype.itemsize == 2 else x


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
    rows = _wide(xp, _rows(xp, x, width))
    mean = _row_means(xp, rows)
    out = xp.subtract(rows, mean)
    # The sum of squares of a row is its product with itself.
    rstd = xp.einsum("ij,ij->i", out, out)[:, None]
    rstd /= max(width, 1)
    rstd += eps
    xp.sqrt(rstd, out=rstd)
    xp.reciprocal(rstd, out=rstd)
    out *= rstd
    if weight is not None:
        out *= weight.reshape(-1)
    if bias is not None:
        out += bias.reshape(-1)
    lead = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    out = out.reshape(x.shape)
    return out.astype(x.dtype, copy=False), mean.reshape(lead), rstd.reshape(lead)


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
    """dx = r·(gw − mean(gw) − x̂·mean(gw·x̂)) with gw = g·weight, in few passes.

    The sums over rows and over columns are products with vectors.
    """
    width = math.prod(normalized_shape)
    gs, unit = _wide(xp, _rows(xp, g, width)), _wide(xp, _rows(xp, input, width))
    kind = gs.dtype
    rstd = rstd.reshape(-1, 1)
    unit = unit - mean.reshape(-1, 1)
    unit *= rstd
    ones = xp.ones(len(gs), kind)
    product = gs * unit
    d_weight = xp.matmul(ones, product).reshape(normalized_shape) if needs[1] else None
    d_bias = xp.matmul(ones, gs).reshape(normalized_shape) if needs[2] else None
    if not needs[0]:
        return None, d_weight, d_bias
    w = xp.ones(width, kind) if weight is None else weight.reshape(-1).astype(kind, copy=False)
    share = (w / width)[:, None]
    unit *= xp.matmul(product, share)
    if weight is None:
        xp.subtract(gs, unit, out=product)
    else:
        xp.multiply(gs, w, out=product)
        product -= unit
    product -= xp.matmul(gs, share)
    product *= rstd
    return product.reshape(input.shape).astype(input.dtype, copy=False), d_weight, d_bias


def _layer_norm_formula(
    F: Any, input: Any, normalized_shape: Shape, weight: Any, bias: Any, eps: float
) -> tuple[Any, ...]:
    dims = tuple(range(-len(normalized_shape), 0))
    width = math.prod(normalized_shape)
    mean = F.sum(input, dims, True) / width
    centred = input - mean
    rstd = (F.sum(centred * centred, dims, True) / width + eps) ** -0.5
    out = centred * rstd
    if weight is not None:
        out = out * weight
    return (out if bias is None else out + bias,)


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
