"""Random numbers inside ``vmap``: an error, or other numbers for every element of the batch."""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.autograd.batching import BatchedArray, BatchLevel
from distgrad.backend.device import array_namespace
from distgrad.backend.random import Generator, current_generator
from distgrad.errors import GradError
from distgrad.tensor import wrap

_REFUSED = (
    "vmap: called random operation while in randomness error mode. Please either use the 'same' or "
    "'different' randomness flags on vmap or perform the randomness operation out of vmap"
)


class Refusing(Generator):
    """Raises at every draw."""

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise GradError(_REFUSED)

    uniform = normal = normal_pairs = integers = integers_of = _refuse
    bernoulli = bernoulli_of = exponential = permutation = ticket = _refuse

    def on(self, place: Any) -> Any:
        """Return itself: there is nothing to draw anywhere."""
        return self


class Different(Generator):
    """Draws a batch of what is asked for from the generator outside."""

    def __init__(self, level: BatchLevel, source: Any) -> None:
        super().__init__()
        self._level, self._source = level, source

    def on(self, place: Any) -> Any:
        """Return what draws batches on a device."""
        return Different(self._level, self._source.on(place))

    def _batch(self, array: Any) -> Any:
        return BatchedArray(wrap(array), self._level)

    def uniform(self, shape: Any, *form: Any) -> Any:
        """Return samples of the uniform distribution."""
        return self._batch(self._source.uniform((self._level.size, *shape), *form))

    def normal(self, shape: Any, *form: Any) -> Any:
        """Return samples of the normal distribution."""
        return self._batch(self._source.normal((self._level.size, *shape), *form))

    def normal_pairs(self, shape: Any, *form: Any) -> Any:
        """Return samples of the normal distribution, drawn pair by pair."""
        return self._batch(self._source.normal_pairs((self._level.size, *shape), *form))

    def integers(self, shape: Any, *form: Any) -> Any:
        """Return integers of a range."""
        return self._batch(self._source.integers((self._level.size, *shape), *form))

    def integers_of(self, shape: Any, *form: Any) -> Any:
        """Return integers of a dtype."""
        return self._batch(self._source.integers_of((self._level.size, *shape), *form))

    def bernoulli(self, shape: Any, p: float) -> Any:
        """Return truth values."""
        return self._batch(self._source.bernoulli((self._level.size, *shape), p))

    def bernoulli_of(self, p: Any) -> Any:
        """Return truth values, each true with its own probability."""
        if isinstance(p, BatchedArray) and p.level is self._level:
            return self._batch(self._source.bernoulli_of(p.below.array))
        shape = (self._level.size, *p.shape)
        return self._batch(self._source.bernoulli_of(p[None].repeat(shape[0], 0)))

    def exponential(self, shape: Any, *form: Any) -> Any:
        """Return samples of the exponential distribution."""
        return self._batch(self._source.exponential((self._level.size, *shape), *form))

    def permutation(self, n: int) -> Any:
        """Return the numbers below ``n`` in an order of their own for each element."""
        rows = [self._source.permutation(n) for _ in range(self._level.size)]
        if not rows:
            return self._batch(numpy.zeros((0, n), numpy.int64))
        return self._batch(array_namespace(rows[0]).stack(rows))


def generator_inside(level: BatchLevel) -> Any:
    """Return the generator that operations inside ``vmap`` draw from."""
    outside = current_generator()
    if level.randomness == "same":
        return outside
    return Refusing() if level.randomness == "error" else Different(level, outside)
