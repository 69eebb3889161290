"""Random numbers made on a GPU, by Philox.

A draw takes 64 bits of the host's generator for a key, and all its numbers from Philox with that
key.  So the state of the host's generator is all the state there is: seeds, saved states, forks and
streams of shards mean on a GPU what they mean on the host, and no draw waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from distgrad.backend import capture
from distgrad.backend.cuda.module import (
    MOST_BLOCKS,
    TYPES,
    contiguous,
    kernel,
    over_elements,
    type_name,
)
from distgrad.backend.dtype import number_of_values
from distgrad.typing import Array, Shape

__all__ = ["KERNELS", "Source", "signed"]

_REAL, _WHOLE = "random.cu", "integers.cu"
_NUMBERS = TYPES | {
    "int64": "long long", "int32": "int", "int16": "short", "int8": "signed char",
    "uint64": "unsigned long long", "uint32": "unsigned", "uint16": "unsigned short",
    "uint8": "unsigned char", "bool": "bool",
}  # fmt: skip


def signed(bits: int) -> int:
    """Return 64 bits as the number that a kernel's ``long long`` can be."""
    return bits - (1 << 64) if bits >> 63 else bits


# ---------------------------------------------------------------------- keys
class _Slot:
    """The key of all draws from one generator in a graph, new before each replay."""

    __slots__ = ("draws", "generator", "state")

    def __init__(self, generator: Any) -> None:
        self.generator, self.draws = generator, 0
        with capture.outside():
            self.state = cupy.zeros(1, cupy.int64)

    def renew(self) -> None:
        """Write a new key."""
        key = signed(self.generator.ticket())
        kernel(_WHOLE, "write_key", T="int")((1,), (32,), (self.state, key))


def draw_from(generator: Any) -> tuple[Any, int, int]:
    """Return what a kernel draws from: a key in memory or 0, a key, and the number of the draw."""
    graph = capture.current()
    if graph is None:
        return 0, signed(generator.ticket()), 0
    slots = [s for s in graph.kept if isinstance(s, _Slot) and s.generator is generator]
    slot = slots[0] if slots else _Slot(generator)
    if not slots:
        graph.keep(slot)
        graph.before_replay(slot.renew)
    slot.draws += 1
    return slot.state, 0, slot.draws


# ---------------------------------------------------------------------- distributions
class Source:
    """The distributions of a generator, drawn on a GPU: as the methods of `Generator`.

    Args:
        generator: gives the keys.
        device: the number of the GPU.
    """

    __slots__ = ("device", "generator")

    def __init__(self, generator: Any, device: int | None) -> None:
        self.generator, self.device = generator, device

    def uniform(self, shape: Shape, dtype: Any, low: float = 0.0, high: float = 1.0) -> Array:
        """Return samples of the uniform distribution on [low, high)."""
        return self._real("uniform", shape, dtype, low, high)

    def normal(self, shape: Shape, dtype: Any, mean: float = 0.0, std: float = 1.0) -> Array:
        """Return samples of the normal distribution; complex ones have this variance in all."""
        std = std / math.sqrt(2) if dtype.kind == "c" else std
        return self._real("normal", shape, dtype, mean, std)

    normal_pairs = normal

    def exponential(self, shape: Shape, dtype: Any, rate: float = 1.0) -> Array:
        """Return samples of the exponential distribution with mean ``1 / rate``."""
        return self._real("exponential", shape, dtype, rate)

    def integers(self, shape: Shape, dtype: Any, low: int, high: int) -> Array:
        """Return integers from ``low`` up to but without ``high``."""
        span = signed((high - low) % 2**64)
        return self._filled(_WHOLE, "integers", shape, dtype, signed(low % 2**64), span)

    def integers_of(self, shape: Shape, dtype: Any) -> Array:
        """Return integers from 0 to the largest of ``dtype``, for floats to the last exact one."""
        return self.integers(shape, dtype, 0, number_of_values(dtype))

    def bernoulli(self, shape: Shape, p: float) -> Array:
        """Return truth values that are true with probability ``p``."""
        return self._filled(_WHOLE, "bernoulli", shape, np.dtype(bool), math.ceil(p * 2.0**32))

    def bernoulli_of(self, p: Array) -> Array:
        """Return truth values, each true with the probability at its place in ``p``."""
        with cupy.cuda.Device(self.device):
            p = contiguous(cupy.asarray(p))
            out = cupy.empty(p.shape, bool)
            self._run(_REAL, "bernoulli_of", type_name(p.dtype), out, p, out, out.size)
            return out

    def permutation(self, n: int) -> Array:
        """Return the numbers 0 to ``n - 1`` in random order."""
        keys = self.integers((n,), np.dtype(np.int64), -(2**63), 2**63)
        with cupy.cuda.Device(self.device):
            return cupy.argsort(keys)

    def _real(self, name: str, shape: Shape, dtype: Any, *parameters: float) -> Array:
        if dtype.kind == "c":
            part = np.dtype(np.float64 if dtype == np.complex128 else np.float32)
            return self._real(name, (*shape, 2), part, *parameters).view(dtype).reshape(shape)
        return self._filled(_REAL, name, shape, dtype, *map(float, parameters))

    def _filled(self, file: str, name: str, shape: Shape, dtype: Any, *parameters: Any) -> Array:
        with cupy.cuda.Device(self.device):
            out = cupy.empty(shape, dtype)
            self._run(file, name, _NUMBERS[dtype.name], out, out, out.size, *parameters)
            return out

    def _run(self, file: str, name: str, kind: str | None, out: Array, *arguments: Any) -> None:
        draw = draw_from(self.generator)
        if out.size:
            grid = (min(-(-out.size // 1024), MOST_BLOCKS),)
            kernel(file, name, T=kind)(grid, (256,), (*arguments, *draw))


def dropout(x: Array, p: float, draw: tuple[Any, int, int]) -> Any:
    """Return ``x / (1 - p)`` with probability ``1 - p``, else 0.

    Args:
        draw: what `draw_from` gave; the same one gives the same choice.
    """
    kind = type_name(x.dtype)
    if kind is None:
        return NotImplemented
    x, limit = contiguous(x), math.ceil(p * 2.0**32)
    out, scale = cupy.empty(x.shape, x.dtype), 1 / (1 - p) if p < 1 else 0.0
    if x.size:
        arguments = (x, out, x.size, limit, scale, *draw)
        kernel(_REAL, "dropout", T=kind)(*over_elements(x), arguments)
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    "random_source": Source,
    "draw_from": draw_from,
    "dropout": dropout,
}
