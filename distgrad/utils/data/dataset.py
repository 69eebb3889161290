"""Datasets: collections of samples, and streams of them."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy

from distgrad.backend.device import array_namespace
from distgrad.backend.random import Generator, current_generator
from distgrad.errors import ArgumentError, DistgradError, describe
from distgrad.tensor import Tensor, wrap

T_co = TypeVar("T_co", covariant=True)


class DatasetError(ArgumentError, AssertionError):
    """Datasets that do not go together; PyTorch's checks are assertions."""


class NotOverridden(DistgradError, NotImplementedError):
    """A method that a subclass has to define."""


class Dataset(Generic[T_co]):
    """A collection of samples: subclasses define ``__getitem__``, and ``__len__`` where they can.

    A subclass may define ``__getitems__(indices)``, which returns the list of samples of a batch.
    """

    def __getitem__(self, index: Any) -> T_co:
        raise NotOverridden(
            f"{type(self).__name__}[...]: Subclasses of Dataset should implement __getitem__."
        )

    def __add__(self, other: Dataset[T_co]) -> ConcatDataset[T_co]:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co]):
    """A stream of samples: subclasses define ``__iter__``.

    With workers, each of them iterates over a copy; ``get_worker_info()`` tells it which part to
    give.
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotOverridden(f"iter({type(self).__name__}): define __iter__")

    def __add__(self, other: Dataset[T_co]) -> ChainDataset:  # type: ignore[override]
        return ChainDataset([self, other])


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """The rows of tensors: sample ``i`` is the tuple of ``tensor[i]``.

    Raises:
        DatasetError: the tensors have different first sizes.

    Example:
        >>> import distgrad as dg
        >>> TensorDataset(dg.arange(6).reshape(3, 2), dg.zeros(3))[1]
        (tensor([2, 3]), tensor(0.))
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor) -> None:
        if any(tensors[0].shape[0] != tensor.shape[0] for tensor in tensors):
            forms = ", ".join(map(describe, tensors))
            raise DatasetError(
                f"TensorDataset({forms}): Size mismatch between tensors; the first sizes must be "
                "the same number of samples"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])


class StackDataset(Dataset[Any]):
    """Datasets side by side: sample ``i`` is the tuple, or the dict, of their samples ``i``."""

    datasets: tuple[Any, ...] | dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if args and kwargs:
            raise ArgumentError(
                "StackDataset(): Supported either ``tuple``- (via ``args``) or``dict``- (via "
                "``kwargs``) like input/output, but both types are given."
            )
        self.datasets = args or kwargs
        parts = self._parts()
        if not parts:
            raise ArgumentError("StackDataset(): At least one dataset should be passed")
        self._length = len(parts[0])
        if any(len(part) != self._length for part in parts):
            lengths = [len(part) for part in parts]
            raise ArgumentError(f"StackDataset(): Size mismatch between datasets: {lengths}")

    def _parts(self) -> list[Any]:
        of = self.datasets
        return list(of.values() if isinstance(of, dict) else of)

    def _sample(self, values: Sequence[Any]) -> Any:
        if isinstance(self.datasets, dict):
            return dict(zip(self.datasets, values, strict=True))
        return tuple(values)

    def __getitem__(self, index: Any) -> Any:
        return self._sample([part[index] for part in self._parts()])

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        columns = []
        for part in self._parts():
            columns.append(_samples(part, indices))
            if len(columns[-1]) != len(indices):
                raise ArgumentError(
                    f"StackDataset: Nested dataset's output size mismatch. Expected "
                    f"{len(indices)}, got {len(columns[-1])}"
                )
        return [self._sample(row) for row in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return self._length


class ConcatDataset(Dataset[T_co]):
    """Datasets one after the other, as one."""

    datasets: list[Dataset[T_co]]
    cumulative_sizes: list[int]

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise DatasetError("ConcatDataset([]): datasets should not be an empty iterable")
        if any(isinstance(d, IterableDataset) for d in self.datasets):
            raise DatasetError(
                "ConcatDataset: ConcatDataset does not support IterableDataset; use ChainDataset"
            )
        self.cumulative_sizes = self.cumsum(self.datasets)

    @staticmethod
    def cumsum(sequence: Iterable[Any]) -> list[int]:
        """Return where each dataset ends."""
        return list(itertools.accumulate(len(part) for part in sequence))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, idx: int) -> T_co:
        if idx < -len(self):
            raise ArgumentError(
                f"ConcatDataset[{idx}]: absolute value of index should not exceed dataset length "
                f"{len(self)}"
            )
        idx += len(self) if idx < 0 else 0
        part = bisect.bisect_right(self.cumulative_sizes, idx)
        start = self.cumulative_sizes[part - 1] if part else 0
        return self.datasets[part][idx - start]


class ChainDataset(IterableDataset[Any]):
    """Streams one after the other, as one; each begins when the one before it has ended."""

    def __init__(self, datasets: Iterable[Dataset[Any]]) -> None:
        self.datasets = datasets

    def __iter__(self) -> Iterator[Any]:
        for part in self.datasets:
            yield from _stream(part)

    def __len__(self) -> int:
        return sum(len(_stream(part)) for part in self.datasets)


def _stream(part: Any) -> Any:
    if not isinstance(part, IterableDataset):
        raise DatasetError(
            f"ChainDataset: ChainDataset only supports IterableDataset, not {type(part).__name__}"
        )
    return part


class Subset(Dataset[T_co]):
    """The samples of a dataset at chosen indices.

    A subclass with its own ``__getitem__`` has to define ``__getitems__`` too.
    """

    dataset: Dataset[T_co]
    indices: Sequence[int]

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, idx: Any) -> T_co:
        if isinstance(idx, list):
            return self.dataset[[self.indices[i] for i in idx]]
        return self.dataset[self.indices[idx]]

    def __getitems__(self, indices: list[int]) -> list[T_co]:
        if type(self).__getitem__ is not Subset.__getitem__:
            name = type(self).__name__
            raise NotOverridden(
                f"{name}: {name} overrides __getitem__ but not __getitems__; define "
                "__getitems__(self, indices) as [self[i] for i in indices]"
            )
        return _samples(self.dataset, [self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def _samples(dataset: Any, indices: Sequence[Any]) -> list[Any]:
    """Return the samples at ``indices``, in one call where the dataset has one."""
    many = getattr(dataset, "__getitems__", None)
    found: list[Any] = many(indices) if callable(many) else [dataset[i] for i in indices]
    return found


def rows(dataset: Any, indices: Sequence[int]) -> list[Tensor] | None:
    """Return the batch that collating the samples gives, by one indexing for each tensor.

    None, where ``dataset`` is no ``TensorDataset`` or subset of one, or a subclass that decides
    itself what a sample is.
    """
    if isinstance(dataset, Subset):
        kind = type(dataset)
        if (kind.__getitem__, kind.__getitems__) != (Subset.__getitem__, Subset.__getitems__):
            return None
        return rows(dataset.dataset, [dataset.indices[i] for i in indices])
    plain = isinstance(dataset, TensorDataset) and not hasattr(dataset, "__getitems__")
    if not plain or type(dataset).__getitem__ is not TensorDataset.__getitem__:
        return None
    return [_rows_of(tensor, numpy.asarray(indices, numpy.int64)) for tensor in dataset.tensors]


def _rows_of(tensor: Tensor, indices: Any) -> Tensor:
    if tensor.requires_grad:
        chosen: Tensor = tensor[indices]
        return chosen
    xp = array_namespace(tensor.array)
    return wrap(tensor.array[xp.asarray(indices)])


def random_split(
    dataset: Dataset[T_co],
    lengths: Sequence[int | float],
    generator: Generator | None = None,
) -> list[Subset[T_co]]:
    """Return disjoint random subsets of a dataset.

    Args:
        dataset: what is split.
        lengths: the sizes of the subsets, or fractions that add up to 1; what is left over after
            rounding down goes to the first ones, one each.
        generator: where the order comes from; by default the one that ``manual_seed`` seeds.

    Raises:
        ArgumentError: the lengths do not add up to the dataset's.

    Example:
        >>> import distgrad as dg
        >>> parts = random_split(range(10), [0.7, 0.3], dg.Generator().manual_seed(42))
        >>> [part.indices for part in parts]
        [[2, 6, 1, 8, 4, 5, 0], [9, 3, 7]]
    """
    total = len(dataset)  # type: ignore[arg-type]
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        lengths = _from_fractions(total, lengths)
    if sum(lengths) != total:
        raise ArgumentError(
            f"random_split({total} samples, lengths={list(lengths)}): Sum of input lengths does "
            "not equal the length of the input dataset!"
        )
    sizes = [int(length) for length in lengths]
    order = (generator or current_generator()).permutation(sum(sizes)).tolist()
    ends = itertools.accumulate(sizes)
    return [Subset(dataset, order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _from_fractions(total: int, fractions: Sequence[float]) -> list[int]:
    for place, fraction in enumerate(fractions):
        if not 0 <= fraction <= 1:
            raise ArgumentError(
                f"random_split(lengths={list(fractions)}): Fraction at index {place} is not "
                "between 0 and 1"
            )
    sizes = [math.floor(total * fraction) for fraction in fractions]
    for place in range(total - sum(sizes)):
        sizes[place % len(sizes)] += 1
    for place, size in enumerate(sizes):
        if size == 0:
            warnings.warn(
                f"Length of split at index {place} is 0. This might result in an empty dataset.",
                stacklevel=3,
            )
    return sizes
