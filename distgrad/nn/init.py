"""Ways to fill a parameter with its first values, from the same random streams as PyTorch's.

Every function changes the tensor in place, unrecorded, and returns it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy

from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.backend.random import Generator, current_generator, fill
from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor, shared_of
from distgrad.typing import Array, Shape

Draw = Callable[[Shape], Array]


def _put(tensor: Tensor, values: Any) -> Tensor:
    """Write an array of the host, or a number, into ``tensor``."""
    array = tensor.array
    if isinstance(values, numpy.ndarray) and type(array) is not numpy.ndarray:
        values = to_device(values, device_of(array))
    array[...] = values
    shared_of(tensor).bump()
    return tensor


def _random(tensor: Tensor, draw: Draw, strided: Draw) -> Tensor:
    """Fill ``tensor`` by ``draw``, or by ``strided`` where its memory is not contiguous."""
    array = tensor.array
    if array.flags.c_contiguous or type(array) is not numpy.ndarray:
        return _put(tensor, draw(array.shape))
    fill(array, strided)
    shared_of(tensor).bump()
    return tensor


# ---------------------------------------------------------------------- plain values
def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill ``tensor`` with ``val``."""
    return _put(tensor, val)


def ones_(tensor: Tensor) -> Tensor:
    """Fill ``tensor`` with 1."""
    return _put(tensor, 1)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill ``tensor`` with 0."""
    return _put(tensor, 0)


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with the identity."""
    if tensor.ndim != 2:
        raise ArgumentError(
            f"eye_({tensor._brief()}): Only tensors with 2 dimensions are supported; "
            f"this one has {tensor.ndim}"
        )
    return _put(tensor, numpy.eye(*tensor.array.shape, dtype=tensor.array.dtype))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fill the kernel of a convolution so that it hands on its input channels unchanged."""
    shape = tensor.array.shape
    if len(shape) not in (3, 4, 5):
        raise ArgumentError(
            f"dirac_({tensor._brief()}): Only tensors with 3, 4, or 5 dimensions are supported; "
            f"this one has {len(shape)}"
        )
    if shape[0] % groups:
        raise ArgumentError(
            f"dirac_({tensor._brief()}, groups={groups}): dim 0 must be divisible by groups"
        )
    values = numpy.zeros(shape, tensor.array.dtype)
    per_group = shape[0] // groups
    centre = tuple(n // 2 for n in shape[2:])
    for group in range(groups):
        for channel in range(min(per_group, shape[1])):
            values[(group * per_group + channel, channel, *centre)] = 1
    return _put(tensor, values)


# ---------------------------------------------------------------------- random values
def uniform_(
    tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill ``tensor`` from the uniform distribution on [a, b)."""
    source, dtype = generator or current_generator(), tensor.array.dtype

    def draw(shape: Shape) -> Array:
        return source.uniform(shape, dtype, a, b)

    return _random(tensor, draw, draw)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill ``tensor`` from the normal distribution."""
    source, dtype = generator or current_generator(), tensor.array.dtype
    return _random(
        tensor,
        lambda shape: source.normal(shape, dtype, mean, std),
        lambda shape: source.normal_pairs(shape, dtype, mean, std),
    )


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` from the normal distribution, cut off outside [a, b]."""
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=2,
        )
    source = generator or current_generator()
    likely = _normal_cdf((b - mean) / std) - _normal_cdf((a - mean) / std) > 0.3
    make = _cut_normals if likely else _rejected_uniforms
    values: Array = make(source, tensor.array.shape, tensor.array.dtype, mean, std, a, b)
    return _put(tensor, values)


def _normal_cdf(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


def _cut_normals(
    source: Generator, shape: Shape, dtype: Any, mean: float, std: float, a: float, b: float
) -> Array:
    """Normals, drawn anew where they fall outside the bounds."""
    low, high = dtype.type(a), dtype.type(b)
    values = source.normal(shape, dtype, mean, std)
    while (outside := (values < low) | (values > high)).any():
        values = numpy.where(outside, source.normal(shape, dtype, mean, std), values)
    return values


def _rejected_uniforms(
    source: Generator, shape: Shape, dtype: Any, mean: float, std: float, a: float, b: float
) -> Array:
    """Uniforms on [a, b], kept with the probability of the density; for rare tails."""
    peak = -0.5 * ((max(a, min(mean, b)) - mean) / std) ** 2
    values = numpy.zeros(shape, dtype)
    pending = numpy.ones(shape, numpy.bool_)
    while pending.any():
        candidates = source.uniform(shape, dtype, a, b)
        values = numpy.where(pending, candidates, values)
        density = ((candidates - mean) / std) ** 2 * -0.5 - peak
        with numpy.errstate(divide="ignore"):  # log(0) is -inf: accepted
            pending &= numpy.log(source.uniform(shape, dtype)) > density
    return values


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    shape = tensor.array.shape
    if len(shape) < 2:
        raise ArgumentError(
            f"init({tensor._brief()}): Fan in and fan out can not be computed for tensor with "
            "fewer than 2 dimensions"
        )
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def _fan(tensor: Tensor, mode: str) -> int:
    mode = mode.lower()
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"Mode {mode} not supported, please use one of ['fan_in', 'fan_out']")
    return _calculate_fan_in_and_fan_out(tensor)[mode == "fan_out"]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the factor by which weights before ``nonlinearity`` should be larger.

    Args:
        nonlinearity: name as in ``nn.functional``.
        param: the negative slope of ``leaky_relu``.

    Example:
        >>> calculate_gain("leaky_relu", 0.2)
        1.3867504905630728
    """
    gains = {"sigmoid": 1, "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 3.0 / 4, "linear": 1}
    if nonlinearity in gains:
        return gains[nonlinearity]
    if nonlinearity.rstrip("123d") in ("conv", "conv_transpose"):
        return 1
    if nonlinearity != "leaky_relu":
        raise ArgumentError(f"Unsupported nonlinearity {nonlinearity}")
    slope = 0.01 if param is None else param
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise ArgumentError(f"negative_slope {param} not a valid number")
    return math.sqrt(2.0 / (1 + slope**2))


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill ``tensor`` uniformly, keeping the variance forwards and backwards alike.

    Source: Glorot & Bengio 2010.
    """
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    bound = math.sqrt(3.0) * (gain * math.sqrt(2.0 / float(fan_in + fan_out)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill ``tensor`` with normals, keeping the variance forwards and backwards alike.

    Source: Glorot & Bengio 2010.
    """
    fan_in, fan_out = _calculate_fan_in_and_fan_out(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / float(fan_in + fan_out)), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` uniformly, for layers followed by a rectifier.

    Args:
        tensor: the weights.
        a: negative slope of the rectifier.
        mode: keep the variance of the forward ("fan_in") or the backward ("fan_out").
        nonlinearity: what follows the layer.
        generator: the stream to draw from.

    Source: He et al. 2015.
    """
    if 0 in tensor.array.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    bound = math.sqrt(3.0) * std
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill ``tensor`` with normals, for layers before a rectifier; see ``kaiming_uniform_``."""
    if 0 in tensor.array.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=2)
        return tensor
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return normal_(tensor, 0.0, std, generator)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """Fill ``tensor`` with orthonormal rows or columns; further dimensions count as columns.

    Source: Saxe et al. 2013.
    """
    array = tensor.array
    if array.ndim < 2:
        raise ArgumentError(
            f"orthogonal_({tensor._brief()}): Only tensors with 2 or more dimensions are supported"
        )
    if array.size == 0:
        return tensor
    source = generator or current_generator()
    flat = source.normal((array.shape[0], array.size // array.shape[0]), array.dtype)
    wide = flat.shape[0] < flat.shape[1]
    q, r = numpy.linalg.qr(flat.T if wide else flat)
    q *= numpy.sign(numpy.diagonal(r))  # makes the distribution uniform
    return _put(tensor, (q.T if wide else q).reshape(array.shape) * array.dtype.type(gain))


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None
) -> Tensor:
    """Fill a matrix with normals, a fraction ``sparsity`` of each column with zeros.

    Source: Martens 2010.
    """
    if tensor.ndim != 2:
        raise ArgumentError(
            f"sparse_({tensor._brief()}): Only tensors with 2 dimensions are supported"
        )
    normal_(tensor, 0, std, generator)
    rows, columns = tensor.array.shape
    zeros = math.ceil(sparsity * rows)
    xp = array_namespace(tensor.array)
    for column in range(columns):
        tensor.array[xp.asarray(current_generator().permutation(rows)[:zeros]), column] = 0
    return tensor


# ---------------------------------------------------------------------- older names
def _older(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` under its name without the underscore, which warns."""
    name = function.__name__[:-1]

    @functools.wraps(function)
    def older(*args: Any, **kwargs: Any) -> Tensor:
        warnings.warn(
            f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, **kwargs)

    older.__name__ = older.__qualname__ = name
    return older


uniform = _older(uniform_)
normal = _older(normal_)
constant = _older(constant_)
eye = _older(eye_)
dirac = _older(dirac_)
xavier_uniform = _older(xavier_uniform_)
xavier_normal = _older(xavier_normal_)
kaiming_uniform = _older(kaiming_uniform_)
kaiming_normal = _older(kaiming_normal_)
orthogonal = _older(orthogonal_)
sparse = _older(sparse_)
