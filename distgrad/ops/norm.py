"""Normalisation over features, batches, groups and neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.declare import op, recover
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.backend.device import array_namespace, where_it_is
from distgrad.backend.dtype import finfo
from distgrad.backend.forms import device_form
from distgrad.errors import (
    ArgumentError,
    DistgradError,
    DtypeError,
    ShapeError,
    describe,
    signature,
)
from distgrad.ops.arrange import pad
from distgrad.ops.checks import as_dtype, demand_floating, widened
from distgrad.ops.compare import clamp_min
from distgrad.ops.pool import avg_pool2d
from distgrad.ops.reduce import mean, vector_norm
from distgrad.ops.shape import reshape, unsqueeze
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "local_response_norm",
    "native_batch_norm", "native_group_norm", "native_layer_norm", "normalize", "rms_norm",
]  # fmt: skip


# ---------------------------------------------------------------------- helpers on arrays
def _rows(xp: Namespace, x: Array, width: int) -> Array:
    """Return ``x`` as a matrix with rows of ``width``; half precision becomes float32."""
    rows = x.reshape(-1, width) if width else x.reshape(0, 0)
    return rows.astype(xp.float32) if x.dtype.itemsize == 2 else rows


def _check_normalized_shape(op_: str, x: Array, shape: Shape, *affine: Array | None) -> None:
    if not shape:
        raise ShapeError(
            f"{op_} needs at least one normalized dimension; normalized_shape is empty"
        )
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


# ---------------------------------------------------------------------- layer norm
def _check_layer_norm(x: Array, shape: Shape, weight: Array | None, bias: Array | None) -> None:
    _check_normalized_shape("layer_norm", x, shape, weight, bias)
    demand_floating(x)
    for a in (weight, bias):
        if a is not None and a.dtype != x.dtype and (x.dtype.itemsize != 2 or a.dtype != "float32"):
            raise DtypeError(
                f"mixed dtype (CPU): expect parameter to have scalar type of {x.dtype} as input, "
                f"or of Float beside half precision, but got {a.dtype}"
            )


@device_form
def _layer_norm(
    xp: Namespace, x: Array, shape: Shape, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
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


@device_form
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
    kind = input.dtype if weight is None else weight.dtype
    d_weight, d_bias = (
        s.reshape(normalized_shape).astype(kind, copy=False) if needed else None
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
def fused_layer_norm(
    xp: Namespace,
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Any:
    """Return ``layer_norm``, and the mean and 1 / standard deviation it used, in float32 at least.

    Raises:
        DtypeError: weight or bias have another dtype than input, and not both float32 beside half.
    """
    shape = tuple(normalized_shape)
    _check_layer_norm(input, shape, weight, bias)
    return _layer_norm(xp, input, shape, weight, bias, eps)


def native_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``layer_norm``, and the mean and 1 / standard deviation it used."""
    out, mean, rstd = fused_layer_norm(input, tuple(normalized_shape), weight, bias, eps)
    kind = (input if weight is None else weight).array.dtype
    return out, as_dtype(mean, kind), as_dtype(rstd, kind)


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
    out: Tensor = fused_layer_norm(input, tuple(normalized_shape), weight, bias, eps)[0]
    return out


# ---------------------------------------------------------------------- root mean square norm
def _raw(weight: Tensor | None) -> Array | None:
    return None if weight is None else weight.array


@device_form
def _rms_norm(
    xp: Namespace, x: Array, shape: Shape, weight: Array | None, eps: float
) -> tuple[Array, Array]:
    width = math.prod(shape)
    rows = _rows(xp, x, width)
    out, rstd = xp.empty_like(rows), xp.empty((len(rows), 1), rows.dtype)
    for part in xp.row_blocks(*rows.shape):
        scale = rstd[part]
        xp.divide(xp.row_dots(rows[part], rows[part])[:, None], width, out=scale)
        scale += eps
        xp.sqrt(scale, out=scale)
        xp.reciprocal(scale, out=scale)
        xp.multiply(rows[part], scale, out=out[part])
        if weight is not None:
            out[part] *= weight.reshape(-1)
    lead = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    return out.reshape(x.shape).astype(x.dtype, copy=False), rstd.reshape(lead)


@device_form
def _d_rms_norm(
    xp: Namespace,
    g: Array,
    input: Array,
    normalized_shape: Shape,
    weight: Array | None,
    rstd: Array,
) -> tuple[Array, Array | None]:
    """dx = r·(g·w − x̂·mean(g·w·x̂))."""
    width = math.prod(normalized_shape)
    gs, rows, rstd = _rows(xp, g, width), _rows(xp, input, width), rstd.reshape(-1, 1)
    w = None if weight is None else weight.reshape(-1).astype(gs.dtype, copy=False)
    share = xp.full((width, 1), 1 / max(width, 1), gs.dtype)
    if w is not None:
        share *= w[:, None]
    out, d_weight = xp.empty_like(rows), xp.zeros(width, gs.dtype)
    for part in xp.row_blocks(*rows.shape):
        unit = rows[part] * rstd[part]
        product = xp.multiply(gs[part], unit, out=out[part])
        d_weight += xp.matmul(xp.ones(len(product), gs.dtype), product)
        unit *= xp.matmul(product, share)
        if w is None:
            xp.subtract(gs[part], unit, out=product)
        else:
            xp.multiply(gs[part], w, out=product)
            product -= unit
        product *= rstd[part]
    d_input = out.reshape(input.shape).astype(input.dtype, copy=False)
    kind = input.dtype if weight is None else weight.dtype
    return d_input, d_weight.reshape(normalized_shape).astype(kind, copy=False)


def _rms_norm_formula(F: Any, input: Any, normalized_shape: Shape, weight: Any, eps: float) -> Any:
    dims = tuple(range(-len(normalized_shape), 0))
    mean = F.sum(input * input, dims, True) / math.prod(normalized_shape)
    out = input * (mean + eps) ** -0.5
    return out if weight is None else out * weight


@op(
    samples=[case(real(4, 5), real(5), normalized_shape=(5,), eps=1e-5),
             case(real(2, 3, 4), normalized_shape=(3, 4), eps=1e-3)],
    outputs=("out", "rstd!"),
    method=False,
    reference=lambda torch, x, w=None, *, normalized_shape, eps: torch.nn.functional.rms_norm(
        x, normalized_shape, w, eps
    ),
    formula=_rms_norm_formula,
    d_all=_d_rms_norm,
)  # fmt: skip
def fused_rms_norm(
    xp: Namespace, input: Tensor, normalized_shape: Shape, weight: Tensor | None, eps: float
) -> Any:
    """Return ``rms_norm``, and the 1 / root mean square it used."""
    shape = tuple(normalized_shape)
    _check_normalized_shape("rms_norm", input, shape, weight)
    demand_floating(input)
    return _rms_norm(xp, input, shape, weight, eps)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Return ``input`` divided by its root mean square over its last dimensions, times weight.

    Args:
        eps: added under the root; by default the dtype's distance from 1 to the next number.
    Source:
        Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    try:
        demand_floating(input.array, "complex64", "complex128")
    except DistgradError as error:
        recover("rms_norm", error, {"input": input}, {})
    if eps is None:
        eps = finfo(input.dtype).eps
    if input.array.dtype.kind == "c":
        _check_normalized_shape("rms_norm", input.array, tuple(normalized_shape), _raw(weight))
        F = engine.tensor_functions
        return _rms_norm_formula(F, input, tuple(normalized_shape), weight, eps)  # type: ignore[no-any-return]
    out: Tensor = fused_rms_norm(input, tuple(normalized_shape), weight, eps)[0]
    return out


# ---------------------------------------------------------------------- batch norm
def _by_channel(xp: Namespace, x: Array) -> Array:
    """Return ``x`` as (N, C, L), half precision in float32."""
    x = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return x.astype(xp.float32) if x.dtype.itemsize == 2 else x


def _channel_sums(xp: Namespace, x: Array) -> Array:
    """Return the sums over images and places, by products with vectors."""
    batch, channels, length = x.shape
    if length == 1:
        return xp.matmul(xp.ones(batch, x.dtype), x[:, :, 0])
    each = xp.matmul(x.reshape(-1, length), xp.ones(length, x.dtype))
    return xp.add.reduce(each.reshape(batch, channels), axis=0)


@device_form
def _batch_norm(
    xp: Namespace, x: Array, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Array, Array]:
    images = _by_channel(xp, x)
    batch, channels, length = images.shape
    count = max(batch * length, 1)
    blocks = xp.row_blocks(batch, channels * length)
    mean, var = xp.zeros(channels, images.dtype), xp.zeros(channels, images.dtype)
    for part in blocks:
        mean += _channel_sums(xp, images[part])
    mean /= count
    for part in blocks:
        centred = images[part] - mean[:, None]
        centred *= centred
        var += _channel_sums(xp, centred)
    var /= count
    scale = 1 / xp.sqrt(var + eps)
    if weight is not None:
        scale *= weight
    out = xp.empty_like(images)
    for part in blocks:
        xp.subtract(images[part], mean[:, None], out=out[part])
        out[part] *= scale[:, None]
        if bias is not None:
            out[part] += bias[:, None]
    return out.reshape(x.shape).astype(x.dtype, copy=False), mean, var


@device_form
def _d_batch_norm(
    xp: Namespace, g: Array, input: Array, weight: Array | None, mean: Array, var: Array, eps: float
) -> tuple[Array, Array, Array]:
    """dx = w·r·(g − mean(g) − x̂·mean(g·x̂)), the means over images and places."""
    gs, images = _by_channel(xp, g), _by_channel(xp, input)
    batch, channels, length = images.shape
    count = max(batch * length, 1)
    blocks = xp.row_blocks(batch, channels * length)
    d_weight, d_bias = xp.zeros(channels, gs.dtype), xp.zeros(channels, gs.dtype)
    for part in blocks:
        centred = images[part] - mean[:, None]
        centred *= gs[part]
        d_weight += _channel_sums(xp, centred)
        d_bias += _channel_sums(xp, gs[part])
    rstd = 1 / xp.sqrt(var + eps)
    slope = (rstd * rstd * d_weight / -count)[:, None]
    d_weight *= rstd
    scale = (rstd if weight is None else rstd * weight)[:, None]
    out = xp.empty_like(images)
    for part in blocks:
        move = images[part] - mean[:, None]
        move *= slope
        move -= (d_bias / count)[:, None]
        move += gs[part]
        xp.multiply(move, scale, out=out[part])
    kind = input.dtype if weight is None else weight.dtype
    d_input = out.reshape(input.shape).astype(input.dtype, copy=False)
    return d_input, d_weight.astype(kind, copy=False), d_bias.astype(kind, copy=False)


def _batch_norm_formula(F: Any, input: Any, weight: Any, bias: Any, eps: float) -> Any:
    dims = (0, *range(2, input.ndim))
    shape = (1, -1) + (1,) * (input.ndim - 2)
    count = max(math.prod(input.shape) // max(input.shape[1], 1), 1)
    centred = input - F.sum(input, dims, True) / count
    out = centred * (F.sum(centred * centred, dims, True) / count + eps) ** -0.5
    if weight is not None:
        out = out * F.reshape(weight, shape)
    return out if bias is None else out + F.reshape(bias, shape)


@op(
    samples=[case(real(4, 3), real(3), real(3), eps=1e-5),
             case(real(2, 3, 2, 2), real(3), real(3), eps=1e-5), case(real(3, 2, 4), eps=1e-3)],
    outputs=("out", "mean!", "var!"),
    method=False,
    node="NativeBatchNormBackward0",
    reference="none",
    formula=_batch_norm_formula,
    d_all=_d_batch_norm,
)  # fmt: skip
def batch_statistics_norm(
    xp: Namespace, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    """Return ``batch_norm`` by this batch's statistics, and its mean and biased variance."""
    return _batch_norm(xp, input, weight, bias, eps)


@where_it_is
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``input`` with mean 0 and variance 1 in every channel, times weight plus bias.

    Shape:
        input: ``(N, C, *)``, all others: ``(C)``.
    Args:
        running_mean, running_var: used when not training; else moved towards this batch's mean and
            unbiased variance by the fraction ``momentum``, in place.
    Source:
        Ioffe, Szegedy, "Batch Normalization" (2015).
    """
    running = {"running_mean": running_mean, "running_var": running_var}
    if training and input.ndim and _values_per_channel(input.array.shape) == 1:
        raise ArgumentError(
            f"{signature('batch_norm', {'input': input}, {'training': True})}: Expected more than "
            f"1 value per channel when training, got input size {input.shape}; use a larger batch"
        )
    _check_channels("batch_norm", input, running | {"weight": weight, "bias": bias})
    if input.ndim < 2:
        return input.clone()
    if not training:
        return _by_running("batch_norm", input, running_mean, running_var, weight, bias, eps)
    return _by_batch(input, running_mean, running_var, weight, bias, momentum, eps)[0]


def _values_per_channel(shape: Shape) -> int:
    return shape[0] * math.prod(shape[2:])


def _by_batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``input`` normalised by its own mean and variance, and these; move running ones."""
    out, mean, var = batch_statistics_norm(input, weight, bias, eps)
    count = _values_per_channel(input.array.shape)
    if count:
        _move(running_mean, running_var, mean.array, var.array, momentum, count)
    return out, mean, var


@takes_out
def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``batch_norm``, and the batch's mean and 1 / standard deviation (empty in evaluation).

    Args:
        running_mean, running_var: as in ``batch_norm``.
    """
    running = {"running_mean": running_mean, "running_var": running_var}
    _check_channels("native_batch_norm", input, running | {"weight": weight, "bias": bias})
    xp, kind = array_namespace(input.array), (input if weight is None else weight).array.dtype
    if not training:
        out = _by_running("native_batch_norm", input, running_mean, running_var, weight, bias, eps)
        return out, wrap(xp.empty(0, kind)), wrap(xp.empty(0, kind))
    out, mean, var = _by_batch(input, running_mean, running_var, weight, bias, momentum, eps)
    rstd = 1 / xp.sqrt(var.array + eps)
    return out, as_dtype(mean, kind), wrap(rstd.astype(kind, copy=False))


def _check_channels(name: str, input: Tensor, vectors: dict[str, Tensor | None]) -> None:
    if input.ndim < 2 and (input.numel() or name == "group_norm"):
        raise ShapeError(
            f"{signature(name, {'input': input}, {})}: Expected at least 2 dimensions for input "
            f"tensor (N, C, *), but received {input.ndim}"
        )
    try:
        demand_floating(input.array)
    except DistgradError as error:
        recover(name, error, {"input": input}, {})
    channels = input.array.shape[1] if input.ndim > 1 else 0
    for key, v in vectors.items():
        if v is not None and v.array.shape != (channels,):
            raise ShapeError(
                f"{signature(name, {'input': input, key: v}, {})}: {key} should contain {channels} "
                f"elements, one for each channel of input, not {describe(v)}"
            )


def _by_running(
    name: str,
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Return ``(input - mean) / sqrt(var + eps) * weight + bias`` with the given statistics."""
    if mean is None or var is None:
        raise ShapeError(
            f"{signature(name, {'input': input}, {})}: Expected running_mean and running_var to be "
            "defined when training=False; give them or use training=True"
        )
    shape, kind = (1, -1) + (1,) * (input.ndim - 2), input.array.dtype
    input, mean, var = widened(input), widened(mean), widened(var)
    scale = (var + eps) ** -0.5 if weight is None else weight * (var + eps) ** -0.5
    shift = -mean * scale if bias is None else bias - mean * scale
    out = input * reshape(scale, shape) + reshape(shift, shape)
    return as_dtype(out, kind)


def _move(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Array, var: Array,
    momentum: float, count: int,
) -> None:  # fmt: skip
    """Move running statistics towards those of ``count`` numbers in place, outside autograd."""
    xp = array_namespace(mean)
    _move_statistics(xp, _raw(running_mean), _raw(running_var), mean, var, momentum, count)
    for moved in (running_mean, running_var):
        if moved is not None:
            shared_of(moved).bump()


@device_form
def _move_statistics(
    xp: Namespace, running_mean: Array | None, running_var: Array | None, mean: Array, var: Array,
    momentum: float, count: int,
) -> None:  # fmt: skip
    if running_mean is not None:
        running_mean[...] = xp.widened(running_mean) * (1 - momentum) + momentum * mean
    if running_var is not None:
        unbiased = var * (count / max(count - 1, 1))
        running_var[...] = xp.widened(running_var) * (1 - momentum) + momentum * unbiased


# ---------------------------------------------------------------------- composites
@where_it_is
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``batch_norm`` of every image on its own.

    Shape:
        input: ``(N, C, *)``, all others: ``(C)``.
    Source:
        Ulyanov, Vedaldi, Lempitsky, "Instance Normalization" (2016).
    """
    running = {"running_mean": running_mean, "running_var": running_var}
    if use_input_stats and math.prod(input.array.shape[2:]) == 1:
        raise ArgumentError(
            f"{signature('instance_norm', {'input': input}, {})}: Expected more than 1 spatial "
            f"element when training, got input size {input.shape}"
        )
    _check_channels("instance_norm", input, running | {"weight": weight, "bias": bias})
    if not use_input_stats:
        return _by_running("instance_norm", input, running_mean, running_var, weight, bias, eps)
    batch, channels, *space = input.array.shape
    count = math.prod(space)
    rows = reshape(input, (1, batch * channels, *space))
    out, mean, var = batch_statistics_norm(rows, None, None, eps)
    means, variances = (a.array.reshape(batch, channels).mean(0) for a in (mean, var))
    _move(running_mean, running_var, means, variances, momentum, count)
    return _affine(reshape(out, (batch, channels, *space)), weight, bias)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return ``x * weight + bias`` with one weight and bias for each channel."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if weight is not None:
        x = x * reshape(weight, shape)
    return x if bias is None else x + reshape(bias, shape)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``input`` with mean 0 and variance 1 in each group of channels of each image.

    Shape:
        input: ``(N, C, *)``, weight and bias: ``(C)``.
    Source:
        Wu, He, "Group Normalization" (2018).
    """
    _check_channels("group_norm", input, {"weight": weight, "bias": bias})
    batch, channels = input.array.shape[:2]
    if num_groups <= 0 or channels % num_groups:
        raise ShapeError(
            f"{signature('group_norm', {'input': input}, {'num_groups': num_groups})}: Expected "
            f"number of channels in input to be divisible by num_groups, but {channels} % "
            f"{num_groups} != 0"
        )
    if (
        _values_per_channel((batch * channels // num_groups, num_groups, *input.array.shape[2:]))
        == 1
    ):
        raise ArgumentError(
            f"{signature('group_norm', {'input': input}, {'num_groups': num_groups})}: Expected "
            f"more than 1 value per channel when training, got input size {input.shape}"
        )
    return _grouped(input, num_groups, weight, bias, eps)


def _grouped(
    input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    batch = input.array.shape[0]
    width = input.numel() // max(batch * num_groups, 1)
    rows = reshape(input, (batch * num_groups, width))
    out = layer_norm(rows, (width,), None, None, eps) if width else rows
    out = _affine(reshape(out, input.array.shape), weight, bias)
    return as_dtype(out, input.array.dtype)


def native_group_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``group_norm``, and the mean and 1 / standard deviation of each image's groups.

    Shape:
        input: ``N * C * HxW`` elements, weight and bias: ``(C)``; mean and rstd: ``(N, group)``.
    """
    demand_floating(input.array)
    if group <= 0 or C % group:
        raise ShapeError(
            f"{signature('native_group_norm', {'input': input}, {'group': group})}: Expected "
            f"number of channels in input to be divisible by num_groups, but {C} % {group} != 0"
        )
    kind = (input if weight is None else weight).array.dtype
    rows = as_dtype(
        reshape(input, (N, group, C // group * HxW)), "float64" if kind == "float64" else "float32"
    )
    middle = mean(rows, -1)
    centred = rows - unsqueeze(middle, -1)
    rstd = (mean(centred * centred, -1) + eps) ** -0.5
    out = _grouped(input, group, weight, bias, eps)
    return out, as_dtype(middle, kind), as_dtype(rstd, kind)


@takes_out
def normalize(
    input: Tensor, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12
) -> Tensor:
    """Return ``input`` divided by its ``p``-norm over ``dim``, or by ``eps`` if that is larger."""
    return input / clamp_min(vector_norm(input, p, dim, True), eps)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Return ``input`` divided by ``(k + alpha * mean of squares over size channels) ** beta``.

    Shape:
        input: ``(N, C, *)``.
    Source:
        Krizhevsky, Sutskever, Hinton, "ImageNet Classification" (2012).
    """
    if input.ndim < 3:
        raise ArgumentError(
            f"{signature('local_response_norm', {'input': input}, {'size': size})}: Expected 3D or "
            f"higher dimensionality input (got {input.ndim} dimensions)"
        )
    if not input.numel():
        return input
    batch, channels = input.array.shape[:2]
    rows = reshape(input, (batch, 1, channels, -1))
    squares = pad(rows * rows, (0, 0, size // 2, (size - 1) // 2))
    mean = reshape(avg_pool2d(squares, (size, 1), 1), input.array.shape)
    return input / (mean * alpha + k) ** beta
