"""Samplers: in which order samples are taken, and which of them make a batch.

The indices are those that PyTorch's samplers give from the same seed, and as many random numbers
are drawn for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy

from distgrad.backend.dtype import float64
from distgrad.backend.random import Generator, current_generator
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.ops.create import as_tensor
from distgrad.ops.random import multinomial
from distgrad.tensor import Tensor
from distgrad.utils.data.dataset import NotOverridden

T_co = TypeVar("T_co", covariant=True)

_INT64 = numpy.dtype(numpy.int64)
_AT_ONCE = 32  # random indices that PyTorch draws in one call


class Sampler(Generic[T_co]):
    """An order of samples: subclasses define ``__iter__``, and ``__len__`` where they can."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotOverridden(f"iter({type(self).__name__}): define __iter__")


class SequentialSampler(Sampler[int]):
    """The indices in their order."""

    data_source: Sized

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """The indices in random order.

    Args:
        data_source: the dataset.
        replacement: draw each index anew, so that some come again.
        num_samples: how many indices (default: one for each sample).
        generator: where they come from; by default a generator of its own for each iteration,
            seeded from the one that ``manual_seed`` seeds.
    """

    data_source: Sized
    replacement: bool

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator
        _check_flag("RandomSampler", "replacement", replacement, ArgumentTypeError)
        _check_count("RandomSampler", "num_samples", self.num_samples)

    @property
    def num_samples(self) -> int:
        """How many indices one iteration gives; the dataset's length may change."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        generator = self.generator or _new_generator()
        count = self.num_samples
        if self.replacement:
            yield from _independent(generator, count, len(self.data_source))
        else:
            yield from _without_repetition(generator, count, len(self.data_source))

    def __len__(self) -> int:
        return self.num_samples


def draw_seed(generator: Generator | None) -> int:
    """Return a random number below 2**63, as ``torch.empty((), dtype=int64).random_()`` draws."""
    return int((generator or current_generator()).integers_of((), _INT64))


def _new_generator() -> Generator:
    return Generator().manual_seed(draw_seed(None))


def _independent(generator: Generator, count: int, n: int) -> Iterator[int]:
    for _ in range(count // _AT_ONCE):
        yield from generator.integers((_AT_ONCE,), _INT64, 0, n).tolist()
    yield from generator.integers((count % _AT_ONCE,), _INT64, 0, n).tolist()


def _without_repetition(generator: Generator, count: int, n: int) -> Iterator[int]:
    for _ in range(count // n):
        yield from generator.permutation(n).tolist()
    yield from generator.permutation(n).tolist()[: count % n]  # drawn even where none is left


class SubsetRandomSampler(Sampler[int]):
    """The given indices in random order."""

    indices: Sequence[int]

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        for place in (self.generator or current_generator()).permutation(len(self.indices)):
            yield self.indices[int(place)]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn with probabilities proportional to their weights.

    Args:
        weights: one for each sample; they need not add up to 1.
        num_samples: how many indices.
        replacement: an index may come again.
        generator: where they come from.

    Example:
        >>> import distgrad as dg
        >>> list(WeightedRandomSampler([0.1, 0.9, 0.4], 5, generator=dg.Generator().manual_seed(0)))
        [2, 1, 1, 2, 1]
    """

    weights: Tensor
    num_samples: int
    replacement: bool

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        _check_count("WeightedRandomSampler", "num_samples", num_samples)
        _check_flag("WeightedRandomSampler", "replacement", replacement, ArgumentError)
        self.weights = as_tensor(weights, dtype=float64)
        if self.weights.ndim != 1:
            raise ArgumentError(
                "WeightedRandomSampler(): weights should be a 1d sequence but given weights have "
                f"shape {tuple(self.weights.shape)}"
            )
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        drawn = multinomial(
            self.weights, self.num_samples, self.replacement, generator=self.generator
        )
        yield from drawn.tolist()

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of indices of another sampler.

    Example:
        >>> list(BatchSampler(SequentialSampler(range(5)), batch_size=2, drop_last=False))
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self, sampler: Sampler[int] | Iterable[int], batch_size: int, drop_last: bool
    ) -> None:
        _check_count("BatchSampler", "batch_size", batch_size)
        _check_flag("BatchSampler", "drop_last", drop_last, ArgumentError)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        count = len(self.sampler)  # type: ignore[arg-type]
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)


def _check_count(name: str, what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ArgumentError(
            f"{name}(): {what} should be a positive integer value, but got {what}={value}"
        )


def _check_flag(
    name: str, what: str, value: Any, error: type[ArgumentError] | type[ArgumentTypeError]
) -> None:
    if not isinstance(value, bool):
        raise error(f"{name}(): {what} should be a boolean value, but got {what}={value}")
