"""Random numbers: the MT19937 engine and PyTorch's way of making each distribution from it.

The streams equal those of PyTorch's CPU generator bit for bit. See Note [PyTorch's streams].
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, namespace_of
from distgrad.backend.device import device as Device
from distgrad.backend.dtype import from_numpy, number_of_values
from distgrad.backend.rejection import Source
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError
from distgrad.typing import Shape

# Note [PyTorch's streams]
# ~~~~~~~~~~~~~~~~~~~~~~~~
# The engine is MT19937 seeded with the low 32 bits of the seed. A 64-bit draw is two engine
# outputs, high word first. From ATen's DistributionsHelper.h, DistributionTemplates.h (2.13):
#   uniform     low 24 (float32 and narrower) or 53 bits (float64), scaled, then one fused
#               multiply-add into [low, high)
#   normal      16 and more: Box-Muller on blocks of 16 uniforms, cosines in the first half and
#               sines in the second; a tail that does not fill a block makes the last 16 anew
#               fewer: pairs in float64, the second of a pair is kept for the next call
#   integers    draw % range + low, one output below a range of 2**28, else two
#   bernoulli   float64 uniforms below p (PyTorch does otherwise on Intel CPUs, where MKL's own
#               generator makes them; both are Bernoulli, the streams differ)
#   exponential float64, -log1p(-u) / rate
# float32 normals come from the Cephes polynomials for log, sin and cos (S. Moshier; AVX form by
# J. Pommier and G. Garberoglio) evaluated with fused multiply-adds, as PyTorch does on x86 with
# AVX2. float64 ones come from the C library's functions, which Python's math module calls: NumPy's
# own are off by a last bit in 1 of 400 values.

_STATE = struct.Struct("<QiiQ624QdddixxxxfB3x")  # 5056 bytes, PyTorch's layout
_DEFAULT_SEED = 67280421310721  # what PyTorch gives a new Generator
_M24, _M53 = np.uint64((1 << 24) - 1), np.uint64((1 << 53) - 1)
_TWO_OUTPUTS_FROM = 1 << 28
_PART = 1 << 15  # numbers drawn at once: what they are made from stays in the cache


#: What users get for the bytes of a state; the operations put in how to make a tensor of them.
as_state: Callable[..., Any] = np.asarray


class Generator:
    """A stream of random numbers, equal to that of PyTorch's CPU generator of the same seed.

    Sampling methods return NumPy arrays; those of ``generator.on(place)`` return arrays there.
    Numbers made on a GPU are others, but this one stream is all the state there is.

    Example:
        >>> generator = Generator().manual_seed(0)
        >>> [round(u, 4) for u in generator.uniform((3,), np.dtype("float64")).tolist()]
        [0.9701, 0.7078, 0.4594]
    """

    __slots__ = ("__weakref__", "_bits", "_lock", "_seed", "_spare", "device")
    device: Device

    def __init__(self, device: Device | str = CPU) -> None:
        self.device = Device(device)
        self._lock = threading.Lock()
        self._bits = np.random.MT19937()
        self.manual_seed(_DEFAULT_SEED)

    # --- seed and state -----------------------------------------------------------------------

    def manual_seed(self, seed: int) -> Generator:
        """The generator itself, started anew from ``seed``; negative seeds count from 2**64."""
        try:
            number = int(seed)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"manual_seed({seed!r}): not an integer; pass one from -2**63 to 2**64 - 1"
            ) from error
        if not -(2**63) <= number < 2**64:
            raise ArgumentError(
                f"manual_seed({number}): does not fit in 64 bits; use -2**63 to 2**64 - 1"
            )
        with self._lock:
            self._seed = number % 2**64
            self._bits._legacy_seeding(self._seed & 0xFFFFFFFF)
            self._spare: float | None = None
        return self

    def seed(self) -> int:
        """A new seed from the operating system, from which the generator starts anew."""
        number = int.from_bytes(os.urandom(8)) >> 11  # 53 bits, as PyTorch's
        self.manual_seed(number)
        return number

    def initial_seed(self) -> int:
        """The seed from which the stream started."""
        return self._seed

    def get_state(self) -> Any:
        """The state as 5056 bytes in PyTorch's layout: ``torch.set_rng_state`` takes them."""
        with self._lock:
            engine = self._bits.state["state"]
            key, position = engine["key"], int(engine["pos"])
            # PyTorch counts a freshly seeded engine from 0, NumPy from the end of a block.
            fresh = position == 624 and int(key[0]) == self._seed & 0xFFFFFFFF
            left = 1 if fresh else 625 - position
            done = 0 if fresh else position
            spare = (self._spare is not None, self._spare or 0.0)
            packed = _STATE.pack(
                *(self._seed, left, 1, done, *key.tolist()),
                *(0.0, spare[1], 0.0, spare[0], 0.0, False),
            )
        return as_state(np.frombuffer(packed, np.uint8).copy())

    def set_state(self, state: Any) -> None:
        """Continues from a state that `get_state` returned, here or in PyTorch.

        Args:
            state: 5056 unsigned bytes: an array, ``bytes`` or a list of numbers.

        Raises:
            ArgumentError: unless the bytes are a valid state; the generator stays as it was.
        """
        data = bytes(state) if isinstance(state, bytes | bytearray) else _to_bytes(state)
        if len(data) != _STATE.size:
            raise ArgumentError(
                f"set_state(state: {len(data)} bytes): a state has {_STATE.size} bytes; "
                "pass what get_state() returned"
            )
        seed, left, seeded, done, *rest = _STATE.unpack(data)
        if not seeded or not 0 < left <= 624 or done > 624 or left + done not in (1, 625):
            raise ArgumentError(
                "set_state(state): these bytes are not a state of MT19937; "
                "pass what get_state() returned"
            )
        key = np.array(rest[:624], np.uint64).astype(np.uint32)
        position = 624 if left == 1 else done
        with self._lock:
            self._bits.state = {
                "bit_generator": "MT19937",
                "state": {"key": key, "pos": position},
            }
            self._seed = seed
            self._spare = rest[625] if rest[627] else None

    def clone_state(self) -> Generator:
        """A new generator that continues from this one's state."""
        copy = Generator(self.device)
        copy.set_state(self.get_state())
        return copy

    def __reduce__(self) -> tuple[Callable[..., Generator], tuple[str, bytes]]:
        return _restore, (str(self.device), np.asarray(self.get_state()).tobytes())

    # --- other devices ------------------------------------------------------------------------

    def on(self, place: Device) -> Any:
        """What draws arrays on a device: itself for the host."""
        if place.type == "cpu":
            return self
        source = namespace_of(place).kernels.get("random_source")
        return self if source is None else source(self, place.index)

    def ticket(self) -> int:
        """64 random bits, the key of a draw on another device."""
        with self._lock:
            return int(self._words(1)[0])

    # --- distributions ------------------------------------------------------------------------

    def uniform(
        self, shape: Shape, dtype: np.dtype[Any], low: float = 0.0, high: float = 1.0
    ) -> np.ndarray[Any, Any]:
        """Samples of the uniform distribution on [low, high); of both parts of complex numbers."""
        if dtype.kind == "c":
            return self.uniform((*shape, 2), _part(dtype), low, high).view(dtype).reshape(shape)
        work = _working_type("uniform", dtype)
        if not low <= high:
            raise _range_error("uniform", low, high, "low <= high")
        with self._lock:
            x = self._uniform(math.prod(shape), work)
        if (low, high) != (0, 1):
            start, end = work.type(low), work.type(high)
            for part in _parts(x):
                part[:] = _fma(part, end - start, start)
        x = x.astype(dtype, copy=False).reshape(shape)
        if (low, high) != (0, 1) or dtype != work:  # rounding may reach the open end
            np.copyto(x, dtype.type(low), where=x == dtype.type(high))
        return x

    def normal(
        self, shape: Shape, dtype: np.dtype[Any], mean: float = 0.0, std: float = 1.0
    ) -> np.ndarray[Any, Any]:
        """Samples of the normal distribution, as PyTorch fills a contiguous tensor."""
        if dtype.kind == "c":
            parts = self.normal((*shape, 2), _part(dtype), mean, std / math.sqrt(2))
            return parts.view(dtype).reshape(shape)
        size = math.prod(shape)
        if size < 16:
            return self.normal_pairs(shape, dtype, mean, std)
        work = _working_type("normal", dtype)
        _check_std(mean, std)
        whole, tail = size - size % 16, size % 16
        with self._lock:
            # Narrow types draw the tail's block only; the others draw the whole array first.
            drawn = self._uniform(whole if dtype != work else size, work)
            last = self._uniform(16, work) if tail else drawn[:0]
        transform = _box_muller_float64 if work == np.float64 else _box_muller_float32
        transform(drawn[:whole], mean, std)
        out = drawn
        if dtype != work:
            out = np.empty(size, dtype)
            out[:whole] = drawn
        if tail:
            transform(last, mean, std)
            out[-16:] = last
        return out.reshape(shape)

    def normal_pairs(
        self, shape: Shape, dtype: np.dtype[Any], mean: float = 0.0, std: float = 1.0
    ) -> np.ndarray[Any, Any]:
        """Samples of the normal distribution, as PyTorch fills few or strided elements."""
        if dtype.kind == "c":
            parts = self.normal_pairs((*shape, 2), _part(dtype), mean, std / math.sqrt(2))
            return parts.view(dtype).reshape(shape)
        _working_type("normal", dtype)
        _check_std(mean, std)
        size = math.prod(shape)
        values = np.empty(size)
        with self._lock:
            spare = [] if self._spare is None or not size else [self._spare]
            pairs = (size - len(spare) + 1) // 2
            u = self._uniform(2 * pairs, np.dtype(np.float64)).reshape(pairs, 2)
            radius = np.sqrt(-2.0 * _by_libm(math.log1p, -u[:, 1]))
            theta = 2.0 * math.pi * u[:, 0]
            sines = radius * _by_libm(math.sin, theta)
            cosines = radius * _by_libm(math.cos, theta)
            made = np.concatenate([spare, np.stack([cosines, sines], 1).ravel()])
            values[:] = made[:size]
            if size:
                self._spare = float(made[-1]) if len(made) > size else None
        values = _fma(values, np.float64(std), np.float64(mean))
        return _narrowed(values, dtype).reshape(shape)

    def integers(
        self, shape: Shape, dtype: np.dtype[Any], low: int, high: int
    ) -> np.ndarray[Any, Any]:
        """Integers from ``low`` up to but without ``high``; their number is at most 2**64."""
        span = high - low
        if not 0 < span <= 2**64:
            raise _range_error("integers", low, high, "low < high <= low + 2**64")
        size = math.prod(shape)
        with self._lock:
            value = self._words(size) if span >= _TWO_OUTPUTS_FROM else self._bits.random_raw(size)
        if span < 2**64:
            value %= np.uint64(span)
            value += np.uint64(low % 2**64)  # wraps around, as two's complement does
        return value.view(np.int64).astype(dtype).reshape(shape)

    def integers_of(self, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Integers from 0 to the largest of ``dtype``, for floats to the last exact one."""
        size = math.prod(shape)
        with self._lock:
            value = self._words(size) if dtype.itemsize == 8 else self._bits.random_raw(size)
        value %= np.uint64(number_of_values(dtype))
        return value.astype(dtype).reshape(shape)

    def bernoulli(self, shape: Shape, p: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Truth values that are true with probability ``p``."""
        if not 0 <= p <= 1:
            raise ArgumentError(f"bernoulli(p={p}): not a probability; p must lie in [0, 1]")
        # u < p for u = word / 2**53: scaling by a power of two is exact, so compare the words
        limit = np.uint64(math.ceil(p * 2.0**53))
        out = np.empty(math.prod(shape), np.bool_)
        with self._lock:
            for part in _parts(out):
                words = self._words(part.size)
                words &= _M53
                np.less(words, limit, out=part)
        return out.reshape(shape)

    def bernoulli_of(self, p: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Truth values, each true with the probability at its place in ``p``."""
        work = _working_type("bernoulli", p.dtype)
        if p.size and not ((p >= 0) & (p <= 1)).all():
            raise ArgumentError("bernoulli(p): some values are no probabilities; clamp to [0, 1]")
        with self._lock:
            u = self._uniform(p.size, work)
        return u.reshape(p.shape) < p

    def exponential(
        self, shape: Shape, dtype: np.dtype[Any], rate: float = 1.0
    ) -> np.ndarray[Any, Any]:
        """Samples of the exponential distribution with mean ``1 / rate``."""
        _working_type("exponential", dtype)
        if not rate > 0:
            raise ArgumentError(f"exponential(rate={rate}): the rate must be above 0")
        with self._lock:
            u = self._uniform(math.prod(shape), np.dtype(np.float64))
        return _narrowed(-1.0 / rate * _by_libm(math.log1p, -u), dtype).reshape(shape)

    def one_by_one(
        self, sampler: Callable[..., float], *parameters: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """``sampler(source, *values)`` for the values at each place of the parameters.

        Args:
            sampler: draws as many numbers from the `Source` as it needs, so samples are made one
                after the other.
        """
        arrays = np.broadcast_arrays(*parameters)
        rows = zip(*(a.ravel().astype(np.float64).tolist() for a in arrays), strict=True)
        with self._lock:
            source = Source(self._one_uniform, self._one_normal)
            drawn = [sampler(source, *row) for row in rows]
        return np.array(drawn, np.float64).reshape(arrays[0].shape)

    def permutation(self, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The numbers 0 to ``n - 1`` in random order.

        Differs from PyTorch: for ``n`` above 214 million, where it draws in another way.
        """
        if n < 0:
            raise ArgumentError(f"permutation({n}): the number of elements must not be negative")
        with self._lock:
            draws = self._bits.random_raw(max(n - 1, 0))
        return _shuffle(draws, n)

    # --- engine -------------------------------------------------------------------------------

    def _words(self, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """``n`` draws of 64 bits."""
        raw = self._bits.random_raw(2 * n).reshape(n, 2)
        words = raw[:, 0] << np.uint64(32)
        words |= raw[:, 1]
        return words

    def _one_uniform(self) -> float:
        high, low = self._bits.random_raw(2).tolist()
        number: float = ((high << 32 | low) & 0x1FFFFFFFFFFFFF) * 2.0**-53
        return number

    def _one_normal(self) -> float:
        if self._spare is not None:
            kept, self._spare = self._spare, None
            return kept
        theta = 2.0 * math.pi * self._one_uniform()
        radius = math.sqrt(-2.0 * math.log1p(-self._one_uniform()))
        self._spare = radius * math.sin(theta)
        return radius * math.cos(theta)

    def _uniform(self, n: int, work: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """``n`` uniforms on [0, 1) in float32 or float64."""
        out = np.empty(n, work)
        for part in _parts(out):
            if work == np.float64:
                np.multiply(self._words(part.size) & _M53, 2.0**-53, out=part)
            else:
                raw = self._bits.random_raw(part.size)
                raw &= _M24
                part[:] = raw.astype(np.int32)
                part *= np.float32(2.0**-24)
        return out


def _restore(place: str, state: bytes) -> Generator:
    generator = Generator(place)
    generator.set_state(state)
    return generator


def _parts(flat: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Views of ``flat``, one after the other, each of as many numbers as are drawn at once."""
    return (flat[start : start + _PART] for start in range(0, flat.size, _PART))


def _to_bytes(state: Any) -> bytes:
    array = np.asarray(state)
    if array.dtype.kind not in "ui" or (array.size and not 0 <= array.min() <= array.max() < 256):
        raise ArgumentTypeError(
            f"set_state(state: {array.dtype}{list(array.shape)}): a state is an array of uint8; "
            "pass what get_state() returned"
        )
    return array.astype(np.uint8).tobytes()


def _part(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the real part of complex numbers."""
    return np.dtype(np.float64 if dtype == np.complex128 else np.float32)


def _working_type(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which PyTorch computes samples of ``dtype``."""
    if not from_numpy(dtype).is_floating_point:
        raise DtypeError(f"{name}(dtype={dtype}): samples are real; use a floating point dtype")
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _narrowed(x: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """float64 numbers in ``dtype``; PyTorch rounds to float32 on the way to half precision."""
    return x if dtype == np.float64 else x.astype(np.float32).astype(dtype, copy=False)


def _check_std(mean: float, std: float) -> None:
    if not std >= 0:
        raise ArgumentError(f"normal(mean={mean}, std={std}): std must be 0 or more")


def _range_error(name: str, low: float, high: float, rule: str) -> ArgumentError:
    return ArgumentError(f"{name}(low={low}, high={high}): the range is empty or too large; {rule}")


# --- arithmetic -------------------------------------------------------------------------------


def _by_libm(function: Callable[[float], float], x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``function`` of each element; 60 ns each, for bits that equal the C library's."""
    return np.fromiter(map(function, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def _fma(a: np.ndarray[Any, Any], b: Any, c: Any) -> np.ndarray[Any, Any]:
    """``a * b + c`` rounded once, in the type of ``a``."""
    if a.dtype == np.float32:
        # A product of two 24-bit numbers is exact in float64.
        wide = a.astype(np.float64)
        wide *= b
        wide += c
        return wide.astype(np.float32)
    # Dekker's product and Knuth's sum give the rounding errors of both steps.
    product = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    error = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    total = product + c
    part = total - product
    error += (product - (total - part)) + (c - part)
    return np.asarray(total + error)


def _split(x: Any) -> tuple[Any, Any]:
    high = x * 134217729.0  # 2**27 + 1
    high = high - (high - x)
    return high, x - high


_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_PI_4 = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
_BLOCK = 1 << 14  # pairs: intermediate arrays stay in the cache

_f32 = np.float32


def _polynomial(x: np.ndarray[Any, Any], coefficients: tuple[float, ...]) -> np.ndarray[Any, Any]:
    wide = x.astype(np.float64)  # once; `_fma` with a float64 factor needs no conversion
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, wide, _f32(coefficient))
    return value


def _log(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Natural logarithm of float32 numbers in (0, 1]."""
    bits = x.view(np.int32)
    exponent = ((bits >> 23) - 126).astype(np.float32)
    m = ((bits & 0x007FFFFF) | 0x3F000000).view(np.float32)  # in [0.5, 1)
    small = m < _f32(0.707106781186547524)
    exponent -= small
    m = (m - _f32(1)) + np.where(small, m, _f32(0))
    square = m * m
    y = _polynomial(m, _LOG) * m
    y = _fma(y, square, exponent * _f32(-2.12194440e-4))
    y = _fma(square, _f32(-0.5), y)
    return _fma(exponent, _f32(0.693359375), m + y)


def _sin_cos(x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sine and cosine of float32 angles in [0, 2π]."""
    octant = ((x * _f32(1.27323954473516)).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float32)
    for part in _PI_4:
        x = _fma(y, _f32(part), x)
    square = x * x
    cosine = _polynomial(square, _COS) * square
    cosine = _fma(cosine, square, square * _f32(-0.5)) + _f32(1)
    sine = _polynomial(square, _SIN) * square
    sine = _fma(sine, x, x)
    straight = (octant & 2) == 0
    s = np.where(straight, sine, cosine)
    c = np.where(straight, cosine, sine)
    s.view(np.int32)[:] ^= (octant & 4) << 29
    c.view(np.int32)[:] ^= (~(octant - 2) & 4) << 29
    return s, c


def _box_muller_float32(u: np.ndarray[Any, Any], mean: float, std: float) -> None:
    """Make normal numbers of the uniform ones in ``u``, in place."""
    blocks = u.reshape(-1, 2, 8)
    for start in range(0, len(blocks), _BLOCK // 8):
        part = slice(start, start + _BLOCK // 8)
        radius = np.sqrt(_f32(-2) * _log(_f32(1) - blocks[part, 0]))
        sine, cosine = _sin_cos(_f32(2 * math.pi) * blocks[part, 1])
        blocks[part, 0] = _fma(radius * cosine, _f32(std), _f32(mean))
        blocks[part, 1] = _fma(radius * sine, _f32(std), _f32(mean))


def _box_muller_float64(u: np.ndarray[Any, Any], mean: float, std: float) -> None:
    """Make normal numbers of the uniform ones in ``u``, in place."""
    blocks = u.reshape(-1, 2, 8)
    radius = np.sqrt(-2.0 * _by_libm(math.log, 1.0 - blocks[:, 0]))
    theta = 2.0 * math.pi * blocks[:, 1]
    pairs = [radius * _by_libm(math.cos, theta), radius * _by_libm(math.sin, theta)]
    blocks[:] = _fma(np.stack(pairs, 1), np.float64(std), np.float64(mean))


def _shuffle(
    draws: np.ndarray[Any, np.dtype[np.uint64]], n: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The result of Fisher and Yates' loop ``swap(i, i + draws[i] % (n - i))``, without the loop.

    Place ``i`` gets what lies at ``target[i]`` at step ``i``: that is what an earlier step with
    the same target put there, or its own number. A step ``s`` puts down what lay at place ``s``,
    which in turn comes from the last earlier step with target ``s``: a forest, whose roots are
    found by pointer doubling.
    """
    place = np.arange(n, dtype=np.int64)
    target = place.copy()
    target[:-1] += (draws % (n - place[:-1]).astype(np.uint64)).astype(np.int64)
    order = (target << 32) | place
    order.sort()
    at, step = order >> 32, order & 0xFFFFFFFF
    again = at[1:] == at[:-1]
    before = np.full(n, -1)  # the step before with the same target
    before[step[1:][again]] = step[:-1][again]
    final = np.append(~again, n > 0)[:n]
    last, owner = step[final], at[final]
    source = np.where(last == owner, before[last], last)
    root = place
    root[owner] = np.where(source >= 0, source, owner)
    while not np.array_equal(further := root[root], root):
        root = further
    return np.where(before >= 0, root[before], target)


def fill(out: np.ndarray[Any, Any], draw: Callable[[Shape], np.ndarray[Any, Any]]) -> None:
    """Fills ``out`` with ``draw(shape)`` in the order of its memory, as PyTorch does.

    Args:
        draw: one of a generator's distributions as a function of the shape; for normal samples
            of an array that is not contiguous, ``normal_pairs``.
    """
    order = sorted(range(out.ndim), key=lambda axis: -abs(out.strides[axis]))
    view = out.transpose(order)
    view[...] = draw(view.shape)


# --- the generator in use ---------------------------------------------------------------------

#: The generator that functions use when they are given none; seeded anew in every process.
default_generator = Generator()
default_generator.seed()

_OVERRIDE: contextvars.ContextVar[Generator | None] = contextvars.ContextVar(
    "distgrad_generator", default=None
)


def current_generator() -> Generator:
    """The generator of the enclosing `use_generator`, else `default_generator`."""
    return _OVERRIDE.get() or default_generator


@contextlib.contextmanager
def use_generator(generator: Generator) -> Iterator[Generator]:
    """Makes ``generator`` the current one inside the block, in this thread only.

    Ranks that are threads of one process each use their own in this way.
    """
    token = _OVERRIDE.set(generator)
    try:
        yield generator
    finally:
        _OVERRIDE.reset(token)


def manual_seed(seed: int) -> Generator:
    """The current generator, started anew from ``seed``."""
    return current_generator().manual_seed(seed)


def seed() -> int:
    """A new seed from the operating system, from which the current generator starts anew."""
    return current_generator().seed()


def initial_seed() -> int:
    """The seed from which the current generator started."""
    return current_generator().initial_seed()


def get_rng_state() -> Any:
    """The state of the current generator as 5056 bytes in PyTorch's layout."""
    return current_generator().get_state()


def set_rng_state(new_state: Any) -> None:
    """Continues the current generator from a state that `get_rng_state` returned."""
    current_generator().set_state(new_state)
