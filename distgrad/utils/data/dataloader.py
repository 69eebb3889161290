"""DataLoader: batches of a dataset, in PyTorch's order."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from distgrad.backend.random import Generator
from distgrad.errors import ArgumentError
from distgrad.utils.data.collate import default_collate, default_convert
from distgrad.utils.data.crew import context_of
from distgrad.utils.data.dataset import Dataset, IterableDataset
from distgrad.utils.data.fetch import DatasetKind
from distgrad.utils.data.iterators import DirectPass, WorkersPass
from distgrad.utils.data.resume import Position, as_it_was, position_of
from distgrad.utils.data.sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

T_co = TypeVar("T_co", covariant=True)

_FIXED = frozenset(
    ["batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"]
)


class DataLoader(Generic[T_co]):
    """Iterates over a dataset in batches.

    The order, and the random numbers drawn for it, are PyTorch's for the same seed and any number
    of workers.  A worker's tensors draw random numbers from the seed ``base_seed + worker id``.

    Args:
        dataset: has ``__getitem__`` and ``__len__``, or is an ``IterableDataset``.
        batch_size: samples in a batch; None gives single samples.
        shuffle: a new random order in each pass.
        sampler: the order, instead of ``shuffle``.
        batch_sampler: gives lists of indices, instead of the four arguments before.
        num_workers: how many workers fetch batches ahead; 0 fetches them when they are asked for.
        collate_fn: makes a batch of a list of samples (default: ``default_collate``).
        pin_memory: give batches in page-locked memory, where there is a GPU; threads that are
            workers copy them there, else the program does when it takes a batch.
        drop_last: leave out a last batch that is not full.
        timeout: seconds to wait for a worker; 0 waits as long as it lives.
        worker_init_fn: called with its number in each worker when it starts.
        multiprocessing_context: None makes the workers threads; ``"fork"``, ``"spawn"``,
            ``"forkserver"`` or a context of ``multiprocessing`` makes them processes.
        generator: where the order and the workers' seeds come from.
        prefetch_factor: batches that each worker fetches ahead (default: 2).
        persistent_workers: keep the workers for the next pass.
        pin_memory_device: accepted with a warning: the current GPU is used.
        in_order: False gives batches as they are done.

    Differs from PyTorch: workers are threads by default, which share memory with the program and
        start at once.  NumPy releases Python's lock in long operations, so they run side by side.
        Python's ``random`` and ``numpy.random``, and files that a dataset has open, belong to the
        whole program: datasets that use them want processes.  ``DISTGRAD_LOADER_WORKERS=fork``
        gives them to a program that is not to be changed.

    Example:
        >>> import distgrad as dg
        >>> from distgrad.utils.data import TensorDataset
        >>> _ = dg.manual_seed(0)
        >>> for (x,) in DataLoader(TensorDataset(dg.arange(5)), batch_size=2, shuffle=True):
        ...     print(x)
        tensor([1, 4])
        tensor([2, 3])
        tensor([0])
    """

    dataset: Dataset[T_co]
    batch_size: int | None
    num_workers: int
    sampler: Sampler[Any] | Iterable[Any]
    _ready = False

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: str | BaseContext | None = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers)
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = 2 if num_workers and prefetch_factor is None else prefetch_factor
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.multiprocessing_context = multiprocessing_context
        self.in_order = in_order
        stream = isinstance(dataset, IterableDataset)
        self._dataset_kind = DatasetKind.Iterable if stream else DatasetKind.Map
        if stream:
            _check_stream(shuffle, sampler, batch_sampler)
        _check_order(batch_size, shuffle, sampler, batch_sampler, drop_last)
        if sampler is None:
            sampler = _default_sampler(dataset, stream, shuffle, generator)
        if batch_sampler is not None:
            batch_size = None
        elif batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.generator = generator
        self.collate_fn = collate_fn or (
            default_collate if batch_sampler is not None else default_convert
        )
        self.persistent_workers = persistent_workers
        self._promised: int | None = None  # the length of a stream that __len__ told
        self._iterator: WorkersPass | None = None  # with persistent workers
        self._position: Position | None = None  # of the pass that goes on
        self._resume: Position | None = None
        self._ready = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self._ready and name in _FIXED:
            raise ArgumentError(
                f"DataLoader.{name}: {name} attribute should not be set after "
                f"{type(self).__name__} is initialized; build a new one"
            )
        super().__setattr__(name, value)

    @property
    def multiprocessing_context(self) -> BaseContext | None:
        """How worker processes are started; None for threads."""
        return self._context

    @multiprocessing_context.setter
    def multiprocessing_context(self, value: str | BaseContext | None) -> None:
        self._context = None if value is None else context_of(value, self.num_workers)

    @property
    def _auto_collation(self) -> bool:
        return self.batch_sampler is not None

    @property
    def _index_sampler(self) -> Any:
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    def __len__(self) -> int:
        if self._dataset_kind == DatasetKind.Map:
            return len(self._index_sampler)
        length = self._promised = len(self.dataset)  # type: ignore[arg-type]
        if self.batch_size is None:
            return length
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Return a new pass, or the rest of the one that ``load_state_dict`` was given."""
        resume, self._resume = self._resume, None
        if resume is None:
            self._position = position_of(self, True)
            return self._begin(0)
        with as_it_was(self, resume):
            self._position = resume if resume.begun else position_of(self, True)
            return self._begin(resume.batches)

    def _begin(self, skip: int) -> Iterator[Any]:
        if not self.num_workers:
            direct = DirectPass(self)
            direct.skip(skip)
            return direct
        if self._iterator is None:
            workers = WorkersPass(self)
        else:
            workers = self._iterator
            workers.restart()
        if self.persistent_workers:
            self._iterator = workers
        workers.start(skip)
        return workers

    def _count(self, given: int) -> None:
        """Note that so many batches of the pass were given."""
        if self._position is not None:
            self._position.batches = given
        if self._promised is None or self._dataset_kind == DatasetKind.Map:
            return
        if given > len(self):
            text = (
                f"Length of IterableDataset {self.dataset} was reported to be {self._promised} "
                f"(when accessing len(dataloader)), but {given} samples have been fetched. "
            )
            if self.num_workers:
                text += (
                    "With workers, this could be caused by not properly configuring the "
                    "IterableDataset replica at each worker: use get_worker_info() in __iter__, or "
                    "worker_init_fn, to give each worker its part."
                )
            warnings.warn(text, stacklevel=4)

    def _end(self) -> None:
        """Note that the pass has given all its batches."""
        self._position = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the pass stands: batches given, and what their order came from.

        A program that resumes in the middle of a pass saves this beside the states of model,
        optimizer and random numbers.  Random numbers that workers draw inside the dataset begin
        anew with a resumed pass.
        """
        return (self._resume or self._position or position_of(self, False)).as_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass go on where ``state_dict`` was taken.

        Indices are drawn again and passed over without fetching their samples; a stream is read
        again up to its place.

        Example:
            >>> from distgrad.utils.data import TensorDataset
            >>> import distgrad as dg
            >>> loader = DataLoader(TensorDataset(dg.arange(4)), shuffle=True)
            >>> first = next(iter(loader))
            >>> state = loader.state_dict()
            >>> rest = DataLoader(TensorDataset(dg.arange(4)), shuffle=True)
            >>> rest.load_state_dict(state)
            >>> sum(int(x) for (x,) in rest) + int(first[0])
            6
        """
        self._resume = Position.from_state(state_dict)

    def check_worker_number_rationality(self) -> None:
        """Do nothing: threads are cheap."""


# ---------------------------------------------------------------------- checks
def _check_workers(
    num_workers: int, timeout: float, prefetch_factor: int | None, persistent_workers: bool
) -> None:
    if num_workers < 0:
        raise ArgumentError(
            f"DataLoader(num_workers={num_workers}): num_workers option should be non-negative; "
            "use num_workers=0 to disable multiprocessing."
        )
    if timeout < 0:
        raise ArgumentError(f"DataLoader(timeout={timeout}): timeout option should be non-negative")
    if num_workers == 0 and prefetch_factor is not None:
        raise ArgumentError(
            f"DataLoader(prefetch_factor={prefetch_factor}): prefetch_factor option could only be "
            "specified in multiprocessing. let num_workers > 0 to enable multiprocessing, "
            "otherwise set prefetch_factor to None."
        )
    if prefetch_factor is not None and prefetch_factor <= 0:
        raise ArgumentError(
            f"DataLoader(prefetch_factor={prefetch_factor}): prefetch_factor option should be "
            "positive"
        )
    if persistent_workers and num_workers == 0:
        raise ArgumentError("DataLoader(): persistent_workers option needs num_workers > 0")


def _check_stream(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    wrong = {"shuffle": shuffle or None, "sampler": sampler, "batch_sampler": batch_sampler}
    for name, value in wrong.items():
        if value is not None:
            raise ArgumentError(
                f"DataLoader with IterableDataset: expected unspecified {name} option, but got "
                f"{name}={value}"
            )


def _check_order(
    batch_size: int | None, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool
) -> None:
    if sampler is not None and shuffle:
        raise ArgumentError("DataLoader(): sampler option is mutually exclusive with shuffle")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ArgumentError(
                "DataLoader(): batch_sampler option is mutually exclusive with batch_size, "
                "shuffle, sampler, and drop_last"
            )
    elif batch_size is None and drop_last:
        raise ArgumentError(
            "DataLoader(): batch_size=None option disables auto-batching and is mutually exclusive "
            "with drop_last"
        )


def _default_sampler(
    dataset: Any, stream: bool, shuffle: bool | None, generator: Generator | None
) -> Sampler[Any] | Iterable[Any]:
    if stream:
        return _Endless()
    return RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)


class _Endless(Sampler[None]):
    """The sampler of a stream: it decides itself when it ends."""

    def __iter__(self) -> Iterator[None]:
        return itertools.repeat(None)
