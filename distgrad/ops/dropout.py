"""Dropout: elements or whole channels set to zero (or to a limit) at random."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy

from distgrad.autograd.declare import op
from distgrad.autograd.inplace import in_place
from distgrad.autograd.samples import case, real
from distgrad.autograd.traced import Traced, innermost
from distgrad.backend import philox
from distgrad.backend.device import array_namespace, device_of, to_device, where_it_is
from distgrad.backend.forms import device_form
from distgrad.backend.random import current_generator
from distgrad.errors import ArgumentError, DtypeError, ShapeError, signature
from distgrad.ops.activation import inplace_option
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.elementwise import add, mul
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "alpha_dropout", "alpha_dropout_", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "feature_dropout",
    "feature_dropout_", "native_dropout", "native_dropout_backward",
]  # fmt: skip


@inplace_option
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return ``input`` with elements zeroed at random, the others scaled up to keep the mean.

    Args:
        p: probability of an element to be zeroed.
        training: False returns ``input`` itself.
    Source:
        Srivastava et al., "Dropout" (2014).
    """
    _check_chance("dropout", input, p, training)
    if not training or p == 0:
        return input
    draw_from = array_namespace(input.array).kernels.get("draw_from")
    if draw_from is None or isinstance(input.array, Traced):
        return mul(input, _noise(input, p, input.array.shape))
    return keyed_dropout(input, p, draw_from(current_generator()))


@op(
    "linear",
    samples=[case(real(3, 4), p=0.4, draw=(0, 2**62 + 5, 0)), case(real(), p=0.5, draw=(0, -7, 3)),
             case(real(5, 5), p=1.0, draw=(0, 1, 0))],
    method=False,
    node="NativeDropoutBackward0",
    reference="none",
    d_input=lambda F, g, p, draw: F.keyed_dropout(g, p, draw),
)  # fmt: skip
def keyed_dropout(xp: Namespace, input: Tensor, p: float, draw: Any) -> Array:
    """Return ``dropout`` by the words of Philox: backward makes them anew, so no mask is kept.

    Args:
        draw: a key in a device's memory, which a graph draws by; or 0, and a key; and the number of
            the draw.
    """
    return _dropout(xp, input, p, draw)


@device_form
def _dropout(xp: Namespace, x: Array, p: float, draw: Any) -> Array:
    kept = philox.words(math.prod(x.shape), draw[1] % 2**64, draw[2]) >= p * 2.0**32
    scale = x.dtype.type(1 / (1 - p) if p < 1 else 0)
    return xp.where(xp.asarray(kept.reshape(x.shape)), x * scale, x.dtype.type(0))


def _check_chance(name: str, input: Tensor, p: float, training: bool) -> None:
    if not 0 <= p <= 1:
        raise ArgumentError(
            f"{signature(name, {'input': input}, {'p': p})}: dropout probability has to be "
            f"between 0 and 1, but got {p}"
        )
    if training and p > 0:
        refuse_kinds(name, "c", input)
    if training and p > 0 and input.array.dtype.kind not in "fV":
        raise DtypeError(
            f"{name}({input._brief()}): the scaled result cannot be {input.array.dtype}; "
            "convert the input with .float() first"
        )


@where_it_is
def _noise(input: Tensor, p: float, shape: Shape) -> Tensor:
    """Return 0 with probability ``p``, else 1 / (1 - p)."""
    kept = _drawn(input, p, shape).astype(input.array.dtype)
    if p < 1:
        kept *= input.array.dtype.type(1 / (1 - p))
    return wrap(to_device(kept, device_of(input.array)))


def _drawn(input: Tensor, p: float, shape: Shape) -> Array:
    """Return True with probability 1 - ``p``, drawn in the order in which ``input`` lies in memory.

    So PyTorch draws for elements; for whole channels (another ``shape``) in the order of indices.
    """
    source = current_generator().on(device_of(innermost(input.array)))
    strides = getattr(input.array, "strides", None)
    order = list(range(len(shape)))
    if strides is not None and shape == input.array.shape:  # a traced array has no strides
        own = [s for s, n in zip(strides, shape, strict=True) if n > 1]
        if all(s > 0 for s in own):
            order.sort(key=lambda d: -strides[d])
    drawn = source.bernoulli(tuple(shape[d] for d in order), 1 - p)
    if order == sorted(order):
        return drawn
    return drawn.transpose([order.index(d) for d in range(len(order))])


@inplace_option
def feature_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Return ``input``, ``(N, C, *)``, with whole channels zeroed at random, the others scaled.

    Source:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks" (2015).
    """
    _check_chance("feature_dropout", input, p, training)
    if not training or p == 0:
        return input
    return mul(input, _noise(input, p, _channels("feature_dropout", input, 2)))


def _channels(name: str, input: Tensor, lead: int) -> Shape:
    shape: Shape = input.array.shape
    if len(shape) < lead:
        raise ShapeError(
            f"{name}({input._brief()}): Feature dropout requires at least 2 dimensions in the input"
        )
    return shape[:lead] + (1,) * (len(shape) - lead)


@inplace_option
def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Return ``input``, ``(N, C, L)`` or ``(C, L)``, with whole channels zeroed at random."""
    ndim = input.array.ndim
    if ndim not in (2, 3):
        raise ShapeError(
            f"dropout1d({input._brief()}): Expected 2D or 3D input, but received a {ndim}D input; "
            "it is for channels with 1 spatial dimension"
        )
    return _drop_channels("dropout1d", input, p, training, ndim - 1)


@inplace_option
def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Return ``input``, ``(N, C, H, W)``, with whole channels zeroed at random.

    A 3-D input is taken as ``(N, C, L)``, as in PyTorch.
    """
    ndim = input.array.ndim
    if ndim == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
            "behavior is desired - input is interpreted as shape (N, C, L); use dropout1d instead",
            stacklevel=3,
        )
    elif ndim != 4:
        _warn_rank("dropout2d", ndim)
    return _drop_channels("dropout2d", input, p, training, 2)


@inplace_option
def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Return ``input``, ``(N, C, D, H, W)`` or ``(C, D, H, W)``, with whole channels zeroed."""
    ndim = input.array.ndim
    if ndim not in (4, 5):
        _warn_rank("dropout3d", ndim)
    return _drop_channels("dropout3d", input, p, training, 2 if ndim == 5 else 1)


def _warn_rank(name: str, ndim: int) -> None:
    warnings.warn(
        f"{name}: Received a {ndim}-D input to {name}, which is deprecated and will result in an "
        "error in a future release; use dropout instead",
        stacklevel=4,
    )


def _drop_channels(name: str, input: Tensor, p: float, training: bool, lead: int) -> Tensor:
    _check_chance(name, input, p, training)
    if not training or p == 0:
        return input
    return mul(input, _noise(input, p, _channels(name, input, lead)))


@inplace_option
def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Return ``input`` with elements set to SELU's lower limit at random, mean and variance kept.

    Source:
        Klambauer et al., "Self-Normalizing Neural Networks" (2017).
    """
    _check_chance("alpha_dropout", input, p, training)
    if not training or p == 0:
        return input
    return _alpha_dropped(input, p, input.array.shape)


@inplace_option
def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Return ``alpha_dropout`` of whole channels of ``input``, ``(N, C, *)``."""
    _check_chance("feature_alpha_dropout", input, p, training)
    if not training or p == 0:
        return input
    return _alpha_dropped(input, p, _channels("feature_alpha_dropout", input, 2))


_ALPHA = 1.7580993408473766  # -lim selu(x) for x to minus infinity


@where_it_is
def _alpha_dropped(input: Tensor, p: float, shape: Shape) -> Tensor:
    if p == 1:
        return mul(input, _noise(input, p, shape))
    place = device_of(input.array)
    kept = _drawn(input, p, shape).astype(input.array.dtype)
    a = 1 / ((_ALPHA * _ALPHA * p + 1) * (1 - p)) ** 0.5
    kind = input.array.dtype.type
    shift = (kept - kind(1)) * kind(_ALPHA * a)
    shift += kind(_ALPHA * a * p)
    kept *= kind(a)
    return add(mul(input, wrap(to_device(kept, place))), wrap(to_device(shift, place)))


def native_dropout(input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """Return ``input`` after dropout, and the mask: True where an element was kept."""
    array = input.array
    if not train:
        return mul(input, 1), wrap(to_device(numpy.ones(array.shape, bool), device_of(array)))
    _check_chance("native_dropout", input, p, True)
    place = device_of(array)
    mask = wrap(to_device(current_generator().on(place).bernoulli(array.shape, 1 - p), place))
    return native_dropout_backward(input, mask, 1 / (1 - p) if p < 1 else 0.0), mask


def native_dropout_backward(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return ``grad_output * mask * scale``."""
    return mul(mul(grad_output, mask), scale)


dropout_ = in_place(dropout, "dropout_")
feature_dropout_ = in_place(feature_dropout, "feature_dropout_")
alpha_dropout_ = in_place(alpha_dropout, "alpha_dropout_")
feature_alpha_dropout_ = in_place(feature_alpha_dropout, "feature_alpha_dropout_")
