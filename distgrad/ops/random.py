"""Random tensors, from the generators of ``distgrad.backend.random``.

The numbers are those that PyTorch draws on the CPU from the same seed, on every device.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy

from distgrad.autograd.declare import as_method, cast
from distgrad.autograd.dual import DualArray
from distgrad.autograd.inplace import assign, refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.outputs import into, takes_out
from distgrad.autograd.traced import Traced, innermost
from distgrad.backend import random as _random
from distgrad.backend import rejection
from distgrad.backend.device import array_namespace, device_of, to_device, where_it_is, working_on
from distgrad.backend.dtype import as_numpy, from_numpy, iinfo, int64
from distgrad.backend.random import Generator, current_generator, default_generator, use_generator
from distgrad.errors import (
    ArgumentTypeError,
    DtypeError,
    DtypeNotImplemented,
    ShapeError,
    signature,
)
from distgrad.ops.create import (
    DeviceLike,
    checked,
    empty_like,
    factory,
    finish,
    numpy_dtype,
    placed,
    sizes_of,
)
from distgrad.ops.elementwise import add, mul
from distgrad.ops.shape import zero
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Shape

__all__ = [
    "Generator", "bernoulli", "default_generator", "fork_rng", "get_rng_state", "initial_seed",
    "manual_seed", "multinomial", "normal", "poisson", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "seed", "set_rng_state", "use_generator",
]  # fmt: skip

Draw = Callable[[Shape], Array]


# ---------------------------------------------------------------------- new tensors
@factory
def rand(
    *sizes: Any,
    size: Sequence[int] | None = None,
    generator: Generator | None = None,
    dtype: Any = None,
    device: DeviceLike = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return samples of the uniform distribution on [0, 1).

    Args:
        sizes: one by one, or as one sequence (also by the name ``size``).
        generator: where the numbers come from; by default the one that ``manual_seed`` seeds.

    Example:
        >>> import distgrad as dg
        >>> _ = dg.manual_seed(0)
        >>> dg.rand(3)
        tensor([0.4963, 0.7682, 0.0885])
    """
    place = placed(device)
    array = (generator or current_generator()).on(place).uniform(*_form("rand", sizes, size, dtype))
    return finish(array, place, requires_grad, "rand")


@factory
def randn(
    *sizes: Any,
    size: Sequence[int] | None = None,
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
    place = placed(device)
    array = (generator or current_generator()).on(place).normal(*_form("randn", sizes, size, dtype))
    return finish(array, place, requires_grad, "randn")


def _form(
    name: str, sizes: tuple[Any, ...], size: Sequence[int] | None, dtype: Any
) -> tuple[Shape, Any]:
    """Return shape and dtype of the samples."""
    if not sizes and size is None:
        raise ArgumentTypeError(f"{name}(): missing 1 required positional argument: 'size'")
    kind = numpy_dtype(dtype, name)
    if kind.kind in "biu":
        raise DtypeNotImplemented(
            f"{name}(dtype={kind}): not implemented for {kind}; use a float dtype"
        )
    return sizes_of(name, sizes if size is None else (size,)), kind


@factory
def randint(
    low: Any = None,
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
    if isinstance(high, Sequence):
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    low = 0 if low is None else low
    if size is None:
        raise ArgumentTypeError("randint(): missing 1 required positional argument: 'size'")
    kind = numpy_dtype(int64 if dtype is None else dtype, "randint")
    low, high = _bounds("randint", low, high, kind)
    shape = sizes_of("randint", (size,))
    place = placed(device)
    array = (generator or current_generator()).on(place).integers(shape, kind, low, high)
    return finish(array, place, requires_grad, "randint")


def _bounds(name: str, low: Any, high: Any, kind: Any) -> tuple[int, int]:
    """Return the range of integers to draw from, which ``kind`` must hold."""
    for word, value in (("low", low), ("high", high)):
        if not hasattr(value, "__index__") or (isinstance(value, Tensor) and value.is_complex()):
            raise ArgumentTypeError(
                f"{name}({word}={value!r}): argument '{word}' must be int, "
                f"not {type(value).__name__}"
            )
    low, high = operator.index(low), operator.index(high)
    if kind.kind == "c":
        raise DtypeError(f"{name}(): handles only integral, floating-point and boolean types")
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


@factory
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
    if kind.kind in "bc":
        raise DtypeNotImplemented(f"randperm(): not implemented for {kind}; use int64")
    if kind.kind in "iu" and n > iinfo(from_numpy(kind)).max + 1:
        raise DtypeError(f"randperm(n={n}): value cannot be converted to {kind} without overflow")
    place = placed(device)
    array = (generator or current_generator()).on(place).permutation(count)
    with working_on(array):
        return finish(array.astype(kind, copy=False), place, requires_grad, "randperm")


def rand_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None, layout: Any = None,
    device: DeviceLike = None, pin_memory: bool = False, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return uniform samples on [0, 1) in the shape, dtype and on the device of ``input``."""
    kind, place = _alike("rand_like", input, dtype, device)
    if _keeps_strides(input, memory_format):
        made = empty_like(input, dtype=kind, device=place, pin_memory=pin_memory,
                          memory_format=memory_format)  # fmt: skip
        return uniform_(made, generator=generator).requires_grad_(requires_grad)
    return rand(input.array.shape, generator=generator, dtype=kind, device=place,
                pin_memory=pin_memory, requires_grad=requires_grad)  # fmt: skip


def randn_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None, layout: Any = None,
    device: DeviceLike = None, pin_memory: bool = False, requires_grad: bool = False,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return normal samples in the shape, dtype and on the device of ``input``."""
    kind, place = _alike("randn_like", input, dtype, device)
    if _keeps_strides(input, memory_format):
        made = empty_like(input, dtype=kind, device=place, pin_memory=pin_memory,
                          memory_format=memory_format)  # fmt: skip
        return normal_(made, generator=generator).requires_grad_(requires_grad)
    return randn(input.array.shape, generator=generator, dtype=kind, device=place,
                 pin_memory=pin_memory, requires_grad=requires_grad)  # fmt: skip


def randint_like(
    input: Tensor, low: int, high: int | None = None, *, generator: Generator | None = None,
    dtype: Any = None, layout: Any = None, device: DeviceLike = None, pin_memory: bool = False,
    requires_grad: bool = False, memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Return integers from [``low``, ``high``) in the shape, dtype and on the device of ``input``.

    ``randint_like(input, high)`` starts at 0.
    """
    kind, place = _alike("randint_like", input, dtype, device)
    low, high = (0, low) if high is None else (low, high)
    if _keeps_strides(input, memory_format):
        made = empty_like(input, dtype=kind, device=place, pin_memory=pin_memory,
                          memory_format=memory_format)  # fmt: skip
        return random_(made, low, high, generator=generator).requires_grad_(requires_grad)
    return randint(low, high, input.array.shape, generator=generator, dtype=kind, device=place,
                   pin_memory=pin_memory, requires_grad=requires_grad)  # fmt: skip


def _keeps_strides(input: Tensor, memory_format: Any) -> bool:
    """Return whether to fill memory laid out like that of ``input``, in its order."""
    if isinstance(input.array, Traced):
        return False
    return memory_format is not None or not input.array.flags.c_contiguous


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
    layout: Any = None,
    device: DeviceLike = None,
    pin_memory: bool = False,
    requires_grad: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Return normal samples, each with the mean and standard deviation at its place.

    Args:
        mean: a tensor or a number.
        std: a tensor or a number; tensors broadcast.
        size: sizes of the result, where both are numbers.
    Gradient: zero.
    """
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        if out is not None:
            written: Tensor = into(out, "normal", _normal_around, (mean, std, generator), {})
            return written
        return _normal_around(mean, std, generator)
    if size is None:
        raise ArgumentTypeError(f"normal(mean={mean}, std={std}): missing argument 'size'")
    return _normal_of_size(
        mean, std, size, generator=generator, dtype=dtype, layout=layout, device=device,
        pin_memory=pin_memory, requires_grad=requires_grad, out=out,
    )  # fmt: skip


@factory
def _normal_of_size(
    mean: float, std: float, size: Sequence[int], *, generator: Generator | None, dtype: Any,
    device: DeviceLike, requires_grad: bool,
) -> Tensor:  # fmt: skip
    _check_std(std)
    shape, kind = _form("normal", (), size, dtype)
    place = placed(device)
    source = (generator or current_generator()).on(place)
    array = source.normal(shape, kind, float(mean), float(std))
    return finish(array, place, requires_grad, "normal")


def _normal_around(
    mean: Tensor | float, std: Tensor | float, generator: Generator | None
) -> Tensor:
    source = generator or current_generator()
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    _check_std(std)
    array = tensors[0].array
    if array.dtype.kind in "biu":
        raise DtypeNotImplemented(f"normal({tensors[0]._brief()}): not implemented; use .float()")
    xp, place = array_namespace(innermost(array)), device_of(innermost(array))
    shape = xp.broadcast_shapes(*(t.array.shape for t in tensors))
    noise = wrap(to_device(source.on(place).normal(shape, array.dtype), place))
    fixed = [t.detach() if isinstance(t, Tensor) else t for t in (mean, std)]
    out: Tensor = cast(add(mul(noise, fixed[1]), fixed[0]), array.dtype)
    return _untouched(out, tensors)


def _untouched(drawn: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Return samples as what depends on ``tensors`` with gradient zero."""
    for tensor in tensors:
        if isinstance(tensor.array, Traced) or (mode.grad and tensor.requires_grad):
            drawn = add(drawn, zero(tensor))
    return drawn


def _check_std(std: Tensor | float) -> None:
    if isinstance(std, Tensor):
        if std.array.dtype.kind == "c":
            raise DtypeError("normal(): normal expects standard deviation to be non-complex")
        if isinstance(std.array, Traced):
            return
        with working_on(std.array):
            right = bool((std.array >= 0).all())
        if not right:
            raise ShapeError(
                f"normal(std: {std._brief()}): normal expects all elements of std >= 0.0"
            )
    elif not std >= 0:
        raise ShapeError(f"normal(std={std}): normal expects std >= 0.0, but found std {std}")


@takes_out
@where_it_is
def bernoulli(
    input: Tensor, p: float | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Return 1 with the probability at each place of ``input``, else 0, in its dtype.

    Args:
        p: one probability for all places, instead of those in ``input``.
    Gradient: zero.
    """
    array: Any = checked("bernoulli", input).array
    source = (generator or current_generator()).on(device_of(innermost(array)))
    if isinstance(array, DualArray):
        return _untouched(bernoulli(array.below, p, generator=generator), [input])
    if p is not None:
        drawn = source.bernoulli(array.shape, _probability("bernoulli", input, p))
    else:
        drawn = _bernoulli_of(input, source)
        if isinstance(array, Traced):
            return wrap(drawn.astype(array.dtype))
    sample = wrap(to_device(drawn.astype(array.dtype), device_of(array)))
    return _untouched(sample, [input])


def _bernoulli_of(input: Tensor, source: Generator) -> Any:
    array: Any = input.array
    if array.dtype.kind not in "fV":
        raise DtypeNotImplemented(
            f"bernoulli({input._brief()}): not implemented for {array.dtype}; "
            "probabilities are floats, or pass p"
        )
    if isinstance(array, Traced):
        return source.bernoulli_of(array)  # type: ignore[arg-type]
    if not bool(((array >= 0) & (array <= 1)).all()):
        raise ShapeError(
            f"bernoulli({input._brief()}): Expected p_in >= 0 && p_in <= 1 for every element"
        )
    return source.bernoulli_of(_at(source, array))


def _at(source: Any, array: Array) -> Array:
    """Return ``array`` where a source draws: on the host, or where it is."""
    return array_namespace(array).to_numpy(array) if isinstance(source, Generator) else array


def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Return samples of the Poisson distributions with the rates ``input``, in its dtype.

    Gradient: zero.
    """
    array: Any = checked("poisson", input).array
    if isinstance(array, DualArray):
        return _untouched(poisson(array.below, generator), [input])
    if array.dtype.kind not in "fV":
        raise DtypeNotImplemented(f"poisson({input._brief()}): not implemented; use .float()")
    rates = array_namespace(array).to_numpy(array)
    if not (rates >= 0).all():
        raise ShapeError(
            f"poisson({input._brief()}): invalid Poisson rate, expected rate to be non-negative"
        )
    source = generator or current_generator()
    drawn = source.one_by_one(rejection.poisson, rates).astype(array.dtype)
    return _untouched(wrap(to_device(drawn, device_of(array))), [input])


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
    out: Tensor | None = None,
) -> Tensor:
    """Return indices drawn with probabilities proportional to each row of ``input``.

    Shape:
        input: ``(C,)`` or ``(N, C)``; result: ``(num_samples,)`` or ``(N, num_samples)``.
    Args:
        replacement: an index may be drawn again.
    """
    if out is not None:
        if out.array.dtype != numpy.int64:
            raise DtypeError(
                f"multinomial({input._brief()}): multinomial expects Long tensor out, got: "
                f"{out.array.dtype}"
            )
        options = {"generator": generator}
        args = (input, num_samples, replacement)
        written: Tensor = into(out, "multinomial", multinomial, args, options)
        return written
    weights = _checked_weights(input, num_samples, replacement)
    source = generator or current_generator()
    if not replacement or num_samples == 1:
        # The least of exponential times with these rates is a sample; so are the next ones.
        times = numpy.empty_like(weights)
        _random.fill(times, lambda shape: source.exponential(shape, weights.dtype))
        order = weights / times
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
def _source(self: Tensor, generator: Generator | None) -> Any:
    """Return what draws numbers where ``self`` is."""
    return (generator or current_generator()).on(device_of(innermost(self.array)))


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
        with working_on(array):
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


def _float_kind(
    self: Tensor, name: str, kinds: str = "fV", error: type[DtypeError] = DtypeError
) -> Any:
    kind = self.array.dtype
    if kind.kind not in kinds:
        raise error(f"{name}({self._brief()}): not implemented for {kind}; use .float()")
    return kind


def uniform_(
    self: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with samples of the uniform distribution on [``from_``, ``to``).

    Differs from PyTorch: the first bound is called ``from`` there, which Python reserves.
    """
    kind, source = (
        _float_kind(self, "uniform_", "fVc", DtypeNotImplemented),
        _source(self, generator),
    )
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
    kind, source = (
        _float_kind(self, "normal_", "fVc", DtypeNotImplemented),
        _source(self, generator),
    )
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
    kind, source = (
        _float_kind(self, "log_normal_", "fV", DtypeNotImplemented),
        _source(self, generator),
    )
    if not std > 0:
        raise ShapeError(
            f"log_normal_({self._brief()}): log_normal_ expects std > 0.0, but found std={std}"
        )
    wide = numpy.dtype("float64")

    def draw(shape: Shape) -> Array:
        drawn = source.normal_pairs(shape, wide, mean, std)
        return array_namespace(drawn).exp(drawn).astype(kind)

    return _fill(self, "log_normal_", draw)


@where_it_is
def bernoulli_(
    self: Tensor, p: Tensor | float = 0.5, *, generator: Generator | None = None
) -> Tensor:
    """Fill this tensor with 1 with probability ``p`` (a number or one per place), else 0."""
    kind, source = self.array.dtype, _source(self, generator)
    if isinstance(p, Tensor):
        chances = array_namespace(p.array).broadcast_to(_at(source, p.array), self.array.shape)
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
    kind, source = self.array.dtype, _source(self, generator)
    if kind.kind == "c":
        raise DtypeNotImplemented(f"random_({self._brief()}): not implemented for {kind}")
    if from_ == 0 and to is None:
        return _fill(self, "random_", lambda shape: source.integers_of(shape, kind))
    low, high = (0, from_) if to is None else (from_, to)
    low, high = _bounds("random_", low, high, kind)
    return _fill(self, "random_", lambda shape: source.integers(shape, kind, low, high))


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill this tensor with samples of the exponential distribution with rate ``lambd``."""
    kind, source = _float_kind(self, "exponential_"), _source(self, generator)
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
    kind, source = _float_kind(self, "cauchy_"), _source(self, generator)
    if not sigma > 0:
        raise ShapeError(
            f"cauchy_({self._brief()}): cauchy_ expects sigma > 0.0, but found sigma={sigma}"
        )

    def draw(shape: Shape) -> Array:
        u = source.uniform(shape, numpy.dtype("float64"))
        angle = numpy.pi * (u - 0.5)
        return (median + sigma * array_namespace(u).tan(angle)).astype(kind)

    return _fill(self, "cauchy_", draw)


def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Fill this tensor with numbers of trials up to the first success of probability ``p``."""
    kind, source = self.array.dtype, _source(self, generator)
    if kind.kind in "bc":
        raise DtypeNotImplemented(f"geometric_({self._brief()}): not implemented for {kind}")
    if not 0 < p < 1:
        raise ShapeError(
            f"geometric_({self._brief()}): geometric_ expects p to be in (0, 1), but got p={p}"
        )

    def draw(shape: Shape) -> Array:
        u = source.uniform(shape, numpy.dtype("float64"))
        xp = array_namespace(u)
        return xp.ceil(xp.log(u) / numpy.log1p(-p)).astype(kind)

    return _fill(self, "geometric_", draw)


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
    state: Tensor = _random.get_rng_state()
    return state


def set_rng_state(new_state: Tensor) -> None:
    """Continue the default generator from a state that ``get_rng_state`` returned."""
    if not isinstance(new_state, Tensor) or new_state.array.dtype != as_numpy("uint8"):
        raise ArgumentTypeError(
            f"{signature('set_rng_state', {'new_state': new_state}, {})}: RNG state must be a "
            "tensor of uint8; pass what get_rng_state() returned"
        )
    _random.set_rng_state(new_state)


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


for _function in (
    bernoulli, bernoulli_, cauchy_, exponential_, geometric_, log_normal_, multinomial, normal_,
    random_, uniform_,
):  # fmt: skip
    as_method(_function)
del _function
_random.as_state = wrap
