"""Random tensors and dropout, from the generators of ``distgrad.backend.random``.

The numbers are those that PyTorch draws on the CPU from the same seed, on every device.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy

from distgrad.autograd.declare import as_method
from distgrad.autograd.inplace import assign, in_place, refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.traced import Traced, is_traced
from distgrad.backend import random as _random
from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.backend.dtype import as_numpy, from_numpy, iinfo, int64
from distgrad.backend.random import Generator, current_generator, default_generator, use_generator
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DtypeError,
    ShapeError,
    signature,
)
from distgrad.ops.activation import inplace_option
from distgrad.ops.create import DeviceLike, checked, finish, numpy_dtype, placed, sizes_of
from distgrad.ops.elementwise import add, mul
from distgrad.ops.shape import zero
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Shape

__all__ = [
    "Generator", "alpha_dropout", "alpha_dropout_", "bernoulli", "default_generator", "dropout",
    "dropout1d", "dropout2d", "dropout3d", "dropout_", "feature_alpha_dropout",
    "feature_alpha_dropout_", "feature_dropout", "feature_dropout_", "fork_rng", "get_rng_state",
    "initial_seed", "manual_seed", "multinomial", "normal", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "seed", "set_rng_state", "use_generator",
]  # fmt: skip

Draw = Callable[[Shape], Array]


# ---------------------------------------------------------------------- new tensors
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return samples of the uniform distribution on [0, 1).

    Args:
        size: sizes one by one, or as one sequence.
        generator: where the numbers come from; by default the one that ``manual_seed`` seeds.

    Example:
        >>> import distgrad as dg
        >>> _ = dg.manual_seed(0)
        >>> dg.rand(3)
        tensor([0.4963, 0.7682, 0.0885])
    """
    array = (generator or current_generator()).uniform(*_form("rand", size, dtype))
    return finish(array, placed(device), requires_grad, "rand")


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return samples of the normal distribution with mean 0 and variance 1.

    Example:
        >>> import distgrad as dg
        >>> _ = dg.manual_seed(0)
        >>> dg.randn(3)
        tensor([ 1.5410, -0.2934, -2.1788])
    """
    array = (generator or current_generator()).normal(*_form("randn", size, dtype))
    return finish(array, placed(device), requires_grad, "randn")


def _form(name: str, size: tuple[Any, ...], dtype: Any) -> tuple[Shape, Any]:
    if not size:
        raise ArgumentTypeError(f"{name}(): missing 1 required positional argument: 'size'")
    kind = numpy_dtype(dtype, name)
    if kind.kind not in "fV":
        raise DtypeError(f"{name}(dtype={kind}): not implemented for {kind}; use a float dtype")
    return sizes_of(name, size), kind


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return integers drawn from [``low``, ``high``): ``randint(high, size)`` starts at 0.

    Args:
        dtype: int64 by default; a float dtype holds the integers as well.
    """
    if size is None or high is None:
        if isinstance(high, Sequence):
            low, high, size = 0, low, high
        elif high is None:
            low, high = 0, low
    if size is None:
        raise ArgumentTypeError("randint(): missing 1 required positional argument: 'size'")
    kind = numpy_dtype(int64 if dtype is None else dtype, "randint")
    low, high = _bounds("randint", low, high, kind)
    shape = sizes_of("randint", (size,))
    array = (generator or current_generator()).integers(shape, kind, low, high)
    return finish(array, placed(device), requires_grad, "randint")


def _bounds(name: str, low: Any, high: Any, kind: Any) -> tuple[int, int]:
    """Return the range of integers to draw from, which ``kind`` must hold."""
    for word, value in (("low", low), ("high", high)):
        if not hasattr(value, "__index__"):
            raise ArgumentTypeError(
                f"{name}({word}={value!r}): argument '{word}' must be int, "
                f"not {type(value).__name__}"
            )
    low, high = int(low), int(high)
    where = f"{name}(low={low}, high={high}, dtype={kind})"
    if low >= high:
        raise ShapeError(
            f"{where}: random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    limits = (0, 1) if kind.kind == "b" else None
    if kind.kind in "iu":
        limits = (iinfo(from_numpy(kind)).min, iinfo(from_numpy(kind)).max)
    if limits and not limits[0] <= low < high <= limits[1] + 1:
        raise ShapeError(f"{where}: out of bounds for {kind}, which holds {limits[0]}…{limits[1]}")
    return low, high


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return the integers from 0 to ``n - 1`` in random order.

    Example:
        >>> import distgrad as dg
        >>> _ = dg.manual_seed(0)
        >>> dg.randperm(4)
        tensor([0, 1, 3, 2])
    """
    (count,) = sizes_of("randperm", (n,))
    kind = numpy_dtype(int64 if dtype is None else dtype, "randperm")
    array = (generator or current_generator()).permutation(count).astype(kind, copy=False)
    return finish(array, placed(device), requires_grad, "randperm")


def rand_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None,
    device: DeviceLike = None, requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return uniform samples on [0, 1) in the shape, dtype and on the device of ``input``."""
    kind, place = _alike("rand_like", input, dtype, device)
    return rand(input.array.shape, generator=generator, dtype=kind, device=place,
                requires_grad=requires_grad)  # fmt: skip


def randn_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None,
    device: DeviceLike = None, requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return normal samples in the shape, dtype and on the device of ``input``."""
    kind, place = _alike("randn_like", input, dtype, device)
    return randn(input.array.shape, generator=generator, dtype=kind, device=place,
                 requires_grad=requires_grad)  # fmt: skip


def randint_like(
    input: Tensor, low: int, high: int | None = None, *, generator: Generator | None = None,
    dtype: Any = None, device: DeviceLike = None, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return integers from [``low``, ``high``) in the shape, dtype and on the device of ``input``.

    ``randint_like(input, high)`` starts at 0.
    """
    kind, place = _alike("randint_like", input, dtype, device)
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, input.array.shape, generator=generator, dtype=kind, device=place,
                   requires_grad=requires_grad)  # fmt: skip


def _alike(name: str, input: Tensor, dtype: Any, device: DeviceLike) -> tuple[Any, Any]:
    array = checked(name, input).array
    return array.dtype if dtype is None else dtype, device_of(array) if device is None else device


# ---------------------------------------------------------------------- samples of distributions
def normal(
    mean: Tensor | float,
    std: Tensor | float = 1.0,
    size: Sequence[int] | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return normal samples, each with the mean and standard deviation at its place.

    Args:
        mean: a tensor or a number.
        std: a tensor or a number; tensors broadcast.
        size: sizes of the result, where both are numbers.
    """
    source = generator or current_generator()
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    _check_std(std)
    if not tensors:
        if size is None:
            raise ArgumentTypeError(f"normal(mean={mean}, std={std}): missing argument 'size'")
        shape, kind = _form("normal", (size,), dtype)
        array = source.normal(shape, kind, float(mean), float(std))
        return finish(array, placed(device), requires_grad, "normal")
    xp, place = array_namespace(tensors[0].array), device_of(tensors[0].array)
    shape = xp.broadcast_shapes(*(t.array.shape for t in tensors))
    out = to_device(source.normal(shape, tensors[0].array.dtype), place)
    if isinstance(out, Traced) or is_traced(tensors):
        return add(mul(wrap(out), std), mean)
    out *= std.array if isinstance(std, Tensor) else std
    out += mean.array if isinstance(mean, Tensor) else mean
    return wrap(out)


def _check_std(std: Tensor | float) -> None:
    if isinstance(std, Tensor):
        if not isinstance(std.array, Traced) and not bool((std.array >= 0).all()):
            raise ShapeError(
                f"normal(std: {std._brief()}): normal expects all elements of std >= 0.0"
            )
    elif not std >= 0:
        raise ShapeError(f"normal(std={std}): normal expects std >= 0.0, but found std {std}")


def bernoulli(
    input: Tensor, p: float | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Return 1 with the probability at each place of ``input``, else 0, in its dtype.

    Args:
        p: one probability for all places, instead of those in ``input``.
    """
    array: Any = checked("bernoulli", input).array
    source = generator or current_generator()
    if p is not None:
        drawn = source.bernoulli(array.shape, _probability("bernoulli", input, p))
    else:
        if array.dtype.kind not in "fV":
            raise DtypeError(
                f"bernoulli({input._brief()}): not implemented for {array.dtype}; "
                "probabilities are floats, or pass p"
            )
        if isinstance(array, Traced):
            sampled: Any = source.bernoulli_of(array)  # type: ignore[arg-type]
            return wrap(sampled.astype(array.dtype))
        if not bool(((array >= 0) & (array <= 1)).all()):
            raise ShapeError(
                f"bernoulli({input._brief()}): Expected p_in >= 0 && p_in <= 1 for every element"
            )
        drawn = source.bernoulli_of(array_namespace(array).to_numpy(array))
    return wrap(to_device(drawn.astype(array.dtype), device_of(array)))


def _probability(name: str, input: Tensor, p: float) -> float:
    if not 0 <= p <= 1:
        raise ShapeError(
            f"{name}({input._brief()}): {name} expects p to be in [0, 1], but got p={p}"
        )
    return float(p)


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Return indices drawn with probabilities proportional to each row of ``input``.

    Shape:
        input: ``(C,)`` or ``(N, C)``; result: ``(num_samples,)`` or ``(N, num_samples)``.
    Args:
        replacement: an index may be drawn again.
    """
    weights = _checked_weights(input, num_samples, replacement)
    source = generator or current_generator()
    if not replacement or num_samples == 1:
        # The least of exponential times with these rates is a sample; so are the next ones.
        order = weights / source.exponential(weights.shape, weights.dtype)
        if num_samples == 1:
            found = numpy.argmax(order, -1, keepdims=True)
        else:
            found = numpy.argsort(-order, -1, kind="stable")[..., :num_samples]
    else:
        found = _with_replacement(source, weights, num_samples)
    return wrap(to_device(found.astype(numpy.int64), device_of(input.array)))


def _with_replacement(source: Generator, weights: Array, num_samples: int) -> Array:
    rows = weights.reshape(-1, weights.shape[-1])
    sums = numpy.cumsum(rows, -1)
    sums /= sums[:, -1:]
    sums[:, -1] = 1
    drawn = source.uniform((len(rows), num_samples), numpy.dtype("float64"))
    found = [numpy.searchsorted(s, u) for s, u in zip(sums, drawn, strict=True)]
    return numpy.array(found, numpy.int64).reshape(*weights.shape[:-1], num_samples)


def _checked_weights(input: Tensor, num_samples: int, replacement: bool) -> Array:
    array = checked("multinomial", input).array

    def refuse(what: str, kind: type[Exception] = ShapeError) -> NoReturn:
        options = {"num_samples": num_samples, "replacement": replacement}
        raise kind(f"{signature('multinomial', {'input': input}, options)}: {what}")

    if array.ndim not in (1, 2):
        refuse("prob_dist must be 1 or 2 dim")
    if array.dtype.kind not in "fV":
        refuse(f"only supports floating-point dtypes, got {array.dtype}; use .float()", DtypeError)
    if num_samples <= 0:
        refuse(f"cannot sample n_sample <= 0 samples, got {num_samples}")
    if not replacement and num_samples > array.shape[-1]:
        refuse(
            f"cannot sample n_sample > prob_dist.size(-1) samples without replacement: "
            f"{num_samples} of {array.shape[-1]}"
        )
    weights = array_namespace(array).to_numpy(array)
    if not (numpy.isfinite(weights) & (weights >= 0)).all():
        refuse("probability tensor contains either `inf`, `nan` or element < 0")
    if not (weights.sum(-1) > 0).all():
        refuse("invalid multinomial distribution (sum of probabilities <= 0)")
    return weights


# ---------------------------------------------------------------------- in place
def _fill(self: Tensor, name: str, draw: Draw, strided: Draw | None = None) -> Tensor:
    """Write ``draw(shape)`` into a tensor, in the order of its memory.

    Args:
        strided: the distribution to draw from where the memory is not contiguous.
    """
    refuse_leaf(self, name)
    array = self.array
    make = draw if strided is None or array.flags.c_contiguous else strided
    if isinstance(array, Traced):
        drawn = make(array.shape)
    elif type(array) is not numpy.ndarray:
        drawn = to_device(make(array.shape), device_of(array))
    elif mode.grad and self.requires_grad:
        drawn = numpy.empty_like(array)
        _random.fill(drawn, make)
    else:
        _random.fill(array, make)
        shared_of(self).bump()
        return self
    new = wrap(drawn)
    # The old values have a gradient, zero: the tensor goes on to require one.
    recorded = mode.grad and self.requires_grad
    return assign(self, add(zero(self), new) if recorded else new, name)


def _float_kind(self: Tensor, name: str) -> Any:
    kind = self.array.dtype
    if kind.kind not in "fV":
        raise DtypeError(f"{name}({self._brief()}): not implemented for {kind}; use .float()")
    return kind


def uniform_(
    self: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with samples of the uniform distribution on [``from_``, ``to``).

    Differs from PyTorch: the first bound is called ``from`` there, which Python reserves.
    """
    kind, source = _float_kind(self, "uniform_"), generator or current_generator()
    if not from_ <= to:
        raise ShapeError(
            f"uniform_({self._brief()}): uniform_ expects to return a [from, to) range, "
            f"but found from={from_} > to={to}"
        )
    return _fill(self, "uniform_", lambda shape: source.uniform(shape, kind, from_, to))


def normal_(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with samples of the normal distribution."""
    kind, source = _float_kind(self, "normal_"), generator or current_generator()
    _check_std(std)
    return _fill(
        self,
        "normal_",
        lambda shape: source.normal(shape, kind, mean, std),
        lambda shape: source.normal_pairs(shape, kind, mean, std),
    )


def log_normal_(
    self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with exponentials of normal samples."""
    kind, source = _float_kind(self, "log_normal_"), generator or current_generator()
    _check_std(std)
    wide = numpy.dtype("float64")

    def draw(shape: Shape) -> Array:
        return numpy.exp(source.normal_pairs(shape, wide, mean, std)).astype(kind)

    return _fill(self, "log_normal_", draw)


def bernoulli_(
    self: Tensor, p: Tensor | float = 0.5, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with 1 with probability ``p`` (a number or one per place), else 0."""
    kind, source = self.array.dtype, generator or current_generator()
    if isinstance(p, Tensor):
        chances = numpy.broadcast_to(array_namespace(p.array).to_numpy(p.array), self.array.shape)
        if not ((chances >= 0) & (chances <= 1)).all():
            raise ShapeError(
                f"bernoulli_({self._brief()}, p: {p._brief()}): Expected 0 <= p <= 1 everywhere"
            )
        return _fill(self, "bernoulli_", lambda shape: source.bernoulli_of(chances).astype(kind))
    chance = _probability("bernoulli_", self, p)
    return _fill(self, "bernoulli_", lambda shape: source.bernoulli(shape, chance).astype(kind))


def random_(
    self: Tensor, from_: int = 0, to: int | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with integers from [``from_``, ``to``); ``random_(to)`` starts at 0.

    Without bounds: all that its dtype holds from 0 on, for floats all exact integers.
    """
    kind, source = self.array.dtype, generator or current_generator()
    if from_ == 0 and to is None:
        return _fill(self, "random_", lambda shape: source.integers_of(shape, kind))
    low, high = (0, from_) if to is None else (from_, to)
    low, high = _bounds("random_", low, high, kind)
    return _fill(self, "random_", lambda shape: source.integers(shape, kind, low, high))


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill this tensor with samples of the exponential distribution with rate ``lambd``."""
    kind, source = _float_kind(self, "exponential_"), generator or current_generator()
    if not lambd > 0:
        raise ShapeError(
            f"exponential_({self._brief()}): exponential_ expects lambda > 0.0, "
            f"but found lambda={lambd}"
        )
    return _fill(self, "exponential_", lambda shape: source.exponential(shape, kind, lambd))


def cauchy_(
    self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with samples of the Cauchy distribution."""
    kind, source = _float_kind(self, "cauchy_"), generator or current_generator()
    if not sigma > 0:
        raise ShapeError(
            f"cauchy_({self._brief()}): cauchy_ expects sigma > 0.0, but found sigma={sigma}"
        )

    def draw(shape: Shape) -> Array:
        u = source.uniform(shape, numpy.dtype("float64"))
        return (median + sigma * numpy.tan(numpy.pi * (u - 0.5))).astype(kind)

    return _fill(self, "cauchy_", draw)


def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Fill this tensor with numbers of trials up to the first success of probability ``p``."""
    kind, source = self.array.dtype, generator or current_generator()
    if not 0 < p < 1:
        raise ShapeError(
            f"geometric_({self._brief()}): geometric_ expects p to be in (0, 1), but got p={p}"
        )

    def draw(shape: Shape) -> Array:
        u = source.uniform(shape, numpy.dtype("float64"))
        return numpy.ceil(numpy.log(u) / numpy.log1p(-p)).astype(kind)

    return _fill(self, "geometric_", draw)


# ---------------------------------------------------------------------- dropout
@inplace_option
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Return ``input`` with elements zeroed at random, the others scaled up to keep the mean.

    Args:
        p: probability of an element to be zeroed.
        training: False returns ``input`` itself.
    Source:
        Srivastava et al., "Dropout" (2014).
    """
    _check_chance("dropout", input, p)
    if not training or p == 0:
        return input
    return mul(input, _noise(input, p, input.array.shape))


def _check_chance(name: str, input: Tensor, p: float) -> None:
    if not 0 <= p <= 1:
        raise ArgumentError(
            f"{signature(name, {'input': input}, {'p': p})}: dropout probability has to be "
            f"between 0 and 1, but got {p}"
        )
    if input.array.dtype.kind not in "fcV":
        raise DtypeError(
            f"{name}({input._brief()}): the scaled result cannot be {input.array.dtype}; "
            "convert the input with .float() first"
        )


def _noise(input: Tensor, p: float, shape: Shape) -> Tensor:
    """Return 0 with probability ``p``, else 1 / (1 - p)."""
    kept = current_generator().bernoulli(shape, 1 - p).astype(input.array.dtype)
    if p < 1:
        kept *= 1 / (1 - p)
    return wrap(to_device(kept, device_of(input.array)))


@inplace_option
def feature_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Return ``input``, ``(N, C, *)``, with whole channels zeroed at random, the others scaled.

    Source:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks" (2015).
    """
    _check_chance("feature_dropout", input, p)
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
    _check_chance(name, input, p)
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
    _check_chance("alpha_dropout", input, p)
    if not training or p == 0:
        return input
    return _alpha_dropped(input, p, input.array.shape)


@inplace_option
def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Return ``alpha_dropout`` of whole channels of ``input``, ``(N, C, *)``."""
    _check_chance("feature_alpha_dropout", input, p)
    if not training or p == 0:
        return input
    return _alpha_dropped(input, p, _channels("feature_alpha_dropout", input, 2))


_ALPHA = 1.7580993408473766  # -lim selu(x) for x to minus infinity


def _alpha_dropped(input: Tensor, p: float, shape: Shape) -> Tensor:
    if p == 1:
        return mul(input, _noise(input, p, shape))
    place = device_of(input.array)
    kept = current_generator().bernoulli(shape, 1 - p).astype(input.array.dtype)
    a = 1 / ((_ALPHA * _ALPHA * p + 1) * (1 - p)) ** 0.5
    shift = (kept - 1) * (_ALPHA * a)
    shift += _ALPHA * a * p
    kept *= a
    return add(mul(input, wrap(to_device(kept, place))), wrap(to_device(shift, place)))


# ---------------------------------------------------------------------- seeds and states
def manual_seed(seed: int) -> Generator:
    """Return the default generator, started anew from ``seed``."""
    return _random.manual_seed(seed)


def seed() -> int:
    """Return a new seed from the operating system, from which the default generator starts."""
    return _random.seed()


def initial_seed() -> int:
    """Return the seed from which the default generator started."""
    return _random.initial_seed()


def get_rng_state() -> Tensor:
    """Return the state of the default generator: 5056 bytes in PyTorch's layout."""
    return wrap(_random.get_rng_state())


def set_rng_state(new_state: Tensor) -> None:
    """Continue the default generator from a state that ``get_rng_state`` returned."""
    if not isinstance(new_state, Tensor) or new_state.array.dtype != as_numpy("uint8"):
        raise ArgumentTypeError(
            f"{signature('set_rng_state', {'new_state': new_state}, {})}: RNG state must be a "
            "tensor of uint8; pass what get_rng_state() returned"
        )
    _random.set_rng_state(array_namespace(new_state.array).to_numpy(new_state.array))


@contextlib.contextmanager
def fork_rng(devices: Any = None, enabled: bool = True) -> Iterator[None]:
    """Give the default generator its state back at the end of a ``with`` block.

    Args:
        devices: has no effect: there is one generator for all devices.
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    state = _random.get_rng_state()
    try:
        yield
    finally:
        _random.set_rng_state(state)


dropout_ = in_place(dropout, "dropout_")
feature_dropout_ = in_place(feature_dropout, "feature_dropout_")
alpha_dropout_ = in_place(alpha_dropout, "alpha_dropout_")
feature_alpha_dropout_ = in_place(feature_alpha_dropout, "feature_alpha_dropout_")
for _function in (
    bernoulli, bernoulli_, cauchy_, exponential_, geometric_, log_normal_, multinomial, normal_,
    random_, uniform_,
):  # fmt: skip
    as_method(_function)
del _function
