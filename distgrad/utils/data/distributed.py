"""Samplers that give each rank its share of a dataset."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sized
from typing import Any

from distgrad.backend.random import Generator
from distgrad.distributed import get_rank, get_world_size
from distgrad.errors import ArgumentError
from distgrad.utils.data.sampler import Sampler


class DistributedSampler(Sampler[int]):
    """The indices of one rank, as many as of every other rank.

    Where the length cannot be divided, the first indices come again at the end (or the last ones
    are left out, with ``drop_last``). So a mean over ranks counts some samples twice: use
    ``DistributedEvalSampler`` for exact evaluation.

    Args:
        dataset: what is shared out.
        num_replicas: the number of ranks (default: of the default group).
        rank: this rank (default: in the default group).
        shuffle: give the indices in an order that depends on ``seed`` and the epoch.
        seed: the same on all ranks.
        drop_last: leave samples out instead of repeating some.

    Ranks:
        Nothing is communicated; the ranks must agree on the arguments and call ``set_epoch`` with
        the same number before each epoch.

    Example:
        >>> [list(DistributedSampler(range(5), 2, rank, shuffle=False)) for rank in range(2)]
        [[0, 2, 4], [1, 3, 0]]
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.num_replicas, self.rank = _place(num_replicas, rank)
        self.epoch = 0
        self.drop_last = drop_last
        length = len(dataset)
        if drop_last and length % self.num_replicas:
            self.num_samples = math.ceil((length - self.num_replicas) / self.num_replicas)
        else:
            self.num_samples = math.ceil(length / self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
        self.shuffle = shuffle
        self.seed = seed
        self._given: int | None = None  # the epoch whose order was given last

    def __iter__(self) -> Iterator[int]:
        if self.shuffle and self._given == self.epoch:
            warnings.warn(
                "DistributedSampler gives the same order again; call sampler.set_epoch(epoch) "
                "before each epoch",
                stacklevel=2,
            )
        self._given = self.epoch
        indices = _order(self)
        if self.drop_last:
            indices = indices[: self.total_size]
        else:
            missing = self.total_size - len(indices)
            indices += (indices * math.ceil(missing / max(len(indices), 1)))[:missing]
        return iter(indices[self.rank : self.total_size : self.num_replicas])

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration give the order of ``epoch``."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes: the epoch and the seed."""
        return {"epoch": self.epoch, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up epoch and seed of a state."""
        self.epoch, self.seed = state_dict["epoch"], state_dict["seed"]
        self._given = None


class DistributedEvalSampler(Sampler[int]):
    """The indices of one rank, every sample once: some ranks may have one more than others.

    For evaluation: sum results and counts over the ranks, then divide.  No collective may be
    called inside the loop over batches, since ranks may have different numbers of them.

    Args:
        dataset: what is shared out.
        num_replicas: the number of ranks (default: of the default group).
        rank: this rank (default: in the default group).
        shuffle: give the indices in an order that depends on ``seed`` and the epoch.
        seed: the same on all ranks.

    Example:
        >>> [list(DistributedEvalSampler(range(5), 2, rank)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.num_replicas, self.rank = _place(num_replicas, rank)
        self.epoch = 0
        self.shuffle = shuffle
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        return iter(_order(self)[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration give the order of ``epoch``."""
        self.epoch = epoch


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    count = get_world_size() if num_replicas is None else num_replicas
    place = get_rank() if rank is None else rank
    if not 0 <= place < count:
        raise ArgumentError(
            f"DistributedSampler(num_replicas={count}, rank={place}): Invalid rank {place}, rank "
            f"should be in the interval [0, {count - 1}]"
        )
    return count, place


def _order(sampler: DistributedSampler | DistributedEvalSampler) -> list[int]:
    """Return the indices of all ranks."""
    length = len(sampler.dataset)
    if not sampler.shuffle:
        return list(range(length))
    generator = Generator().manual_seed(sampler.seed + sampler.epoch)
    order: list[int] = generator.permutation(length).tolist()
    return order
