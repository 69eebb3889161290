"""How a batch is fetched from a dataset: by its indices or from a stream, collated or not."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distgrad.utils.data.collate import default_collate
from distgrad.utils.data.dataset import rows


class DatasetKind(enum.IntEnum):
    """Whether samples are found by an index or come in a stream."""

    Map = 0
    Iterable = 1


@dataclass(frozen=True)
class Recipe:
    """All that a fetcher needs to know; it can be sent to another process."""

    dataset: Any
    kind: DatasetKind
    in_batches: bool
    collate_fn: Callable[[Any], Any]
    drop_last: bool


Fetcher = Callable[[Any], Any]


def fetcher(recipe: Recipe) -> Fetcher:
    """Return ``fetch(indices)``, which gives one batch; for a stream it raises StopIteration."""
    if recipe.kind == DatasetKind.Iterable:
        return _StreamFetcher(recipe)
    dataset, collate_fn = recipe.dataset, recipe.collate_fn
    if not recipe.in_batches:
        return lambda index: collate_fn(dataset[index])
    if collate_fn is default_collate:
        return lambda indices: _collated_rows(dataset, indices)
    return lambda indices: collate_fn(_samples(dataset, indices))


def _collated_rows(dataset: Any, indices: Any) -> Any:
    batch = rows(dataset, indices)
    return default_collate(_samples(dataset, indices)) if batch is None else batch


def _samples(dataset: Any, indices: Any) -> Any:
    many = getattr(dataset, "__getitems__", None)
    return many(indices) if callable(many) else [dataset[index] for index in indices]


class _StreamFetcher:
    """Takes as many samples from a stream as there are indices."""

    def __init__(self, recipe: Recipe) -> None:
        self._stream = iter(recipe.dataset)
        self._recipe = recipe
        self._ended = False

    def __call__(self, indices: Any) -> Any:
        if self._ended:
            raise StopIteration
        if not self._recipe.in_batches:
            return self._recipe.collate_fn(next(self._stream))
        samples = list(itertools.islice(self._stream, len(indices)))
        self._ended = len(samples) < len(indices)
        if not samples or (self._ended and self._recipe.drop_last):
            raise StopIteration
        return self._recipe.collate_fn(samples)
